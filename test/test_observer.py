"""The observation at a tick: the newest fresh numbers, or the reasons why there are none."""

from idql_ros import message as messages
from idql_ros import spec as specs
from idql_ros.observer import Observer
import numpy as np
import pytest

MS = 10**6
T = 1_000 * 10**9  # a time at which a period of 10 Hz begins
POSITION = {'name': 'position', 'topic': 'odom', 'type': 'nav_msgs/msg/Odometry',
            'fields': ['pose.pose.position.x', 'pose.pose.position.y'], 'unit': 'm',
            'max_age': 0.25}
SPEED = {'name': 'speed', 'topic': 'odom', 'type': 'nav_msgs/msg/Odometry',
         'fields': ['twist.twist.linear.x'], 'unit': 'm/s', 'max_age': 0.05}
JOINTS = {'name': 'joints', 'topic': 'joint_states', 'type': 'sensor_msgs/msg/JointState',
          'fields': ['position[elbow]'], 'unit': 'rad', 'max_age': 0.25}
LEVEL = {'name': 'level', 'topic': 'level', 'type': 'std_msgs/msg/Float64MultiArray',
         'fields': ['data[0]'], 'unit': '1', 'max_age': 0.25}
OTHER_LEVEL = {**LEVEL, 'name': 'other', 'topic': 'other'}


class Fed:
    """An observer with these signals, at 10 Hz, and what is needed to feed it."""

    def __init__(self, *signals):
        """Start without any message."""
        self.spec = specs.parse({
            'spec_version': 1, 'name': 'robot', 'rate': 10, 'tick': 'arrival',
            'observations': list(signals), 'actions': [{
                'name': 'out', 'topic': 'out', 'type': 'std_msgs/msg/Float64', 'fields': ['data'],
                'dimensions': [{'kind': 'velocity', 'unit': '1', 'lower': -1, 'upper': 1,
                                'stop': 'zero'}]}]}, 'robot.yaml')
        self.observer = Observer(self.spec)

    def odometry(self, stamp_ns, x, y=0.0, speed=0.0, received_ns=None):
        """Receive odometry."""
        message = messages.blank('nav_msgs/msg/Odometry')
        message.pose.pose.position.x, message.pose.pose.position.y = x, y
        message.twist.twist.linear.x = speed
        self._add('odom', message, stamp_ns, received_ns)

    def joints(self, stamp_ns, position, received_ns=None):
        """Receive the state of one joint."""
        message = messages.blank('sensor_msgs/msg/JointState')
        message.name, message.position = ['elbow'], [position]
        self._add('joint_states', message, stamp_ns, received_ns)

    def level(self, received_ns, *values, topic='level'):
        """Receive a message that has no header."""
        message = messages.blank('std_msgs/msg/Float64MultiArray')
        message.data = values
        self.observer.add(topic, message, received_ns)

    def _add(self, topic, message, stamp_ns, received_ns):
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, messages.NS)
        # Far from the stamp: what counts for a message with a header is its stamp.
        self.observer.add(topic, message, stamp_ns + T if received_ns is None else received_ns)

    def reason(self, tick_ns):
        """Return the only reason why there is no observation."""
        observation, reasons = self.observer.observe(tick_ns)
        assert observation is None
        reason, = reasons
        return reason

    def values(self, tick_ns):
        """Return the observation, which must be there."""
        observation, reasons = self.observer.observe(tick_ns)
        assert reasons == [] and observation.dtype == np.float32
        return observation.tolist()


def test_observation_is_the_signals_in_the_order_of_the_spec():
    fed = Fed(JOINTS, POSITION, LEVEL, SPEED)
    fed.level(T, 4.0)
    fed.odometry(T, 2.0, 3.0, 5.0)
    fed.joints(T, 1.0)
    assert fed.values(T) == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_nothing_is_observed_before_every_signal_has_come():
    fed = Fed(POSITION, JOINTS, LEVEL)
    fed.odometry(T, 1.0)
    observation, reasons = fed.observer.observe(T)
    assert observation is None
    assert [reason.split(':')[0] for reason in reasons] == [
        'joints (topic joint_states)', 'level (topic level)']
    assert all('missing, no message of type' in reason for reason in reasons)
    assert 'std_msgs/msg/Float64MultiArray' in reasons[1]
    fed.joints(T - 3 * MS, 1.0)
    fed.level(T, 1.0)
    assert fed.values(T) == [1.0, 0.0, 1.0, 1.0]


def test_sample_is_fresh_up_to_its_maximum_age_and_stale_one_nanosecond_later():
    fed = Fed(POSITION)
    fed.odometry(T, 7.0)
    assert fed.values(T + 250 * MS) == [7.0, 0.0]
    assert fed.reason(T + 250 * MS + 1).startswith('position (topic odom): stale, 0.250 s old')
    fed.odometry(T + 300 * MS, 8.0)
    assert fed.values(T + 300 * MS) == [8.0, 0.0]


def test_each_signal_of_a_topic_has_its_own_maximum_age():
    fed = Fed(POSITION, SPEED)
    fed.odometry(T, 1.0)
    assert fed.reason(T + 100 * MS).startswith('speed (topic odom): stale')


def test_sample_of_the_future_is_refused_beyond_its_maximum_age():
    fed = Fed(POSITION)
    fed.odometry(T, 7.0)
    assert fed.values(T - 250 * MS) == [7.0, 0.0]
    reason = fed.reason(T - 250 * MS - 1)
    assert 'stamped 0.250 s in the future' in reason and 'same clock' in reason


def test_stamp_in_the_future_makes_no_sample_live_longer():
    fed = Fed(POSITION)
    fed.odometry(T + 200 * MS, 7.0, received_ns=T)
    assert fed.observer.fresh_until_ns == T + 250 * MS
    assert fed.values(T + 250 * MS) == [7.0, 0.0]
    assert fed.reason(T + 250 * MS + 1) == (
        'position (topic odom): received 0.250 s ago, at most 0.25 s allowed, with a stamp that '
        'was 0.200 s in the future; do both sides use the same clock?')


def test_where_the_clock_lags_what_is_stamped_later_than_received_is_as_old_as_its_stamp():
    fed = Fed(POSITION)
    fed.observer = Observer(fed.spec, clock_lags=True)
    # In simulation /clock may come after a whole episode's leap of the stamps.
    fed.odometry(T, 7.0, received_ns=T - 10**9)
    assert fed.values(T + 250 * MS) == [7.0, 0.0]
    assert 'stale' in fed.reason(T + 250 * MS + 1)


def test_what_came_late_is_as_old_as_its_stamp():
    fed = Fed(POSITION)
    fed.odometry(T, 7.0, received_ns=T + 200 * MS)
    assert 'stale, 0.250 s old' in fed.reason(T + 250 * MS + 1)


@pytest.mark.parametrize(('stamp_ns', 'waited_ns', 'told'), [
    (0, 10 * MS, 'allowed; its stamp is 0: where the publisher does not stamp, state time: '
                 'received for this signal'),
    (T - 10**9, 10 * MS, 'allowed; it was received only 0.010 s ago: either it was long on its '
                         'way, or its publisher has another clock'),
    (T - 10**9, 251 * MS, 'allowed')])
def test_stale_sample_tells_what_its_stamp_and_receipt_say(stamp_ns, waited_ns, told):
    fed = Fed(POSITION)
    fed.odometry(stamp_ns, 7.0, received_ns=T)
    reason = fed.reason(T + waited_ns)
    assert ' old, at most 0.25 s ' in reason and reason.endswith(told)


def test_hold_is_the_shortest_of_the_signals_that_are_not_usable():
    fed = Fed({**POSITION, 'hold_time': 0.5}, {**JOINTS, 'hold_time': 0.2},
              {**LEVEL, 'hold_time': 3.0, 'history': 2})
    assert fed.observer.hold_s(T) == 0.2, 'none came yet'
    fed.joints(T, 1.0)
    assert fed.observer.hold_s(T) == 0.5
    fed.odometry(T, 1.0)
    assert fed.observer.hold_s(T) == 3.0
    # A history that is too short is no signal's fault.
    fed.level(T, 1.0)
    assert fed.observer.observe(T)[0] is None
    assert fed.observer.hold_s(T) == fed.spec.hold_time == 0.2


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf, 1e39])
def test_what_is_not_finite_in_float32_is_a_reason(value):
    fed = Fed(POSITION)
    fed.odometry(T, value)
    assert fed.reason(T).startswith('position (topic odom): not finite, [')


def test_message_without_the_field_is_a_reason_also_after_a_good_one():
    fed = Fed(LEVEL)
    fed.level(T, 1.0)
    assert fed.values(T) == [1.0]
    fed.level(T + MS)
    assert fed.reason(T + MS) == (
        'level (topic level): topic level (std_msgs/msg/Float64MultiArray): field data[0] has 0 '
        'elements')
    fed.level(T + 2 * MS, 2.0)
    assert fed.values(T + 2 * MS) == [2.0]


def test_overtaken_message_is_dropped():
    fed = Fed(POSITION)
    fed.odometry(T, 2.0)
    fed.odometry(T - 1, 1.0)
    fed.odometry(T - 250 * MS, 1.0)
    assert fed.values(T) == [2.0, 0.0]


def test_newer_message_of_an_equal_stamp_replaces_the_older():
    fed = Fed(POSITION)
    fed.odometry(T, 2.0)
    fed.odometry(T, 3.0)
    assert fed.values(T) == [3.0, 0.0]


def test_clock_that_was_set_back_is_followed():
    fed = Fed(POSITION)
    fed.odometry(T, 2.0)
    assert fed.observer.take_tick(T) == T
    fed.odometry(0, 1.0)
    assert fed.values(0) == [1.0, 0.0]
    assert fed.observer.take_tick(0) == 0


def test_message_without_a_header_is_never_overtaken():
    fed = Fed(POSITION, LEVEL)
    fed.odometry(T, 0.0)
    # The node's clock lags behind the stamps, as it does in simulation.
    fed.level(T - 100 * MS, 1.0)
    assert fed.observer.take_tick(T - 100 * MS) == T
    fed.level(T - 50 * MS, 2.0)
    assert fed.values(T)[2] == 2.0


def test_signal_without_header_is_as_old_as_the_tick_it_came_with():
    fed = Fed(POSITION, LEVEL)
    fed.odometry(T, 1.0)
    # In simulation the node's clock may have stood still for longer than the maximum age.
    fed.level(T - 10**9, 2.0)
    assert fed.observer.take_tick(T - 10**9) == T
    assert fed.values(T) == [1.0, 0.0, 2.0]


def test_topic_of_no_signal_is_ignored():
    fed = Fed(POSITION)
    fed.level(T, 1.0, topic='elsewhere')
    assert 'missing' in fed.reason(T)


def test_tick_is_taken_once_a_period():
    fed = Fed(POSITION)
    assert fed.observer.take_tick(T) is None
    taken = []
    for k in range(12):
        fed.odometry(T + 30 * MS * k, 0.0)
        taken.append(fed.observer.take_tick(0))
        assert fed.observer.take_tick(0) is None
    # The first stamp at or after each multiple of 100 ms.
    assert [tick_ns for tick_ns in taken if tick_ns is not None] == [
        T, T + 120 * MS, T + 210 * MS, T + 300 * MS]


def test_tick_waits_for_the_last_signal_and_is_stamped_by_the_newest():
    fed = Fed(POSITION, JOINTS)
    fed.odometry(T + 10 * MS, 0.0)
    assert fed.observer.take_tick(0) is None
    fed.joints(T + 4 * MS, 0.0)
    assert fed.observer.take_tick(0) == T + 10 * MS
    # In the next period both must come again, in whatever order.
    fed.joints(T + 104 * MS, 0.0)
    assert fed.observer.take_tick(0) is None
    fed.odometry(T + 110 * MS, 0.0)
    assert fed.observer.take_tick(0) == T + 110 * MS


def test_sample_of_the_period_before_completes_no_tick():
    fed = Fed(POSITION, JOINTS)
    fed.odometry(T + 99 * MS, 0.0)
    fed.joints(T + 100 * MS, 0.0)
    assert fed.observer.take_tick(0) is None


def test_signal_without_header_belongs_to_the_tick_it_came_before():
    fed = Fed(POSITION, LEVEL)
    fed.odometry(T, 0.0)
    assert fed.observer.take_tick(T) is None
    fed.level(T + 5 * MS, 1.0)
    assert fed.observer.take_tick(T + 5 * MS) == T
    fed.odometry(T + 100 * MS, 0.0)
    # The level is still the one of the tick before.
    assert fed.observer.take_tick(T + 100 * MS) is None
    fed.level(T + 105 * MS, 2.0)
    assert fed.observer.take_tick(T + 105 * MS) == T + 100 * MS


def test_signals_without_any_header_tick_by_the_time_of_receipt():
    fed = Fed(LEVEL, OTHER_LEVEL)
    fed.level(T + MS, 1.0)
    assert fed.observer.take_tick(T + MS) is None
    fed.level(T + 3 * MS, 1.0, topic='other')
    assert fed.observer.take_tick(T + 3 * MS) == T + 3 * MS
    fed.level(T + 50 * MS, 1.0)
    fed.level(T + 51 * MS, 1.0, topic='other')
    assert fed.observer.take_tick(T + 51 * MS) is None, 'this period has had its tick'
    assert fed.observer.take_tick(T + 100 * MS) == T + 100 * MS
