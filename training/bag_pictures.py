"""Pictures of bags: what came when, and the numbers over time; each a PNG."""

from collections.abc import Sequence

from idql_ros import spec as specs
from matplotlib.figure import Figure
import numpy as np
from training.bag_summary import BagResult, evenly, part_name
from training.figures import draw_limit, literal, png

_BAGS = 3
_STREAMS = 12
_LINES = 6


def chosen_bags(results: Sequence[BagResult]) -> list[BagResult]:
    """Return the bags that are drawn, those with decisions first, then by their duration."""
    known = [result for result in results if any(
        len(rows) for name, rows in result.samples.items() if name != 'decisions')]
    return sorted(known, key=lambda result: (
        bool(result.account['refused']), not result.account['decisions'],
        -result.account['duration_s']))[:_BAGS]


def _chosen_streams(spec: specs.Spec) -> list[specs.Stream]:
    """Return the streams that are drawn: signals and commands, at most so many."""
    commands = spec.actions[:_STREAMS // 2]
    return [*spec.observations[:_STREAMS - len(commands)], *commands]


def _timed(result: BagResult, streams: Sequence[specs.Stream]) -> list[np.ndarray]:
    """Return rows (k, 1 + size) of each stream, times in s from the first of them all."""
    rows = [result.rows(stream.name, 1 + stream.size) for stream in streams]
    rows = [part[np.isfinite(part[:, 0])] for part in rows]
    begin_s = min((part[:, 0].min() for part in rows if len(part)), default=0.0)
    return [np.column_stack([part[:, 0] - begin_s, part[:, 1:]]) for part in rows]


def _gaps(result: BagResult, name: str) -> list[dict[str, float]]:
    return [gap for account in result.account['streams'] if account['name'] == name
            for gap in account['gaps_listed']]


def draw_times(result: BagResult, spec: specs.Spec) -> bytes:
    """Draw which stream had messages when."""
    streams = _chosen_streams(spec)
    figure = Figure(figsize=(9, 0.9 + 0.36 * len(streams)), layout='constrained')
    axis = figure.subplots()
    timed = _timed(result, streams)
    # What is nearer than some pixels is one bar: marks so dense would show gaps of their own.
    span_s = max((np.ptp(rows[:, 0]) for rows in timed if len(rows)), default=0.0)
    apart_s = span_s / 150 or 1.0
    for row, (stream, rows) in enumerate(zip(streams, timed, strict=True)):
        if not len(rows):
            axis.text(0.01, row, 'nothing came', va='center', color='tab:red',
                      transform=axis.get_yaxis_transform())
            continue
        axis.broken_barh(_stretches(np.sort(rows[:, 0]), apart_s), (row - 0.3, 0.6), lw=0.8,
                         color='tab:orange' if isinstance(stream, specs.Command) else 'tab:blue')
        axis.broken_barh([(rows[0, 0] + gap['at_s'], gap['length_s'])
                          for gap in _gaps(result, stream.name)],
                         (row - 0.36, 0.72), color='tab:red', alpha=0.35, lw=0)
    axis.set_yticks(range(len(streams)), [stream.name for stream in streams])
    axis.set(ylim=(len(streams) - 0.5, -0.5), xlabel='time (s)')
    axis.spines[['top', 'right', 'left']].set_visible(False)
    axis.tick_params(axis='y', length=0)
    return png(figure)


def _stretches(times: np.ndarray, apart_s: float) -> list[tuple[float, float]]:
    """Return (begin, length) of the parts of sorted times that are nowhere so far apart."""
    parts = np.split(times, np.flatnonzero(np.diff(times) > apart_s) + 1)
    return [(float(part[0]), max(float(part[-1] - part[0]), apart_s / 8)) for part in parts]


def draw_traces(result: BagResult, spec: specs.Spec) -> bytes:
    """Draw the numbers of a bag's streams over time."""
    streams = _chosen_streams(spec)
    figure = Figure(figsize=(9, 0.6 + 1.5 * len(streams)), layout='constrained')
    axes = figure.subplots(len(streams), 1, sharex=True, squeeze=False)[:, 0]
    for axis, stream, rows in zip(axes, streams, _timed(result, streams), strict=True):
        command = isinstance(stream, specs.Command)
        held = 'steps-post' if command or stream.latched else 'default'
        rows = _cut_at_gaps(rows, _gaps(result, stream.name))
        shown = evenly(stream.size, _LINES)
        for line, i in enumerate(shown):
            axis.plot(rows[:, 0], rows[:, 1 + i], lw=0.8, color=f'C{line}',
                      label=part_name(stream, i), drawstyle=held)
            # A line through one point would not be seen.
            ends = np.concatenate([[True], ~np.isfinite(rows[:, 1 + i]), [True]])
            alone = ends[:-2] & ends[2:]
            axis.plot(rows[alone, 0], rows[alone, 1 + i], '.', ms=4, color=f'C{line}')
            if command:
                for limit in (stream.dimensions[i].lower, stream.dimensions[i].upper):
                    draw_limit(axis.axhline, limit, rows[:, 1:], f'C{line}')
        unit = ', '.join(dict.fromkeys(stream.dimensions[i].unit for i in shown)
                         if command else [stream.unit])
        left_out = f', {len(shown)} of {stream.size}' if len(shown) < stream.size else ''
        axis.set_title(literal(f'{stream.name} ({unit}){left_out}'), fontsize=9, loc='left')
        axis.tick_params(labelsize=8)
        axis.spines[['top', 'right']].set_visible(False)
        if stream.size > 1:
            axis.legend(fontsize=7, loc='center left', bbox_to_anchor=(1, 0.5), frameon=False,
                        handlelength=1)
    axes[-1].set_xlabel('time (s)')
    return png(figure)


def _cut_at_gaps(rows: np.ndarray, gaps: list[dict[str, float]]) -> np.ndarray:
    """Return rows with NaN in each gap, so that no line is drawn across it."""
    if not len(rows) or not gaps:
        return rows
    middles = rows[0, 0] + np.array([gap['at_s'] + gap['length_s'] / 2 for gap in gaps])
    places = np.searchsorted(rows[:, 0], middles)
    return np.insert(rows, places, np.nan, axis=0)
