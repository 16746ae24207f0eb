"""Schedules, the forward process and the sampler."""

import pytest
import torch
from training.diffusion import add_noise, sample, schedule


@pytest.mark.parametrize('name', ['vp', 'cosine', 'linear'])
@pytest.mark.parametrize('steps', [1, 5, 10, 100])
def test_schedules_are_consistent_and_noise_only_grows(name, steps):
    betas, alphas, alpha_hats = schedule(name, steps)
    assert len(betas) == steps
    assert ((betas > 0) & (betas < 1)).all()
    torch.testing.assert_close(alphas + betas, torch.ones(steps))
    torch.testing.assert_close(alpha_hats, torch.cumprod(alphas, 0))
    assert (alpha_hats.diff() < 0).all()


def test_vp_schedule_of_five_steps_is_the_papers():
    betas = schedule('vp', 5).betas
    torch.testing.assert_close(
        betas, torch.tensor([0.196, 0.459, 0.636, 0.755, 0.835]), atol=5e-4, rtol=0)


@pytest.mark.parametrize('name, steps', [('vp', 0), ('sigmoid', 5)])
def test_impossible_schedules_are_refused(name, steps):
    with pytest.raises(ValueError, match='expected'):
        schedule(name, steps)


def test_added_noise_keeps_unit_variance_and_takes_each_rows_own_step():
    vp = schedule('vp', 5)
    generator = torch.Generator().manual_seed(0)
    actions = torch.randn((20000, 1), generator=generator)
    noise = torch.randn((20000, 1), generator=generator)
    times = torch.randint(5, (20000,), generator=generator)
    noisy = add_noise(actions, noise, times, vp)
    assert noisy.var().item() == pytest.approx(1, abs=0.03)
    for t in range(5):
        row = int((times == t).nonzero()[0])
        share = vp.alpha_hats[t]
        expected = share.sqrt() * actions[row] + (1 - share).sqrt() * noise[row]
        torch.testing.assert_close(noisy[row], expected)


def test_sampler_with_perfect_predictions_finds_the_only_action():
    vp = schedule('vp', 5)
    action = torch.tensor([[0.3, -0.7]])

    def predict(noisy, t):  # what noise it must be, if `action` is the only one there is
        return (noisy - vp.alpha_hats[t].sqrt() * action) / (1 - vp.alpha_hats[t]).sqrt()

    noise = torch.randn((5, 1, 2), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sample(predict, noise, vp), action, atol=1e-5, rtol=0)


def test_sampler_asks_for_each_step_once_from_last_to_first_and_clips():
    asked = []

    def predict(noisy, t):
        asked.append(t)
        assert t == 4 or noisy.abs().max() <= 1
        return -100 * noisy

    noise = torch.randn((5, 8, 2), generator=torch.Generator().manual_seed(0))
    actions = sample(predict, noise, schedule('vp', 5))
    assert asked == [4, 3, 2, 1, 0]
    assert actions.abs().max() <= 1


def test_every_given_noise_is_used():
    vp = schedule('vp', 5)
    noise = 0.01 * torch.randn((5, 1, 1), generator=torch.Generator().manual_seed(0))
    expected = sample(lambda noisy, t: 0 * noisy, noise, vp)
    for i in range(5):
        changed = noise.clone()
        changed[i] += 0.01
        assert not torch.equal(sample(lambda noisy, t: 0 * noisy, changed, vp), expected), i
