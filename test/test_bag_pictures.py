"""Pictures of bags are drawn of what can be drawn, and of few bags."""

import numpy as np
import pytest

pytest.importorskip('hypothesis', reason='hypothesis is not installed')
pytest.importorskip('matplotlib', reason='matplotlib is not installed')
from bag_results import bag, robot, unusual  # noqa: E402
from training import bag_pictures  # noqa: E402
from training.bag_pictures import chosen_bags, draw_times, draw_traces  # noqa: E402
from training.bag_summary import BagResult  # noqa: E402

PNG = b'\x89PNG'


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('draw', [draw_times, draw_traces])
def test_every_bag_has_a_picture(draw):
    for _, results in unusual():
        for result in results:
            assert draw(result, robot()).startswith(PNG)


@pytest.mark.parametrize('draw', [draw_times, draw_traces])
def test_names_and_units_are_no_formulas(draw):
    spec = robot(signal={'unit': '$\\frac{'})
    assert draw(bag(spec), spec).startswith(PNG)


def test_bags_that_tell_most_are_drawn():
    spec = robot()
    names = [result.account['bag'] for result in chosen_bags([
        bag(spec, 'refused', 500, refused='broken'), bag(spec, 'idle', 400, decisions=0),
        bag(spec, 'short', 100), bag(spec, 'long', 300),
        BagResult(bag(spec, 'unknown').account, {}, [])])]
    assert names == ['long', 'short', 'idle']


def test_no_line_is_drawn_across_a_gap():
    rows = np.column_stack([[0.0, 0.1, 5.1, 5.2], np.arange(4.0)])
    cut = bag_pictures._cut_at_gaps(rows, [{'at_s': 0.1, 'length_s': 5.0}])
    assert np.isnan(cut[2]).all() and np.array_equal(np.delete(cut, 2, 0), rows)


def test_marks_that_lie_close_are_one_bar():
    assert bag_pictures._stretches(np.array([0.0, 0.1, 0.2, 5.0]), 0.5) == [
        (0.0, pytest.approx(0.2)), (5.0, 0.5 / 8)]
