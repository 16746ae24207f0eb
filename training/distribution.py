"""What many numbers are like: between which values they lie, and a histogram."""

from typing import Any

import numpy as np

# float32 holds no larger number, and pictures need the squares of what they show.
LARGEST = 3e38
_BINS = 30


def spread(values: np.ndarray) -> dict[str, Any] | None:
    """Return what numbers are like, with their `histogram`; None without any finite one."""
    values = values[np.abs(values) <= LARGEST]
    if not len(values):
        return None
    return {'low': values.min(), 'p5': np.percentile(values, 5), 'median': np.median(values),
            'mean': values.mean(), 'p95': np.percentile(values, 95), 'high': values.max(),
            **histogram(values)}


def histogram(values: np.ndarray) -> dict[str, Any]:
    """Return edges (_BINS + 1,) and counts (_BINS,) of finite numbers; both empty without any."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return {'edges': [], 'counts': []}
    low, high = float(finite.min()), float(finite.max())
    size = max(abs(low), abs(high))
    # Edges need room between them, also about a single value.
    if high - low <= 1e-9 * size:
        low, high = low - (0.05 * size or 0.5), high + (0.05 * size or 0.5)
    edges = np.linspace(low, high, _BINS + 1)
    counts, _ = np.histogram(finite, edges)
    return {'edges': edges, 'counts': counts}
