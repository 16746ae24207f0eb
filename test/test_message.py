"""One message and its numbers: every style of field, both ways, and what is refused."""

import math
from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st
from idql_ros import message as messages
from idql_ros import spec as specs
from idql_ros.message import MessageError
import numpy as np
import pytest

LIMITED = {'kind': 'velocity', 'unit': '1', 'lower': -1.0, 'upper': 1.0, 'stop': 'zero'}


def stream(message_type, *fields, operations=(), command=False, topic='here', **keys):
    """Return a signal, or a command, of these fields; the rest are keys of the spec."""
    entry = {'name': 'it', 'topic': topic, 'type': message_type, 'fields': list(fields),
             'operations': list(operations)}
    action = {'name': 'out', 'topic': 'out', 'type': 'std_msgs/msg/Float64', 'fields': ['data'],
              'dimensions': [LIMITED]}

    def parse(signal, action):
        return specs.parse({'spec_version': 1, 'name': 'robot', 'rate': 10, 'tick': 'timer',
                            'observations': [signal], 'actions': [action]}, 'robot.yaml')

    probe = {**entry, 'unit': '1', 'max_age': 1.0}
    if not command:
        return parse({**probe, **keys}, action).observations[0]
    other = {'name': 'in', 'topic': 'in', 'type': 'std_msgs/msg/Float64', 'fields': ['data'],
             'unit': '1', 'max_age': 1.0}
    size = parse(probe, action).observations[0].size
    return parse(other, {**entry, **keys, 'dimensions': [LIMITED] * size}).actions[0]


def written(made, values, stamp_ns=0):
    """Return a plain message with these values."""
    return messages.write(made, np.array(values), messages.blank(made.type), stamp_ns)


JOINTS = 'sensor_msgs/msg/JointState'
ODOMETRY = 'nav_msgs/msg/Odometry'
ORIENTATION = tuple(f'pose.pose.orientation.{axis}' for axis in 'xyzw')
TRAJECTORY = 'trajectory_msgs/msg/JointTrajectory'
SCAN = 'sensor_msgs/msg/LaserScan'
SECTORS = {'sectors': {'count': 4, 'reduce': 'min', 'max': 3.5, 'min': 0.12}}


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
    (stream(TRAJECTORY, 'points[0].positions[0:2]', 'points[1].velocities[0]'), [0.1, 0.2, 0.3]),
    (stream(TRAJECTORY, 'points[0].positions[b]', 'points[0].positions[a]'), [0.1, 0.2]),
    (stream(JOINTS, 'position[c]', 'velocity[1]', joints=['a', 'b', 'c']), [0.1, 0.2]),
    (stream(SCAN, 'ranges[:]', operations=[SECTORS]), [0.12, 0.5, 1.5, 3.5]),
    (stream(SCAN, 'ranges[0:9]', operations=[SECTORS]), [0.12, 0.5, 1.5, 3.5]),
], ids=['nested', 'index_slice', 'fixed_array', 'joint', 'joint_order', 'yaw', 'float32',
        'scale_offset', 'scale_each', 'nested_index', 'joint_above', 'joints_stated', 'whole',
        'part'])
def test_what_is_written_is_read_exactly(made, values):
    values = np.array(values, np.float32)
    found = messages.read(made, written(made, values))
    assert found.dtype == np.float32 and found.shape == (made.size,)
    assert np.array_equal(found, values)
    limit = np.full(made.size, 3.0)
    messages.check_inverse(made, lambda: messages.blank(made.type), -limit, limit)
    messages.check_fields(made, messages.blank(made.type))


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
    # A float32 field loses digits that the offset takes away, and what is too large.
    (stream('std_msgs/msg/Float32', 'data', operations=[{'offset': 1e6}]), 'operation offset'),
    (stream('std_msgs/msg/Float32', 'data', operations=[{'scale': 2}, {'offset': 1e4}]),
     'operation scale and offset'),
    (stream('std_msgs/msg/Float32', 'data', operations=[{'scale': 1e-38}]), 'operation scale'),
    (stream('std_msgs/msg/Float64MultiArray', 'data[0]', 'data[0]'), 'the fields do not keep'),
    (stream('std_msgs/msg/Float64MultiArray', 'data[0]', 'data[0]', operations=['cos_sin']),
     'operation cos_sin'),
])
def test_what_does_not_come_back_is_refused_and_its_cause_is_named(made, named):
    limit = np.full(made.size, 10.0)
    with pytest.raises(MessageError, match=f'topic here .*{named}.*wrote .*, read ') as refused:
        messages.check_inverse(made, lambda: messages.blank(made.type), -limit, limit)
    assert '\n' not in str(refused.value)


def test_inverse_is_tried_between_the_limits_also_where_they_are_infinite():
    # Divided by the scale, 3.4 is the largest float32.
    made = stream('std_msgs/msg/Float32', 'data', operations=[{'scale': 1e-38}])

    def check(limit):
        messages.check_inverse(made, lambda: messages.blank(made.type), -np.array([limit]),
                               np.array([limit]))

    check(3.0)
    for limit in (4.0, math.inf):
        with pytest.raises(MessageError, match='scale'):
            check(limit)


@pytest.mark.parametrize('made', [
    stream('std_msgs/msg/Float32', 'data', operations=[{'scale': 0.1}]),
    stream('std_msgs/msg/Float32', 'data', operations=[{'scale': 2}, {'offset': 7}]),
    stream('std_msgs/msg/Float32MultiArray', 'data[0:3]', operations=['cos_sin']),
    stream(ODOMETRY, *ORIENTATION, operations=['yaw']),
    stream(ODOMETRY, *ORIENTATION, operations=['yaw', 'cos_sin']),
    stream(ODOMETRY, *ORIENTATION, operations=['rotation_6d']),
    stream(SCAN, 'ranges[:]', operations=[SECTORS, {'scale': 0.1}]),
], ids=lambda made: '-'.join(operation.name for operation in made.operations))
@pytest.mark.parametrize('limit', [1.0, 10.0, math.inf])
def test_what_operations_can_give_comes_back_within_their_rounding(made, limit):
    limits = np.full(made.size, limit)
    messages.check_inverse(made, lambda: messages.blank(made.type), -limits, limits)


def test_limits_next_to_which_an_operation_gives_nothing_are_refused():
    made = stream(ODOMETRY, *ORIENTATION, operations=['rotation_6d'])
    zeros = np.zeros(6)
    with pytest.raises(MessageError, match='operation rotation_6d gives nothing between'):
        messages.check_inverse(made, lambda: messages.blank(ODOMETRY), zeros, zeros)


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
    (stream(JOINTS, 'name[0:2]'), joint_state(['1', '2']), r'expected numbers in name\[0:2\]'),
    (stream(JOINTS, 'name[:]', operations=[SECTORS]), joint_state(['1', '2', '3', '4']),
     'expected numbers in name'),
    (stream('std_msgs/msg/Float64', 'data[:]', operations=[SECTORS]),
     SimpleNamespace(data='1234'), 'is no number but str'),
    (stream(SCAN, 'ranges[:]', operations=[SECTORS]), messages.blank(SCAN),
     r'field ranges\[:\] has 0 rays, expected 4 or more'),
    (stream(TRAJECTORY, 'points[0].positions[0]'), messages.blank(TRAJECTORY),
     r'field points\[0\].positions\[0\] is not there: points has 0 elements'),
    (stream(TRAJECTORY, 'header[0].stamp.sec'), messages.blank(TRAJECTORY),
     'is not there: header is no list but Header with the fields frame_id, stamp'),
    (stream(ODOMETRY, 'pose.pose'), messages.blank(ODOMETRY),
     'is no number but Pose with the fields orientation, position'),
    (stream(ODOMETRY, 'pose.covariance[x]'), messages.blank(ODOMETRY),
     'it has the fields covariance, pose'),
    (stream(JOINTS, 'position[knee]'), joint_state([], position=[1, 2]),
     r'the message names no joints; state their order as joints .*, or use .* position\[0\]'),
    (stream(JOINTS, 'position[knee]', joints=['hip', 'knee']), joint_state([], position=[1]),
     'is not there: 1 values for 2 joints'),
    (stream('std_msgs/msg/Float64', 'data'), SimpleNamespace(data=10**400), 'expected numbers'),
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
    (stream(TRAJECTORY, 'points[1].positions[0]'), 'is not there: points has 0 elements'),
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
    (stream('std_msgs/msg/Float64MultiArray', 'data[0]', joints=['a']), 'needs the names'),
    (stream(JOINTS, 'name[0]'), 'is a list of string, not of numbers'),
    (stream(TRAJECTORY, 'points[0]'), 'is a list of trajectory_msgs/JointTrajectoryPoint, not '
                                      'of numbers; say which field of it'),
    (stream(TRAJECTORY, 'points[3].positons[0]'),
     r'field points\[3\].positons\[0\] is not there: JointTrajectoryPoint has the fields '
     'accelerations, effort, positions, time_from_start, velocities'),
    (stream(JOINTS, 'position[0].x'), 'is not there: position has 0 elements'),
    (stream('std_msgs/msg/Float64', 'data', frame_id='map'),
     'expected no frame_id, as the type has no header, found map; it has the fields data'),
])
def test_fields_that_no_message_of_the_type_has_are_found_before_one_comes(made, reason):
    with pytest.raises(MessageError, match=reason):
        messages.check_fields(made, messages.blank(made.type))
    pytest.importorskip(f'{made.type.split("/")[0]}.msg', reason='needs the ROS messages')
    with pytest.raises(MessageError, match=reason.replace('but float', 'but (float|double)')):
        messages.check_fields(made, messages.ros_class(made.type)())


def test_fields_that_only_a_message_can_decide_pass_the_check():
    for made in (stream(JOINTS, 'position[elbow]', 'velocity[3]', 'effort[0:2]'),
                 stream(ODOMETRY, *ORIENTATION, 'pose.covariance[35]'),
                 stream(TRAJECTORY, 'points[2].positions[elbow]', 'points[1].effort[3]')):
        messages.check_fields(made, messages.blank(made.type))


def test_stamp_is_the_headers_else_the_time_of_receipt():
    message = written(stream(ODOMETRY, 'pose.pose.position.x'), [0.0], 12_345_678_901)
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (12, 345_678_901)
    assert messages.stamp_ns(message, 7) == 12_345_678_901
    assert messages.stamp_ns(messages.blank('std_msgs/msg/Float64'), 7) == 7


def header(**keys):
    """Return an object of a class of its own, with what a Header has."""
    return type('Header', (SimpleNamespace,), {})(
        **{'stamp': SimpleNamespace(sec=3, nanosec=5), 'frame_id': 'map', **keys})


@pytest.mark.parametrize('field', [
    7, None, 'text', np.zeros(3), [], SimpleNamespace(stamp=5), header(stamp=1.5),
    header(stamp=[]), type('Packet', (), {'stamp': header().stamp})()], ids=repr)
def test_field_that_is_called_header_and_is_none_is_as_any_other(field):
    message = SimpleNamespace(header=field, data=2.0)
    for made in (message, SimpleNamespace(data=2.0)):
        assert messages.header_of(made) is None
        assert messages.stamp_ns(made, 7) == 7
    made = stream('my_msgs/msg/Packet', 'data', frame_id='map')
    assert messages.read(made, message).tolist() == [2.0]
    with pytest.raises(MessageError, match='expected no frame_id, as the type has no header'):
        messages.check_fields(made, message)
    messages.write(made, np.array([3.0]), message, 10**9)
    assert message.data == 3.0 and message.header is field


def test_header_is_found_in_messages_of_any_origin():
    message = SimpleNamespace(header=header())
    assert messages.header_of(message) is message.header
    assert messages.stamp_ns(message, 7) == 3 * messages.NS + 5
    plain = messages.blank(ODOMETRY)
    assert messages.header_of(plain) is plain.header
    pytest.importorskip('nav_msgs.msg', reason='needs the ROS messages')
    real = messages.ros_class(ODOMETRY)()
    assert messages.header_of(real) is real.header


def test_headers_of_more_classes_than_are_remembered_are_still_found():
    for _ in range(2500):
        assert messages.header_of(SimpleNamespace(header=header())) is not None


def test_message_that_names_other_joints_only_is_not_for_a_stream():
    arm = stream(JOINTS, 'position[elbow]', 'velocity[0]', 'velocity[wrist]')
    gripper = stream(JOINTS, 'position[finger]', command=True)
    by_index = stream(JOINTS, 'position[0:2]', joints=['elbow', 'wrist'])
    of_arm, of_gripper = joint_state(['wrist', 'elbow']), joint_state(['finger'])
    for _ in range(2):
        assert messages.concerns(arm, of_arm) and not messages.concerns(arm, of_gripper)
        assert messages.concerns(gripper, of_gripper) and not messages.concerns(gripper, of_arm)
    for made in (arm, gripper, by_index):
        # Names that are empty say nothing about whose they are.
        assert messages.concerns(made, joint_state([]))
        assert messages.concerns(made, joint_state(['finger', 'wrist']))
    assert messages.concerns(by_index, of_gripper)
    assert messages.concerns(stream(ODOMETRY, 'pose.pose.position.x'), messages.blank(ODOMETRY))
    # One of several lists is enough.
    both = stream('two_msgs/msg/Arms', 'left.position[a]', 'right.position[b]')
    for left, right, expected in (('a', 'c', True), ('c', 'b', True), ('b', 'a', False)):
        message = SimpleNamespace(left=joint_state([left]), right=joint_state([right]))
        assert messages.concerns(both, message) is expected


@pytest.mark.parametrize('points', [0, 1, 3])
def test_trajectory_of_other_joints_is_not_for_a_command_whatever_came_before(points):
    fields = 'points[0].positions[a]', 'points[0].positions[b]'
    one = written(stream(TRAJECTORY, *fields, command=True), [0.5, -0.5])
    other = written(stream(TRAJECTORY, *fields, command=True), [0.5, -0.5])
    other.joint_names, other.points = ['c', 'd'], points * other.points
    for order in ((one, other), (other, one)):
        command = stream(TRAJECTORY, *fields, command=True)
        for message in order:
            assert messages.concerns(command, message) is (message is one)


@pytest.mark.parametrize(('made', 'message'), [
    (stream(JOINTS, 'positon[elbow]'), joint_state(['finger'])),
    (stream(ODOMETRY, 'pose.covariance[x]'), messages.blank(ODOMETRY)),
    (stream(TRAJECTORY, 'points[0].positions[a]'), messages.blank(TRAJECTORY)),
    (stream(TRAJECTORY, 'points[0].positions[a]', command=True), messages.blank(TRAJECTORY)),
    (stream(TRAJECTORY, 'points[0].positions[a]', command=True),
     SimpleNamespace(points=[SimpleNamespace(positions=[1.0])])),
    (stream('my_msgs/msg/Odd', 'x[a]'), SimpleNamespace(name=[header()], x=[1.0])),
    (stream('my_msgs/msg/Odd', 'x[a]'), SimpleNamespace(name=7, x=[1.0])),
])
def test_message_that_cannot_be_read_for_another_reason_is_left_to_read(made, message):
    for _ in range(2):
        assert messages.concerns(made, message)
        with pytest.raises(MessageError, match='topic here '):
            messages.read(made, message)


def test_joint_with_any_name_is_read_and_written():
    names = ['robot::arm', '1_joint', 'joint#1 (left), x', '\u00e9paule']
    made = stream(JOINTS, *[f'position[{name}]' for name in names])
    message = written(made, [1, 2, 3, 4])
    assert message.name == names
    assert messages.read(made, message).tolist() == [1, 2, 3, 4]


def test_field_with_capitals_is_read_and_a_constant_is_no_field():
    message = SimpleNamespace(Wrench=SimpleNamespace(X=2.0))
    assert messages.read(stream('my_msgs/msg/Sensor', 'Wrench.X'), message).tolist() == [2.0]
    made = stream('sensor_msgs/msg/Range', 'ULTRASOUND')
    pytest.importorskip('sensor_msgs.msg', reason='needs the ROS messages')
    for text in ('ULTRASOUND', 'SLOT_TYPES[0]'):
        made = stream('sensor_msgs/msg/Range', text)
        with pytest.raises(MessageError, match='is not there: Range has the fields field_of_view'):
            messages.check_fields(made, messages.ros_class(made.type)())


@pytest.mark.parametrize(('message_type', 'field', 'values'), [
    ('std_msgs/msg/Byte', 'data', [-56]), ('std_msgs/msg/Char', 'data', [200]),
    ('std_msgs/msg/ByteMultiArray', 'data[0:3]', [3, -56, 0]),
    ('std_msgs/msg/ByteMultiArray', 'data[1]', [-1]),
    ('std_msgs/msg/UInt8MultiArray', 'data[0:3]', [3, 200, 0]), ('std_msgs/msg/Bool', 'data', [1]),
    ('std_msgs/msg/UInt8', 'data', [200]), ('std_msgs/msg/Int8', 'data', [-56])])
@pytest.mark.parametrize('operations', [[], [{'scale': 2}]], ids=['plain', 'operation'])
def test_bytes_are_the_same_numbers_from_a_bag_and_from_ros(
        message_type, field, values, operations):
    typesys = pytest.importorskip('rosbags.typesys', reason='rosbags is not installed')
    serialization = pytest.importorskip('rclpy.serialization', reason='rclpy is not installed')
    typestore = typesys.get_typestore(typesys.Stores.ROS2_JAZZY)
    new = messages.ros_class(message_type)
    real = new()
    kind = bytes if 'Byte' in message_type else bool if 'Bool' in message_type else int
    numbers = [bytes([v % 256]) if kind is bytes else kind(v) for v in values]
    real.data = numbers[0] if field == 'data' else 2 * numbers
    of_rosbags = typestore.deserialize_cdr(
        serialization.serialize_message(real), message_type)
    made = stream(message_type, field, operations=operations)
    messages.check_fields(made, new())
    for message in (real, of_rosbags):
        assert messages.read(made, message).tolist() == [
            value * (2 if operations else 1) for value in values]


@pytest.mark.parametrize('data', [b'', b'ab', 'a', [b'', b'ab']])
def test_bytes_that_are_no_byte_are_no_number(data):
    field = 'data[0]' if isinstance(data, list) else 'data'
    with pytest.raises(MessageError, match='number'):
        messages.read(stream('std_msgs/msg/Byte', field), SimpleNamespace(data=data))


def test_command_carries_its_frame_and_a_signal_leaves_it():
    fields = ('geometry_msgs/msg/TwistStamped', 'twist.linear.x')
    assert written(stream(*fields, command=True, frame_id='odom'), [0]).header.frame_id == 'odom'
    message = messages.blank(fields[0])
    message.header.frame_id = 'base_link'
    messages.write(stream(*fields), np.zeros(1), message, 0)
    assert message.header.frame_id == 'base_link'


@pytest.mark.parametrize('command', [False, True])
def test_message_in_another_frame_than_stated_is_refused(command):
    made = stream(ODOMETRY, 'pose.pose.position.x', frame_id='map', command=command)
    message = messages.blank(ODOMETRY)
    for frame_id in ('', 'odom', '/map'):
        message.header.frame_id = frame_id
        with pytest.raises(MessageError) as refused:
            messages.read(made, message)
        assert str(refused.value) == (
            f'topic here ({ODOMETRY}): expected the frame_id map that the spec states, found '
            f'{frame_id!r}')
    message.header.frame_id = 'map'
    assert messages.read(made, message).tolist() == [0.0]
    # What is written, also by the simulation, is in the frame that is stated.
    assert messages.read(made, written(made, [1.5])).tolist() == [1.5]


def test_any_frame_is_read_where_none_is_stated():
    message = messages.blank(ODOMETRY)
    message.header.frame_id = 'anywhere'
    assert messages.read(stream(ODOMETRY, 'pose.pose.position.x'), message).tolist() == [0.0]


def test_joints_of_a_message_without_names_are_in_the_order_of_the_spec():
    made = stream(JOINTS, 'position[c]', 'position[a]', joints=['a', 'b', 'c'])
    assert messages.read(made, joint_state([], position=[1, 2, 3])).tolist() == [3, 1]
    # Names in the message say more than the spec.
    named = joint_state(['c', 'b', 'a'], position=[1, 2, 3])
    assert messages.read(made, named).tolist() == [1, 3]
    assert messages.read(made, joint_state([], position=[1, 2, 3])).tolist() == [3, 1]


def test_names_that_change_within_the_same_list_are_noticed():
    made = stream(JOINTS, 'position[a]')
    message = joint_state(['a', 'b'], position=[1, 2])
    assert messages.read(made, message).tolist() == [1]
    message.name.reverse()
    assert messages.read(made, message).tolist() == [2]


def test_joint_is_looked_up_in_the_innermost_message_that_names_joints():
    def point(*positions):
        return SimpleNamespace(positions=np.array(positions, np.float64))

    # As control_msgs/msg/JointTrajectoryControllerState has it.
    state = SimpleNamespace(
        joint_names=['a', 'b'], reference=point(1, 2), feedback=point(3, 4),
        # A name that is no list of names is none.
        other=SimpleNamespace(name='x', at=SimpleNamespace(joint_names=['b', 'a'],
                                                           values=[5.0, 6.0])))
    made = stream('control_msgs/msg/JointTrajectoryControllerState', 'reference.positions[b]',
                  'feedback.positions[a]', 'feedback.positions[b]', 'other.at.values[b]')
    assert messages.read(made, state).tolist() == [2.0, 3.0, 4.0, 5.0]
    state.joint_names.append('c')
    assert messages.read(made, state).tolist() == [2.0, 3.0, 4.0, 5.0]
    with pytest.raises(MessageError, match=r"joints are \['a', 'b', 'c'\]"):
        messages.read(stream(made.type, 'reference.positions[d]'), state)


def test_one_stream_reads_messages_of_several_classes_in_turn():
    made = stream(JOINTS, 'position[a]', 'velocity[0]')
    plain = joint_state(['a'], position=[1], velocity=[2])
    other = SimpleNamespace(joint_names=['b', 'a'], position=[3.0, 4.0], velocity=[5.0, 6.0])
    for _ in range(2):
        assert messages.read(made, plain).tolist() == [1, 2]
        assert messages.read(made, other).tolist() == [4, 5]


def test_more_streams_than_are_remembered_are_still_read():
    message = SimpleNamespace(data=list(range(2000)))
    for i in range(2000):
        made = stream('std_msgs/msg/Float64MultiArray', f'data[{i}]')
        assert messages.read(made, message).tolist() == [i]


ACTIONS = [
    stream('geometry_msgs/msg/Twist', 'linear.x', 'angular.z', command=True),
    stream('geometry_msgs/msg/TwistStamped', 'twist.linear.x', 'twist.angular.z', command=True,
           frame_id='base_link'),
    stream('geometry_msgs/msg/Pose', 'position.x', 'position.y', 'position.z', command=True),
    stream('geometry_msgs/msg/PoseStamped', *[f'pose.position.{a}' for a in 'xyz'], command=True,
           frame_id='map'),
    stream('geometry_msgs/msg/WrenchStamped', 'wrench.force.z', 'wrench.torque.x', command=True),
    stream('std_msgs/msg/Float64MultiArray', 'data[0:3]', 'data[3]', command=True),
    stream('std_msgs/msg/Float64', 'data', command=True),
    stream(JOINTS, 'position[a]', 'velocity[b]', 'position[b]', command=True),
    stream(JOINTS, 'position[0:3]', command=True),
    stream(JOINTS, 'position[b]', 'position[a]', joints=['a', 'b', 'c'], command=True),
    stream(TRAJECTORY, 'points[0].positions[a]', 'points[0].positions[b]',
           'points[0].velocities[a]', 'points[0].velocities[b]', command=True),
    stream(TRAJECTORY, 'points[0].positions[0:2]', joints=['a', 'b'], command=True,
           time_from_start=0.25),
    stream('geometry_msgs/msg/PoseStamped', *[f'pose.position.{a}' for a in 'xyz'],
           *[f'pose.orientation.{a}' for a in 'xyzw'], operations=[{'yaw': 3}], command=True),
]


@pytest.mark.parametrize('made', ACTIONS, ids=[
    f'{i}-{made.type.rpartition("/")[2]}' for i, made in enumerate(ACTIONS)])
@pytest.mark.parametrize('new', [messages.blank, messages.ros_class], ids=['plain', 'rclpy'])
def test_every_action_message_is_written_and_read_back(made, new):
    if new is messages.ros_class:
        pytest.importorskip(f'{made.type.split("/")[0]}.msg', reason='needs the ROS messages')

    def empty():
        return new(made.type)() if new is messages.ros_class else new(made.type)

    messages.check_fields(made, empty())
    messages.check_limits(made, empty)
    messages.check_inverse(made, empty, -np.ones(made.size), np.ones(made.size))
    values = np.linspace(-0.7, 0.9, made.size).astype(np.float32)
    message = messages.write(made, values, empty(), 3 * 10**9 + 5)
    assert np.array_equal(messages.read(made, message), values)
    if hasattr(message, 'header'):
        assert messages.stamp_ns(message, 0) == 3 * 10**9 + 5
        assert message.header.frame_id == made.frame_id


@pytest.mark.parametrize('new', [
    messages.blank, lambda message_type: messages.ros_class(message_type)()],
    ids=['plain', 'rclpy'])
def test_trajectory_is_one_point_with_named_joints_and_its_time(new):
    pytest.importorskip('trajectory_msgs.msg', reason='needs the ROS messages')
    named = stream(TRAJECTORY, 'points[0].positions[b]', 'points[0].positions[a]', command=True)
    indexed = stream(TRAJECTORY, 'points[0].positions[0:2]', joints=['b', 'a'], command=True,
                     time_from_start=1.25)
    for made, seconds in ((named, (0, 100_000_000)), (indexed, (1, 250_000_000))):
        message = messages.write(made, np.array([0.5, -0.5]), new(TRAJECTORY), 0)
        point, = message.points
        assert (list(message.joint_names), list(point.positions)) == (['b', 'a'], [0.5, -0.5])
        assert (point.time_from_start.sec, point.time_from_start.nanosec) == seconds
        assert len(point.velocities) == len(point.effort) == 0


@pytest.mark.parametrize('first', ['one', 'none', 'three'])
def test_command_is_read_from_a_trajectory_of_one_point_and_no_other(first):
    fields = 'points[0].positions[b]', 'points[0].positions[a]'
    command, signal = stream(TRAJECTORY, *fields, command=True), stream(TRAJECTORY, *fields)
    one = written(command, [0.5, -0.5])
    # What the node would send says when the point is reached, what was recorded may differ.
    one.points[0].time_from_start.sec = 7
    none, three = written(command, [0.5, -0.5]), written(command, [0.5, -0.5])
    none.points, three.points = [], 3 * three.points
    made = {'one': one, 'none': none, 'three': three}
    for name in [first, *made]:
        if name == 'one':
            assert messages.read(command, one).tolist() == [0.5, -0.5]
            continue
        with pytest.raises(MessageError) as refused:
            messages.read(command, made[name])
        text = f'topic here ({TRAJECTORY}): expected one point, as is sent; found '
        reason = ('none: an empty trajectory stops the controller' if name == 'none'
                  else '3: the motion of a planner')
        assert str(refused.value).startswith(text + reason)
    # What is only observed may have as many points as its fields ask for.
    assert messages.read(signal, three).tolist() == [0.5, -0.5]


def test_each_list_is_written_by_the_names_around_it():
    def joints():
        return SimpleNamespace(name=[], position=[])

    made = stream('two_msgs/msg/Arms', 'left.position[a]', 'right.position[c]',
                  'left.position[b]', 'right.position[a]')
    message = SimpleNamespace(left=joints(), right=joints())
    messages.write(made, np.array([1, 2, 3, 4.0]), message, 0)
    assert (message.left.name, message.left.position) == (['a', 'b'], [1, 3])
    assert (message.right.name, message.right.position) == (['c', 'a'], [2, 4])
    assert messages.read(made, message).tolist() == [1, 2, 3, 4]


def test_joints_stated_are_named_in_their_order_and_the_others_have_no_number():
    made = stream(JOINTS, 'position[c]', joints=['a', 'b', 'c', 'd'], command=True)
    message = written(made, [0.5])
    assert message.name == ['a', 'b', 'c', 'd']
    assert message.position.tolist() == pytest.approx([math.nan, math.nan, 0.5, math.nan],
                                                      nan_ok=True)
    # Without a name, or an order, an index says all.
    assert written(stream(JOINTS, 'position[0:2]', command=True), [1, 2]).name == []


@pytest.mark.parametrize(('operation', 'values'), [
    ('yaw', [2.5]), ('rotation_6d', [2.0, 0, 0, 0.3, 0, 5.0]),
    ('rotation_6d', [0, 1.0, 0, -1.0, 0, 0])])
def test_orientation_that_is_sent_is_a_unit_quaternion(operation, values):
    made = stream('geometry_msgs/msg/PoseStamped', *[f'pose.orientation.{a}' for a in 'xyzw'],
                  operations=[operation], command=True)
    messages.check_limits(made, lambda: messages.blank(made.type))
    sent = written(made, values).pose.orientation
    assert math.hypot(sent.x, sent.y, sent.z, sent.w) == pytest.approx(1.0)


def test_pose_is_sent_with_its_position_beside_the_orientation():
    made = stream('geometry_msgs/msg/PoseStamped', *[f'pose.position.{a}' for a in 'xyz'],
                  *[f'pose.orientation.{a}' for a in 'xyzw'], operations=[{'rotation_6d': 3}],
                  command=True)
    assert made.size == 9
    messages.check_limits(made, lambda: messages.blank(made.type))
    values = np.array([1, 2, 3, 0, 1, 0, -1, 0, 0], np.float32)
    sent = written(made, values)
    assert (sent.pose.position.x, sent.pose.position.z) == (1.0, 3.0)
    assert sent.pose.orientation.z == pytest.approx(math.sqrt(0.5))
    assert messages.read(made, sent) == pytest.approx(values, abs=1e-6)


def test_columns_that_are_no_rotation_are_not_sent():
    made = stream('geometry_msgs/msg/PoseStamped', *[f'pose.orientation.{a}' for a in 'xyzw'],
                  operations=['rotation_6d'], command=True)
    with pytest.raises(MessageError, match='topic here .*rotation_6d has no inverse of'):
        written(made, [1, 0, 0, 2, 0, 0])


def test_limits_that_a_field_cannot_hold_are_refused():
    made = stream('std_msgs/msg/Float32', 'data', operations=[{'scale': 1e-39}], command=True)
    with pytest.raises(MessageError, match='topic here .*the fields do not hold them'):
        messages.check_limits(made, lambda: messages.blank(made.type))


@settings(max_examples=300)
@given(st.sampled_from([ODOMETRY, JOINTS, TRAJECTORY, SCAN, 'std_msgs/msg/Float64MultiArray']),
       st.lists(st.sampled_from([
           'pose', 'position', 'points', 'positions', 'joint_names', 'name', 'header', 'stamp',
           'ranges', 'data', 'layout', 'dim', 'child_frame_id', 'covariance', 'x', 'sec',
           'time_from_start', '__class__']), min_size=1, max_size=4),
       st.lists(st.sampled_from(['', '[0]', '[1]', '[0:2]', '[:]', '[a]', '[99999999]']),
                min_size=4, max_size=4), st.booleans())
def test_any_path_is_read_and_written_or_refused_as_a_message_error(
        message_type, names, ends, sectors):
    text = '.'.join(name + end for name, end in zip(names, ends, strict=False))
    try:
        made = stream(message_type, text, operations=[SECTORS] if sectors else [])
    except specs.SpecError:
        return
    for done in (lambda m: messages.check_fields(made, m), lambda m: messages.read(made, m),
                 lambda m: messages.write(made, np.ones(made.size), m, 0)):
        message = messages.blank(message_type)
        try:
            done(message)
        except MessageError as error:
            assert str(error).startswith(f'topic here ({message_type}): ')
            assert '\n' not in str(error)


def test_streams_of_one_topic_share_one_message():
    position = stream(JOINTS, 'position[a]', 'position[b]')
    velocity = stream(JOINTS, 'velocity[b]', 'velocity[a]')
    other = stream('std_msgs/msg/Float64', 'data', topic='there')
    found = messages.write_topics(
        [position, velocity, other], np.array([1, 2, 3, 4, 5.0]), 10**9, messages.blank)
    assert list(found) == ['here', 'there']
    assert (found['here'].position.tolist(), found['here'].velocity.tolist()) == ([1, 2], [4, 3])
    assert (found['there'].data, found['here'].header.stamp.sec) == (5.0, 1)


def test_lists_of_a_joint_message_are_as_long_as_its_names():
    arm = stream(JOINTS, 'position[a]', 'velocity[a]')
    gripper = stream(JOINTS, 'position[g]')
    found = messages.write_topics(
        [arm, gripper], np.array([1, 2, 3.0]), 0, messages.blank)['here']
    assert found.name == ['a', 'g'] and found.position.tolist() == [1, 3]
    assert found.velocity[0] == 2 and math.isnan(found.velocity[1])


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
    stream(TRAJECTORY, 'points[0].positions[a]', 'points[0].positions[b]', command=True),
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
    ('sensor_msgs/msg/Range', 'radiation_type'), ('std_msgs/msg/Int32MultiArray', 'data[0]'),
    ('std_msgs/msg/Byte', 'data')])
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


def test_command_of_a_list_of_bytes_is_refused_before_it_is_sent():
    pytest.importorskip('std_msgs.msg', reason='needs the ROS messages')
    made = stream('std_msgs/msg/ByteMultiArray', 'data[0]', command=True)
    with pytest.raises(MessageError, match='a command is of real numbers'):
        messages.check_fields(made, messages.ros_class(made.type)())
