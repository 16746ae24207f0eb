"""Bags become a dataset: whole or not at all, the same however it was made."""

import importlib
import json
import multiprocessing
import os
from pathlib import Path
import signal
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pytest

hypothesis = pytest.importorskip('hypothesis', reason='hypothesis is not installed')
pytest.importorskip('rosbags', reason='rosbags is not installed')
pytest.importorskip('minari', reason='minari is not installed')
from hypothesis import strategies as st  # noqa: E402
from idql_ros import message as messages  # noqa: E402
import recording as rec  # noqa: E402
from recording import drive, MS, Recording, robot, T  # noqa: E402
from training import alignment, conversion  # noqa: E402
from training.conversion import align_bags, Conversion, convert  # noqa: E402
from training.datasets import DatasetError, load_minari  # noqa: E402
from training.rewards import RewardError, Task  # noqa: E402
from training.storage import Bag, BagError  # noqa: E402

ROOT = Path(__file__).parents[1]
ID = 'test/drive-v0'


def reach(x, tolerance=0.05):
    """Return the task of reaching x on the line that `drive` takes."""
    return Task({'sparse_goal': {'goal': [x, -x], 'tolerance': tolerance}})


def converted(paths, folder, spec=None, task=None, **options):
    """Convert bags; return the dataset and its metadata."""
    convert(paths, Conversion(spec or robot(), task or reach(2.0)), ID, folder, **options)
    return load_minari(ID, folder)


def refusal(path, spec):
    """Return the text that refuses a bag."""
    result, = align_bags([path], Conversion(spec, None), 1)
    text = result.account['refused']
    assert text.startswith(f'{path}: ') and '\n' not in text
    return text.removeprefix(f'{path}: ')


def left_in(folder):
    """Return the names of what lies in a folder, hidden or not."""
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize(('goal', 'terminal'), [(3.0, 2), (3.4, 3)], ids=['at_tick', 'between'])
def test_terminal_ends_an_episode_and_the_rest_is_a_new_one(tmp_path, goal, terminal):
    path = drive(8).save(tmp_path / 'bag')
    dataset, metadata = converted([path], tmp_path / 'datasets', task=reach(goal))
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
    paths = [drive(3, first=20).save(tmp_path / 'a'), recording.save(tmp_path / 'b')]
    dataset, metadata = converted(paths, tmp_path / 'datasets')
    assert metadata['bags'] == 'a, b'
    assert dataset.observations[:, 0].tolist() == [20, 21, 0, 1, 2, 10, 11, 12]
    assert (dataset.next_observations[:, 0] - dataset.observations[:, 0] == 1).all()
    assert dataset.masks.tolist() == [1, 1, 1, 0, 1, 1, 1, 1]
    assert dataset.episodes.tolist() == [0, 0, 1, 1, 2, 3, 3, 3]


def test_pieces_of_a_long_stretch_are_truncated_and_lose_no_transition(tmp_path, monkeypatch):
    path = drive(12).save(tmp_path / 'bag')
    whole, _ = converted([path], tmp_path / 'whole', task=reach(99))
    monkeypatch.setattr(alignment, 'LONGEST_STRETCH', 4)
    pieces, _ = converted([path], tmp_path / 'pieces', task=reach(99))
    assert pieces.episodes.tolist() == [0] * 4 + [1] * 4 + [2] * 3
    for name in ('observations', 'actions', 'rewards', 'masks', 'next_observations'):
        assert np.array_equal(getattr(pieces, name), getattr(whole, name))
    assert (pieces.masks == 1).all()


def test_dataset_says_what_it_was_made_of(tmp_path):
    spec = robot()
    path = drive(4).save(tmp_path / 'bag')
    _, metadata = converted([path], tmp_path / 'datasets', reference_scores=(-10.0, 0.0))
    assert metadata['spec'] == spec.to_json()
    assert json.loads(metadata['task']) == json.loads(reach(2.0).to_json())
    import hashlib
    stored = json.loads(metadata['sources'])['bag']
    assert stored == {'bag.mcap': hashlib.sha256((path / 'bag.mcap').read_bytes()).hexdigest()}
    assert str(tmp_path) not in str(metadata)
    assert metadata['code_version']
    import minari
    os.environ['MINARI_DATASETS_PATH'] = str(tmp_path / 'datasets')
    try:
        plain = minari.load_dataset(ID)
    finally:
        del os.environ['MINARI_DATASETS_PATH']
    assert plain.total_steps == 3
    assert plain.storage.metadata['ref_min_score'] == -10.0
    assert plain.storage.metadata['ref_max_score'] == 0.0


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_processes_give_the_dataset_of_one(tmp_path, storage):
    paths = [drive(5 + k, first=10 * k).save(tmp_path / f'bag_{k}', storage) for k in range(3)]
    alone, _ = converted(paths, tmp_path / 'alone', jobs=1)
    parallel, _ = converted(paths, tmp_path / 'parallel', jobs=2)
    assert alone.content_hash() == parallel.content_hash()
    assert left_in(tmp_path / 'parallel') == ['test']


def test_refused_bag_writes_no_dataset_and_the_others_wait_to_be_resumed(tmp_path, monkeypatch):
    good = [drive(4, first=10 * k).save(tmp_path / f'good_{k}') for k in range(2)]
    bad = drive(4).save(tmp_path / 'bad')
    (bad / 'bad.mcap').write_bytes((bad / 'bad.mcap').read_bytes()[:500])
    reported = []
    with pytest.raises(BagError, match='bad'):
        converted([bad, *good], tmp_path / 'datasets', report=reported.extend)
    assert [bool(result.account['refused']) for result in reported] == [True, False, False]
    assert left_in(tmp_path / 'datasets') == [
        conversion.staging_folder(ID, tmp_path / 'datasets').name]
    aligned = []
    align = alignment.align
    monkeypatch.setattr(alignment, 'align', lambda *a: aligned.append(a) or align(*a))
    dataset, _ = converted(good, tmp_path / 'datasets', resume=True)
    assert aligned == [], 'what was done is not done again'
    assert left_in(tmp_path / 'datasets') == ['test']
    anew, _ = converted(good, tmp_path / 'anew')
    assert dataset.content_hash() == anew.content_hash()


@pytest.mark.parametrize('damaged', [False, True])
def test_notes_of_the_reader_are_kept_also_of_a_bag_refused_midway(tmp_path, monkeypatch, damaged):
    read = Bag.messages

    def noting(bag, topics):
        for number, message in enumerate(read(bag, topics)):
            if number == 2:
                bag.notes.append('decoded as in the bag')
            if number == 3 and damaged:
                raise BagError('damaged')
            yield message

    monkeypatch.setattr(Bag, 'messages', noting)
    path = drive(4).save(tmp_path / 'bag')
    result, = align_bags([path], Conversion(robot(), None), 1)
    assert result.account['notes'] == ['decoded as in the bag']
    assert bool(result.account['refused']) is damaged


def test_two_conversions_to_one_id_do_not_meet(tmp_path):
    path = drive(4).save(tmp_path / 'bag')
    refused = []

    def meanwhile(_):
        with pytest.raises(BagError, match='another is going on') as error:
            converted([path], tmp_path / 'datasets', task=reach(3.0), resume=True)
        refused.append(error)

    dataset, metadata = converted([path], tmp_path / 'datasets', report=meanwhile)
    assert refused and json.loads(metadata['task']) == json.loads(reach(2.0).to_json())
    assert dataset.rewards.tolist() == [-1, 0, -1]


def test_process_that_is_killed_is_told_and_the_others_end(tmp_path, monkeypatch):
    (tmp_path / 'my_end.py').write_text(
        'import os, signal\n'
        'def score(steps):\n'
        '    os.kill(os.getpid(), signal.SIGKILL)\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    paths = [drive(4, first=10 * k).save(tmp_path / f'bag_{k}') for k in range(3)]
    with pytest.raises(BagError, match='ended with -9.*--resume'):
        converted(paths, tmp_path / 'datasets', task=Task({'my_end:score': {}}), jobs=2)
    assert multiprocessing.active_children() == []


def test_ids_that_differ_by_a_slash_have_folders_of_their_own(tmp_path):
    assert conversion.staging_folder('aa/bb-v0', tmp_path) != (
        conversion.staging_folder('aa-bb-v0', tmp_path))


def test_resuming_with_another_task_or_bag_begins_anew(tmp_path):
    paths = [drive(4, first=10 * k).save(tmp_path / f'bag_{k}') for k in range(2)]
    bad = tmp_path / 'bad'
    bad.mkdir()
    for change in ('task', 'bag'):
        with pytest.raises(BagError):
            converted([*paths, bad], tmp_path / 'datasets', overwrite=True)
        task = reach(11.0 if change == 'task' else 2.0)
        if change == 'bag':
            (paths[0] / 'metadata.yaml').unlink()
            (paths[0] / 'bag_0.mcap').unlink()
            paths[0].rmdir()
            drive(6).save(paths[0])
        found, _ = converted(
            paths, tmp_path / 'datasets', task=task, resume=True, overwrite=True)
        anew, _ = converted(paths, tmp_path / change, task=task)
        assert found.content_hash() == anew.content_hash()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_interrupted_conversion_leaves_no_dataset_and_is_resumed(tmp_path, number):
    spec = tmp_path / 'robot.yaml'
    spec.write_text(robot().to_json())
    small = drive(20).save(tmp_path / 'a_small', 'sqlite3')
    large = drive(20_000, start_ns=T + 10**15).save(tmp_path / 'b_large', 'sqlite3')
    command = [sys.executable, '-m', 'training.bags', str(small), str(large), '--spec', str(spec),
               '--reward', 'sparse_goal: {goal: [3, -3], tolerance: 0.1}', '--dataset-id', ID,
               '--root', str(tmp_path / 'datasets'), '--report', str(tmp_path / 'report'),
               '--jobs', '2']
    child = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    staging = conversion.staging_folder(ID, tmp_path / 'datasets')
    try:
        while not list(staging.glob('*.json')):
            assert child.poll() is None, child.stderr.read()
            time.sleep(0.01)
        child.send_signal(number)
        _, error = child.communicate(timeout=20)
    finally:
        child.kill()
    assert child.returncode == 1 and 'Traceback' not in error
    assert 'interrupted; no dataset was written. Bags that are done: 1' in error
    assert left_in(tmp_path / 'datasets') == [staging.name]
    done = subprocess.run([*command, '--resume'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert left_in(tmp_path / 'datasets') == ['test']
    dataset, _ = load_minari(ID, tmp_path / 'datasets')
    assert len(dataset.rewards) == 19 + 19_999


def test_resuming_with_another_function_of_ones_own_begins_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'dont_write_bytecode', True)
    path, bad = drive(4).save(tmp_path / 'bag'), tmp_path / 'bad'
    bad.mkdir()
    for value in (1.0, 2.0):
        (tmp_path / 'my_rewards.py').write_text(
            'import numpy as np\n'
            'def score(steps):\n'
            '    none = np.zeros(len(steps.actions), bool)\n'
            f'    return none + {value}, none\n')
        sys.modules.pop('my_rewards', None)
        importlib.invalidate_caches()
        options = {'task': Task({'my_rewards:score': {}}), 'resume': True}
        if value == 1.0:
            with pytest.raises(BagError):
                converted([path, bad], tmp_path / 'datasets', **options)
    dataset, _ = converted([path], tmp_path / 'datasets', **options)
    assert dataset.rewards.tolist() == [2.0] * 3


def test_missing_topic_is_named_with_those_that_are_there(tmp_path):
    recording = drive(3)
    recording.entries = [entry for entry in recording.entries if entry[1] == 'odom']
    path = recording.save(tmp_path / 'bag', silent=['velocity'])
    assert refusal(path, robot()) == 'expected the topic cmd_vel, found odom'


def test_wrong_type_is_named_with_the_right_one(tmp_path):
    path = drive(3).save(tmp_path / 'bag')
    twist = {**rec.VELOCITY, 'type': 'geometry_msgs/msg/Twist', 'fields': ['linear.x']}
    assert refusal(path, robot(actions=(twist,))) == (
        'topic cmd_vel: expected geometry_msgs/msg/Twist as the spec states, found '
        'geometry_msgs/msg/TwistStamped')


def test_message_that_a_command_cannot_be_read_from_is_named(tmp_path):
    array = {**rec.GRIPPER, 'type': 'std_msgs/msg/Float64MultiArray', 'fields': ['data[0]']}
    recording = drive(3, robot(actions=(rec.VELOCITY, array)))
    recording.add_message('gripper', messages.blank(array['type']), T + 20 * MS)
    assert refusal(recording.save(tmp_path / 'bag'), recording.spec) == (
        'topic gripper (std_msgs/msg/Float64MultiArray): field data[0] has 0 elements')


def test_frame_that_the_spec_does_not_state_is_refused(tmp_path):
    path = drive(4).save(tmp_path / 'bag')
    result, = align_bags(
        [path], Conversion(robot(({**rec.ODOMETRY, 'frame_id': 'map'},)), None), 1)
    assert result.episodes == []
    assert any('map' in reason for reason in result.account['unused'])
    assert 'expected the frame_id map that the spec states' in result.account['refused']
    command = {**rec.VELOCITY, 'frame_id': 'map'}
    assert 'map' in refusal(path, robot(actions=(command,)))


def test_leading_slashes_of_topics_do_not_matter(tmp_path):
    spec = robot(({**rec.ODOMETRY, 'topic': '/odom'},), ({**rec.VELOCITY, 'topic': '/cmd_vel'},))
    dataset, _ = converted([drive(4).save(tmp_path / 'bag')], tmp_path / 'datasets', spec)
    assert len(dataset.rewards) == 3


def test_rewards_and_ends_come_from_topics_of_the_bag(tmp_path):
    recording = drive(5)
    for k in range(5):
        message = messages.blank('std_msgs/msg/Float64')
        message.data = float(k)
        recording.add_message('score', message, T + (500 * k + 100) * MS)
    done = messages.blank('std_msgs/msg/Bool')
    done.data = True
    recording.add_message('done', done, T + 750 * MS)
    task = Task({'topic': {'topic': '/score', 'field': 'data'}},
                {'topic': {'topic': 'done', 'field': 'data'}})
    path = recording.save(tmp_path / 'bag')
    dataset, _ = converted([path], tmp_path / 'datasets', task=task)
    assert dataset.rewards.tolist() == [0, 1, 2, 3]
    assert dataset.masks.tolist() == [1, 0, 1, 1]
    assert dataset.episodes.tolist() == [0, 0, 1, 1]
    with pytest.raises(BagError, match='expected the topic missing, found cmd_vel, done, odom'):
        converted([path], tmp_path / 'datasets',
                  task=Task({'topic': {'topic': 'missing', 'field': 'data'}}), overwrite=True)


def test_bag_without_a_decision_is_refused(tmp_path):
    path = Recording(robot()).save(tmp_path / 'bag')
    with pytest.raises(BagError, match='expected decisions in the bags, found none'):
        converted([path], tmp_path / 'datasets')
    assert left_in(tmp_path / 'datasets') == []


def test_what_does_not_fit_is_found_before_the_work(tmp_path):
    path = drive(4).save(tmp_path / 'bag')
    converted([path], tmp_path / 'datasets')
    with pytest.raises(DatasetError, match='exists'):
        converted([path], tmp_path / 'datasets')
    with pytest.raises(RewardError, match='goal'):
        converted([path], tmp_path / 'datasets', overwrite=True,
                  task=Task({'sparse_goal': {'goal': [1, 2, 3], 'tolerance': 1}}))
    with pytest.raises(DatasetError, match='id'):
        convert([path], Conversion(robot(), reach(1.0)), 'no version', tmp_path / 'datasets')


ARRAY = {'name': 'numbers', 'topic': 'numbers', 'type': 'std_msgs/msg/Float64MultiArray',
         'fields': ['data[0:12]'], 'unit': '1', 'max_age': 0.25}


def long_bag(path, count):
    """Write a lone .db3 with `count` messages of 12 numbers at 1 kHz, and commands at 10 Hz."""
    recording = Recording(robot((ARRAY,), (rec.GRIPPER,), rate=10, tick='timer'))
    recording.add('numbers', np.arange(12), T)
    recording.add('gripper', [0.5], T)
    (*_, numbers), (*_, command) = recording.entries
    database = sqlite3.connect(path)
    database.executescript(
        'CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL, '
        'serialization_format TEXT NOT NULL, offered_qos_profiles TEXT NOT NULL);'
        'CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL, '
        'timestamp INTEGER NOT NULL, data BLOB NOT NULL);'
        'CREATE INDEX timestamp_idx ON messages (timestamp ASC);'
        "INSERT INTO topics VALUES (1, '/numbers', 'std_msgs/msg/Float64MultiArray', 'cdr', '');"
        "INSERT INTO topics VALUES (2, '/gripper', 'std_msgs/msg/Float64', 'cdr', '');")
    database.executemany(
        'INSERT INTO messages (topic_id, timestamp, data) VALUES (?, ?, ?)',
        (row for k in range(count) for row in (
            [(1, T + MS * k, numbers)] + [(2, T + MS * k + 5, command)] * (k % 100 == 0))))
    database.commit()
    database.close()
    return recording.spec


def test_bag_of_three_million_messages_is_converted_in_less_than_a_gigabyte(tmp_path):
    spec = long_bag(tmp_path / 'long.db3', 3_000_000)
    (tmp_path / 'robot.yaml').write_text(spec.to_json())
    # Of this process image alone: what getrusage tells begins with the parent's.
    code = (
        'import pathlib, re, sys\n'
        'from training import bags\n'
        'bags.run(sys.argv[1:])\n'
        'status = pathlib.Path("/proc/self/status").read_text()\n'
        'print(re.search(r"VmHWM:\\s*(\\d+) kB", status)[1])')
    done = subprocess.run(
        [sys.executable, '-c', code, str(tmp_path / 'long.db3'), '--spec',
         str(tmp_path / 'robot.yaml'), '--reward', 'action_cost: {}', '--dataset-id', ID, '--root',
         str(tmp_path / 'datasets'), '--report', str(tmp_path / 'report'), '--jobs', '1'],
        cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) < 2**20, 'KiB'
    dataset, _ = load_minari(ID, tmp_path / 'datasets')
    # 3000 s at 10 Hz; the first tick comes with the second message, the last has no next one.
    assert 29_990 <= len(dataset.rewards) <= 30_000


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """Give a good bag of each storage."""
    folder = tmp_path_factory.mktemp('whole')
    return {storage: drive(30).save(folder / storage, storage) for storage in ('mcap', 'sqlite3')}


@hypothesis.given(content=st.binary(max_size=300), storage=st.sampled_from(['mcap', 'sqlite3']),
                  keep=st.integers(0, 60_000))
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
def test_random_bytes_in_a_bag_give_no_traceback_and_no_part_of_a_dataset(
        tmp_path_factory, whole, content, storage, keep):
    folder = tmp_path_factory.mktemp('damaged')
    (folder / 'bag').mkdir()
    for file in whole[storage].iterdir():
        data = file.read_bytes()
        if file.suffix != '.yaml':
            data = data[:keep] + content + data[keep + len(content):]
        (folder / 'bag' / file.name).write_bytes(data)
    try:
        dataset, _ = converted([folder / 'bag'], folder / 'datasets')
    except (BagError, DatasetError) as error:
        assert '\n' not in str(error)
        assert ID.split('/')[0] not in left_in(folder / 'datasets')
    else:
        # Bytes of no consequence, or of a number: nothing is missing.
        assert len(dataset.rewards) >= 28
