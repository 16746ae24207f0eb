"""What the operations of a spec do to the numbers of a message, and how each is undone.

scale, offset  y = scale * x, y = x + offset; one number for all or one for each.
cos_sin        each angle (rad) becomes (cos, sin).
yaw            a quaternion in ROS order (x, y, z, w) becomes its yaw (rad), REP 103.
rotation_6d    a quaternion becomes the first two columns of its rotation matrix, which are
               continuous where a quaternion changes its sign (Zhou et al. 2019, arXiv 1812.07035).
               As for yaw, numbers around the quaternion may stay: a position beside it.
sectors        a scan becomes one range for each sector; what is no reading follows REP 117.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
import math

from idql_ros.spec import Operation, Sectors
import numpy as np

# Two directions that differ by less span no plane.
_PARALLEL = 1e-6


def apply(operation: Operation, x: np.ndarray) -> np.ndarray:
    """Apply an operation to float64 numbers `x` (n,); NaN where they have no result.

    Raises:
        ValueError: there are fewer numbers than sectors.
    """
    if operation.name == 'scale':
        return x * _each(operation.numbers)
    if operation.name == 'offset':
        return x + _each(operation.numbers)
    if operation.name == 'cos_sin':
        pairs = np.empty((len(x), 2))
        np.cos(x, out=pairs[:, 0])
        np.sin(x, out=pairs[:, 1])
        return pairs.ravel()
    if operation.name == 'yaw':
        return _replace(operation, x, 4, _yaw)
    if operation.name == 'rotation_6d':
        return _replace(operation, x, 4, _rotation_6d)
    return _reduce(operation.sectors, x)


def invert(operation: Operation, y: np.ndarray, size: int | None) -> np.ndarray:
    """Return numbers that `apply` maps to `y`.

    Of all quaternions of a yaw it is the level one; of two numbers that are no (cos, sin), and of
    six that are no two columns, the nearest direction counts; a scan has the same range all over a
    sector, within its `min` and `max`.

    Args:
        operation: what is undone.
        y: float64 numbers.
        size: how many numbers to return; None: a scan of one ray a sector.

    Returns:
        The numbers; NaN where two columns are parallel or zero, and span no rotation.
    """
    if operation.name == 'scale':
        return y / _each(operation.numbers)
    if operation.name == 'offset':
        return y - _each(operation.numbers)
    if operation.name == 'cos_sin':
        return np.arctan2(y[1::2], y[::2])
    if operation.name == 'yaw':
        return _replace(operation, y, 1, _level)
    if operation.name == 'rotation_6d':
        return _replace(operation, y, 6, _quaternion)
    sectors = operation.sectors
    rays = sectors.count if size is None else size
    ranges = np.clip(y, sectors.minimum, sectors.maximum)
    return ranges[np.arange(rays) * sectors.count // rays]


def _each(numbers: tuple[float, ...]) -> float | np.ndarray:
    return numbers[0] if len(numbers) == 1 else np.array(numbers)


def _replace(operation: Operation, numbers: np.ndarray, size: int,
             turn: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return the numbers with the `size` ones from the operation's first on turned."""
    if operation.first is None:
        return turn(numbers)
    first, end = operation.first, operation.first + size
    return np.concatenate([numbers[:first], turn(numbers[first:end]), numbers[end:]])


def _is_rotation(square: float) -> bool:
    # The zeros of a driver that fills in none are no rotation.
    return 0.9 < square < 1.1


def _yaw(quaternion: np.ndarray) -> np.ndarray:
    x, y, z, w = quaternion.tolist()
    if not _is_rotation(x * x + y * y + z * z + w * w):
        return np.array([math.nan])
    # Of a quaternion that is not quite of length 1 too, as both arguments grow with its square.
    return np.array([math.atan2(2.0 * (w * z + x * y), w * w + x * x - y * y - z * z)])


def _level(yaw: np.ndarray) -> np.ndarray:
    return np.array([0.0, 0.0, math.sin(0.5 * yaw[0]), math.cos(0.5 * yaw[0])])


def _rotation_6d(quaternion: np.ndarray) -> np.ndarray:
    x, y, z, w = quaternion.tolist()
    square = x * x + y * y + z * z + w * w
    if not _is_rotation(square):
        return np.full(6, math.nan)
    s = 2.0 / square  # the columns of a quaternion that is not quite of length 1 still are
    return np.array([
        1.0 - s * (y * y + z * z), s * (x * y + z * w), s * (x * z - y * w),
        s * (x * y - z * w), 1.0 - s * (x * x + z * z), s * (y * z + x * w)])


def _quaternion(columns: np.ndarray) -> np.ndarray:
    """Return the quaternion (x, y, z, w), w >= 0, of two columns made orthonormal."""
    first, second = columns[:3], columns[3:]
    length = math.sqrt(first @ first)
    if not length > _PARALLEL:
        return np.full(4, math.nan)
    first = first / length
    across = second - (first @ second) * first
    length = math.sqrt(across @ across)
    if not length > _PARALLEL * max(1.0, math.sqrt(second @ second)):
        return np.full(4, math.nan)
    second = across / length
    r = np.column_stack([first, second, np.cross(first, second)])
    # Each row is a multiple of the quaternion; the longest has lost the least to rounding.
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = r.tolist()
    rows = np.array([
        [1.0 + xx - yy - zz, xy + yx, xz + zx, zy - yz],
        [xy + yx, 1.0 - xx + yy - zz, yz + zy, xz - zx],
        [xz + zx, yz + zy, 1.0 - xx - yy + zz, yx - xy],
        [zy - yz, xz - zx, yx - xy, 1.0 + xx + yy + zz]])
    row = rows[np.argmax(np.diag(rows))]
    return row / math.copysign(math.sqrt(row @ row), row[3])


def _reduce(sectors: Sectors, ranges: np.ndarray) -> np.ndarray:
    rays = len(ranges)
    if rays < sectors.count:
        raise ValueError(f'has {rays} rays, expected {sectors.count} or more, one for each sector')
    nearest, starts = _nearest(sectors.minimum), _starts(rays, sectors.count)
    ranges = np.where(ranges == -np.inf, sectors.minimum, np.minimum(ranges, sectors.maximum))
    valid = ranges >= nearest  # not NaN either
    if sectors.reduce == 'min':
        result = np.minimum.reduceat(np.where(valid, ranges, np.inf), starts)
        result[result == np.inf] = np.nan
        return result
    total = np.add.reduceat(np.where(valid, ranges, 0.0), starts)
    counts = np.add.reduceat(valid, starts, dtype=np.float64)
    with np.errstate(invalid='ignore'):
        return total / counts  # 0 / 0 is NaN


@functools.lru_cache
def _nearest(minimum: float) -> float:
    # Scans are float32: a reading of exactly the minimum may lie below its double.
    return min(minimum, float(np.float32(minimum)))


@functools.lru_cache
def _starts(rays: int, count: int) -> np.ndarray:
    """Return the first ray of each sector; ray i belongs to sector floor(i * count / rays)."""
    return -(-np.arange(count) * rays // count)
