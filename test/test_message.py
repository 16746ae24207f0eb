"""One message and its numbers: every style of field, both ways, and what is refused."""

import math
from types import SimpleNamespace

from idql_ros import message as messages
from idql_ros import spec as specs
from idql_ros.message import MessageError
import numpy as np
import pytest

LIMITED = {'kind': 'velocity', 'unit': '1', 'lower': -1.0, 'upper': 1.0, 'stop': 'zero'}


def stream(message_type, *fields, operations=(), command=False, frame_id='', topic='here'):
    """Return a signal, or a command, of these fields."""
    entry = {'name': 'it', 'topic': topic, 'type': message_type, 'fields': list(fields),
             'operations': list(operations)}
    probe = {**entry, 'unit': '1', 'max_age': 1.0}
    action = {'name': 'out', 'topic': 'out', 'type': 'std_msgs/msg/Float64', 'fields': ['data'],
              'dimensions': [LIMITED]}

    def parse(actions):
        return specs.parse({'spec_version': 1, 'name': 'robot', 'rate': 10, 'tick': 'timer',
                            'observations': [probe], 'actions': actions}, 'robot.yaml')

    signal, = parse([action]).observations
    if not command:
        return signal
    return parse([
        {**entry, 'frame_id': frame_id, 'dimensions': [LIMITED] * signal.size}]).actions[0]


def written(made, values, stamp_ns=0):
    """Return a plain message with these values."""
    return messages.write(made, np.array(values), messages.blank(made.type), stamp_ns)


JOINTS = 'sensor_msgs/msg/JointState'
ODOMETRY = 'nav_msgs/msg/Odometry'
ORIENTATION = tuple(f'pose.pose.orientation.{axis}' for axis in 'xyzw')


def joint_state(names, **values):
    """Return a plain JointState."""
    message = messages.blank(JOINTS)
    message.name = names
    for field, numbers in values.items():
        setattr(message, field, numbers)
    return message


@pytest.mark.parametrize('message_type', sorted(messages.DEFINITIONS))
def test_plain_types_are_those_of_the_installed_ros(message_type):
    package = message_type.split('/')[0]
    pytest.importorskip(f'{package}.msg', reason=f'the ROS package {package} is not installed')
    real = messages.ros_class(message_type)
    plain = dict(reversed(field.split()) for field in
                 messages.DEFINITIONS[message_type].split(', '))
    assert list(plain.items()) == list(real.get_fields_and_field_types().items())
    # And so are the values a new message has.
    made, made_real = messages.blank(message_type), real()
    for name, field_type in plain.items():
        value, value_real = getattr(made, name), getattr(made_real, name)
        if '/' in field_type and '<' not in field_type:
            assert type(value).__name__ == type(value_real).__name__
        else:
            assert np.array_equal(value, value_real), name
            assert type(value) is type(value_real) or hasattr(value, '__len__')


def test_unit_quaternion_is_the_default_as_in_ros():
    assert messages.blank('geometry_msgs/msg/Quaternion').w == 1.0


@pytest.mark.parametrize(('made', 'values'), [
    (stream(ODOMETRY, 'pose.pose.position.x', 'twist.twist.angular.z'), [0.1, -2.0]),
    (stream('std_msgs/msg/Float64MultiArray', 'data[0]', 'data[1:4]'), [0.1, 0.2, 0.3, 0.4]),
    (stream(ODOMETRY, 'pose.covariance[34:36]'), [0.5, 0.25]),
    (stream(JOINTS, 'position[elbow]', 'velocity[elbow]', 'position[base/pan-1]',
            'velocity[base/pan-1]'), [0.1, 0.2, 0.3, 0.4]),
    (stream(JOINTS, 'position[a]', 'position[b]', 'velocity[b]', 'velocity[a]'), [1, 2, 3, 4]),
    (stream(ODOMETRY, *ORIENTATION, operations=['yaw']), [3.1]),
    (stream('std_msgs/msg/Float32', 'data'), [0.1]),
    (stream('std_msgs/msg/Float64', 'data', operations=[{'scale': 0.001}, {'offset': -3}]), [0.1]),
    (stream('geometry_msgs/msg/Twist', 'linear.x', 'linear.y', operations=[{'scale': [2, -3]}],
            command=True), [0.7, 0.1]),
], ids=['nested', 'index_slice', 'fixed_array', 'joint', 'joint_order', 'yaw', 'float32',
        'scale_offset', 'scale_each'])
def test_what_is_written_is_read_exactly(made, values):
    values = np.array(values, np.float32)
    found = messages.read(made, written(made, values))
    assert found.dtype == np.float32 and found.shape == (made.size,)
    assert np.array_equal(found, values)
    limit = np.full(made.size, 3.0)
    messages.check_inverse(made, lambda: messages.blank(made.type), -limit, limit)


def test_fields_are_read_in_the_order_of_the_spec_whatever_the_message_has():
    made = stream(JOINTS, 'position[elbow]', 'position[shoulder]', 'velocity[elbow]')
    for names in (['shoulder', 'wrist', 'elbow'], ['elbow', 'shoulder', 'wrist']):
        message = joint_state(names, position=[{'shoulder': 1, 'wrist': 2, 'elbow': 3}[n]
                                               for n in names],
                              velocity=[{'shoulder': 4, 'wrist': 5, 'elbow': 6}[n] for n in names])
        assert messages.read(made, message).tolist() == [3.0, 1.0, 6.0]


def test_joint_written_beside_named_joints_leaves_the_others_unknown():
    message = written(stream(JOINTS, 'position[a]', 'position[b]', 'velocity[b]'), [1, 2, 3])
    assert list(message.name) == ['a', 'b']
    assert message.position.tolist() == [1.0, 2.0]
    assert math.isnan(message.velocity[0]) and message.velocity[1] == 3.0


def test_operations_are_applied_in_the_order_of_the_spec():
    message = SimpleNamespace(data=3.0)
    first_scale = stream('std_msgs/msg/Float64', 'data', operations=[{'scale': 2}, {'offset': 1}])
    first_offset = stream('std_msgs/msg/Float64', 'data', operations=[{'offset': 1}, {'scale': 2}])
    assert messages.read(first_scale, message).tolist() == [7.0]
    assert messages.read(first_offset, message).tolist() == [8.0]


@pytest.mark.parametrize(('axis', 'angle', 'yaw'), [
    ('z', 0.3, 0.3), ('z', -3.0, -3.0), ('z', 4.0, 4.0 - 2 * math.pi), ('x', 0.5, 0.0),
    ('y', 0.5, 0.0)])
def test_yaw_is_the_angle_about_the_vertical(axis, angle, yaw):
    message = messages.blank(ODOMETRY)
    orientation = message.pose.pose.orientation
    setattr(orientation, axis, math.sin(angle / 2))
    orientation.w = math.cos(angle / 2)
    made = stream(ODOMETRY, *ORIENTATION, operations=['yaw'])
    assert messages.read(made, message) == pytest.approx([yaw], abs=1e-6)
    both = stream(ODOMETRY, *ORIENTATION, operations=['yaw', 'cos_sin'])
    assert messages.read(both, message) == pytest.approx([math.cos(yaw), math.sin(yaw)], abs=1e-6)


def test_yaw_of_any_orientation_is_where_its_x_axis_points():
    made = stream(ODOMETRY, *ORIENTATION, operations=['yaw'])
    for x, y, z, w in np.random.default_rng(0).normal(size=(50, 4)):
        norm = math.sqrt(x * x + y * y + z * z + w * w)
        vector, w = np.array([x, y, z]) / norm, w / norm
        message = messages.blank(ODOMETRY)
        orientation = message.pose.pose.orientation
        orientation.x, orientation.y, orientation.z, orientation.w = *vector, w
        # The x axis, rotated by the quaternion (Rodrigues' formula).
        axis = np.array([1.0, 0.0, 0.0])
        turned = axis + 2 * np.cross(vector, np.cross(vector, axis) + w * axis)
        assert messages.read(made, message) == pytest.approx(
            [math.atan2(turned[1], turned[0])], abs=1e-6)


def test_cos_sin_gives_pairs_and_takes_them_back_to_angles():
    made = stream('std_msgs/msg/Float64MultiArray', 'data[0:2]', operations=['cos_sin'])
    angles = np.array([0.4, -2.5])
    pairs = [f(a) for a in angles for f in (np.cos, np.sin)]
    assert messages.read(made, SimpleNamespace(data=angles)) == pytest.approx(pairs)
    assert written(made, pairs).data == pytest.approx(angles)


@pytest.mark.parametrize(('made', 'named'), [
    # A float32 field rounds what a float64 one keeps.
    (stream('std_msgs/msg/Float32', 'data', operations=[{'scale': 0.1}]), 'operation scale'),
    (stream('std_msgs/msg/Float32', 'data', operations=[{'scale': 2}, {'offset': 7}]),
     'operation scale and offset'),
    # Of the draws, few are points of the unit circle.
    (stream('std_msgs/msg/Float64', 'data', operations=['cos_sin']), 'operation cos_sin'),
    (stream('std_msgs/msg/Float64MultiArray', 'data[0]', 'data[0]'), 'the fields do not keep'),
])
def test_what_does_not_come_back_is_refused_and_its_cause_is_named(made, named):
    limit = np.full(made.size, 10.0)
    with pytest.raises(MessageError, match=f'topic here .*{named}.*wrote .*, read ') as refused:
        messages.check_inverse(made, lambda: messages.blank(made.type), -limit, limit)
    assert '\n' not in str(refused.value)


def test_inverse_is_tried_between_the_limits_also_where_they_are_infinite():
    made = stream(ODOMETRY, *ORIENTATION, operations=['yaw'])

    def check(limit):
        messages.check_inverse(made, lambda: messages.blank(ODOMETRY), -np.array([limit]),
                               np.array([limit]))

    check(3.0)
    for limit in (4.0, math.inf):
        with pytest.raises(MessageError, match='yaw'):
            check(limit)


@pytest.mark.parametrize(('made', 'message', 'reason'), [
    (stream(ODOMETRY, 'pose.pose.positon.x'), messages.blank(ODOMETRY),
     'field pose.pose.positon.x is not there: Pose has the fields orientation, position'),
    (stream('std_msgs/msg/Float64MultiArray', 'data[1:3]'), SimpleNamespace(data=[1.0, 2.0]),
     r'field data\[1:3\] has 2 elements'),
    (stream('std_msgs/msg/Float64MultiArray', 'data[7]'), SimpleNamespace(data=[]),
     r'field data\[7\] has 0 elements'),
    (stream(JOINTS, 'position[knee]'), joint_state(['hip', 'ankle'], position=[1, 2]),
     r"field position\[knee\] is not there: the joints are \['hip', 'ankle'\]"),
    (stream(JOINTS, 'velocity[ankle]'), joint_state(['hip', 'ankle'], velocity=[1]),
     r'field velocity\[ankle\] is not there: 1 values for 2 joints'),
    (stream(ODOMETRY, 'pose.covariance[x]'), messages.blank(ODOMETRY),
     'needs the names of the joints: PoseWithCovariance has neither'),
    (stream(ODOMETRY, 'pose.pose'), messages.blank(ODOMETRY), 'is no number but Pose'),
    (stream(ODOMETRY, 'pose.covariance'), messages.blank(ODOMETRY), 'is no number but ndarray'),
    (stream(ODOMETRY, 'pose.pose.position.x[0]'), messages.blank(ODOMETRY),
     'is no list of numbers but float'),
    (stream(ODOMETRY, 'child_frame_id'), messages.blank(ODOMETRY), 'is no number but str'),
    # Text that could pass for a number is still none.
    (stream(ODOMETRY, 'child_frame_id'), SimpleNamespace(child_frame_id='1.5'), 'but str'),
    (stream(JOINTS, 'name[0]'), joint_state(['hip']), r'expected numbers in name\[0\]'),
])
def test_reading_what_is_not_there_says_what_there_is(made, message, reason):
    with pytest.raises(MessageError, match=rf'^topic here \({made.type}\): .*{reason}') as refused:
        messages.read(made, message)
    assert '\n' not in str(refused.value)


def test_what_is_not_finite_stays_so():
    made = stream('std_msgs/msg/Float64MultiArray', 'data[0:4]', operations=[{'scale': 2}])
    found = messages.read(made, SimpleNamespace(data=[math.nan, math.inf, -math.inf, 1e300]))
    assert np.isnan(found[0]) and np.isinf(found[1:]).all()


@pytest.mark.parametrize(('made', 'reason'), [
    (stream('std_msgs/msg/Float64MultiArray', 'data[2]'), 'would leave elements 0 to 1 unset'),
    (stream(ODOMETRY, 'pose.pose.positon.x'), 'is not there'),
    (stream(ODOMETRY, 'pose.covariance[x]'), 'needs the names of the joints'),
])
def test_writing_what_is_not_there_is_refused(made, reason):
    with pytest.raises(MessageError, match=reason):
        written(made, [1.0])


@pytest.mark.parametrize(('made', 'reason'), [
    (stream(ODOMETRY, 'pose.pose.x'), 'is not there'),
    (stream(ODOMETRY, 'pose.covariance'), r'is a list: say which elements, as in \[0\]'),
    (stream(ODOMETRY, 'pose.pose.position.x[0]'), 'is no list but float'),
    (stream(ODOMETRY, 'pose.pose'), 'is no number but has the fields orientation, position'),
    (stream(ODOMETRY, 'child_frame_id'), 'is no number'),
    (stream(ODOMETRY, 'pose.covariance[x]'), 'needs the names'),
])
def test_fields_that_no_message_of_the_type_has_are_found_before_one_comes(made, reason):
    with pytest.raises(MessageError, match=reason):
        messages.check_fields(made, messages.blank(made.type))


def test_fields_that_only_a_message_can_decide_pass_the_check():
    for made in (stream(JOINTS, 'position[elbow]', 'velocity[3]', 'effort[0:2]'),
                 stream(ODOMETRY, *ORIENTATION, 'pose.covariance[35]')):
        messages.check_fields(made, messages.blank(made.type))


def test_stamp_is_the_headers_else_the_time_of_receipt():
    message = written(stream(ODOMETRY, 'pose.pose.position.x'), [0.0], 12_345_678_901)
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (12, 345_678_901)
    assert messages.stamp_ns(message, 7) == 12_345_678_901
    assert messages.stamp_ns(messages.blank('std_msgs/msg/Float64'), 7) == 7


def test_command_carries_its_frame_and_a_signal_leaves_it():
    fields = ('geometry_msgs/msg/TwistStamped', 'twist.linear.x')
    assert written(stream(*fields, command=True, frame_id='odom'), [0]).header.frame_id == 'odom'
    message = messages.blank(fields[0])
    message.header.frame_id = 'base_link'
    messages.write(stream(*fields), np.zeros(1), message, 0)
    assert message.header.frame_id == 'base_link'


def test_streams_of_one_topic_share_one_message():
    position = stream(JOINTS, 'position[a]', 'position[b]')
    velocity = stream(JOINTS, 'velocity[b]', 'velocity[a]')
    other = stream('std_msgs/msg/Float64', 'data', topic='there')
    found = messages.write_topics(
        [position, velocity, other], np.array([1, 2, 3, 4, 5.0]), 10**9, messages.blank)
    assert list(found) == ['here', 'there']
    assert (found['here'].position.tolist(), found['here'].velocity.tolist()) == ([1, 2], [4, 3])
    assert (found['there'].data, found['here'].header.stamp.sec) == (5.0, 1)


def test_plain_message_has_the_precision_of_the_real_one():
    message = messages.blank('std_msgs/msg/Float32')
    message.data = 0.1
    assert message.data == float(np.float32(0.1))
    with pytest.raises((AttributeError, KeyError)):
        message.value = 1


def test_types_that_cannot_be_made_are_refused_by_name():
    with pytest.raises(MessageError, match='message type tf2_msgs/msg/TFMessage: cannot be made'):
        messages.blank('tf2_msgs/msg/TFMessage')
    with pytest.raises(MessageError, match='no_such_msgs/msg/Thing: not installed'):
        messages.ros_class('no_such_msgs/msg/Thing')


@pytest.mark.parametrize('made', [
    stream(ODOMETRY, 'pose.pose.position.x', 'pose.covariance[3:5]', 'twist.twist.linear.y'),
    stream(JOINTS, 'position[a]', 'position[b]', 'effort[a]', 'effort[b]'),
    stream('std_msgs/msg/Float32MultiArray', 'data[0:3]'),
    stream('geometry_msgs/msg/TwistStamped', 'twist.linear.x', command=True, frame_id='odom'),
    stream('sensor_msgs/msg/Range', 'range', 'max_range'),
], ids=lambda made: made.type.rpartition('/')[2])
def test_plain_messages_become_the_bytes_that_ros_reads(made):
    typesys = pytest.importorskip('rosbags.typesys', reason='rosbags is not installed')
    serialization = pytest.importorskip('rclpy.serialization', reason='rclpy is not installed')
    typestore = typesys.get_typestore(typesys.Stores.ROS2_JAZZY)
    values = np.random.default_rng(0).normal(size=made.size).astype(np.float32)
    raw = bytes(typestore.serialize_cdr(written(made, values, 5 * 10**9 + 1), made.type))
    real = serialization.deserialize_message(raw, messages.ros_class(made.type))
    of_rosbags = typestore.deserialize_cdr(raw, made.type)
    for message in (real, of_rosbags):
        assert np.array_equal(messages.read(made, message), values)
        assert messages.stamp_ns(message, 5 * 10**9 + 1) == 5 * 10**9 + 1
    # The same numbers written into a real message are the same message.
    assert messages.write(made, values, messages.ros_class(made.type)(), 5 * 10**9 + 1) == real


@pytest.mark.parametrize(('message_type', 'field'), [
    ('std_msgs/msg/Bool', 'data'), ('std_msgs/msg/Int32', 'data'),
    ('sensor_msgs/msg/Range', 'radiation_type'), ('std_msgs/msg/Int32MultiArray', 'data[0]')])
def test_command_of_whole_numbers_is_refused_before_it_is_sent(message_type, field):
    pytest.importorskip(f'{message_type.split("/")[0]}.msg', reason='needs the ROS messages')
    new = messages.ros_class(message_type)
    made = stream(message_type, field, command=True)
    with pytest.raises(MessageError, match='a command is of real numbers'):
        messages.check_fields(made, new())
    # ROS would find out when the message is sent, and not say which field it was.
    with pytest.raises(MessageError, match=r'does not take \[0.5\]'):
        messages.write(made, np.array([0.5]), new(), 0)
    messages.check_fields(stream(message_type, field), new())


@pytest.mark.parametrize('quaternion', [(0, 0, 0, 0), (0, 0, 0.1, 0.1), (1, 1, 1, 1)])
def test_what_is_no_rotation_has_no_yaw(quaternion):
    assert np.isnan(specs.Operation('yaw').apply(np.array(quaternion, float))).all()
