"""Rewards and terminals of recorded episodes."""

import numpy as np
import pytest

hypothesis = pytest.importorskip('hypothesis', reason='hypothesis is not installed')
from hypothesis import strategies as st  # noqa: E402
from training.rewards import scale, sparse_goal  # noqa: E402

GOAL = np.array([3.0, 4.0])


def at(*points):
    """Return what was seen within one decision."""
    return np.array(points, np.float32)


def test_reward_is_minus_one_until_the_goal_is_reached():
    rewards, terminals = sparse_goal([at([0, 0]), at([1, 1]), at([3, 4])], GOAL, 0.5)
    assert rewards.tolist() == [-1, -1, 0] and rewards.dtype == np.float32
    assert terminals.tolist() == [False, False, True] and terminals.dtype == bool


def test_goal_counts_wherever_it_is_reached_within_the_decision():
    passing = [at([0, 0], [3, 4], [9, 9]), at([3, 4], [9, 9]), at([9, 9], [9, 9], [3, 4])]
    assert sparse_goal(passing, GOAL, 0.5)[1].all()


def test_distance_of_the_tolerance_reaches_and_the_next_number_does_not():
    edge = np.nextafter(np.float32(3.5), np.float32(9))
    assert sparse_goal([at([3.5, 4])], GOAL, 0.5)[1].tolist() == [True]
    assert sparse_goal([at([edge, 4])], GOAL, 0.5)[1].tolist() == [False]


def test_distance_is_euclidean():
    # Each coordinate is nearer than the tolerance, the point is not.
    assert sparse_goal([at([3.4, 4.4])], GOAL, 0.5)[1].tolist() == [False]


def test_observations_beyond_the_goal_do_not_count():
    assert sparse_goal([at([3, 4, 100])], GOAL, 0.5)[1].tolist() == [True]
    assert sparse_goal([at([3, 100])], GOAL[:1], 0.5)[1].tolist() == [True]


def test_no_decision_gives_no_reward():
    rewards, terminals = sparse_goal([], GOAL, 0.5)
    assert rewards.shape == terminals.shape == (0,)


def test_goal_of_more_numbers_than_are_observed_is_refused():
    for size in (1, 2):
        with pytest.raises(ValueError, match=f'expected a goal of 1 to {size} numbers, found 3'):
            sparse_goal([np.zeros((1, size))], np.zeros(3), 0.5)


points = st.tuples(*[st.floats(-10, 10, width=32)] * 2)


@hypothesis.given(st.lists(st.lists(points, min_size=1, max_size=4), max_size=5))
@hypothesis.settings(max_examples=50, deadline=None)
def test_reward_is_zero_exactly_at_the_terminals(within):
    rewards, terminals = sparse_goal([at(*seen) for seen in within], GOAL, 2.0)
    near = [min(np.hypot(x - 3, y - 4) for x, y in seen) <= 2.0 for seen in within]
    assert terminals.tolist() == near
    assert rewards.tolist() == [0.0 if reached else -1.0 for reached in near]


def test_scaled_rewards_give_returns_that_span_a_thousand():
    rewards = np.array([1, 2, 3, -4, 0.5], np.float32)
    episodes = np.array([0, 0, 7, 7, 9])
    scaled = scale('return_range', rewards, episodes) * rewards
    returns = [scaled[episodes == number].sum() for number in (0, 7, 9)]
    assert max(returns) - min(returns) == pytest.approx(1000)
    assert scale('none', rewards, episodes) == 1


def test_equal_returns_cannot_be_scaled():
    with pytest.raises(ValueError, match='reward_scaling: .*different returns, found -2 for each'):
        scale('return_range', np.full(4, -1.0), np.array([0, 0, 1, 1]))
