"""Bags that other people recorded, of robots that know nothing of this package.

They lie in the folder that IDQL_ROS_BAGS names; their specs are in test/specs.
"""

import os
from pathlib import Path
import sqlite3

import numpy as np
import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')
pytest.importorskip('minari', reason='minari is not installed')
from idql_ros import spec as specs  # noqa: E402
from training import alignment  # noqa: E402
from training.conversion import align_bags, Conversion, convert  # noqa: E402
from training.datasets import load_minari  # noqa: E402
from training.rewards import Task  # noqa: E402
from training.storage import Bag, BagError, definitions, find  # noqa: E402

SPECS = Path(__file__).parent / 'specs'
BAGS = os.environ.get('IDQL_ROS_BAGS')
pytestmark = pytest.mark.skipif(
    not BAGS, reason='IDQL_ROS_BAGS names no folder with bags of other robots')

NO_COMMAND = 'no command within a period of its tick'
# Decisions and episodes that the rules make of each, and why ticks are not used.
EXPECTED = {
    'ats_humble_static': (305, 4, 'joint_references (topic /servo/in/references/'
                                  f'joint_references): {NO_COMMAND}'),
    'ats_jazzy_b': (329, 1, None),
    'cougars_auv': (75, 1, None),
    'epuck_webots': (155, 1, None),
    'husky_ur_le': (192, 1, None),
    'p4_pitch45': (517, 1, 'history: 2 of 3 frames since the last gap'),
    'rosbag1': (416, 2, None),
    'selfdrive_test': (452, 3, f'velocity (topic /cmd_vel): {NO_COMMAND}'),
    'tb3_gz_tathya': (97, 1, None),
}


def conversion(name):
    """Return the conversion of a folder, and its bags."""
    return Conversion(specs.load(SPECS / f'{name}.yaml'), Task({'action_cost': {}}, 'never'),
                      definitions([SPECS / 'definitions'])), find([Path(BAGS, name)])


def counted_in_sqlite(path, topics):
    """Return how many messages of topics the storage files of a bag hold."""
    count = 0
    for file in path.glob('*.db3'):
        database = sqlite3.connect(f'file:{file}?immutable=1', uri=True)
        count += database.execute(
            'SELECT count(*) FROM messages JOIN topics ON topic_id = topics.id WHERE '
            f'ltrim(name, "/") IN ({",".join("?" * len(topics))})', sorted(topics)).fetchone()[0]
        database.close()
    return count


@pytest.mark.parametrize('name', sorted(EXPECTED))
def test_recording_converts_by_the_rules_with_its_spec(tmp_path, name):
    made, paths = conversion(name)
    results = []
    convert(paths, made, 'test/recording-v0', tmp_path / 'datasets', report=results.extend)
    dataset, _ = load_minari('test/recording-v0', tmp_path / 'datasets')
    decisions, episodes, reason = EXPECTED[name]
    assert len(dataset.rewards) == decisions
    assert len(np.unique(dataset.episodes)) == episodes
    unused = {key for result in results for key in result.account['unused']}
    assert reason is None or reason in unused
    assert np.isfinite(dataset.observations).all() and (dataset.masks == 1).all()


@pytest.mark.parametrize('name', [
    'ats_humble_static', 'ats_jazzy_b', 'cougars_auv', 'p4_pitch45', 'rosbag1'])
def test_decisions_are_those_that_the_times_of_the_log_allow(name):
    """Count them a second time, from the times alone, as the rules read for a timer's ticks."""
    made, paths = conversion(name)
    spec, period = made.spec, round(1e9 / made.spec.rate)
    (command,), count = spec.actions, 0
    for path in paths:
        with Bag(path) as bag:
            times = {key: np.array([at for _, at, _ in bag.raw([key])])
                     for key in alignment.topics_of(spec, [])}
        everything = np.sort(np.concatenate([*times.values()]))
        grid = np.arange(everything[0] // period + 1, everything[-1] // period + 1) * period

        def newest_ages(topic, at, times=times):
            index = np.searchsorted(times[alignment.key(topic)], at, 'right') - 1
            return np.where(index < 0, np.inf, at - times[alignment.key(topic)][index])

        seen = np.all([newest_ages(s.topic, grid) <= s.max_age * 1e9
                       for s in spec.observations], axis=0)
        frames = max(s.history for s in spec.observations)
        full = np.array([seen[max(0, i - frames + 1):i + 1].all() and i >= frames - 1
                         for i in range(len(seen))])
        answered = newest_ages(command.topic, grid + period) < max(
            period, command.max_age * 1e9 + 1)
        # The last tick is followed by none.
        count += int((full[:-1] & full[1:] & answered[:-1]).sum())
    assert count == EXPECTED[name][0]


@pytest.mark.parametrize('name', sorted(EXPECTED))
def test_every_message_of_the_topics_is_accounted_for(name):
    made, paths = conversion(name)
    for path in paths:
        result, = align_bags([path], made, 1)
        assert not result.account['refused']
        topics = alignment.topics_of(made.spec, [])
        expected = (counted_in_sqlite(path, topics) if path.is_dir() and list(path.glob('*.db3'))
                    else counted_raw(path, topics))
        without_time = result.account['clock'].get('without_time', 0)
        assert result.account['messages'] + without_time == expected > 0


def counted_raw(path, topics):
    """Return how many messages of topics there are, without decoding any."""
    with Bag(path) as bag:
        return sum(1 for _ in bag.raw(topics))


def test_clocks_that_disagree_are_seen():
    accounts = {}
    for name in ('cougars_auv', 'husky_ur_le', 'selfdrive_test', 'tb3_gz_tathya'):
        made, paths = conversion(name)
        accounts[name], = (result.account for result in align_bags(paths, made, 1))
    skew = accounts['cougars_auv']['streams'][0]['stamps']['skew_s']['p50']
    assert 5.9 < skew / 86_400 < 6.1, 'six days'
    # 8 s of 47 are lost against the wall.
    assert accounts['husky_ur_le']['clock']['speed'] == pytest.approx(0.83, abs=0.01)
    assert accounts['selfdrive_test']['clock']['source'] == 'headers'
    assert accounts['tb3_gz_tathya']['clock']['source'] == '/clock'


@pytest.mark.parametrize(('name', 'reason'), [
    ('rb2_sqlite3_talker', 'is no number but str'),
    ('rb2_zstd_file_split', 'is no number but str'),
    ('rb2_split_mcap_nometa', 'is no number but str'),
    ('rb2_empty', 'expected the topic chatter'),
    ('x_zero_byte_db3', ''),
    ('broken/test_sample_truncated.mcap', ''),
    ('broken/demo.mcap', 'git lfs'),
    ('broken/test_truncated.bag', ''),
])
def test_what_cannot_be_used_is_refused_in_one_line(tmp_path, name, reason):
    path = Path(BAGS, name)
    topic, message_type = 'chatter', 'std_msgs/msg/String'
    try:
        with Bag(path) as bag:
            for key, found in bag.topics.items():
                if found.type == message_type:
                    topic = key
    except BagError:
        pass
    spec = specs.parse({
        'spec_version': 1, 'name': 'robot', 'rate': 2, 'tick': 'timer',
        'observations': [{'name': 'text', 'topic': topic, 'type': message_type,
                          'fields': ['data'], 'unit': '1', 'max_age': 1}],
        'actions': [{'name': 'same', 'topic': topic, 'type': message_type, 'fields': ['data'],
                     'dimensions': [{'kind': 'velocity', 'unit': '1', 'lower': -1, 'upper': 1,
                                     'stop': 'zero'}]}]}, 'robot')
    result, = align_bags([path], Conversion(spec, None), 1)
    refused = result.account['refused']
    assert refused and reason in refused and '\n' not in refused, refused
