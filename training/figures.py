"""Pictures of reports, each a PNG: what they share, and histograms."""

import io
from typing import Any

import matplotlib
from matplotlib.figure import Figure
import numpy as np

# Pictures go to files; no screen is needed.
matplotlib.use('Agg')


def literal(text: str) -> str:
    """Return somebody else's text as matplotlib shall show it: as it is, and not as a formula."""
    return text.replace('$', r'\$')


def png(figure: Figure) -> bytes:
    """Return a figure as the content of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format='png', dpi=100)
    return content.getvalue()


def draw_limit(line: Any, limit: float, values: np.ndarray, color: str) -> None:
    """Draw a limit where it does not squeeze the numbers together.

    Args:
        line: axhline or axvline of what it is drawn in.
        limit: Where.
        values: The numbers.
        color: Of the line.
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        return
    low, high = finite.min(), finite.max()
    room = 3 * (high - low) or 3 * abs(limit)
    if low - room <= limit <= high + room:
        line(limit, color=color, ls='--', lw=0.8)


def draw_histograms(histograms: list[dict[str, Any]]) -> bytes:
    """Draw histograms, with limits where there are any.

    Args:
        histograms: Each with name, unit, limits (None: there are none), edges and counts.
    """
    # Alone, a panel is no larger than among others.
    across = min(4, max(3, len(histograms)))
    down = -(-len(histograms) // across)
    figure = Figure(figsize=(2.3 * across, 0.3 + 1.7 * down), layout='constrained')
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for axis, histogram in zip(axes[:len(histograms)], histograms, strict=True):
        unit = '' if histogram['unit'] == '1' else f' ({histogram["unit"]})'
        axis.set_title(literal(f'{histogram["name"]}{unit}'), fontsize=8)
        axis.tick_params(labelsize=7)
        axis.set_yticks([])
        axis.locator_params(axis='x', nbins=5)
        axis.spines[['top', 'right', 'left']].set_visible(False)
        if not len(histogram['counts']):
            axis.text(0.5, 0.5, 'none', ha='center', transform=axis.transAxes)
            continue
        axis.stairs(histogram['counts'], histogram['edges'], fill=True, color='tab:blue')
        for limit in histogram['limits'] or ():
            draw_limit(axis.axvline, limit, np.array(histogram['edges']), 'tab:red')
    for axis in axes[len(histograms):]:
        axis.set_visible(False)
    return png(figure)
