"""One message <-> numbers: `read`, `write`, `stamp_ns`, and plain messages for where no ROS is.

Messages are used by attribute, never by class, so that the same code reads the messages of rclpy,
of rosbags and the plain ones made by `blank`. Nothing here needs ROS until `ros_class` is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
import importlib
import math
from typing import Any

from idql_ros.spec import Command, FieldPath, Stream
import numpy as np

NS = 10**9

# The standard message types that can be made without ROS, as in their .msg files
# (common_interfaces, rcl_interfaces); a test compares each with the definition of the installed
# ROS.
DEFINITIONS = {
    'builtin_interfaces/msg/Time': 'int32 sec, uint32 nanosec',
    'builtin_interfaces/msg/Duration': 'int32 sec, uint32 nanosec',
    'rosgraph_msgs/msg/Clock': 'builtin_interfaces/Time clock',
    'std_msgs/msg/Header': 'builtin_interfaces/Time stamp, string frame_id',
    'std_msgs/msg/Bool': 'boolean data',
    'std_msgs/msg/Float32': 'float data',
    'std_msgs/msg/Float64': 'double data',
    'std_msgs/msg/MultiArrayDimension': 'string label, uint32 size, uint32 stride',
    'std_msgs/msg/MultiArrayLayout':
        'sequence<std_msgs/MultiArrayDimension> dim, uint32 data_offset',
    'std_msgs/msg/Float32MultiArray': 'std_msgs/MultiArrayLayout layout, sequence<float> data',
    'std_msgs/msg/Float64MultiArray': 'std_msgs/MultiArrayLayout layout, sequence<double> data',
    'geometry_msgs/msg/Vector3': 'double x, double y, double z',
    'geometry_msgs/msg/Point': 'double x, double y, double z',
    'geometry_msgs/msg/Quaternion': 'double x, double y, double z, double w',
    'geometry_msgs/msg/Pose':
        'geometry_msgs/Point position, geometry_msgs/Quaternion orientation',
    'geometry_msgs/msg/PoseStamped': 'std_msgs/Header header, geometry_msgs/Pose pose',
    'geometry_msgs/msg/PoseWithCovariance': 'geometry_msgs/Pose pose, double[36] covariance',
    'geometry_msgs/msg/Twist': 'geometry_msgs/Vector3 linear, geometry_msgs/Vector3 angular',
    'geometry_msgs/msg/TwistStamped': 'std_msgs/Header header, geometry_msgs/Twist twist',
    'geometry_msgs/msg/TwistWithCovariance': 'geometry_msgs/Twist twist, double[36] covariance',
    'geometry_msgs/msg/Wrench': 'geometry_msgs/Vector3 force, geometry_msgs/Vector3 torque',
    'geometry_msgs/msg/WrenchStamped': 'std_msgs/Header header, geometry_msgs/Wrench wrench',
    'nav_msgs/msg/Odometry':
        'std_msgs/Header header, string child_frame_id, geometry_msgs/PoseWithCovariance pose, '
        'geometry_msgs/TwistWithCovariance twist',
    'sensor_msgs/msg/Imu':
        'std_msgs/Header header, geometry_msgs/Quaternion orientation, '
        'double[9] orientation_covariance, geometry_msgs/Vector3 angular_velocity, '
        'double[9] angular_velocity_covariance, geometry_msgs/Vector3 linear_acceleration, '
        'double[9] linear_acceleration_covariance',
    'sensor_msgs/msg/JointState':
        'std_msgs/Header header, sequence<string> name, sequence<double> position, '
        'sequence<double> velocity, sequence<double> effort',
    'sensor_msgs/msg/Range':
        'std_msgs/Header header, uint8 radiation_type, float field_of_view, float min_range, '
        'float max_range, float range, float variance',
}

_DTYPES = {
    'float': np.float32, 'double': np.float64, 'boolean': np.bool_, 'uint8': np.uint8,
    'int32': np.int32, 'uint32': np.uint32}


class MessageError(ValueError):
    """A message that does not hold what the spec says; names topic, field and what there is."""


@functools.cache
def ros_class(message_type: str) -> type:
    """Return the class of the installed ROS for a type such as `nav_msgs/msg/Odometry`.

    Raises:
        MessageError: no such package or type is installed.
    """
    package, _, name = message_type.split('/')
    try:
        return getattr(importlib.import_module(f'{package}.msg'), name)
    except (ImportError, AttributeError) as error:
        raise MessageError(
            f'message type {message_type}: not installed on this machine ({error}); install and '
            f'source the ROS package {package}') from error


def blank(message_type: str) -> Any:
    """Return a message with its defaults, made without ROS.

    Raises:
        MessageError: the type is not one of DEFINITIONS.
    """
    return _plain_class(message_type)()


@functools.cache
def _plain_class(message_type: str) -> type:
    if message_type not in DEFINITIONS:
        raise MessageError(
            f'message type {message_type}: cannot be made without ROS; the types that can are '
            f'{", ".join(sorted(DEFINITIONS))}')
    definition = dict(
        reversed(field.split()) for field in DEFINITIONS[message_type].split(', '))

    def initialise(self: Any) -> None:
        for name, field_type in definition.items():
            object.__setattr__(self, name, _default(field_type))
        if message_type == 'geometry_msgs/msg/Quaternion':
            self.w = 1.0  # the default in Quaternion.msg

    def assign(self: Any, name: str, value: Any) -> None:
        # A number gets the precision it has in the real message.
        field_type = definition[name]
        if field_type in _DTYPES:
            value = _DTYPES[field_type](value).item()
        elif (dtype := _array_dtype(field_type)) is not None:
            value = np.array(value, dtype)
        object.__setattr__(self, name, value)

    return type(message_type.rpartition('/')[2], (), {
        '__slots__': tuple(definition), '__init__': initialise, '__setattr__': assign,
        '__msgtype__': message_type})


def _array_dtype(field_type: str) -> Any:
    element = field_type.removeprefix('sequence<').removesuffix('>').partition('[')[0]
    return _DTYPES.get(element) if element != field_type else None


def _default(field_type: str) -> Any:
    if field_type == 'string':
        return ''
    if field_type in _DTYPES:
        return _DTYPES[field_type](0).item()
    dtype = _array_dtype(field_type)
    if dtype is not None:
        return np.zeros(int(field_type[:-1].partition('[')[2] or 0), dtype)
    if field_type.startswith('sequence<'):
        return []
    package, name = field_type.split('/')
    return blank(f'{package}/msg/{name}')


def time_message_ns(time: Any) -> int:
    """Return a builtin_interfaces/Time in nanoseconds."""
    return time.sec * NS + time.nanosec


def stamp_ns(message: Any, received_ns: int) -> int:
    """Return the time of a message in ns: its header's stamp, else when it was received."""
    header = getattr(message, 'header', None)
    return received_ns if header is None else time_message_ns(header.stamp)


def read(stream: Stream, message: Any) -> np.ndarray:
    """Return the numbers (stream.size,) float32 that the spec takes from a message.

    What is not finite in the message is not finite in the result.

    Raises:
        MessageError: a field, element or joint is not there, or is not a number.
    """
    numbers: list[float] = []
    for path in stream.fields:
        owner, name = _owner(stream, path, message)
        value = getattr(owner, name)
        if isinstance(value, str):  # also one that float() would take
            raise MessageError(_text(stream, path, 'is no number but str'))
        try:
            if path.start is not None:
                part = value[path.start:path.stop]
                if len(part) != path.size:
                    raise MessageError(_text(stream, path, f'has {len(value)} elements'))
                numbers.extend(part)
            elif path.joint is not None:
                numbers.append(value[_joint_index(stream, path, owner, len(value))])
            else:
                numbers.append(float(value))
        except TypeError:
            expected = 'number' if path.start is None and path.joint is None else 'list of numbers'
            raise MessageError(_text(
                stream, path, f'is no {expected} but {_kind(value)}')) from None
    try:
        values = np.array(numbers, np.float64)
    except (TypeError, ValueError):
        raise MessageError(
            f'topic {stream.topic} ({stream.type}): expected numbers in '
            f'{", ".join(path.text for path in stream.fields)}, found something else') from None
    for operation in stream.operations:
        values = operation.apply(values)
    with np.errstate(over='ignore'):
        return values.astype(np.float32)


def write(stream: Stream, values: np.ndarray, message: Any, stamp_ns: int) -> Any:
    """Write numbers (stream.size,) into `message`, stamp it, and return it.

    The inverse of `read`: reading the message gives the same float32 numbers, within what the
    precision of the message's fields allows (`check_inverse` tells where it does not).

    Raises:
        MessageError: a field is not there or does not take the number.
    """
    numbers = np.asarray(values, np.float64)
    for operation in reversed(stream.operations):
        numbers = operation.invert(numbers)
    header = getattr(message, 'header', None)
    if header is not None:
        header.stamp.sec, header.stamp.nanosec = divmod(int(stamp_ns), NS)
        if isinstance(stream, Command):
            header.frame_id = stream.frame_id
    position = 0
    for path in stream.fields:
        part = numbers[position:position + path.size].tolist()
        position += path.size
        owner, name = _owner(stream, path, message)
        try:
            if path.start is not None:
                _write_elements(stream, path, owner, name, part)
            elif path.joint is not None:
                names = _names(stream, path, owner)
                elements = list(getattr(owner, name))
                if path.joint not in names:
                    setattr(owner, _names_field(owner), [*names, path.joint])
                    names = [*names, path.joint]
                index = names.index(path.joint)
                # Joints named by another field, whose own numbers of this one come later or never.
                elements += [math.nan] * (index - len(elements))
                elements[index:index + 1] = part
                setattr(owner, name, elements)
            else:
                if isinstance(getattr(owner, name), int):  # ROS itself may not look
                    raise TypeError('it holds whole numbers')
                setattr(owner, name, part[0])
        except (AssertionError, TypeError) as error:
            raise MessageError(_text(stream, path, f'does not take {part}: {error}')) from None
    return message


def _write_elements(
        stream: Stream, path: FieldPath, owner: Any, name: str, part: list[float]) -> None:
    elements = list(getattr(owner, name))
    if path.start > len(elements):
        raise MessageError(_text(
            stream, path, f'would leave elements {len(elements)} to {path.start - 1} unset'))
    elements[path.start:path.stop] = part
    setattr(owner, name, elements)


def _owner(stream: Stream, path: FieldPath, message: Any) -> tuple[Any, str]:
    for name in path.attributes:
        owner, message = message, getattr(message, name, None)
        if message is None:
            raise MessageError(_text(
                stream, path, f'is not there: {_kind(owner)} has the fields {_fields(owner)}'))
    return owner, name


def _names_field(owner: Any) -> str | None:
    return next((n for n in ('name', 'joint_names') if hasattr(owner, n)), None)


def _names(stream: Stream, path: FieldPath, owner: Any) -> list[str]:
    field = _names_field(owner)
    if field is None:
        raise MessageError(_text(
            stream, path, f'needs the names of the joints: {_kind(owner)} has neither a field '
            'name nor joint_names'))
    return list(getattr(owner, field))


def _joint_index(stream: Stream, path: FieldPath, owner: Any, length: int) -> int:
    names = _names(stream, path, owner)
    if path.joint not in names:
        raise MessageError(_text(stream, path, f'is not there: the joints are {names}'))
    index = names.index(path.joint)
    if index >= length:
        raise MessageError(_text(stream, path, f'is not there: {length} values for {len(names)} '
                                               'joints'))
    return index


def _text(stream: Stream, path: FieldPath, what: str) -> str:
    return f'topic {stream.topic} ({stream.type}): field {path.text} {what}'


def _kind(value: Any) -> str:
    return type(value).__name__


def _fields(owner: Any) -> str:
    names = getattr(owner, '__slots__', None) or getattr(owner, '__dict__', {})
    found = sorted(name.strip('_') for name in names if name != '_check_fields')
    return ', '.join(found) or 'none'


def check_fields(stream: Stream, message: Any) -> None:
    """Check the spec's fields against a message with its defaults.

    Elements and joints of a list are known only when a message arrives; everything else is
    checked.

    Raises:
        MessageError: a field is not there or is not of numbers.
    """
    for path in stream.fields:
        owner, name = _owner(stream, path, message)
        value = getattr(owner, name)
        listed = hasattr(value, '__len__') and not isinstance(value, str)
        if listed != (path.start is not None or path.joint is not None):
            raise MessageError(_text(
                stream, path, 'is a list: say which elements, as in [0] or [0:3]' if listed
                else f'is no list but {_kind(value)}'))
        if not listed and not isinstance(value, (int, float)):
            raise MessageError(_text(
                stream, path, f'is no number but has the fields {_fields(value)}'))
        if isinstance(stream, Command) and np.asarray(value).dtype.kind in 'biu':
            raise MessageError(_text(
                stream, path, 'holds whole numbers or booleans, a command is of real numbers'))
        if path.joint is not None:
            _names(stream, path, owner)


def check_limits(command: Command, new: Callable[[], Any]) -> None:
    """Check that a command can be written at its limits, and reads back as what was written.

    Args:
        command: the command; what lies between its limits is then written as well.
        new: returns a message with its defaults.

    Raises:
        MessageError: a field does not take the numbers or loses them.
    """
    lower = np.array([d.lower for d in command.dimensions])
    upper = np.array([d.upper for d in command.dimensions])
    for values in (lower, upper):
        found = read(command, write(command, values, new(), 0))
        # A float32 field may round; an overflow or a wrong element is no rounding.
        if not np.all(np.abs(found - values) <= 1e-3 * (upper - lower)):
            raise MessageError(
                f'topic {command.topic} ({command.type}): wrote the limits {values.tolist()}, '
                f'read {found.tolist()}: the fields do not hold them')


def check_inverse(stream: Stream, message_type: Any, lower: np.ndarray, upper: np.ndarray) -> None:
    """Check that `write` then `read` gives the same float32 numbers.

    Tried with zeros and 256 seeded draws between `lower` and `upper` (stream.size,), where these
    are finite, else between -10 and 10.

    Args:
        stream: the signal or command.
        message_type: a callable that returns a message with its defaults.
        lower: smallest value of each number.
        upper: largest value of each number.

    Raises:
        MessageError: names the operation or the field that does not keep the numbers.
    """
    generator = np.random.default_rng(0)
    low = np.where(np.isfinite(lower), lower, -10.0)
    high = np.where(np.isfinite(upper), upper, 10.0)
    draws = generator.uniform(low, high, (256, stream.size))
    for values in [np.clip(np.zeros(stream.size), low, high), *draws]:
        values = values.astype(np.float32)
        found = read(stream, write(stream, values, message_type(), 0))
        if not np.array_equal(found, values):
            cause = ' and '.join(operation.name for operation in stream.operations)
            raise MessageError(
                f'topic {stream.topic} ({stream.type}): '
                + (f'the operation {cause} has no exact inverse here' if cause
                   else 'the fields do not keep the numbers')
                + f': wrote {values.tolist()}, read {found.tolist()}')


def write_topics(
        streams: Sequence[Stream], values: np.ndarray, stamp_ns: int,
        new: Callable[[str], Any]) -> dict[str, Any]:
    """Write an observation or an action into one message for each topic.

    Args:
        streams: the spec's observations or actions.
        values: their numbers, concatenated in order.
        stamp_ns: goes into the headers.
        new: returns a message with its defaults for a type, such as `blank`.

    Returns:
        topic -> message. Streams of one topic share one message.
    """
    messages: dict[str, Any] = {}
    position = 0
    for stream in streams:
        part = values[position:position + stream.size]
        position += stream.size
        if stream.topic not in messages:
            messages[stream.topic] = new(stream.type)
        write(stream, part, messages[stream.topic], stamp_ns)
    return messages
