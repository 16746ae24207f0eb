"""How far an observation is from the training data, by the statistics in a policy file."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import math
import re
from typing import Any

from idql_ros.value_guard import VALUE_NAMES
import numpy as np

MAX_PROTOTYPES = 512

# A scale within these bounds, and observations of float32, make no distance that overflows.
LEAST_SCALE = 1e-30
LARGEST = float(np.finfo(np.float32).max)

# The values that change with how many candidates there are and how one of them is chosen.
NAMES_OF_N = tuple(name for name in VALUE_NAMES if name != 'distance')

Ranges = dict[str, tuple[float, float]]


class StatisticsError(ValueError):
    """Statistics that cannot be used; the text says which, what was expected and found."""


@dataclasses.dataclass(frozen=True)
class UsualValues:
    """Between which values decisions on the training data are."""

    distance: tuple[float, float]
    # N -> ranges of NAMES_OF_N, of the best of N candidates; one N at least.
    of_candidates: Mapping[int, Ranges]

    def ranges(self, candidates: int) -> Ranges:
        """Return the ranges of VALUE_NAMES of the best of so many candidates.

        Between two N that are known they hold those of both: with N the best candidate's Q rises,
        and so do both ends of its range. Outside of all they are those of the nearest.
        """
        known = sorted(self.of_candidates)
        near = [max((n for n in known if n <= candidates), default=known[0]),
                min((n for n in known if n >= candidates), default=known[-1])]
        found = {}
        for name in NAMES_OF_N:
            lows, highs = zip(*(self.of_candidates[n][name] for n in near), strict=True)
            found[name] = (min(lows), max(highs))
        return found | {'distance': self.distance}


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


def read(statistics: Any, observation_size: int) -> tuple[Familiarity, UsualValues]:
    """Return what a policy file's statistics say.

    Args:
        statistics: As JSON has it: 'prototypes' (P, O), 'scale' (O,), 'distance' [low, high], and
            'ranges': N, as text -> name (of NAMES_OF_N) -> [low, high].
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
    return Familiarity(prototypes, scale), UsualValues(
        _range(statistics.get('distance'), 'distance'), _read_ranges(statistics.get('ranges')))


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


def _read_ranges(ranges: Any) -> dict[int, Ranges]:
    if not isinstance(ranges, dict) or not ranges:
        raise StatisticsError('statistics.ranges: expected those of each number of candidates, '
                              f'found {_names(ranges)}')
    read_ranges = {}
    for key, of_names in ranges.items():
        if re.fullmatch('[1-9][0-9]{0,6}', key) is None:
            raise StatisticsError('statistics.ranges: expected numbers of candidates, as this '
                                  f'release exports them, found {_names(ranges)}')
        if not isinstance(of_names, dict) or of_names.keys() != set(NAMES_OF_N):
            raise StatisticsError(f'statistics.ranges.{key}: expected those of '
                                  f'{", ".join(NAMES_OF_N)}, found {_names(of_names)}')
        read_ranges[int(key)] = {
            name: _range(of_names[name], f'ranges.{key}.{name}') for name in NAMES_OF_N}
    return read_ranges


def _names(value: Any) -> str:
    """Return what a mapping holds, for an error."""
    if not isinstance(value, dict):
        return f'a {type(value).__name__}'
    return ', '.join(value)[:100] if value else 'none'


def _range(value: Any, name: str) -> tuple[float, float]:
    bounds = _numbers(value, name)
    if bounds.shape != (2,) or not np.isfinite(bounds).all() or bounds[0] > bounds[1]:
        raise StatisticsError(f'statistics.{name}: expected two finite numbers, the smaller '
                              f'first, found {str(bounds.tolist())[:100]}')
    return float(bounds[0]), float(bounds[1])
