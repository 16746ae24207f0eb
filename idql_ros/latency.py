"""How long each stage of a tick took of late. Pure: no ROS, no clock."""

from __future__ import annotations

import dataclasses

import numpy as np

# age: of the oldest sample when its tick begins; the others are spent one after another.
STAGES = ('age', 'assemble', 'infer', 'guard', 'publish')
WINDOW = 1000


@dataclasses.dataclass(frozen=True)
class Percentiles:
    """Of the last durations of a stage, in seconds."""

    p50: float
    p95: float
    p99: float
    max: float


class Window:
    """The last durations of something, in memory that is taken once."""

    def __init__(self, size: int = WINDOW) -> None:
        """Begin with none."""
        self._values = np.zeros(size)
        self._count = 0

    def __len__(self) -> int:
        """Return how many durations there are, at most as many as the window holds."""
        return min(self._count, len(self._values))

    def add(self, seconds: float) -> None:
        """Take a duration; it replaces the oldest where the window is full."""
        self._values[self._count % len(self._values)] = seconds
        self._count += 1

    def clear(self) -> None:
        """Forget all durations."""
        self._count = 0

    def mean(self) -> float:
        """Return the mean of what the window holds, which must not be empty."""
        return float(self._values[:len(self)].mean())

    def percentiles(self) -> Percentiles | None:
        """Return the percentiles of what the window holds; None where it is empty."""
        if not self._count:
            return None
        values = self._values[:len(self)]
        return Percentiles(
            *map(float, np.percentile(values, (50, 95, 99))), float(values.max()))
