"""The configuration of a run: read from YAML, refused by name of file and key."""

from dataclasses import asdict
from pathlib import Path

import pytest
from training.config import ConfigError, read_config

CONFIGS = Path(__file__).parents[1] / 'config' / 'training'


@pytest.mark.parametrize('name, steps, candidates', [
    ('demo.yaml', 10_000, 32), ('demo_small.yaml', 600, 32),
    ('ogbench_cube_single.yaml', 100_000, 32), ('ogbench.yaml', 1_000_000, 32),
    ('d4rl_gym.yaml', 3_000_000, 128), ('d4rl_antmaze.yaml', 3_000_000, 32)])
def test_shipped_configurations_are_read(name, steps, candidates):
    config = read_config(CONFIGS / name)
    assert (config.steps, config.idql.candidates) == (steps, candidates)


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
    ('seeds: 0', 'seeds: expected 1 or more, found 0'),
    ('evaluate_every: 0', 'evaluate_every: expected 1 or more, found 0'),
    ('evaluate_parallel: 0', 'evaluate_parallel: expected 1 or more, found 0'),
    ('device: gpu', "device: expected .*'cpu', 'cuda'.*, found 'gpu'"),
    ('idql: {actor_precision: float16}',
     "idql: actor_precision: expected .*'float32', 'bfloat16'.*, found 'float16'"),
    ('validation_fraction: 1.0', 'validation_fraction: expected a value in'),
    ('reward_shift: .nan', 'reward_shift: expected a finite number'),
    ('reward_scaling: range', "reward_scaling: expected .*'range'"),
    ('- steps', 'expected keys and values'),
    ('', 'expected keys and values, found None'),
])
def test_bad_configuration_is_refused_in_one_line_naming_file_and_key(tmp_path, text, message):
    path = tmp_path / 'bad.yaml'
    path.write_text(text)
    with pytest.raises(ConfigError, match=f'bad.yaml: .*{message}') as refused:
        read_config(path)
    assert '\n' not in str(refused.value)


def test_what_is_no_yaml_is_refused_naming_file_and_line(tmp_path):
    path = tmp_path / 'bad.yaml'
    path.write_text('batch_size: 5\nsteps: [')
    with pytest.raises(ConfigError, match='(?s)bad.yaml: expected YAML, .*line 2'):
        read_config(path)


def test_values_of_a_configuration_get_the_fields_types(tmp_path):
    path = tmp_path / 'good.yaml'
    path.write_text(
        'threads: null\ndevice: cpu\nevaluate_every: 5\nreward_shift: -1\n'
        'idql: {critic_hidden: [8, 8, 8], actor_decay_steps: 5, actor_precision: bfloat16}\n')
    config = read_config(path)
    assert (config.threads, config.device, config.evaluate_every) == (None, 'cpu', 5)
    assert type(config.reward_shift) is float
    assert config.idql.critic_hidden == (8, 8, 8)
    assert (config.idql.actor_decay_steps, config.idql.actor_precision) == (5, 'bfloat16')
