"""The learner: agreement with the reference trajectories, and the losses' properties."""

import copy
import os
from pathlib import Path
import subprocess
import sys

from idql_ros.policy import implicit_weights
import numpy as np
import pytest
import torch
from training import diffusion, parity
from training.idql import Batch, IDQL, IDQLConfig

COMMITTED = Path(__file__).parent / 'golden'
# Reference trajectory -> how it was recorded.
GOLDEN = {
    'simple_vp_expectile': {'critic_parameter': 0.7},
    'full_vp_expectile': {'critic_parameter': 0.9},
    'full_cosine_quantile': {'critic_parameter': 0.8},
    'full_linear_exponential': {'critic_parameter': 1.0},
}
for _name, _options in GOLDEN.items():
    _options |= zip(('variant', 'schedule', 'critic_loss'), _name.split('_'), strict=True)


def golden_path(name):
    """Return the file of a reference trajectory; skip where it is not at hand."""
    committed = COMMITTED / f'{name}.npz'
    if committed.exists():
        return committed
    if 'IDQL_ROS_GOLDEN' not in os.environ:
        pytest.skip('IDQL_ROS_GOLDEN does not name the folder of reference trajectories')
    return Path(os.environ['IDQL_ROS_GOLDEN']) / f'{name}.npz'


@pytest.fixture(scope='module', params=sorted(GOLDEN))
def replayed(request):
    """Return one reference trajectory, the learner after its replay, and the losses."""
    recording = parity.Recording(golden_path(request.param))
    assert recording.updates == 10
    idql, losses = parity.replay(recording, recording.config(**GOLDEN[request.param]))
    return recording, idql, losses


def test_schedule_equals_the_reference(replayed):
    recording, idql, _ = replayed
    schedule = diffusion.schedule(idql.config.schedule, idql.config.diffusion_steps)
    for name, vector in schedule._asdict().items():
        np.testing.assert_allclose(
            vector.numpy(), recording.arrays[f'schedule/{name}'], rtol=2e-5, atol=1e-7)


def test_losses_equal_the_reference(replayed):
    recording, _, losses = replayed
    for k, row in enumerate(losses):
        for name, value in row.items():
            # Means of V and Q cross zero, where only an absolute bound makes sense.
            bound = {'rel': 1e-4} if name.endswith('loss') else {'abs': 1e-5}
            expected = float(recording.arrays[f'loss/{k}/{name}'])
            assert value == pytest.approx(expected, **bound)


def test_final_parameters_equal_the_reference(replayed):
    recording, idql, _ = replayed
    state = idql.state_dict()
    final = recording.state(idql, 'final')
    assert set(final) == {name for name, _ in idql.named_parameters()}
    for name, expected in final.items():
        assert (state[name] - expected).abs().max() < 1e-5, name


def test_candidates_and_values_equal_the_reference(replayed):
    recording, idql, _ = replayed
    golden = recording.arrays
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


@pytest.mark.parametrize(('loss', 'parameter', 'factor'), [
    ('expectile', 0.9, 2.0), ('quantile', 0.8, 1.0), ('exponential', 1.5, 1 / 1.5)])
def test_trained_loss_has_the_gradient_that_the_policys_weights_assume(loss, parameter, factor):
    u = torch.cat([-torch.logspace(-3, 1, 50), torch.logspace(-3, 1, 50)]).requires_grad_()
    small(critic_loss=loss, critic_parameter=parameter).f(u).sum().backward()
    expected = (u.grad.abs() / u.detach().abs()).numpy()
    found = factor * implicit_weights(u.detach().numpy(), loss, parameter)
    assert found == pytest.approx(expected, rel=1e-3)


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
        ('target_critics.hidden.0.weight', 'critics.hidden.0.weight', 0.5),
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
    {'critic_loss': 'exponential', 'critic_parameter': 0.0},
    {'critic_loss': 'exponential', 'critic_parameter': float('inf')},
    {'critic_loss': 'exponential', 'critic_parameter': float('nan')},
    {'time_features': (7, 16)}, {'time_features': (0, 16)}, {'schedule': 'sigmoid'},
    {'diffusion_steps': 0}, {'actor_dropout': 1.0}, {'actor_dropout': -0.5}, {'actor_width': 0},
    {'actor_blocks': -1}, {'critics': 0}, {'critic_hidden': (8, 0)}, {'candidates': 0},
    {'candidates': 100_000}, {'actor_decay_steps': 0}, {'actor_learning_rate': -1e-3},
    {'critic_learning_rate': float('nan')}, {'critic_target_rate': 2.0},
    {'actor_average_rate': 0.0}, {'actor_precision': 'float16'},
])
def test_settings_out_of_range_are_refused_by_name(settings):
    with pytest.raises(ValueError, match=f'{list(settings)[-1]}: expected'):
        small(**settings)


def test_copied_learner_learns_by_itself():
    idql = small()
    idql.update(*small_batch())
    copied = copy.deepcopy(idql)
    state = {name: value.clone() for name, value in idql.state_dict().items()}
    copied.update(*small_batch())
    for name, value in idql.state_dict().items():
        assert torch.equal(value, state[name])
        if not name.startswith(('observation', 'action')):
            assert not torch.equal(value, copied.state_dict()[name]), name
    idql.update(*small_batch())
    assert all(torch.equal(value, copied.state_dict()[name])
               for name, value in idql.state_dict().items())


def test_network_moved_by_itself_is_refused_and_does_not_stand_still():
    idql = small()
    idql.actor.double().float()
    with pytest.raises(RuntimeError, match='move the whole learner'):
        idql.update(*small_batch())


def test_learners_side_by_side_make_the_updates_of_each_alone():
    alone = []
    for seed in range(3):
        torch.manual_seed(seed)
        alone.append(small(critics=3, actor_dropout=0.2, critic_layer_norm=True,
                           value_layer_norm=True, value_input_layer_norm=True))
        with torch.no_grad():
            for parameter in alone[-1].parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    stacked = IDQL.stack(alone)
    start = stacked.actor.output.weight.detach().clone()
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    for _ in range(5):
        batches, draws, infos = [], [], []
        for idql, generator in zip(alone, generators, strict=True):
            batch = Batch(*(
                x[torch.randint(32, (16,), generator=generator)] for x in small_batch()[0]))
            batches.append(batch)
            draws.append(idql.draw(16, generator))
            infos.append(idql.update(batch, *draws[-1]))
        info = stacked.update(*(
            Batch(*map(torch.stack, zip(*batches, strict=True))),
            *map(torch.stack, zip(*draws, strict=True))))
        for key, value in info.items():
            expected = torch.stack([each[key] for each in infos])
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    assert (stacked.actor.output.weight - start).abs().max() > 1e-3
    for idql, found in zip(alone, stacked.unstack(), strict=True):
        state = found.state_dict()
        for name, value in idql.state_dict().items():
            assert (state[name] - value).abs().max() < 1e-5, name
        for name, adam in found.optimisers.items():
            ours, theirs = adam.state_dict(), idql.optimisers[name].state_dict()
            assert ours['steps'] == theirs['steps'] == 5
            for key in ('means', 'squares'):
                torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=1e-4)


def test_candidates_are_the_same_in_parts_and_as_one(monkeypatch):
    idql = small()
    generator = torch.Generator().manual_seed(3)
    observations = torch.randn((5, 3), generator=generator)
    noise = torch.randn((5, 5, 7, 2), generator=generator)
    with torch.no_grad():
        whole = idql(observations, noise)
        for at_once in (1, 3, 7, 20):
            monkeypatch.setattr('training.idql.SCORED_AT_ONCE', at_once)
            for one, other in zip(whole, idql(observations, noise), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_two_to_the_sixteen_candidates_at_once_take_less_than_a_gigabyte():
    # Of a process of its own: the peak of this one is that of all tests before.
    done = subprocess.run([sys.executable, '-c', """
import re, torch
from training.idql import IDQL, IDQLConfig
idql = IDQL(IDQLConfig(), torch.zeros(17), torch.ones(17), torch.zeros(6), torch.ones(6)).eval()
def peak():
    return int(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]) / 2**20
before = peak()
with torch.no_grad():
    for shape in ((512, 5, 128, 6), (1, 5, 65536, 6)):
        q = idql(torch.zeros(shape[0], 17), torch.randn(shape))[1]
        assert q.numel() == 2**16
print(peak() - before)
"""], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1
