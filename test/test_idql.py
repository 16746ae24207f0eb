"""The learner: agreement with the reference trajectories, and the losses' properties."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from training import diffusion
from training.idql import Batch, IDQL, IDQLConfig

COMMITTED = Path(__file__).parent / 'golden'
ALL = ['simple_vp_expectile', 'full_cosine_quantile', 'full_vp_expectile',
       'full_linear_exponential']


def golden_path(name):
    """Return the file of a reference trajectory; skip where it is not at hand."""
    committed = COMMITTED / f'{name}.npz'
    if committed.exists():
        return committed
    if 'IDQL_ROS_GOLDEN' not in os.environ:
        pytest.skip('IDQL_ROS_GOLDEN does not name the folder of reference trajectories')
    return Path(os.environ['IDQL_ROS_GOLDEN']) / f'{name}.npz'


def golden_config(name, golden):
    """Return the settings a reference trajectory was recorded with."""
    learner, schedule, critic_loss = name.split('_')
    simple = learner == 'simple'
    return IDQLConfig(
        actor_width=32,
        actor_blocks=sum(
            key.startswith('init/score_model/MLPResNet_0/MLPResNetBlock_')
            and key.endswith('Dense_0/kernel') for key in golden
        ),
        actor_activation='silu' if simple else 'mish',
        time_features=(128, 256) if simple else (64, 128),
        actor_dropout=0.0,
        actor_decay_steps=1000,
        actor_weight_decay=1e-4,
        schedule=schedule,
        diffusion_steps=len(golden['schedule/betas']),
        critic_hidden=(32, 32),
        value_hidden=(32, 32),
        value_input_layer_norm=simple,
        critic_loss=critic_loss,
        critic_parameter={
            'simple_vp_expectile': 0.7, 'full_vp_expectile': 0.9, 'full_cosine_quantile': 0.8,
            'full_linear_exponential': 1.0,
        }[name],
        discount=0.99,
    )


def actor_state(golden, net):
    """Return a NoisePredictor's state from the reference's names."""
    def dense(name):
        return {'weight': golden[f'{net}/{name}/kernel'].T, 'bias': golden[f'{net}/{name}/bias']}

    state = {'frequencies': golden[f'{net}/FourierFeatures_0/kernel'][:, 0]}
    layers = {'time_hidden': 'MLP_0/Dense_0', 'time_output': 'MLP_0/Dense_1',
              'input': 'MLPResNet_0/Dense_0', 'output': 'MLPResNet_0/Dense_1'}
    block = 0
    while f'{net}/MLPResNet_0/MLPResNetBlock_{block}/Dense_0/kernel' in golden:
        theirs = f'MLPResNet_0/MLPResNetBlock_{block}'
        layers[f'blocks.{block}.expand'] = f'{theirs}/Dense_0'
        layers[f'blocks.{block}.contract'] = f'{theirs}/Dense_1'
        state[f'blocks.{block}.norm.weight'] = golden[f'{net}/{theirs}/LayerNorm_0/scale']
        state[f'blocks.{block}.norm.bias'] = golden[f'{net}/{theirs}/LayerNorm_0/bias']
        block += 1
    for ours, theirs in layers.items():
        state |= {f'{ours}.{key}': value for key, value in dense(theirs).items()}
    return state


def critic_state(golden, net):
    """Return a Critic's state from the reference's names: (K, in, out) on both sides."""
    names = ['MLP_0/Dense_0', 'MLP_0/Dense_1', 'Dense_0']
    state = {}
    for index, theirs in zip((0, 2, 4), names):
        theirs = f'{net}/VmapStateActionValue_0/{theirs}'
        state[f'layers.{index}.weight'] = golden[f'{theirs}/kernel']
        state[f'layers.{index}.bias'] = golden[f'{theirs}/bias']
    return state


def value_state(golden, net):
    """Return a Value's state from the reference's names."""
    state, index = {}, 0
    if f'{net}/MLP_0/LayerNorm_0/scale' in golden:
        state['layers.0.weight'] = golden[f'{net}/MLP_0/LayerNorm_0/scale']
        state['layers.0.bias'] = golden[f'{net}/MLP_0/LayerNorm_0/bias']
        index = 1
    for theirs in ('MLP_0/Dense_0', 'MLP_0/Dense_1', 'OutputVDense'):
        state[f'layers.{index}.weight'] = golden[f'{net}/{theirs}/kernel'].T
        state[f'layers.{index}.bias'] = golden[f'{net}/{theirs}/bias']
        index += 2
    return state


def idql_state(golden, stage):
    """Return the parameters of all five networks at 'init' or 'final'."""
    target = 'target_' if stage == 'final' else ''  # targets start equal
    nets = {
        'actor': actor_state(golden, f'{stage}/score_model'),
        'averaged_actor': actor_state(golden, f'{stage}/{target}score_model'),
        'critics': critic_state(golden, f'{stage}/critic'),
        'target_critics': critic_state(golden, f'{stage}/{target}critic'),
        'value': value_state(golden, f'{stage}/value'),
    }
    return {
        f'{net}.{key}': torch.from_numpy(np.ascontiguousarray(value))
        for net, state in nets.items() for key, value in state.items()
    }


def replay(name):
    """Replay a reference trajectory; return its file, the learner and each update's info."""
    golden = dict(np.load(golden_path(name)))
    observations = golden['batch/0/observations'].shape[1]
    actions = golden['batch/0/actions'].shape[1]
    idql = IDQL(
        golden_config(name, golden), torch.zeros(observations), torch.ones(observations),
        torch.zeros(actions), torch.ones(actions),
    )
    missing, unexpected = idql.load_state_dict(idql_state(golden, 'init'), strict=False)
    assert not unexpected
    assert set(missing) == {
        'observation_mean', 'observation_std', 'action_center', 'action_scale'}
    infos = []
    for k in range(10):
        def draw(key):
            return torch.from_numpy(golden[f'batch/{k}/{key}'])
        infos.append(idql.update(
            Batch(*(draw(field) for field in Batch._fields)), draw('time').long(), draw('noise')))
    return golden, idql, infos


@pytest.fixture(scope='module', params=ALL)
def replayed(request):
    """Return one reference trajectory, replayed."""
    return replay(request.param)


def test_schedule_equals_the_reference(replayed):
    golden, idql, _ = replayed
    schedule = diffusion.schedule(idql.config.schedule, idql.config.diffusion_steps)
    for name, vector in schedule._asdict().items():
        np.testing.assert_allclose(
            vector.numpy(), golden[f'schedule/{name}'], rtol=2e-5, atol=1e-7)


def test_losses_equal_the_reference(replayed):
    golden, _, infos = replayed
    for k, info in enumerate(infos):
        for name, value in info.items():
            # Means of V and Q cross zero, where only an absolute bound makes sense.
            bound = {'rel': 1e-4} if name.endswith('loss') else {'abs': 1e-5}
            assert value.item() == pytest.approx(float(golden[f'loss/{k}/{name}']), **bound)


def test_final_parameters_equal_the_reference(replayed):
    golden, idql, _ = replayed
    state = idql.state_dict()
    for name, expected in idql_state(golden, 'final').items():
        assert (state[name] - expected).abs().max() < 1e-5, name


def test_candidates_and_values_equal_the_reference(replayed):
    golden, idql, _ = replayed
    steps = golden['sample/step_noise'][:-1]  # the last is not used
    noise = np.concatenate([golden['sample/initial_noise'][None], steps])[None]  # (1, T, N, A)
    with torch.no_grad():
        candidates, q, v = idql(
            torch.from_numpy(golden['sample/observation'])[None], torch.from_numpy(noise))
    assert np.abs(candidates[0].numpy() - golden['sample/candidates']).max() < 2e-4
    assert np.abs(q[0].numpy() - golden['sample/q']).max() < 2e-4
    assert np.abs(v.numpy() - golden['sample/v']).max() < 2e-4
    assert np.array_equal(candidates[0, q.argmax()].numpy().round(3),
                          golden['sample/greedy_action'].round(3))
