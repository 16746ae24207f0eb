"""What may be sent: always finite and within the limits; the ladder to the stop; the latches."""

import math

from hypothesis import given
from hypothesis import strategies as st
from idql_ros import spec as specs
from idql_ros.guard import Guard, STATES
from idql_ros.value_guard import ValueGuard
import numpy as np
import pytest

PERIOD = 10**8  # ns, of 10 Hz
T = 1_000 * 10**9
KINDS = {
    'zero': {'kind': 'velocity', 'stop': 'zero'},
    'hold_last_sent': {'kind': 'position', 'stop': 'hold_last_sent'},
    'hold_measured': {'kind': 'position', 'stop': 'hold_measured', 'measured': 1},
    'pose': {'kind': 'position', 'stop': {'pose': 0.3}},
}
MEASURED = {'measured': 1}


def robot(*commands, hold_time=0.0, **keys):
    """Return the spec of a robot at 10 Hz; O is 2.

    Args:
        commands: each a list of dimensions: (kind of stop, lower, upper, further keys).
        hold_time: of the only signal.
        keys: of the spec.
    """
    return specs.parse({
        'spec_version': 1, 'name': 'robot', 'rate': 10, 'tick': 'timer', **keys,
        'observations': [{
            'name': 'state', 'topic': 'state', 'type': 'std_msgs/msg/Float64MultiArray',
            'fields': ['data[0:2]'], 'unit': 'rad', 'max_age': 1, 'hold_time': hold_time}],
        'actions': [{
            'name': f'command_{i}', 'topic': f'command_{i}', 'fields': [f'data[0:{len(command)}]'],
            'type': 'std_msgs/msg/Float64MultiArray',
            'dimensions': [{**KINDS[stop], 'unit': 'rad', 'lower': lower, 'upper': upper,
                            **(more[0] if more else {})}
                           for stop, lower, upper, *more in command]
        } for i, command in enumerate(commands)]}, 'robot.yaml')


class Driven:
    """A guard that is called once a period."""

    def __init__(self, *commands, latch_stop=False, value_guard=None, **keys):
        """Make the guard of a robot."""
        self.guard = Guard(robot(*commands, **keys), latch_stop=latch_stop,
                           value_guard=value_guard)
        self.now_ns = T

    def measure(self, value):
        """Take an observation whose number 1 is `value`."""
        self.guard.measure(np.array([-9.0, value], np.float32))

    def act(self, *action, after_ns=PERIOD, q=0.0, advantage=0.0):
        """Ask for an action."""
        self.now_ns += after_ns
        return self.guard.act(self.now_ns, np.array(action, np.float32), {
            'q': q, 'advantage': advantage, 'spread': 0.0, 'distance': math.nan})

    def refuse(self, hold_s=0.0, after_ns=PERIOD):
        """Refuse to act."""
        self.now_ns += after_ns
        return self.guard.refuse(self.now_ns, ['blind'], hold_s)

    def halt(self):
        """Ask for the stop at once."""
        self.now_ns += PERIOD
        return self.guard.halt(self.now_ns, ['the end'])


def plain(output):
    """Return what is sent as lists, for comparison."""
    return [None if part is None else part.tolist() for part in output.parts]


def sent(output):
    """Return what is sent as one list."""
    return np.concatenate(output.parts).tolist()


# The limits of positions.

def test_action_within_the_limits_is_sent_as_it_is():
    asked = [np.float32(0.1), -0.25]
    output = Driven([('zero', -1, 1), ('pose', -0.3, 1)]).act(*asked)
    assert output.state == 'acting' and output.parts[0].dtype == np.float32
    assert sent(output) == asked
    assert (output.reasons, output.limited, output.refused, output.warnings) == ((), (), '', ())


def test_limit_that_bites_is_named_with_what_was_asked():
    output = Driven([('zero', -1, 1)], [('zero', -1, 1), ('zero', -2, 0.5)]).act(0.0, -7.0, 0.75)
    assert plain(output) == [[0.0], [-1.0, 0.5]]
    assert [(bit.dimension, bit.limit, bit.asked, bit.sent) for bit in output.limited] == [
        (1, 'position', -7.0, -1.0), (2, 'position', 0.75, 0.5)]


def test_rounding_to_float32_is_no_limit_that_bites():
    made = Guard(robot([('zero', -1, 1)]))
    assert made.act(T, np.array([0.1]), {'q': 0.0}).limited == ()


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_action_that_is_not_finite_is_never_sent(value):
    made = Driven([('zero', -1, 1), ('hold_last_sent', -1, 1)])
    made.act(0.5, 0.5)
    for output in (made.act(0.25, value), made.act(0.25, 0.5, q=value)):
        assert (output.state, output.refused) == ('stopped', 'not finite')
        # Nor does any part of it count as sent.
        assert sent(output) == [0.0, 0.5]
        assert str(value) in output.reasons[0]


def test_whatever_is_asked_what_is_sent_is_finite_and_within_the_limits():
    # Limits that float32 rounds to either side, at every scale, and limits near zero.
    rng = np.random.default_rng(0)
    special = [0.0, -0.0, 1e-45, -1e-45, 1e-300, 1e300, -1e300, 3.4e38, -3.4e38]
    for _ in range(300):
        scale = 10.0 ** rng.uniform(-30, 30)
        lower, upper = np.sort(rng.uniform(-1, 1, 2)) * scale
        made = Guard(robot([('hold_last_sent', lower, upper), ('hold_measured', lower, upper)]))
        near = np.array([lower, upper, np.nextafter(lower, -np.inf), np.nextafter(upper, np.inf),
                         *rng.uniform(2 * lower - upper, 2 * upper - lower, 4), *special])
        with np.errstate(over='ignore'):
            for value in (*near, *near.astype(np.float32)):
                made.measure(np.float32([0.0, np.clip(value, -3e38, 3e38)]))
                outputs = [made.act(T, np.full(2, value), {'q': 0.0}), made.refuse(T, [], 0.0)]
                assert outputs[0].refused == ('' if np.isfinite(value) else 'not finite')
                for output in outputs:
                    part, = output.parts
                    # Before anything was sent hold_last_sent has nothing to hold.
                    if part is None:
                        assert outputs[0].refused
                        continue
                    exact = part.astype(np.float64)
                    assert np.isfinite(exact).all()
                    assert (lower <= exact).all() and (exact <= upper).all()


# The stop of each kind.

def test_pose_at_a_limit_that_float32_rounds_outwards_stays_within():
    part, = Driven([('pose', 0.2, 0.3)]).refuse().parts
    # The nearest float32 to 0.3 lies above it.
    assert float(np.float32(0.3)) > 0.3 >= float(part[0]) > 0.2999999


def test_stop_of_each_kind():
    made = Driven([('zero', -1, 1)], [('pose', -1, 1)], [('hold_last_sent', -1, 1)],
                  [('hold_measured', -1, 1)])
    assert plain(made.refuse()) == [[0.0], [pytest.approx(0.3)], None, None]
    made.act(0.5, 0.5, 0.5, 0.5)
    assert plain(made.refuse())[2:] == [[0.5], [0.5]]
    made.guard.reset()
    made.measure(-0.25)
    assert plain(made.refuse())[2:] == [None, [-0.25]]
    # What was measured goes before what was sent.
    made.act(0.5, 0.5, 0.5, 0.5)
    output = made.refuse()
    assert plain(output)[2:] == [[0.5], [-0.25]]
    assert (output.state, output.reasons, output.refused) == ('stopped', ('blind',), '')


def test_command_with_one_unknown_number_is_unknown_as_a_whole():
    made = Driven([('zero', -1, 1), ('hold_last_sent', -1, 1)], [('zero', -1, 1)])
    assert plain(made.refuse()) == [None, [0.0]]


def test_stop_holds_the_values_of_the_moment_it_began():
    made = Driven([('hold_measured', -1, 1)], [('hold_last_sent', -1, 1)])
    made.measure(0.25)
    made.act(0.5, 0.5)
    assert plain(made.refuse()) == [[0.25], [0.5]]
    # The arm sags while it is stopped: it must not be told to follow.
    made.measure(0.125)
    made.act(math.nan, 0.0)
    assert plain(made.refuse()) == [[0.25], [0.5]]
    # Once it moved again, the next stop holds anew.
    made.act(0.75, 0.75)
    assert plain(made.refuse()) == [[0.125], [0.75]]


def test_stop_after_a_hold_has_the_values_of_the_moment_that_acting_ended():
    made = Driven([('hold_measured', -1, 1)])
    made.measure(0.25)
    made.act(0.5)
    assert sent(made.refuse(0.15)) == [0.5]
    made.measure(0.125)
    made.refuse(0.15)
    output = made.refuse(0.15)
    assert (output.state, sent(output)) == ('stopped', [0.25])


def test_stop_that_was_unknown_begins_when_it_is_known_and_holds_from_then_on():
    made = Driven([('hold_measured', -1, 1)], [('hold_last_sent', -1, 1)])
    assert plain(made.refuse()) == [None, None]
    made.measure(0.25)
    assert plain(made.refuse()) == [[0.25], None]
    made.measure(0.125)
    assert plain(made.refuse()) == [[0.25], None]


def test_what_is_held_is_brought_within_the_limits():
    made = Driven([('hold_measured', -0.5, 0.5)])
    made.measure(0.75)
    assert sent(made.refuse()) == [0.5]


def test_reset_forgets_what_was_sent_and_measured():
    made = Driven([('hold_measured', -1, 1)], [('hold_last_sent', -1, 1)])
    made.measure(0.25)
    made.act(0.5, 0.5)
    made.refuse()
    made.guard.reset()
    assert plain(made.refuse()) == [None, None]


# The ladder.

def test_ladder_acts_holds_ramps_within_the_limits_and_stops():
    made = Driven([('zero', -1, 1, {'max_rate': 4}), ('hold_last_sent', -1, 1)])
    for _ in range(3):
        made.act(1.0, 0.5)
    ladder = [made.refuse(0.3) for _ in range(7)]
    assert [output.state for output in ladder] == [
        'holding', 'holding', 'holding', 'ramping', 'ramping', 'stopped', 'stopped']
    assert [sent(output)[0] for output in ladder] == pytest.approx([1, 1, 1, 0.6, 0.2, 0, 0])
    assert {sent(output)[1] for output in ladder} == {0.5}
    assert {output.reasons for output in ladder} == {('blind',)}
    # And it acts again from where it is.
    output = made.act(1.0, 0.5)
    assert (output.state, sent(output)) == ('acting', pytest.approx([0.4, 0.5]))


def test_without_hold_and_limits_the_stop_comes_at_once():
    made = Driven([('zero', -1, 1)])
    made.act(1.0)
    output = made.refuse()
    assert (output.state, sent(output)) == ('stopped', [0.0])


def test_hold_ends_with_the_time_of_the_cause_at_hand_and_does_not_begin_anew():
    made = Driven([('zero', -1, 1, {'max_rate': 1})])
    made.act(0.1)
    assert made.refuse(10.0).state == 'holding'
    # Another signal is missing too, which allows less.
    assert made.refuse(0.05).state == 'stopped'
    assert made.refuse(10.0).state == 'stopped'
    made.act(0.1)
    assert made.refuse(10.0).state == 'holding'


def test_from_ramping_there_is_no_way_back_to_holding():
    made = Driven([('zero', -1, 1, {'max_rate': 1})])
    for _ in range(10):
        made.act(1.0)
    assert [made.refuse(0.0).state, made.refuse(9.0).state] == ['ramping', 'ramping']
    made.act(1.0)
    assert made.refuse(9.0).state == 'holding'


@pytest.mark.parametrize('steps', [
    [3 * PERIOD], [PERIOD, -PERIOD // 2, PERIOD, PERIOD // 2, PERIOD],
    [-100 * PERIOD, PERIOD, PERIOD], [-100 * PERIOD, -100 * PERIOD, -100 * PERIOD]])
def test_hold_ends_in_its_time_also_where_ticks_are_missed_or_the_clock_is_set_back(steps):
    made = Driven([('zero', -1, 1)])
    made.act(1.0)
    assert made.refuse(0.3).state == 'holding'
    states = [made.refuse(0.3, after_ns=step).state for step in steps]
    assert states == ['holding'] * (len(steps) - 1) + ['stopped']


def test_command_that_was_held_begins_anew_from_standing_still():
    made = Driven([('hold_last_sent', -1, 1, {'max_acceleration': 1, 'measured': 1})])
    made.measure(0.0)
    sents = [sent(made.act(1.0))[0] for _ in range(4)]
    assert sents == pytest.approx([0.01, 0.03, 0.06, 0.1])
    assert sent(made.refuse(9.0)) == sents[-1:]
    assert sent(made.act(1.0)) == [pytest.approx(0.11)]


def test_refused_action_begins_the_ladder_with_the_hold_of_the_spec():
    made = Driven([('zero', -1, 1)], hold_time=0.15)
    made.act(1.0)
    outputs = [made.act(math.nan) for _ in range(3)]
    assert [output.state for output in outputs] == ['holding', 'holding', 'stopped']
    assert {output.refused for output in outputs} == {'not finite'}


def test_zero_is_sent_at_once_before_anything_else_was_sent():
    made = Driven([('zero', -1, 1, {'max_rate': 1, 'measured': 1})])
    made.measure(0.75)  # it rolls
    output = made.refuse(9.0)
    assert (output.state, sent(output)) == ('stopped', [0.0])


def test_pose_is_ramped_to_from_what_is_measured_before_anything_was_sent():
    made = Driven([('pose', -1, 1, {'max_rate': 1, 'measured': 1})])
    # Whoever knows no position cannot say where to go first.
    output = made.refuse(9.0)
    assert (output.state, plain(output)) == ('ramping', [None])
    made.measure(0.0)
    ramp = [made.refuse(9.0) for _ in range(4)]
    assert [output.state for output in ramp] == ['ramping', 'ramping', 'stopped', 'stopped']
    assert [sent(output)[0] for output in ramp] == pytest.approx([0.1, 0.2, 0.3, 0.3])


def test_halt_neither_holds_nor_ramps_but_to_a_pose():
    limit = {'max_rate': 1, 'max_acceleration': 100, 'measured': 1}
    made = Driven([('zero', -1, 1, limit)], [('hold_measured', -1, 1, limit)],
                  [('hold_last_sent', -1, 1, limit)], [('pose', -1, 1, limit)], hold_time=9.0)
    made.measure(0.5)
    for _ in range(9):
        last = made.act(0.8, 0.8, 0.8, 0.8)
    output = made.halt()
    assert (output.state, output.reasons) == ('ramping', ('the end',))
    assert plain(output)[:3] == [[0.0], [0.5], plain(last)[2]]
    assert 0.3 < plain(output)[3][0] < 0.8
    while output.state == 'ramping':
        before, output = output, made.refuse(9.0)
        assert abs(plain(output)[3][0] - plain(before)[3][0]) < 0.1 + 1e-6
        assert plain(output)[:3] == plain(before)[:3]
    assert plain(output)[3] == [np.float32(0.3)]


# The latches.

def test_estop_stops_at_once_and_lasts_until_all_sources_are_released_and_it_is_resumed():
    made = Driven([('zero', -1, 1, {'max_rate': 1})], hold_time=9.0)
    for _ in range(9):
        made.act(0.8)
    made.guard.set_estop('service', True)
    made.guard.set_estop('topic', True)
    assert made.guard.blocked == ('e-stop (service, topic)',)
    output = made.act(0.8)
    assert (output.state, output.refused, sent(output)) == ('stopped', 'latched', [0.0])
    assert output.reasons == ('e-stop (service, topic)',)
    made.guard.set_estop('service', False)
    assert 'topic' in made.guard.resume()
    made.guard.reset()
    assert made.act(0.8).refused == 'latched'
    made.guard.set_estop('topic', False)
    assert made.guard.blocked == ('e-stop released, not resumed',)
    assert made.act(0.8).refused == 'latched'
    assert made.guard.resume() == '' and made.guard.blocked == ()
    assert made.act(0.8).state == 'acting'


def test_estop_wins_over_the_hold_of_a_missing_signal():
    made = Driven([('zero', -1, 1)], hold_time=9.0)
    made.act(0.8)
    made.guard.set_estop('topic', True)
    output = made.refuse(9.0)
    assert (output.state, output.reasons) == ('stopped', ('e-stop (topic)', 'blind'))
    # Who asks first what blocks need not tell it again.
    assert made.guard.refuse(made.now_ns, made.guard.blocked, 9.0).reasons == ('e-stop (topic)',)


def test_release_of_an_estop_that_was_never_engaged_latches_nothing():
    made = Driven([('zero', -1, 1)])
    made.guard.set_estop('topic', False)
    assert made.guard.blocked == () and made.act(0.8).state == 'acting'


def test_pause_ramps_without_a_hold_and_lasts_until_it_is_resumed():
    made = Driven([('zero', -1, 1, {'max_rate': 1})], hold_time=9.0)
    for _ in range(3):
        made.act(0.15)
    made.guard.pause()
    outputs = [made.act(0.15) for _ in range(3)]
    assert [output.state for output in outputs] == ['ramping', 'stopped', 'stopped']
    assert {output.reasons for output in outputs} == {('paused',)}
    made.guard.reset()
    assert made.act(0.15).refused == 'latched'
    assert made.guard.resume() == ''
    assert made.act(0.15).state == 'acting'


def test_stop_is_latched_where_it_was_reached_from_acting():
    made = Driven([('zero', -1, 1)], latch_stop=True)
    # Before the first action nothing has ended.
    assert made.refuse().state == 'stopped' and made.guard.blocked == ()
    assert made.act(0.5).state == 'acting'
    made.refuse(0.15)
    assert made.act(0.5).state == 'acting', 'it was held only'
    made.refuse()
    output = made.act(0.5)
    assert (output.state, output.refused) == ('stopped', 'latched')
    assert made.guard.resume() == ''
    assert made.act(0.5).state == 'acting'
    # The end of an activity is none of the ladder's.
    assert made.halt().state == 'stopped' and made.guard.blocked == ()
    made.refuse()
    assert made.guard.blocked == ()


def test_after_a_resume_the_first_command_begins_where_the_robot_is():
    made = Driven([('hold_measured', -1, 1, {'max_rate': 1, 'max_jump': 0.5})])
    made.measure(0.75)
    made.act(0.75)
    made.guard.set_estop('topic', True)
    assert sent(made.act(0.75)) == [0.75]
    # Without power the arm sinks.
    made.measure(-0.5)
    assert sent(made.refuse()) == [0.75]
    made.guard.set_estop('topic', False)
    assert made.guard.resume() == ''
    assert sent(made.refuse()) == [0.75], 'what is held does not move yet'
    output = made.act(-0.25)
    assert (output.state, sent(output)) == ('acting', [pytest.approx(-0.4)])


# The blend, jumps, and the time of a step.

def blended(made, count, *action):
    """Return what is sent for an action that is asked for so many times."""
    return [sent(made.act(*action))[0] for _ in range(count)]


def test_blend_goes_from_what_is_measured_to_what_is_asked_in_its_time():
    made = Driven([('hold_measured', -1, 1), ('zero', -1, 1)], blend_time=0.4)
    made.measure(-0.5)
    output = made.act(0.5, 0.75)
    assert sent(output) == [-0.5, 0.75]
    assert [(bit.dimension, bit.limit, bit.asked, bit.sent) for bit in output.limited] == [
        (0, 'blend', 0.5, -0.5)]
    made.measure(0.9)  # the blend keeps to where it began
    assert blended(made, 5, 0.5, 0.75) == pytest.approx([-0.25, 0.0, 0.25, 0.5, 0.5])
    # It is not made anew by a hold, but by a stop and a reset.
    made.refuse(9.0)
    assert blended(made, 1, 0.5, 0.75) == [0.5]
    made.refuse()
    assert blended(made, 2, 0.5, 0.75) == pytest.approx([0.9, 0.8])
    made.guard.reset()
    made.measure(0.25)
    assert blended(made, 2, 0.5, 0.75) == pytest.approx([0.25, 0.3125])


def test_blend_is_made_anew_by_a_resume():
    made = Driven([('hold_measured', -1, 1, {'max_rate': 1})], blend_time=0.2)
    made.measure(0.5)
    blended(made, 5, 0.75)
    made.guard.pause()
    assert made.act(0.75).state == 'ramping'
    made.guard.resume()
    assert blended(made, 4, 0.75) == pytest.approx([0.55, 0.625, 0.725, 0.75])


def test_missed_tick_makes_no_larger_step_of_the_blend():
    made = Driven([('hold_measured', -1, 1)], blend_time=0.4)
    made.measure(0.0)
    made.act(0.4)
    assert sent(made.act(0.4, after_ns=50 * PERIOD)) == [pytest.approx(0.1)]


def test_robot_that_moved_while_it_stood_is_no_jump_for_the_blend_that_follows():
    made = Driven([('hold_measured', -1, 1, {'max_jump': 0.05})], blend_time=1.0)
    made.measure(0.5)
    made.act(0.5)
    for _ in range(3):
        made.refuse()
    made.measure(0.42)  # it sagged
    output = made.act(0.5)
    assert output.state == 'acting' and sent(output) == [pytest.approx(0.42)]


def test_limit_that_float32_cannot_hold_exactly_does_not_bite_on_itself():
    assert Driven([('zero', -0.6, 1.1)]).act(1.1).limited == ()


def test_jump_is_refused_and_the_frame_dropped():
    made = Driven([('hold_measured', -1, 1, {'max_jump': 0.25})], hold_time=0.15)
    made.measure(0.5)
    output = made.act(0.0)
    assert (output.state, output.refused) == ('stopped', 'jump')
    for text in ('dimension 0', '0 rad would be a jump of 0.5 from 0.5', 'at most 0.25'):
        assert text in output.reasons[0]
    assert sent(made.act(0.75)) == [0.75]
    # From here on what was sent counts.
    assert sent(made.act(0.875)) == [0.875]
    output = made.act(0.5)
    assert (output.state, output.refused, sent(output)) == ('holding', 'jump', [0.875])
    assert made.act(0.75).state == 'acting'


def test_jump_of_a_velocity_counts_from_standing_still():
    made = Driven([('zero', -1, 1, {'max_jump': 0.25})])
    assert made.act(0.5).refused == 'jump'
    assert made.act(0.25).state == 'acting'


def test_blend_makes_a_start_without_a_jump():
    made = Driven([('hold_measured', -1, 1, {'max_jump': 0.25})], blend_time=0.5)
    made.measure(0.75)
    assert blended(made, 6, 0.0) == pytest.approx([0.75, 0.6, 0.45, 0.3, 0.15, 0.0])


@pytest.mark.parametrize(('after_ns', 'allowed'), [
    (PERIOD, 0.1), (PERIOD // 2, 0.05), (50 * PERIOD, 0.1), (0, 0.0), (-PERIOD // 2, 0.0),
    (-50 * PERIOD, 0.1)])
def test_step_is_that_of_the_time_since_the_last_one_and_at_most_of_a_period(after_ns, allowed):
    made = Driven([('zero', -1, 1, {'max_rate': 1})])
    assert sent(made.act(1.0)) == [pytest.approx(0.1)], 'the first one has a period'
    output = made.act(1.0, after_ns=after_ns)
    assert sent(output) == [pytest.approx(0.1 + allowed)]
    assert [bit.limit for bit in output.limited] == ['rate']


def test_time_that_is_told_twice_earns_one_step():
    # The stamp of a tick may lie before the time of the refusal that was sent meanwhile.
    made = Driven([('zero', -1, 1, {'max_rate': 1})])
    made.act(1.0)
    for _ in range(5):
        made.act(1.0, after_ns=-PERIOD // 2)
        output = made.act(1.0, after_ns=PERIOD // 2)
    assert sent(output) == [pytest.approx(0.1)]


# The values of decisions.

def watched(action):
    """Return a guard that does `action` when the advantage is outside twice in a row."""
    values = ValueGuard(action, 2)
    values.ranges = {'advantage': (-1.0, 1.0)}
    return Driven([('zero', -1, 1)], hold_time=0.15, value_guard=values)


def test_value_that_is_outside_is_reported_and_the_action_sent():
    made = watched('report')
    for _ in range(5):
        output = made.act(0.5, advantage=-2.0)
        assert output.state == 'acting' and 'advantage -2' in output.warnings[0]
    assert made.act(0.5).warnings == ()


@pytest.mark.parametrize(('action', 'states'), [
    ('hold', ['acting', 'holding', 'holding', 'stopped']),
    ('stop', ['acting', 'stopped', 'stopped', 'stopped'])])
def test_value_that_stays_outside_holds_or_stops_until_it_is_back(action, states):
    made = watched(action)
    outputs = [made.act(0.5, advantage=-2.0) for _ in range(4)]
    assert [output.state for output in outputs] == states
    assert [output.refused for output in outputs] == ['', 'value', 'value', 'value']
    assert outputs[1].reasons == outputs[1].warnings != ()
    assert made.act(0.5).state == 'acting'


def test_reset_begins_the_count_of_values_anew():
    made = watched('stop')
    made.act(0.5, advantage=-2.0)
    made.guard.reset()
    assert made.act(0.5, advantage=-2.0).state == 'acting'


# Whatever is called, in whatever order.

LIMITS = st.fixed_dictionaries({'measured': st.just(1)}, optional={
    'max_rate': st.floats(0.1, 20), 'max_acceleration': st.floats(0.1, 200),
    'max_jump': st.floats(0.05, 2)})
STEPS = st.one_of(st.just(PERIOD), st.sampled_from([0, -PERIOD // 3, -7 * PERIOD, 9 * PERIOD]),
                  st.integers(PERIOD // 5, 2 * PERIOD))
VALUES = st.one_of(st.floats(-1.5, 1.5), st.sampled_from([math.nan, math.inf, 1e30, 0.0]))
CALLS = st.lists(st.tuples(
    st.sampled_from(['act'] * 8 + ['refuse'] * 3 + [
        'halt', 'engage', 'release', 'pause', 'resume', 'reset']),
    STEPS, VALUES, st.floats(-1, 1), st.sampled_from([0.0, 0.05, 0.25, 1.0])), max_size=40)


class Watch:
    """Follows what a guard of one dimension sends, and checks it against the last output."""

    def __init__(self, guard, dimension):
        """Begin before the first call."""
        self.guard, self.dimension = guard, dimension
        self.last_ns, self.state = None, None
        self.at, self.speed, self.held_ns, self.acted = None, 0.0, 0, False

    def forget(self):
        """Begin anew: a reset."""
        self.at, self.speed, self.acted, self.last_ns, self.state = None, 0.0, False, None, None

    def passed(self, now_ns):
        """Return how long (ns) the last call is ago, as the guard counts it."""
        passed = PERIOD if self.last_ns is None else now_ns - self.last_ns
        if -PERIOD <= passed < 0:
            return 0
        self.last_ns = now_ns
        return PERIOD if passed < 0 else passed

    def check(self, name, now_ns, hold_s, output, blocked, moved):
        """Check an output: `moved`: limits do not refer to the last one."""
        d, passed = self.dimension, self.passed(now_ns)
        dt = min(passed, PERIOD) / 1e9
        assert output.state in STATES
        assert (output.state == 'acting') == (not output.reasons)
        if blocked:
            assert output.state in ('ramping', 'stopped')
        before, self.state = self.state, output.state
        if output.state == 'holding':
            assert before in ('acting', 'holding')
            self.held_ns = 0 if before == 'acting' else self.held_ns + passed
            assert self.held_ns / 1e9 < hold_s
        if output.state == 'ramping':
            assert before != 'stopped'
        part, = output.parts
        if part is None:
            assert not self.acted
            return
        assert part.dtype == np.float32 and np.isfinite(part).all()
        at = float(part[0])
        assert d.lower <= at <= d.upper
        halted = name == 'halt' or any('e-stop' in reason for reason in output.reasons)
        at_once = d.stop != 'pose' and output.state != 'acting' and (halted or not self.acted)
        if output.state == 'acting':
            self.acted = True
        slow = d.max_rate is not None or d.max_acceleration is not None
        if self.at is None or moved or at_once or not (slow or output.state == 'acting'):
            # How fast it came to its first place is not told.
            self.speed = None if output.state in ('acting', 'ramping') else 0.0
        else:
            step = at - self.at
            if d.max_rate is not None:
                assert abs(step) <= d.max_rate * dt + 1e-6
            if d.max_jump is not None and output.state == 'acting':
                assert abs(step) <= d.max_jump + 1e-6
            if output.state == 'holding':
                assert step == 0.0
            if d.max_acceleration is not None and dt > 0 and output.state != 'holding':
                speed = step / dt
                if self.speed is not None:
                    assert abs(speed - self.speed) <= d.max_acceleration * dt + 2e-6 / dt
                self.speed = speed
            if output.state in ('holding', 'stopped'):
                self.speed = 0.0
        self.at = at


@given(st.sampled_from(sorted(KINDS)), LIMITS, st.sampled_from([0.0, 0.35]), st.booleans(), CALLS)
def test_no_sequence_of_calls_breaks_a_limit_the_ladder_or_a_latch(
        stop, limits, blend_time, latch_stop, calls):
    spec = robot([(stop, -1, 1, limits)], hold_time=0.25, blend_time=blend_time)
    guards = [Guard(spec, latch_stop=latch_stop) for _ in range(2)]
    watch = Watch(guards[0], spec.dimensions[0])
    now_ns, moved = T, False
    for name, step, value, measured, hold_s in calls:
        now_ns += step
        outputs = []
        for guard in guards:
            if name == 'act':
                guard.measure(np.float32([0.0, measured]))
                outputs.append(guard.act(now_ns, np.array([value]), {'q': 0.0}))
            elif name == 'refuse':
                outputs.append(guard.refuse(now_ns, ['blind'], hold_s))
            elif name == 'halt':
                outputs.append(guard.halt(now_ns, ['the end']))
            elif name in ('engage', 'release'):
                guard.set_estop('topic', name == 'engage')
            else:
                getattr(guard, name)()
        if name == 'reset':
            watch.forget()
        moved |= name == 'resume'
        if outputs:
            latched = bool(guards[0].blocked) and outputs[0].refused == 'latched'
            watch.check(name, now_ns, 0.25 if name == 'act' else hold_s, outputs[0], latched,
                        moved)
            moved = moved and outputs[0].state != 'acting'
            # The same calls give the same bytes.
            assert repr(outputs[0]) == repr(outputs[1])
            assert [None if p is None else p.tobytes() for p in outputs[0].parts] == [
                None if p is None else p.tobytes() for p in outputs[1].parts]


@pytest.mark.parametrize('hold_s', [0.0, 1.0])
def test_after_an_action_that_was_not_sent_it_goes_on_as_if_it_had_never_been(hold_s):
    limits = {'max_rate': 1.0, 'max_acceleration': 5.0}
    driven, other = (Driven([('zero', -1, 1, limits)]) for _ in range(2))
    for each in (driven, other):
        for _ in range(4):
            each.act(0.5)
    driven.act(0.5)
    driven.guard.take_back(0)
    found = driven.refuse(hold_s, after_ns=PERIOD // 2)
    expected = other.refuse(hold_s, after_ns=PERIOD + PERIOD // 2)
    assert sent(found) == sent(expected) != [0.0]
    assert found.state == expected.state == ('holding' if hold_s else 'ramping')


def test_a_command_that_never_left_as_a_whole_is_not_held():
    driven = Driven([('zero', -1, 1)], [('zero', -1, 1)])
    driven.act(0.5, 0.5)
    driven.guard.take_back(1)
    assert sent(driven.refuse(hold_s=1.0)) == [0.0, 0.0]


def test_an_action_that_is_taken_back_is_no_reference_but_for_what_was_sent():
    limits = {'max_rate': 1.0, 'max_acceleration': 5.0}
    driven = Driven([('zero', -1, 1, limits)], [('zero', -1, 1, limits)])
    driven.act(0.5, 0.5)
    before = driven.act(0.5, 0.5)
    after = driven.act(0.5, 0.5)
    driven.guard.take_back(1)
    resumed = driven.act(0.5, 0.5)
    assert resumed.parts[1] == after.parts[1] > before.parts[1]
    assert resumed.parts[0] > after.parts[0]
