"""What policy_node tells about itself, under real rclpy and DDS."""

import pytest

harness = pytest.importorskip('harness', reason='rclpy is not installed')

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus  # noqa: E402
from harness import is_stop, NODE, RATE  # noqa: E402
from lifecycle_msgs.msg import Transition  # noqa: E402
import numpy as np  # noqa: E402
from rclpy.duration import Duration  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy  # noqa: E402
from std_msgs.msg import Float64MultiArray  # noqa: E402


def labelled(message):
    """Return label -> numbers of a message whose layout names them."""
    ends = np.cumsum([d.size for d in message.layout.dim])[:-1]
    return dict(zip([d.label for d in message.layout.dim],
                    np.split(np.array(message.data), ends), strict=True))


def test_values_and_decision_are_those_of_the_policy_file(robot, active, fast_policy):
    from idql_ros import decision_record
    from idql_ros.policy import Policy
    values = robot.listen(Float64MultiArray, '/policy_node/value')
    decisions = robot.listen(Float64MultiArray, '/policy_node/decision')
    robot.drive(lambda: len(decisions) >= 3 and len(values) >= 3, 'decisions', x=3.0, y=1.0)
    record = decision_record.unpack(
        [(d.label, d.size) for d in decisions[-1].layout.dim], decisions[-1].data)
    policy = Policy(fast_policy)
    decision = policy.decide(record.observation, record.tick_ns, record.seed, record.candidates)
    assert policy.digest.startswith(record.digest) and record.published
    assert np.array_equal(record.action, decision.action) and record.q == decision.q
    assert (record.q_mean, record.q_spread) == (decision.q_mean, decision.q_spread)
    sent = next(c for c in robot.commands if harness.stamp_ns(c) == record.tick_ns)
    assert np.array_equal(harness.velocity(sent), record.sent.astype(float))
    shown = labelled(values[-1])
    assert list(shown) == ['q', 'v', 'advantage', 'q_mean', 'q_spread', 'distance']
    assert shown['advantage'] == shown['q'] - shown['v']


def test_the_state_is_there_for_who_comes_late(robot, active):
    robot.acts()
    found = []
    robot.node.create_subscription(
        DiagnosticStatus, '/policy_node/status', found.append,
        QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))
    robot.drive(lambda: found and found[-1].message == 'acting', 'the state')
    robot.spin_until(lambda: 'stale' in found[-1].message, 'the change of state')


def test_diagnostics_tell_rates_ages_latencies_and_the_policy(robot, active, fast_policy):
    received = robot.listen(DiagnosticArray, '/diagnostics')

    def statuses():
        return {s.name.partition(': ')[2]: s for s in received[-1].status} if received else {}

    robot.drive(lambda: 'share of the trained rate' in str(statuses().get('timing')),
                'the real rate')
    found = {name: {v.key: v.value for v in s.values} for name, s in statuses().items()}
    assert set(found) == {'policy', 'timing', 'signal position', 'connections'}
    for stage in ('age', 'assemble', 'infer', 'guard', 'publish'):
        assert all(p in found['timing'][stage] for p in ('p50', 'p95', 'p99', 'max', 'ms'))
    assert 0.5 < float(found['timing']['share of the trained rate']) <= 1.2
    assert 25 < float(found['signal position']['rate']) < 75
    assert float(found['signal position']['age']) < 0.25
    from idql_ros.policy import Policy
    assert found['policy']['sha256'] == Policy(fast_policy).digest
    assert found['policy']['candidates'] == '32' and found['policy']['state'] == 'acting'
    assert found['connections']['cmd_vel: subscribers'] == '1'


def test_another_publisher_of_commands_is_reported_by_name(robot, active):
    robot.node.create_publisher(harness.TwistStamped, 'cmd_vel', 10)
    robot.drive(lambda: '/robot also publishes on cmd_vel' in active.output(), 'the report')


def test_a_qos_that_does_not_fit_is_told_in_words(robot, fast_policy, tmp_path):
    policy = harness.policy_with(
        tmp_path / 'reliable.onnx', lambda metadata: metadata['spec']['observations'][0].update(
            qos={'reliability': 'reliable', 'durability': 'volatile', 'depth': 1}))
    robot.node.create_publisher(harness.Odometry, 'odom', QoSProfile(
        depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
    with harness.running(
            NODE, {'model': policy, 'autostart': True}, tmp_path / 'node.log') as process:
        robot.spin_until(lambda: 'a publisher of odom has another reliability'
                         in process.output(), 'the report')


def test_a_deadline_that_is_missed_is_told_in_words(robot, tmp_path):
    policy = harness.policy_with(
        tmp_path / 'deadline.onnx', lambda metadata: metadata['spec']['observations'][0].update(
            qos={'deadline': 0.2}))
    publisher = robot.node.create_publisher(harness.Odometry, 'odom', QoSProfile(
        depth=1, deadline=Duration(seconds=0.1)))
    with harness.running(
            NODE, {'model': policy, 'autostart': True}, tmp_path / 'node.log') as process:
        robot.spin_until(publisher.get_subscription_count, 'its subscription')
        publisher.publish(harness.Odometry())
        robot.spin_until(lambda: 'odom: no message for longer than its deadline of 0.2 s'
                         in process.output(), 'the report')


def test_candidates_are_shown_where_the_spec_says_that_they_lead(robot, tmp_path):
    from visualization_msgs.msg import MarkerArray
    policy = harness.policy_with(tmp_path / 'space.onnx', lambda metadata: metadata['spec'].update(
        rate=RATE, space={'frame_id': 'map', 'action': [0, 1], 'origin': [0, 1], 'scale': 2.0}))
    arrays = robot.listen(MarkerArray, '/policy_node/candidates')
    with harness.running(NODE, {
        'model': policy, 'autostart': True, 'enable_commands': True, 'publish_candidates': True,
    }, tmp_path / 'node.log'):
        robot.drive(lambda: arrays, 'markers', x=3.0, y=1.0)
    candidates, chosen, value = arrays[-1].markers
    assert len(candidates.points) == len(candidates.colors) == 32
    assert chosen.header.frame_id == 'map'
    begin, end = chosen.points
    assert (begin.x, begin.y) == (3.0, 1.0)
    # Of the limits, 2 m/s, and the scale.
    assert candidates.scale.x == 0.2 * 4.0 and value.text.startswith('Q ')
    tick_ns = chosen.header.stamp.sec * 10**9 + chosen.header.stamp.nanosec
    sent = next(c for c in robot.commands if harness.stamp_ns(c) == tick_ns)
    assert np.allclose([end.x - 3.0, end.y - 1.0], 2.0 * harness.velocity(sent), atol=1e-6)


def test_candidates_cannot_be_shown_where_the_spec_does_not_say_where(
        robot, tmp_path):
    policy = harness.policy_with(
        tmp_path / 'nowhere.onnx', lambda metadata: metadata['spec'].pop('space'))
    with harness.running(
            NODE, {'model': policy, 'publish_candidates': True}, tmp_path / 'node.log',
    ) as process:
        assert not robot.change_state(Transition.TRANSITION_CONFIGURE)
        robot.spin_until(lambda: 'publish_candidates: expected the key space'
                         in process.output(), 'the report')


@pytest.mark.parametrize(('action', 'stopped'), [('report', False), ('stop', True)])
def test_a_value_out_of_its_range_is_reported_and_stops_where_it_shall(
        robot, fast_policy, tmp_path, action, stopped):
    received = robot.listen(DiagnosticArray, '/diagnostics')
    with harness.running(NODE, {
        'model': fast_policy, 'autostart': True, 'enable_commands': True, 'value_guard': action,
        'value_guard_ticks': 5, 'value_range_q': '[1.0e6, 2.0e6]',
    }, tmp_path / 'node.log'):
        robot.drive(lambda: any('q' in s.message.split() for a in received for s in a.status
                                if s.name.endswith('policy')), 'the report')
        robot.commands.clear()
        robot.publish_for(0.5)
        assert all(is_stop(c) for c in robot.commands) == stopped
