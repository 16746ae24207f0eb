"""The three networks of IDQL: noise predictor (LayerNorm ResNet), critic ensemble, value.

Source: arXiv 2304.10573, section 4.2 and appendix; initialisation as in the authors' learner.
Everything here is in network units; conversion from physical units is in `training.idql`.

Parameters, inputs and outputs may all have a further leading axis '*', networks side by side: that
is how several seeds train at once (`training.idql.IDQL.stack`).
"""

from collections.abc import Sequence
import math

import torch
from torch import nn, Tensor
from training.layers import (
    ActivationName,
    ACTIVATIONS,
    affine,
    HiddenLayer,
    layer_norm,
    residual_block,
    ResidualBlockGradient,
)


class Dense(nn.Module):
    """x @ weight + bias: (*, M, inputs) -> (*, M, outputs)."""

    def __init__(self, inputs: int, outputs: int, members: tuple[int, ...] = ()) -> None:
        """Build a layer with Xavier-uniform weights (*members, inputs, outputs) and zero bias."""
        super().__init__()
        bound = math.sqrt(6 / (inputs + outputs))
        self.weight = nn.Parameter(torch.empty(*members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(*members, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return affine(x, self.weight, self.bias)


def _block_dense(inputs: int, outputs: int) -> Dense:
    """Return a layer with truncated-normal weights of variance 1 / inputs, zero bias."""
    layer = Dense(inputs, outputs)
    # 0.8796 is the standard deviation of a unit normal cut at 2.
    std = math.sqrt(1 / inputs) / 0.87962566103423978
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    return layer


class Norm(nn.Module):
    """LayerNorm with scale and bias: (*, M, features) -> (*, M, features)."""

    def __init__(self, features: int, members: tuple[int, ...] = ()) -> None:
        """Build the layer; scale and bias are (*members, features)."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(*members, features))
        self.bias = nn.Parameter(torch.zeros(*members, features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis, then apply scale and bias."""
        return layer_norm(x, self.weight, self.bias)


class ResidualBlock(nn.Module):
    """x + Dense(activation(Dense(LayerNorm(dropout(x))))), four times as wide inside."""

    def __init__(self, width: int, activation: ActivationName) -> None:
        """Build the block.

        Args:
            width: Features in and out.
            activation: Name of the activation.
        """
        super().__init__()
        self.norm = Norm(width)
        self.expand = _block_dense(width, 4 * width)
        self.contract = _block_dense(4 * width, width)
        self.activation = activation
        # Of the factors of the matrix products, in training.
        self.dtype = torch.float32

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map (*, M, width) to (*, M, width), what enters the layers times a mask like x."""
        parameters = (self.norm.weight, self.norm.bias, self.expand.weight, self.expand.bias,
                      self.contract.weight, self.contract.bias)
        if torch.is_grad_enabled():
            return ResidualBlockGradient.apply(
                x, mask, *parameters, self.activation, self.dtype)
        return residual_block(x, mask, *parameters, self.activation)


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
        activation: ActivationName = 'mish',
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
        self.activation = ACTIVATIONS[activation].function
        self.frequencies = nn.Parameter(torch.randn(features // 2) * 0.2)
        self.time_hidden = Dense(features, hidden)
        self.time_output = Dense(hidden, hidden)
        self.input = Dense(action_size + observation_size + hidden, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, activation) for _ in range(blocks))
        self.width = width
        self.output = Dense(width, action_size)
        # The first layer's rows: [0, A) action, [A, A + O) observation, the rest time.
        self._action_end = action_size
        self._observation_end = action_size + observation_size

    def observation_share(self, observations: Tensor) -> Tensor:
        """Return what observations (*, B, O) add to the first layer: (*, B, width)."""
        return observations @ self.input.weight[..., self._action_end:self._observation_end, :]

    def time_share(self, times: Tensor) -> Tensor:
        """Return what the steps (S,) and the bias add to the first layer: (*, S, width)."""
        angles = 2 * math.pi * times[:, None].float() * self.frequencies.unsqueeze(-2)
        features = torch.cat([angles.cos(), angles.sin()], -1)  # (*, S, features)
        features = self.time_output(self.activation(self.time_hidden(features)))
        weight = self.input.weight[..., self._observation_end:, :]
        return affine(features, weight, self.input.bias)

    def dropout_masks(
        self, rows: int, probability: float, generator: torch.Generator
    ) -> Tensor | None:
        """Draw what `forward` takes: (blocks, rows, width), None where nothing is dropped.

        A feature is dropped with the probability, rounded to a multiple of 2^-16; the others
        grow, so that the mean stays.
        """
        dropped = round(probability * 2**16)
        if dropped == 0:
            return None
        # One 64-bit draw decides four features: a draw for each costs more than a block.
        features = len(self.blocks) * rows * self.width
        draws = torch.empty(-(-features // 4), dtype=torch.int64, device=generator.device)
        draws.random_(-2**63, None, generator=generator)
        kept = draws.view(torch.int16)[:features] >= dropped - 2**15
        return kept.view(len(self.blocks), rows, self.width) * (2**16 / (2**16 - dropped))

    def forward(
        self, noisy_actions: Tensor, share: Tensor, masks: Tensor | None = None
    ) -> Tensor:
        """Predict the noise.

        Args:
            noisy_actions: (*, M, A) in network units.
            share: (*, M, width), the sum of `observation_share` and `time_share` of each row.
            masks: (*, blocks, M, width) multiplies what enters the blocks' layers; None: nothing
                is dropped.

        Returns:
            (*, M, A).
        """
        x = noisy_actions @ self.input.weight[..., :self._action_end, :] + share
        for i, block in enumerate(self.blocks):
            x = block(x, None if masks is None else masks[..., i, :, :])
        return self.output(self.activation(x))


class Perceptron(nn.Module):
    """Dense layers with ReLU and one output: (*, M, inputs) -> (*, M)."""

    def __init__(
        self, inputs: int, hidden: Sequence[int], layer_norm: bool, members: tuple[int, ...] = ()
    ) -> None:
        """Build the layers.

        Args:
            inputs: Features in.
            hidden: Width of each hidden layer.
            layer_norm: LayerNorm after each hidden dense layer, before its ReLU.
            members: Networks side by side.
        """
        super().__init__()
        sizes = [inputs, *hidden]
        self.hidden = nn.ModuleList(
            Dense(*pair, members) for pair in zip(sizes, hidden, strict=False))
        self.norms = nn.ModuleList(Norm(width, members) for width in hidden if layer_norm)
        self.output = Dense(sizes[-1], 1, members)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers."""
        norms = self.norms or [None] * len(self.hidden)
        for dense, norm in zip(self.hidden, norms, strict=True):
            if torch.is_grad_enabled():
                scales = (None, None) if norm is None else (norm.weight, norm.bias)
                x = HiddenLayer.apply(x, dense.weight, dense.bias, *scales)
            else:
                x = torch.relu_(dense(x) if norm is None else norm(dense(x)))
        return self.output(x).squeeze(-1)


class Critic(Perceptron):
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
            layer_norm: LayerNorm after each hidden dense layer, before its ReLU.
        """
        super().__init__(observation_size + action_size, hidden, layer_norm, (members,))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Return Q of observations (*, M, O), actions (*, M, A) by each critic: (*, K, M)."""
        return super().forward(torch.cat([observations, actions], -1).unsqueeze(-3))


class Value(Perceptron):
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
            layer_norm: LayerNorm after each hidden dense layer, before its ReLU.
        """
        super().__init__(observation_size, hidden, layer_norm)
        self.input_norm = Norm(observation_size) if input_layer_norm else None

    def forward(self, observations: Tensor) -> Tensor:
        """Return V of observations (*, M, O): (*, M)."""
        if self.input_norm is not None:
            observations = self.input_norm(observations)
        return super().forward(observations)
