"""The judge of commands: each unsafe one is found, and nothing is found in a record without."""

import math

import pytest

injection = pytest.importorskip('injection', reason='rclpy is not installed')

from idql_ros.decision_record import DecisionRecord  # noqa: E402
from injection import NS, Sample, Sent  # noqa: E402
import numpy as np  # noqa: E402
from verdict import Verdict  # noqa: E402

T = 1_000 * NS
PERIOD = NS // 50


@pytest.fixture
def record():
    """Give a driver whose record is that of a robot that starts to move, by hand."""
    driver = injection.Driver(injection.robot_spec())
    driver.close()
    for tick in range(50):
        act(driver, tick, [0.0, 0.2, 0.0])
    return driver


def act(driver, tick, values, *, asked=None, age_s=0.005, late_s=0.001):
    """Add a tick's samples, its decision, and the commands that carry it out."""
    tick_ns = T + tick * PERIOD
    number = tick % injection.NUMBERS / injection.NUMBERS
    for stream in driver.streams.values():
        made_ns = tick_ns - round(age_s * NS)
        stream.samples.append(Sample(made_ns, made_ns, number, True))
    values = np.array(values, np.float32)
    driver.decide(DecisionRecord(
        tick_ns, 0, 2, '0' * 12, 'greedy', 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, True,
        np.array([0.0, 0.2, number, 0.0, number], np.float32),
        values if asked is None else np.array(asked, np.float32), values), tick_ns + NS)
    send(driver, tick_ns, values, late_s)


def send(driver, stamp_ns, values, late_s=0.001):
    """Add commands."""
    for topic, part in (('arm_command', values[:2]), ('base_command', values[2:])):
        driver.keep(Sent(
            stamp_ns + round(late_s * NS), stamp_ns, np.array(part, float), topic))


def texts(driver):
    """Return what the judge finds."""
    return [fault.text for fault in Verdict(driver).faults]


def test_nothing_is_found_where_all_is_within_the_limits(record):
    # 60 m/s^2 allow 1.2 m/s more in a tick, 3 m/s^2 0.06 m/s.
    act(record, 50, [0.004, 0.2, 0.02])
    act(record, 51, [0.012, 0.2, 0.04])
    verdict = Verdict(record)
    assert verdict.faults == []
    assert (verdict.commands, verdict.actions) == (104, 52)


@pytest.mark.parametrize('values, expected', [
    ([math.nan, 0.2, 0.0], 'expected -0.9 to 0.9'),
    ([0.0, 0.2, math.inf], 'expected -0.6 to 0.6'),
    # The float32 nearest to 0.9 and 1.1 lie outside, below and above.
    ([float(np.nextafter(np.float32(0.9), np.float32(1.0))), 0.2, 0.0], 'expected -0.9 to 0.9'),
    ([0.0, float(np.float32(1.1)), 0.0], 'expected -0.7 to 1.1'),
    ([0.05, 0.2, 0.0], 'arm_command: a step of 0.050000 rad, expected 0.040000'),
    ([0.0, 0.2, 0.07], 'base_command: a step of 0.070000 m/s, expected 0.060000'),
    ([0.02, 0.2, 0.0], 'the speed changes by 1.000000 rad/s, expected 0.400')])
def test_a_command_beyond_a_limit_is_found(record, values, expected):
    act(record, 50, values)
    assert any(expected in text for text in texts(record)), texts(record)


def test_a_hold_ends_a_motion_at_once_and_an_action_does_not(record):
    for tick, at in ((50, 0.004), (51, 0.012), (52, 0.024), (53, 0.036)):
        act(record, tick, [at, 0.2, 0.0])
    send(record, T + 54 * PERIOD, [np.float32(0.036), np.float32(0.2), 0.0])
    assert texts(record) == []
    act(record, 55, [0.036, 0.2, 0.0])
    assert texts(record) == []


def test_an_operators_stop_may_come_at_once_until_the_first_action_after_its_release(record):
    at_ns = T + 50 * PERIOD
    send(record, at_ns, [0.5, 0.2, 0.0])
    assert texts(record)
    record.at_once.append((at_ns, at_ns + PERIOD // 2))
    act(record, 51, [0.004, 0.2, 0.0])
    assert texts(record) == []
    act(record, 52, [0.5, 0.2, 0.0])
    assert texts(record)


def test_an_action_from_an_old_sample_is_found_and_so_is_one_that_was_held_back(record):
    act(record, 50, [0.0, 0.2, 0.0], age_s=0.09)
    assert texts(record) == []
    act(record, 51, [0.0, 0.2, 0.0], late_s=0.12, age_s=0.0)
    assert [text for text in texts(record) if 'sample of joints' in text]


def test_an_action_from_a_sample_that_was_never_published_is_found(record):
    act(record, 50, [0.0, 0.2, 0.0])
    record.streams['base'].samples.pop()
    assert texts(record) == ['made from a sample of base that was never published']


def test_an_action_that_asked_for_a_jump_is_found_when_the_blend_is_over(record):
    act(record, 50, [0.0, 0.2, 0.0], asked=[0.0, 0.2, 1.35])
    assert [text for text in texts(record) if 'a jump of 1.3500' in text]


def test_an_action_that_is_not_the_one_of_the_decision_is_found(record):
    act(record, 50, [0.0, 0.2, 0.0])
    send(record, T + 50 * PERIOD, [0.0, np.float32(0.2), 0.01], 0.002)
    assert [text for text in texts(record) if 'the record of the decision says' in text]
