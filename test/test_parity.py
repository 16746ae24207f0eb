"""Recorded runs: equal ones pass, whatever their sizes; what differs is told, and where."""

import dataclasses
import functools
import io
import json
from pathlib import Path
import re

import numpy as np
import pytest
from test_idql import GOLDEN, golden_path
import torch
from training import parity
from training.idql import Batch, IDQL, IDQLConfig
from training.train import TrainConfig

# Nothing of it is as in the recorded runs at hand: sizes, layers, critics, T, rates.
OTHER = {
    'actor_width': 24, 'actor_blocks': 3, 'time_features': (10, 20), 'diffusion_steps': 3,
    'critics': 3, 'critic_hidden': (20, 12, 8), 'value_hidden': (9, 14, 7), 'discount': 0.9,
    'critic_parameter': 0.8, 'actor_learning_rate': 1e-3, 'critic_learning_rate': 2e-3,
    'actor_average_rate': 0.01, 'critic_target_rate': 0.05, 'actor_weight_decay': 0.1,
    'actor_decay_steps': 50,
}


def record(path, change=None, **settings):
    """Write a run of our own learner as another would record it; return the command line."""
    arrays, options = recorded(**settings)
    arrays = dict(arrays)
    if change is not None:
        change(arrays)
    np.savez(path, **arrays)
    return command(path, options)


@functools.cache
def recorded(observations=4, actions=2, candidates=6, updates=3, **settings):
    """Return a run's arrays and the options that belong to it."""
    torch.set_num_threads(1)
    torch.manual_seed(5)
    config = IDQLConfig(**{
        'actor_width': 16, 'actor_blocks': 1, 'actor_dropout': 0.0, 'time_features': (8, 16),
        'critic_hidden': (16, 16), 'value_hidden': (16, 16), 'candidates': candidates,
    } | parity.RECORDED | settings)
    idql = IDQL(config, torch.zeros(observations), torch.ones(observations),
                torch.zeros(actions), torch.ones(actions))
    arrays = {f'schedule/{k}': v.numpy() for k, v in idql.schedule._asdict().items()}
    arrays |= parameters(idql, 'init')
    for k in range(updates):
        b = 8 + k  # a batch's size is its own
        batch = Batch(torch.randn(b, observations), torch.rand(b, actions) * 1.8 - 0.9,
                      torch.randn(b), (torch.rand(b) > 0.2).float(), torch.randn(b, observations))
        times, noise = torch.randint(config.diffusion_steps, (b,)), torch.randn(b, actions)
        arrays |= {f'batch/{k}/{name}': value.numpy() for name, value in batch._asdict().items()}
        arrays |= {f'batch/{k}/time': times.numpy().astype(np.int32),
                   f'batch/{k}/noise': noise.numpy()}
        info = idql.update(batch, times, noise)
        arrays |= {f'loss/{k}/{name}': value.numpy() for name, value in info.items()}
    arrays |= parameters(idql, 'final')
    noise = torch.randn(1, config.diffusion_steps + 1, candidates, actions)
    observation = torch.randn(observations)
    with torch.no_grad():
        found, q, v = idql.eval()(observation[None], noise[:, :-1])
    arrays |= {
        'sample/observation': observation.numpy(), 'sample/initial_noise': noise[0, 0].numpy(),
        'sample/step_noise': noise[0, 1:].numpy(), 'sample/candidates': found[0].numpy(),
        'sample/q': q[0].numpy(), 'sample/v': np.repeat(v.numpy(), candidates),
        'sample/greedy_action': found[0, q[0].argmax()].numpy()}
    options = {'variant': {'silu': 'simple', 'mish': 'full'}[config.actor_activation]} | {
        name: getattr(config, name) for name in (
            'schedule', 'critic_loss', 'critic_parameter', 'discount', *parity.RECORDED)}
    return arrays, options


def parameters(idql, stage):
    """Return the parameters as the authors' framework stores them."""
    arrays = {}
    for net, names in parity.parameter_names(idql.config).items():
        theirs = parity.FINAL[net]
        if stage == 'init' and theirs.startswith('target_'):
            continue
        for name, key in names.items():
            array = idql.get_parameter(f'{net}.{name}').detach().numpy().copy()
            if 'Fourier' in key:
                array = array[:, None]
            arrays[f'{stage}/{theirs}/{key}'] = array
    return arrays


def command(path, options):
    """Return the command line of a file and its options."""
    return [str(path), *(
        text for name, value in options.items()
        for text in (f'--{name.replace("_", "-")}', str(value)))]


def run(arguments, capsys):
    """Return the exit status, the table's failed rows, and the JSON at the end."""
    status = parity.main(arguments)
    out = capsys.readouterr().out.splitlines()
    result = json.loads(out[-1], parse_constant=pytest.fail)
    failed = [line[:28].strip() for line in out if ' FAIL ' in line]
    assert result['passed'] == (status == 0) == (not failed)
    return status, failed, result


@pytest.mark.parametrize('name', sorted(GOLDEN))
def test_runs_of_the_reference_learner_are_equal_far_within_the_tolerances(name, capsys):
    status, failed, result = run(command(golden_path(name), GOLDEN[name]), capsys)
    assert (status, failed) == (0, [])
    assert len(result['errors']) == 15  # schedule, 5 losses, 5 networks, 4 of the sampling
    for kind, error in result['errors'].items():
        assert error < 0.3 * result['allowed'][kind], kind


def test_tolerances_are_not_above_those_required():
    assert (parity.LOSS_TOLERANCE, parity.PARAMETER_TOLERANCE, parity.SAMPLE_TOLERANCE) == (
        1e-4, 1e-5, 2e-4)
    assert all(floor * parity.LOSS_TOLERANCE <= 1e-5 for floor in parity.FLOORS.values())


@pytest.mark.parametrize('settings', [
    OTHER,
    OTHER | {'schedule': 'cosine', 'critic_loss': 'quantile', 'critics': 1},
    {'schedule': 'linear', 'critic_loss': 'exponential', 'critic_parameter': 2.5, 'actions': 1},
    {'diffusion_steps': 1, 'critic_hidden': (30,), 'value_hidden': (11,), 'observations': 1},
    {'diffusion_steps': 20, 'critics': 10, 'updates': 1, 'candidates': 1},
    {'actor_activation': 'silu', 'value_input_layer_norm': True, 'updates': 12},
])
def test_learner_follows_the_sizes_of_the_file(tmp_path, settings, capsys):
    arguments = record(tmp_path / 'run.npz', **settings)
    status, failed, result = run(arguments, capsys)
    assert (status, failed) == (0, [])
    for name, value in settings.items():
        if name in result['config']:
            assert result['config'][name] == (list(value) if type(value) is tuple else value)


def test_layers_are_found_by_the_names_of_the_reference(tmp_path):
    record(tmp_path / 'run.npz', **OTHER)
    with np.load(tmp_path / 'run.npz') as arrays:
        shapes = {key: arrays[key].shape for key in arrays.files}
    assert shapes['init/critic/VmapStateActionValue_0/MLP_0/Dense_2/kernel'] == (3, 12, 8)
    assert shapes['final/target_critic/VmapStateActionValue_0/Dense_0/kernel'] == (3, 8, 1)
    assert shapes['init/value/MLP_0/Dense_1/kernel'] == (9, 14)
    assert shapes['final/target_score_model/MLPResNet_0/MLPResNetBlock_2/Dense_0/kernel'] == (
        24, 96)
    assert shapes['init/score_model/FourierFeatures_0/kernel'] == (5, 1)


def test_defaults_are_those_of_each_loss(tmp_path, capsys):
    for loss, parameter in (('expectile', 0.7), ('quantile', 0.6), ('exponential', 1.0)):
        record(tmp_path / 'run.npz', critic_loss=loss, critic_parameter=parameter)
        status, _, result = run([str(tmp_path / 'run.npz'), '--critic-loss', loss], capsys)
        assert status == 0
        assert result['config']['critic_parameter'] == parameter


@pytest.mark.parametrize(('option', 'value', 'kind'), [
    ('variant', 'simple', 'actor_loss (relative)'),
    ('critic-loss', 'quantile', 'value_loss (relative)'),
    ('critic-parameter', 0.71, 'value_loss (relative)'),
    ('schedule', 'cosine', 'schedule'),
    ('discount', 0.98, 'critic_loss (relative)'),
    ('actor-weight-decay', 1.0, 'actor parameters'),
    ('actor-decay-steps', 10, 'actor parameters'),
    ('actor-average-rate', 0.1, 'averaged_actor parameters'),
    ('critic-target-rate', 0.1, 'target_critics parameters'),
    ('actor-learning-rate', 1e-3, 'actor parameters'),
    ('critic-learning-rate', 1e-3, 'value parameters'),
])
def test_a_wrong_option_is_told_by_what_it_spoils(tmp_path, option, value, kind, capsys):
    arguments = record(tmp_path / 'run.npz')
    arguments[arguments.index(f'--{option}') + 1] = str(value)
    status, failed, _ = run(arguments, capsys)
    assert status == 1 and kind in failed


@pytest.mark.parametrize(('key', 'kind', 'by'), [
    ('schedule/betas', 'schedule', 2e-4),
    ('loss/1/actor_loss', 'actor_loss (relative)', 1e-3),
    ('loss/1/value_loss', 'value_loss (relative)', 1e-3),
    ('loss/2/critic_loss', 'critic_loss (relative)', 1e-3),
    ('loss/0/v', 'v (relative)', 1e-3),
    ('loss/2/q', 'q (relative)', 1e-3),
    ('final/score_model/MLPResNet_0/Dense_1/bias', 'actor parameters', 2e-5),
    ('final/target_score_model/FourierFeatures_0/kernel', 'averaged_actor parameters', 2e-5),
    ('final/critic/VmapStateActionValue_0/Dense_0/kernel', 'critics parameters', 2e-5),
    ('final/target_critic/VmapStateActionValue_0/MLP_0/Dense_1/kernel',
     'target_critics parameters', 2e-5),
    ('final/value/OutputVDense/bias', 'value parameters', 2e-5),
    ('sample/candidates', 'candidates', 3e-4),
    ('sample/q', 'q', 3e-4),
    ('sample/v', 'v', 3e-4),
    ('sample/greedy_action', 'greedy action', 3e-4),
])
@pytest.mark.parametrize('wrong', ['perturbed', 'nan'])
def test_one_wrong_number_fails_its_own_kind_and_no_other(
        tmp_path, key, kind, by, wrong, capsys):
    def perturb(arrays):
        array = np.array(arrays[key])
        array.reshape(-1)[-1] += by if wrong == 'perturbed' else np.nan
        arrays[key] = array

    status, failed, result = run(record(tmp_path / 'run.npz', change=perturb), capsys)
    assert (status, failed) == (1, [kind])
    assert (result['errors'][kind] is None) == (wrong == 'nan')


def test_a_wrong_input_fails_what_depends_on_it(tmp_path, capsys):
    def perturb(arrays):
        arrays['batch/1/rewards'] = arrays['batch/1/rewards'] + 0.1

    _, failed, _ = run(record(tmp_path / 'run.npz', change=perturb), capsys)
    assert 'critic_loss (relative)' in failed and 'critics parameters' in failed
    assert 'actor_loss (relative)' not in failed and 'schedule' not in failed


def test_either_of_two_equally_good_candidates_is_the_greedy_one(tmp_path, capsys):
    with np.load(golden_path('full_cosine_quantile')) as file:
        arrays = dict(file)
    ranked = np.argsort(arrays['sample/q'])
    arrays['sample/greedy_action'] = arrays['sample/candidates'][ranked[-2]]
    gap = np.diff(arrays['sample/q'][ranked[-2:]])[0]
    np.savez(tmp_path / 'run.npz', **arrays)
    arguments = command(tmp_path / 'run.npz', GOLDEN['full_cosine_quantile'])
    _, failed, _ = run(arguments, capsys)
    assert (failed == []) == (gap < 2 * parity.SAMPLE_TOLERANCE)


def drop(key):
    """Return a change that removes a key."""
    return lambda arrays: arrays.pop(key)


def put(key, array):
    """Return a change that sets a key."""
    return lambda arrays: arrays.update({key: array})


@pytest.mark.parametrize(('change', 'reason'), [
    (drop('schedule/betas'), 'the key schedule/betas, found none'),
    (drop('batch/1/noise'), 'the key batch/1/noise, found none'),
    (drop('batch/1/observations'), 'updates 0 to 0 without a gap, found batch/1/actions'),
    (drop('loss/2/q'), 'the key loss/2/q, found none'),
    (drop('final/value/OutputVDense/bias'), 'the key final/value/OutputVDense/bias'),
    (drop('init/value/MLP_0/Dense_0/kernel'), 'the key init/value/MLP_0/Dense_0/kernel'),
    (drop('sample/v'), 'the key sample/v, found none'),
    (put('sample/v', np.zeros(2)), 'sample/v of 1 or 6 numbers, found 2'),
    (put('sample/q', np.zeros(5)), r'sample/q of shape \(6,\), found \(5,\)'),
    (put('sample/step_noise', np.zeros((4, 6, 2))), r'sample/step_noise of shape \(5, 6, 2\)'),
    (put('batch/0/actions', np.zeros((8, 3))), r'batch/0/actions of shape \(8, 2\)'),
    (put('batch/0/time', np.full(8, 5)), r'batch/0/time of whole numbers in \[0, 5\)'),
    (put('batch/0/time', np.zeros(8)), 'batch/0/time of whole numbers'),
    (put('final/value/OutputVDense/bias', np.zeros(2)), r'of shape \(1,\), found \(2,\)'),
    (put('init/score_model/MLP_0/Dense_1/kernel', np.zeros((16, 9))), r'of shape \(16, 16\)'),
    (put('init/critic/VmapStateActionValue_0/MLP_0/LayerNorm_0/scale', np.ones((2, 16))),
     'no init parameters but those this learner has, found init/critic'),
    (put('batch/0/rewards', np.array(['a'] * 8)), 'batch/0/rewards of numbers'),
    (put('schedule/betas', np.array([{}], object)), 'without pickled objects'),
])
def test_what_is_not_a_recording_is_refused_in_one_line(tmp_path, change, reason, capsys):
    assert parity.main(record(tmp_path / 'run.npz', change=change)) == 2
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith(f'error: {tmp_path / "run.npz"}: expected ')
    assert re.search(reason, line), line


def numpy_file():
    """Return the bytes of a single array."""
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize('content', [b'', b'no npz', b'PK\x03\x04' + bytes(100), numpy_file()])
def test_what_is_not_an_npz_is_refused_in_one_line(tmp_path, content, capsys):
    (tmp_path / 'run.npz').write_bytes(content)
    assert parity.main([str(tmp_path / 'run.npz')]) == 2
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith(f'error: {tmp_path / "run.npz"}: expected a NumPy .npz file')


@pytest.mark.parametrize('share', [0.3, 0.9, 0.999])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, share, capsys):
    path = tmp_path / 'run.npz'
    arguments = record(path)
    content = path.read_bytes()
    path.write_bytes(content[:int(share * len(content))])
    assert parity.main(arguments) == 2
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes(64) + content[middle + 64:])
    assert parity.main(arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_an_absent_file_and_a_setting_out_of_range_are_told_in_one_line(tmp_path, capsys):
    assert parity.main([str(tmp_path / 'none.npz')]) == 2
    assert parity.main([*record(tmp_path / 'run.npz'), '--critic-parameter', '1.5']) == 2
    absent, out_of_range = capsys.readouterr().err.splitlines()
    assert 'No such file' in absent and 'critic_parameter: expected tau' in out_of_range


def test_documentation_states_every_setting_with_its_default():
    text = (Path(__file__).parents[1] / 'doc' / 'algorithm.md').read_text()
    stated = dict(re.findall(r'^\| `(\w+)` \|[^|]*\|[^|]*\| (.*)\|$', text, re.M))
    for field in (*dataclasses.fields(IDQLConfig), *dataclasses.fields(TrainConfig)):
        if field.name == 'idql':
            continue
        default = '' if field.default is dataclasses.MISSING else f'`{field.default!r}`'
        assert stated.pop(field.name).strip() == default, field.name
    assert not stated
