"""How far the observations of a dataset decide its actions: what a critic has to choose between.

Two estimates, neither of which chance enters: the mean squared difference between an action and
what a linear map says that was fitted to the decisions at the nearest (standardised) observations,
of another time or bag; and the same of one linear map fitted to other parts of the data. Both are
too high where the data are few for their dimensions. Therefore the smaller one counts, for each
dimension, and of all dimensions the one that is most open.
"""

import numpy as np

# An action lies within a tenth of its spread (in variance: 0.01) of what the observation says:
# less than exploration usually adds, and candidates differ by less than the policy's own error.
NEAR_DETERMINISTIC = 0.01
# Decisions of a bag that are nearer in time are one movement, which is not compared with itself.
APART_S = 2.0

# Estimated from so many decisions or more, ...
_FEWEST = 100
# ... for each of them a linear map fitted to so many nearest neighbours a coefficient, ...
_NEIGHBOURS = 3
# ... which are at most a tenth of all.
_LOCAL = 0.1
# A linear map for all, fitted without the fifth of the data that it is tried on, ...
_FOLDS = 5
# ... with at least so many decisions a coefficient.
_ROWS_PER_COEFFICIENT = 5
# By so much a map that is fitted to noise alone may be worse than the mean, which leaves all open;
# one that is worse still does not fit, and says nothing.
_ALL_OPEN = 1 + 1 / _ROWS_PER_COEFFICIENT


def open_share(
    observations: np.ndarray, actions: np.ndarray, moments_s: np.ndarray, bags: np.ndarray
) -> float | None:
    """Estimate which share of the actions' variance the observation leaves open.

    Args:
        observations: (n, O), finite.
        actions: (n, A), finite.
        moments_s: (n,) when they were, in s.
        bags: (n,) the number of the bag they are of.

    Returns:
        The share, from 0 to 1; None where the decisions are too few, no action varies, or the
        maps are worse than the mean.
    """
    if len(actions) < _FEWEST:
        return None
    observations, actions = _standardised(observations), _standardised(actions)
    actions = actions[:, actions.any(0)]
    if not actions.size:
        return None
    parts = [_left_by_local_maps(observations, actions, moments_s, bags),
             _left_by_linear_map(observations, actions)]
    known = [part for part in parts if part is not None]
    if not known:
        return None
    share = float(np.min(known, axis=0).max())
    return min(share, 1.0) if share <= _ALL_OPEN else None


def _standardised(values: np.ndarray) -> np.ndarray:
    """Return columns of mean 0 and variance 1; those of a single value are 0."""
    centred = values - values.mean(0)
    scale = centred.std(0)
    constant = scale <= 1e-7 * np.abs(values).max(0)
    return np.where(constant, 0.0, centred / np.where(constant, 1.0, scale))


def _left_by_local_maps(
    observations: np.ndarray, actions: np.ndarray, moments_s: np.ndarray, bags: np.ndarray
) -> np.ndarray | None:
    """Return (A,) shares of variance left by maps of neighbours; None where these are too few."""
    size = observations.shape[1] + 1
    count = _NEIGHBOURS * size
    if count > _LOCAL * len(actions):
        return None
    squares = np.square(observations).sum(1)
    differences = []
    for begin in range(0, len(actions), 500):
        part = slice(begin, begin + 500)
        distances = squares[part, None] + squares - 2 * observations[part] @ observations.T
        same = (np.abs(moments_s[part, None] - moments_s) < APART_S) & (
            bags[part, None] == bags)
        distances[same] = np.inf
        nearest = np.argpartition(distances, count, axis=1)[:, :count]
        enough = np.isfinite(np.take_along_axis(distances, nearest, 1)).all(1)
        # About the decision itself: there the map is its constant.
        inputs = np.ones((len(nearest), count, size))
        inputs[..., 1:] = observations[nearest] - observations[part, None]
        transposed = inputs.transpose(0, 2, 1)
        # Neighbours may lie on a line, or all in one place.
        gram = transposed @ inputs + 1e-6 * count * np.eye(size)
        predicted = np.linalg.solve(gram, transposed @ actions[nearest])[:, 0]
        differences.append((actions[part] - predicted)[enough])
    found = np.concatenate(differences)
    if len(found) < _FEWEST:
        return None
    # Of pure noise the map has a variance too.
    return np.square(found).mean(0) / (1 + 1 / _NEIGHBOURS)


def _left_by_linear_map(observations: np.ndarray, actions: np.ndarray) -> np.ndarray | None:
    """Return (A,) shares of variance left by a linear map; None where the data are too few."""
    inputs = np.column_stack([observations, np.ones(len(observations))])
    if len(inputs) * (_FOLDS - 1) / _FOLDS < _ROWS_PER_COEFFICIENT * inputs.shape[1]:
        return None
    left = np.zeros(actions.shape[1])
    for part in np.array_split(np.arange(len(inputs)), _FOLDS):
        others = np.ones(len(inputs), bool)
        others[part] = False
        weights = np.linalg.lstsq(inputs[others], actions[others], rcond=None)[0]
        left += np.square(actions[part] - inputs[part] @ weights).sum(0)
    return left / len(inputs)
