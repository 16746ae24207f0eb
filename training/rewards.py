"""Episode -> rewards and terminals: one plain function for each task; and the rewards' scale.

`within` holds, for each decision, every observation that was made after the decision's tick up to
and including the next one: what happens between two ticks counts too.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

Scaling = Literal['none', 'return_range']

# The range of returns that rewards are scaled to.
RETURN_RANGE = 1000.0


def sparse_goal(
    within: Sequence[np.ndarray], goal: np.ndarray, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return -1 for each decision, and 0 with a terminal where the goal is reached within it.

    The goal is a value of the first len(goal) observations, in their unit, and is reached at the
    distance `tolerance` (OGBench's singletask maze reward, `ogbench/relabel_utils.py`).

    Args:
        within: n arrays (m_k, O).
        goal: (G,), G <= O.
        tolerance: Euclidean distance.

    Returns:
        rewards (n,) float32 and terminals (n,) bool.

    Raises:
        ValueError: There are more numbers in the goal than in an observation.
    """
    for seen in within[:1]:
        if not 1 <= len(goal) <= seen.shape[1]:
            raise ValueError(
                f'expected a goal of 1 to {seen.shape[1]} numbers, found {len(goal)}')
    reached = np.array([
        bool(np.any(np.linalg.norm(seen[:, :len(goal)] - goal, axis=1) <= tolerance))
        for seen in within
    ], dtype=bool)
    return reached.astype(np.float32) - 1.0, reached


def scale(scaling: Scaling, rewards: np.ndarray, episodes: np.ndarray) -> float:
    """Return what to multiply rewards by.

    Args:
        scaling: 'none': 1. 'return_range': the episodes' returns are to span 1000 (IQL and IDQL
            do so for locomotion).
        rewards: (M,).
        episodes: (M,), the episode of each.

    Raises:
        ValueError: All returns are equal, so that nothing makes them span anything.
    """
    if scaling == 'none':
        return 1.0
    _, numbers = np.unique(episodes, return_inverse=True)
    returns = np.bincount(numbers, rewards)
    extent = float(returns.max() - returns.min())
    if extent == 0:
        raise ValueError(
            f'reward_scaling: return_range expects episodes of different returns, found '
            f'{returns[0]:.4g} for each of {len(returns)}'
        )
    return RETURN_RANGE / extent
