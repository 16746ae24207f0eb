"""A survey says what the messages of a bag hold, and its spec is one that can be begun with."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')
from idql_ros import spec as specs  # noqa: E402
from recording import MS, Recording, robot  # noqa: E402
from rosbags.typesys import get_types_from_msg  # noqa: E402
from training import storage  # noqa: E402
from training.storage import BagError  # noqa: E402
from training.survey import inspect, starting_spec, survey  # noqa: E402

T = 1_700_000_000 * 10**9
RATES = {'joint_states': 50, 'scan': 10, 'cmd_vel': 20, 'arm/commands': 25}


class Messages:
    """Writes messages of any type into a bag."""

    def __init__(self):
        """Begin with none."""
        self._recording = Recording(robot())
        self.entries = self._recording.entries
        self._types = self._recording.typestore.types

    def make(self, kind, *values):
        """Return a message of a type."""
        return self._types[kind](*values)

    def header(self, stamp_ns, frame='base'):
        """Return a header."""
        stamp = self.make('builtin_interfaces/msg/Time', *divmod(int(stamp_ns), 10**9))
        return self.make('std_msgs/msg/Header', stamp, frame)

    def joints(self, stamp_ns, position, names=('hip', 'knee')):
        """Return the state of joints, without efforts."""
        return self.make('sensor_msgs/msg/JointState', self.header(stamp_ns), list(names),
                         np.array(position, float), np.full(len(position), np.nan), np.zeros(0))

    def scan(self, stamp_ns, ranges):
        """Return a scan of a range of up to 8 m."""
        return self.make(
            'sensor_msgs/msg/LaserScan', self.header(stamp_ns, 'laser'), -3.0, 3.0, 0.01, 0.0,
            0.1, 0.2, 8.0, np.array(ranges, np.float32), np.zeros(0, np.float32))

    def twist(self, x, yaw):
        """Return a velocity."""
        return self.make('geometry_msgs/msg/Twist',
                         self.make('geometry_msgs/msg/Vector3', x, 0.0, 0.0),
                         self.make('geometry_msgs/msg/Vector3', 0.0, 0.0, yaw))

    def array(self, *values):
        """Return an array."""
        layout = self.make('std_msgs/msg/MultiArrayLayout', [], 0)
        return self.make('std_msgs/msg/Float64MultiArray', layout, np.array(values))

    def pose(self, stamp_ns, x, yaw):
        """Return a pose on level ground."""
        return self.make(
            'geometry_msgs/msg/PoseStamped', self.header(stamp_ns, 'map'),
            self.make('geometry_msgs/msg/Pose',
                      self.make('geometry_msgs/msg/Point', x, 2 * x, 0.0),
                      self.make('geometry_msgs/msg/Quaternion', 0.0, 0.0, np.sin(yaw / 2),
                                np.cos(yaw / 2))))

    def add(self, topic, message, logged_ns):
        """Add a message."""
        self._recording.add_message(topic, message, logged_ns)

    def save(self, path):
        """Write the bag and return it."""
        return self._recording.save(path, silent=('position', 'velocity'))


def robot_bag(path, seconds=10, stamp=lambda logged_ns: logged_ns - 2 * MS, names=('hip', 'knee')):
    """Write the bag of a robot with joints, a scan and two kinds of command."""
    messages = Messages()

    def message(topic, now, phase):
        if topic == 'joint_states':
            return messages.joints(stamp(now), [phase, -phase], names)
        if topic == 'scan':
            return messages.scan(stamp(now), [np.inf, np.nan, *np.linspace(0.5, 7.5, 98)])
        if topic == 'cmd_vel':
            return messages.twist(0.4 * phase, 0.5 - phase)
        return messages.array(phase, -2 * phase)

    for topic, rate in RATES.items():
        for k in range(seconds * rate):
            now = T + k * 10**9 // rate
            messages.add(topic, message(topic, now, k / (seconds * rate)), now)
    return messages.save(path)


def by_name(found):
    """Return the topics of a survey."""
    return {topic.name: topic for topic in found.topics}


def load(text, tmp_path):
    """Return the spec that a text is."""
    file = tmp_path / 'robot.yaml'
    file.write_text(text)
    return specs.load(file)


def test_rates_times_gaps_and_frames_are_those_of_the_messages(tmp_path):
    topics = by_name(survey(robot_bag(tmp_path / 'bag')))
    assert {name: topic.count for name, topic in topics.items()} == {
        f'/{name}': 10 * rate for name, rate in RATES.items()}
    for name, rate in RATES.items():
        topic = topics[f'/{name}']
        assert topic.rate == pytest.approx(rate) and not topic.bursts
        assert topic.intervals == pytest.approx((1 / rate, 1 / rate))
        assert topic.longest_gap == pytest.approx(1 / rate)
        assert (topic.first_ns, topic.last_ns) == (T, T + 10 * 10**9 - 10**9 // rate)
    assert topics['/scan'].frames == ('laser',) and topics['/scan'].stamped
    assert not topics['/cmd_vel'].stamped and topics['/cmd_vel'].skew is None
    assert topics['/scan'].skew == pytest.approx(0.002) and not topics['/scan'].simulated


def test_hole_is_told_and_does_not_change_the_rate(tmp_path):
    messages = Messages()
    for k in range(100):
        messages.add('cmd_vel', messages.twist(k / 100, 0.0),
                     T + 50 * MS * k + (30 * 10**9 if k >= 60 else 0))
    topic, = survey(messages.save(tmp_path / 'bag')).topics
    assert topic.rate == pytest.approx(20) and topic.longest_gap == pytest.approx(30.05)


def test_commands_in_bursts_have_the_rate_of_their_mean(tmp_path):
    messages = Messages()
    for k in range(100):
        for i in range(4):
            messages.add('cmd_vel', messages.twist(k / 100, 0.0), T + 20 * MS * k + i * MS // 10)
    topic, = survey(messages.save(tmp_path / 'bag')).topics
    assert topic.bursts and topic.rate == pytest.approx(200, rel=0.02)


def test_fields_are_in_the_grammar_of_the_spec_with_what_was_seen(tmp_path):
    topics = by_name(survey(robot_bag(tmp_path / 'bag')))
    fields = {(topic.name, f.path): f for topic in topics.values() for f in topic.fields}
    for _, path in fields:
        specs.parse_path(path)
    knee = fields['/joint_states', 'position[knee]']
    assert (knee.minimum, knee.maximum) == pytest.approx((-0.998, 0)) and not knee.nan
    assert fields['/joint_states', 'velocity[hip]'].nan == 1.0
    assert not any(path.startswith('effort') for _, path in fields)
    ranges = fields['/scan', 'ranges[:]']
    assert (ranges.minimum, ranges.maximum) == (0.5, 7.5)
    assert (ranges.nan, ranges.infinite) == pytest.approx((0.01, 0.01))
    data = fields['/arm/commands', 'data[0:2]']
    assert data.minima == pytest.approx((0, -1.992)) and data.maxima == pytest.approx((0.996, 0))
    assert fields['/cmd_vel', 'linear.y'].constant
    assert not fields['/cmd_vel', 'linear.x'].constant


def test_joints_without_names_are_given_by_index(tmp_path):
    found = survey(robot_bag(tmp_path / 'bag', names=()))
    paths = [f.path for f in by_name(found)['/joint_states'].fields]
    assert paths == ['position[0:2]', 'velocity[0:2]']
    assert 'fields: ["position[0:2]"]' in starting_spec(found)


def test_spec_to_begin_with_can_be_loaded_and_holds_what_was_seen(tmp_path):
    found = survey(robot_bag(tmp_path / 'bag'))
    text = starting_spec(found)
    spec = load(text, tmp_path)
    assert (spec.rate, spec.clock, spec.tick) == (10.0, 'received', 'timer')
    assert [(s.topic, [f.text for f in s.fields]) for s in spec.observations] == [
        ('joint_states', ['position[hip]', 'position[knee]']), ('scan', ['ranges[:]'])]
    sectors = spec.observations[1].operations[0].sectors
    assert (sectors.maximum, sectors.minimum) == pytest.approx((8.0, 0.2))
    command, = spec.actions
    assert command.topic == 'arm/commands' and '  # - name: cmd_vel_command' in text
    assert [(d.lower, d.upper) for d in command.dimensions] == [(0.0, 0.996), (-2.0, 0.0)]
    for line in text.splitlines():
        if line.strip().startswith(('- name', 'rate', 'max_age', 'dimensions', 'unit')):
            assert '# guess' in line, line
    json.dumps(found.to_dict())


def test_each_candidate_of_a_command_is_a_command_when_it_is_taken(tmp_path):
    text = starting_spec(survey(robot_bag(tmp_path / 'bag')))
    head, actions = text.split('actions:\n')
    other = [line.replace('  # ', '  ', 1) for line in actions.splitlines()
             if line.startswith('  # ')]
    spec = load(head + 'actions:\n' + '\n'.join(other), tmp_path)
    command, = spec.actions
    assert command.topic == 'cmd_vel'
    assert [f.text for f in command.fields] == ['linear.x', 'angular.z']
    # Zero, which is what is sent to stop, lies within.
    assert [(d.lower, d.upper, d.stop) for d in command.dimensions] == [
        (0.0, 0.398, 'zero'), (-0.495, 0.5, 'zero')]


@pytest.mark.parametrize('stamp', [
    lambda logged_ns: (logged_ns - T) // 2 + 5 * 10**9,
    lambda logged_ns: T + (logged_ns - T) * 3 // 4 - 10**9])
def test_stamps_of_simulated_time_make_the_ticks_count_by_them(tmp_path, stamp):
    found = survey(robot_bag(tmp_path / 'bag', stamp=stamp))
    topic = by_name(found)['/scan']
    assert topic.simulated and 'simulated time?' in found.text()
    spec = load(starting_spec(found), tmp_path)
    assert spec.clock == 'header'
    assert {signal.time for signal in spec.observations} == {'header'}


@pytest.mark.parametrize('stamp', [lambda logged_ns: logged_ns - 6 * 86400 * 10**9,
                                   lambda logged_ns: 0])
def test_stamps_of_another_clock_are_not_used(tmp_path, stamp):
    found = survey(robot_bag(tmp_path / 'bag', stamp=stamp))
    assert not by_name(found)['/scan'].simulated
    spec = load(starting_spec(found), tmp_path)
    assert spec.clock == 'received'
    assert {signal.time for signal in spec.observations} == {'received'}


def test_level_pose_is_observed_by_place_and_heading(tmp_path):
    messages = Messages()
    for k in range(100):
        now = T + 20 * MS * k
        messages.add('robot/pose', messages.pose(now, k / 100, k / 50), now)
        messages.add('cmd_vel', messages.twist(0.1, k / 100), now)
    spec = load(starting_spec(survey(messages.save(tmp_path / 'bag'))), tmp_path)
    place, heading = spec.observations
    assert [f.text for f in place.fields] == ['pose.position.x', 'pose.position.y']
    assert [o.name for o in heading.operations] == ['yaw', 'cos_sin'] and heading.size == 2


def test_one_slow_sensor_does_not_slow_the_decisions(tmp_path):
    messages = Messages()
    for k in range(200):
        now = T + 20 * MS * k
        messages.add('joint_states', messages.joints(now, [k, k]), now)
        messages.add('cmd_vel', messages.twist(k / 100, 0.1), now)
        if k % 10 == 0:
            messages.add('robot/pose', messages.pose(now, k / 100, k / 50), now)
    text = starting_spec(survey(messages.save(tmp_path / 'bag')))
    assert load(text, tmp_path).rate == 50.0
    assert '#   /robot/pose (geometry_msgs/msg/PoseStamped): 5 Hz, slower than the others' in text


def test_bag_without_commands_says_so(tmp_path):
    messages = Messages()
    for k in range(50):
        messages.add('joint_states', messages.joints(T + k * MS, [k, k]), T + k * MS)
    bag = messages.save(tmp_path / 'bag')
    text = inspect(bag, None, tmp_path / 'robot.yaml')
    assert 'No topic looks like a command' in text and '/joint_states' in text
    assert 'actions: []  # no topic looks like a command' in (tmp_path / 'robot.yaml').read_text()


def test_what_cannot_be_observed_is_listed_with_the_reason(tmp_path):
    messages = Messages()
    image = messages.make('sensor_msgs/msg/Image', messages.header(T), 1, 1, 'mono8', 0, 1,
                          np.zeros(1, np.uint8))
    for k in range(20):
        messages.add('camera', image, T + k * MS)
    messages.add('goal', messages.pose(T, 1.0, 0.0), T)
    messages.add('said', messages.make('std_msgs/msg/String', 'x'), T)
    found = survey(messages.save(tmp_path / 'bag'))
    text = starting_spec(found)
    assert '#   /camera (sensor_msgs/msg/Image): not supported (image)' in text
    assert '#   /goal (geometry_msgs/msg/PoseStamped): 1 messages; one that stays valid' in text
    assert 'not supported (image)' in found.text()


def test_topic_that_cannot_be_decoded_is_told_and_the_others_are_measured(tmp_path):
    messages = Messages()
    for k in range(20):
        messages.add('joint_states', messages.joints(T + k * MS, [k, k]), T + k * MS)
        messages.add('said', messages.make('std_msgs/msg/String', 'x'), T + k * MS)
    messages.entries[:] = [
        (*entry[:3], entry[3][:-2]) if entry[1] == 'said' and entry[0] > T else entry
        for entry in messages.entries]
    found = survey(messages.save(tmp_path / 'bag'))
    topics = by_name(found)
    assert topics['/joint_states'].rate == pytest.approx(1000)
    assert topics['/said'].unreadable.startswith('said (std_msgs/msg/String): message 1, logged')
    assert 'cannot be read: said' in found.text()


def two_publishers(path, arm_rate=50, finger_rate=5):
    """Write a bag whose arm and gripper publish on one topic, the arm in two orders."""
    messages = Messages()
    for name, rate in (('arm', arm_rate), ('finger', finger_rate)):
        for k in range(10 * rate):
            now = T + k * 10**9 // rate + (MS if name == 'finger' else 0)
            if name == 'finger':
                message = messages.joints(now, [k], ['finger'])
            elif k % 2:
                message = messages.joints(now, [-k, k], ['knee', 'hip'])
            else:
                message = messages.joints(now, [k, -k], ['hip', 'knee'])
            messages.add('joint_states', message, now)
            if name == 'arm':
                messages.add('cmd_vel', messages.twist(k, -k), now)
    return messages.save(path)


def test_joints_of_several_publishers_on_one_topic_are_a_signal_for_each_set(tmp_path):
    found = survey(two_publishers(tmp_path / 'bag'))
    topic = by_name(found)['/joint_states']
    assert dict(topic.sets) == {
        ('hip', 'knee'): pytest.approx(0.02), ('finger',): pytest.approx(0.2)}
    fields = {f.path: f for f in topic.fields if f.path.startswith('position')}
    assert {path: (f.minimum, f.maximum, f.names) for path, f in fields.items()} == {
        'position[hip]': (0, 499, ('hip', 'knee')), 'position[knee]': (-499, 0, ('hip', 'knee')),
        'position[finger]': (0, 49, ('finger',))}
    assert 'messages name different joints: hip, knee; finger' in found.text()
    spec = load(starting_spec(found), tmp_path)
    assert {tuple(f.text for f in signal.fields): signal.max_age
            for signal in spec.observations} == {
        ('position[hip]', 'position[knee]'): pytest.approx(0.1),
        ('position[finger]',): pytest.approx(0.6)}


def test_command_is_of_joints_that_are_in_one_message(tmp_path):
    messages = Messages()
    for k in range(100):
        for names in (['hip', 'knee'], ['finger']):
            message = messages.joints(T, [k] * len(names), names)
            messages.add('command/joints', message, T + 20 * MS * k + len(names) * MS)
        messages.add('robot/pose', messages.pose(T, k / 100, 0.0), T + 20 * MS * k)
    command, = load(starting_spec(survey(messages.save(tmp_path / 'bag'))), tmp_path).actions
    assert [f.text for f in command.fields] == ['position[finger]']


def test_name_twice_in_a_message_names_no_joint(tmp_path):
    found = survey(robot_bag(tmp_path / 'bag', names=('hip', 'hip')))
    paths = [f.path for f in by_name(found)['/joint_states'].fields]
    assert paths == ['position[0:2]', 'velocity[0:2]']


def test_field_name_that_holds_messages_names_no_joints(tmp_path):
    messages = Messages()
    store = messages._recording.typestore
    store.register(get_types_from_msg(
        'geometry_msgs/Vector3[] name\nfloat64[] x', 'my_msgs/msg/Odd'))
    for k in range(20):
        vector = messages.make('geometry_msgs/msg/Vector3', k, 0.0, 0.0)
        messages.add('odd', messages.make('my_msgs/msg/Odd', [vector], np.array([2.0 * k])),
                     T + k * MS)
    topic, = survey(messages.save(tmp_path / 'bag')).topics
    assert {f.path: f.maximum for f in topic.fields}['x[0:1]'] == 38


@pytest.mark.parametrize('nothing', [np.inf, np.nan])
@pytest.mark.parametrize('count', [10, 100])
def test_what_was_never_finite_is_left_out_with_the_reason(tmp_path, nothing, count):
    messages = Messages()
    for k in range(100):
        now = T + 20 * MS * k
        messages.add('scan', messages.scan(now, [nothing] * count), now)
        joints = messages.joints(now, [k, nothing])
        messages.add('joint_states', joints, now)
        messages.add('robot/pose', messages.pose(now, k / 100, np.nan), now)
        messages.add('cmd_vel', messages.twist(k, -k), now)
    text = starting_spec(survey(messages.save(tmp_path / 'bag')))
    spec = load(text, tmp_path)
    assert [f.text for signal in spec.observations for f in signal.fields] == [
        'position[hip]', 'pose.position.x', 'pose.position.y']
    assert ('#   /scan (sensor_msgs/msg/LaserScan): nothing but NaN or infinite in ranges['
            in text)
    assert '  # Left out of /joint_states: nothing but NaN or infinite in position[knee]' in text
    assert '  # Left out of /robot/pose: nothing but NaN or infinite in pose.orientation.z' in text


def test_folder_of_bags_is_told_from_a_bag(tmp_path):
    one = robot_bag(tmp_path / 'runs' / 'one', 1)
    assert inspect(tmp_path / 'runs', None, None) == inspect(one, None, None)
    robot_bag(tmp_path / 'runs' / 'two', 1)
    with pytest.raises(BagError) as refused:
        inspect(tmp_path / 'runs', None, None)
    assert str(refused.value).endswith(
        f'found a folder with 2 bags: one, two; inspect one of them, such as {one}')


def test_names_in_a_bag_do_not_steer_the_terminal(tmp_path):
    messages = Messages()
    for k in range(20):
        scan = messages.scan(T + k * MS, [1.0, 2.0])
        scan.header.frame_id = 'a\x1b[2J\nb'
        messages.add('scan', scan, T + k * MS)
        messages.add('od\nd: 1', messages.twist(k, k), T + k * MS)
    found = survey(messages.save(tmp_path / 'bag'))
    assert '\x1b' not in found.text() and 'a [2J b' in found.text()
    text = starting_spec(found)
    assert '\nd: 1' not in text and 'its name or type is none of ROS' in text


def test_spec_is_not_written_over_and_what_is_no_bag_is_refused(tmp_path):
    bag, out = robot_bag(tmp_path / 'bag', 1), tmp_path / 'robot.yaml'
    assert f'wrote {out}' in inspect(bag, None, out)
    written = out.read_text()
    with pytest.raises(BagError, match='expected no file there, found one'):
        inspect(bag, None, out)
    assert out.read_text() == written
    with pytest.raises(BagError, match='cannot be written: No such file'):
        inspect(bag, None, tmp_path / 'nowhere' / 'robot.yaml')
    with pytest.raises(BagError, match='no such file or folder'):
        inspect(tmp_path / 'nothing', None, None)
    assert '--spec-out' in inspect(bag, None, None)


def bags_of_others():
    """Return the bags in the folder that IDQL_ROS_BAGS names."""
    folder = os.environ.get('IDQL_ROS_BAGS')
    if not folder:
        return [pytest.param(None, marks=pytest.mark.skip(reason='IDQL_ROS_BAGS names no folder'))]
    return [pytest.param(path, id=path.relative_to(folder).as_posix())
            for path in storage.find([folder]) if 'broken' not in path.relative_to(folder).parts]


@pytest.mark.parametrize('path', bags_of_others())
def test_bag_of_others_gives_a_spec_that_loads_or_says_what_is_missing(path, tmp_path):
    try:
        found = survey(path)
    except BagError as error:
        assert '\n' not in str(error)
        return
    text = starting_spec(found)
    assert all(line.isprintable() for line in found.text().splitlines())
    if '\nactions: []' in text or '\nobservations: []' in text:
        assert '# no topic looks like' in text
        return
    spec = load(text, tmp_path)
    with storage.Bag(Path(path)) as bag:
        for stream in (*spec.observations, *spec.actions):
            assert bag.topics[stream.topic].type == stream.type
