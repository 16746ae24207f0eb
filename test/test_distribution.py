"""Histograms count every finite number, of whatever size."""

import numpy as np
import pytest

hypothesis = pytest.importorskip('hypothesis', reason='hypothesis is not installed')
from hypothesis import strategies as st  # noqa: E402
from training.distribution import histogram, spread  # noqa: E402


@hypothesis.given(st.lists(st.floats(-3e38, 3e38) | st.sampled_from([np.nan, np.inf]), max_size=9))
@hypothesis.settings(deadline=None)
def test_every_finite_number_is_counted_once(values):
    values = np.array(values, float)
    found = histogram(values)
    assert sum(found['counts']) == np.isfinite(values).sum()
    assert (np.diff(found['edges']) > 0).all()


def test_spread_is_that_of_the_finite_numbers():
    found = spread(np.array([1.0, 2.0, 3.0, np.nan, np.inf, -1e300]))
    assert {key: found[key] for key in ('low', 'median', 'mean', 'high')} == {
        'low': 1, 'median': 2, 'mean': 2, 'high': 3}
    assert found['p5'] == pytest.approx(1.1) and found['p95'] == pytest.approx(2.9)
    assert spread(np.array([np.nan])) is spread(np.zeros(0)) is None
