"""The layers' own backward passes: equal to differentiating what the layers compute."""

import pytest
import torch
from torch.nn import functional as F
from training.layers import (
    affine,
    HiddenLayer,
    layer_norm,
    mish,
    residual_block,
    ResidualBlockGradient,
)

LEADING = pytest.mark.parametrize('leading', [(), (3,), (2, 3)], ids=str)


def random(*shape):
    """Return standard normal numbers in double precision that gradients are wanted of."""
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_mish_equals_its_definition_and_does_not_overflow():
    x = torch.linspace(-60, 60, 24001, dtype=torch.float64)
    expected = x * torch.tanh(F.softplus(x))
    torch.testing.assert_close(mish(x.float()).double(), expected, atol=2e-6, rtol=2e-6)
    x = torch.tensor([-1e4, -100.0, 100.0, 1e4], requires_grad=True)
    mish(x).sum().backward()
    assert x.grad.tolist() == pytest.approx([0, 0, 1, 1], abs=1e-30)


def test_gradient_of_mish_is_that_of_its_definition():
    x = torch.linspace(-30, 30, 601, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mish, x)
    defined = x * torch.tanh(torch.nn.functional.softplus(x))
    expected, = torch.autograd.grad(defined.sum(), x)
    found, = torch.autograd.grad(mish(x).sum(), x)
    assert (found - expected).abs().max() < 1e-12
    large = torch.tensor([-200.0, 200.0], requires_grad=True)
    slope, = torch.autograd.grad(mish(large).sum(), large)
    assert slope.tolist() == [0.0, 1.0]


@LEADING
def test_affine_and_layer_norm_are_those_of_each_member(leading):
    x, weight, bias = random(*leading, 5, 4), random(*leading, 4, 3), random(*leading, 3)
    y = affine(x, weight, bias)
    torch.testing.assert_close(y, x @ weight + bias.unsqueeze(-2))
    scale, shift = random(*leading, 3), random(*leading, 3)
    normed = layer_norm(y, scale, shift)
    flat = [t.reshape(-1, *t.shape[len(leading):]) for t in (y, scale, shift, normed)]
    for one, s, b, expected in zip(*flat, strict=True):
        torch.testing.assert_close(F.layer_norm(one, (3,), s, b, 1e-6), expected)


@LEADING
@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('activation', ['mish', 'silu', 'relu'])
def test_block_has_the_gradients_of_its_formula(leading, masked, activation):
    torch.manual_seed(0)
    x = random(*leading, 6, 4)
    mask = 1.25 * (torch.rand(*leading, 6, 4) > 0.2).double() if masked else None
    parameters = (random(*leading, 4), random(*leading, 4), random(*leading, 4, 16),
                  random(*leading, 16), random(*leading, 16, 4), random(*leading, 4))
    expected = residual_block(x, mask, *parameters, activation)
    found = ResidualBlockGradient.apply(x, mask, *parameters, activation, torch.float64)
    torch.testing.assert_close(found, expected)
    outer = torch.randn_like(expected)
    of_formula = torch.autograd.grad(expected, (x, *parameters), outer)
    torch.testing.assert_close(
        torch.autograd.grad(found, (x, *parameters), outer), of_formula, rtol=1e-6, atol=1e-6)


@LEADING
@pytest.mark.parametrize('normed', [False, True])
def test_hidden_layer_has_the_gradients_of_its_formula(leading, normed):
    torch.manual_seed(0)
    x, weight, bias = random(*leading, 6, 4), random(*leading, 4, 5), random(*leading, 5)
    scales = (random(*leading, 5), random(*leading, 5)) if normed else ()
    expected = affine(x, weight, bias)
    expected = (layer_norm(expected, *scales) if normed else expected).relu()
    found = HiddenLayer.apply(x, weight, bias, *(scales or (None, None)))
    torch.testing.assert_close(found, expected)
    outer = torch.randn_like(expected)
    inputs = (x, weight, bias, *scales)
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, outer), torch.autograd.grad(expected, inputs, outer))


def test_bfloat16_block_differs_by_the_rounding_of_its_factors_alone():
    torch.manual_seed(0)
    x = torch.randn(64, 32, requires_grad=True)
    parameters = [p.float().detach().requires_grad_() for p in (
        random(32), random(32), random(32, 128) / 6, random(128), random(128, 32) / 11,
        random(32))]
    exact = ResidualBlockGradient.apply(x, None, *parameters, 'mish', torch.float32)
    rounded = ResidualBlockGradient.apply(x, None, *parameters, 'mish', torch.bfloat16)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.05 * exact.abs().max()
    outer = torch.randn_like(exact)
    for one, other in zip(*(torch.autograd.grad(y, (x, *parameters), outer)
                            for y in (exact, rounded)), strict=True):
        assert other.dtype == torch.float32
        assert 0 < (one - other).norm() < 0.02 * one.norm()
