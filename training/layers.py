"""The layers that training spends its time in, each with a backward pass of its own.

Differentiating formula by formula keeps every intermediate and calls a kernel for each step;
written out, the backward pass of a layer makes fewer passes over memory. Every function takes any
number of leading axes '*', the same for inputs and parameters: the critics of an ensemble, and
several seeds, are layers side by side.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

ActivationName = Literal['mish', 'silu', 'relu']
Gradients = tuple[Tensor | None, ...]

LAYER_NORM_EPSILON = 1e-6

# Numbers below which it is the calls that cost time, and not the numbers.
FEW = 2**12


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return x @ weight + bias.

    Args:
        x: (*, M, inputs); an axis of * may be 1.
        weight: (*, inputs, outputs).
        bias: (*, outputs).

    Returns:
        (*, M, outputs).
    """
    if weight.dim() == 2:
        return torch.addmm(bias, x, weight)
    leading = weight.shape[:-2]
    x = x.expand(*leading, -1, -1)
    if len(leading) == 1:
        return torch.baddbmm(bias.unsqueeze(1), x, weight)
    y = affine(x.flatten(0, -3), weight.flatten(0, -3), bias.flatten(0, -2))
    return y.reshape(*leading, *y.shape[1:])


def _affine_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, x_too: bool = True
) -> Gradients:
    """Return the gradients of x (None unless asked for), weight and bias of `affine`."""
    return (gradient @ weight.mT if x_too else None, x.mT @ gradient, gradient.sum(-2))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Normalise the last axis of x (*, M, F), then apply scale and bias (*, F)."""
    if weight.dim() == 1:
        return F.layer_norm(x, weight.shape, weight, bias, LAYER_NORM_EPSILON)
    x = F.layer_norm(x, weight.shape[-1:], *_neutral(weight), LAYER_NORM_EPSILON)
    return torch.addcmul(bias.unsqueeze(-2), x, weight.unsqueeze(-2))


def _neutral(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a scale and bias (F,) that change nothing: with none the kernel is half as fast."""
    return weight.new_ones(weight.shape[-1:]), weight.new_zeros(weight.shape[-1:])


def _layer_norm_kept(
    x: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return `layer_norm` and what its backward pass needs."""
    shared = (weight, bias) if weight.dim() == 1 else _neutral(weight)
    y, mean, deviation = torch.native_layer_norm(x, x.shape[-1:], *shared, LAYER_NORM_EPSILON)
    if weight.dim() == 1:
        return y, (x, mean, deviation, weight, bias)
    kept = x, mean, deviation, weight, y
    return torch.addcmul(bias.unsqueeze(-2), y, weight.unsqueeze(-2)), kept


def _layer_norm_backward(gradient: Tensor, kept: tuple[Tensor, ...]) -> Gradients:
    """Return the gradients of x, weight and bias of `layer_norm`."""
    backward = torch.ops.aten.native_layer_norm_backward
    x, mean, deviation, weight, last = kept
    size = x.shape[-1:]
    if weight.dim() == 1:
        return backward(gradient, x, size, mean, deviation, weight, last, [True, True, True])
    of_weight, of_bias = (gradient * last).sum(-2), gradient.sum(-2)
    gradient = gradient * weight.unsqueeze(-2)
    of_x = backward(gradient, x, size, mean, deviation, None, None, [True, False, False])[0]
    return of_x, of_weight, of_bias


def mish(x: Tensor) -> Tensor:
    """Return x * tanh(softplus(x)), by one sigmoid.

    tanh(log(1 + exp(x))) is q / (2 - q) with q = s (2 - s), s = sigmoid(x): nothing in it
    overflows or cancels.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return _Mish.apply(x)
    s = torch.sigmoid(x)
    q = s * (2 - s)
    return x * (q / (2 - q))


def _mish_and_slope(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return `mish` and its derivative t + x s (1 - t^2), t = q / (2 - q)."""
    if x.is_cuda or x.numel() < FEW:
        # One kernel each; for many numbers on a CPU they take three times as long as the formula.
        return F.mish(x), torch.ops.aten.mish_backward(torch.ones_like(x), x)
    x_ = x.float() if x.dtype == torch.bfloat16 else x  # faster, and exact in between
    s = torch.sigmoid(x_)
    q = torch.rsub(s, 2).mul_(s)
    t = q.div_(torch.rsub(q, 2))
    slope = torch.addcmul(t.new_ones(()), t, t, value=-1).mul_(s)
    slope = torch.addcmul(t, x_, slope, out=slope)
    y = t.mul_(x_)
    return y.to(x.dtype), slope.to(x.dtype)


class _Mish(torch.autograd.Function):
    """`mish` with its own backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y, slope = _mish_and_slope(x)
        ctx.save_for_backward(slope)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        slope, = ctx.saved_tensors
        return gradient * slope


class Activation(NamedTuple):
    """An activation, elementwise."""

    function: Callable[[Tensor], Tensor]
    # The function, and what its backward pass needs; from a gradient and that, the gradient of x.
    kept: Callable[[Tensor], tuple[Tensor, Tensor]]
    backward: Callable[[Tensor, Tensor], Tensor]


ACTIVATIONS: dict[ActivationName, Activation] = {
    'mish': Activation(mish, _mish_and_slope, torch.mul),
    'silu': Activation(F.silu, lambda x: (F.silu(x), x), torch.ops.aten.silu_backward),
    'relu': Activation(
        F.relu, lambda x: (F.relu(x), x),
        lambda gradient, x: torch.ops.aten.threshold_backward(gradient, x, 0)),
}


def residual_block(
    x: Tensor, mask: Tensor | None, scale: Tensor, shift: Tensor, expand: Tensor,
    expand_bias: Tensor, contract: Tensor, contract_bias: Tensor, name: ActivationName,
) -> Tensor:
    """Return x + contract(activation(expand(LayerNorm(x * mask)))).

    Args:
        x: (*, M, W).
        mask: Like x; None: nothing is dropped.
        scale: Of the LayerNorm, (*, W); so is shift.
        shift: Its bias.
        expand: (*, W, H), with a bias (*, H).
        expand_bias: That bias.
        contract: (*, H, W), with a bias (*, W).
        contract_bias: That bias.
        name: Of the activation.
    """
    h = layer_norm(x if mask is None else x * mask, scale, shift)
    h = ACTIVATIONS[name].function(affine(h, expand, expand_bias))
    return x + affine(h, contract, contract_bias)


class ResidualBlockGradient(torch.autograd.Function):
    """`residual_block` with its own backward pass.

    `apply` takes the same arguments and the type of the matrix products' factors; in bfloat16 sums
    are still formed in float32, and parameters and their gradients are float32.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mask: Tensor | None, scale: Tensor, shift: Tensor, expand: Tensor,
        expand_bias: Tensor, contract: Tensor, contract_bias: Tensor, name: ActivationName,
        dtype: torch.dtype,
    ) -> Tensor:
        entering = x if mask is None else x * mask
        normed, ctx.norm_kept = _layer_norm_kept(entering, scale, shift)
        normed, expand, contract = normed.to(dtype), expand.to(dtype), contract.to(dtype)
        h, ctx.kept = ACTIVATIONS[name].kept(affine(normed, expand, expand_bias.to(dtype)))
        y = affine(h, contract, contract_bias.to(dtype))
        ctx.mask, ctx.name, ctx.factors = mask, name, (normed, expand, h, contract)
        return y.add_(x) if dtype == x.dtype else x + y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        normed, expand, h, contract = ctx.factors
        dtype = gradient.dtype
        g, of_contract, of_contract_bias = _affine_backward(gradient.to(h.dtype), h, contract)
        g = ACTIVATIONS[ctx.name].backward(g, ctx.kept)
        g, of_expand, of_expand_bias = _affine_backward(g, normed, expand)
        g, of_scale, of_shift = _layer_norm_backward(g.to(dtype), ctx.norm_kept)
        g = gradient + g if ctx.mask is None else torch.addcmul(gradient, g, ctx.mask)
        return (g, None, of_scale, of_shift, of_expand.to(dtype), of_expand_bias.to(dtype),
                of_contract.to(dtype), of_contract_bias.to(dtype), None, None)


class HiddenLayer(torch.autograd.Function):
    """relu(LayerNorm(x @ weight + bias)): a hidden layer of critics and value.

    Arguments of `apply`: x (*, M, I), weight (*, I, H), bias (*, H), and scale and bias of the
    LayerNorm (*, H), or None twice for none.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None,
        shift: Tensor | None,
    ) -> Tensor:
        y = affine(x, weight, bias)
        ctx.norm_kept = None
        if scale is not None:
            y, ctx.norm_kept = _layer_norm_kept(y, scale, shift)
        y = y.relu_()
        ctx.save_for_backward(x, weight, y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        x, weight, y = ctx.saved_tensors
        g = torch.ops.aten.threshold_backward(gradient, y, 0)
        of_scale = of_shift = None
        if ctx.norm_kept is not None:
            g, of_scale, of_shift = _layer_norm_backward(g, ctx.norm_kept)
        of_x, of_weight, of_bias = _affine_backward(g, x, weight, ctx.needs_input_grad[0])
        return of_x, of_weight, of_bias, of_scale, of_shift
