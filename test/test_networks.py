"""The networks: equal to their plain formulas, and split without changing the result."""

import math

import pytest
import torch
from torch.nn import functional as F
from training.networks import Critic, NoisePredictor, Value


@pytest.mark.parametrize('activation, function', [
    ('mish', F.mish), ('silu', F.silu), ('relu', F.relu)])
def test_noise_predictor_equals_the_plain_network_on_the_concatenation(activation, function):
    torch.manual_seed(0)
    net = NoisePredictor(5, 2, 16, 2, activation, (8, 12))
    actions, observations = torch.randn(7, 2), torch.randn(7, 5)
    times = torch.tensor([0, 1, 2, 3, 4, 0, 3])

    angles = 2 * math.pi * times[:, None] * net.frequencies
    features = torch.cat([torch.cos(angles), torch.sin(angles)], 1)
    features = net.time_output(function(net.time_hidden(features)))
    x = net.input(torch.cat([actions, observations, features], 1))
    for block in net.blocks:
        norm = F.layer_norm(x, (16,), block.norm.weight, block.norm.bias, 1e-6)
        x = x + block.contract(function(block.expand(norm)))
    expected = net.output(function(x))

    share = net.observation_share(observations) + net.time_share(times)
    torch.testing.assert_close(net(actions, share), expected, atol=1e-5, rtol=1e-5)


def test_paper_sized_actor_has_about_1_6_million_parameters():
    net = NoisePredictor(17, 6)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(1.6e6, rel=0.05)


def test_dropout_is_an_argument_and_nothing_else_is_random():
    torch.manual_seed(0)
    net = NoisePredictor(3, 2, 16, 2, 'mish', (8, 12)).train()
    actions, share = torch.randn(7, 2), torch.randn(7, 16)
    assert torch.equal(net(actions, share), net(actions, share))
    masks = net.dropout_masks(7, 0.5, torch.Generator().manual_seed(0))
    assert torch.equal(net(actions, share, masks), net(actions, share, masks))
    assert torch.equal(net(actions, share, torch.ones_like(masks)), net(actions, share))
    for block in range(2):  # the mask of each block counts
        changed = masks.clone()
        changed[block] = 1
        assert not torch.equal(net(actions, share, changed), net(actions, share, masks))


def test_what_a_dropped_feature_was_reaches_a_block_by_its_skip_alone():
    torch.manual_seed(0)
    block = NoisePredictor(3, 2, 16, 1, 'mish', (8, 12)).blocks[0]
    x, mask = torch.randn(7, 16), torch.ones(7, 16)
    mask[:, 3] = 0
    other = x.clone()
    other[:, 3] += 5
    difference = block(other, mask) - block(x, mask)
    assert torch.count_nonzero(difference.abs() > 1e-5, 0).tolist() == [0] * 3 + [7] + [0] * 12
    assert not torch.allclose((block(other) - block(x))[:, :3], torch.zeros(7, 3))


def test_dropout_masks_drop_the_share_asked_for_and_keep_the_mean():
    net = NoisePredictor(3, 2, 50, 3, 'mish', (8, 12))
    masks = net.dropout_masks(200, 0.2, torch.Generator().manual_seed(0))
    assert masks.shape == (3, 200, 50)
    # The probability is a multiple of 2^-16.
    assert masks.unique().tolist() == pytest.approx([0.0, 1.25], abs=2e-5)
    assert masks.double().mean().item() == pytest.approx(1, abs=0.02)
    assert (masks == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert torch.equal(masks, net.dropout_masks(200, 0.2, torch.Generator().manual_seed(0)))
    assert net.dropout_masks(200, 0.0, torch.Generator()) is None


@pytest.mark.parametrize('layer_norm', [False, True])
def test_each_critic_of_the_ensemble_is_an_independent_network(layer_norm):
    torch.manual_seed(0)
    critics = Critic(3, 2, members=4, hidden=(16, 8), layer_norm=layer_norm)
    observations, actions = torch.randn(6, 3), torch.randn(6, 2)
    q = critics(observations, actions)
    assert q.shape == (4, 6)
    state = dict(critics.named_parameters())
    for k in range(4):
        x = torch.cat([observations, actions], 1)
        for layer in range(2):
            x = x @ state[f'hidden.{layer}.weight'][k] + state[f'hidden.{layer}.bias'][k]
            if layer_norm:
                scale, bias = (state[f'norms.{layer}.{p}'][k] for p in ('weight', 'bias'))
                x = F.layer_norm(x, x.shape[1:], scale, bias, 1e-6)
            x = F.relu(x)
        x = x @ state['output.weight'][k] + state['output.bias'][k]
        torch.testing.assert_close(q[k], x[:, 0], atol=1e-5, rtol=1e-5)
    assert not torch.equal(q[0], q[1])


@pytest.mark.parametrize('input_layer_norm', [False, True])
@pytest.mark.parametrize('layer_norm', [False, True])
def test_value_ignores_the_scale_of_its_input_only_with_layer_norm_on_it(
    input_layer_norm, layer_norm
):
    torch.manual_seed(0)
    value = Value(3, (16, 16), input_layer_norm, layer_norm)
    for parameter in value.parameters():  # biases start at 0, which hides them
        torch.nn.init.normal_(parameter)
    observations = torch.randn(6, 3)
    assert value(observations).shape == (6,)
    same = torch.allclose(value(10 * observations), value(observations), atol=1e-3)
    assert same == input_layer_norm
