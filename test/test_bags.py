"""Bags become episodes: which command answers which tick, and where a recording is cut."""

from pathlib import Path
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')
pytest.importorskip('minari', reason='minari is not installed')
from idql_ros import message as messages  # noqa: E402
import recording as rec  # noqa: E402
from recording import drive, MS, Recording, robot, T  # noqa: E402
from training import bags, rewards  # noqa: E402
from training.bags import BagError, read_segments  # noqa: E402
from training.datasets import load_minari  # noqa: E402

ROOT = Path(__file__).parents[1]


def shape(segments):
    """Return x of the observations and the commands of each segment, as lists."""
    return [([round(float(o[0]), 4) for o in s.observations],
             [round(float(a[0]), 4) for a in s.actions]) for s in segments]


def ticks(first, last):
    """Return what an uninterrupted part from tick `first` to tick `last` looks like."""
    return ([float(k) for k in range(first, last + 1)], [k / 10 for k in range(first, last)])


def refusal(path, spec):
    """Return the text that refuses a bag."""
    with pytest.raises(BagError) as refused:
        read_segments(path, spec)
    assert str(refused.value).startswith(f'{path}: ') and '\n' not in str(refused.value)
    return str(refused.value).removeprefix(f'{path}: ')


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_each_tick_is_paired_with_the_command_that_answers_it(tmp_path, storage):
    bag = drive(6).save(tmp_path / 'bag', storage)
    segment, = read_segments(bag, robot())
    assert shape([segment]) == [ticks(0, 5)]
    assert segment.observations[1].tolist() == [1.0, -1.0]
    assert segment.observations[0].dtype == segment.actions[0].dtype == np.float32
    # Within tick 0: what was seen after it, up to and including tick 1.
    seen = sorted(set(segment.within[0][:, 0].tolist()))
    assert seen == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize(('delay_ns', 'expected'), [
    # Odometry is logged 1 ms after its stamp: that is when the tick begins for the recorder.
    (-2 * MS, 'before'), (MS - 1, 'before'), (MS + 1, 'answer'), (500 * MS, 'answer')])
def test_command_of_a_tick_is_the_first_after_it_not_the_one_before(tmp_path, delay_ns, expected):
    recording = Recording(robot())
    for k in range(4):
        stamp_ns = T + 500 * MS * k
        recording.add('position', [k, 0], stamp_ns)
        recording.add('velocity', [k / 10], stamp_ns, stamp_ns + delay_ns)
    found = shape(read_segments(recording.save(tmp_path / 'bag'), robot()))
    # A command logged no later than tick k answers tick k - 1.
    shift = 1 if expected == 'before' else 0
    assert found == [([0.0, 1.0, 2.0, 3.0], [(k + shift) / 10 for k in range(3)])]


def test_second_command_of_a_tick_is_not_taken(tmp_path):
    recording = drive(3)
    recording.add('velocity', [9], T + 20 * MS)
    recording.add('velocity', [9], T + 490 * MS)
    assert shape(read_segments(recording.save(tmp_path / 'bag'), robot())) == [ticks(0, 2)]


def test_missing_command_cuts_and_nothing_bridges_the_cut(tmp_path):
    recording = drive(8)
    recording.entries = [entry for entry in recording.entries
                         if entry[:2] != (T + 3 * 500 * MS + 10 * MS, 'cmd_vel')]
    found = shape(read_segments(recording.save(tmp_path / 'bag'), robot()))
    assert found == [ticks(0, 3), ticks(4, 7)]


def test_command_later_than_a_period_after_its_tick_is_no_answer_to_it(tmp_path):
    recording = Recording(robot())
    for k, wait in enumerate([500, 700, 500, 500]):
        # Odometry jitters within its periods; the command of tick 1 comes 501 ms after it.
        stamp_ns = T + (500 * k + (200 if wait == 500 and k > 1 else 0)) * MS
        recording.add('position', [k, 0], stamp_ns)
        recording.add('velocity', [k / 10], stamp_ns, stamp_ns + (502 if k == 1 else 10) * MS)
    found = shape(read_segments(recording.save(tmp_path / 'bag'), robot()))
    assert found == [([0.0, 1.0], [0.0]), ([2.0, 3.0], [0.2])]


@pytest.mark.parametrize('missing', [1, 3])
def test_hole_in_the_observations_cuts(tmp_path, missing):
    recording = drive(9)
    begin_ns = T + 4 * 500 * MS
    recording.entries = [
        entry for entry in recording.entries
        if entry[1] != 'odom' or not begin_ns < entry[0] < begin_ns + missing * 500 * MS]
    found = shape(read_segments(recording.save(tmp_path / 'bag'), robot()))
    assert found == [ticks(0, 3), ticks(4 + missing, 8)]


def test_hole_of_the_whole_recording_cuts(tmp_path):
    recording = drive(4)
    recording.entries += drive(4, start_ns=T + 10**12, first=10).entries
    found = shape(read_segments(recording.save(tmp_path / 'bag'), robot()))
    assert found == [ticks(0, 3), ticks(10, 13)]


def test_clock_that_was_set_back_cuts(tmp_path):
    recording = drive(4)
    for logged_ns, *rest in drive(4, start_ns=T - 60 * 10**9, first=10).entries:
        recording.entries.append((logged_ns + 62 * 10**9, *rest))
    found = shape(read_segments(recording.save(tmp_path / 'bag'), robot()))
    assert found == [ticks(0, 3), ticks(10, 13)]


@pytest.mark.parametrize(('topic', 'cut'), [('odom', [(0, 2), (4, 7)]),
                                            ('cmd_vel', [(0, 3), (4, 7)])])
def test_number_that_is_not_finite_cuts(tmp_path, topic, cut):
    recording = drive(8)
    name = {'odom': 'position', 'cmd_vel': 'velocity'}[topic]
    at_ns = T + 3 * 500 * MS + {'odom': 1, 'cmd_vel': 10}[topic] * MS
    index = [entry[:2] for entry in recording.entries].index((at_ns, topic))
    recording.add(name, [np.nan] * {'odom': 2, 'cmd_vel': 1}[topic],
                  at_ns - {'odom': 1, 'cmd_vel': 10}[topic] * MS, at_ns)
    recording.entries[index] = recording.entries.pop()
    found = shape(read_segments(recording.save(tmp_path / 'bag'), robot()))
    assert found == [ticks(*part) for part in cut]


def test_tick_of_several_signals_begins_when_the_last_is_in(tmp_path):
    spec = robot((rec.ODOMETRY, rec.JOINTS, rec.LEVEL), (rec.VELOCITY, rec.GRIPPER))
    recording = Recording(spec)
    for k in range(4):
        stamp_ns = T + 500 * MS * k
        recording.add('position', [k, 0], stamp_ns)
        recording.add('velocity', [9], stamp_ns, stamp_ns + 2 * MS)  # before the tick is complete
        recording.add('joints', [10 + k, 0], stamp_ns, stamp_ns + 5 * MS)
        recording.add('level', [20 + k], stamp_ns, stamp_ns + 7 * MS)
        recording.add('velocity', [k], stamp_ns, stamp_ns + 9 * MS)
        recording.add('gripper', [-k], stamp_ns, stamp_ns + 8 * MS)
    segment, = read_segments(recording.save(tmp_path / 'bag'), spec)
    assert [o[[0, 2, 4]].tolist() for o in segment.observations] == [
        [k, 10 + k, 20 + k] for k in range(4)]
    assert [a.tolist() for a in segment.actions] == [[k, -k] for k in range(3)]


def test_decision_needs_a_command_on_every_topic(tmp_path):
    spec = robot(actions=(rec.VELOCITY, rec.GRIPPER))
    recording = drive(6, spec)
    for k in (0, 1, 3, 4, 5):
        recording.add('gripper', [1], T + 500 * MS * k, T + 500 * MS * k + 20 * MS)
    found = shape(read_segments(recording.save(tmp_path / 'bag'), spec))
    assert found == [ticks(0, 2), ticks(3, 5)]


def test_ticks_of_a_timer_take_what_was_logged_by_then(tmp_path):
    spec = robot(tick='timer')
    recording = Recording(spec)
    for k in range(5):
        tick_ns = T + 500 * MS * k
        recording.add('position', [k, 0], tick_ns, tick_ns)  # just in time
        recording.add('position', [99, 0], tick_ns + 1, tick_ns + 1)  # a nanosecond late
        recording.add('position', [98, 0], tick_ns + 400 * MS)
        recording.add('velocity', [k / 10], tick_ns, tick_ns + 10 * MS)
    found = shape(read_segments(recording.save(tmp_path / 'bag'), spec))
    assert found == [ticks(0, 4)]


def test_timer_cuts_where_the_newest_observation_is_too_old(tmp_path):
    spec = robot(tick='timer')
    recording = drive(9, spec)
    begin_ns = T + 4 * 500 * MS
    recording.entries = [entry for entry in recording.entries
                         if not begin_ns - 260 * MS < entry[0] < begin_ns + 50 * MS]
    # Between ticks at 500 ms: the sample of tick k is the one 100 ms before it, x = k - 0.2.
    found = shape(read_segments(recording.save(tmp_path / 'bag'), spec))
    assert [len(actions) for _, actions in found] == [2, 3]
    assert found[0][0] == [0.8, 1.8, 2.8] and found[1][0] == [4.8, 5.8, 6.8, 7.8]


def test_recorder_with_a_clock_of_its_own_changes_nothing(tmp_path):
    recording = drive(4)
    expected, = read_segments(recording.save(tmp_path / 'same'), robot())
    recording.entries = [(logged_ns + 10**12, *rest) for logged_ns, *rest in recording.entries]
    found, = read_segments(recording.save(tmp_path / 'other'), robot())
    assert shape([found]) == shape([expected])
    assert [w.tolist() for w in found.within] == [w.tolist() for w in expected.within]


def test_leading_slashes_of_topics_do_not_matter(tmp_path):
    spec = robot(({**rec.ODOMETRY, 'topic': '/odom'},), ({**rec.VELOCITY, 'topic': '/cmd_vel'},))
    assert shape(read_segments(drive(4).save(tmp_path / 'bag'), spec)) == [ticks(0, 3)]


def test_command_can_be_observed_too(tmp_path):
    before = {'name': 'before', 'topic': 'cmd_vel', 'type': rec.VELOCITY['type'],
              'fields': rec.VELOCITY['fields'], 'unit': 'm/s', 'max_age': 1}
    spec = robot((rec.ODOMETRY, before), tick='timer')
    recording = drive(6)
    segment, = read_segments(recording.save(tmp_path / 'bag'), spec)
    previous = [float(o[2]) for o in segment.observations[1:]]
    assert previous == [float(a[0]) for a in segment.actions]


def test_missing_topic_is_named_with_those_that_are_there(tmp_path):
    recording = drive(3)
    recording.entries = [entry for entry in recording.entries if entry[1] == 'odom']
    path = recording.save(tmp_path / 'bag', silent=['velocity'])
    assert refusal(path, robot()) == 'expected the topic cmd_vel of the spec, found odom'


def test_wrong_type_is_named_with_the_right_one(tmp_path):
    path = drive(3).save(tmp_path / 'bag')
    twist = {**rec.VELOCITY, 'type': 'geometry_msgs/msg/Twist', 'fields': ['linear.x']}
    spec = robot(actions=(twist,))
    assert refusal(path, spec) == (
        'topic cmd_vel: expected geometry_msgs/msg/Twist as the spec states, found '
        'geometry_msgs/msg/TwistStamped')


def test_message_that_a_command_cannot_be_read_from_is_named(tmp_path):
    array = {**rec.GRIPPER, 'type': 'std_msgs/msg/Float64MultiArray', 'fields': ['data[0]']}
    recording = drive(3, robot(actions=(rec.VELOCITY, array)))
    recording.add_message('gripper', messages.blank(array['type']), T + 20 * MS)
    assert refusal(recording.save(tmp_path / 'bag'), recording.spec) == (
        'topic gripper (std_msgs/msg/Float64MultiArray): field data[0] has 0 elements')


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_truncated_bag_is_refused(tmp_path, storage):
    path = drive(200).save(tmp_path / 'bag', storage)
    data, = (file for file in path.iterdir() if file.suffix != '.yaml')
    content = data.read_bytes()
    for share in (0.0, 0.001, 0.3, 0.6, 0.9, 0.999):
        data.write_bytes(content[:int(share * len(content))])
        refusal(path, robot())


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_damaged_bytes_are_refused_or_read_but_never_a_traceback(tmp_path, storage):
    path = drive(20).save(tmp_path / 'bag', storage)
    data, = (file for file in path.iterdir() if file.suffix != '.yaml')
    content, rng = data.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(15):
        damaged = np.frombuffer(content, np.uint8).copy()
        # Many at once: single ones mostly hit the numbers, which no bag protects.
        damaged[rng.integers(len(damaged), size=len(damaged) // 200)] ^= 255
        data.write_bytes(damaged.tobytes())
        try:
            read_segments(path, robot())
        except BagError as error:
            assert '\n' not in str(error)
            refused += 1
    assert refused > 0


def test_what_is_no_bag_is_refused(tmp_path):
    path = drive(3).save(tmp_path / 'bag')
    (path / 'metadata.yaml').write_bytes(b'\xff\xfe')
    refusal(path, robot())
    (path / 'metadata.yaml').unlink()
    refusal(path, robot())
    refusal(tmp_path / 'none', robot())
    (tmp_path / 'junk.bag').write_bytes(b'#ROSBAG V2.0\n' + bytes(100))
    refusal(tmp_path / 'junk.bag', robot())


def test_bag_with_fewer_messages_than_it_states_is_refused(tmp_path):
    """As sqlite3 leaves a bag whose recorder lost power: readable, but short."""
    path = drive(6).save(tmp_path / 'bag', 'sqlite3')
    file, = path.glob('*.db3')
    with sqlite3.connect(file) as database:
        database.execute('DELETE FROM messages WHERE id > 20')
    database.close()
    # Six commands and thirty odometry messages.
    assert 'expected the 36 messages that the bag states' in refusal(path, robot())
    assert 'read 20' in refusal(path, robot())


def reach(x, tolerance=0.05):
    """Return the reward of reaching x on the line that `drive` takes."""
    return lambda within: rewards.sparse_goal(within, np.array([x, -x]), tolerance)


@pytest.mark.parametrize(('goal', 'terminal'), [(3.0, 2), (3.4, 3)], ids=['at_tick', 'between'])
def test_terminal_ends_an_episode_and_the_rest_is_a_new_one(tmp_path, goal, terminal):
    path = drive(8).save(tmp_path / 'bag')
    bags.convert([path], robot(), reach(goal), 'test/drive-v0', tmp_path / 'datasets')
    dataset, metadata = load_minari('test/drive-v0', tmp_path / 'datasets')
    # Goal within decision `terminal`: tick 3 itself is seen at the end of decision 2.
    end = np.arange(7) == terminal
    assert dataset.masks.tolist() == (1.0 - end).tolist()
    assert dataset.rewards.tolist() == (end - 1.0).tolist()
    assert dataset.episodes.tolist() == (np.arange(7) > terminal).astype(int).tolist()
    # Every transition is one of the recording, also those about the terminal.
    assert dataset.observations[:, 0].tolist() == list(range(7))
    assert dataset.next_observations[:, 0].tolist() == list(range(1, 8))
    assert dataset.actions[:, 0] == pytest.approx(np.arange(7) / 10)


def test_cut_leaves_the_mask_at_one_and_no_transition_over_it(tmp_path):
    recording = drive(4)
    recording.entries += drive(4, start_ns=T + 10**12, first=10).entries
    paths = [recording.save(tmp_path / 'b'), drive(3, first=20).save(tmp_path / 'a')]
    bags.convert(paths, robot(), reach(2.0), 'test/drive-v0', tmp_path / 'datasets')
    dataset, metadata = load_minari('test/drive-v0', tmp_path / 'datasets')
    # Bags in the order of their names, whatever order they are given in.
    assert metadata['bags'] == 'a, b'
    assert dataset.observations[:, 0].tolist() == [20, 21, 0, 1, 2, 10, 11, 12]
    assert (dataset.next_observations[:, 0] - dataset.observations[:, 0] == 1).all()
    assert dataset.masks.tolist() == [1, 1, 1, 0, 1, 1, 1, 1]
    assert dataset.episodes.tolist() == [0, 0, 1, 1, 2, 3, 3, 3]


def test_spec_is_stored_with_the_dataset(tmp_path):
    spec = robot()
    bags.convert([drive(4).save(tmp_path / 'bag')], spec, reach(2.0), 'test/drive-v0', tmp_path)
    _, metadata = load_minari('test/drive-v0', tmp_path)
    assert metadata['spec'] == spec.to_json()


def test_bag_without_a_decision_is_refused(tmp_path):
    path = Recording(robot()).save(tmp_path / 'bag')
    assert read_segments(path, robot()) == []
    with pytest.raises(BagError, match='expected decisions in the bags, found none'):
        bags.convert([path], robot(), reach(2.0), 'test/drive-v0', tmp_path / 'datasets')


def run(*arguments):
    """Run the program; return its exit code, and what it printed on stderr after the progress."""
    found = subprocess.run([sys.executable, '-m', 'training.bags', *map(str, arguments)], cwd=ROOT,
                           capture_output=True, text=True)
    assert 'Traceback' not in found.stderr
    return found.returncode, found.stderr.rstrip().split('\n')[-1]


def test_program_converts_and_says_in_one_line_what_is_wrong(tmp_path):
    spec = tmp_path / 'robot.yaml'
    spec.write_text(robot().to_json())
    bag = drive(4).save(tmp_path / 'bag')
    options = ['--spec', spec, '--dataset-id', 'test/drive-v0', '--root', tmp_path / 'datasets',
               '--tolerance', '0.1']
    assert run(bag, *options, '--goal', '2', '-2')[0] == 0
    dataset, _ = load_minari('test/drive-v0', tmp_path / 'datasets')
    assert dataset.masks.tolist() == [1, 0, 1]
    for arguments, reason in [
        ([bag, *options, '--goal', '2', '-2'], f'{tmp_path / "datasets/test/drive-v0"} exists'),
        ([tmp_path / 'none', *options, '--goal', '2', '-2', '--overwrite'],
         f'{tmp_path / "none"}: cannot be read as a bag'),
        ([bag, *options, '--goal', '1', '2', '3', '--overwrite'], 'goal: expected 1 to 2 numbers'),
    ]:
        code, error = run(*arguments)
        assert code == 1 and error.startswith(f'error: {reason}'), error


def test_leap_of_the_log_by_years_is_a_hole_like_any_other(tmp_path):
    spec = robot(tick='timer')
    recording = drive(4, spec=spec)
    recording.entries += drive(4, start_ns=T + 10**18, first=10, spec=spec).entries
    segments = read_segments(recording.save(tmp_path / 'bag'), spec)
    assert len(segments) == 2


def test_ticks_that_are_not_used_are_told(tmp_path, capsys):
    recording = drive(8)
    recording.entries = [entry for entry in recording.entries
                         if entry[:2] != (T + 3 * 500 * MS + 10 * MS, 'cmd_vel')]
    bags.convert([recording.save(tmp_path / 'bag')], robot(), reach(2.0), 'test/drive-v0',
                 tmp_path / 'datasets')
    assert 'no command within a period of its tick' in capsys.readouterr().out


def test_bag_given_twice_is_refused(tmp_path):
    path = drive(4).save(tmp_path / 'bag')
    with pytest.raises(BagError, match='once'):
        bags.convert([path, path], robot(), reach(2.0), 'test/drive-v0', tmp_path / 'datasets')
