"""The three networks of IDQL: noise predictor (LayerNorm ResNet), critic ensemble, value.

Source: arXiv 2304.10573, section 4.2 and appendix; initialisation as in the authors' learner.
Everything here is in network units; conversion from physical units is in `training.idql`.
"""

from collections.abc import Sequence
import math
from typing import Any, Literal

import torch
from torch import nn, Tensor
from torch.nn import functional as F

Activation = Literal['mish', 'silu', 'relu']

LAYER_NORM_EPSILON = 1e-6


def _exponentials(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return e = exp(x) and u = e (e + 2); tanh(softplus(x)) is u / (u + 2).

    Above 20 that is 1 in float32, so the exponent is cut there before it can overflow.
    """
    e = torch.exp(torch.clamp(x, max=20.0))
    return e, e * (e + 2)


class _Mish(torch.autograd.Function):
    """Mish with a backward pass in place: a third of the time of differentiating the formula."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        e, u = _exponentials(x)
        ctx.save_for_backward(x, e, u)
        return (u / (u + 2)).mul_(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, e, u = ctx.saved_tensors
        # d/dx = t + x (1 - t^2) sigmoid(x), where t = u / (u + 2) and the product of the last two
        # is 4 e (e + 1) / (u + 2)^2.
        s = u + 2
        slope = torch.addcmul(e, e, e).mul_(4).div_(s).div_(s).mul_(x)
        return slope.addcdiv_(u, s).mul_(gradient)


def mish(x: Tensor) -> Tensor:
    """Return x * tanh(softplus(x)), written with one exponential.

    ONNX Runtime has no kernel for Mish at opset 17; in this form it costs half of what tanh and
    softplus cost there.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return _Mish.apply(x)
    _, u = _exponentials(x)
    return x * u / (u + 2)


ACTIVATIONS = {'mish': mish, 'silu': F.silu, 'relu': F.relu}


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer with Xavier-uniform weights and zero bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _block_linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer with truncated-normal weights of variance 1 / inputs, zero bias."""
    layer = nn.Linear(inputs, outputs)
    # 0.8796 is the standard deviation of a unit normal cut at 2.
    std = math.sqrt(1 / inputs) / 0.87962566103423978
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(layer.bias)
    return layer


class ResidualBlock(nn.Module):
    """x + Linear(activation(Linear(LayerNorm(dropout(x))))), four times as wide inside."""

    def __init__(self, width: int, activation: Activation) -> None:
        """Build the block.

        Args:
            width: Features in and out.
            activation: Name of the activation.
        """
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.expand = _block_linear(width, 4 * width)
        self.contract = _block_linear(4 * width, width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map (M, width) to (M, width), what enters the layers times a mask of that shape."""
        entering = x if mask is None else x * mask
        return x + self.contract(self.activation(self.expand(self.norm(entering))))


class NoisePredictor(nn.Module):
    """The LN-ResNet that predicts the noise in an action, given observation and diffusion step.

    Its first layer reads [noisy action, observation, time feature]. That layer's weight is used
    in three parts, because the parts repeat differently: the observation's share is the same for
    all candidates and steps, the step's share for all observations; only the action's share is
    new at every step.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        width: int = 256,
        blocks: int = 3,
        activation: Activation = 'mish',
        time_features: tuple[int, int] = (64, 128),
    ) -> None:
        """Build the network.

        Args:
            observation_size: O.
            action_size: A.
            width: Features of the residual stream.
            blocks: Number of residual blocks.
            activation: Name of the activation used throughout.
            time_features: Fourier features of the step (even), features of the two layers on top.
        """
        super().__init__()
        features, hidden = time_features
        self.activation = ACTIVATIONS[activation]
        self.frequencies = nn.Parameter(torch.randn(features // 2) * 0.2)
        self.time_hidden = _linear(features, hidden)
        self.time_output = _linear(hidden, hidden)
        self.input = _linear(action_size + observation_size + hidden, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, activation) for _ in range(blocks))
        self.width = width
        self.output = _linear(width, action_size)
        # The first layer's columns: [0, A) action, [A, A + O) observation, the rest time.
        self._action_end = action_size
        self._observation_end = action_size + observation_size

    def observation_share(self, observations: Tensor) -> Tensor:
        """Return what observations (B, O) add to the first layer: (B, width)."""
        weight = self.input.weight[:, self._action_end:self._observation_end]
        return F.linear(observations, weight)

    def time_share(self, times: Tensor) -> Tensor:
        """Return what the steps (S,) and the bias add to the first layer: (S, width)."""
        angles = 2 * math.pi * times[:, None].float() * self.frequencies  # (S, features / 2)
        features = torch.cat([angles.cos(), angles.sin()], 1)
        features = self.time_output(self.activation(self.time_hidden(features)))
        weight = self.input.weight[:, self._observation_end:]
        return F.linear(features, weight, self.input.bias)

    def dropout_masks(
        self, rows: int, probability: float, generator: torch.Generator
    ) -> Tensor | None:
        """Draw what `forward` takes: (blocks, rows, width), None where nothing is dropped.

        A feature is dropped with the probability; the others grow, so that the mean stays.
        """
        if probability == 0:
            return None
        masks = torch.empty((len(self.blocks), rows, self.width), device=generator.device)
        return masks.bernoulli_(1 - probability, generator=generator).div_(1 - probability)

    def forward(
        self, noisy_actions: Tensor, share: Tensor, masks: Tensor | None = None
    ) -> Tensor:
        """Predict the noise.

        Args:
            noisy_actions: (M, A) in network units.
            share: (M, width), the sum of `observation_share` and `time_share` of each row.
            masks: (blocks, M, width) multiplies what enters the blocks' layers; None: nothing is
                dropped.

        Returns:
            (M, A).
        """
        x = F.linear(noisy_actions, self.input.weight[:, :self._action_end]) + share
        for i, block in enumerate(self.blocks):
            x = block(x, None if masks is None else masks[i])
        return self.output(self.activation(x))


class EnsembleLinear(nn.Module):
    """K linear layers side by side: (K or 1, M, inputs) -> (K, M, outputs)."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        """Build K layers with Xavier-uniform weights (K, inputs, outputs), biases (K, outputs)."""
        super().__init__()
        self.members = members
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(members, outputs))
        for member in self.weight.detach():
            nn.init.xavier_uniform_(member)

    def forward(self, x: Tensor) -> Tensor:
        """Apply layer k to x[k]."""
        x = x.expand(self.members, -1, -1)
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight)


class EnsembleLayerNorm(nn.Module):
    """K LayerNorms side by side: (K, M, features) -> (K, M, features)."""

    def __init__(self, members: int, features: int) -> None:
        """Build K LayerNorms with their own scale and bias, (K, features)."""
        super().__init__()
        self.features = features
        self.weight = nn.Parameter(torch.ones(members, features))
        self.bias = nn.Parameter(torch.zeros(members, features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of x[k], then apply scale k and bias k."""
        x = F.layer_norm(x, (self.features,), eps=LAYER_NORM_EPSILON)
        return x * self.weight.unsqueeze(1) + self.bias.unsqueeze(1)


class Critic(nn.Module):
    """K critics Q(s, a), each [observation, action] -> ReLU layers -> 1."""

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        members: int = 2,
        hidden: Sequence[int] = (256, 256),
        layer_norm: bool = False,
    ) -> None:
        """Build the ensemble.

        Args:
            observation_size: O.
            action_size: A.
            members: K.
            hidden: Width of each hidden layer.
            layer_norm: LayerNorm after each hidden linear layer, before its ReLU.
        """
        super().__init__()
        layers: list[nn.Module] = []
        inputs = observation_size + action_size
        for width in hidden:
            layers.append(EnsembleLinear(members, inputs, width))
            if layer_norm:
                layers.append(EnsembleLayerNorm(members, width))
            layers.append(nn.ReLU())
            inputs = width
        self.layers = nn.Sequential(*layers, EnsembleLinear(members, inputs, 1))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Return Q of observations (M, O) and actions (M, A) by each critic: (K, M)."""
        return self.layers(torch.cat([observations, actions], -1)[None]).squeeze(-1)


class Value(nn.Module):
    """V(s): observation -> ReLU layers -> 1."""

    def __init__(
        self,
        observation_size: int,
        hidden: Sequence[int] = (256, 256),
        input_layer_norm: bool = False,
        layer_norm: bool = False,
    ) -> None:
        """Build the network.

        Args:
            observation_size: O.
            hidden: Width of each hidden layer.
            input_layer_norm: LayerNorm on the observation.
            layer_norm: LayerNorm after each hidden linear layer, before its ReLU.
        """
        super().__init__()
        layers: list[nn.Module] = []
        if input_layer_norm:
            layers.append(nn.LayerNorm(observation_size, eps=LAYER_NORM_EPSILON))
        inputs = observation_size
        for width in hidden:
            layers.append(_linear(inputs, width))
            if layer_norm:
                layers.append(nn.LayerNorm(width, eps=LAYER_NORM_EPSILON))
            layers.append(nn.ReLU())
            inputs = width
        self.layers = nn.Sequential(*layers, _linear(inputs, 1))

    def forward(self, observations: Tensor) -> Tensor:
        """Return V of observations (M, O): (M,)."""
        return self.layers(observations).squeeze(-1)
