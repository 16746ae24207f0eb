"""Histograms are drawn of whatever there is, with limits that leave the numbers room."""

import numpy as np
import pytest

pytest.importorskip('matplotlib', reason='matplotlib is not installed')
from training.distribution import histogram  # noqa: E402
from training.figures import draw_histograms, draw_limit  # noqa: E402


def test_limit_that_would_squeeze_the_numbers_is_not_drawn():
    drawn = []
    for limit in (1.5, 1e6):
        draw_limit(
            lambda at, **how: drawn.append(at), limit, np.array([0.0, 1.0, np.nan]), 'C0')
    assert drawn == [1.5]


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('values', [[], [0.0], [-3e38, 3e38], [1e-300, 2e-300], [5.0] * 9])
def test_histograms_of_any_numbers_have_a_picture(values):
    known = {'name': '$\\frac{', 'unit': '$', 'limits': [0.0, 1.0], **histogram(np.array(values))}
    for count in (1, 5):
        assert draw_histograms([known] * count).startswith(b'\x89PNG')
