"""A decision that was recorded is read back to the bit; anything else is refused in words."""

from dataclasses import asdict, replace

from hypothesis import given, settings
from hypothesis import strategies as st
from idql_ros.decision_record import DecisionRecord, pack, RecordError, short_digest, unpack
import numpy as np
import pytest

RECORD = DecisionRecord(
    tick_ns=1_700_000_000_123_456_789, seed=2**63 - 1, candidates=64,
    digest=short_digest('0123456789abcdef' * 4), extraction='implicit', softmax_temperature=0.1,
    sampling_temperature=1.0, q=-3.3, v=-2.2, q_mean=-4.4, q_spread=0.1, distance=np.nan,
    published=True, observation=np.array([0.1, -2.0, 3e-7], np.float32),
    action=np.array([0.3, 0.2], np.float32), sent=np.array([np.nan, 0.2], np.float32))


def assert_same(one, other):
    for name, value in asdict(one).items():
        np.testing.assert_array_equal(value, getattr(other, name))
        assert np.asarray(value).dtype == np.asarray(getattr(other, name)).dtype


@settings(max_examples=50)
@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.integers(1, 65536),
       st.lists(st.floats(width=32), min_size=1, max_size=5))
def test_a_record_is_read_back_to_the_bit(tick_ns, seed, candidates, values):
    vector = np.array(values, np.float32)
    record = replace(RECORD, tick_ns=tick_ns, seed=seed, candidates=candidates,
                     observation=vector, action=vector[:1], sent=vector[:1])
    labels, data = pack(record)
    assert_same(unpack(labels, data.tolist()), record)


@pytest.mark.parametrize(('change', 'expected'), [
    (lambda labels, data: (labels[1:], data[2:]), 'tick_s_ns: expected 2 numbers, found none'),
    (lambda labels, data: (labels, data[1:]), 'as many numbers as the layout says'),
    (lambda labels, data: (labels, [0.5, *data[1:]]), 'tick_s_ns: expected whole numbers'),
    (lambda labels, data: (labels, [np.nan, *data[1:]]), 'tick_s_ns: expected whole numbers'),
    (lambda labels, data: ([*labels, ('more', 1)], [*data, 1.0]), 'no other labels, found more'),
])
def test_what_is_no_record_is_refused_in_words(change, expected):
    labels, data = change(*pack(RECORD))
    with pytest.raises(RecordError, match=expected):
        unpack(labels, data)
