"""Minari datasets: written and read without loss, refused where they are unfit."""

from dataclasses import replace
import json
import os

import minari
import numpy as np
import pytest
from training.datasets import action_bounds, DatasetError, Episode, load_minari, write_minari

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
