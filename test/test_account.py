"""What is known of a bag's streams: exact counts, near percentiles, in bounded memory."""

import json
import tracemalloc

import numpy as np
import pytest

hypothesis = pytest.importorskip('hypothesis', reason='hypothesis is not installed')
from hypothesis import strategies as st  # noqa: E402
from idql_ros import spec as specs  # noqa: E402
from training import account as accounts  # noqa: E402
from training.account import BagAccount, PERCENTILES, Sample, StreamAccount  # noqa: E402

NS = 10**9
T = 1_700_000_000 * NS
MS = 10**6
LIMITED = {'kind': 'velocity', 'unit': 'm/s', 'lower': -1.0, 'upper': 0.7, 'stop': 'zero'}
ROBOT = specs.parse({
    'spec_version': 1, 'name': 'robot', 'rate': 10, 'tick': 'timer',
    'observations': [{
        'name': 'pose', 'topic': 'pose', 'type': 'std_msgs/msg/Float32MultiArray',
        'fields': ['data[0:2]'], 'unit': 'm', 'max_age': 0.25}],
    'actions': [{'name': 'drive', 'topic': 'cmd_vel', 'type': 'geometry_msgs/msg/Twist',
                 'fields': ['linear.x', 'angular.z'], 'dimensions': [LIMITED, LIMITED]}]},
    'robot')
POSE, DRIVE = ROBOT.observations[0], ROBOT.actions[0]


def told(stream=POSE, times=None, stamps=None, values=None, gap_s=0.25):
    """Return the account of messages every 100 ms, or at `times` in ns, logged 1 ms later."""
    count = next(len(part) for part in (times, stamps, values, range(3)) if part is not None)
    times = T + 100 * MS * np.arange(count) if times is None else times
    account = StreamAccount(stream, gap_s)
    for i in range(count):
        account.add(int(times[i]), int(times[i]) + MS,
                    None if stamps is None or stamps[i] is None else int(stamps[i]),
                    np.zeros(2, np.float32) if values is None else values[i])
    return account


@hypothesis.given(st.lists(st.integers(0, 3000), max_size=30), st.integers(1, 3))
@hypothesis.settings(deadline=None)
def test_sample_is_every_kth_row_however_it_came(parts, width):
    rows = np.arange(sum(parts) * width).reshape(-1, width)
    sample = Sample()
    begin = 0
    for part in parts:
        sample.add(rows[begin:begin + part])
        begin += part
    kept = sample.rows()
    assert len(kept) <= 2 * accounts._KEPT
    if len(rows):
        stride = -(-len(rows) // len(kept))
        assert np.array_equal(kept, rows[::stride])
        assert len(kept) >= min(len(rows), accounts._KEPT)


@pytest.mark.parametrize('part', [1, 4096])
def test_memory_of_a_sample_does_not_grow_with_its_rows(part):
    tracemalloc.start()
    try:
        sample = Sample()
        for begin in range(0, 400_000, part):
            sample.add(np.arange(begin, begin + part, dtype=float))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # At most 8192 rows, each an array of its own.
    assert used < 2e6


def test_memory_of_a_stream_does_not_grow_with_its_messages():
    values = np.zeros(2, np.float32)
    tracemalloc.start()
    try:
        account = StreamAccount(POSE, 0.25)
        for i in range(150_000):
            account.add(T + i * MS, T + i * MS, T + i * MS, values)
        used, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4e6
    assert account.to_dict()['count'] == 150_000


@pytest.mark.parametrize('count', [1, 100, 8192, 50_000])
def test_percentiles_are_near_those_of_all_rows(count):
    rows = np.random.default_rng(0).gamma(2, size=count)
    rows[rows < 0.01] = np.nan
    sample = Sample()
    sample.add(rows)
    for p, found in zip(PERCENTILES, sample.percentiles().values(), strict=True):
        near = np.nanpercentile(rows, [max(0, p - 1), min(100, p + 1)])
        if count <= 8192:
            near = [np.nanpercentile(rows, p)] * 2
        assert near[0] - 1e-12 <= found <= near[1] + 1e-12


@pytest.mark.parametrize('rows', [[], [np.nan, np.inf]])
def test_percentiles_of_nothing_are_none(rows):
    sample = Sample()
    sample.add(np.array(rows))
    assert sample.percentiles() is None


MESSAGES = st.lists(st.tuples(
    st.integers(0, 400), st.none() | st.integers(-3, 3),
    st.none() | st.tuples(*[st.sampled_from([-2, -1, 0, 0.7, np.float32(0.7), 5, np.nan,
                                             np.inf])] * 2)), max_size=40)


@hypothesis.settings(deadline=None)
@hypothesis.given(MESSAGES, st.integers(1, 50))
def test_counts_are_exact_whatever_the_size_of_a_block(messages, block):
    times = T + MS * np.cumsum([step for step, _, _ in messages], dtype=np.int64)
    stamps = [None if shift is None else int(time) + shift
              for time, (_, shift, _) in zip(times, messages, strict=True)]
    values = [None if value is None else np.array(value, np.float32)
              for _, _, value in messages]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accounts, '_BLOCK', block)
        found = told(DRIVE, times, stamps, values).to_dict()
    intervals = np.diff(times)
    assert found['count'] == len(messages)
    assert found['gaps'] == (intervals > 250 * MS).sum() >= len(found['gaps_listed'])
    assert found['longest_interval_s'] == (intervals.max() / NS if len(intervals) else 0)
    read = np.array([value for value in values if value is not None]).reshape(-1, 2)
    assert found['unreadable'] == len(messages) - len(read)
    shares = max(1, len(read))
    assert found['not_finite'] == ((~np.isfinite(read)).sum(0) / shares).tolist()
    outside = (read > 0.7 + 1e-5) | (read < -1 - 1e-5)
    assert found['outside_limits'] == (outside.sum(0) / shares).tolist()
    at = (np.abs(read - 0.7) < 1e-5) | (read == -1)
    assert found['at_limits'] == (at.sum(0) / shares).tolist()
    for i in range(2):
        column = read[np.isfinite(read[:, i]), i]
        assert found['low'][i] == min(column, default=None)
        assert found['high'][i] == max(column, default=None)
        assert found['constant'][i] == (len(set(column)) == 1)
    known = [stamp for stamp in stamps if stamp is not None]
    if known:
        assert found['stamps']['repeated'] == (np.diff(known) == 0).sum()
        assert found['stamps']['backward'] == (np.diff(known) < 0).sum()
    else:
        assert found['stamps'] is None
    json.dumps(found, allow_nan=False)


def test_intervals_tell_the_rate_and_the_gaps_with_their_place():
    times = T + 100 * MS * np.arange(100)
    times[40:] += 3 * NS
    found = told(times=times).to_dict()
    assert found['rate_hz'] == pytest.approx(10)
    assert found['gaps'] == 1 and found['longest_interval_s'] == pytest.approx(3.1)
    assert found['gaps_listed'] == [
        {'at_s': pytest.approx(3.9), 'length_s': pytest.approx(3.1)}]


def test_rate_of_bursts_is_that_of_their_messages():
    # Five messages within a millisecond, ten times a second.
    times = T + (100 * MS * np.arange(100)[:, None] + 10**5 * np.arange(5)).ravel()
    assert told(times=times).to_dict()['rate_hz'] == pytest.approx(50, rel=0.02)


def test_rate_of_a_stream_that_is_slower_than_its_gaps_is_known():
    assert told(times=T + NS * np.arange(9)).to_dict()['rate_hz'] == pytest.approx(1)


@pytest.mark.parametrize('times', [[T], [T, T], [T, T - NS]])
def test_rate_of_messages_that_no_time_passes_between_is_unknown(times):
    assert told(times=times).to_dict()['rate_hz'] is None


def test_gaps_are_all_counted_and_few_are_listed():
    found = told(times=T + NS * np.arange(5000)).to_dict()
    assert found['gaps'] == 4999 and len(found['gaps_listed']) == 20


@pytest.mark.parametrize('block', [7, 4096])
def test_gaps_listed_are_the_longest_in_the_order_of_their_times(monkeypatch, block):
    monkeypatch.setattr(accounts, '_BLOCK', block)
    lengths_ms = np.random.default_rng(0).permutation(np.arange(300, 400))
    listed = told(times=T + MS * np.cumsum(lengths_ms)).to_dict()['gaps_listed']
    longest = [length for length in lengths_ms[1:] if length in sorted(lengths_ms[1:])[-20:]]
    assert [gap['length_s'] for gap in listed] == pytest.approx(np.array(longest) / 1000)
    assert [gap['at_s'] for gap in listed] == sorted(gap['at_s'] for gap in listed)


def test_stream_that_may_be_silent_has_no_gaps():
    found = told(times=T + NS * np.arange(10), gap_s=np.inf).to_dict()
    assert found['gaps'] == 0 and found['gap_s'] is None


def test_stamps_a_few_nanoseconds_apart_are_not_repeated():
    times = T + np.arange(10)
    found = told(times=times, stamps=times).to_dict()
    assert found['stamps']['repeated'] == found['stamps']['backward'] == 0


def test_stamps_tell_zeros_the_skew_and_its_drift():
    times = T + 100 * MS * np.arange(1000)
    stamps = times - np.arange(1000) * MS
    stamps[500] = 0
    found = told(times=times, stamps=stamps).to_dict()['stamps']
    assert found['zero'] == 1 and found['backward'] == 1 and found['repeated'] == 0
    assert found['skew_s']['p50'] == pytest.approx(0.5, abs=0.002)
    assert found['skew_begin_s'] == pytest.approx(0.05, abs=0.002)
    assert found['skew_end_s'] == pytest.approx(0.95, abs=0.002)


def test_skew_is_that_of_the_stamps_that_are_filled_in():
    stamps = T + 100 * MS * np.arange(9000)
    stamps[:5000] = 0
    found = told(times=T + 100 * MS * np.arange(9000), stamps=stamps).to_dict()['stamps']
    assert found['zero'] == 5000
    assert found['skew_s']['p5'] == found['skew_s']['p99'] == pytest.approx(1e-3)
    assert found['skew_begin_s'] == found['skew_end_s'] == pytest.approx(1e-3)
    none = told(stamps=np.zeros(3)).to_dict()['stamps']
    assert none['zero'] == 3
    assert none['skew_s'] is none['skew_begin_s'] is none['skew_end_s'] is None


def test_first_unreadable_message_is_told():
    account = told(values=[None, np.zeros(2), None])
    account.unreadable = 'field data[0] has 0 elements'
    found = account.to_dict()
    assert found['unreadable'] == 2
    assert found['unreadable_because'] == 'field data[0] has 0 elements'


def test_values_are_those_of_all_messages_so_far():
    account = told(values=np.arange(20.0).reshape(10, 2))
    rows = account.values.rows()
    assert rows.shape == (10, 3)
    assert rows[:, 0] == pytest.approx(T / NS + 0.1 * np.arange(10))
    assert np.array_equal(rows[:, 1:].ravel(), np.arange(20))
    # Looking does not count anything twice.
    assert account.to_dict()['count'] == account.to_dict()['count'] == 10


def test_limits_hold_for_commands_alone():
    found = told(POSE, values=np.full((3, 2), 9.0)).to_dict()
    assert found['limits'] is found['at_limits'] is found['outside_limits'] is None
    assert told(DRIVE).to_dict()['limits'] == [[-1.0, 0.7]] * 2


def test_stream_without_messages_is_json():
    found = StreamAccount(POSE, 0.25).to_dict()
    assert found['count'] == 0 and found['rate_hz'] is None and found['low'] == [None, None]
    json.dumps(found, allow_nan=False)


def test_bag_is_json_with_its_reasons_most_often_first():
    account = BagAccount('bag', {'pose': told()}, begin_ns=T, end_ns=T + 3 * NS, notes=['old'])
    for reason in ('rare', 'often', 'often'):
        account.unuse(reason)
    found = account.to_dict()
    assert list(found['unused'].items()) == [('often', 2), ('rare', 1)]
    assert found['notes'] == ['old']
    assert found['begin_s'] == T / NS and found['duration_s'] == 3.0
    json.dumps(found, allow_nan=False)
    assert BagAccount('none', {}).to_dict()['duration_s'] == 0.0
