"""Training: configuration, reproducibility, and what it leaves in the output folder."""

import csv
from dataclasses import asdict, replace
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from training.datasets import DatasetError, Episode, write_minari
from training.idql import IDQLConfig
from training.train import (
    ConfigError,
    DivergenceError,
    load_checkpoint,
    main,
    read_checkpoint,
    read_config,
    train,
    TrainConfig,
)

SPEC = json.dumps({'actions': [{'dimensions': [
    {'lower': -2.0, 'upper': 4.0}, {'lower': 0.0, 'upper': 1.0}]}]})
CONFIGS = Path(__file__).parents[1] / 'config' / 'training'


def write_dataset(root, spec_json=SPEC, rewards=None):
    """Write demo/test-v0: the second observation never moves."""
    rng = np.random.default_rng(0)
    episodes = []
    for _ in range(5):
        observations = rng.normal(5, 2, (21, 2)).astype(np.float32)
        observations[:, 1] = 7
        actions = rng.uniform([-1, 0], [3, 1], (20, 2)).astype(np.float32)
        episodes.append(Episode(
            observations, actions, -actions[:, 0] ** 2 if rewards is None else rewards,
            terminated=True, truncated=False))
    write_minari(episodes, 'demo/test-v0', root, {'task': 'test'}, spec_json)


@pytest.fixture
def config(tmp_path):
    """Return a tiny run on a tiny dataset."""
    write_dataset(tmp_path / 'data')
    return TrainConfig(
        dataset='demo/test-v0', root=str(tmp_path / 'data'), output=str(tmp_path / 'run'),
        steps=7, batch_size=16, log_every=3, checkpoint_every=5, threads=1,
        idql=IDQLConfig(
            actor_width=16, actor_blocks=1, time_features=(8, 16), critic_hidden=(16,),
            value_hidden=(16,), normalise_observations=True),
    )


def test_the_same_seed_gives_the_same_parameters_and_another_does_not(config):
    first = train(config).state_dict()
    again = train(config).state_dict()
    other = train(replace(config, seed=1)).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first['actor.input.weight'], other['actor.input.weight'])


def test_random_draws_of_the_caller_do_not_change_a_run(config):
    first = train(config).state_dict()
    torch.rand(3)
    again = train(config).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)


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
        theirs = loaded.optimisers[name].state_dict()['state']
        for index, state in optimiser.state_dict()['state'].items():
            assert all(torch.equal(state[key], theirs[index][key]) for key in state)
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


def test_file_that_is_no_checkpoint_is_refused(tmp_path):
    torch.save({'weights': torch.zeros(1)}, tmp_path / 'other.pt')
    with pytest.raises(ConfigError, match='other.pt: expected a checkpoint of format 1'):
        read_checkpoint(tmp_path / 'other.pt')


def test_checkpoint_that_would_run_code_is_refused(tmp_path):
    torch.save({'format_version': 1, 'model': tmp_path}, tmp_path / 'code.pt')  # a Path object
    with pytest.raises(ConfigError, match='code.pt: expected a checkpoint .*running code'):
        read_checkpoint(tmp_path / 'code.pt')


def test_metrics_have_a_row_at_each_interval_and_at_the_end(config, tmp_path):
    train(config)
    with open(tmp_path / 'run' / 'metrics.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [int(row['step']) for row in rows] == [3, 6, 7]
    assert all(float(row['critic_loss']) > 0 for row in rows)


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


@pytest.mark.parametrize('name', ['demo.yaml', 'demo_small.yaml'])
def test_shipped_configurations_are_read(name):
    config = read_config(CONFIGS / name)
    assert config.idql.candidates == 32
    assert config.steps == {'demo.yaml': 10000, 'demo_small.yaml': 600}[name]


def test_small_demo_differs_from_the_demo_in_its_length_only():
    small, full = (asdict(read_config(CONFIGS / n)) for n in ('demo_small.yaml', 'demo.yaml'))
    assert {key for key in full if small[key] != full[key] and key != 'dataset'} == {
        'steps', 'log_every', 'checkpoint_every'}


@pytest.mark.parametrize('text, message', [
    ('stepz: 5', "unknown key 'stepz'; expected one of dataset"),
    ('idql: {expectile: 0.9}', "idql: unknown key 'expectile'"),
    ('steps: many', "steps: expected .*int.*, found 'many'"),
    ('steps: true', 'steps: expected .*int.*, found True'),
    ('idql: {discount: 1e-3}', "idql: discount: .*'1e-3'; YAML reads 1e-3 as text"),
    ('idql: {critic_loss: huber}', "critic_loss: expected .*'huber'"),
    ('idql: {time_features: [8]}', 'time_features: expected'),
    ('idql: {discount: 1.5}', 'idql: discount: expected a value in'),
    ('idql: 3', 'idql: expected keys and values'),
    ('steps: 0', 'steps: expected 1 or more'),
    ('- steps', 'expected keys and values'),
    ('steps: [', 'expected YAML'),
    ('', 'expected keys and values, found None'),
])
def test_bad_configuration_is_refused_naming_file_and_key(tmp_path, text, message):
    path = tmp_path / 'bad.yaml'
    path.write_text(text)
    with pytest.raises(ConfigError, match=f'bad.yaml: .*{message}'):
        read_config(path)


def test_values_of_a_configuration_get_the_fields_types(tmp_path):
    path = tmp_path / 'good.yaml'
    path.write_text('threads: null\nidql: {critic_hidden: [8, 8, 8], actor_decay_steps: 5}\n')
    config = read_config(path)
    assert (config.threads, config.idql.critic_hidden) == (None, (8, 8, 8))
    assert config.idql.actor_decay_steps == 5


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
