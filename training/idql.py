"""Implicit Diffusion Q-Learning: the losses, the update and the sampling of scored candidates.

Source: Hansen-Estruch et al., "IDQL: Implicit Q-Learning as an Actor-Critic Method with
Diffusion Policies", arXiv 2304.10573. Random draws are arguments.
"""

from dataclasses import dataclass
import math
from typing import Literal, NamedTuple

from idql_ros.policy import LARGEST_EXPONENTIAL
import torch
from torch import nn, Tensor
from training import diffusion
from training.networks import Activation, Critic, NoisePredictor, Value

Info = dict[str, Tensor]

# Actions at the edge of the range give the diffusion model nothing to denoise towards.
LARGEST_ACTION = 1 - 1e-5


@dataclass(frozen=True)
class IDQLConfig:
    """Hyper-parameters of the learner; the defaults are those of the paper's appendix."""

    # Residual stream of the noise predictor: features.
    actor_width: int = 256
    # Residual blocks of the noise predictor.
    actor_blocks: int = 3
    # Activation of the noise predictor.
    actor_activation: Activation = 'mish'
    # Fourier features of the diffusion step (even), features of the two layers on top.
    time_features: tuple[int, int] = (64, 128)
    # Share of the features that the residual blocks drop, in training only.
    actor_dropout: float = 0.1
    # Adam's learning rate for the noise predictor, before its cosine decay to 0.
    actor_learning_rate: float = 3e-4
    # Updates until that learning rate is 0; None: the length of the run (train.py fills it in).
    actor_decay_steps: int | None = None
    # Decoupled weight decay of the noise predictor (AdamW), times the learning rate.
    actor_weight_decay: float = 0.0
    # Per update, the averaged actor moves this share of the way to the actor.
    actor_average_rate: float = 0.001
    # Noise schedule of the diffusion.
    schedule: diffusion.ScheduleName = 'vp'
    # T, the diffusion steps.
    diffusion_steps: int = 5
    # K, the critics; Q is their minimum.
    critics: int = 2
    # Hidden layers of each critic.
    critic_hidden: tuple[int, ...] = (256, 256)
    # LayerNorm in the critics' hidden layers.
    critic_layer_norm: bool = False
    # Hidden layers of the value network.
    value_hidden: tuple[int, ...] = (256, 256)
    # LayerNorm on the value network's input.
    value_input_layer_norm: bool = False
    # LayerNorm in the value network's hidden layers.
    value_layer_norm: bool = False
    # Adam's learning rate for critics and value.
    critic_learning_rate: float = 3e-4
    # Per update, the target critics move this share of the way to the critics.
    critic_target_rate: float = 0.005
    # f(u), the loss that fits V to Q: it decides how far the policy leaves the behaviour.
    critic_loss: Literal['expectile', 'quantile', 'exponential'] = 'expectile'
    # tau of expectile and quantile (0.5: the behaviour itself, towards 1: greedier), alpha of
    # exponential.
    critic_parameter: float = 0.7
    # Discount per step (gamma).
    discount: float = 0.99
    # Scale observations to mean 0, standard deviation 1 (the paper does not).
    normalise_observations: bool = False
    # N, the candidates drawn at inference unless the caller says otherwise.
    candidates: int = 64

    def __post_init__(self) -> None:
        """Check what no network or optimiser checks later.

        Raises:
            ValueError: A value is outside its range.
        """
        if self.critic_loss not in ('expectile', 'quantile', 'exponential'):
            raise ValueError(
                "critic_loss: expected 'expectile', 'quantile' or 'exponential', "
                f'found {self.critic_loss!r}'
            )
        if self.critic_loss != 'exponential' and not 0 < self.critic_parameter < 1:
            raise ValueError(
                f'critic_parameter: expected tau of {self.critic_loss} in (0, 1), '
                f'found {self.critic_parameter}'
            )
        if self.critic_parameter <= 0:
            raise ValueError(
                f'critic_parameter: expected alpha above 0, found {self.critic_parameter}'
            )
        if not 0 <= self.discount < 1:
            raise ValueError(f'discount: expected a value in [0, 1), found {self.discount}')
        if self.time_features[0] % 2:
            raise ValueError(
                'time_features: expected an even number of Fourier features '
                f'(cosine and sine), found {self.time_features[0]}'
            )


class Batch(NamedTuple):
    """B transitions."""

    observations: Tensor  # (B, O)
    actions: Tensor  # (B, A)
    rewards: Tensor  # (B,)
    masks: Tensor  # (B,), 0 only at a true terminal
    next_observations: Tensor  # (B, O)


class Draws(NamedTuple):
    """The random numbers of an update on B transitions."""

    times: Tensor  # (B,) integer diffusion steps in [0, T)
    noise: Tensor  # (B, A), standard normal
    masks: Tensor | None  # (blocks, B, width) of the actor's dropout; None: nothing is dropped


class IDQL(nn.Module):
    """Actor, averaged actor, critics, target critics, value, and how they are trained."""

    def __init__(
        self,
        config: IDQLConfig,
        observation_mean: Tensor,
        observation_std: Tensor,
        action_center: Tensor,
        action_scale: Tensor,
    ) -> None:
        """Build the networks, their targets and their optimisers.

        Args:
            config: The hyper-parameters.
            observation_mean: (O,) subtracted from observations; unused where the config does not
                normalise.
            observation_std: (O,) divides observations, likewise.
            action_center: (A,) the action in physical units that is 0 in network units.
            action_scale: (A,) physical units per network unit; network units are [-1, 1].
        """
        super().__init__()
        self.config = config
        if not config.normalise_observations:
            observation_mean = torch.zeros_like(observation_mean)
            observation_std = torch.ones_like(observation_std)
        self.register_buffer('observation_mean', observation_mean.float())
        self.register_buffer('observation_std', observation_std.float())
        self.register_buffer('action_center', action_center.float())
        self.register_buffer('action_scale', action_scale.float())
        schedule = diffusion.schedule(config.schedule, config.diffusion_steps)
        for name, vector in schedule._asdict().items():
            self.register_buffer(name, vector, persistent=False)

        self.observation_size, self.action_size = len(observation_mean), len(action_center)
        sizes = self.observation_size, self.action_size
        self.actor = self._noise_predictor(*sizes)
        self.averaged_actor = self._noise_predictor(*sizes)
        critic = (config.critics, config.critic_hidden, config.critic_layer_norm)
        self.critics = Critic(*sizes, *critic)
        self.target_critics = Critic(*sizes, *critic)
        self.value = Value(
            self.observation_size,
            config.value_hidden,
            config.value_input_layer_norm,
            config.value_layer_norm,
        )
        for target, online in self._averages():
            target.load_state_dict(online.state_dict())
            target.requires_grad_(False)

        self.updates = 0
        self.optimisers: dict[str, torch.optim.Optimizer] = {
            'actor': torch.optim.AdamW(
                self.actor.parameters(),
                config.actor_learning_rate,
                weight_decay=config.actor_weight_decay,
                fused=True,
            ),
            'critics': torch.optim.Adam(
                self.critics.parameters(), config.critic_learning_rate, fused=True
            ),
            'value': torch.optim.Adam(
                self.value.parameters(), config.critic_learning_rate, fused=True
            ),
        }

    def _noise_predictor(self, observations: int, actions: int) -> NoisePredictor:
        config = self.config
        return NoisePredictor(
            observations,
            actions,
            config.actor_width,
            config.actor_blocks,
            config.actor_activation,
            config.time_features,
        )

    def _averages(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return the pairs (average, what it follows)."""
        return [(self.averaged_actor, self.actor), (self.target_critics, self.critics)]

    @property
    def schedule(self) -> diffusion.Schedule:
        """Return the noise schedule, on this module's device."""
        return diffusion.Schedule(self.betas, self.alphas, self.alpha_hats)

    def normalise(self, observations: Tensor) -> Tensor:
        """Return observations (..., O) in network units."""
        return (observations - self.observation_mean) / self.observation_std

    def network_units(self, batch: Batch) -> Batch:
        """Return a batch in network units, from one in physical units."""
        actions = (batch.actions - self.action_center) / self.action_scale
        return batch._replace(
            observations=self.normalise(batch.observations),
            actions=actions.clamp(-LARGEST_ACTION, LARGEST_ACTION),
            next_observations=self.normalise(batch.next_observations),
        )

    def draw(self, rows: int, generator: torch.Generator) -> Draws:
        """Draw what an update on so many transitions needs."""
        return Draws(
            torch.randint(self.config.diffusion_steps, (rows,), generator=generator),
            torch.randn((rows, self.action_size), generator=generator),
            self.actor.dropout_masks(rows, self.config.actor_dropout, generator),
        )

    def actor_loss(
        self, batch: Batch, times: Tensor, noise: Tensor, masks: Tensor | None = None
    ) -> tuple[Tensor, Info]:
        """Return the behaviour model's loss: squared error of the predicted noise (eq. 9).

        Args:
            batch: In network units.
            times: (B,) integer diffusion steps in [0, T).
            noise: (B, A), standard normal.
            masks: Of the dropout, (blocks, B, width); None: nothing is dropped.
        """
        noisy_actions = diffusion.add_noise(batch.actions, noise, times, self.schedule)
        # T steps are fewer than B rows: embed each step once, then look it up.
        steps = torch.arange(self.config.diffusion_steps, device=times.device)
        time_shares = self.actor.time_share(steps)
        share = self.actor.observation_share(batch.observations) + time_shares[times]
        error = self.actor(noisy_actions, share, masks) - noise
        loss = error.square().sum(1).mean()
        return loss, {'actor_loss': loss.detach()}

    def value_loss(self, batch: Batch) -> tuple[Tensor, Info]:
        """Return E[f(Q(s, a) - V(s))], a in the data, Q the target critics' minimum (eq. 5).

        Args:
            batch: In network units.
        """
        with torch.no_grad():
            q = self.target_critics(batch.observations, batch.actions).amin(0)
        v = self.value(batch.observations)
        loss = self.f(q - v).mean()
        return loss, {'value_loss': loss.detach(), 'v': v.detach().mean()}

    def f(self, u: Tensor) -> Tensor:
        """Return the convex loss f of u = Q - V, elementwise (section 4.1).

        The exponential loss is written through its gradient, alpha left out: the factor is a
        constant for back-propagation, so only the gradient and not the number is that of
        exp(alpha u) - alpha u.
        """
        parameter = self.config.critic_parameter
        if self.config.critic_loss == 'exponential':
            factor = torch.exp(parameter * u.detach()).clamp(max=LARGEST_EXPONENTIAL) - 1
            return factor * u
        weight = torch.where(u > 0, parameter, 1 - parameter)
        return weight * (u.square() if self.config.critic_loss == 'expectile' else u.abs())

    def critic_loss(self, batch: Batch) -> tuple[Tensor, Info]:
        """Return the mean squared error of every critic against r + discount * mask * V(s').

        Args:
            batch: In network units.
        """
        with torch.no_grad():
            next_v = self.value(batch.next_observations)
            target = batch.rewards + self.config.discount * batch.masks * next_v
        q = self.critics(batch.observations, batch.actions)  # (K, B)
        loss = (q - target).square().mean()
        return loss, {'critic_loss': loss.detach(), 'q': q.detach().mean()}

    def update(
        self, batch: Batch, times: Tensor, noise: Tensor, masks: Tensor | None = None
    ) -> Info:
        """Take one step of actor, value and critics, then of both averages.

        Args:
            batch: In physical units.
            times: (B,) integer diffusion steps in [0, T).
            noise: (B, A), standard normal.
            masks: Of the actor's dropout, (blocks, B, width); None: nothing is dropped.

        Returns:
            The losses and mean V and Q before the step, as scalars still on the device.
        """
        self.optimisers['actor'].param_groups[0]['lr'] = self.actor_learning_rate()
        batch = self.network_units(batch)
        info = self._step('actor', self.actor_loss(batch, times, noise, masks))
        info |= self._step('value', self.value_loss(batch))
        info |= self._step('critics', self.critic_loss(batch))
        rates = self.config.actor_average_rate, self.config.critic_target_rate
        with torch.no_grad():
            for (average, online), rate in zip(self._averages(), rates, strict=True):
                for a, o in zip(average.parameters(), online.parameters(), strict=True):
                    a.lerp_(o, rate)
        self.updates += 1
        return info

    def actor_learning_rate(self) -> float:
        """Return the noise predictor's learning rate in the coming update."""
        rate, steps = self.config.actor_learning_rate, self.config.actor_decay_steps
        if steps is None:
            return rate
        return rate * 0.5 * (1 + math.cos(math.pi * min(self.updates / steps, 1)))

    def _step(self, name: str, loss_and_info: tuple[Tensor, Info]) -> Info:
        loss, info = loss_and_info
        self.optimisers[name].zero_grad()
        loss.backward()
        self.optimisers[name].step()
        return info

    def forward(self, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw candidates from the averaged actor and score them.

        Args:
            observations: (B, O) in physical units.
            noise: (B, T, N, A), standard normal: noise[:, 0] is where sampling starts, noise[:, i]
                is added after the i-th denoising step; the last step adds none.

        Returns:
            candidates (B, N, A) in physical units, their q (B, N): the minimum of the target
            critics, and v (B,).
        """
        return self.score_candidates(observations, noise, self.sampling_time_shares())

    def sampling_time_shares(self) -> Tensor:
        """Return the averaged actor's time shares of all steps, (T, width)."""
        steps = torch.arange(self.config.diffusion_steps, device=self.betas.device)
        return self.averaged_actor.time_share(steps)

    def score_candidates(
        self, observations: Tensor, noise: Tensor, time_shares: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Do what `forward` does, with the constant (T, width) `time_shares` given."""
        batch, _, number, _ = noise.shape
        steps, actions = self.config.diffusion_steps, self.action_size
        observations = self.normalise(observations)

        def per_candidate(x: Tensor) -> Tensor:  # (B, X) -> (B * N, X)
            return x[:, None].expand(-1, number, -1).reshape(batch * number, x.shape[1])

        # Once per observation, not once per candidate and step.
        share = per_candidate(self.averaged_actor.observation_share(observations))
        x = diffusion.sample(
            lambda noisy, t: self.averaged_actor(noisy, share + time_shares[t]),
            noise.transpose(0, 1).reshape(steps, batch * number, actions),
            self.schedule,
        )
        q = self.target_critics(per_candidate(observations), x).amin(0)
        candidates = self.action_center + self.action_scale * x
        return (
            candidates.reshape(batch, number, actions),
            q.reshape(batch, number),
            self.value(observations),
        )
