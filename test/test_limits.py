"""A step towards a target: within rate and acceleration, and never past one that stands still."""

from hypothesis import given
from hypothesis import strategies as st
from idql_ros import spec as specs
from idql_ros.limits import Limited, Limits
import numpy as np
import pytest


def limits(*dimensions):
    """Return the limits of dimensions, each a mapping of what they state beside lower, upper."""
    return Limits(specs.parse({
        'spec_version': 1, 'name': 'robot', 'rate': 10, 'tick': 'timer',
        'observations': [{'name': 'state', 'topic': 'state', 'type': 'std_msgs/msg/Float64',
                          'fields': ['data'], 'unit': 'm', 'max_age': 1}],
        'actions': [{
            'name': 'out', 'topic': 'out', 'type': 'std_msgs/msg/Float64MultiArray',
            'fields': [f'data[0:{len(dimensions)}]'], 'dimensions': [
                {'kind': 'velocity', 'unit': 'm', 'lower': -2, 'upper': 2, 'stop': 'zero', **d}
                for d in dimensions]}]}, 'robot.yaml'))


def names(limited):
    """Return which limits bit."""
    return [bit.limit for bit in limited]


def walk(made, target, dts, at=0.0, speed=0.0):
    """Yield (at, speed, limited) after each step towards a target that stands still."""
    for dt_s in dts:
        at, speed, limited = made.step(0, target, at, speed, dt_s)
        yield at, speed, limited


def test_dimensions_whose_changes_are_limited_are_slow():
    assert limits({}, {'max_rate': 1}, {'max_jump': 1}, {'max_acceleration': 1}).slow == [1, 3]


def test_clip_is_the_nearest_float32_within_also_where_rounding_leads_outside():
    made = limits({'lower': -0.7, 'upper': 0.3})
    for value in (0.3, 9.0, 1e300, np.inf):
        clipped, = made.clip(np.array([value]))
        assert clipped.dtype == np.float32 and 0.3 - 3e-8 < float(clipped) <= 0.3
    assert float(made.clip(np.array([-9.0]))[0]) >= -0.7
    assert np.isnan(made.clip(np.array([np.nan]))).all()


def test_rate_alone_goes_in_equal_steps_and_ends_at_the_target_exactly():
    steps = list(walk(limits({'max_rate': 3}), 1.0, [0.1] * 5))
    assert [at for at, *_ in steps] == pytest.approx([0.3, 0.6, 0.9, 1.0, 1.0])
    assert steps[3][0] == 1.0
    assert [names(limited) for *_, limited in steps] == [['rate']] * 3 + [[]] * 2
    assert steps[0][2] == [Limited(0, 'rate', 1.0, pytest.approx(0.3))]


def test_acceleration_speeds_up_brakes_in_time_and_says_which_limit_bit():
    made = limits({'max_rate': 1, 'max_acceleration': 2})
    steps = list(walk(made, 2.0, [0.1] * 40))
    speeds = [speed for _, speed, _ in steps]
    assert speeds[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert names(steps[0][2]) == ['acceleration'] and names(steps[9][2])[-1] == 'rate'
    assert np.diff(speeds).min() >= -0.2 - 1e-9
    # Three metres at 1 m/s and 2 m/s^2 take 2.5 s; braking begins a little early.
    arrived = next(i for i, (at, *_) in enumerate(steps) if np.float32(at) == 2.0)
    assert 24 <= arrived <= 32
    assert steps[-1] == (2.0, 0.0, [])


def test_target_that_comes_closer_than_the_braking_distance_is_passed_and_returned_to():
    made = limits({'max_acceleration': 1})
    found = list(walk(made, 0.0, [0.1] * 60, at=0.0, speed=1.0))
    assert max(at for at, *_ in found) == pytest.approx(0.45)
    assert found[-1][0] == pytest.approx(0.0, abs=1e-7)


def test_nothing_moves_in_no_time():
    made = limits({'max_rate': 1}, {'max_acceleration': 1})
    assert made.step(0, 1.0, 0.5, 0.25, 0.0) == (0.5, 0.25, [Limited(0, 'rate', 1.0, 0.5)])
    assert made.step(1, 0.5, 0.5, 0.25, 0.0) == (0.5, 0.25, [])
    assert names(made.step(1, 1.0, 0.5, 0.25, 0.0)[2]) == ['acceleration']


def test_what_begins_outside_the_limits_is_within_them_at_once():
    at, _, _ = limits({'max_rate': 1}).step(0, 2.0, 7.0, 0.0, 0.1)
    assert at == 2.0


@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(0.01, 100), st.floats(0.01, 1000),
       st.lists(st.floats(1e-4, 0.1), min_size=1, max_size=200))
def test_target_that_stands_still_is_never_passed_whatever_the_steps_last(
        begin, target, rate, acceleration, dts):
    made = limits({'max_rate': rate, 'max_acceleration': acceleration})
    target = float(np.float32(target))
    before, at_before = 0.0, begin
    for dt_s, (at, speed, _) in zip(dts, walk(made, target, dts, at=begin), strict=True):
        assert min(begin, target) - 1e-9 <= at <= max(begin, target) + 1e-9
        assert abs(at - at_before) <= rate * dt_s + 1e-9
        assert abs(speed - before) <= acceleration * dt_s + 1e-9
        before, at_before = speed, at


def test_arrival_in_a_moment_earns_no_speed():
    # What is left is less than float32 tells, and so is the time.
    _, speed, limited = limits({'max_acceleration': 1}).step(0, 1.0, 1.0 - 1e-9, 0.0, 1e-9)
    assert 0.0 < speed <= 1e-9 and limited == []


@given(st.lists(st.tuples(st.floats(-2, 2), st.floats(0, 0.1)), min_size=1, max_size=100),
       st.floats(0.1, 100), st.floats(0.1, 1000))
def test_no_target_that_moves_leads_past_a_position_limit(targets, rate, acceleration):
    made = limits({'max_rate': rate, 'max_acceleration': acceleration})
    at = speed = 0.0
    for target, dt_s in targets:
        at, speed, _ = made.step(0, target, at, speed, dt_s)
        assert abs(at) <= 2.0 + 1e-6


def test_jump_is_one_only_beyond_the_limit_and_where_the_reference_is_known():
    made = limits({'max_jump': 0.5}, {})
    assert made.jumps(np.array([0.5, 9.0]), np.array([0.0, 0.0])) == []
    text, = made.jumps(np.array([-0.75, 9.0]), np.array([0.0, 0.0]))
    assert text == ('dimension 0: -0.75 m would be a jump of 0.75 from 0, at most 0.5 allowed')
    assert made.jumps(np.array([9.0, 9.0]), np.array([np.nan, 0.0])) == []
