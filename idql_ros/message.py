"""One message <-> numbers: `read`, `write`, `header_of`, and plain messages for where no ROS is.

Messages are used by attribute, never by class, so that the same code reads the messages of rclpy,
of rosbags and the plain ones made by `blank`. Nothing here needs ROS until `ros_class` is called.
"""

from __future__ import annotations

import array
from collections.abc import Callable, Collection, Iterable, Sequence
import functools
import importlib
import math
import operator
from typing import Any, NoReturn

from idql_ros import operations
from idql_ros.spec import Command, FieldPath, JOINT_TRAJECTORY, Stream
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
    'sensor_msgs/msg/LaserScan':
        'std_msgs/Header header, float angle_min, float angle_max, float angle_increment, '
        'float time_increment, float scan_time, float range_min, float range_max, '
        'sequence<float> ranges, sequence<float> intensities',
    'sensor_msgs/msg/Range':
        'std_msgs/Header header, uint8 radiation_type, float field_of_view, float min_range, '
        'float max_range, float range, float variance',
    'trajectory_msgs/msg/JointTrajectory':
        'std_msgs/Header header, sequence<string> joint_names, '
        'sequence<trajectory_msgs/JointTrajectoryPoint> points',
    'trajectory_msgs/msg/JointTrajectoryPoint':
        'sequence<double> positions, sequence<double> velocities, sequence<double> accelerations, '
        'sequence<double> effort, builtin_interfaces/Duration time_from_start',
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
        '__msgtype__': message_type,
        # As the classes of rclpy have it.
        'get_fields_and_field_types': staticmethod(lambda: dict(definition))})


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


def header_of(message: Any) -> Any | None:
    """Return the std_msgs/Header of a message; None where it has none.

    A field of this name may be anything in somebody's own type, for example a number.
    """
    header = getattr(message, 'header', None)
    is_header = _headers.get(type(header))
    if is_header is None:
        stamp = getattr(header, 'stamp', None)
        is_header = (hasattr(header, 'frame_id') and hasattr(stamp, 'sec')
                     and hasattr(stamp, 'nanosec'))
        if len(_headers) >= _MOST_HEADERS:
            _headers.clear()
        _headers[type(header)] = is_header
    return header if is_header else None


# By the class of what a field `header` holds, as every message is asked. Each bag that is opened
# may bring classes of its own.
_headers: dict[type, bool] = {}
_MOST_HEADERS = 1000


def stamp_ns(message: Any, received_ns: int) -> int:
    """Return the time of a message in ns: its header's stamp, else when it was received."""
    header = header_of(message)
    return received_ns if header is None else time_message_ns(header.stamp)


def read(stream: Stream, message: Any) -> np.ndarray:
    """Return the numbers (stream.size,) float32 that the spec takes from a message.

    What is not finite in the message is not finite in the result.

    Raises:
        MessageError: a field, element or joint is not there, or is not a number, or the message
            is not in the frame that the spec states, or a trajectory is not the one point that
            is sent.
    """
    reader = _readers.get(id(stream))
    if reader is None or reader.message_class is not type(message):
        reader = _new_reader(stream, message)
    return reader.read(message)


def concerns(stream: Stream, message: Any) -> bool:
    """Return whether a message is for a stream at all.

    Of one topic with several publishers, as an arm and a gripper on joint_states, a message that
    names other joints only is for another stream. Any other message that cannot be read is for
    this one: `read` says why.
    """
    try:
        reader = _readers.get(id(stream))
        if reader is None or reader.message_class is not type(message):
            reader = _new_reader(stream, message)
    except MessageError:
        return True
    # A loop is quicker than any(): nearly every message has the first joint.
    for get_names, joints in reader.named:
        try:
            names = get_names(message)
            if not len(names) or not isinstance(names[0], str):
                return True
        except (AttributeError, TypeError, LookupError):
            return True
        for joint in joints:
            if joint in names:
                return True
    return not reader.named


def _new_reader(stream: Stream, message: Any) -> _Reader:
    if len(_readers) >= _MOST_READERS:
        _readers.clear()
    reader = _readers[id(stream)] = _Reader(stream, message)
    return reader


def why_unreadable(stream: Stream, message: Any) -> str:
    """Return why the numbers of a message cannot be read; empty where they can."""
    try:
        read(stream, message)
    except MessageError as error:
        return str(error)
    return ''


class _Reader:
    """How the numbers of a stream are taken from messages of one class, worked out once.

    A bag has thousands of messages a second to be read. This only reads; why a message cannot be
    read is found by `_refuse`, which looks at it again.
    """

    def __init__(self, stream: Stream, message: Any) -> None:
        # Kept, so that no other stream gets its id.
        self._stream = stream
        self.message_class = type(message)
        self._frame_id = stream.frame_id if header_of(message) is not None else ''
        self._is_trajectory = _is_sent_trajectory(stream)
        groups = _taken_together(stream.fields)
        # For each list of joints that the stream takes by name: how to get the names of those that
        # a message has, and those that the stream takes.
        self.named = [
            (_names_getter(stream, paths[0], message), tuple(path.joint for path in paths))
            for paths in groups if paths[0].joint is not None]
        self._take = _joined([_taker(stream, paths, message) for paths in groups])

    def read(self, message: Any) -> np.ndarray:
        stream = self._stream
        if self._frame_id and message.header.frame_id != self._frame_id:
            raise MessageError(
                f'topic {stream.topic} ({stream.type}): expected the frame_id {self._frame_id} '
                f'that the spec states, found {message.header.frame_id!r}')
        if self._is_trajectory:
            _check_points(stream, message)
        try:
            numbers = self._take(message)
            # Unlike numpy, array takes no text for a number, and is quicker at so few.
            if not stream.operations:
                return np.frombuffer(array.array('f', numbers), np.float32)
            if not isinstance(numbers, np.ndarray):
                numbers = np.frombuffer(array.array('d', numbers))
        except _NOT_TAKEN:
            numbers = self._take_bytes(message)
        return _apply(stream, numbers)

    def _take_bytes(self, message: Any) -> np.ndarray:
        """Return the numbers where some are of type byte, which rclpy gives as bytes.

        rosbags gives them as numbers with a sign.
        """
        try:
            return np.array(array.array('d', [
                int.from_bytes(n, 'little', signed=True) if isinstance(n, bytes) and len(n) == 1
                else n for n in self._take(message)]))
        except _NOT_TAKEN:
            _refuse(self._stream, message)


_NOT_TAKEN = (AttributeError, TypeError, ValueError, LookupError, OverflowError)

# By the id of the stream: to hash a stream takes longer than to read a message.
_readers: dict[int, _Reader] = {}
_MOST_READERS = 1000


def _is_sent_trajectory(stream: Stream) -> bool:
    return isinstance(stream, Command) and stream.type == JOINT_TRAJECTORY


def _check_points(stream: Stream, message: Any) -> None:
    """Refuse a trajectory that is not one point: no command of the policy would do the same."""
    points = getattr(message, 'points', None)
    if not hasattr(points, '__len__') or len(points) == 1:
        return
    found = (f'{len(points)}: the motion of a planner, of which one point says little'
             if len(points) else 'none: an empty trajectory stops the controller, and is no '
             'target that the policy could send')
    raise MessageError(f'topic {stream.topic} ({stream.type}): expected one point, as is sent; '
                       f'found {found}')


def _taken_together(paths: Sequence[FieldPath]) -> list[list[FieldPath]]:
    """Return the paths in their order; plain numbers, or joints of one list, are taken at once."""
    groups: list[list[FieldPath]] = []
    for path in paths:
        first = groups[-1][0] if groups else None
        if first is not None and (
                first.steps == path.steps if first.joint is not None and path.joint is not None
                else _is_plain(first) and _is_plain(path)):
            groups[-1].append(path)
        else:
            groups.append([path])
    return groups


def _is_plain(path: FieldPath) -> bool:
    return not path.listed and _has_no_index(path.steps)


def _taker(
        stream: Stream, paths: list[FieldPath], message: Any
) -> Callable[[Any], Iterable[float]]:
    """Return a function from a message to the numbers at paths that are taken together."""
    path = paths[0]
    if path.joint is not None:
        return _joints_taker(stream, paths, message)
    if not path.listed:
        get = _getter(*[p.steps for p in paths])
        return get if len(paths) > 1 else lambda m: (get(m),)
    get, start, stop, size = _getter(path.steps), path.start, path.stop, path.size

    def take_all(m: Any) -> Iterable[float]:
        values = get(m)
        if isinstance(values, (np.ndarray, array.array)):
            return np.array(values, np.float64)
        return list(values)

    def take_elements(m: Any) -> Iterable[float]:
        values = get(m)[start:stop]
        if len(values) != size:
            raise IndexError
        return values.tolist() if hasattr(values, 'tolist') else list(values)

    return take_all if stop is None else take_elements


def _joints_taker(
        stream: Stream, paths: list[FieldPath], message: Any
) -> Callable[[Any], Iterable[float]]:
    joints = [path.joint for path in paths]
    get = _getter(paths[0].steps)
    get_names = _names_getter(stream, paths[0], message)
    known: tuple[Any, Callable[[Any], Any] | None] = None, None

    def take(m: Any) -> Iterable[float]:
        nonlocal known
        names, pick = known
        found = get_names(m)
        if found != names:
            order = list(found) or list(stream.joints)
            pick = operator.itemgetter(*[order.index(joint) for joint in joints])
            known = found[:], pick
        return pick(get(m)) if len(joints) > 1 else (pick(get(m)),)

    return take


def _names_getter(stream: Stream, path: FieldPath, message: Any) -> Callable[[Any], Any]:
    """Return a function from a message to the names of the joints in the list at a path."""
    if _is_sent_trajectory(stream):  # known also where the first message has no points
        return operator.attrgetter('joint_names')
    return _getter(_names_steps(stream, path, _passed(stream, path, message)))


def _joined(takers: list[Callable[[Any], Iterable[float]]]) -> Callable[[Any], Iterable[float]]:
    if len(takers) == 1:
        return takers[0]
    return lambda message: [number for take in takers for number in take(message)]


def _has_no_index(steps: Sequence[str | int]) -> bool:
    return all(isinstance(step, str) for step in steps)


def _getter(*paths: Sequence[str | int]) -> Callable[[Any], Any]:
    """Return a function from a message to what is at a path, or at each of several plain ones."""
    if all(map(_has_no_index, paths)):
        return operator.attrgetter(*['.'.join(steps) for steps in paths])
    steps, = paths

    def get(value: Any) -> Any:
        for step in steps:
            value = getattr(value, step) if isinstance(step, str) else value[step]
        return value

    return get


def _apply(stream: Stream, numbers: np.ndarray) -> np.ndarray:
    """Return float64 numbers of a message as the float32 ones of the policy."""
    try:
        for operation in stream.operations:
            numbers = operations.apply(operation, numbers)
    except ValueError as error:
        raise MessageError(_text(stream, stream.fields[0], str(error))) from None
    with np.errstate(over='ignore'):
        return numbers.astype(np.float32)


def invert(stream: Stream, values: np.ndarray) -> np.ndarray:
    """Return float64 numbers for a message of which `read` makes `values`."""
    numbers = np.asarray(values, np.float64)
    for operation, size in reversed(list(zip(stream.operations, stream.sizes, strict=False))):
        numbers = operations.invert(operation, numbers, size)
    return numbers


def _refuse(stream: Stream, message: Any) -> NoReturn:
    """Say why the numbers of a message cannot be taken."""
    for path in stream.fields:
        passed = _passed(stream, path, message)
        value = passed[-1]
        if isinstance(value, str):  # also one that float() would take
            raise MessageError(_text(stream, path, 'is no number but str'))
        if not path.listed:
            if hasattr(value, '__len__') or not hasattr(value, '__float__'):
                raise MessageError(_text(stream, path, f'is no number but {_described(value)}'))
        elif not hasattr(value, '__len__'):
            raise MessageError(_text(
                stream, path, f'is no list of numbers but {_described(value)}'))
        elif path.joint is not None:
            _check_joint(stream, path, _order(stream, path, passed), len(value))
        elif path.stop is not None and len(value) < path.stop:
            raise MessageError(_text(stream, path, f'has {len(value)} elements'))
    raise MessageError(
        f'topic {stream.topic} ({stream.type}): expected numbers in '
        f'{", ".join(path.text for path in stream.fields)}, found something else')


def _order(stream: Stream, path: FieldPath, passed: list[Any]) -> list[str]:
    """Return the names of the joints in the message that a path passes, else in the spec."""
    names = _getter(_names_steps(stream, path, passed))(passed[0])
    return list(names) or list(stream.joints)


def _check_joint(stream: Stream, path: FieldPath, order: list[str], length: int) -> None:
    if not order:
        raise MessageError(_text(
            stream, path, 'cannot be found: the message names no joints; state their order as '
            f'joints in the spec, or use an index, as in {path.steps[-1]}[0]'))
    if path.joint not in order:
        raise MessageError(_text(stream, path, f'is not there: the joints are {order}'))
    if order.index(path.joint) >= length:
        raise MessageError(_text(
            stream, path, f'is not there: {length} values for {len(order)} joints'))


def write(stream: Stream, values: np.ndarray, message: Any, stamp_ns: int) -> Any:
    """Write numbers (stream.size,) into `message`, stamp it, and return it.

    The inverse of `read`: reading the message gives the same float32 numbers, within what the
    precision of the message's fields and the operations allow (`check_inverse` tells where it
    does not).

    Raises:
        MessageError: a field is not there or does not take the number, or no message has these
            numbers (two parallel columns are no rotation).
    """
    numbers = invert(stream, values)
    if stream.operations and np.isfinite(values).all() and not np.isfinite(numbers).all():
        raise MessageError(
            f'topic {stream.topic} ({stream.type}): the operation {_operations(stream)} has no '
            f'inverse of {np.asarray(values).tolist()}')
    header = header_of(message)
    if header is not None:
        header.stamp.sec, header.stamp.nanosec = divmod(int(stamp_ns), NS)
        if stream.frame_id:
            header.frame_id = stream.frame_id
    _write_names(stream, message)
    position = 0
    for path in stream.fields:
        size = len(numbers) if path.size is None else path.size
        part = numbers[position:position + size].tolist()
        position += size
        passed = _passed(stream, path, message, _append)
        owner, name = passed[-2], path.steps[-1]
        try:
            if path.listed:
                setattr(owner, name, _elements(stream, path, passed, part))
            else:
                if isinstance(passed[-1], (int, bytes)):  # ROS itself may not look
                    raise TypeError('it holds whole numbers')
                setattr(owner, name, part[0])
        except (AssertionError, TypeError) as error:
            raise MessageError(_text(stream, path, f'does not take {part}: {error}')) from None
    if isinstance(stream, Command) and stream.time_from_start is not None:
        duration = message.points[0].time_from_start
        duration.sec, duration.nanosec = divmod(round(stream.time_from_start * NS), NS)
    return message


def _is_of_joints(stream: Stream, path: FieldPath) -> bool:
    return path.joint is not None or (path.listed and bool(stream.joints))


def _write_names(stream: Stream, message: Any) -> None:
    """Name the joints in a message: those it has, else those of the spec, and those of paths."""
    for path in stream.fields:
        if _is_of_joints(stream, path):
            passed = _passed(stream, path, message, _append)
            names = _order(stream, path, passed)
            if path.joint not in (None, *names):
                names.append(path.joint)
            *above, field = _names_steps(stream, path, passed)
            setattr(passed[len(above)], field, names)


def _elements(
        stream: Stream, path: FieldPath, passed: list[Any], part: list[float]) -> list[Any]:
    """Return the elements of a list with the part that the path takes replaced."""
    elements, start, stop = list(passed[-1]), path.start, path.stop
    if _is_of_joints(stream, path):
        names = _order(stream, path, passed)
        # Other joints' numbers of this field come later or never.
        elements += [math.nan] * (len(names) - len(elements))
        if path.joint is not None:
            start = names.index(path.joint)
            stop = start + 1
    if start > len(elements):
        raise MessageError(_text(
            stream, path, f'would leave elements {len(elements)} to {start - 1} unset'))
    elements[start:stop] = part
    return elements


def _passed(
        stream: Stream, path: FieldPath, message: Any,
        missing: Callable[[Any, str, int], Any] | None = None) -> list[Any]:
    """Return what lies on a path, from the message to the number or list at its end.

    Args:
        stream: for the error.
        path: its steps are walked.
        message: where the walk begins.
        missing: returns the element that a list does not have, of the list's owner, its name and
            the element's index.

    Raises:
        MessageError: a field or element is not there.
    """
    passed = [message]
    for i, step in enumerate(path.steps):
        value = passed[-1]
        if isinstance(step, str):
            found = getattr(value, step, None)
            if found is None or not _is_field(value, step):
                raise MessageError(_text(
                    stream, path, f'is not there: {_kind(value)} has the fields {_fields(value)}'))
        elif not hasattr(value, '__len__') or isinstance(value, str):
            raise MessageError(_text(
                stream, path, f'is not there: {path.steps[i - 1]} is no list but '
                f'{_described(value)}'))
        elif step < len(value):
            found = value[step]
        else:
            found = missing and missing(passed[-2], path.steps[i - 1], step)
            if found is None:
                raise MessageError(_text(
                    stream, path,
                    f'is not there: {path.steps[i - 1]} has {len(value)} elements'))
        passed.append(found)
    return passed


def _names_steps(stream: Stream, path: FieldPath, passed: list[Any]) -> tuple[str | int, ...]:
    """Return the path to the names of the joints in a list, in the innermost that has them.

    A JointTrajectory has them beside its points, not in each.
    """
    owners = passed[:-1]
    for i in reversed(range(len(owners))):
        for name in ('name', 'joint_names'):
            names = getattr(owners[i], name, None)
            if hasattr(names, '__len__') and not isinstance(names, str):
                return (*path.steps[:i], name)
    raise MessageError(_text(
        stream, path, f'needs the names of the joints: {_kind(owners[-1])} has neither a field '
        f'name nor joint_names, it has the fields {_fields(owners[-1])}'))


def _element_type(owner: Any, name: str) -> str:
    """Return the type of the elements of a list in a message of rclpy, or of a plain one."""
    listed = type(owner).get_fields_and_field_types()[name]
    return listed.removeprefix('sequence<').partition('>')[0].partition('[')[0].partition(',')[0]


def _new_element(owner: Any, name: str, _: int) -> Any:
    """Return a new message for a list of messages, of the kind of its owner."""
    package, slash, kind = _element_type(owner, name).partition('/')
    if not slash:
        return None
    element = f'{package}/msg/{kind}'
    return blank(element) if hasattr(owner, '__msgtype__') else ros_class(element)()


def _append(owner: Any, name: str, index: int) -> Any:
    """Append a new message to a list of messages, unless that would leave others unset."""
    elements = list(getattr(owner, name))
    if index != len(elements) or (element := _new_element(owner, name, index)) is None:
        return None
    setattr(owner, name, [*elements, element])
    return element


def _text(stream: Stream, path: FieldPath, what: str) -> str:
    return f'topic {stream.topic} ({stream.type}): field {path.text} {what}'


def _operations(stream: Stream) -> str:
    return ' and '.join(operation.name for operation in stream.operations)


def _kind(value: Any) -> str:
    return type(value).__name__


def _described(value: Any) -> str:
    fields = _fields(value)
    return _kind(value) if fields == 'none' else f'{_kind(value)} with the fields {fields}'


def _slots(owner: Any) -> Collection[str]:
    # Those of rclpy begin with an underscore.
    return getattr(owner, '__slots__', None) or getattr(owner, '__dict__', {})


def _is_field(owner: Any, name: str) -> bool:
    """Return whether an attribute is a field: no constant of the type, no method of its class."""
    names = _slots(owner)
    return name in names or f'_{name}' in names


def _fields(owner: Any) -> str:
    found = sorted(name.strip('_') for name in _slots(owner) if name != '_check_fields')
    return ', '.join(found) or 'none'


def check_fields(stream: Stream, message: Any) -> None:
    """Check the spec's fields against a message with its defaults, plain or of rclpy.

    Elements and joints of a list are known only when a message arrives; everything else is
    checked.

    Raises:
        MessageError: a field is not there or is not of numbers, or a frame is stated for a type
            without a header.
    """
    if stream.frame_id and header_of(message) is None:
        raise MessageError(
            f'topic {stream.topic} ({stream.type}): expected no frame_id, as the type has no '
            f'header, found {stream.frame_id}; it has the fields {_fields(message)}')
    for path in stream.fields:
        passed = _passed(stream, path, message, _new_element)
        value, owner = passed[-1], passed[-2]
        # rclpy gives one of type byte as bytes.
        listed = hasattr(value, '__len__') and not isinstance(value, (str, bytes))
        if listed != path.listed:
            raise MessageError(_text(
                stream, path, 'is a list: say which elements, as in [0] or [0:3]' if listed
                else f'is no list but {_kind(value)}'))
        if not listed and not isinstance(value, (int, float, bytes)):
            raise MessageError(_text(
                stream, path, f'is no number but has the fields {_fields(value)}'))
        if listed and not _is_of_numbers(element := _element_type(owner, path.steps[-1])):
            raise MessageError(_text(
                stream, path, f'is a list of {element}, not of numbers' + (
                    '; say which field of it, as in points[0].positions[0]'
                    if '/' in element else '')))
        if isinstance(stream, Command) and (
                np.asarray(value).dtype.kind in 'biuS'
                or (listed and _element_type(owner, path.steps[-1]) == 'octet')):
            raise MessageError(_text(
                stream, path, 'holds whole numbers or booleans, a command is of real numbers'))
        if _is_of_joints(stream, path):
            _names_steps(stream, path, passed)


def _is_of_numbers(element_type: str) -> bool:
    return '/' not in element_type and not element_type.startswith(('string', 'wstring'))


def _can_be_sent(stream: Stream, values: np.ndarray) -> np.ndarray:
    """Return numbers (n, stream.size) moved to the nearest ones that the operations can give.

    A yaw beyond pi becomes the same direction, a pair its cosine and sine, six numbers two columns
    of a rotation. What is next to no such numbers is left out.
    """
    if not stream.operations:
        return values.astype(np.float32)
    moved = np.array([_apply(stream, invert(stream, row)) for row in values])
    moved = moved[np.isfinite(moved).all(axis=1)]
    if not len(moved):
        raise MessageError(
            f'topic {stream.topic} ({stream.type}): the operation {_operations(stream)} gives '
            f'nothing between {values.min(axis=0).tolist()} and {values.max(axis=0).tolist()}')
    return moved


@np.errstate(over='ignore')
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
    # Six numbers that are all at a limit are no rotation: what lies between is tried as well.
    between = np.random.default_rng(0).uniform(lower, upper, (16, command.size))
    for values in _can_be_sent(command, np.array([lower, upper, *between])):
        found = read(command, write(command, values, new(), 0))
        # A float32 field may round; an overflow or a wrong element is no rounding.
        if not np.all(np.abs(found - values) <= 1e-3 * (upper - lower)):
            raise MessageError(
                f'topic {command.topic} ({command.type}): wrote the limits {values.tolist()}, '
                f'read {found.tolist()}: the fields do not hold them')


@np.errstate(over='ignore')
def check_inverse(stream: Stream, message_type: Any, lower: np.ndarray, upper: np.ndarray) -> None:
    """Check that `write` then `read` gives the same float32 numbers.

    Tried with zeros and 256 seeded draws between `lower` and `upper` (stream.size,), where these
    are finite, else between -10 and 10, moved to numbers that the stream can give. What goes
    through operations may differ by their rounding, a millionth of the largest number; without
    operations every bit counts.

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
    wanted = _can_be_sent(stream, np.array([np.clip(np.zeros(stream.size), low, high), *draws]))
    rounding = 1e-6 * np.abs(wanted).max(axis=0) if stream.operations else 0.0
    for values in wanted:
        found = read(stream, write(stream, values, message_type(), 0))
        if not np.all((found == values) | (np.abs(found - values) <= rounding)):
            raise MessageError(
                f'topic {stream.topic} ({stream.type}): '
                + (f'the operation {_operations(stream)} has no exact inverse here'
                   if stream.operations else 'the fields do not keep the numbers')
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
        topic -> message. Streams of one topic share one message, and a number that none of them
        gives for a joint which another one names is NaN.
    """
    messages: dict[str, Any] = {}
    for stream in streams:
        if stream.topic not in messages:
            messages[stream.topic] = new(stream.type)
        # All names come first, so that every list of the joints gets as long as they are.
        _write_names(stream, messages[stream.topic])
    position = 0
    for stream in streams:
        part = values[position:position + stream.size]
        position += stream.size
        write(stream, part, messages[stream.topic], stamp_ns)
    return messages
