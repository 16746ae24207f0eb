"""What may be sent: always finite and within the limits, and the stop of each kind."""

import math

from idql_ros import spec as specs
from idql_ros.guard import Guard
import numpy as np
import pytest

KINDS = {
    'zero': {'kind': 'velocity', 'stop': 'zero'},
    'hold_last_sent': {'kind': 'position', 'stop': 'hold_last_sent'},
    'hold_measured': {'kind': 'position', 'stop': 'hold_measured', 'measured': 1},
    'pose': {'kind': 'position', 'stop': {'pose': 0.3}},
}


def guard(*commands):
    """Return a guard of commands, each a list of (kind of stop, lower, upper); O is 2."""
    data = {
        'spec_version': 1, 'name': 'robot', 'rate': 10, 'tick': 'timer',
        'observations': [{
            'name': 'state', 'topic': 'state', 'type': 'std_msgs/msg/Float64MultiArray',
            'fields': ['data[0:2]'], 'unit': 'rad', 'max_age': 1}],
        'actions': [{
            'name': f'command_{i}', 'topic': f'command_{i}', 'fields': [f'data[0:{len(command)}]'],
            'type': 'std_msgs/msg/Float64MultiArray',
            'dimensions': [{**KINDS[stop], 'unit': 'rad', 'lower': lower, 'upper': upper}
                           for stop, lower, upper in command]
        } for i, command in enumerate(commands)]}
    return Guard(specs.parse(data, 'robot.yaml'))


def plain(parts):
    """Return a stop as lists, for comparison."""
    return [None if part is None else part.tolist() for part in parts]


def observation(value):
    """Return an observation whose number 1 is what hold_measured holds."""
    return np.array([-9.0, value], np.float32)


def test_action_within_the_limits_is_sent_as_it_is():
    asked = np.array([0.1, -0.25], np.float32)
    sent, limited = guard([('zero', -1, 1), ('pose', -0.3, 1)]).act(asked, 0.0)
    assert sent.dtype == np.float32 and np.array_equal(sent, asked) and limited == []


def test_limit_that_bites_is_named_with_what_was_asked():
    sent, limited = guard([('zero', -1, 1)], [('zero', -1, 1), ('zero', -2, 0.5)]).act(
        np.array([0.0, -7.0, 0.75], np.float32), 0.0)
    assert sent.tolist() == [0.0, -1.0, 0.5]
    assert [(bit.dimension, bit.asked, bit.sent) for bit in limited] == [
        (1, -7.0, -1.0), (2, 0.75, 0.5)]


def test_rounding_to_float32_is_no_limit_that_bites():
    _, limited = guard([('zero', -1, 1)]).act(np.array([0.1]), 0.0)
    assert limited == []


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_action_that_is_not_finite_is_never_sent(value):
    made = guard([('zero', -1, 1), ('hold_last_sent', -1, 1)])
    made.act(np.array([0.5, 0.5], np.float32), 0.0)
    assert made.act(np.array([0.25, value]), 0.0) == (None, [])
    assert made.act(np.array([0.25, 0.5]), value) == (None, [])
    # Nor does any part of it count as sent.
    assert plain(made.stop()) == [[0.0, 0.5]]


def test_whatever_is_asked_what_is_sent_is_finite_and_within_the_limits():
    # Limits that float32 rounds to either side, at every scale, and limits near zero.
    rng = np.random.default_rng(0)
    special = [0.0, -0.0, 1e-45, -1e-45, 1e-300, 1e300, -1e300, 3.4e38, -3.4e38]
    for _ in range(400):
        scale = 10.0 ** rng.uniform(-30, 30)
        lower, upper = np.sort(rng.uniform(-1, 1, 2)) * scale
        made = guard([('hold_last_sent', lower, upper), ('hold_measured', lower, upper)])
        near = np.array([lower, upper, np.nextafter(lower, -np.inf), np.nextafter(upper, np.inf),
                         *rng.uniform(2 * lower - upper, 2 * upper - lower, 4), *special])
        with np.errstate(over='ignore'):
            for value in (*near, *near.astype(np.float32)):
                sent, _ = made.act(np.full(2, value), 0.0)
                if sent is None:
                    assert not np.isfinite(value)
                    continue
                measured = np.float32(np.clip(value, -3e38, 3e38))
                made.measure(observation(measured))
                stop, = made.stop()
                for part in (sent, stop):
                    exact = part.astype(np.float64)
                    assert np.isfinite(exact).all()
                    assert (lower <= exact).all() and (exact <= upper).all()


def test_pose_at_a_limit_that_float32_rounds_outwards_stays_within():
    made = guard([('pose', 0.2, 0.3)])
    part, = made.stop()
    # The nearest float32 to 0.3 lies above it.
    assert float(np.float32(0.3)) > 0.3 >= float(part[0]) > 0.2999999


def test_stop_of_each_kind():
    made = guard([('zero', -1, 1)], [('pose', -1, 1)], [('hold_last_sent', -1, 1)],
                 [('hold_measured', -1, 1)])
    assert plain(made.stop()) == [[0.0], [pytest.approx(0.3)], None, None]
    made.act(np.array([0.5, 0.5, 0.5, 0.5], np.float32), 0.0)
    assert plain(made.stop())[2:] == [[0.5], [0.5]]
    made.reset()
    made.measure(observation(-0.25))
    assert plain(made.stop())[2:] == [None, [-0.25]]
    # What was measured goes before what was sent.
    made.act(np.array([0.5, 0.5, 0.5, 0.5], np.float32), 0.0)
    assert plain(made.stop())[2:] == [[0.5], [-0.25]]


def test_command_with_one_unknown_number_is_unknown_as_a_whole():
    made = guard([('zero', -1, 1), ('hold_last_sent', -1, 1)], [('zero', -1, 1)])
    assert plain(made.stop()) == [None, [0.0]]


def test_stop_holds_the_values_of_the_moment_it_began():
    made = guard([('hold_measured', -1, 1)], [('hold_last_sent', -1, 1)])
    made.measure(observation(0.25))
    made.act(np.array([0.5, 0.5], np.float32), 0.0)
    assert plain(made.stop()) == [[0.25], [0.5]]
    # The arm sags while it is stopped: it must not be told to follow.
    made.measure(observation(0.125))
    made.act(np.array([math.nan, 0.0]), 0.0)
    assert plain(made.stop()) == [[0.25], [0.5]]
    # Once it moved again, the next stop holds anew.
    made.act(np.array([0.75, 0.75], np.float32), 0.0)
    assert plain(made.stop()) == [[0.125], [0.75]]


def test_stop_that_was_unknown_begins_when_it_is_known_and_holds_from_then_on():
    made = guard([('hold_measured', -1, 1)], [('hold_last_sent', -1, 1)])
    assert plain(made.stop()) == [None, None]
    made.measure(observation(0.25))
    assert plain(made.stop()) == [[0.25], None]
    made.measure(observation(0.125))
    assert plain(made.stop()) == [[0.25], None]


def test_what_is_held_is_brought_within_the_limits():
    made = guard([('hold_measured', -0.5, 0.5)])
    made.measure(observation(0.75))
    assert plain(made.stop()) == [[0.5]]


def test_reset_forgets_what_was_sent_and_measured():
    made = guard([('hold_measured', -1, 1)], [('hold_last_sent', -1, 1)])
    made.measure(observation(0.25))
    made.act(np.array([0.5, 0.5], np.float32), 0.0)
    made.stop()
    made.reset()
    assert plain(made.stop()) == [None, None]
