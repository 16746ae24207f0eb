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
    for index, theirs in zip((0, 2, 4), names, strict=True):
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
        recorded = {
            key.rpartition('/')[2]: torch.from_numpy(value)
            for key, value in golden.items() if key.startswith(f'batch/{k}/')
        }
        batch = Batch(*(recorded[field] for field in Batch._fields))
        infos.append(idql.update(batch, recorded['time'].long(), recorded['noise']))
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


def small(**settings):
    """Return a small learner for 3 observations and 2 actions, in odd units."""
    torch.manual_seed(0)
    return IDQL(
        IDQLConfig(**{
            'actor_width': 16, 'actor_blocks': 1, 'actor_dropout': 0.0, 'time_features': (8, 16),
            'critic_hidden': (16,), 'value_hidden': (16,), 'normalise_observations': True,
        } | settings),
        observation_mean=torch.tensor([10.0, 0.0, -3.0]),
        observation_std=torch.tensor([0.1, 1.0, 5.0]),
        action_center=torch.tensor([2.0, -0.5]),
        action_scale=torch.tensor([3.0, 0.1]),
    )


def small_batch(size=32):
    """Return a random batch in the small learner's physical units, with times and noise."""
    g = torch.Generator().manual_seed(1)
    normal = torch.randn((size, 3), generator=g), torch.randn((size, 3), generator=g)
    std, mean = torch.tensor([0.1, 1.0, 5.0]), torch.tensor([10.0, 0.0, -3.0])
    unit = 2 * torch.rand((size, 2), generator=g) - 1
    batch = Batch(
        observations=normal[0] * std + mean,
        actions=unit * torch.tensor([3.0, 0.1]) + torch.tensor([2.0, -0.5]),
        rewards=torch.randn(size, generator=g),
        masks=(torch.rand(size, generator=g) > 0.2).float(),
        next_observations=normal[1] * std + mean,
    )
    return (batch, torch.randint(5, (size,), generator=g), torch.randn((size, 2), generator=g))


@pytest.mark.parametrize('loss, parameter, u, expected', [
    ('expectile', 0.9, [2.0, -2.0], [3.6, 0.4]),
    ('quantile', 0.8, [2.0, -2.0], [1.6, 0.4]),
    ('exponential', 1.0, [0.0, 1.0, 9.0], [0.0, np.e - 1, 45.0]),
])
def test_convex_loss_has_the_values_of_its_formula(loss, parameter, u, expected):
    idql = small(critic_loss=loss, critic_parameter=parameter)
    assert idql.f(torch.tensor(u)).numpy() == pytest.approx(np.array(expected), rel=1e-6)


@pytest.mark.parametrize('loss, parameter', [('quantile', 0.8), ('expectile', 0.8)])
def test_advantage_of_exactly_zero_counts_as_negative(loss, parameter):
    idql = small(critic_loss=loss, critic_parameter=parameter)
    u = torch.tensor([0.0, 1e-3, -1e-3])
    weight = idql.f(u) / (u.square() if loss == 'expectile' else u.abs())
    assert weight[1:].numpy() == pytest.approx(np.array([0.8, 0.2]), rel=1e-5)
    assert idql.f(u)[0] == 0


def test_exponential_loss_holds_its_factor_constant_and_survives_a_huge_advantage():
    idql = small(critic_loss='exponential', critic_parameter=1.0)
    u = torch.tensor([0.5, 1000.0], requires_grad=True)
    idql.f(u).sum().backward()
    assert u.grad.numpy() == pytest.approx(np.array([np.exp(0.5) - 1, 5.0]), rel=1e-6)


def test_masks_cut_the_value_of_the_next_observation():
    idql = small()
    batch, _, _ = small_batch()
    terminal = idql.network_units(batch._replace(masks=torch.zeros(32)))
    elsewhere = terminal._replace(next_observations=terminal.next_observations + 1)
    assert idql.critic_loss(terminal)[0] == idql.critic_loss(elsewhere)[0]
    going_on = elsewhere._replace(masks=torch.ones(32))
    assert idql.critic_loss(going_on)[0] != idql.critic_loss(elsewhere)[0]


def test_losses_reach_only_their_own_network():
    idql = small()
    batch, times, noise = small_batch()
    batch = idql.network_units(batch)
    losses = {
        'actor': lambda: idql.actor_loss(batch, times, noise),
        'value': lambda: idql.value_loss(batch),
        'critics': lambda: idql.critic_loss(batch),
    }
    for name, loss in losses.items():
        idql.zero_grad()
        loss()[0].backward()
        touched = {key.split('.')[0] for key, p in idql.named_parameters() if p.grad is not None}
        assert touched == {name}


def test_update_moves_the_averages_by_their_rates():
    idql = small(actor_average_rate=0.25, critic_target_rate=0.5)
    before = {key: value.clone() for key, value in idql.state_dict().items()}
    idql.update(*small_batch())
    after = idql.state_dict()
    for average, online, rate in (
        ('averaged_actor.input.weight', 'actor.input.weight', 0.25),
        ('target_critics.layers.0.weight', 'critics.layers.0.weight', 0.5),
    ):
        assert not torch.equal(after[online], before[online])
        expected = (1 - rate) * before[average] + rate * after[online]
        torch.testing.assert_close(after[average], expected)


def test_actions_reach_the_losses_within_the_clipped_range():
    idql = small()
    batch, _, _ = small_batch()
    far = idql.network_units(batch._replace(actions=torch.tensor([[100.0, -0.5]] * 32)))
    assert far.actions[0].tolist() == pytest.approx([1 - 1e-5, 0.0])


def test_normalisation_off_leaves_observations_alone():
    observations = small_batch()[0].observations
    assert torch.equal(small(normalise_observations=False).normalise(observations), observations)
    normalised = small().normalise(observations)
    assert normalised.abs().max() < 5


def test_candidates_are_physical_and_scored_by_the_least_target_critic():
    idql = small()
    observations = small_batch()[0].observations[:4]
    noise = torch.randn((4, 5, 6, 2), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        candidates, q, v = idql(observations, noise)
        unit = (candidates - idql.action_center) / idql.action_scale
        assert unit.abs().max() <= 1 + 1e-5
        normalised = idql.normalise(observations)
        for n in range(6):
            expected = idql.target_critics(normalised, unit[:, n]).min(0).values
            torch.testing.assert_close(q[:, n], expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(v, idql.value(normalised))


def test_a_candidate_does_not_depend_on_its_company():
    idql = small()
    observations = small_batch()[0].observations[:4]
    noise = torch.randn((4, 5, 6, 2), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        together = idql(observations, noise)[0]
        alone = idql(observations[2:3], noise[2:3, :, 4:5])[0]
    torch.testing.assert_close(alone[0, 0], together[2, 4], atol=1e-5, rtol=0)


def test_sampling_uses_the_averaged_actor_and_never_dropout():
    idql = small(actor_dropout=0.5).train()
    observations = small_batch()[0].observations[:2]
    noise = torch.randn((2, 5, 3, 2), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        first = idql(observations, noise)[0]
        for parameter in idql.actor.parameters():
            parameter.add_(1)
        assert torch.equal(idql(observations, noise)[0], first)


def test_actor_learning_rate_falls_as_a_cosine_and_stays_at_zero():
    idql = small(actor_decay_steps=100, actor_learning_rate=2.0)
    rates = []
    for idql.updates in (0, 50, 100, 150):
        rates.append(idql.actor_learning_rate())
    assert rates == pytest.approx([2.0, 1.0, 0.0, 0.0])


@pytest.mark.parametrize('settings', [
    {'critic_loss': 'huber'}, {'critic_parameter': 1.0}, {'discount': 1.0},
    {'critic_loss': 'exponential', 'critic_parameter': 0.0}, {'time_features': (7, 16)},
    {'schedule': 'sigmoid'}, {'diffusion_steps': 0},
])
def test_settings_out_of_range_are_refused_by_name(settings):
    name = 'diffusion steps' if 'diffusion_steps' in settings else list(settings)[-1]
    with pytest.raises(ValueError, match=f'{name}: expected'):
        small(**settings)
