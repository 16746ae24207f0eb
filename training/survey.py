"""What is in a bag: topics, rates, clocks, the numbers in the messages; and a spec to begin with.

Everything is measured from the messages. The spec is a guess, and says of each part why.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
from dataclasses import dataclass, field
import math
import operator
from pathlib import Path
import re
from typing import Any

from idql_ros.spec import parse_path
import numpy as np
from training.files import write_whole
from training.storage import Bag, BagError, Definitions, find, Topic

NS = 10**9
# A header clock that lies further from the log's, in seconds, is told.
SKEW = 0.1
# What holds no numbers that have names; the spec refuses these types.
UNSUPPORTED = {
    'sensor_msgs/msg/Image': 'image', 'sensor_msgs/msg/CompressedImage': 'image',
    'sensor_msgs/msg/PointCloud2': 'point cloud', 'tf2_msgs/msg/TFMessage': 'transforms'}
# A list longer than this is shown as a whole.
_LISTED = 64
_MAX_SAMPLES = 2**16
_ROWS = 1024


@dataclass(frozen=True)
class Field:
    """Numbers at one path of the messages of a topic."""

    # In the grammar of the spec.
    path: str
    # Of what is finite; NaN where nothing is.
    minimum: float
    maximum: float
    # Shares of all numbers seen there.
    nan: float
    infinite: float
    # Whole numbers or booleans, which cannot be commanded.
    whole: bool
    # For a path of several elements: smallest and largest of each.
    minima: tuple[float, ...] = ()
    maxima: tuple[float, ...] = ()
    # All joints of the messages that hold it, where they name any.
    names: tuple[str, ...] = ()

    @property
    def constant(self) -> bool:
        """Return whether nothing ever changed."""
        return all(a == b for a, b in zip(self.minima, self.maxima, strict=True)) and (
            self.minimum == self.maximum or bool(self.minima))

    @property
    def finite(self) -> bool:
        """Return whether any number was neither NaN nor infinite."""
        return math.isfinite(self.minimum)


@dataclass(frozen=True)
class TopicSurvey:
    """A topic, as its messages are."""

    name: str
    type: str
    count: int
    # Why nothing else is known; '' where it is.
    unreadable: str
    # Hz, of the median interval, or of the mean one for what comes in bursts; None for fewer than
    # two messages.
    rate: float | None = None
    bursts: bool = False
    # Tenth and ninetieth percentile of the intervals, in seconds.
    intervals: tuple[float, float] | None = None
    first_ns: int | None = None
    last_ns: int | None = None
    # Seconds.
    longest_gap: float | None = None
    stamped: bool = False
    # Median of log time - stamp, in seconds; None where no stamp is set.
    skew: float | None = None
    # Seconds of the stamps in a second of the log.
    clock_speed: float | None = None
    # Hz, by the stamps.
    stamp_rate: float | None = None
    simulated: bool = False
    frames: tuple[str, ...] = ()
    fields: tuple[Field, ...] = ()
    # Where messages name other joints than others do, such as those of several publishers: the
    # ninetieth percentile of the intervals of each such set, in seconds.
    sets: tuple[tuple[tuple[str, ...], float], ...] = ()


@dataclass(frozen=True)
class Survey:
    """A bag, as its messages are."""

    path: str
    files: tuple[str, ...]
    count: int
    # Seconds from the first message to the last.
    duration: float
    topics: tuple[TopicSurvey, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return dataclasses.asdict(self)

    def text(self) -> str:
        """Return lines for a terminal."""
        lines = [f'{self.path}: {self.count} messages, {self.duration:.1f} s, '
                 f'{len(self.files)} {"file" if len(self.files) == 1 else "files"}']
        for topic in self.topics:
            lines += ['', *_topic_lines(topic)]
        # A bag may be anybody's: what it holds shall not steer a terminal.
        return '\n'.join(''.join(c if c.isprintable() else ' ' for c in line)
                         for line in [*lines, *([''] if self.notes else []), *self.notes])


def _topic_lines(topic: TopicSurvey) -> Iterator[str]:
    yield f'{topic.name}  {topic.type}  {topic.count} messages'
    if topic.unreadable:
        yield f'  cannot be read: {topic.unreadable}'
        return
    if topic.type in UNSUPPORTED:
        yield f'  not supported ({UNSUPPORTED[topic.type]})'
    if topic.rate is not None:
        low, high = topic.intervals
        yield (f'  {_number(topic.rate)} Hz{" in bursts" if topic.bursts else ""} (intervals '
               f'{_number(low)} to {_number(high)} s, longest gap {_number(topic.longest_gap)} s)')
    if topic.first_ns is not None:
        yield f'  logged {topic.first_ns} to {topic.last_ns} ns'
    if topic.stamped:
        frames = f', frame_id {", ".join(topic.frames)}' if topic.frames else ', no frame_id'
        yield f'  header{frames}; {_clock_line(topic)}'
    if topic.sets:
        shown = [', '.join(names) for names, _ in topic.sets[:4]]
        yield ('  messages name different joints: ' + '; '.join(shown)
               + f' and {len(topic.sets) - 4} more' * (len(topic.sets) > 4))
    for f in topic.fields:
        extra = ''.join(
            f', {100 * share:.3g} % {what}'
            for share, what in ((f.nan, 'NaN'), (f.infinite, 'infinite')) if share)
        yield f'  {f.path}: {_number(f.minimum)} to {_number(f.maximum)}{extra}'


def _clock_line(topic: TopicSurvey) -> str:
    if topic.skew is None:
        return 'its stamps are all zero'
    line = f'logged {_number(topic.skew)} s after its stamp'
    if topic.simulated:
        return f'{line}: simulated time? (use clock: header)'
    if abs(topic.skew) > SKEW:
        return f'{line}: its clock is not that of the log (use time: received)'
    return line


def _number(value: float) -> str:
    return f'{value:.4g}'


# ---- measuring ----------------------------------------------------------------------------------


class _Sample:
    """At most `_MAX_SAMPLES` of the numbers that come, evenly spread, for a median."""

    def __init__(self) -> None:
        self._numbers: list[float] = []
        self._step, self._left = 1, 0

    def add(self, number: float) -> None:
        if self._left:
            self._left -= 1
            return
        self._left = self._step - 1
        self._numbers.append(number)
        if len(self._numbers) >= _MAX_SAMPLES:
            self._numbers = self._numbers[::2]
            self._step *= 2

    def percentiles(self, *percents: float) -> list[float] | None:
        return np.percentile(self._numbers, percents).tolist() if self._numbers else None


class _Range:
    """Smallest and largest of the numbers at one path."""

    def __init__(self) -> None:
        self._minimum: np.ndarray | None = None
        self._maximum: np.ndarray | None = None
        self._count = self._nan = self._infinite = 0
        # Of each place, for numbers that have one.
        self._lists = 0
        self._nan_at, self._infinite_at = np.zeros(_LISTED), np.zeros(_LISTED)

    def add(self, numbers: np.ndarray) -> None:
        """Take at most `_LISTED` numbers (n,), each of which has its place."""
        self._lists += 1
        if numbers.dtype.kind == 'f':
            self._nan_at[:len(numbers)] += np.isnan(numbers)
            self._infinite_at[:len(numbers)] += np.isinf(numbers)
        numbers = self._counted(numbers)
        self._extend(numbers, numbers)

    def add_any(self, numbers: np.ndarray) -> None:
        """Take numbers (n,) whose places do not matter, such as those of a scan."""
        numbers = self._counted(numbers)
        numbers = numbers[~np.isnan(numbers)]
        if numbers.size:
            self._extend(numbers.min(keepdims=True), numbers.max(keepdims=True))
        else:
            self._extend(np.array([np.nan]), np.array([np.nan]))

    def _counted(self, numbers: np.ndarray) -> np.ndarray:
        numbers = numbers.astype(np.float64)
        self._count += numbers.size
        finite = np.isfinite(numbers)
        if finite.all():
            return numbers
        nan = int(np.count_nonzero(np.isnan(numbers)))
        self._nan += nan
        self._infinite += numbers.size - int(np.count_nonzero(finite)) - nan
        return np.where(finite, numbers, np.nan)

    def _extend(self, low: np.ndarray, high: np.ndarray) -> None:
        if self._minimum is not None:
            n = min(len(low), len(self._minimum))
            low = np.fmin(self._minimum[:n], low[:n])
            high = np.fmax(self._maximum[:n], high[:n])
        self._minimum, self._maximum = low, high

    def fields(
            self, paths: list[str], whole: bool, names: tuple[str, ...] = ()) -> Iterator[Field]:
        """Yield a field for each number, or one for all where there is one path."""
        if self._minimum is None or not self._minimum.size:
            return
        shares = (self._nan / self._count, self._infinite / self._count)
        minima, maxima = self._minimum.tolist(), self._maximum.tolist()
        if len(paths) == 1:
            known = [x for x in minima + maxima if not math.isnan(x)] or [math.nan]
            parts = (tuple(minima), tuple(maxima)) if len(minima) > 1 else ((), ())
            yield Field(paths[0], min(known), max(known), *shares, whole, *parts, names)
            return
        nans = (self._nan_at / self._lists).tolist()
        infinite = (self._infinite_at / self._lists).tolist()
        for path, *numbers in zip(paths, minima, maxima, nans, infinite, strict=False):
            yield Field(path, *numbers, whole, names=names)

    @property
    def size(self) -> int:
        return 0 if self._minimum is None else len(self._minimum)


class _Numbers:
    """The numbers in the messages of one type, at one place of a message."""

    def __init__(self, message: Any, prefix: str) -> None:
        self._prefix = prefix
        # Paths of single numbers (and whether they are whole), of lists of numbers and of lists
        # of messages.
        self._scalars: dict[str, bool] = {}
        self._arrays: list[str] = []
        self._messages: list[str] = []
        self._walk(message, '')
        self._get = operator.attrgetter(*self._scalars) if self._scalars else None
        self._ranges = [_Range() for _ in self._scalars]
        # Messages whose single numbers are still to be taken, all at once.
        self._rows: list[Any] = []
        # (path, names or None, whether as one, whether of whole numbers) -> its range.
        self._lists: dict[tuple[str, tuple[str, ...] | None, bool, bool], _Range] = {}
        self._first: dict[str, _Numbers] = {}

    def _walk(self, message: Any, above: str) -> None:
        for item in dataclasses.fields(message):
            path, value = above + item.name, getattr(message, item.name)
            if item.name.startswith('__') or not _is_path(self._prefix + path):
                continue
            if dataclasses.is_dataclass(value):
                kind = value.__msgtype__
                if kind not in ('std_msgs/msg/Header', 'builtin_interfaces/msg/Time',
                                'builtin_interfaces/msg/Duration'):
                    self._walk(value, f'{path}.')
            elif isinstance(value, np.ndarray):
                self._arrays.append(path)
            elif isinstance(value, list):
                self._messages.append(path)
            elif isinstance(value, (bool, int, float)):
                self._scalars[path] = isinstance(value, int)

    def add(self, message: Any, names: tuple[str, ...], order: list[int]) -> None:
        """Take a message.

        Args:
            message: The message.
            names: Of its joints, if any.
            order: Where each of these is in the lists of the message.
        """
        if self._get is not None:
            self._rows.append(self._get(message))
            if len(self._rows) >= _ROWS:
                self._take_rows()
        for path in self._arrays:
            numbers = operator.attrgetter(path)(message)
            named = names if names and len(order) == len(numbers) else None
            if named is not None:
                numbers = numbers[order]
            many = len(numbers) > _LISTED
            values = self._lists.setdefault(
                (path, named, many, numbers.dtype.kind in 'biu'), _Range())
            if many:
                values.add_any(numbers)
            elif len(numbers):
                values.add(numbers)
        for path in self._messages:
            items = operator.attrgetter(path)(message)
            if items and dataclasses.is_dataclass(items[0]):
                if path not in self._first:
                    self._first[path] = _Numbers(items[0], f'{self._prefix}{path}[0].')
                self._first[path].add(items[0], names, order)

    def _take_rows(self) -> None:
        columns = np.array(self._rows, np.float64).reshape(len(self._rows), -1).T
        for values, column in zip(self._ranges, columns, strict=True):
            values.add_any(column)
        self._rows.clear()

    def fields(self) -> Iterator[Field]:
        """Yield what was seen."""
        if self._rows:
            self._take_rows()
        for (path, whole), values in zip(self._scalars.items(), self._ranges, strict=True):
            yield from values.fields([self._prefix + path], whole)
        for (path, names, many, whole), values in self._lists.items():
            path = self._prefix + path
            paths = [f'{path}[{name}]' for name in names or ()]
            if many:
                yield from values.fields([f'{path}[:]'], whole)
            elif paths and all(_is_path(text) for text in paths):
                yield from values.fields(paths, whole, names)
            elif values.size:
                yield from values.fields([f'{path}[0:{values.size}]'], whole)
        for numbers in self._first.values():
            yield from numbers.fields()


def _is_path(text: str) -> bool:
    try:
        parse_path(text)
    except ValueError:
        return False
    return True


class _Measured:
    """What is measured of one topic while its messages come."""

    def __init__(self, topic: Topic) -> None:
        self._topic = topic
        self._intervals, self._skews, self._stamp_intervals = _Sample(), _Sample(), _Sample()
        self._first_ns: int | None = None
        self._last_ns = 0
        self._gap_ns = 0
        self._stamped = False
        # (log time, stamp) of the first and last message with a stamp.
        self._stamps: list[tuple[int, int]] = []
        self._frames: list[str] = []
        self._numbers: _Numbers | None = None
        # The joints of a message as it names them -> as the first one did that has the same, and
        # where each of these is.
        self._orders: dict[tuple[str, ...], tuple[tuple[str, ...], list[int]]] = {}
        self._sets: dict[frozenset[str], tuple[str, ...]] = {}
        # Joints -> the last log time and the intervals.
        self._last_of: dict[tuple[str, ...], int] = {}
        self._intervals_of: dict[tuple[str, ...], _Sample] = {}

    def add(self, log_ns: int, message: Any) -> None:
        if self._first_ns is None:
            self._first_ns = log_ns
        else:
            self._intervals.add((log_ns - self._last_ns) / NS)
            self._gap_ns = max(self._gap_ns, log_ns - self._last_ns)
        self._last_ns = log_ns
        header = getattr(message, 'header', None)
        stamp = getattr(header, 'stamp', None)
        if stamp is not None:
            self._stamped = True
            self._add_header(header, log_ns, stamp.sec * NS + stamp.nanosec)
        if self._topic.type in UNSUPPORTED:
            return
        if self._numbers is None:
            self._numbers = _Numbers(message, '')
        names, order = self._named(message)
        if names:
            if names in self._last_of:
                self._intervals_of.setdefault(names, _Sample()).add(
                    (log_ns - self._last_of[names]) / NS)
            self._last_of[names] = log_ns
        self._numbers.add(message, names, order)

    def _named(self, message: Any) -> tuple[tuple[str, ...], list[int]]:
        """Return the joints of a message, in one order for one set, and where each of them is."""
        names = getattr(message, 'name', None) or getattr(message, 'joint_names', None)
        # A field of this name may be a text or hold messages.
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return (), []
        given = tuple(names)
        if given not in self._orders:
            joints = frozenset(given)
            if len(joints) < len(given):  # a name twice says of neither which it is
                self._orders[given] = (), []
            else:
                first = self._sets.setdefault(joints, given)
                self._orders[given] = first, [given.index(name) for name in first]
        return self._orders[given]

    def _add_header(self, header: Any, log_ns: int, stamp_ns: int) -> None:
        if header.frame_id not in ('', *self._frames) and len(self._frames) < 8:
            self._frames.append(header.frame_id)
        if not stamp_ns:
            return
        self._skews.add((log_ns - stamp_ns) / NS)
        if self._stamps:
            self._stamp_intervals.add((stamp_ns - self._stamps[-1][1]) / NS)
        self._stamps = [*self._stamps[:1], (log_ns, stamp_ns)]

    def survey(self) -> TopicSurvey:
        topic = self._topic
        known = TopicSurvey(f'/{topic.name.lstrip("/")}', topic.type, topic.count,
                            topic.unreadable)
        if self._first_ns is None:
            return known
        rate, bursts, intervals = None, False, None
        if (found := self._intervals.percentiles(10, 50, 90)) is not None:
            low, median, high = found
            bursts = high > 5.0 * median
            interval = median
            if bursts:
                interval = (self._last_ns - self._first_ns) / NS / (topic.count - 1)
            if interval > 0.0:
                rate, intervals = 1.0 / interval, (low, high)
        skew = speed = None
        if (found := self._skews.percentiles(50)) is not None:
            skew, = found
            (first_log, first), (last_log, last) = self._stamps[0], self._stamps[-1]
            if last_log - first_log >= NS:
                speed = (last - first) / (last_log - first_log)
        # Simulations begin at 0, and run at a speed of their own.
        small = skew is not None and self._stamps[-1][1] < 0.1 * self._stamps[-1][0]
        long = self._last_ns - self._first_ns >= 5 * NS
        return dataclasses.replace(
            known, rate=rate, bursts=bursts, intervals=intervals,
            first_ns=self._first_ns, last_ns=self._last_ns, longest_gap=self._gap_ns / NS,
            stamped=self._stamped, skew=skew, clock_speed=speed,
            stamp_rate=1.0 / found[0] if (
                found := self._stamp_intervals.percentiles(50)) and found[0] > 0 else None,
            simulated=bool(small or (
                long and skew is not None and abs(skew) > SKEW and abs(speed - 1.0) > 0.02)),
            frames=tuple(self._frames),
            fields=tuple(self._numbers.fields()) if self._numbers is not None else (),
            sets=tuple(self._spread()))

    def _spread(self) -> Iterator[tuple[tuple[str, ...], float]]:
        if len(self._last_of) < 2:
            return
        for names in self._last_of:
            sample = self._intervals_of.get(names)
            interval = sample.percentiles(90) if sample is not None else None
            yield names, interval[0] if interval else 0.0


def survey(path: Path, definitions: Definitions | None = None) -> Survey:
    """Read all of a bag and measure it.

    Args:
        path: The bag.
        definitions: Of types that it does not define, from `storage.definitions`.

    Raises:
        BagError: It cannot be read. A topic that cannot be decoded is told in the survey.
    """
    with Bag(path, definitions) as bag:
        topics = dict(bag.topics)
        while True:
            measured = {key: _Measured(topic) for key, topic in topics.items()}
            readable = [key for key, topic in topics.items() if not topic.unreadable]
            try:
                for key, log_ns, message in bag.messages(readable):
                    measured[key].add(log_ns, message)
                break
            except BagError as error:
                # One topic may have a wrong definition; a damaged bag ends the survey.
                start = f'{path}: topic '
                wrong = next((key for key in readable
                              if str(error).startswith(f'{start}{key} (')), None)
                if wrong is None:
                    raise
                reason = str(error).removeprefix(start)
                topics[wrong] = dataclasses.replace(topics[wrong], unreadable=reason)
        surveys = tuple(measured[key].survey() for key in sorted(measured))
        first = min((t.first_ns for t in surveys if t.first_ns is not None), default=0)
        last = max((t.last_ns for t in surveys if t.last_ns is not None), default=0)
        return Survey(str(path), tuple(file.name for file in bag.files), bag.count,
                      (last - first) / NS, surveys, tuple(dict.fromkeys(bag.notes)))


# ---- the spec to begin with ---------------------------------------------------------------------


# Types with a command in them, and names that say so of any type.
_COMMAND_TYPES = (
    'geometry_msgs/msg/Twist', 'geometry_msgs/msg/TwistStamped', 'std_msgs/msg/Float64MultiArray',
    'std_msgs/msg/Float32MultiArray', 'trajectory_msgs/msg/JointTrajectory')
_COMMAND_NAME = re.compile(r'cmd|command|reference|target|setpoint|controll?(/|$)|_in(/|$)', re.I)
_MEASURED_NAME = re.compile(r'sensor|state|measured|odom|estimat|feedback', re.I)
_MEASURED_TYPE = re.compile(
    r'(JointState|Odom|Imu|Pose|LaserScan|Range|Illuminance|Wrench|Velocity|Pressure|Position|'
    r'Attitude|SensorCombined|Twist\w*Covariance|NavSatFix)')
# Of numbers that are no measurement.
_ASIDE = re.compile(
    r'covariance|variance|timestamp|time_|_time|sequence|seq\b|angle_|scan_|range_m|layout|'
    r'reset_counter|quality|intensities|radiation|field_of_view|min_range|max_range')
_UNITS = (
    (r'angular_velocity|angular\.|velocities|\bvelocity\[[A-Za-z_/]', 'rad/s'),
    (r'linear_acceleration', 'm/s^2'), (r'linear\.|\bvelocity\b', 'm/s'),
    (r'orientation', '1'), (r'positions|\bposition\[[A-Za-z_/]', 'rad'),
    (r'position\b|^[xyz]$|range', 'm'),
    (r'effort', 'N m'), (r'force\.', 'N'), (r'torque\.', 'N m'), (r'pressure', 'Pa'),
    (r'illuminance', 'lx'))
_RATES = (100, 50, 40, 30, 25, 20, 15, 12, 10, 8, 5, 4, 3, 2, 1, 0.5, 0.2, 0.1)
_FEWEST = 10
_SECTORS = 16


def _unit(topic: TopicSurvey, path: str) -> str:
    if topic.type.endswith('/JointState'):  # whose joints may have no names
        path = path.replace('[', '[joint')
    return next((unit for pattern, unit in _UNITS if re.search(pattern, path)), '1')


def _is_command(topic: TopicSurvey) -> bool:
    if _COMMAND_NAME.search(topic.name):
        return True
    return topic.type in _COMMAND_TYPES and not _MEASURED_NAME.search(topic.name)


def _is_observation(topic: TopicSurvey) -> bool:
    if _is_command(topic):
        return False
    return topic.type in _COMMAND_TYPES or bool(_MEASURED_TYPE.search(topic.type.split('/')[-1]))


def _usable(topic: TopicSurvey) -> str:
    """Return why a topic can be neither observed nor commanded, or ''."""
    if topic.unreadable:
        return f'cannot be read: {_clean(topic.unreadable)}'
    if topic.type in UNSUPPORTED:
        return f'not supported ({UNSUPPORTED[topic.type]})'
    if not re.fullmatch(r'[a-z]\w*/msg/[A-Z]\w*', topic.type, re.ASCII) or not re.fullmatch(
            r'/[A-Za-z_]\w*(/[A-Za-z_]\w*)*', topic.name, re.ASCII):
        return 'its name or type is none of ROS'
    if topic.count < _FEWEST or topic.rate is None:
        return (f'{topic.count} messages' + (
            '; one that stays valid, such as a goal, is observed with latched: true'
            if topic.count else ''))
    if not topic.fields:
        return 'no numbers'
    return ''


def _void(topic: TopicSurvey) -> list[str]:
    """Return the paths that would be observed if anything finite had been seen there."""
    return [f.path for f in topic.fields
            if not f.finite and not f.whole and not _ASIDE.search(f.path)]


def _plain(fields: tuple[Field, ...]) -> list[Field]:
    """Return the fields that say something: real, finite, changing, and few."""
    return [f for f in fields if not (f.whole or f.nan or f.infinite or f.constant)
            and not _ASIDE.search(f.path) and not f.path.endswith('[:]')
            and 'orientation' not in f.path and not f.path.startswith('ranges[')]


@dataclass
class _Signal:
    """A part of an observation, before it has a name."""

    suffix: str
    fields: list[str]
    unit: str
    operations: list[str] = field(default_factory=list)
    # The joints of the messages that it is read from, where they name any.
    names: tuple[str, ...] = ()


def _signals(topic: TopicSurvey) -> Iterator[_Signal]:
    # What is in no message together is no one signal.
    by_unit: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for f in _plain(topic.fields):
        by_unit.setdefault((_unit(topic, f.path), f.names), []).append(f.path)
    for (unit, names), paths in by_unit.items():
        # A word that the paths have in common, such as position or linear.
        words = re.findall(r'[a-z]+(?:_[a-z]+)*', re.sub(r'\[.*?\]|\.[xyzw]$', '', paths[0]))
        yield _Signal(words[-1] if words else '', paths, unit, names=names)
    by_path = {f.path: f for f in topic.fields}
    for path in by_path:
        stem = path.removesuffix('orientation.w')
        parts = [by_path.get(f'{stem}orientation.{axis}') for axis in 'xyzw']
        if stem == path or None in parts or all(part.constant for part in parts):
            continue
        if any(part.nan or part.infinite for part in parts):
            continue
        level = all(abs(part.minimum) < 1e-3 and abs(part.maximum) < 1e-3 for part in parts[:2])
        yield _Signal(
            'heading' if level else 'orientation', [part.path for part in parts], '1',
            ['yaw', 'cos_sin'] if level else ['rotation_6d'])
    if (ranges := by_path.get('ranges[:]') or next(
            (f for f in topic.fields if f.path.startswith('ranges[0:')), None)) is not None:
        farthest = by_path['range_max'].maximum if 'range_max' in by_path else ranges.maximum
        nearest = by_path['range_min'].minimum if 'range_min' in by_path else 0.0
        count = min(_SECTORS, len(ranges.minima)) if ranges.path != 'ranges[:]' else _SECTORS
        if ranges.finite and math.isfinite(farthest) and 0.0 <= nearest < farthest:
            yield _Signal('', [ranges.path], 'm', [
                f'{{sectors: {{count: {count}, reduce: min, max: {_exactly(farthest)}, '
                f'min: {_exactly(nearest)}}}}}'])


def _exactly(value: float) -> str:
    """Return a number in a form that YAML reads as one (1e-05 is text there)."""
    text = f'{float(f"{value:.6g}")!r}'
    if 'e' in text and '.' not in text:
        text = text.replace('e', '.0e')
    return text


def _outward(low: float, high: float) -> tuple[float, float]:
    """Return limits of three digits that hold what was seen."""
    def away(value: float, towards: float) -> float:
        if not value:
            return 0.0
        unit = 10.0 ** (math.floor(math.log10(abs(value))) - 2)
        return round((math.floor if towards < 0 else math.ceil)(value / unit) * unit, 12)

    low, high = away(low, -1), away(high, 1)
    if low == high:
        low, high = low - 0.1, high + 0.1
    return low, high


@dataclass(frozen=True)
class _Number:
    """One number of a command."""

    kind: str
    unit: str
    lower: float
    upper: float


def _command(topic: TopicSurvey) -> tuple[list[str], list[_Number]]:
    """Return the fields of a command and its numbers; none where there are none."""
    fields = [f for f in topic.fields if not f.whole and not f.nan and not f.infinite
              and not _ASIDE.search(f.path) and not f.path.endswith('[:]')]
    if topic.type == 'trajectory_msgs/msg/JointTrajectory':
        fields = [f for f in fields if re.fullmatch(
            r'points\[0\]\.positions\[[A-Za-z_/].*', f.path)]
        fields = [f for f in fields if f.names == fields[0].names]
    elif topic.type.endswith('/JointState'):
        fields = next(
            (part for word in ('position', 'velocity', 'effort')
             if (part := [f for f in fields if f.path.startswith(f'{word}[')])), [])
        fields = [f for f in fields if f.names == fields[0].names]
    elif any(not f.constant for f in fields):
        # What never moved is not learnt; joints are one whole.
        fields = [f for f in fields if not f.constant and 'orientation' not in f.path]
    elif 'Twist' in topic.type:
        fields = [f for f in fields if f.path.endswith(('linear.x', 'angular.z'))]
    if sum(max(1, len(f.minima)) for f in fields) > _LISTED:
        return [], []
    words = f'{topic.name} {topic.type}'.lower()
    numbers = []
    for f in fields:
        where = f'{words} {f.path}'
        kind = ('effort' if re.search(r'effort|torque|force|current', where)
                else 'velocity' if re.search(r'twist|veloc|linear\.|angular\.|cmd_vel', where)
                else 'position')
        unit = _unit(topic, f.path)
        if unit == '1' and 'MultiArray' in topic.type:
            unit = {'position': 'rad', 'velocity': 'rad/s', 'effort': 'N m'}[kind]
        for low, high in zip(f.minima or (f.minimum,), f.maxima or (f.maximum,), strict=True):
            if kind != 'position':  # the stop is 0, which the limits must hold
                low, high = min(low, 0.0), max(high, 0.0)
            numbers.append(_Number(kind, unit, *_outward(low, high)))
    return [f.path for f in fields], numbers


def _name(topic: str, suffix: str, taken: set[str]) -> str:
    parts = [*re.findall(r'\w+', topic.lower(), re.ASCII)[-2:], *([suffix] if suffix else [])]
    name = '_'.join(dict.fromkeys(parts)).strip('_')
    name = name if re.match('[a-z]', name) else f'topic_{name}'
    unique, number = name, 2
    while unique in taken:
        unique, number = f'{name}_{number}', number + 1
    taken.add(unique)
    return unique


def _quoted(texts: list[str]) -> str:
    return f'[{", ".join(chr(34) + text + chr(34) for text in texts)}]'


def _why(topic: TopicSurvey) -> str:
    gap = ''
    if topic.longest_gap * topic.rate > 10:
        gap = f', with a gap of {_number(topic.longest_gap)} s'
    return f'{topic.type.split("/")[-1]}, {topic.count} messages at {_number(topic.rate)} Hz{gap}'


def _rate_of(topic: TopicSurvey, simulated: bool) -> float:
    return topic.stamp_rate if simulated and topic.stamp_rate else topic.rate


def starting_spec(found: Survey) -> str:
    """Return a spec (YAML) that is guessed from a bag, with the reason for each guess.

    Where nothing can be observed or commanded the lists stay empty, which no reader of specs
    takes, and comments say so.
    """
    reasons = {t.name: _usable(t) for t in found.topics}
    usable = [t for t in found.topics if not reasons[t.name]]
    commands = [t for t in usable if _is_command(t) and _command(t)[0]]
    observed = [t for t in usable if _is_observation(t) and any(_signals(t))]
    # One slow sensor is no reason to decide slowly, unless there is no other.
    enough = max([1.0, *(0.2 * t.rate for t in commands)])
    slow = [t for t in observed if t.rate < enough and any(o.rate >= enough for o in observed)]
    observed = [t for t in observed if t not in slow]
    # First what says what it is, then what is nearest to the motors.
    types = {t.type for t in observed}
    commands.sort(key=lambda t: (
        all(f.constant for f in t.fields), not re.search('cmd|command', t.name),
        t.type not in types, -t.count))
    simulated = bool(observed) and all(t.simulated for t in observed)
    lines = _heading(found, observed, commands, simulated)
    taken: set[str] = set()
    lines.append('observations:' if observed else
                 'observations: []  # no topic looks like a measurement; see the list below')
    for topic in observed:
        lines += _signal_lines(topic, simulated, taken)
    lines.append('actions:' if commands else
                 'actions: []  # no topic looks like a command; the policy needs one to send')
    for index, topic in enumerate(commands):
        command = _command_lines(topic, taken)
        if index:
            command = [f'  # {line.removeprefix("  ")}' for line in command]
        lines += command
    rest = [t for t in found.topics if t not in observed and t not in commands]
    if rest:
        lines.append('# Not taken:')
        for topic in rest:
            reason = reasons[topic.name] or (
                f'{_number(topic.rate)} Hz, slower than the others' if topic in slow
                else f'nothing but NaN or infinite in {_paths(_void(topic))}'
                if _is_observation(topic) and _void(topic)
                else 'holds what a controller was told, which an action may be read from'
                if any(re.match('(reference|desired)\\.', f.path) for f in topic.fields)
                else 'neither its type nor its name says what it is for')
            lines.append(f'#   {_clean(topic.name)} ({_clean(topic.type)}): {reason}')
    return '\n'.join(line.rstrip() for line in lines) + '\n'


def _paths(paths: list[str]) -> str:
    return ', '.join(paths[:4] + ['...'] * (len(paths) > 4))


def _clean(text: str) -> str:
    return text if text.isprintable() else repr(text)


def _heading(
        found: Survey, observed: list[TopicSurvey], commands: list[TopicSurvey],
        simulated: bool) -> list[str]:
    bag = Path(found.path).resolve().name
    name = re.sub(r'\W', '_', Path(bag).stem, flags=re.ASCII)
    name = name if re.match('[A-Za-z]', name) else f'robot_{name}'
    chosen = [*observed, *commands[:1]]
    slowest = min(chosen, key=lambda t: _rate_of(t, simulated), default=None)
    rate, why = 10.0, 'no topic says which'
    if slowest is not None:
        measured = _rate_of(slowest, simulated)
        rate = next((r for r in _RATES if r <= 1.03 * measured), _RATES[-1])
        why = f'{slowest.name} is the slowest taken, at {_number(measured)} Hz'
    clock = ('header  # guess: the stamps are simulated time, at a speed of its own' if simulated
             else 'received')
    return [f'# A spec to begin with, guessed from {_clean(bag)}. Every line with "guess" is yours'
            ' to check.',
            '# The limits protect the robot: those below are only what was seen.',
            'spec_version: 1', f'name: {name}', f'rate: {_exactly(rate)}  # guess: {why}',
            'tick: timer', f'clock: {clock}']


def _signal_lines(topic: TopicSurvey, simulated: bool, taken: set[str]) -> Iterator[str]:
    # What the stamps say is of no use where they are not of the clock that ticks.
    own_clock = not simulated and topic.stamped and (
        topic.skew is None or abs(topic.skew) > SKEW or topic.simulated)
    if void := _void(topic):
        yield (f'  # Left out of {topic.name}: nothing but NaN or infinite in '
               f'{_clean(_paths(void))}')
    intervals = dict(topic.sets)
    for signal in _signals(topic):
        longest = max(intervals.get(signal.names, 0.0), topic.intervals[1], 1.0 / topic.rate)
        yield f'  - name: {_name(topic.name, signal.suffix, taken)}  # guess: {_why(topic)}'
        yield f'    topic: {topic.name.lstrip("/")}'
        yield f'    type: {topic.type}'
        yield f'    fields: {_quoted(signal.fields)}'
        if signal.operations:
            yield f'    operations: [{", ".join(signal.operations)}]'
        yield f'    unit: "{signal.unit}"  # guess'
        yield f'    max_age: {_exactly(float(f"{max(3.0 * longest, 0.1):.2g}"))}  # guess'
        if own_clock:
            yield ('    time: received  # guess: '
                   + _clock_line(topic).split(' (use')[0])


def _command_lines(topic: TopicSurvey, taken: set[str]) -> Iterator[str]:
    fields, numbers = _command(topic)
    yield f'  - name: {_name(topic.name, "command", taken)}  # guess: {_why(topic)}'
    yield f'    topic: {topic.name.lstrip("/")}'
    yield f'    type: {topic.type}'
    yield f'    fields: {_quoted(fields)}'
    if topic.frames:
        yield f'    frame_id: "{topic.frames[0]}"' if re.fullmatch(
            r'[\w/.-]+', topic.frames[0]) else '    frame_id: ""'
    yield '    dimensions:  # guess: the limits are the smallest and largest seen; set your own'
    for number in numbers:
        stop = 'hold_last_sent' if number.kind == 'position' else 'zero'
        yield (f'      - {{kind: {number.kind}, unit: "{number.unit}", lower: '
               f'{_exactly(number.lower)}, upper: {_exactly(number.upper)}, stop: {stop}}}')


def inspect(path: Path, definitions: Definitions | None, spec_out: Path | None) -> str:
    """Survey a bag for a person, and write a spec to begin with.

    Args:
        path: The bag, or a folder with one bag in it.
        definitions: Of types that it does not define.
        spec_out: Where the spec goes; None: nowhere.

    Returns:
        Lines for a terminal.

    Raises:
        BagError: The bag cannot be read, or the spec is there already or cannot be written.
    """
    if spec_out is not None and spec_out.exists():
        raise BagError(f'{spec_out}: expected no file there, found one; it may have been edited')
    if path.is_dir() and (bags := find([path])) != [path]:
        if len(bags) > 1:
            names = [bag.relative_to(path).as_posix() for bag in bags]
            raise BagError(
                f'{path}: expected one bag to inspect, found a folder with {len(bags)} bags: '
                f'{_paths(names)}; inspect one of them, such as {bags[0]}')
        path, = bags
    found = survey(path, definitions)
    text = starting_spec(found)
    lines = [found.text(), '']
    if '\nactions: []' in text:
        lines.append(
            'No topic looks like a command (Twist, Float64MultiArray, JointTrajectory, or a name '
            'with cmd, command, reference, target): there is nothing to learn yet.')
    if '\nobservations: []' in text:
        lines.append('No topic looks like a measurement: the policy has nothing to observe yet.')
    if spec_out is None:
        lines.append('A spec to begin with is written with --spec-out ROBOT.yaml.')
    else:
        try:
            write_whole(spec_out, text.encode())
        except OSError as error:
            raise BagError(f'{spec_out}: cannot be written: {error.strerror}') from error
        lines.append(f'wrote {spec_out}: guesses to begin with; set the limits of your robot')
    return '\n'.join(lines)
