"""Adam on a network whose parameters are one vector: equal to PyTorch's, and kept as names."""

import pytest
import torch
from torch import nn
from training import optimiser
from training.optimiser import Adam, FlatParameters


def network(seed=0):
    """Return a small network."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def test_parameters_keep_their_values_and_share_one_vector():
    net, same = network(), network()
    flat = FlatParameters(net)
    assert flat.vector.shape == (3 * 5 + 5 + 5 * 2 + 2,)
    for ours, theirs in zip(net.parameters(), same.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    flat.vector.zero_()
    assert not any(parameter.any() for parameter in net.parameters())
    net.load_state_dict(same.state_dict())
    assert torch.equal(flat.vector[:15].view(5, 3), same[0].weight)


@pytest.mark.parametrize('decay', [0.0, 0.1])
def test_steps_are_those_of_pytorchs_adamw(decay):
    net, same = network(), network()
    adam = Adam(FlatParameters(net), decay)
    reference = torch.optim.AdamW(same.parameters(), weight_decay=decay, foreach=False)
    for step in range(20):
        x = torch.randn(7, 3, generator=torch.Generator().manual_seed(step))
        rate = 0.1 / (1 + step)
        adam.step(net(x).square().mean(), rate)
        reference.param_groups[0]['lr'] = rate
        reference.zero_grad()
        same(x).square().mean().backward()
        reference.step()
        for ours, theirs in zip(net.parameters(), same.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_state_goes_on_where_it_was_and_stacks():
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    nets = [network(0), network(1)]
    adams = [Adam(FlatParameters(net)) for net in nets]
    for net, adam in zip(nets, adams, strict=True):
        adam.step(net(x).square().mean(), 0.01)
    states = [adam.state_dict() for adam in adams]
    joined = optimiser.stack(states)
    again = network(2)
    again.load_state_dict(nets[1].state_dict())
    other = Adam(FlatParameters(again))
    other.load_state_dict(optimiser.unstack(joined, 1))
    for net, adam in ((nets[1], adams[1]), (again, other)):
        adam.step(net(x).square().mean(), 0.01)
    for ours, theirs in zip(nets[1].parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)
