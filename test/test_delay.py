"""A message that waited is told from one whose publisher has another clock."""

from idql_ros.delay import Delay, WINDOW_NS
import numpy as np
import pytest

MS = 10**6


@pytest.mark.parametrize('offset_ns', [0, -3600 * 10**9, 7 * 10**9])
def test_delay_is_that_beyond_the_quickest_whatever_the_clocks_say(offset_ns):
    delay, jitter = Delay(), np.random.default_rng(0)
    sent_ns = 10**18
    for _ in range(500):
        sent_ns += 20 * MS
        assert delay.of(sent_ns, sent_ns + offset_ns + int(jitter.integers(MS))) < MS
    assert delay.of(sent_ns, sent_ns + offset_ns + 900 * MS) == pytest.approx(900 * MS, abs=MS)


def test_clocks_that_drift_apart_make_no_delay():
    delay, sent_ns = Delay(), 10**18
    for step in range(100_000):  # 1000 s; 100 ppm: 100 ms in all
        sent_ns += 10 * MS
        assert delay.of(sent_ns, sent_ns + step * 1000) < 3 * MS


def test_a_clock_that_was_set_gives_no_delay_after_the_window():
    delay, sent_ns = Delay(), 10**18
    delay.of(sent_ns, sent_ns)
    found = [delay.of(sent_ns + i * 10 * MS, sent_ns + i * 10 * MS + 5 * 10**9)
             for i in range(1, 3 * WINDOW_NS // (10 * MS))]
    assert found[0] == 5 * 10**9 and found[-1] == 0


def test_a_message_that_waited_after_a_long_silence_is_not_taken_for_the_quickest():
    delay, sent_ns = Delay(), 10**18
    delay.of(sent_ns, sent_ns)
    later_ns = sent_ns + 2 * WINDOW_NS
    assert delay.of(later_ns - 10**9, later_ns) == 10**9
