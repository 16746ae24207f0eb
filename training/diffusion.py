"""Denoising diffusion of actions: schedules, adding noise, sampling.

Pure functions: whatever is random is an argument. Source: DDPM (arXiv 2006.11239) in the form
of IDQL (arXiv 2304.10573, section 4.2 and appendix).
"""

from collections.abc import Callable
import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

ScheduleName = Literal['vp', 'cosine', 'linear']


class Schedule(NamedTuple):
    """Noise schedule, three vectors of shape (T,); the step t = 0 carries the least noise."""

    betas: Tensor  # variance added by step t
    alphas: Tensor  # 1 - betas
    alpha_hats: Tensor  # product of alphas[0..t]: the share of the action's variance left


def schedule(name: ScheduleName, steps: int) -> Schedule:
    """Return the noise schedule of a diffusion model.

    Args:
        name: 'vp' (variance preserving, b_min 0.1, b_max 10; the paper's choice), 'cosine'
            (arXiv 2102.09672, offset 0.008) or 'linear' (1e-4 to 2e-2).
        steps: T, the number of diffusion steps.

    Returns:
        The schedule in float32.

    Raises:
        ValueError: The name is unknown or steps is below 1.
    """
    if steps < 1:
        raise ValueError(f'diffusion steps: expected 1 or more, found {steps}')
    if name == 'vp':
        beta_min, beta_max = 0.1, 10.0
        t = torch.arange(1, steps + 1, dtype=torch.float64)
        exponent = beta_min / steps + 0.5 * (beta_max - beta_min) * (2 * t - 1) / steps**2
        betas = 1 - torch.exp(-exponent)
    elif name == 'cosine':
        offset = 0.008
        t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        alpha_hats = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
        betas = (1 - alpha_hats[1:] / alpha_hats[:-1]).clamp(0, 0.999)
    elif name == 'linear':
        betas = torch.linspace(1e-4, 2e-2, steps, dtype=torch.float64)
    else:
        raise ValueError(f"schedule: expected 'vp', 'cosine' or 'linear', found {name!r}")
    # Rounding betas first and deriving the rest in float32 is what the reference learner does;
    # near beta = 1 the order shows in alphas.
    betas = betas.float()
    alphas = 1 - betas
    return Schedule(betas, alphas, torch.cumprod(alphas, 0))


def add_noise(actions: Tensor, noise: Tensor, times: Tensor, schedule: Schedule) -> Tensor:
    """Return the action as it is after diffusion step t: the forward process in one jump.

    Args:
        actions: (*, B, A) in network units.
        noise: (*, B, A), standard normal.
        times: (*, B) integer steps in [0, T).
        schedule: The noise schedule.

    Returns:
        (*, B, A) noisy actions.
    """
    alpha_hats = schedule.alpha_hats[times].unsqueeze(-1)  # (*, B, 1)
    return alpha_hats.sqrt() * actions + (1 - alpha_hats).sqrt() * noise


def sample(
    predict: Callable[[Tensor, int], Tensor], noise: Tensor, schedule: Schedule
) -> Tensor:
    """Draw actions by reversing the diffusion, clipping to [-1, 1] after every step.

    Args:
        predict: (noisy actions (M, A), step t) -> predicted noise (M, A).
        noise: (T, M, A), standard normal. noise[0] is where sampling starts; noise[i] is what
            the i-th denoising step adds. The last step (t = 0) adds none.
        schedule: The noise schedule, of T steps.

    Returns:
        (M, A) actions in network units.
    """
    betas, alphas, alpha_hats = schedule
    steps = len(betas)
    actions = noise[0]
    for i in range(1, steps + 1):
        t = steps - i
        share = (1 - alphas[t]) / torch.sqrt(1 - alpha_hats[t])
        actions = (actions - share * predict(actions, t)) / torch.sqrt(alphas[t])
        if t > 0:
            actions = actions + torch.sqrt(betas[t]) * noise[i]
        actions = torch.clamp(actions, -1, 1)
    return actions
