"""What a bag's streams are like and what became of their messages, in bounded memory."""

from dataclasses import dataclass, field
from typing import Any

from idql_ros import spec as specs
from idql_ros.message import NS
import numpy as np

# Messages are counted in blocks of so many.
_BLOCK = 4096
# Of a stream of any length at most twice as many samples are kept, evenly spread.
_KEPT = 4096
# Gaps of a stream that are listed, the longest; all are counted.
_LISTED = 20
PERCENTILES = (5, 50, 95, 99)


class Sample:
    """Every k-th row of any number of rows, k as small as a bounded memory allows."""

    def __init__(self) -> None:
        """Start without rows."""
        self._rows: list[np.ndarray] = []
        self._kept = self._seen = 0
        self._stride = 1
        # Single numbers, before they are rows.
        self._single: list[float] = []

    def append(self, number: float) -> None:
        """Take one number."""
        self._single.append(number)
        if len(self._single) == _BLOCK:
            self._add_single()

    def _add_single(self) -> None:
        numbers, self._single = self._single, []
        self.add(np.array(numbers))

    def add(self, rows: np.ndarray) -> None:
        """Take rows (n,) or (n, k)."""
        chosen = rows[(-self._seen) % self._stride::self._stride]
        self._seen += len(rows)
        if not len(chosen):
            return
        # A view would keep all of the rows.
        self._rows.append(chosen.copy())
        self._kept += len(chosen)
        while self._kept > 2 * _KEPT:
            self._rows = [self.rows()[::2]]
            self._kept = len(self._rows[0])
            self._stride *= 2

    def rows(self) -> np.ndarray:
        """Return the kept rows, in order."""
        if self._single:
            self._add_single()
        return np.concatenate(self._rows) if self._rows else np.zeros(0)

    def percentiles(self) -> dict[str, float] | None:
        """Return the percentiles of the kept finite numbers; None without any."""
        rows = self.rows()
        rows = rows[np.isfinite(rows)]
        if not len(rows):
            return None
        return {f'p{p}': float(q)
                for p, q in zip(PERCENTILES, np.percentile(rows, PERCENTILES), strict=True)}


class StreamAccount:
    """A signal's or a command's messages: times, stamps and numbers.

    Attributes:
        ages: How old the newest message was at the ticks, in s.
        overtaken: How many messages were dropped because one with a later stamp came before.
        unreadable: What is wrong with the first message that cannot be read.
    """

    def __init__(self, stream: specs.Stream, gap_s: float) -> None:
        """Start without messages.

        Args:
            stream: The signal or command.
            gap_s: A longer interval between two messages is a gap.
        """
        self._stream, self._gap_ns = stream, gap_s * NS
        # Of the messages since the last block was counted.
        self._times, self._logged, self._stamps = (np.zeros(_BLOCK, np.int64) for _ in range(3))
        self._has_stamp, self._has_values = np.zeros(_BLOCK, bool), np.zeros(_BLOCK, bool)
        self._values = np.zeros((_BLOCK, stream.size), np.float32)
        self._in_block = 0
        self._last_ns: int | None = None
        self._last_stamp_ns: int | None = None
        self._start_ns: int | None = None
        self._intervals, self._skews = Sample(), Sample()
        self._drawn = Sample()
        self._skew_first: float | None = None
        self._skew_last: float | None = None
        self.ages = Sample()
        self._count = self._stamped = self._zero_stamps = self._duplicates = self._backward = 0
        self._gaps, self._longest_ns = 0, 0
        # Intervals that are no gaps, and their sum in s: messages may come in bursts, of which the
        # median interval says nothing.
        self._regular, self._regular_s = 0, 0.0
        self._listed: list[dict[str, float]] = []
        self._read = 0
        size = stream.size
        self._not_finite = np.zeros(size, int)
        self._low, self._high = np.full(size, np.inf), np.full(size, -np.inf)
        self._at_limit, self._outside = np.zeros(size, int), np.zeros(size, int)
        self.unreadable = ''
        self.overtaken = 0

    def add(
        self, time_ns: int, logged_ns: int, stamp_ns: int | None, values: np.ndarray | None,
    ) -> None:
        """Take a message.

        Args:
            time_ns: In the clock of the ticks.
            logged_ns: When it was logged.
            stamp_ns: Of its header, where it has one.
            values: What was read of it (stream.size,); None where it cannot be read.
        """
        row = self._in_block
        self._times[row], self._logged[row] = time_ns, logged_ns
        if stamp_ns is not None:
            self._has_stamp[row], self._stamps[row] = True, stamp_ns
        if values is not None:
            self._has_values[row], self._values[row] = True, values
        self._in_block = row + 1
        if row + 1 == _BLOCK:
            self._count_block()

    def _count_block(self) -> None:
        rows, self._in_block = self._in_block, 0
        if not rows:
            return
        self._count += rows
        times = self._times[:rows]
        self._count_times(times)
        stamped, read = self._has_stamp[:rows], self._has_values[:rows]
        if stamped.any():
            self._count_stamps(self._stamps[:rows][stamped], self._logged[:rows][stamped])
        if read.any():
            self._count_values(times[read], self._values[:rows][read])
        stamped[:] = read[:] = False

    def _count_times(self, times: np.ndarray) -> None:
        if self._last_ns is None:
            self._start_ns = int(times[0])
        else:
            times = np.concatenate([[self._last_ns], times])
        intervals = np.diff(times)
        self._last_ns = int(times[-1])
        if not len(intervals):
            return
        self._intervals.add(intervals / NS)
        self._longest_ns = max(self._longest_ns, int(intervals.max()))
        gaps = np.flatnonzero(intervals > self._gap_ns)
        self._gaps += len(gaps)
        regular = intervals[(intervals >= 0) & (intervals <= self._gap_ns)]
        self._regular += len(regular)
        self._regular_s += float(regular.sum()) / NS
        found = [*self._listed, *(
            {'at_s': float(times[i] - self._start_ns) / NS, 'length_s': float(intervals[i]) / NS}
            for i in gaps[np.argsort(-intervals[gaps], kind='stable')[:_LISTED]])]
        self._listed = sorted(found, key=lambda gap: -gap['length_s'])[:_LISTED]

    def _count_stamps(self, stamps: np.ndarray, logged: np.ndarray) -> None:
        self._stamped += len(stamps)
        self._zero_stamps += int((stamps == 0).sum())
        # A stamp of zero was not filled in: it says nothing about a clock.
        skews = ((logged - stamps) / NS)[stamps != 0]
        if len(skews):
            self._skews.add(skews)
            if self._skew_first is None:
                self._skew_first = float(np.median(skews[:100]))
            self._skew_last = float(np.median(skews[-100:]))
        # Of integers, also where nothing was before: a float does not hold nanoseconds since 1970.
        before = [] if self._last_stamp_ns is None else [self._last_stamp_ns]
        steps = np.diff(np.concatenate([np.array(before, np.int64), stamps]))
        self._duplicates += int((steps == 0).sum())
        self._backward += int((steps < 0).sum())
        self._last_stamp_ns = int(stamps[-1])

    def _count_values(self, times: np.ndarray, values: np.ndarray) -> None:
        self._read += len(values)
        finite = np.isfinite(values)
        self._not_finite += (~finite).sum(0)
        self._low = np.minimum(self._low, np.where(finite, values, np.inf).min(0))
        self._high = np.maximum(self._high, np.where(finite, values, -np.inf).max(0))
        if isinstance(self._stream, specs.Command):
            lower = np.array([d.lower for d in self._stream.dimensions])
            upper = np.array([d.upper for d in self._stream.dimensions])
            # A recorded float32 may lie a rounding beside the limit.
            slack = 1e-6 * (upper - lower)
            self._at_limit += (
                (np.abs(values - lower) <= slack) | (np.abs(values - upper) <= slack)).sum(0)
            self._outside += ((values < lower - slack) | (values > upper + slack)).sum(0)
        self._drawn.add(np.column_stack([times / NS, values]))

    @property
    def values(self) -> Sample:
        """Return a sample of times in s and numbers, rows (n, 1 + stream.size)."""
        self._count_block()
        return self._drawn

    @property
    def none_readable(self) -> bool:
        """Return whether there were messages, and none of them could be read."""
        self._count_block()
        return self._count > 0 and self._read == 0

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data; times in s, shares from 0 to 1."""
        self._count_block()
        stream = self._stream
        command = isinstance(stream, specs.Command)
        read = max(1, self._read)
        finite = np.isfinite(self._low)
        intervals = self._intervals.percentiles()
        # A stream slower than its gaps has nothing between them.
        rate_hz = self._regular / self._regular_s if self._regular_s > 0 else (
            1 / intervals['p50'] if intervals and intervals['p50'] > 0 else None)
        stamps = None
        if self._stamped:
            stamps = {
                'zero': self._zero_stamps, 'repeated': self._duplicates,
                'backward': self._backward, 'overtaken': self.overtaken,
                'skew_s': self._skews.percentiles(),
                'skew_begin_s': self._skew_first, 'skew_end_s': self._skew_last}
        return {
            'name': stream.name, 'topic': stream.topic, 'type': stream.type,
            'kind': 'command' if command else 'signal',
            'units': [d.unit for d in stream.dimensions] if command
            else [stream.unit] * stream.size,
            'count': self._count, 'unreadable': self._count - self._read,
            'unreadable_because': self.unreadable,
            'rate_hz': rate_hz,
            'interval_s': intervals, 'longest_interval_s': self._longest_ns / NS,
            'gap_s': self._gap_ns / NS if np.isfinite(self._gap_ns) else None,
            'gaps': self._gaps,
            'gaps_listed': sorted(self._listed, key=lambda gap: gap['at_s']),
            'stamps': stamps,
            'age_at_ticks_s': self.ages.percentiles(),
            'not_finite': (self._not_finite / read).tolist(),
            'low': [float(x) if f else None for x, f in zip(self._low, finite, strict=True)],
            'high': [float(x) if f else None for x, f in zip(self._high, finite, strict=True)],
            'constant': (finite & (self._low == self._high)).tolist(),
            'limits': [[d.lower, d.upper] for d in stream.dimensions] if command else None,
            'at_limits': (self._at_limit / read).tolist() if command else None,
            'outside_limits': (self._outside / read).tolist() if command else None,
        }


@dataclass
class BagAccount:
    """What became of one bag."""

    bag: str
    streams: dict[str, StreamAccount]
    # Storage file -> SHA-256.
    files: dict[str, str] = field(default_factory=dict)
    messages: int = 0
    begin_ns: int | None = None
    end_ns: int | None = None
    ticks: int = 0
    # Why ticks, or decisions, were not used -> how many.
    unused: dict[str, int] = field(default_factory=dict)
    decisions: int = 0
    # Of the clock of the ticks, where that is the headers': see training.alignment.
    clock: dict[str, Any] = field(default_factory=dict)
    # Commands logged in the very nanosecond of a tick: the log does not say whether they answer
    # it.
    ties: int = 0
    # What the reader decided about the bag, such as which definition of a type was used.
    notes: list[str] = field(default_factory=list)
    # Why the bag was refused.
    refused: str = ''

    def unuse(self, reason: str) -> None:
        """Count a reason why a tick was not used."""
        self.unused[reason] = self.unused.get(reason, 0) + 1

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, JSON with times in s."""
        return {
            'bag': self.bag, 'refused': self.refused, 'notes': self.notes, 'files': self.files,
            'messages': self.messages,
            'begin_s': None if self.begin_ns is None else self.begin_ns / NS,
            'duration_s': 0.0 if self.begin_ns is None else (self.end_ns - self.begin_ns) / NS,
            'clock': self.clock, 'ticks': self.ticks, 'decisions': self.decisions,
            'unused': dict(sorted(self.unused.items(), key=lambda item: -item[1])),
            'ties': self.ties,
            'streams': [stream.to_dict() for stream in self.streams.values()],
        }
