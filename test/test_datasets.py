"""Datasets: written and read without loss, refused where they are unfit."""

from dataclasses import replace
import json
import os
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
    load,
    load_d4rl,
    load_minari,
    load_validation,
    split,
    write_minari,
)

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


@pytest.mark.parametrize('episodes, message', [
    ([], 'one or more, found none'),
    ([episode(2), episode(2, actions=np.zeros((0, 2)), rewards=np.zeros(0))], 'episode 1.*steps'),
    ([episode(2, observations=np.zeros((2, 3)))], r'3 rows .* observations .* shape \(2, 3\)'),
    ([episode(2, actions=np.zeros(2))], r'actions .* shape \(2,\)'),
    ([episode(2), episode(2, actions=np.zeros((2, 3)))], 'episode 1: expected actions of size 2'),
    ([episode(2, rewards=np.array([0, np.nan]))], 'finite rewards, found nan at step 1'),
    ([episode(2, actions=np.array([[0, 0], [np.inf, 0]]))], 'finite actions.* at step 1'),
])
def test_unfit_episodes_are_refused_in_one_line_and_nothing_is_written(
    tmp_path, episodes, message
):
    with pytest.raises(DatasetError, match=message) as refused:
        write(tmp_path, episodes)
    assert '\n' not in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('dataset_id', ['reach', '../reach-v0', '/reach-v0', 'demo/reach-vx'])
def test_malformed_id_is_refused(tmp_path, dataset_id):
    with pytest.raises(DatasetError, match='dataset id'):
        write_minari([episode(2)], dataset_id, tmp_path, {}, SPEC)


def test_missing_dataset_is_named_with_its_place(tmp_path):
    with pytest.raises(DatasetError, match=f"'demo/none-v0'.*{tmp_path}"):
        load_minari('demo/none-v0', tmp_path)


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
