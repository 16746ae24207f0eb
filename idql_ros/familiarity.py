"""How far an observation is from the training data, by the statistics in a policy file."""

from __future__ import annotations

import math
from typing import Any

from idql_ros.value_guard import VALUE_NAMES
import numpy as np

MAX_PROTOTYPES = 512

# A scale within these bounds, and observations of float32, make no distance that overflows.
LEAST_SCALE = 1e-30
LARGEST = float(np.finfo(np.float32).max)

Ranges = dict[str, tuple[float, float]]


class StatisticsError(ValueError):
    """Statistics that cannot be used; the text says which, what was expected and found."""


class Familiarity:
    """Observations of the training data, prototypes, that stand for all of it.

    The distance of an observation is that to the nearest prototype: the root mean square over the
    dimensions, each in units of its own spread in the data. Nearest, because data has gaps (a
    maze's walls) that no mean and covariance know of; a mean over dimensions, because 1 then says
    the same of any robot; squared, because one sensor gone far astray has to show among many.
    """

    def __init__(self, prototypes: np.ndarray, scale: np.ndarray) -> None:
        """Prepare what a tick needs.

        Args:
            prototypes: (P, O) in physical units.
            scale: (O,) the spread of each dimension, above 0.
        """
        self._scale = np.asarray(scale, np.float64)
        # Around 0, where the squares below lose nothing: positions may be large and close by.
        self._center = np.mean(prototypes, 0, np.float64)
        self._points = (prototypes - self._center) / self._scale
        self._squares = np.square(self._points).sum(1)

    def distance(self, observation: np.ndarray) -> float:
        """Return the distance of an observation (O,), 0 at a prototype."""
        point = (observation - self._center) / self._scale
        # |p - x|^2 = |p|^2 - 2 p x + |x|^2, so that no array (P, O) is made at a tick. Not as a
        # matrix product, whose library would wake threads of its own beside the node's.
        squares = self._squares - 2 * np.einsum('po,o->p', self._points, point)
        nearest = float(squares.min()) + float(np.einsum('o,o->', point, point))
        return math.sqrt(max(nearest, 0.0) / len(point))


def read(statistics: Any, observation_size: int) -> tuple[Familiarity, Ranges]:
    """Return what a policy file's statistics say.

    Args:
        statistics: As JSON has it: 'prototypes' (P, O), 'scale' (O,) and 'ranges', name -> [low,
            high] of what a value guard watches.
        observation_size: O.

    Raises:
        StatisticsError: They are not that.
    """
    if not isinstance(statistics, dict):
        raise StatisticsError(
            f'statistics: expected a mapping, found a {type(statistics).__name__}')
    prototypes, scale = (_numbers(statistics.get(key), key) for key in ('prototypes', 'scale'))
    shape = prototypes.shape
    if len(shape) != 2 or not 1 <= shape[0] <= MAX_PROTOTYPES or shape[1] != observation_size:
        raise StatisticsError(
            f'statistics.prototypes: expected 1 to {MAX_PROTOTYPES} observations of '
            f'{observation_size} numbers as the spec inside gives, found the shape {shape}')
    if scale.shape != (observation_size,):
        raise StatisticsError(
            f'statistics.scale: expected {observation_size} numbers as the spec inside gives, '
            f'found the shape {scale.shape}')
    if not (np.abs(prototypes) <= LARGEST).all():
        raise StatisticsError('statistics.prototypes: expected numbers that float32 holds, found '
                              f'{prototypes[~(np.abs(prototypes) <= LARGEST)][0]}')
    unfit = scale[~((scale >= LEAST_SCALE) & (scale <= LARGEST))]
    if len(unfit):
        raise StatisticsError(f'statistics.scale: expected numbers from {LEAST_SCALE:g} to '
                              f'{LARGEST:g}, found {unfit[0]}')
    return Familiarity(prototypes, scale), _read_ranges(statistics.get('ranges'))


def _numbers(value: Any, name: str) -> np.ndarray:
    """Return nested lists of numbers as an array of float64."""
    try:
        found = np.array(value)
    except ValueError:  # lists of different lengths
        found = np.array(None)
    if found.dtype.kind not in 'iuf':
        raise StatisticsError(
            f'statistics.{name}: expected lists of numbers, all of one length, found something '
            'else')
    return found.astype(np.float64)


def _read_ranges(ranges: Any) -> Ranges:
    if not isinstance(ranges, dict) or ranges.keys() != set(VALUE_NAMES):
        found = ', '.join(ranges) if isinstance(ranges, dict) else f'a {type(ranges).__name__}'
        raise StatisticsError(f'statistics.ranges: expected those of {", ".join(VALUE_NAMES)}, '
                              f'found {found[:100]}')
    read_ranges = {}
    for name in VALUE_NAMES:
        bounds = _numbers(ranges[name], f'ranges.{name}')
        if bounds.shape != (2,) or not np.isfinite(bounds).all() or bounds[0] > bounds[1]:
            raise StatisticsError(f'statistics.ranges.{name}: expected two finite numbers, the '
                                  f'smaller first, found {str(bounds.tolist())[:100]}')
        read_ranges[name] = (float(bounds[0]), float(bounds[1]))
    return read_ranges
