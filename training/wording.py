"""Numbers, times, counts and names as they are written for people."""

from collections.abc import Sequence
import math


def number(value: float | None) -> str:
    """Return three digits of a number, or all of a whole one below a million."""
    if value is None or not math.isfinite(value):
        return '-'
    if abs(value) < 1e6 and value == int(value):
        return f'{int(value):,}'
    return f'{value:,.0f}' if 1000 <= abs(value) < 1e6 else f'{value:.3g}'


def seconds(value: float | None) -> str:
    """Return a time in the unit that suits it."""
    if value is None or not math.isfinite(value):
        return '-'
    size = abs(value)
    if size >= 2 * 86400:
        return f'{number(value / 86400)} days'
    if size >= 2 * 3600:
        return f'{value / 3600:.3g} h'
    if size >= 180:
        return f'{value / 60:.3g} min'
    if size >= 1 or value == 0:
        return f'{value:.3g} s'
    return f'{value * 1e3:.3g} ms' if size >= 1e-3 else f'{value * 1e6:.3g} us'


def rate(value: float | None) -> str:
    """Return a rate in Hz."""
    return '-' if value is None else f'{number(value)} Hz'


def percent(share: float | None) -> str:
    """Return a share from 0 to 1; what is not all or nothing does not look like it."""
    if share is None or not math.isfinite(share):
        return '-'
    value = 100 * share
    if 0 < value < 0.1:
        return '< 0.1 %'
    if 99.9 < value < 100:
        return '> 99.9 %'
    return f'{value:.3g} %'


def counted(count: int, word: str) -> str:
    """Return a count of what has a plural in s."""
    return f'{count:,} {word}' if count == 1 else f'{count:,} {word}s'


def listed(items: Sequence[str], most: int, word: str) -> str:
    """Return at most so many of one or more items as a list, and how many more there are."""
    more = len(items) - most
    parts = [*items[:most], f'{more:,} more {word}' + 's' * (more > 1)] if more > 0 else items
    return f'{", ".join(parts[:-1])} and {parts[-1]}' if parts[1:] else parts[0]


def cut(name: str, width: int) -> str:
    """Return a name in one line of at most so many characters; its beginning tells most."""
    name = ' '.join(name.split())
    return name if len(name) <= width else f'{name[:width - 3]}...'
