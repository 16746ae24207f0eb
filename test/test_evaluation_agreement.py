"""The distance of actions from recorded ones is what it is called, of the data that was meant."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('minari', reason='minari is not installed')
from idql_ros.policy import Policy  # noqa: E402
from training import datasets  # noqa: E402
from training import evaluation_agreement as agreement  # noqa: E402

DEFAULT = Path(__file__).parents[1] / 'config' / 'policies' / 'pointmaze_medium.onnx'
SEED, N = 3, 4


def decided(policy, observations, choose):
    """Return what is chosen of the candidates for the rows of a dataset, (n, A)."""
    decisions = policy.decide_batch(observations, range(len(observations)), SEED, N)
    return np.stack([choose(decision) for decision in decisions])


def write(root, policy, choose, rows=40):
    """Write a dataset of what is chosen at random places."""
    places = np.random.default_rng(0).uniform(0, 20, (rows + 1, 2)).astype(np.float32)
    datasets.write_minari(
        [datasets.Episode(places, decided(policy, places[:-1], choose), np.zeros(rows), True,
                          False)],
        'test/maze-v0', root, {}, policy.spec.to_json())


def compared(root, policy):
    """Return the distances from a dataset, per dimension."""
    recorded = agreement.read('test/maze-v0', root, policy)
    return recorded, agreement.compare(policy, recorded, SEED, N, {'extraction': 'greedy'})


def test_a_policy_agrees_with_what_it_did_itself(tmp_path):
    policy = Policy(DEFAULT)
    write(tmp_path, policy, lambda decision: decision.action)
    recorded, found = compared(tmp_path, policy)
    assert found['compared'] == found['decisions'] == 40
    assert [(d['name'], d['unit']) for d in found['dimensions']] == [
        ('velocity linear.x', 'm/s'), ('velocity linear.y', 'm/s')]
    for column, d in enumerate(found['dimensions']):
        assert d['chosen']['mean'] < 1e-4 < d['sample']['mean']
        assert d['mean']['mean'] == pytest.approx(
            np.abs(recorded.actions - recorded.actions.mean(0))[:, column].mean(), rel=1e-5)


def test_distances_are_in_the_actions_unit_and_of_every_decision(tmp_path):
    policy = Policy(DEFAULT)
    write(tmp_path, policy, lambda decision: decision.candidates[0] + [0.25, 0.0])
    _, found = compared(tmp_path, policy)
    x, y = found['dimensions']
    assert x['sample']['quantiles'] == pytest.approx(np.full(41, 0.25), abs=1e-3)
    assert y['sample']['mean'] == pytest.approx(0, abs=1e-4)


def test_whether_it_is_the_training_data_is_told_by_its_hash(tmp_path, monkeypatch):
    policy = Policy(DEFAULT)
    write(tmp_path, policy, lambda decision: decision.action)
    digest = datasets.load('test/maze-v0', tmp_path)[0].content_hash()
    for known, expected in (({'dataset_hash': digest}, True), ({'dataset_hash': 'ab'}, False),
                            ({}, None)):
        monkeypatch.setattr(policy, 'provenance', known)
        assert agreement.read('test/maze-v0', tmp_path, policy).same is expected


def test_data_of_another_robot_is_refused(tmp_path):
    policy = Policy(DEFAULT)
    spec = policy.spec.to_dict()
    spec['actions'][0]['dimensions'] *= 2
    datasets.write_minari(
        [datasets.Episode(np.zeros((3, 2), np.float32), np.zeros((2, 4), np.float32), np.zeros(2),
                          True, False)], 'test/other-v0', tmp_path, {}, json.dumps(spec))
    with pytest.raises(datasets.DatasetError, match='2 observations and 2 actions .* 2 and 4'):
        agreement.read('test/other-v0', tmp_path, policy)
    with pytest.raises(datasets.DatasetError, match='none-v0'):
        agreement.read('test/none-v0', tmp_path, policy)


def test_large_data_are_drawn_from_and_the_mean_action_is_of_all(tmp_path, monkeypatch):
    policy = Policy(DEFAULT)
    write(tmp_path, policy, lambda decision: decision.action)
    monkeypatch.setattr(agreement, 'COMPARED', 7)
    recorded = agreement.read('test/maze-v0', tmp_path, policy)
    everything = datasets.load('test/maze-v0', tmp_path)[0]
    assert recorded.actions.shape == (7, 2) and recorded.decisions == 40
    assert recorded.mean_action == pytest.approx(everything.actions.mean(0), rel=1e-5)
    rows = [np.flatnonzero((everything.observations == o).all(1)).item()
            for o in recorded.observations]
    assert rows == sorted(set(rows))
    assert np.array_equal(everything.actions[rows], recorded.actions)
