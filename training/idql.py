"""Implicit Diffusion Q-Learning: the losses, the update and the sampling of scored candidates.

Source: Hansen-Estruch et al., "IDQL: Implicit Q-Learning as an Actor-Critic Method with
Diffusion Policies", arXiv 2304.10573. Random draws are arguments.
"""

from collections.abc import Sequence
from dataclasses import dataclass
import math
from typing import Any, Literal, NamedTuple

from idql_ros.policy import LARGEST_EXPONENTIAL, MAX_CANDIDATES
import torch
from torch import nn, Tensor
from training import diffusion, optimiser
from training.layers import ActivationName
from training.networks import Critic, NoisePredictor, Value

Info = dict[str, Tensor]

# The tensors that say how physical units are converted to network units.
UNITS = ('observation_mean', 'observation_std', 'action_center', 'action_scale')

# Candidates that are drawn and scored at a time.
SCORED_AT_ONCE = 4096

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
    actor_activation: ActivationName = 'mish'
    # Fourier features of the diffusion step (even), features of the two layers on top.
    time_features: tuple[int, int] = (64, 128)
    # Share of the features that the residual blocks drop, in training only.
    actor_dropout: float = 0.1
    # Factors of the residual blocks' matrix products in training. bfloat16 is faster on GPUs and
    # on processors that multiply it (AVX512_BF16, AMX); sums and parameters stay in float32, and
    # sampling too.
    actor_precision: Literal['float32', 'bfloat16'] = 'float32'
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
        for name in ('actor_width', 'diffusion_steps', 'critics', 'candidates',
                     'actor_decay_steps'):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f'{name}: expected 1 or more, found {value}')
        if self.candidates > MAX_CANDIDATES:
            raise ValueError(
                f'candidates: expected at most {MAX_CANDIDATES}, found {self.candidates}')
        if self.actor_blocks < 0:
            raise ValueError(f'actor_blocks: expected 0 or more, found {self.actor_blocks}')
        for name in ('time_features', 'critic_hidden', 'value_hidden'):
            if any(width < 1 for width in getattr(self, name)):
                raise ValueError(
                    f'{name}: expected widths of 1 or more, found {getattr(self, name)}')
        if not 0 <= self.actor_dropout <= 0.999:
            raise ValueError(f'actor_dropout: expected a share from 0 to 0.999, found '
                             f'{self.actor_dropout}')
        for name in ('actor_learning_rate', 'critic_learning_rate', 'actor_weight_decay'):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f'{name}: expected 0 or more, found {getattr(self, name)}')
        for name in ('actor_average_rate', 'critic_target_rate'):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(
                    f'{name}: expected a share above 0, 1 at most, found {getattr(self, name)}')
        if self.actor_precision not in ('float32', 'bfloat16'):
            raise ValueError("actor_precision: expected 'float32' or 'bfloat16', "
                             f'found {self.actor_precision!r}')
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
        if not 0 < self.critic_parameter < math.inf:
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
    """B transitions; seeds side by side have them with a leading axis S."""

    observations: Tensor  # (B, O)
    actions: Tensor  # (B, A)
    rewards: Tensor  # (B,)
    masks: Tensor  # (B,), 0 only at a true terminal
    next_observations: Tensor  # (B, O)


class Draws(NamedTuple):
    """The random numbers of an update on B transitions; a leading axis S likewise."""

    times: Tensor  # (B,) integer diffusion steps in [0, T)
    noise: Tensor  # (B, A), standard normal
    masks: Tensor | None  # (blocks, B, width) of the actor's dropout; None: nothing is dropped


class IDQL(nn.Module):
    """Actor, averaged actor, critics, target critics, value, and how they are trained.

    Several of them, of one configuration, train side by side as one: see `stack`. Then parameters,
    units, batches and draws have a leading axis S, and a loss is S numbers. '*' is that axis, or
    nothing.
    """

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
            observation_mean: (*, O) subtracted from observations; unused where the config does
                not normalise.
            observation_std: (*, O) divides observations, likewise.
            action_center: (*, A) the action in physical units that is 0 in network units.
            action_scale: (*, A) physical units per network unit; network units are [-1, 1].
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

        *seeds, self.observation_size = observation_mean.shape
        self.action_size = action_center.shape[-1]
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
        for target, online in ((self.averaged_actor, self.actor),
                               (self.target_critics, self.critics)):
            target.load_state_dict(online.state_dict())
            target.requires_grad_(False)
        for block in self.actor.blocks:
            block.dtype = getattr(torch, config.actor_precision)
        for parameter in self.parameters():
            parameter.data = parameter.data.expand(*seeds, *parameter.shape).clone()

        self.updates = 0
        self._actor_rate: float | Tensor = config.actor_learning_rate
        self._flat = {
            name: optimiser.FlatParameters(network) for name, network in self.named_children()}
        decays = {'actor': config.actor_weight_decay, 'critics': 0.0, 'value': 0.0}
        self.optimisers = {
            name: optimiser.Adam(self._flat[name], decay) for name, decay in decays.items()}

    @classmethod
    def stack(cls, learners: Sequence['IDQL']) -> 'IDQL':
        """Return S learners of one configuration and age as one, optimisers included."""
        first = learners[0]
        states = [learner.state_dict() for learner in learners]
        return first._with(
            {name: torch.stack([state[name] for state in states]) for name in states[0]},
            {name: optimiser.stack([each.optimisers[name].state_dict() for each in learners])
             for name in first.optimisers})

    def unstack(self) -> list['IDQL']:
        """Return copies, on the CPU, of the learners in this one: those of `stack`, or one."""
        stacked = self.observation_mean.dim() > 1
        state, learners = {k: v.cpu() for k, v in self.state_dict().items()}, []
        for i in range(len(self.observation_mean) if stacked else 1):
            own = {name: tensor[i] for name, tensor in state.items()} if stacked else state
            moments = {name: adam.state_dict() for name, adam in self.optimisers.items()}
            if stacked:
                moments = {name: optimiser.unstack(each, i) for name, each in moments.items()}
            learners.append(self._with(own, moments))
        return learners

    def _with(self, state: dict[str, Tensor], moments: dict[str, dict[str, Any]]) -> 'IDQL':
        """Return a learner of this configuration and age, on the CPU, with numbers of its own."""
        learner = IDQL(self.config, *(state[name].cpu() for name in UNITS))
        learner.load_state_dict(state)
        for name, adam in learner.optimisers.items():
            adam.load_state_dict(moments[name])
        learner.updates = self.updates
        return learner

    def __deepcopy__(self, memo: dict[int, Any]) -> 'IDQL':
        """Return a copy that shares nothing: its parameters are one vector of its own."""
        moments = {name: adam.state_dict() for name, adam in self.optimisers.items()}
        copied = self._with(self.state_dict(), moments)
        return copied.to(self.betas.device).train(self.training)

    def _apply(self, *arguments: Any, **keywords: Any) -> 'IDQL':
        moments = {name: adam.state_dict() for name, adam in self.optimisers.items()}
        super()._apply(*arguments, **keywords)
        # What moves a module gives each of its parameters a memory of its own.
        for flat in self._flat.values():
            flat.gather()
        for name, adam in self.optimisers.items():
            adam.reset()
            adam.load_state_dict(moments[name])
        return self

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

    @property
    def schedule(self) -> diffusion.Schedule:
        """Return the noise schedule, on this module's device."""
        return diffusion.Schedule(self.betas, self.alphas, self.alpha_hats)

    def normalise(self, observations: Tensor) -> Tensor:
        """Return observations (*, M, O) in network units."""
        return (observations - self.observation_mean.unsqueeze(-2)
                ) / self.observation_std.unsqueeze(-2)

    def network_units(self, batch: Batch) -> Batch:
        """Return a batch in network units, from one in physical units."""
        actions = (batch.actions - self.action_center.unsqueeze(-2)
                   ) / self.action_scale.unsqueeze(-2)
        return batch._replace(
            observations=self.normalise(batch.observations),
            actions=actions.clamp(-LARGEST_ACTION, LARGEST_ACTION),
            next_observations=self.normalise(batch.next_observations),
        )

    def draw(self, rows: int, generator: torch.Generator) -> Draws:
        """Draw what an update on so many transitions needs."""
        device = generator.device
        steps, shape = self.config.diffusion_steps, (rows, self.action_size)
        return Draws(
            torch.randint(steps, (rows,), generator=generator, device=device),
            torch.randn(shape, generator=generator, device=device),
            self.actor.dropout_masks(rows, self.config.actor_dropout, generator),
        )

    def actor_loss(
        self, batch: Batch, times: Tensor, noise: Tensor, masks: Tensor | None = None
    ) -> tuple[Tensor, Info]:
        """Return the behaviour model's loss: squared error of the predicted noise (eq. 9).

        Args:
            batch: In network units.
            times: (*, B) integer diffusion steps in [0, T).
            noise: (*, B, A), standard normal.
            masks: Of the dropout, (*, blocks, B, width); None: nothing is dropped.
        """
        noisy_actions = diffusion.add_noise(batch.actions, noise, times, self.schedule)
        # T steps are fewer than B rows: embed each step once, then look it up. A product with
        # zeros and a one is exact, and its gradient costs a tenth of an index's.
        steps = torch.arange(self.config.diffusion_steps, device=times.device)
        looked_up = (times.unsqueeze(-1) == steps).float() @ self.actor.time_share(steps)
        share = self.actor.observation_share(batch.observations) + looked_up
        error = self.actor(noisy_actions, share, masks) - noise
        loss = error.square().sum(-1).mean(-1)
        return loss, {'actor_loss': loss.detach()}

    def value_loss(self, batch: Batch) -> tuple[Tensor, Info]:
        """Return E[f(Q(s, a) - V(s))], a in the data, Q the target critics' minimum (eq. 5).

        Args:
            batch: In network units.
        """
        with torch.no_grad():
            q = self.target_critics(batch.observations, batch.actions).amin(-2)
        v = self.value(batch.observations)
        loss = self.f(q - v).mean(-1)
        return loss, {'value_loss': loss.detach(), 'v': v.detach().mean(-1)}

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
        q = self.critics(batch.observations, batch.actions)  # (*, K, B)
        loss = (q - target.unsqueeze(-2)).square().mean((-2, -1))
        return loss, {'critic_loss': loss.detach(), 'q': q.detach().mean((-2, -1))}

    def update(
        self, batch: Batch, times: Tensor, noise: Tensor, masks: Tensor | None = None
    ) -> Info:
        """Take one step of actor, value and critics, then of both averages.

        Args:
            batch: In physical units.
            times: (*, B) integer diffusion steps in [0, T).
            noise: (*, B, A), standard normal.
            masks: Of the actor's dropout, (*, blocks, B, width); None: nothing is dropped.

        Returns:
            The losses and mean V and Q before the step, (*) and still on the device.
        """
        self.begin_update()
        return self.learn(batch, times, noise, masks)

    def begin_update(self) -> None:
        """Count an update, and set its learning rate: the part of it that is Python's."""
        rate = self.actor_learning_rate()
        if isinstance(self._actor_rate, Tensor):
            self._actor_rate.fill_(rate)
        else:
            self._actor_rate = rate
        self.updates += 1

    def rate_on_device(self) -> None:
        """Keep the actor's learning rate where a recorded update can read it."""
        self._actor_rate = torch.zeros((), device=self.betas.device)

    def learn(
        self, batch: Batch, times: Tensor, noise: Tensor, masks: Tensor | None = None
    ) -> Info:
        """Do the rest of `update`: the part of it that is the device's."""
        batch = self.network_units(batch)
        actor_loss, info = self.actor_loss(batch, times, noise, masks)
        self.optimisers['actor'].step(actor_loss, self._actor_rate)
        self._follow('averaged_actor', 'actor', self.config.actor_average_rate)
        return info | self.learn_critic(batch)

    def learn_critic(self, batch: Batch) -> Info:
        """Take one step of value and critics, then of the target critics.

        Args:
            batch: In network units.
        """
        rate = self.config.critic_learning_rate
        value_loss, info = self.value_loss(batch)
        self.optimisers['value'].step(value_loss, rate)
        critic_loss, of_critics = self.critic_loss(batch)
        self.optimisers['critics'].step(critic_loss, rate)
        self._follow('target_critics', 'critics', self.config.critic_target_rate)
        return info | of_critics

    def _follow(self, average: str, online: str, rate: float) -> None:
        """Move an average a share of the way to what it follows."""
        self._flat[average].vector.lerp_(self._flat[online].vector, rate)

    def actor_learning_rate(self) -> float:
        """Return the noise predictor's learning rate in the coming update."""
        rate, steps = self.config.actor_learning_rate, self.config.actor_decay_steps
        if steps is None:
            return rate
        return rate * 0.5 * (1 + math.cos(math.pi * min(self.updates / steps, 1)))

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
        time_shares, number = self.sampling_time_shares(), noise.shape[2]
        # The layers hold kilobytes of each candidate: not of all at once.
        answers = []
        rows = max(1, SCORED_AT_ONCE // number)
        for part, of_part in zip(observations.split(rows), noise.split(rows), strict=True):
            candidates, q, v = zip(*(
                self.score_candidates(part, piece, time_shares)
                for piece in of_part.split(SCORED_AT_ONCE, 2)), strict=True)
            answers.append((torch.cat(candidates, 1), torch.cat(q, 1), v[0]))
        candidates, q, v = (torch.cat(parts) for parts in zip(*answers, strict=True))
        return candidates, q, v

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
