"""Datasets: written and read without loss, refused where they are unfit."""

from dataclasses import replace
import json
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
import tracemalloc
import warnings

from gymnasium import spaces
import h5py
import minari
from minari.data_collector import EpisodeBuffer
import numpy as np
import ogbench
import pytest
from training import datasets
from training.datasets import (
    action_bounds,
    Dataset,
    DatasetError,
    Episode,
    episodes_of,
    load,
    load_d4rl,
    load_minari,
    load_validation,
    read_episodes,
    read_metadata,
    read_shard,
    ShardWriter,
    split,
    write_minari,
)
from training.rewards import Steps, Task

ROOT = Path(__file__).parents[1]
SPEC = json.dumps({'name': 'r\u00f6bot', 'actions': [
    {'dimensions': [{'lower': -1.0, 'upper': 0.1}]}, {'dimensions': [{'lower': -2, 'upper': 3}]}]})


def episode(steps, seed=0, **changes):
    """Return a random episode of 3 observations and 2 actions."""
    rng = np.random.default_rng(seed)
    return replace(Episode(
        rng.normal(size=(steps + 1, 3)).astype(np.float32),
        rng.normal(size=(steps, 2)).astype(np.float32),
        rng.normal(size=steps),
        terminated=False,
        truncated=True,
    ), **changes)


def write(root, episodes, **options):
    """Write episodes as demo/test-v0."""
    return write_minari(episodes, 'demo/test-v0', root, {'task': 'reach'}, SPEC, **options)


def test_what_is_written_is_read_bit_for_bit(tmp_path):
    episodes = [episode(4, 1, terminated=True, truncated=False), episode(1, 2), episode(6, 3)]
    folder = write(tmp_path, episodes)
    assert folder == tmp_path / 'demo' / 'test-v0'
    dataset, metadata = load_minari('demo/test-v0', tmp_path)
    assert metadata == {'task': 'reach', 'spec': SPEC}
    for name, column in (
        ('observations', [e.observations[:-1] for e in episodes]),
        ('next_observations', [e.observations[1:] for e in episodes]),
        ('actions', [e.actions for e in episodes]),
        ('rewards', [e.rewards.astype(np.float32) for e in episodes]),
    ):
        found = getattr(dataset, name)
        assert found.dtype == np.float32
        assert np.array_equal(found, np.concatenate(column)), name
    assert dataset.episodes.tolist() == [0] * 4 + [1] + [2] * 6


def full_episode(steps, seed=0, **changes):
    """Return an episode with all that a conversion stores."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 3, steps)
    return episode(
        steps, seed, between=rng.normal(size=(counts.sum(), 3)).astype(np.float32), counts=counts,
        topics={'reward': rng.normal(size=steps), 'terminal': rng.integers(0, 2, steps) > 0},
        **changes)


def assert_equal(found, expected):
    """Compare two episodes number by number."""
    for name in ('observations', 'actions', 'rewards', 'between', 'counts'):
        assert np.array_equal(
            getattr(found, name), np.asarray(getattr(expected, name), getattr(found, name).dtype)
        ), name
    assert found.topics.keys() == expected.topics.keys()
    for kind, values in expected.topics.items():
        assert np.array_equal(found.topics[kind], values), kind
    assert (found.terminated, found.truncated, found.continues) == (
        expected.terminated, expected.truncated, expected.continues)


FULL = [
    full_episode(4, 1, terminated=True, truncated=False), full_episode(1, 2, continues='terminal'),
    full_episode(600, 3, continues='length'),
    # Nothing between any ticks.
    episode(2, 4, between=np.zeros((0, 3), np.float32), counts=np.zeros(2, np.int64)),
]


def test_what_relabelling_needs_is_read_as_it_was_written(tmp_path):
    write(tmp_path, iter(FULL))
    for found, expected in zip(read_episodes('demo/test-v0', tmp_path), FULL, strict=True):
        assert_equal(found, expected)
        assert found.between.dtype == np.float32 and found.counts.dtype == np.int64
    assert read_metadata('demo/test-v0', tmp_path) == {
        'task': 'reach', 'spec': SPEC, 'between': 'stored'}
    with h5py.File(tmp_path / 'demo/test-v0/data/main_data.hdf5') as file:
        stored = file['episode_2/idql_ros_between']
        assert (stored.compression, stored.compression_opts, stored.shuffle) == ('gzip', 1, True)


def test_what_relabelling_needs_is_no_matter_to_minari_or_to_learning(tmp_path, monkeypatch):
    plain = [replace(e, between=None, counts=None, topics={}, continues='') for e in FULL]
    hashes, found = [], []
    for name, episodes in (('full', FULL), ('plain', plain)):
        write(tmp_path / name, episodes)
        monkeypatch.setenv('MINARI_DATASETS_PATH', str(tmp_path / name))
        hashes.append(load_minari('demo/test-v0')[0].content_hash())
        dataset = minari.load_dataset('demo/test-v0')
        dataset.set_seed(0)
        cut = dataset.filter_episodes(lambda e: bool(e.truncations[-1]))
        halves = minari.split_dataset(dataset, [1, 3], seed=0)
        joined = minari.combine_datasets([dataset, dataset], 'joined-v0')
        extended = minari.load_dataset('joined-v0')
        extended.update_dataset_from_buffer([EpisodeBuffer(
            observations=np.zeros((2, 3)), actions=np.zeros((1, 2)), rewards=[0.0],
            terminations=[True], truncations=[False])])
        found.append(repr([
            [[e.id, e.observations, e.actions, e.rewards, e.terminations, e.truncations, e.infos]
             for e in some]
            for some in (dataset, dataset.sample_episodes(2), cut, *halves, joined, extended)
        ]))
        assert (len(cut), len(joined), extended.total_steps) == (3, 8, 1215)
    assert hashes[0] == hashes[1] and found[0] == found[1]


def test_metadata_are_those_of_a_dataset_that_minari_made(tmp_path, monkeypatch):
    write(tmp_path / 'ours', FULL, ref_min_score=-3.0, ref_max_score=5)
    monkeypatch.setenv('MINARI_DATASETS_PATH', str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)
        theirs = minari.create_dataset_from_buffers(
            'demo/test-v0',
            [EpisodeBuffer(
                observations=e.observations, actions=e.actions, rewards=e.rewards.astype('f4'),
                terminations=[False] * (len(e.rewards) - 1) + [e.terminated],
                truncations=[False] * (len(e.rewards) - 1) + [e.truncated]) for e in FULL],
            observation_space=spaces.Box(-np.inf, np.inf, (3,), np.float32),
            action_space=spaces.Box(
                np.array([-1, -2], np.float32), np.array([0.1, 3], np.float32)))
    monkeypatch.setenv('MINARI_DATASETS_PATH', str(tmp_path / 'ours'))
    ours = minari.load_dataset('demo/test-v0')
    found = {key: value for key, value in ours.storage.metadata.items()
             if not key.startswith('idql_ros_')}
    assert (found.pop('ref_min_score'), found.pop('ref_max_score')) == (-3, 5)
    assert found.pop('dataset_size') > 0
    expected = {**theirs.storage.metadata}
    assert expected.pop('dataset_size') > 0
    assert found == expected
    assert minari.get_normalized_score(ours, np.array([-3, 5])).tolist() == [0, 1]
    for one, other in zip(
        ours.storage.get_episode_metadata(range(4)), theirs.storage.get_episode_metadata(range(4)),
        strict=True,
    ):
        one.pop('idql_ros_continues', None)
        assert one == other
    with h5py.File(ours.storage.data_path / 'main_data.hdf5') as mine, h5py.File(
            theirs.storage.data_path / 'main_data.hdf5') as other:
        for name, values in other['episode_2'].items():
            stored = mine['episode_2'][name]
            assert (stored.dtype, stored.maxshape) == (values.dtype, values.maxshape), name
            assert np.array_equal(stored, values), name


@pytest.mark.parametrize('scores', [(1.0, None), (None, 1.0), (1.0, 1.0), (0.0, np.nan)])
def test_reference_scores_that_normalise_nothing_are_refused(tmp_path, scores):
    low, high = scores
    with pytest.raises(DatasetError, match='reference scores: expected the lower and the higher'):
        write(tmp_path, [episode(2)], ref_min_score=low, ref_max_score=high)


def test_writing_and_reading_hold_a_few_episodes_of_hundreds(tmp_path):
    steps = 10_000

    def recorded(count=200):
        for seed in range(count):
            yield full_episode(steps, seed)

    def peak(work):
        tracemalloc.start()
        try:
            work()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    one = next(recorded())
    size = sum(array.nbytes for array in (
        one.observations, one.actions, one.rewards, one.between, one.counts,
        *one.topics.values()))

    def read(episodes):
        assert sum(len(e.rewards) == steps for e in episodes) in (40, 200)

    def write_shard():
        with ShardWriter(tmp_path / 'shard.h5') as shard:
            for each in recorded(40):
                shard.add(each)

    for work in (lambda: write(tmp_path, recorded()),
                 lambda: read(read_episodes('demo/test-v0', tmp_path)),
                 write_shard, lambda: read(read_shard(tmp_path / 'shard.h5'))):
        assert peak(work) < 6 * size


# Shards


def test_shard_gives_back_what_was_added_to_it(tmp_path):
    path = tmp_path / 'shard.h5'
    with ShardWriter(path) as shard:
        for each in FULL:
            shard.add(each)
        assert not path.exists()
    for found, expected in zip(read_shard(path), FULL, strict=True):
        assert_equal(found, expected)
    with ShardWriter(path):
        pass
    assert list(read_shard(path)) == []
    assert [p.name for p in tmp_path.iterdir()] == ['shard.h5']


def test_dataset_of_shards_is_the_dataset_of_their_episodes(tmp_path):
    for number in range(2):
        with ShardWriter(tmp_path / f'{number}.h5') as shard:
            for each in FULL[2 * number:2 * number + 2]:
                shard.add(each)
    shards = [tmp_path / f'{number}.h5' for number in range(2)]
    write(tmp_path / 'a', (each for path in shards for each in read_shard(path)))
    write(tmp_path / 'b', FULL)
    for found, expected in zip(
            read_episodes('demo/test-v0', tmp_path / 'a'),
            read_episodes('demo/test-v0', tmp_path / 'b'), strict=True):
        assert_equal(found, expected)


def test_after_an_error_there_is_no_shard_and_the_one_before_stays(tmp_path):
    path = tmp_path / 'shard.h5'
    for before in ([], ['shard.h5']):
        with pytest.raises(DatasetError, match='shard.h5, episode 1: expected finite rewards'):
            with ShardWriter(path) as shard:
                shard.add(FULL[0])
                shard.add(episode(2, rewards=np.full(2, np.nan)))
        assert [p.name for p in tmp_path.iterdir()] == before
        with ShardWriter(path) as shard:
            shard.add(FULL[0])
    with pytest.raises(DatasetError, match='none.h5: cannot be read'):
        next(read_shard(tmp_path / 'none.h5'))


# Full disks


WRITES = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from training.datasets import DatasetError, Episode, ShardWriter, write_minari

kind, root, spec, limit, steps, count = sys.argv[1:]
if int(limit):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
n = int(steps)
rng = np.random.default_rng(0)
episodes = (Episode(
    rng.normal(size=(n + 1, 3)), rng.normal(size=(n, 2)), rng.normal(size=n), False, True,
    rng.normal(size=(n, 3)), np.ones(n, int)) for _ in range(int(count)))
try:
    if kind == 'shard':
        with ShardWriter(Path(root) / 'shard.h5') as shard:
            for episode in episodes:
                shard.add(episode)
    else:
        write_minari(episodes, 'demo/test-v0', root, {}, spec)
except DatasetError as error:
    sys.exit(f'error: {error}')
"""


def run_writes(kind, root, limit=0, steps=10_000, count=20):
    """Write about half a MB an episode in a process of its own: a full disk may crash it."""
    return subprocess.run(
        [sys.executable, '-c', WRITES, kind, str(root), SPEC, str(limit), str(steps), str(count)],
        cwd=ROOT, capture_output=True, text=True, timeout=120)


def assert_refused_for_room(done, kind, found):
    assert done.returncode == 1, done.stderr
    assert re.fullmatch(rf'error: .*{"shard.h5" if kind == "shard" else "test-v0"}: expected room '
                        rf'for [\d.]+ MB more, found {found}; free space.*\n', done.stderr)
    assert ('--resume' in done.stderr) == (kind == 'shard')


@pytest.mark.parametrize('kind', ['shard', 'dataset'])
@pytest.mark.parametrize('limit', [20_000, 1_500_000, 4_000_000])
def test_file_that_may_not_grow_is_told_in_one_line_and_nothing_is_left(tmp_path, kind, limit):
    assert_refused_for_room(run_writes(kind, tmp_path, limit), kind, "the error 'File too large'")
    assert not list(tmp_path.iterdir())
    assert run_writes(kind, tmp_path).returncode == 0


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of 6.2 MB."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    if shutil.which('mount') is None or subprocess.run(
            ['mount', '-t', 'tmpfs', '-o', 'size=6200k', 'tmpfs', folder],
            capture_output=True).returncode:
        pytest.skip('cannot mount a file system: needs root')
    yield folder
    subprocess.run(['umount', folder], check=True)


@pytest.mark.parametrize('kind', ['shard', 'dataset'])
@pytest.mark.parametrize('filled', [0, 3_000_000, 6_150_000])
def test_full_disk_is_told_in_one_line_and_nothing_is_left(small_disk, kind, filled):
    (small_disk / 'other').write_bytes(bytes(filled))
    done = run_writes(kind, small_disk)
    assert_refused_for_room(done, kind, r'[\d.]+ MB free')
    assert [path.name for path in small_disk.iterdir()] == ['other']


def test_many_small_episodes_fill_a_disk_without_a_crash(small_disk):
    for kind in ('shard', 'dataset'):
        done = run_writes(kind, small_disk, steps=5, count=3000)
        assert_refused_for_room(done, kind, r'[\d.]+ MB free')
        assert not list(small_disk.iterdir())


def test_room_that_was_taken_and_not_needed_is_given_back(tmp_path):
    with ShardWriter(tmp_path / 'shard.h5') as shard:
        for each in FULL:
            shard.add(each)
    data = write(tmp_path, FULL) / 'data'
    for path in (tmp_path / 'shard.h5', data / 'main_data.hdf5'):
        assert path.stat().st_size < 150_000, path
        assert path.stat().st_blocks * 512 < 200_000, path


def test_what_a_killed_run_left_goes_when_the_next_one_begins(tmp_path):
    temporary = tmp_path / '.writing-demo__test-v0'

    def killed():
        yield episode(2)
        assert temporary.is_dir()
        shutil.copytree(temporary, tmp_path / 'copy')
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, killed())
    (tmp_path / 'copy').rename(temporary)
    write(tmp_path, [episode(4)])
    assert [p.name for p in tmp_path.iterdir()] == ['demo']
    # Killed after the dataset before gave up its name.
    temporary.mkdir()
    (tmp_path / 'demo/test-v0').rename(temporary / '.replaced')
    with pytest.raises(DatasetError, match='exists'):
        write(tmp_path, [episode(2)])
    assert [p.name for p in tmp_path.iterdir()] == ['demo']
    assert [len(e.rewards) for e in read_episodes('demo/test-v0', tmp_path)] == [4]


# Judged and cut


def test_stretch_is_cut_at_terminals_and_every_piece_keeps_its_share():
    steps = Steps(
        np.arange(7, dtype=np.float32)[:, None], np.arange(6, dtype=np.float32)[:, None],
        np.array([[0.5], [1.5], [1.6], [4.5]], np.float32), np.array([1, 2, 0, 0, 1, 0]), 1.0,
        {'reward': np.arange(6.0), 'terminal': np.array([0, 1, 1, 0, 0, 0], bool)})
    task = Task({'topic': {'topic': 'score', 'field': 'data'}},
                {'topic': {'topic': 'done', 'field': 'data'}})
    for continues in ('', 'length'):
        pieces = list(episodes_of(steps, task, continues))
        assert [p.observations[:, 0].tolist() for p in pieces] == [[0, 1, 2], [2, 3], [3, 4, 5, 6]]
        assert [p.rewards.tolist() for p in pieces] == [[0, 1], [2], [3, 4, 5]]
        assert [p.topics['reward'].tolist() for p in pieces] == [[0, 1], [2], [3, 4, 5]]
        assert [p.between[:, 0].tolist() for p in pieces] == [
            steps.between[:3, 0].tolist(), [], steps.between[3:, 0].tolist()]
        assert [p.counts.tolist() for p in pieces] == [[1, 2], [0], [0, 1, 0]]
        assert [p.terminated for p in pieces] == [True, True, False]
        assert [p.truncated for p in pieces] == [False, False, True]
        assert [p.continues for p in pieces] == [continues, 'terminal', 'terminal']


def test_terminal_at_the_last_decision_leaves_no_empty_episode():
    steps = Steps(np.zeros((3, 1), np.float32), np.zeros((2, 1), np.float32),
                  np.zeros((0, 1), np.float32), np.zeros(2, np.int64), 1.0,
                  {'terminal': np.array([False, True])})
    piece, = episodes_of(steps, Task(
        {'action_cost': {}}, {'topic': {'topic': 'done', 'field': 'data'}}))
    assert piece.terminated and len(piece.rewards) == 2


def test_mask_is_zero_only_at_a_true_terminal(tmp_path):
    write(tmp_path, [episode(3, 1, terminated=True, truncated=False), episode(2, 2)])
    assert load_minari('demo/test-v0', tmp_path)[0].masks.tolist() == [1, 1, 0, 1, 1]


def test_plain_minari_loads_the_dataset(tmp_path, monkeypatch):
    write(tmp_path, [episode(4), episode(2)])
    monkeypatch.setenv('MINARI_DATASETS_PATH', str(tmp_path))
    dataset = minari.load_dataset('demo/test-v0')
    assert (dataset.total_episodes, dataset.total_steps) == (2, 6)
    assert dataset.action_space.high.tolist() == pytest.approx([0.1, 3])
    assert list(minari.list_local_datasets()) == ['demo/test-v0']
    assert len(load_minari('demo/test-v0')[0].rewards) == 6


def test_writing_leaves_nothing_else_and_the_environment_as_it_was(tmp_path, monkeypatch):
    monkeypatch.delenv('MINARI_DATASETS_PATH', raising=False)
    write(tmp_path, [episode(4)])
    assert [p.name for p in tmp_path.iterdir()] == ['demo']
    assert [p.name for p in (tmp_path / 'demo').iterdir()] == ['test-v0']
    assert 'MINARI_DATASETS_PATH' not in os.environ


def test_existing_dataset_is_kept_unless_overwriting_is_allowed(tmp_path):
    write(tmp_path, [episode(4)])
    with pytest.raises(DatasetError, match='exists'):
        write(tmp_path, [episode(2)])
    assert len(load_minari('demo/test-v0', tmp_path)[0].rewards) == 4
    write(tmp_path, [episode(2)], overwrite=True)
    assert len(load_minari('demo/test-v0', tmp_path)[0].rewards) == 2


def test_dataset_stays_until_the_one_that_replaces_it_is_complete(tmp_path, monkeypatch):
    write(tmp_path, [episode(4)])

    def interrupted():
        yield episode(2)
        assert len(list(read_episodes('demo/test-v0', tmp_path))[0].rewards) == 4
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, interrupted(), overwrite=True)
    rename = os.rename

    def refuse(source, target, **options):
        if '.writing-' in str(source) and 'replaced' not in str(source):
            raise OSError('no room')
        rename(source, target, **options)

    monkeypatch.setattr(os, 'rename', refuse)
    with pytest.raises(DatasetError, match='test-v0: cannot be written: no room'):
        write(tmp_path, [episode(2)], overwrite=True)
    assert len(load_minari('demo/test-v0', tmp_path)[0].rewards) == 4
    assert [p.name for p in tmp_path.iterdir()] == ['demo']


@pytest.mark.parametrize('episodes, message', [
    ([], 'one or more, found none'),
    ([episode(2), episode(2, actions=np.zeros((0, 2)), rewards=np.zeros(0))], 'episode 1.*steps'),
    ([episode(2, observations=np.zeros((2, 3)))], r'3 rows .* observations .* shape \(2, 3\)'),
    ([episode(2, actions=np.zeros(2))], r'actions .* shape \(2,\)'),
    ([episode(2), episode(2, actions=np.zeros((2, 3)))], 'episode 1: expected actions of size 2'),
    ([episode(2, rewards=np.array([0, np.nan]))], 'finite rewards, found nan at step 1'),
    ([episode(2, actions=np.array([[0, 0], [np.inf, 0]]))], 'finite actions.* at step 1'),
    ([episode(2, counts=np.zeros(2, int))], 'expected between and counts, found one of them'),
    ([full_episode(2, 1), episode(2)], 'episode 1: expected rows between ticks stored: True'),
    ([replace(full_episode(9), counts=np.ones(9, int) * 7)], 'counts .* with the sum'),
    ([replace(full_episode(9), between=np.zeros((9, 2)))], 'rows of 3 numbers between ticks'),
    ([episode(2, topics={'reward': np.zeros(3)})], 'finite numbers .*, found reward: float64'),
    ([episode(2, topics={'score': np.zeros(2)})], 'of reward or terminal, found score'),
    ([episode(2, continues='maybe')], "expected continues '', 'terminal' or 'length', .*maybe"),
])
def test_unfit_episodes_are_refused_in_one_line_and_nothing_is_written(
    tmp_path, episodes, message
):
    with pytest.raises(DatasetError, match=message) as refused:
        write(tmp_path, episodes)
    assert '\n' not in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('dataset_id', [
    'reach', '../reach-v0', '/reach-v0', 'demo/reach-vx', 'x/full-v0'])
def test_malformed_id_is_refused_with_what_minari_allows(tmp_path, dataset_id):
    with pytest.raises(DatasetError, match='dataset id: .* digits, - and _, a namespace of two'):
        write_minari([episode(2)], dataset_id, tmp_path, {}, SPEC)


def test_missing_dataset_is_named_with_its_place(tmp_path):
    with pytest.raises(DatasetError, match=f"'demo/none-v0'.*{tmp_path}"):
        load_minari('demo/none-v0', tmp_path)


@pytest.mark.parametrize('damage', [
    lambda group: group.pop('actions'),
    lambda group: group.pop('rewards') and group.create_group('rewards'),
    lambda group: group.pop('terminations') and group.create_dataset('terminations', data=1),
    lambda group: group.attrs.create('idql_ros_continues', np.arange(3)),
    lambda group: group.pop('idql_ros_between'),
    lambda group: group.pop('idql_ros_counts') and group.create_dataset(
        'idql_ros_counts', data=[b'text'] * 600),
])
def test_damaged_episodes_are_named_in_one_line(tmp_path, damage):
    write(tmp_path, FULL)
    with h5py.File(tmp_path / 'demo/test-v0/data/main_data.hdf5', 'a') as file:
        damage(file['episode_2'])
    with pytest.raises(DatasetError, match="'demo/test-v0', episode 2: .*expected") as seen:
        list(read_episodes('demo/test-v0', tmp_path))
    assert '\n' not in str(seen.value)


def test_files_that_are_none_are_named_in_one_line(tmp_path):
    data = write(tmp_path, FULL) / 'data'
    (data / 'main_data.hdf5').write_bytes(b'no HDF5')
    (data / 'metadata.json').write_text('[]')
    for read in (lambda: list(read_episodes('demo/test-v0', tmp_path)),
                 lambda: read_metadata('demo/test-v0', tmp_path)):
        with pytest.raises(DatasetError, match="'demo/test-v0': .*cannot be read") as seen:
            read()
        assert '\n' not in str(seen.value)
    for read in (read_metadata, lambda *of: next(read_episodes(*of))):
        with pytest.raises(DatasetError, match=f"'demo/none-v0'.*{tmp_path}"):
            read('demo/none-v0', tmp_path)


def test_constant_rewards_are_warned_about(tmp_path):
    write(tmp_path, [episode(3, rewards=np.full(3, -1.0))])
    with pytest.warns(UserWarning, match='every reward is -1.0'):
        load_minari('demo/test-v0', tmp_path)


def test_content_hash_is_of_the_numbers_not_of_the_file(tmp_path):
    hashes = []
    for name, episodes in (('a', [episode(4)]), ('b', [episode(4)]), ('c', [episode(4, 1)])):
        write(tmp_path / name, episodes)
        hashes.append(load_minari('demo/test-v0', tmp_path / name)[0].content_hash())
    assert hashes[0] == hashes[1] != hashes[2]


def test_action_bounds_concatenate_the_streams_in_order():
    lower, upper = action_bounds(json.loads(SPEC))
    assert (lower.tolist(), upper.tolist()) == ([-1, -2], [0.1, 3])


@pytest.mark.parametrize('spec', [
    {}, {'actions': [{'dimensions': [{'lower': 0}]}]},
    {'actions': [{'dimensions': [{'lower': 1, 'upper': 1}]}]},
])
def test_spec_without_usable_limits_is_refused(spec):
    with pytest.raises(DatasetError, match='spec: expected'):
        action_bounds(spec)


# Minari datasets of others


def write_foreign(root, monkeypatch, observation_space, observations, dtype=np.float32):
    """Write an episode of two steps as others do, without a spec, as other/test-v0."""
    monkeypatch.setenv('MINARI_DATASETS_PATH', str(root))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)
        minari.create_dataset_from_buffers(
            'other/test-v0',
            [EpisodeBuffer(
                observations=observations, actions=np.zeros((2, 1), dtype), rewards=[0.0, 1.0],
                terminations=[False, False], truncations=[False, True]) for _ in range(2)],
            observation_space=observation_space,
            action_space=spaces.Box(-1, 1, (1,), dtype))


def test_dictionary_observations_are_joined_in_the_order_of_their_sorted_keys(
    tmp_path, monkeypatch
):
    box = spaces.Box(-9, 9, (2,), np.float32)
    # A list of pairs keeps its own order, which is not the sorted one.
    space = spaces.Dict([('z', box), ('b', spaces.Dict([('y', box), ('x', box)])), ('a', box)])

    def column(value):
        return np.arange(6, dtype=np.float32).reshape(3, 2) / 10 + value

    write_foreign(tmp_path, monkeypatch, space, {
        'z': column(4), 'b': {'y': column(3), 'x': column(2)}, 'a': column(1)})
    dataset, metadata = load('other/test-v0', tmp_path)
    assert dataset.observations[0].round(1).tolist() == pytest.approx(
        [1, 1.1, 2, 2.1, 3, 3.1, 4, 4.1])
    assert dataset.next_observations[0] == pytest.approx(dataset.observations[0] + 0.2)
    assert metadata == {'observation_order': 'a (2), b/x (2), b/y (2), z (2)'}
    # Not by the grace of the file, which has sorted the keys by now.
    assert list(datasets._flat_parts(space, '')) == [('a',), ('b', 'x'), ('b', 'y'), ('z',)]


@pytest.mark.parametrize('space, observations, message', [
    (spaces.Dict({'image': spaces.Box(0, 1, (3, 2, 2), np.float32)}),
     {'image': np.zeros((3, 3, 2, 2), np.float32)}, "observation 'image': expected a flat Box"),
    (spaces.Discrete(3), np.zeros(3, np.int64), 'observation: expected a flat Box .*Discrete'),
    (spaces.Box(0, 255, (2,), np.uint8), np.zeros((3, 2), np.uint8),
     'episode 0: expected observations to be floating-point numbers, found uint8'),
])
def test_observations_that_are_no_plain_numbers_are_refused(
    tmp_path, monkeypatch, space, observations, message
):
    write_foreign(tmp_path, monkeypatch, space, observations)
    with pytest.raises(DatasetError, match=message) as refused:
        load('other/test-v0', tmp_path)
    assert '\n' not in str(refused.value)


# D4RL


def write_d4rl(path, following=True, **changes):
    """Write three episodes: a cut after 3 steps, a true end after 2, and 2 steps unfinished."""
    numbers = np.arange(7, dtype=np.float32)
    arrays = {
        'observations': np.stack([numbers, -numbers], 1),
        'actions': numbers[:, None] / 10,
        'rewards': numbers,
        'terminals': np.array([0, 0, 0, 0, 1, 0, 0], bool),
        'timeouts': np.array([0, 0, 1, 0, 0, 0, 0], bool),
    }
    if following:
        arrays['next_observations'] = arrays['observations'] + 0.5
    with h5py.File(path, 'w') as file:
        for name, values in (arrays | changes).items():
            if values is not None:
                file[name] = values
    return path


def test_d4rl_file_gives_its_own_next_observations(tmp_path):
    write_d4rl(tmp_path / 'hopper.hdf5')
    dataset, metadata = load('hopper.hdf5', tmp_path)
    assert dataset.rewards.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert np.array_equal(dataset.next_observations, dataset.observations + 0.5)
    assert dataset.masks.tolist() == [1, 1, 1, 1, 0, 1, 1]
    assert dataset.episodes.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert all(array.dtype == np.float32 for name, array in vars(dataset).items()
               if name != 'episodes')
    assert json.loads(metadata['action_limits']) == [[-1], [1]]


def test_d4rl_file_without_next_observations_leaves_out_cuts_and_keeps_true_ends(tmp_path):
    dataset, _ = load_d4rl(write_d4rl(tmp_path / 'hopper.hdf5', following=False))
    assert dataset.rewards.tolist() == [0, 1, 3, 4, 5]
    assert dataset.masks.tolist() == [1, 1, 1, 0, 1]
    assert dataset.episodes.tolist() == [0, 0, 1, 1, 2]
    inner = dataset.masks == 1
    assert dataset.next_observations[inner, 0].tolist() == [1, 2, 4, 6]


def test_no_transition_bridges_a_timeout_whatever_the_file_says(tmp_path):
    shifted = np.roll(np.stack([np.arange(7.0), -np.arange(7.0)], 1), -1, 0)
    dataset, _ = load_d4rl(write_d4rl(tmp_path / 'hopper.hdf5', next_observations=shifted))
    assert 2 not in dataset.rewards
    same_episode = np.abs(dataset.next_observations - dataset.observations)[:, 0] == 1
    assert (same_episode | (dataset.rewards == 6)).all()


@pytest.mark.parametrize('changes, message', [
    ({'timeouts': None}, 'arrays of D4RL v2, found no timeouts'),
    ({'terminals': np.zeros(6)}, r'terminals of shape \(7,\) as rewards, found \(6,\)'),
    ({'terminals': np.full(7, 2.0)}, 'terminals to be 0 or 1'),
    ({'observations': np.zeros((6, 2))}, r'expected 7 rows .* observations .*\(6, 2\)'),
    ({'next_observations': np.zeros((7, 3))}, r'next_observations of shape \(7, 2\)'),
    ({'next_observations': np.full((7, 2), np.nan)}, 'finite next_observations, .* at step 0'),
    ({'actions': np.arange(7)[:, None]}, 'actions to be floating-point numbers, found int64'),
    ({'actions': np.full((7, 1), 3.0)}, r'actions in \[-1, 1\] .* found 3 to 3'),
    ({'actions': np.full((7, 1), 1e300)}, 'finite actions, found .*inf'),
    ({'rewards': np.array([b'good'] * 7)}, 'rewards to be floating-point numbers, found'),
    ({name: np.zeros((0, 2)[:axes]) for name, axes in (
        ('observations', 2), ('actions', 2), ('rewards', 1), ('terminals', 1), ('timeouts', 1),
        ('next_observations', 2))}, 'one or more steps, found none'),
    ({'timeouts': np.ones(7), 'next_observations': None, 'terminals': np.zeros(7)},
     'expected transitions, found episodes of one step only'),
])
def test_unfit_d4rl_files_are_refused_in_one_line(tmp_path, changes, message):
    path = write_d4rl(tmp_path / 'bad.hdf5', **changes)
    with pytest.raises(DatasetError, match=f'bad.hdf5.*{message}') as refused:
        load('bad.hdf5', tmp_path)
    assert '\n' not in str(refused.value)
    path.write_bytes(b'no HDF5')
    with pytest.raises(DatasetError, match='bad.hdf5: expected an HDF5 file of arrays'):
        load_d4rl(path)
    with pytest.raises(DatasetError, match='none.hdf5: expected a file, found none'):
        load(str(tmp_path / 'none.hdf5'))


def test_a_single_episode_is_warned_about(tmp_path):
    write_d4rl(tmp_path / 'one.hdf5', timeouts=np.zeros(7), terminals=np.zeros(7))
    with pytest.warns(UserWarning, match='one episode only'):
        load('one.hdf5', tmp_path)


# OGBench


def write_ogbench(path, positions, state=2, observations=None):
    """Write episodes of 6 rows whose state begins with certain positions (rows, P)."""
    rows = len(positions)
    rng = np.random.default_rng(0)
    qpos = rng.normal(size=(rows, max(state, positions.shape[1]))).astype(np.float32)
    qpos[:, -positions.shape[1]:] = positions
    np.savez(path, observations=qpos if observations is None else observations,
             actions=rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
             terminals=np.arange(rows) % 6 == 5, qpos=qpos, qvel=np.zeros_like(qpos))


MAZE = 'pointmaze-medium-navigate-singletask-task1-v0'
MAZE_GOAL = 20.0


def write_maze(folder, rows=18, suffix=''):
    """Write MAZE's file: in the second episode the goal is reached, for a row."""
    positions = np.tile(np.arange(rows, dtype=np.float32)[:, None], 2) % 6
    positions[9] = MAZE_GOAL
    write_ogbench(folder / f'pointmaze-medium-navigate-v0{suffix}.npz', positions)


def test_ogbench_tasks_are_what_the_package_makes_of_them(tmp_path):
    write_maze(tmp_path)
    write_maze(tmp_path, 12, '-val')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)
        expected = ogbench.make_env_and_datasets(
            MAZE, dataset_path=str(tmp_path / 'pointmaze-medium-navigate-v0.npz'))[1:]
    dataset, metadata = load(MAZE, tmp_path)
    for found, theirs in zip((dataset, load_validation(MAZE, tmp_path)), expected, strict=True):
        for name in ('observations', 'actions', 'rewards', 'masks', 'next_observations'):
            values = getattr(found, name)
            assert values.dtype == np.float32
            assert np.array_equal(values, theirs[name]), name
    assert dataset.masks.tolist() == [1] * 8 + [0] + [1] * 6
    assert dataset.rewards.tolist() == [-1] * 8 + [0] + [-1] * 6
    assert dataset.episodes.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert json.loads(metadata['action_limits']) == [[-1, -1], [1, 1]]


def test_validation_is_the_ogbench_file_beside_and_for_others_none(tmp_path):
    write_maze(tmp_path)
    assert load_validation(MAZE, tmp_path) is None
    assert load_validation('hopper.hdf5', tmp_path) is None
    assert load_validation('demo/test-v0', tmp_path) is None


def test_ogbench_file_without_a_task_is_refused_with_the_name_to_give(tmp_path):
    write_maze(tmp_path)
    for source in ('pointmaze-medium-navigate-v0', f'{tmp_path}/pointmaze-medium-navigate-v0.npz'):
        with pytest.raises(DatasetError, match='such as pointmaze-medium-navigate-singletask-v0'):
            load(source, tmp_path)


def test_unfit_ogbench_files_are_refused_in_one_line(tmp_path):
    path = tmp_path / 'pointmaze-medium-navigate-v0.npz'

    def refused(name, message):
        with pytest.raises(DatasetError, match=message) as error:
            load(name, tmp_path)
        assert '\n' not in str(error.value)

    refused(MAZE, f'expected the file {path}, found none; .*training.collect')
    path.write_bytes(b'no zip')
    refused(MAZE, f'expected a file of this environment, found {path}')
    np.savez(path, observations=np.zeros((6, 2)), actions=np.zeros((6, 2)),
             terminals=np.zeros(6))
    refused(MAZE, 'expected a file of this environment, found .*qpos')
    write_ogbench(path, np.zeros((12, 2)), observations=np.full((12, 2), np.nan))
    refused(MAZE, 'finite observations, found .* at step 0')
    write_maze(tmp_path)
    refused('pointmaze-medium-navigate-singletask-task9-v0', 'a task of OGBench, found none')


def test_a_large_file_is_not_copied_needlessly(tmp_path):
    rows, size = 60_000, 28
    observations = np.random.default_rng(0).normal(size=(rows, size)).astype(np.float32)
    write_ogbench(tmp_path / 'pointmaze-medium-navigate-v0.npz', np.zeros((rows, 2)),
                  observations=observations)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)
        load(MAZE, tmp_path)  # imports, and what the simulator keeps
        tracemalloc.start()
        try:
            dataset, _ = load(MAZE, tmp_path)
            held, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    numbers = sum(array.nbytes for array in vars(dataset).values())
    assert held < 1.1 * numbers
    # Beside what is returned, the file's own rows: the package takes most of them twice.
    assert peak < numbers + 1.5 * observations.nbytes


# Validation split


def test_split_keeps_every_episode_whole_and_loses_none():
    episodes = np.repeat([0, 3, 4, 7, 9], [4, 1, 2, 5, 3])
    rows = np.arange(len(episodes), dtype=np.float32)
    dataset = Dataset(rows[:, None], rows[:, None], rows, rows, rows[:, None], episodes)
    training, validation = split(dataset, 0.4, seed=0)
    assert len(np.unique(validation.episodes)) == 2
    assert not set(training.episodes) & set(validation.episodes)
    assert sorted([*training.rewards, *validation.rewards]) == rows.tolist()
    again, _ = split(dataset, 0.4, seed=0)
    assert again.content_hash() == training.content_hash()
    assert {split(dataset, 0.4, seed)[0].content_hash() for seed in range(5)} != {
        training.content_hash()}


def test_a_single_episode_cannot_be_split():
    rows = np.arange(3, dtype=np.float32)
    dataset = Dataset(rows[:, None], rows[:, None], rows, rows, rows[:, None], np.zeros(3, int))
    with pytest.raises(DatasetError, match='more than 1 episodes .* found 1'):
        split(dataset, 0.1, seed=0)
