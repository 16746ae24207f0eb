"""The spec: what a policy observes and does, on which topics, at what rate, within which limits.

One spec drives bag conversion, training, the node and the simulation, and travels inside the
policy file. It is written by hand as YAML (`config/robots/*.yaml`) and stored as JSON; both go
through `parse`, which refuses what it does not know.
"""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses
import fractions
import functools
import json
import math
import pathlib
import re
from typing import Any

from idql_ros import urdf
import numpy as np
import yaml

SPEC_VERSION = 1

KINDS = ('position', 'velocity', 'effort', 'increment')
STOPS = ('zero', 'hold_last_sent', 'hold_measured', 'pose')
TICKS = ('timer', 'arrival')
RELIABILITIES = ('best_effort', 'reliable')
DURABILITIES = ('volatile', 'transient_local')
CLOCKS = ('received', 'header')
TIMES = ('header', 'received')
RULES = ('last', 'mean')
REDUCTIONS = ('min', 'mean')
JOINT_TRAJECTORY = 'trajectory_msgs/msg/JointTrajectory'

# What holds no numbers that a policy can use as they are, and what to do instead.
_IMAGE = ('a type with numbers that have names (images are not read: let a detector or an encoder '
          'publish what it sees, for example as a std_msgs/msg/Float32MultiArray)')
_POINTS = ('a type with numbers that have names (point clouds are not read: use a '
           'sensor_msgs/msg/LaserScan with the operation sectors, or let a node publish features)')
_REFUSED_TYPES = {
    'sensor_msgs/msg/Image': _IMAGE,
    'sensor_msgs/msg/CompressedImage': _IMAGE,
    'stereo_msgs/msg/DisparityImage': _IMAGE,
    'sensor_msgs/msg/PointCloud': _POINTS,
    'sensor_msgs/msg/PointCloud2': _POINTS,
    'tf2_msgs/msg/TFMessage':
        'a topic with one pose (transforms are not looked up: use a geometry_msgs/msg/PoseStamped '
        'or nav_msgs/msg/Odometry topic)',
}


class SpecError(ValueError):
    """A spec that cannot be used; names file, key, what was expected and what was found."""


@dataclasses.dataclass(frozen=True)
class FieldPath:
    """A path into a message: `twist.linear.x`, `points[0].positions[0:6]`, `position[elbow]`."""

    text: str
    # From the message down: names of fields and indices into lists of messages, for example
    # ('points', 0, 'positions'). The last one is a name.
    steps: tuple[str | int, ...]
    # What is taken of a list there: elements [start, stop), all from start where stop is None, or
    # the joint of this name. None of them: the field is a number.
    start: int | None = None
    stop: int | None = None
    joint: str | None = None

    @property
    def listed(self) -> bool:
        """Return whether the path takes something of a list."""
        return self.start is not None or self.joint is not None

    @property
    def size(self) -> int | None:
        """Return how many numbers the path reads; None for a whole list."""
        if self.start is None:
            return 1
        return None if self.stop is None else self.stop - self.start


# No message of a robot is longer; a spec in a policy file may come from anywhere.
_MAX_ELEMENTS = 100_000
_MAX_TEXT = 256
# ROS 1 allowed capitals in names of fields, and a bag that was converted still has them.
_FIELD = r'[A-Za-z][A-Za-z0-9_]*'
_STEP = rf'{_FIELD}(?:\[\d{{1,18}}\])?\.'
_PATH = re.compile(
    rf'(?P<above>(?:{_STEP})*)(?P<last>{_FIELD})'
    r'(?:\[(?:(?P<start>\d{1,18})(?::(?P<stop>\d{1,18}))?|(?P<whole>:)|'
    r'(?P<joint>[^\[\]]+))\])?',
    re.ASCII)


def _is_plain(text: str) -> bool:
    """Return whether a text can be in a message: UTF-8 has no half of a surrogate pair."""
    return text.isprintable() and len(text) <= _MAX_TEXT


def _is_joint(name: Any) -> bool:
    """Return whether a joint may have this name: robot::arm/joint 1, but not [-1] or [0:2:2]."""
    return (isinstance(name, str) and _is_plain(name) and name == name.strip()
            and not set('[]') & set(name) and any(c.isalpha() or c == '_' for c in name))


def parse_path(text: str) -> FieldPath:
    """Parse a field path; raise ValueError that says what a path looks like."""
    match = _PATH.fullmatch(text)
    if match is None or (match['joint'] and not _is_joint(match['joint'])):
        raise ValueError(
            'expected a field path such as twist.linear.x, data[2], data[0:6], position[elbow], '
            'points[0].positions[0:6] or ranges[:]')
    steps = tuple(int(step) if step.isdigit() else step
                  for step in re.findall(r'\w+', match['above'] + match['last'], re.ASCII))
    if match['whole']:
        return FieldPath(text, steps, 0)
    if match['start'] is None:
        return FieldPath(text, steps, joint=match['joint'])
    start = int(match['start'])
    stop = int(match['stop']) if match['stop'] else start + 1
    if not start < stop <= _MAX_ELEMENTS:
        raise ValueError(
            f'expected a slice [start:stop] with stop > start and stop <= {_MAX_ELEMENTS}')
    return FieldPath(text, steps, start, stop)


@dataclasses.dataclass(frozen=True)
class Sectors:
    """How a scan becomes one number for each of `count` sectors, in the unit of its ranges."""

    count: int
    # 'min' or 'mean' of the readings in a sector.
    reduce: str
    # What is farther counts as `maximum`; what is nearer than `minimum` is no reading.
    maximum: float
    minimum: float


@dataclasses.dataclass(frozen=True)
class Operation:
    """One step from the numbers in a message to those the policy uses; see `operations.py`."""

    name: str
    # Of scale and offset: one number for all or one for each.
    numbers: tuple[float, ...] = ()
    sectors: Sectors | None = None
    # Of yaw and rotation_6d: where the quaternion begins, the numbers around it stay as they are.
    # None: there is nothing around it.
    first: int | None = None

    def output_size(self, size: int | None) -> int:
        """Return how many numbers come out of `size`; raise ValueError where they can't.

        Args:
            size: None where only a message tells it, which sectors alone takes.
        """
        if self.name == 'sectors':
            if size is not None and size < self.sectors.count:
                raise ValueError(f'sectors takes one number or more for each of its '
                                 f'{self.sectors.count} sectors, not {size}')
            return self.sectors.count
        if size is None:
            raise ValueError(f'{self.name} takes a known count of numbers, not a whole list [:]; '
                             'put sectors first, or say which elements, as in [0:6]')
        if self.name == 'cos_sin':
            return 2 * size
        if self.name in ('yaw', 'rotation_6d'):
            if self.first is None and size != 4:
                raise ValueError(f'{self.name} takes the 4 numbers of a quaternion (x, y, z, w), '
                                 f'not {size}')
            if self.first is not None and size < self.first + 4:
                raise ValueError(f'{self.name} takes the 4 numbers of a quaternion from number '
                                 f'{self.first} on, counted from 0, not {size} in all')
            return size - 4 + (1 if self.name == 'yaw' else 6)
        if len(self.numbers) not in (1, size):
            raise ValueError(f'expected 1 or {size} numbers, found {len(self.numbers)}')
        return size

    def to_data(self) -> Any:
        """Return plain data that is read as an equal operation."""
        if self.sectors is not None:
            return {self.name: {'count': self.sectors.count, 'reduce': self.sectors.reduce,
                                'max': self.sectors.maximum, 'min': self.sectors.minimum}}
        if self.first is not None:
            return {self.name: self.first}
        return {self.name: list(self.numbers)} if self.numbers else self.name


@dataclasses.dataclass(frozen=True)
class Stream:
    """A topic and the numbers in its messages."""

    name: str
    topic: str
    type: str
    fields: tuple[FieldPath, ...]
    operations: tuple[Operation, ...]
    # The order of the joints in messages that leave their list of names empty.
    joints: tuple[str, ...]
    # The only frame that messages with a header may be in; '' where it is not stated.
    frame_id: str
    reliability: str
    durability: str
    depth: int
    # Seconds between two messages at most, or it is reported; None: none is agreed on.
    deadline: float | None

    @property
    def sizes(self) -> tuple[int | None, ...]:
        """Return how many numbers there are before the operations, and after each of them."""
        sizes = [_count(self.fields)]
        for operation in self.operations:
            sizes.append(operation.output_size(sizes[-1]))
        return tuple(sizes)

    @property
    def size(self) -> int:
        """Return how many numbers one message gives to, or takes from, the policy."""
        return self.sizes[-1]


def _count(fields: Iterable[FieldPath]) -> int | None:
    sizes = [field.size for field in fields]
    return None if None in sizes else sum(sizes)


@dataclasses.dataclass(frozen=True)
class Signal(Stream):
    """A stream that the policy observes."""

    unit: str
    # Seconds; a newest sample older than this is no observation. math.inf where `latched`.
    max_age: float
    # How many frames an observation holds, at as many ticks, the oldest first.
    history: int = 1
    # Which time orders the samples and gives their age: the header's stamp, or when they came.
    time: str = 'header'
    # Sent once and valid from then on, such as a goal.
    latched: bool = False
    # Seconds; so long the last command may be held once this signal is missing.
    hold_time: float = 0.0

    @property
    def width(self) -> int:
        """Return how many numbers of an observation are this signal's: size * history."""
        return self.size * self.history


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One number of an action, in the unit the policy uses."""

    kind: str
    unit: str
    lower: float
    upper: float
    # What is sent when the policy may not act. A constant zero is a motion for a position
    # controller, therefore there is no default.
    stop: str
    # The value to send, for stop 'pose'.
    pose: float | None = None
    # Index into the observation, with its history, that measures this dimension: for stop
    # 'hold_measured', the start-up blend, and as what the first command's limits refer to.
    measured: int | None = None
    # How fast the command may change (unit/s), and this change (unit/s^2).
    max_rate: float | None = None
    max_acceleration: float | None = None
    # A command that is farther than this (unit) from the last one is not sent at all.
    max_jump: float | None = None


@dataclasses.dataclass(frozen=True)
class Command(Stream):
    """A stream that the policy sends."""

    dimensions: tuple[Dimension, ...]
    # Which of several commands that were logged within a period answers the tick: 'last', or
    # their mean.
    rule: str
    # Seconds; a command older than this at the end of the tick's period is none.
    max_age: float
    # Seconds from the stamp until the point is reached; of a JointTrajectory only.
    time_from_start: float | None


@dataclasses.dataclass(frozen=True)
class Space:
    """What an action means in space: the point origin + scale * action, for those who look on."""

    # The frame of both.
    frame_id: str
    # Indices, two or three, into the action, and into the observation; () is the frame's own
    # origin. A third coordinate that is not stated is 0.
    action: tuple[int, ...]
    origin: tuple[int, ...] = ()
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a policy observes and does. `observations` and `actions` are concatenated in order."""

    name: str
    # Hz, the rate of decisions that the policy is trained for.
    rate: float
    # 'timer': at fixed times of the node's clock. 'arrival': when the last signal of a period is
    # in.
    tick: str
    # What ticks count time by: when messages are received (or were logged), or header stamps, for
    # simulated time that was recorded against wall time.
    clock: str
    observations: tuple[Signal, ...]
    actions: tuple[Command, ...]
    # Seconds; from the first action on, commands go over from what is measured to what the
    # policy asks for.
    blend_time: float = 0.0
    space: Space | None = None

    @property
    def hold_time(self) -> float:
        """Return how long (s) the last command may be held for causes that are no signal's."""
        return min(signal.hold_time for signal in self.observations if not signal.latched)

    @property
    def observation_size(self) -> int:
        """Return O, the length of an observation: every signal with its history."""
        return sum(signal.width for signal in self.observations)

    @property
    def frame_size(self) -> int:
        """Return how many numbers one message of each signal gives."""
        return sum(signal.size for signal in self.observations)

    @property
    def action_size(self) -> int:
        """Return A, the length of an action."""
        return sum(command.size for command in self.actions)

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """Return the A dimensions of an action."""
        return tuple(d for command in self.actions for d in command.dimensions)

    def period_of(self, time_ns: int) -> int:
        """Return the index of the period [k / rate, (k + 1) / rate) that holds `time_ns`."""
        numerator, denominator = _exact(self.rate)
        return time_ns * numerator // (denominator * 10**9)

    def start_of(self, period: int) -> int:
        """Return the first nanosecond of a period."""
        numerator, denominator = _exact(self.rate)
        return -(-period * denominator * 10**9 // numerator)

    def split_action(self, action: np.ndarray) -> list[np.ndarray]:
        """Return the part of `action` (A,) that belongs to each command."""
        ends = np.cumsum([command.size for command in self.actions])[:-1]
        return np.split(action, ends)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that `parse` turns into an equal spec."""
        def stream(s: Stream) -> dict[str, Any]:
            return {
                'name': s.name, 'topic': s.topic, 'type': s.type,
                'fields': [field.text for field in s.fields],
                'operations': [operation.to_data() for operation in s.operations],
                'joints': list(s.joints), 'frame_id': s.frame_id,
                'qos': {'reliability': s.reliability, 'durability': s.durability,
                        'depth': s.depth,
                        **({} if s.deadline is None else {'deadline': s.deadline})}}

        def signal(s: Signal) -> dict[str, Any]:
            age = {'latched': True} if s.latched else {'max_age': s.max_age}
            hold = {'hold_time': s.hold_time} if s.hold_time else {}
            return {**stream(s), 'unit': s.unit, **age, 'history': s.history, 'time': s.time,
                    **hold}

        def command(c: Command) -> dict[str, Any]:
            result = {**stream(c), 'rule': c.rule,
                      'dimensions': [dimension(d) for d in c.dimensions]}
            if c.max_age != 1.0 / self.rate:
                result['max_age'] = c.max_age
            if c.time_from_start is not None:
                result['time_from_start'] = c.time_from_start
            return result

        def dimension(d: Dimension) -> dict[str, Any]:
            result = {'kind': d.kind, 'unit': d.unit, 'lower': d.lower, 'upper': d.upper,
                      'stop': {'pose': d.pose} if d.stop == 'pose' else d.stop}
            for key in ('measured', 'max_rate', 'max_acceleration', 'max_jump'):
                if getattr(d, key) is not None:
                    result[key] = getattr(d, key)
            return result

        def space(s: Space) -> dict[str, Any]:
            origin = {'origin': list(s.origin)} if s.origin else {}
            return {'frame_id': s.frame_id, 'action': list(s.action), **origin, 'scale': s.scale}

        return {
            'spec_version': SPEC_VERSION, 'name': self.name, 'rate': self.rate, 'tick': self.tick,
            'clock': self.clock, 'observations': [signal(s) for s in self.observations],
            'actions': [command(c) for c in self.actions],
            # A spec without them is written as it was before there were any.
            **({'blend_time': self.blend_time} if self.blend_time else {}),
            **({'space': space(self.space)} if self.space is not None else {})}

    def to_json(self) -> str:
        """Return the spec as JSON; numbers are written so that they are read back exactly."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)


@functools.lru_cache
def _exact(rate: float) -> tuple[int, int]:
    # The decimal number that was written, not its binary neighbour: 0.1 Hz is 10 s to the
    # nanosecond.
    return fractions.Fraction(str(rate)).as_integer_ratio()


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader takes the last of two equal keys; of two limits that is no choice."""

    def get_single_data(self) -> Any:
        """Return the data of the document; raise YAMLError."""
        try:
            return super().get_single_data()
        except RecursionError:
            raise yaml.YAMLError('it is nested too deeply') from None

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        # Whatever Python makes of a date such as 2020-99-99, or of a tag on the wrong value.
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            kind = node.tag.rpartition(':')[2]
            raise yaml.constructor.ConstructorError(
                None, None, f'what cannot be read as {kind}', node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            return super().construct_mapping(node, deep)  # which refuses it
        keys = [key.value for key, _ in node.value]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                raise yaml.constructor.ConstructorError(
                    None, None, f'the key {key} is there twice', node.value[i][0].start_mark)
        return super().construct_mapping(node, deep)


def load(path: str | pathlib.Path) -> Spec:
    """Read a spec from a YAML file; raise SpecError that names the file."""
    path = pathlib.Path(path)
    try:
        data = UniqueKeyLoader(path.read_text(encoding='utf-8')).get_single_data()
    except OSError as error:
        raise SpecError(f'{path}: cannot be read: {error.strerror}') from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f'{path}: is not YAML: {" ".join(str(error).split())}') from error
    if isinstance(data, dict) and 'urdf' in data:
        try:
            data = urdf.fill_in(data, path.parent)
        except urdf.UrdfError as error:
            raise SpecError(f'{path}: {" ".join(str(error).split())}') from error
    return parse(data, str(path))


def parse(data: Any, source: str) -> Spec:
    """Build a spec from plain data; raise SpecError. `source` is the file that errors name."""
    return _Reader(data, source, '').spec()


class _Reader:
    """A mapping being read: every key is asked for once, what is left over is unknown."""

    def __init__(self, data: Any, source: str, key: str) -> None:
        self._source, self._key = source, key
        if not isinstance(data, dict):
            raise self._error('', 'a mapping', data)
        self._data = {k if isinstance(k, str) else _show(k): v for k, v in data.items()}
        self._asked: set[str] = set()

    def _error(self, key: str, expected: str, found: Any) -> SpecError:
        where = '.'.join(part for part in (self._key, key) if part) or 'top level'
        return SpecError(f'{self._source}: {where}: expected {expected}, found {_show(found)}')

    def _get(self, key: str, expected: str, default: Any = ...) -> Any:
        self._asked.add(key)
        if key in self._data:
            return self._data[key]
        if default is ...:
            raise self._error(key, expected, None)
        return default

    def _done(self) -> None:
        unknown = sorted(set(self._data) - self._asked)
        if unknown:
            raise self._error(
                _show(unknown[0]), f'one of the keys {", ".join(sorted(self._asked))}',
                'an unknown key')

    def _text(self, key: str, pattern: str, expected: str, default: Any = ...) -> str:
        value = self._get(key, expected, default)
        if not isinstance(value, str) or not re.fullmatch(pattern, value, re.ASCII):
            raise self._error(key, expected, value)
        if not _is_plain(value):
            raise self._error(
                key, f'{expected}, printable and of {_MAX_TEXT} characters at most', value)
        return value

    def _choice(self, key: str, choices: tuple[str, ...], default: Any = ...) -> str:
        return self._text(key, '|'.join(choices), f'one of {", ".join(choices)}', default)

    def _number(self, key: str, expected: str = 'a finite number', default: Any = ...) -> float:
        value = self._get(key, expected, default)
        if not _is_number(value):
            raise self._error(key, expected, value)
        return float(value)

    def _seconds(self, key: str, default: Any = ...) -> float:
        expected = 'a number of seconds above 0, at most a million'
        value = self._number(key, expected, default)
        if not 0.0 < value <= 1e6:
            raise self._error(key, expected, value)
        return value

    def _duration(self, key: str) -> float:
        expected = 'a number of seconds from 0 to a million'
        value = self._number(key, expected, 0.0)
        if not 0.0 <= value <= 1e6:
            raise self._error(key, expected, value)
        return value

    def _limit(self, key: str, unit: str) -> float | None:
        if key not in self._data:
            self._asked.add(key)
            return None
        expected = f'a number above 0, in {unit}'
        value = self._number(key, expected)
        if not value > 0.0:
            raise self._error(key, expected, value)
        return value

    def _whole(self, key: str, lowest: int, highest: int, default: Any = ...) -> int:
        expected = f'a whole number from {lowest} to {highest}'
        value = self._get(key, expected, default)
        if (not isinstance(value, int) or isinstance(value, bool)
                or not lowest <= value <= highest):
            raise self._error(key, expected, value)
        return value

    def _list(self, key: str, expected: str, default: Any = ...) -> list[Any]:
        value = self._get(key, expected, default)
        if not isinstance(value, list) or not (value or default is not ...):
            raise self._error(key, expected, value)
        return value

    def _reader(self, key: str, default: Any = ...) -> _Reader:
        return _Reader(self._get(key, 'a mapping', default), self._source, self._below(key))

    def _readers(self, key: str, expected: str) -> list[_Reader]:
        return [_Reader(item, self._source, f'{self._below(key)}[{i}]')
                for i, item in enumerate(self._list(key, expected))]

    def _below(self, key: str) -> str:
        return f'{self._key}.{key}' if self._key else key

    def spec(self) -> Spec:
        version = self._get('spec_version', f'{SPEC_VERSION}')
        if version != SPEC_VERSION or isinstance(version, bool):
            raise self._error(
                'spec_version', f'{SPEC_VERSION} (the version this release reads)', version)
        name = self._text('name', r'[A-Za-z]\w*', 'a name of letters, digits and underscores')
        expected = 'a number of Hz from 0.001 to 1000'
        rate = self._number('rate', expected)
        if not 0.001 <= rate <= 1000.0:
            raise self._error('rate', expected, rate)
        tick = self._choice('tick', TICKS)
        clock = self._choice('clock', CLOCKS, 'received')
        observations = tuple(
            r.signal() for r in self._readers('observations', 'a list of one signal or more'))
        actions = tuple(
            r.command(observations, rate)
            for r in self._readers('actions', 'a list of one command or more'))
        blend_time = self._duration('blend_time')
        space = self._reader('space').space(
            sum(signal.width for signal in observations),
            sum(command.size for command in actions)) if 'space' in self._data else None
        self._asked.add('space')
        self._done()
        for key, streams in (('observations', observations), ('actions', actions)):
            names = [stream.name for stream in streams]
            for i, found in enumerate(names):
                if found in names[:i]:
                    raise self._error(f'{key}[{i}].name', 'a name used once', found)
        self._agree_on_topics(observations)
        self._check_command_topics(observations, actions)
        if all(signal.latched for signal in observations):
            raise self._error('observations', 'one signal or more that is not latched',
                              'latched signals only')
        return Spec(name, rate, tick, clock, observations, actions, blend_time, space)

    def space(self, observation_size: int, action_size: int) -> Space:
        frame_id = self._text('frame_id', r'.+', 'a frame name')
        action = self._indices('action', action_size)
        origin = self._indices('origin', observation_size) if 'origin' in self._data else ()
        self._asked.add('origin')
        scale = self._number('scale', default=1.0)
        self._done()
        return Space(frame_id, action, origin, scale)

    def _indices(self, key: str, size: int) -> tuple[int, ...]:
        expected = f'a list of two or three indices from 0 to {size - 1}'
        indices = self._list(key, expected)
        if len(indices) not in (2, 3) or not all(_is_index(i, size) for i in indices):
            raise self._error(key, expected, indices)
        return tuple(indices)

    def _agree_on_topics(self, observations: tuple[Signal, ...]) -> None:
        """Signals of one topic are read from the same messages, through one subscription."""
        first: dict[tuple[str, str], Any] = {}
        for i, signal in enumerate(observations):
            for what in ('topic', 'type', 'reliability', 'durability', 'depth', 'deadline',
                         'frame_id'):
                found = getattr(signal, what)
                if what == 'frame_id' and not found:
                    continue
                expected = first.setdefault((_bare(signal.topic), what), found)
                if found != expected and what == 'topic':
                    raise self._written_twice(f'observations[{i}]', expected, found)
                if found != expected:
                    key = what if what in ('type', 'frame_id') else f'qos.{what}'
                    raise self._error(
                        f'observations[{i}].{key}',
                        f'{expected}, as stated above for the topic {signal.topic}', found)

    def _check_command_topics(
            self, observations: tuple[Signal, ...], actions: tuple[Command, ...]) -> None:
        observed = {_bare(signal.topic): signal.topic for signal in observations}
        topics = [_bare(command.topic) for command in actions]
        for i, command in enumerate(actions):
            if topics[i] in topics[:i]:
                raise self._error(f'actions[{i}].topic', 'a topic used once', command.topic)
            expected = observed.get(topics[i], command.topic)
            if command.topic != expected:
                raise self._written_twice(f'actions[{i}]', expected, command.topic)

    def _written_twice(self, key: str, expected: str, found: str) -> SpecError:
        return self._error(
            f'{key}.topic', f'{expected}, the same topic: write it as above', found)

    def _stream(self, reliability: str, durability: str = 'volatile') -> dict[str, Any]:
        name = self._text('name', r'[a-z]\w*', 'a name of lower-case letters, digits, underscores')
        topic = self._text(
            'topic', r'(~/|/)?[A-Za-z_]\w*(/[A-Za-z_]\w*)*',
            'a ROS topic name such as joint_states')
        message_type = self._text(
            'type', r'[a-z]\w*/msg/[A-Z]\w*', 'a message type such as sensor_msgs/msg/JointState')
        if message_type in _REFUSED_TYPES:
            raise self._error('type', _REFUSED_TYPES[message_type], message_type)
        joints = self._joints()
        fields = self._fields(joints)
        operations = self._operations(fields)
        frame_id = self._text('frame_id', r'.*', 'a frame name', '')
        qos = self._reader('qos', {})
        reliability = qos._choice('reliability', RELIABILITIES, reliability)
        durability = qos._choice('durability', DURABILITIES, durability)
        if (reliability, durability) == ('best_effort', 'transient_local'):
            raise qos._error(
                'reliability', 'reliable with durability transient_local: what was sent before is '
                'not sent again to a best-effort subscriber', reliability)
        depth = qos._whole('depth', 1, 10000, 1)
        deadline = qos._seconds('deadline') if 'deadline' in qos._data else None
        qos._done()
        return {'name': name, 'topic': topic, 'type': message_type, 'fields': fields,
                'operations': operations, 'joints': joints, 'frame_id': frame_id,
                'reliability': reliability, 'durability': durability, 'depth': depth,
                'deadline': deadline}

    def _joints(self) -> tuple[str, ...]:
        joints = self._list('joints', 'a list of the names of joints', [])
        for i, joint in enumerate(joints):
            if not _is_joint(joint) or joint in joints[:i]:
                raise self._error(f'joints[{i}]', 'the name of a joint, used once', joint)
        return tuple(joints)

    def _fields(self, joints: tuple[str, ...]) -> tuple[FieldPath, ...]:
        fields = []
        for i, text in enumerate(self._list('fields', 'a list of field paths')):
            try:
                field = parse_path(text if isinstance(text, str) else '')
            except ValueError as error:
                expected = str(error).removeprefix('expected ')
                raise self._error(f'fields[{i}]', expected, text) from None
            if joints and field.joint not in (None, *joints):
                raise self._error(
                    f'fields[{i}]', f'one of the joints stated ({", ".join(joints)})', text)
            fields.append(field)
            if len(fields) > 1 and _count(fields) is None:
                raise self._error('fields', 'a whole list [:] to be the only field', text)
        return tuple(fields)

    def _operations(self, fields: tuple[FieldPath, ...]) -> tuple[Operation, ...]:
        operations, size = [], _count(fields)
        for i, item in enumerate(self._list('operations', 'a list of operations', [])):
            operation = self._operation(f'operations[{i}]', item)
            try:
                size = operation.output_size(size)
            except ValueError as error:
                raise SpecError(
                    f'{self._source}: {self._key}.operations[{i}]: {error}') from None
            operations.append(operation)
        if size is None:
            raise self._error(
                'fields[0]', 'the operation sectors for a whole list [:], which has no size of '
                'its own, or the elements, as in [0:6]', fields[0].text)
        return tuple(operations)

    def _operation(self, key: str, item: Any) -> Operation:
        if item in ('cos_sin', 'yaw', 'rotation_6d'):
            return Operation(item)
        expected = ('rotation_6d, cos_sin, yaw, {scale: number(s)}, {offset: number(s)} or '
                    '{sectors: {count, reduce, max, min}}')
        if not isinstance(item, dict) or list(item) not in (
                ['scale'], ['offset'], ['sectors'], ['yaw'], ['rotation_6d']):
            raise self._error(key, expected, item)
        (name, value), = item.items()
        if name in ('yaw', 'rotation_6d'):
            if (not isinstance(value, int) or isinstance(value, bool)
                    or not 0 <= value < _MAX_ELEMENTS):
                raise self._error(f'{key}.{name}', 'the index, from 0, of the x of the quaternion '
                                  'among the numbers', value)
            return Operation(name, first=value)
        if name == 'sectors':
            reader = _Reader(value, self._source, f'{self._key}.{key}.{name}')
            return Operation(name, sectors=reader.sectors())
        numbers = value if isinstance(value, list) else [value]
        if not numbers or not all(_is_number(n) and (n != 0 or name == 'offset') for n in numbers):
            raise self._error(f'{key}.{name}', 'finite numbers (scale: not 0)', value)
        return Operation(name, tuple(float(n) for n in numbers))

    def sectors(self) -> Sectors:
        count = self._whole('count', 1, 10000)
        reduce = self._choice('reduce', REDUCTIONS)
        maximum = self._number('max', 'the range that is counted for everything farther')
        minimum = self._number('min', 'the nearest range that is a reading', 0.0)
        if not 0.0 <= minimum < maximum:
            raise self._error('min', f'0 or more and less than max ({maximum})', minimum)
        self._done()
        return Sectors(count, reduce, maximum, minimum)

    def signal(self) -> Signal:
        latched = self._get('latched', 'true', False)
        if not isinstance(latched, bool):
            raise self._error('latched', 'true, or max_age instead', latched)
        stream = (self._stream('reliable', 'transient_local') if latched
                  else self._stream('best_effort'))
        unit = self._text('unit', r'.+', 'a unit such as m, rad, m/s, or 1 where there is none')
        if latched and 'max_age' in self._data:
            raise self._error('max_age', 'no age for a signal that is latched',
                              self._data['max_age'])
        if not latched:
            self._get('max_age', 'a number of seconds, or latched: true')
        max_age = math.inf if latched else self._seconds('max_age')
        history = self._whole('history', 1, 100, 1)
        time = self._choice('time', TIMES, 'header')
        hold_time = self._duration('hold_time')
        self._done()
        return Signal(**stream, unit=unit, max_age=max_age, history=history, time=time,
                      latched=latched, hold_time=hold_time)

    def command(self, observations: tuple[Signal, ...], rate: float) -> Command:
        stream = self._stream('reliable')
        rule = self._choice('rule', RULES, 'last')
        period = 1.0 / rate
        max_age = self._seconds('max_age', period)
        if max_age < period:
            raise self._error('max_age', f'a period of the rate or more ({period} s)', max_age)
        time_from_start = None
        if stream['type'] == JOINT_TRAJECTORY:
            time_from_start = self._seconds('time_from_start', period)
            self._check_trajectory(stream)
        elif 'time_from_start' in self._data:
            raise self._error(
                'time_from_start', f'none for a type that is not {JOINT_TRAJECTORY}',
                self._data['time_from_start'])
        dimensions = tuple(
            reader.dimension(observations)
            for reader in self._readers('dimensions', 'a list of one dimension or more'))
        self._done()
        command = Command(**stream, dimensions=dimensions, rule=rule, max_age=max_age,
                          time_from_start=time_from_start)
        if len(dimensions) != command.size:
            raise self._error(
                'dimensions', f'{command.size} entries, one for each number the fields and '
                'operations give', f'{len(dimensions)} entries')
        return command

    def _check_trajectory(self, stream: dict[str, Any]) -> None:
        """Its controller refuses other than one point, and numbers of joints without a name."""
        for i, field in enumerate(stream['fields']):
            if field.steps[:2] != ('points', 0):
                raise self._error(
                    f'fields[{i}]', 'a field of points[0], the one point that is sent', field.text)
            if field.joint is None and not stream['joints']:
                raise self._error(
                    'joints', f'the names of the joints in the order of {field.text}', None)

    def dimension(self, observations: tuple[Signal, ...]) -> Dimension:
        kind = self._choice('kind', KINDS)
        unit = self._text('unit', r'.+', 'a unit such as rad or m/s')
        lower, upper = self._number('lower'), self._number('upper')
        if lower >= upper:
            raise self._error('upper', f'a number above lower ({lower})', upper)
        with np.errstate(over='ignore', invalid='ignore'):
            resolved = float(np.spacing(np.float32(max(abs(lower), abs(upper)))))
        if not upper - lower >= resolved:  # NaN beyond the range of float32
            raise self._error(
                'upper', f'a number above lower ({lower}) by what float32 resolves, in which '
                'actions are sent', upper)
        expected = {
            'velocity': 'zero',
            'increment': 'zero',
            'effort': 'zero, hold_last_sent or {pose: number}',
            'position': 'hold_measured, hold_last_sent or {pose: number} (a constant zero is a '
                        'motion for a position controller)'}[kind]
        stop, pose = self._get('stop', expected), None
        if isinstance(stop, dict) and list(stop) == ['pose']:
            pose = stop['pose']
            if not _is_number(pose) or not lower <= pose <= upper:
                raise self._error(
                    'stop.pose', f'a number within the limits {lower} to {upper}', pose)
            stop, pose = 'pose', float(pose)
        if not isinstance(stop, str) or stop not in STOPS or stop not in re.findall(
                r'[a-z_]+', expected.split('(')[0]) or (stop == 'pose' and pose is None):
            raise self._error('stop', f'{expected} for a dimension of kind {kind}', stop)
        if stop == 'zero' and not lower <= 0.0 <= upper:
            raise self._error(
                'stop', 'limits that hold 0, or another stop', f'zero with {lower} to {upper}')
        max_rate = self._limit('max_rate', f'{unit}/s')
        max_acceleration = self._limit('max_acceleration', f'{unit}/s^2')
        max_jump = self._limit('max_jump', unit)
        # The first command of another kind is limited from 0 on.
        referred = kind == 'position' and any((max_rate, max_acceleration, max_jump))
        measured = None
        if 'measured' in self._data or stop == 'hold_measured' or referred:
            measured = self._measured(observations, referred)
        self._asked.add('measured')
        self._done()
        return Dimension(kind, unit, lower, upper, stop, pose, measured, max_rate,
                         max_acceleration, max_jump)

    def _measured(self, observations: tuple[Signal, ...], referred: bool) -> int:
        owners = [signal for signal in observations for _ in range(signal.width)]
        expected = (f'the index (0 to {len(owners) - 1}) of the observation that measures this '
                    'dimension, in the same unit')
        if referred:
            expected += ' (what max_rate, max_acceleration and max_jump begin from)'
        index = self._get('measured', expected)
        if not _is_index(index, len(owners)):
            raise self._error('measured', expected, index)
        owner = owners[index]
        if owner.unit != self._data['unit']:
            raise self._error(
                'measured', expected, f'{index}, of the signal {owner.name} in {owner.unit}')
        end = owners.index(owner) + owner.width
        if index < end - owner.size:
            raise self._error(
                'measured', f'an index of the newest frame of the signal {owner.name}, which is '
                f'its last ({end - owner.size} to {end - 1})', index)
        return index


def _is_number(value: Any) -> bool:
    return (isinstance(value, (int, float)) and not isinstance(value, bool)
            and abs(value) < 1e300)


def _is_index(value: Any, size: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < size


def _bare(topic: str) -> str:
    # A bag has no node whose namespace would tell odom from /odom.
    return topic.removeprefix('/')


def _show(found: Any) -> str:
    if found is None:
        return 'nothing'
    try:
        text = found if isinstance(found, str) and found and found.isprintable() else repr(found)
    except (ValueError, RecursionError):  # Python writes no number of so many digits
        text = f'{type(found).__name__} too long to be shown'
    return text if len(text) <= 80 else text[:77] + '...'
