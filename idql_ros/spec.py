"""The spec: what a policy observes and does, on which topics, at what rate, within which limits.

One spec drives bag conversion, training, the node and the simulation, and travels inside the
policy file. It is written by hand as YAML (`config/robots/*.yaml`) and stored as JSON; both go
through `parse`, which refuses what it does not know.
"""

from __future__ import annotations

import dataclasses
import fractions
import functools
import json
import math
import pathlib
import re
from typing import Any

import numpy as np
import yaml

SPEC_VERSION = 1

KINDS = ('position', 'velocity', 'effort', 'increment')
STOPS = ('zero', 'hold_last_sent', 'hold_measured', 'pose')
TICKS = ('timer', 'arrival')
RELIABILITIES = ('best_effort', 'reliable')
OPERATIONS = ('scale', 'offset', 'cos_sin', 'yaw')


class SpecError(ValueError):
    """A spec that cannot be used; names file, key, what was expected and what was found."""


@dataclasses.dataclass(frozen=True)
class FieldPath:
    """A path into a message: `twist.linear.x`, `data[2]`, `data[0:6]` or `position[elbow]`."""

    text: str
    # Attribute names from the message down, for example ('twist', 'linear', 'x').
    attributes: tuple[str, ...]
    # What is taken of the last attribute: nothing, elements [start, stop), or the joint of this
    # name.
    start: int | None = None
    stop: int | None = None
    joint: str | None = None

    @property
    def size(self) -> int:
        """Return how many numbers the path reads."""
        return 1 if self.start is None else self.stop - self.start


# No message of a robot is longer; a spec in a policy file may come from anywhere.
_MAX_ELEMENTS = 100_000
_PATH = re.compile(
    r'(?P<attributes>[a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*)'
    r'(?:\[(?:(?P<start>\d+)(?::(?P<stop>\d+))?|(?P<joint>[A-Za-z_/][\w/.-]*))\])?', re.ASCII)


def parse_path(text: str) -> FieldPath:
    """Parse a field path; raise ValueError that says what a path looks like."""
    match = _PATH.fullmatch(text)
    if match is None:
        raise ValueError(
            'expected a field path such as twist.linear.x, data[2], data[0:6] or position[elbow]')
    attributes = tuple(match['attributes'].split('.'))
    if match['start'] is None:
        return FieldPath(text, attributes, joint=match['joint'])
    start = int(match['start'])
    stop = int(match['stop']) if match['stop'] else start + 1
    if not start < stop <= _MAX_ELEMENTS:
        raise ValueError(
            f'expected a slice [start:stop] with stop > start and stop <= {_MAX_ELEMENTS}')
    return FieldPath(text, attributes, start, stop)


@dataclasses.dataclass(frozen=True)
class Operation:
    """One step from the numbers in a message to the numbers the policy uses.

    scale, offset  y = scale * x, y = x + offset; one number for all or one for each.
    cos_sin        each angle (rad) becomes (cos, sin).
    yaw            a quaternion in ROS order (x, y, z, w) becomes its yaw (rad), REP 103.
    """

    name: str
    numbers: tuple[float, ...] = ()

    def output_size(self, size: int) -> int:
        """Return how many numbers come out of `size`; raise ValueError where they can't."""
        if self.name == 'cos_sin':
            return 2 * size
        if self.name == 'yaw':
            if size != 4:
                raise ValueError(
                    f'yaw takes the 4 numbers of a quaternion (x, y, z, w), not {size}')
            return 1
        if len(self.numbers) not in (1, size):
            raise ValueError(f'expected 1 or {size} numbers, found {len(self.numbers)}')
        return size

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Apply to float64 numbers `x` (n,)."""
        if self.name == 'scale':
            return x * np.array(self.numbers)
        if self.name == 'offset':
            return x + np.array(self.numbers)
        if self.name == 'cos_sin':
            return np.stack([np.cos(x), np.sin(x)], axis=-1).reshape(-1)  # (2n,)
        if not 0.9 < np.dot(x, x) < 1.1:
            return np.array([np.nan])  # no rotation; the zeros of a driver that fills in none
        qx, qy, qz, qw = x
        return np.array(
            [math.atan2(2.0 * (qw * qz + qx * qy), 1.0 - 2.0 * (qy * qy + qz * qz))])

    def invert(self, y: np.ndarray) -> np.ndarray:
        """Return numbers that `apply` maps to `y`; of all quaternions of a yaw, the level one."""
        if self.name == 'scale':
            return y / np.array(self.numbers)
        if self.name == 'offset':
            return y - np.array(self.numbers)
        if self.name == 'cos_sin':
            pairs = y.reshape(-1, 2)
            return np.arctan2(pairs[:, 1], pairs[:, 0])
        return np.array([0.0, 0.0, math.sin(0.5 * y[0]), math.cos(0.5 * y[0])])


@dataclasses.dataclass(frozen=True)
class Stream:
    """A topic and the numbers in its messages."""

    name: str
    topic: str
    type: str
    fields: tuple[FieldPath, ...]
    operations: tuple[Operation, ...]
    reliability: str
    depth: int

    @property
    def size(self) -> int:
        """Return how many numbers the stream gives to, or takes from, the policy."""
        size = sum(field.size for field in self.fields)
        for operation in self.operations:
            size = operation.output_size(size)
        return size


@dataclasses.dataclass(frozen=True)
class Signal(Stream):
    """A stream that the policy observes."""

    unit: str
    # Seconds; a newest sample older than this is no observation.
    max_age: float


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
    # Index into the observation that measures this dimension, for stop 'hold_measured'.
    measured: int | None = None


@dataclasses.dataclass(frozen=True)
class Command(Stream):
    """A stream that the policy sends."""

    frame_id: str
    dimensions: tuple[Dimension, ...]


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a policy observes and does. `observations` and `actions` are concatenated in order."""

    name: str
    # Hz, the rate of decisions that the policy is trained for.
    rate: float
    # 'timer': at fixed times of the node's clock. 'arrival': when the last signal of a period is
    # in.
    tick: str
    observations: tuple[Signal, ...]
    actions: tuple[Command, ...]

    @property
    def observation_size(self) -> int:
        """Return O, the length of an observation."""
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
                'operations': [
                    {o.name: list(o.numbers)} if o.numbers else o.name for o in s.operations],
                'qos': {'reliability': s.reliability, 'depth': s.depth}}

        def dimension(d: Dimension) -> dict[str, Any]:
            result = {'kind': d.kind, 'unit': d.unit, 'lower': d.lower, 'upper': d.upper,
                      'stop': {'pose': d.pose} if d.stop == 'pose' else d.stop}
            if d.measured is not None:
                result['measured'] = d.measured
            return result

        return {
            'spec_version': SPEC_VERSION, 'name': self.name, 'rate': self.rate, 'tick': self.tick,
            'observations': [
                {**stream(s), 'unit': s.unit, 'max_age': s.max_age} for s in self.observations],
            'actions': [
                {**stream(c), 'frame_id': c.frame_id,
                 'dimensions': [dimension(d) for d in c.dimensions]} for c in self.actions]}

    def to_json(self) -> str:
        """Return the spec as JSON; numbers are written so that they are read back exactly."""
        return json.dumps(self.to_dict(), indent=1)


@functools.lru_cache
def _exact(rate: float) -> tuple[int, int]:
    # The decimal number that was written, not its binary neighbour: 0.1 Hz is 10 s to the
    # nanosecond.
    return fractions.Fraction(str(rate)).as_integer_ratio()


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader takes the last of two equal keys; of two limits that is no choice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
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
        data = _UniqueKeyLoader(path.read_text(encoding='utf-8')).get_single_data()
    except OSError as error:
        raise SpecError(f'{path}: cannot be read: {error.strerror}') from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f'{path}: is not YAML: {" ".join(str(error).split())}') from error
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
        self._data = {str(k): v for k, v in data.items()}
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
        return value

    def _choice(self, key: str, choices: tuple[str, ...], default: Any = ...) -> str:
        return self._text(key, '|'.join(choices), f'one of {", ".join(choices)}', default)

    def _number(
            self, key: str, expected: str = 'a finite number', positive: bool = False) -> float:
        value = self._get(key, expected)
        if not _is_number(value) or (positive and value <= 0):
            raise self._error(key, expected, value)
        return float(value)

    def _list(self, key: str, expected: str, default: Any = ...) -> list[Any]:
        value = self._get(key, expected, default)
        if not isinstance(value, list) or not (value or default is not ...):
            raise self._error(key, expected, value)
        return value

    def _readers(self, key: str, expected: str) -> list[_Reader]:
        prefix = f'{self._key}.{key}' if self._key else key
        return [_Reader(item, self._source, f'{prefix}[{i}]')
                for i, item in enumerate(self._list(key, expected))]

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
        observations = tuple(
            r.signal() for r in self._readers('observations', 'a list of one signal or more'))
        actions = tuple(
            r.command(observations)
            for r in self._readers('actions', 'a list of one command or more'))
        self._done()
        for key, streams in (('observations', observations), ('actions', actions)):
            for what in ('name', 'topic') if key == 'actions' else ('name',):
                values = [getattr(stream, what) for stream in streams]
                for i, value in enumerate(values):
                    if value in values[:i]:
                        raise self._error(f'{key}[{i}].{what}', f'a {what} used once', value)
        first: dict[str, Signal] = {}
        for i, signal in enumerate(observations):
            stated = first.setdefault(signal.topic, signal)
            for what in ('type', 'reliability', 'depth'):
                expected, found = getattr(stated, what), getattr(signal, what)
                if found != expected:
                    key = what if what == 'type' else f'qos.{what}'
                    raise self._error(
                        f'observations[{i}].{key}',
                        f'{expected}, as stated above for the topic {signal.topic}', found)
        return Spec(name, rate, tick, observations, actions)

    def _stream(self, default_reliability: str) -> dict[str, Any]:
        name = self._text('name', r'[a-z]\w*', 'a name of lower-case letters, digits, underscores')
        topic = self._text(
            'topic', r'(~/|/)?[A-Za-z_]\w*(/[A-Za-z_]\w*)*',
            'a ROS topic name such as joint_states')
        message_type = self._text(
            'type', r'[a-z]\w*/msg/[A-Z]\w*', 'a message type such as sensor_msgs/msg/JointState')
        fields = []
        for i, text in enumerate(self._list('fields', 'a list of field paths')):
            try:
                fields.append(parse_path(text if isinstance(text, str) else ''))
            except ValueError as error:
                expected = str(error).removeprefix('expected ')
                raise self._error(f'fields[{i}]', expected, text) from None
        operations = []
        size = sum(field.size for field in fields)
        for i, item in enumerate(self._list('operations', 'a list of operations', [])):
            operation = self._operation(i, item)
            try:
                size = operation.output_size(size)
            except ValueError as error:
                raise SpecError(
                    f'{self._source}: {self._key}.operations[{i}]: {error}') from None
            operations.append(operation)
        qos = self._get('qos', 'a mapping', {'reliability': default_reliability, 'depth': 1})
        qos_reader = _Reader(qos, self._source, f'{self._key}.qos')
        reliability = qos_reader._choice('reliability', RELIABILITIES, default_reliability)
        depth = qos_reader._get('depth', 'a whole number from 1 to 10000', 1)
        if not isinstance(depth, int) or isinstance(depth, bool) or not 1 <= depth <= 10000:
            raise qos_reader._error('depth', 'a whole number from 1 to 10000', depth)
        qos_reader._done()
        return {'name': name, 'topic': topic, 'type': message_type, 'fields': tuple(fields),
                'operations': tuple(operations), 'reliability': reliability, 'depth': depth}

    def _operation(self, i: int, item: Any) -> Operation:
        key = f'operations[{i}]'
        if item in ('cos_sin', 'yaw'):
            return Operation(item)
        expected = 'cos_sin, yaw, {scale: number(s)} or {offset: number(s)}'
        if not isinstance(item, dict) or list(item) not in (['scale'], ['offset']):
            raise self._error(key, expected, item)
        (name, value), = item.items()
        numbers = value if isinstance(value, list) else [value]
        if not numbers or not all(_is_number(n) and (n != 0 or name == 'offset') for n in numbers):
            raise self._error(f'{key}.{name}', 'finite numbers (scale: not 0)', value)
        return Operation(name, tuple(float(n) for n in numbers))

    def signal(self) -> Signal:
        stream = self._stream('best_effort')
        unit = self._text('unit', r'.+', 'a unit such as m, rad, m/s, or 1 where there is none')
        expected = 'a number of seconds above 0, at most a million'
        max_age = self._number('max_age', expected, positive=True)
        if max_age > 1e6:
            raise self._error('max_age', expected, max_age)
        self._done()
        return Signal(**stream, unit=unit, max_age=max_age)

    def command(self, observations: tuple[Signal, ...]) -> Command:
        stream = self._stream('reliable')
        frame_id = self._text('frame_id', r'.*', 'a frame name', '')
        dimensions = tuple(
            reader.dimension(observations)
            for reader in self._readers('dimensions', 'a list of one dimension or more'))
        self._done()
        command = Command(**stream, frame_id=frame_id, dimensions=dimensions)
        if len(dimensions) != command.size:
            raise self._error(
                'dimensions', f'{command.size} entries, one for each number the fields and '
                'operations give', f'{len(dimensions)} entries')
        return command

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
        stop, pose, measured = self._get('stop', expected), None, None
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
        if stop == 'hold_measured':
            measured = self._measured(observations)
        self._done()
        return Dimension(kind, unit, lower, upper, stop, pose, measured)

    def _measured(self, observations: tuple[Signal, ...]) -> int:
        owners = [signal for signal in observations for _ in range(signal.size)]
        expected = (f'the index (0 to {len(owners) - 1}) of the observation that measures this '
                    'dimension, in the same unit')
        index = self._get('measured', expected)
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(owners):
            raise self._error('measured', expected, index)
        if owners[index].unit != self._data['unit']:
            raise self._error(
                'measured', expected,
                f'{index}, of the signal {owners[index].name} in {owners[index].unit}')
        return index


def _is_number(value: Any) -> bool:
    return (isinstance(value, (int, float)) and not isinstance(value, bool)
            and abs(value) < 1e300)


def _show(found: Any) -> str:
    if found is None:
        return 'nothing'
    text = found if isinstance(found, str) and found and found.isprintable() else repr(found)
    return text if len(text) <= 80 else text[:77] + '...'
