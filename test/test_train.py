"""Training: reproducibility, stop and resume, and what it leaves in the output folder."""

import csv
from dataclasses import replace
import json
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import gymnasium
from idql_ros.environments import SimulationError
from idql_ros.policy import Policy
from idql_ros.value_guard import VALUE_NAMES
import numpy as np
import pytest
import torch
from training.checkpoint import CheckpointError, load_checkpoint, read_checkpoint
from training.config import ConfigError, TrainConfig
from training.datasets import DatasetError, Episode, load_minari, split, write_minari
from training.evaluate import evaluate
from training.idql import IDQLConfig
from training.statistics import summarise
from training.train import (
    DivergenceError,
    fixed_sample,
    load_data,
    main,
    Stopped,
    train,
)

SPEC = json.dumps({'actions': [{'dimensions': [
    {'lower': -2.0, 'upper': 4.0}, {'lower': 0.0, 'upper': 1.0}]}]})
ROOT = Path(__file__).parents[1]


def write_dataset(root, spec_json=SPEC, rewards=None, kept=range(5)):
    """Write demo/test-v0, or some of its five episodes: the second observation never moves."""
    rng = np.random.default_rng(0)
    episodes = []
    for number in range(5):
        observations = rng.normal(5, 2, (21, 2)).astype(np.float32)
        observations[:, 1] = 7
        actions = rng.uniform([-1, 0], [3, 1], (20, 2)).astype(np.float32)
        episode = Episode(
            observations, actions, -actions[:, 0] ** 2 if rewards is None else rewards,
            terminated=True, truncated=False)
        episodes += [episode] if number in kept else []
    write_minari(episodes, 'demo/test-v0', root, {'task': 'test'}, spec_json)


@pytest.fixture
def config(tmp_path):
    """Return a tiny run on a tiny dataset."""
    write_dataset(tmp_path / 'data')
    return TrainConfig(
        dataset='demo/test-v0', root=str(tmp_path / 'data'), output=str(tmp_path / 'run'),
        steps=7, batch_size=16, log_every=3, checkpoint_every=5, threads=1, device='cpu',
        idql=IDQLConfig(
            actor_width=16, actor_blocks=1, time_features=(8, 16), critic_hidden=(16,),
            value_hidden=(16,), normalise_observations=True),
    )


def fresh(config):
    """Train in a folder of its own; return all numbers of the learner."""
    folder = Path(tempfile.mkdtemp(dir=Path(config.root).parent))
    return train(replace(config, output=str(folder))).state_dict()


def test_the_same_seed_gives_the_same_parameters_and_another_does_not(config):
    first, again, other = fresh(config), fresh(config), fresh(replace(config, seed=1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first['actor.input.weight'], other['actor.input.weight'])


def test_new_run_does_not_write_over_one_that_is_there(config, tmp_path):
    train(config)
    rows = (tmp_path / 'run' / 'metrics.csv').read_text()
    with pytest.raises(CheckpointError, match='run: expected a folder without a checkpoint'):
        train(config)
    assert (tmp_path / 'run' / 'metrics.csv').read_text() == rows


def test_random_draws_of_the_caller_do_not_change_a_run(config):
    assert config.idql.actor_dropout > 0
    first = fresh(config)
    torch.rand(3)
    again = fresh(config)
    assert all(torch.equal(first[key], again[key]) for key in first)
    undropped = replace(config, idql=replace(config.idql, actor_dropout=0.0))
    other = fresh(undropped)
    assert not torch.equal(first['actor.input.weight'], other['actor.input.weight'])


def test_units_come_from_the_spec_and_the_data(config):
    idql = train(config)
    assert idql.action_center.tolist() == [1.0, 0.5]
    assert idql.action_scale.tolist() == [3.0, 0.5]
    assert idql.observation_mean.tolist() == pytest.approx([5, 7], abs=0.6)
    assert idql.observation_std.tolist() == pytest.approx([2, 1], abs=0.3)  # 1: it never moved


def test_spec_of_another_robot_is_refused(config, tmp_path):
    spec = json.dumps({'actions': [{'dimensions': [{'lower': -2.0, 'upper': 4.0}]}]})
    # Only a dataset changed after its conversion can disagree with its own spec.
    path = tmp_path / 'data' / 'demo' / 'test-v0' / 'data' / 'metadata.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'idql_ros_spec': spec}))
    with pytest.raises(DatasetError, match='expected 2 action dimensions .* found 1'):
        train(config)


def test_without_a_spec_the_actions_seen_give_the_range(config, tmp_path):
    path = tmp_path / 'data' / 'demo' / 'test-v0' / 'data' / 'metadata.json'
    metadata = json.loads(path.read_text())
    del metadata['idql_ros_spec']
    path.write_text(json.dumps(metadata))
    idql = train(config)
    assert idql.action_center.tolist() == pytest.approx([1.0, 0.5], abs=0.1)
    assert idql.action_scale.tolist() == pytest.approx([2.0, 0.5], abs=0.1)
    assert read_checkpoint(tmp_path / 'run' / 'checkpoint.pt')['spec_json'] is None


def test_checkpoint_keeps_statistics_of_what_is_trained_on_only(config, tmp_path):
    data = load_data(replace(config, validation_fraction=0.4)).training.observations
    train(replace(config, validation_fraction=0.4))
    found = read_checkpoint(tmp_path / 'run' / 'checkpoint.pt')['statistics']
    expected = summarise(data)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert {tuple(row) for row in found['prototypes'].tolist()} <= {
        tuple(row) for row in data.tolist()}


def test_checkpoint_gives_back_the_trained_learner_and_its_provenance(config, tmp_path):
    trained = train(config)
    path = tmp_path / 'run' / 'checkpoint.pt'
    loaded = load_checkpoint(path)
    assert loaded.config == trained.config
    assert loaded.updates == trained.updates == 7
    expected, found = trained.state_dict(), loaded.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    for name, optimiser in trained.optimisers.items():
        ours, theirs = optimiser.state_dict(), loaded.optimisers[name].state_dict()
        assert ours['steps'] == theirs['steps'] == 7
        for key in ('means', 'squares'):
            assert any(moment.any() for moment in ours[key].values())
            assert all(torch.equal(ours[key][p], theirs[key][p]) for p in ours[key])
    content = read_checkpoint(path)
    assert content['spec_json'] == SPEC
    provenance = content['provenance']
    assert provenance['dataset'] == 'demo/test-v0'
    assert provenance['dataset_metadata'] == {'task': 'test'}
    assert (provenance['transitions'], provenance['episodes']) == (100, 5)
    assert provenance['updates'] == 7
    assert provenance['config']['idql']['actor_decay_steps'] == 7  # the run's length
    json.dumps(provenance, allow_nan=False)
    assert {p.name.split('.')[0] for p in (tmp_path / 'run').iterdir()} == {
        'checkpoint', 'metrics', 'events'}


def test_metrics_have_a_row_at_each_interval_and_at_the_end(config, tmp_path):
    train(config)
    with open(tmp_path / 'run' / 'metrics.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [int(row['step']) for row in rows] == [3, 6, 7]
    assert all(float(row['critic_loss']) > 0 for row in rows)


def metrics(folder):
    """Return the rows of a run's metrics, without those that a clock decides."""
    with open(Path(folder) / 'metrics.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert all(float(row.pop('updates_per_second')) > 0 for row in rows)
    return rows


def assert_equal(one, other, where='checkpoint'):
    """Assert that nested numbers, texts and tensors are the same, bit by bit."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f'{where}: {key}')
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, (x, y) in enumerate(zip(one, other, strict=True)):
            assert_equal(x, y, f'{where}[{i}]')
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), where
    else:
        assert one == other, where


def without_places(content):
    """Return a checkpoint's content without what says where and how the run went."""
    content = dict(content)
    for key in ('config', 'provenance'):
        content.pop(key)
    return content


@pytest.mark.parametrize('stopped_after', [5, 6])  # within a row of metrics, and after one
def test_resumed_run_equals_one_that_was_not_stopped(config, tmp_path, stopped_after):
    whole = replace(config, steps=10, log_every=3, checkpoint_every=stopped_after,
                    keep_checkpoints=True)
    trained = train(whole)
    assert whole.idql.actor_dropout > 0
    stopped = tmp_path / 'stopped'
    stopped.mkdir()
    # As a crash leaves them: metrics go on after the last checkpoint, and break off in a row.
    shutil.copy(tmp_path / 'run' / f'checkpoint-{stopped_after}.pt', stopped / 'checkpoint.pt')
    text = (tmp_path / 'run' / 'metrics.csv').read_text()
    (stopped / 'metrics.csv').write_text(text[:-30] + '\n1')
    torch.rand(3)
    resumed = train(replace(whole, output=str(stopped), resume=True))
    expected, found = trained.state_dict(), resumed.state_dict()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert_equal(*(without_places(read_checkpoint(folder / 'checkpoint.pt'))
                   for folder in (tmp_path / 'run', stopped)))
    assert metrics(stopped) == metrics(tmp_path / 'run')
    assert [row['step'] for row in metrics(stopped)] == ['3', '6', '9', '10']


def test_resumed_run_may_be_longer_than_planned(config, tmp_path):
    decay = replace(config.idql, actor_decay_steps=20)
    train(replace(config, idql=decay))
    resumed = train(replace(config, idql=decay, steps=9, resume=True))
    whole = train(replace(config, idql=decay, steps=9, output=str(tmp_path / 'whole')))
    expected, found = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert [row['step'] for row in metrics(config.output)] == ['3', '6', '7', '9']


def test_finished_run_is_resumed_as_it_is(config, tmp_path):
    train(config)
    before = (tmp_path / 'run' / 'checkpoint.pt').read_bytes()
    assert train(replace(config, resume=True)).updates == 7
    assert (tmp_path / 'run' / 'checkpoint.pt').read_bytes() == before


def test_only_the_same_run_is_resumed(config, tmp_path):
    with pytest.raises(CheckpointError, match='checkpoint.pt: .* found none; .*--resume'):
        train(replace(config, resume=True))
    train(config)
    with pytest.raises(CheckpointError, match='^batch_size: expected 16 .* found 8'):
        train(replace(config, resume=True, batch_size=8))
    with pytest.raises(CheckpointError, match='^steps: expected 7 .* found 9'):
        train(replace(config, resume=True, steps=9))
    write_dataset(tmp_path / 'other', kept=range(4))
    with pytest.raises(CheckpointError, match='^dataset_hash: '):
        train(replace(config, resume=True, root=str(tmp_path / 'other')))
    assert [row['step'] for row in metrics(config.output)] == ['3', '6', '7']


def test_sigterm_saves_the_update_at_hand_and_says_how_to_go_on(config, tmp_path):
    config = replace(config, idql=replace(config.idql, actor_decay_steps=1000))
    child = subprocess.Popen(
        [sys.executable, '-m', 'training.train', '--dataset', config.dataset,
         '--root', config.root, '--output', config.output, '--steps', '1000000',
         '--batch-size', '16', '--log-every', '3', '--threads', '1', '--device', 'cpu',
         '--idql.actor-width', '16', '--idql.actor-blocks', '1',
         '--idql.time-features', '8', '16', '--idql.critic-hidden', '16',
         '--idql.value-hidden', '16', '--idql.normalise-observations',
         '--idql.actor-decay-steps', '1000'],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        path = tmp_path / 'run' / 'metrics.csv'
        while not (path.exists() and path.stat().st_size):
            assert child.poll() is None, child.communicate()[1]
            time.sleep(0.01)
        child.send_signal(signal.SIGTERM)
        output, errors = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 0, errors
    content = read_checkpoint(tmp_path / 'run' / 'checkpoint.pt')
    step = content['step']
    assert output.splitlines() == [
        f'stopped by SIGTERM after update {step}, which {tmp_path}/run/checkpoint.pt '
        'holds; the same command with --resume goes on from there']
    assert 'Traceback' not in errors
    whole = train(replace(config, steps=step + 2, output=str(tmp_path / 'whole')))
    resumed = train(replace(config, steps=step + 2, checkpoint_every=1000, resume=True))
    expected, found = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert metrics(config.output) == metrics(tmp_path / 'whole')


def test_interrupt_saves_the_update_at_hand_and_ends_as_an_interrupt(config, tmp_path):
    path = tmp_path / 'config.yaml'
    path.write_text('steps: 100000\nlog_every: 1\nidql: {actor_width: 16, critic_hidden: [8]}\n')
    rows = tmp_path / 'run' / 'metrics.csv'

    def interrupt():
        """Send it when the first update is done: before, it would end the tests."""
        while not (rows.exists() and rows.stat().st_size):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(SystemExit) as ended:
        main(['--config', str(path), '--dataset', config.dataset, '--root', config.root,
              '--output', config.output])
    assert ended.value.code == 130
    assert read_checkpoint(tmp_path / 'run' / 'checkpoint.pt')['step'] > 0


def test_handlers_of_signals_are_given_back(config):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    train(config)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


def test_validation_episodes_leave_no_trace_in_the_parameters(config, tmp_path):
    dataset, _ = load_minari(config.dataset, config.root)
    training, _ = split(dataset, 0.4, config.seed)
    write_dataset(tmp_path / 'fewer', kept=set(training.episodes.tolist()))
    without = train(replace(config, root=str(tmp_path / 'fewer'), output=str(tmp_path / 'fewer')))
    validated = train(replace(config, validation_fraction=0.4, log_every=1))
    expected, found = without.state_dict(), validated.state_dict()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    content = read_checkpoint(tmp_path / 'run' / 'checkpoint.pt')
    assert content['provenance']['transitions'] == 60
    assert content['provenance']['episodes'] == 3


def test_validation_losses_are_those_of_the_held_out_without_dropout(config):
    config = replace(config, validation_fraction=0.4)
    idql = train(config)
    batch, times, noise = fixed_sample(load_data(config).validation, config)
    assert len(batch.rewards) == 40
    batch = idql.network_units(batch)
    losses = {'actor_loss': idql.actor_loss(batch, times, noise),
              'value_loss': idql.value_loss(batch), 'critic_loss': idql.critic_loss(batch)}
    row = metrics(config.output)[-1]
    for name, (loss, _) in losses.items():
        assert float(row[f'validation_{name}']) == pytest.approx(loss.item(), rel=1e-6)


def write_maze(folder, name, rows):
    """Write an OGBench file of a point that comes by the goal of task 1."""
    positions = np.random.default_rng(rows).uniform(18, 22, (rows, 2)).astype(np.float32)
    np.savez(folder / name, observations=positions, actions=np.clip(positions - 20, -1, 1) / 2,
             terminals=np.arange(rows) % 10 == 9, qpos=positions, qvel=positions)


def test_ogbench_validation_file_changes_no_parameter(config, tmp_path):
    config = replace(config, dataset='pointmaze-medium-navigate-singletask-task1-v0')
    write_maze(tmp_path / 'data', 'pointmaze-medium-navigate-v0.npz', 60)
    alone = train(config)
    assert 'validation_actor_loss' not in metrics(config.output)[0]
    write_maze(tmp_path / 'data', 'pointmaze-medium-navigate-v0-val.npz', 20)
    validated = train(replace(config, output=str(tmp_path / 'validated')))
    assert 'validation_actor_loss' in metrics(tmp_path / 'validated')[0]
    expected, found = alone.state_dict(), validated.state_dict()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    # The environment's range, not the half of it that was seen.
    assert alone.action_center.tolist() == [0, 0]
    assert alone.action_scale.tolist() == [1, 1]
    with pytest.raises(CheckpointError, match='^validation_hash: '):
        train(replace(config, resume=True))


def test_rewards_are_scaled_by_the_training_returns_then_shifted(config):
    plain = load_data(replace(config, validation_fraction=0.4))
    changed = load_data(replace(
        config, validation_fraction=0.4, reward_scaling='return_range', reward_shift=-1.0))
    returns = [plain.training.rewards[plain.training.episodes == number].sum()
               for number in np.unique(plain.training.episodes)]
    scale = 1000 / (max(returns) - min(returns))
    for before, after in ((plain.training, changed.training),
                          (plain.validation, changed.validation)):
        assert after.rewards.dtype == np.float32
        assert after.rewards == pytest.approx(before.rewards * scale - 1, rel=1e-5)
    assert changed.provenance['dataset_hash'] == plain.provenance['dataset_hash']
    assert (plain.provenance['reward_scale'], changed.provenance['reward_scale']) == (
        1, pytest.approx(scale))


def test_losses_that_are_no_longer_finite_stop_the_run(config, tmp_path):
    write_dataset(tmp_path / 'huge', rewards=np.linspace(1e30, 3e38, 20))
    with pytest.raises(DivergenceError, match='update 3: expected finite losses'):
        train(replace(config, root=str(tmp_path / 'huge')))
    assert not (tmp_path / 'run' / 'checkpoint.pt').exists()


def test_learning_lowers_the_losses(config):
    longer = replace(
        config, steps=300, log_every=50, checkpoint_every=300,
        idql=replace(config.idql, actor_learning_rate=3e-3, critic_learning_rate=3e-3))
    train(longer)
    with open(Path(longer.output) / 'metrics.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    for loss in ('actor_loss', 'critic_loss'):
        assert float(rows[-1][loss]) < 0.9 * float(rows[0][loss])


def test_command_line_overrides_the_file(config, tmp_path):
    path = tmp_path / 'run.yaml'
    path.write_text('steps: 9\nbatch_size: 8\nidql: {actor_width: 8, critic_hidden: [8]}\n')
    main(['--config', str(path), '--dataset', config.dataset, '--root', config.root,
          '--output', str(tmp_path / 'cli'), '--steps', '2', '--idql.value-hidden', '8'])
    recorded = read_checkpoint(tmp_path / 'cli' / 'checkpoint.pt')['config']
    assert (recorded['steps'], recorded['batch_size']) == (2, 8)
    assert (recorded['idql']['critic_hidden'], recorded['idql']['value_hidden']) == ((8,), (8,))


def test_command_line_errors_are_one_line(tmp_path):
    with pytest.raises(SystemExit, match='error: dataset .demo/none-v0.*found none'):
        main(['--dataset', 'demo/none-v0', '--root', str(tmp_path)])


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_gpu_that_is_not_there_is_an_error_of_one_line(config):
    with pytest.raises(SystemExit, match='^error: device: expected a GPU .*, found none$'):
        main(['--dataset', config.dataset, '--root', config.root, '--output', config.output,
              '--device', 'cuda'])


@pytest.mark.parametrize('settings', [
    {'actor_dropout': 0.1, 'critic_layer_norm': True, 'value_layer_norm': True},
    {'actor_activation': 'silu', 'critic_loss': 'quantile', 'value_input_layer_norm': True,
     'critics': 3, 'actor_weight_decay': 0.1, 'normalise_observations': True},
])
def test_seeds_side_by_side_are_each_the_run_of_that_seed_alone(config, tmp_path, settings):
    config = replace(config, seed=3, steps=200, log_every=50, validation_fraction=0.4,
                     idql=replace(config.idql, **settings))
    together = train(replace(config, seeds=3, output=str(tmp_path / 'together'))).unstack()
    finals = []
    for seed, beside in zip((3, 4, 5), together, strict=True):
        own = replace(config, seed=seed, output=str(tmp_path / f'alone-{seed}'))
        alone = train(own).state_dict()
        finals.append(alone['actor.output.weight'])
        for name, value in beside.state_dict().items():
            assert torch.equal(value, alone[name]), name
        folder = tmp_path / 'together' / f'seed-{seed}'
        found = read_checkpoint(folder / 'checkpoint.pt')
        expected = read_checkpoint(tmp_path / f'alone-{seed}' / 'checkpoint.pt')
        assert found['config'] == expected['config'] | {'output': str(folder)}
        assert found['provenance'] == expected['provenance']
        assert torch.equal(found['generator'], expected['generator'])
        rows, expected_rows = (
            list(csv.DictReader((path / 'metrics.csv').open())) for path in (
                folder, tmp_path / f'alone-{seed}'))
        for row, expected_row in zip(rows, expected_rows, strict=True):
            del row['updates_per_second'], expected_row['updates_per_second']
            assert {k: float(v) for k, v in row.items()} == pytest.approx(
                {k: float(v) for k, v in expected_row.items()}, rel=1e-3, abs=1e-4)
    assert not torch.allclose(finals[0], finals[1], atol=1e-2)


def test_seeds_side_by_side_resume_bit_for_bit_together_and_one_of_them_alone(config, tmp_path):
    config = replace(config, seeds=2, steps=12, checkpoint_every=5, log_every=4,
                     idql=replace(config.idql, actor_dropout=0.1, actor_decay_steps=12))
    whole = train(replace(config, output=str(tmp_path / 'whole'))).state_dict()
    train(replace(config, steps=5, output=str(tmp_path / 'parts')))
    shutil.copytree(tmp_path / 'parts', tmp_path / 'one')
    resumed = train(replace(config, output=str(tmp_path / 'parts'), resume=True)).state_dict()
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    one = train(replace(config, seeds=1, seed=config.seed + 1, resume=True,
                        output=str(tmp_path / 'one' / f'seed-{config.seed + 1}'))).state_dict()
    assert all(torch.equal(one[key], whole[key][1]) for key in whole)
    with pytest.raises(CheckpointError, match='stopped after the same update'):
        train(replace(config, output=str(tmp_path / 'one'), resume=True))


class Line(gymnasium.Env):
    """A point on a line that is pushed; the second observation never moves."""

    metadata = {'render_fps': 10}
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(np.float32([-1, 0]), np.float32([3, 1]))

    def reset(self, *, seed=None, options=None):
        """Start anywhere."""
        super().reset(seed=seed)
        self.state, self.steps = np.array([self.np_random.normal(5), 7], np.float32), 0
        return self.state, {}

    def step(self, action):
        """Move by the action, for five steps."""
        self.state = self.state + np.float32([action[0], 0])
        self.steps += 1
        return self.state, -float(action[0] ** 2), self.steps == 5, False, {'success': False}


def test_evaluations_score_the_policy_file_and_change_nothing_of_the_training(config, tmp_path):
    path, = (tmp_path / 'data').rglob('metadata.json')
    metadata = json.loads(path.read_text())
    del metadata['idql_ros_spec']
    path.write_text(json.dumps(metadata))
    config = replace(config, steps=6, checkpoint_every=3)
    without = train(replace(config, output=str(tmp_path / 'without'))).state_dict()
    config = replace(config, evaluate_every=4, evaluate_episodes=2, evaluate_parallel=1,
                     environment=f'{__name__}:Line')
    scored = train(config)
    assert all(torch.equal(value, without[key]) for key, value in scored.state_dict().items())
    folder = tmp_path / 'run'
    rows = list(csv.DictReader((folder / 'evaluations.csv').open()))
    assert list(rows[0]) == ['step', 'candidates', 'episodes', 'success', 'success_low',
                             'success_high', 'mean_return']
    assert [(row['step'], row['candidates']) for row in rows] == [
        (step, str(n)) for step in ('4', '6') for n in (1, config.idql.candidates)]
    policy = Policy(folder / 'policy-4.onnx')
    assert policy.provenance['updates'] == 4
    assert set(policy.value_ranges_for(1)) == set(VALUE_NAMES)
    results = evaluate(policy, config.environment, 2, 0, 1, '')
    assert float(rows[0]['mean_return']) == pytest.approx(
        np.mean([result.total_reward for result in results]), rel=1e-5)
    with pytest.raises(ConfigError, match='environment: expected one to evaluate in'):
        fresh(replace(config, environment=None))


def test_environment_is_checked_before_the_first_update(config, tmp_path):
    path, = (tmp_path / 'data').rglob('metadata.json')
    metadata = json.loads(path.read_text())
    del metadata['idql_ros_spec']
    path.write_text(json.dumps(metadata))
    for environment, message in (('NoSuch-v0', 'environment NoSuch-v0'),
                                 ('Pendulum-v1', 'expected 2 observations and 2 actions')):
        with pytest.raises(SimulationError, match=message):
            train(replace(config, evaluate_every=100, environment=environment))
        assert not (tmp_path / 'run' / 'metrics.csv').exists()


def test_learner_that_is_not_finite_leaves_the_checkpoint_before(config, tmp_path):
    # The checkpoint comes before the row of metrics that would tell.
    config = replace(config, steps=1000, checkpoint_every=1, log_every=1000,
                     idql=replace(config.idql, critic_learning_rate=1e10))
    with pytest.raises(DivergenceError, match='expected finite parameters'):
        train(config)
    content = read_checkpoint(tmp_path / 'run' / 'checkpoint.pt')
    assert content['step'] >= 1
    assert all(tensor.isfinite().all() for tensor in content['model'].values())


def test_signal_ends_an_evaluation_which_is_made_on_resuming(config, tmp_path):
    path, = (tmp_path / 'data').rglob('metadata.json')
    metadata = json.loads(path.read_text())
    del metadata['idql_ros_spec']
    path.write_text(json.dumps(metadata))
    config = replace(config, steps=6, evaluate_every=3, evaluate_episodes=4, evaluate_parallel=1,
                     environment=f'{__name__}:Line')
    whole = train(replace(config, output=str(tmp_path / 'whole'))).state_dict()

    class Once(Line):
        """Sends the signal in the third episode."""

        episodes = 0

        def reset(self, **keywords):
            """Count."""
            Once.episodes += 1
            if Once.episodes == 5:  # after the checks before training
                os.kill(os.getpid(), signal.SIGTERM)
            return super().reset(**keywords)

    globals()['Once'] = Once
    with pytest.raises(Stopped, match='SIGTERM after update 3'):
        train(replace(config, environment=f'{__name__}:Once'))
    assert read_checkpoint(tmp_path / 'run' / 'checkpoint.pt')['step'] == 3
    resumed = train(replace(config, resume=True)).state_dict()
    assert all(torch.equal(value, whole[key]) for key, value in resumed.items())
    rows = [(folder / 'evaluations.csv').read_text() for folder in (
        tmp_path / 'run', tmp_path / 'whole')]
    assert rows[0] == rows[1]


def test_seeds_that_cannot_all_be_saved_keep_the_checkpoints_before(config, tmp_path):
    config = replace(config, seeds=3, steps=5)
    train(config)
    blocked = tmp_path / 'run' / 'seed-2' / '.checkpoint.pt.unfinished'
    blocked.mkdir()  # as a full disk would, it stops the last of three
    with pytest.raises(OSError, match='the checkpoint before this one stays'):
        train(replace(config, steps=8, resume=True,
                      idql=replace(config.idql, actor_decay_steps=5)))
    steps = [read_checkpoint(tmp_path / 'run' / f'seed-{k}' / 'checkpoint.pt')['step']
             for k in range(3)]
    assert steps == [5, 5, 5]
