"""Where the candidates of a decision lie in space, and how they are coloured. Pure: no ROS."""

from __future__ import annotations

from idql_ros.spec import Space
import numpy as np

_WORST, _BEST = np.array([0.2, 0.3, 0.9, 0.5]), np.array([1.0, 0.6, 0.1, 1.0])


def origin(space: Space, observation: np.ndarray) -> np.ndarray:
    """Return where the actions of an observation (O,) begin, (3,)."""
    return _in_space(observation[list(space.origin)])


def points(space: Space, observation: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Return where actions (N, A) lead, (N, 3), given an observation (O,)."""
    return origin(space, observation) + space.scale * _in_space(actions[:, list(space.action)])


def colours(q: np.ndarray) -> np.ndarray:
    """Return red, green, blue, alpha (N, 4) from the lowest to the highest Q (N,)."""
    extent = np.ptp(q)
    share = (q - q.min()) / extent if extent > 0 else np.ones_like(q)
    return _WORST + share[:, None] * (_BEST - _WORST)


def _in_space(values: np.ndarray) -> np.ndarray:
    """Fill up the last axis to three coordinates."""
    whole = np.zeros((*values.shape[:-1], 3))
    whole[..., :values.shape[-1]] = values
    return whole
