"""Adam over a network whose parameters are views of one vector."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn, Tensor


class FlatParameters:
    """The parameters of a network as views of one vector, so that one call averages them.

    Attributes:
        parameters: Name -> parameter.
        vector: (P,), all of them.
        named: Name -> view of the vector, in the parameter's shape.
    """

    def __init__(self, network: nn.Module) -> None:
        """Give the parameters of a network one memory; they keep their values."""
        self._network = network
        self.gather()

    def gather(self) -> None:
        """Do it again, after something gave the parameters memories of their own."""
        # Once, and not at every step: walking through the modules takes as long as a small layer.
        self.parameters = dict(self._network.named_parameters())
        self.vector = torch.cat([p.detach().flatten() for p in self.parameters.values()])
        self.named = self.views(self.vector)
        for name, parameter in self.parameters.items():
            parameter.data = self.named[name]

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """Return the parts of a vector (P,) that belong to each parameter, in its shape."""
        parts = vector.split([p.numel() for p in self.parameters.values()])
        return {name: part.view(p.shape)
                for part, (name, p) in zip(parts, self.parameters.items(), strict=True)}


class Adam:
    """Adam with decoupled weight decay (AdamW), PyTorch's fused kernel without its wrapping.

    torch.optim's step takes as long as the kernel does where networks are small.
    """

    BETAS = 0.9, 0.999
    EPSILON = 1e-8

    def __init__(self, flat: FlatParameters, decay: float = 0.0) -> None:
        """Begin with no moments.

        Args:
            flat: The parameters of a network.
            decay: Weight decay, times the learning rate.
        """
        self._flat, self._decay = flat, decay
        self.reset()

    def reset(self) -> None:
        """Forget the moments, and follow the parameters to where they lie now."""
        vector = self._flat.vector
        self._steps = torch.zeros((), device=vector.device)
        self._moments = [self._flat.views(torch.zeros_like(vector)) for _ in range(2)]

    def step(self, loss: Tensor, rate: float | Tensor) -> None:
        """Move the parameters against the gradient of a loss; a loss (*) is summed.

        Args:
            loss: Of the network's parameters.
            rate: The learning rate.

        Raises:
            RuntimeError: The parameters are no longer where they were; see `gather` and `reset`.
        """
        name, parameter = next(iter(self._flat.parameters.items()))
        if parameter.data_ptr() != self._flat.named[name].data_ptr():
            raise RuntimeError(f'{name}: expected a parameter that is a part of one vector, found '
                               'one that was moved or copied by itself; move the whole learner')
        gradients = torch.autograd.grad(loss.sum(), list(self._flat.parameters.values()))
        self._steps += 1
        parameters = list(self._flat.named.values())
        torch._fused_adamw_(
            parameters, list(gradients), *(list(m.values()) for m in self._moments), [],
            [self._steps] * len(parameters), lr=rate, beta1=self.BETAS[0], beta2=self.BETAS[1],
            weight_decay=self._decay, eps=self.EPSILON, amsgrad=False, maximize=False)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps, and the mean of the gradients and of their squares."""
        means, squares = self._moments
        return {'steps': self._steps, 'means': means, 'squares': squares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._steps.fill_(float(state['steps']))
        for ours, key in zip(self._moments, ('means', 'squares'), strict=True):
            for name, view in ours.items():
                view.copy_(state[key][name])


def stack(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the states of Adams of one age as the state of one with a leading axis."""
    first = states[0]
    return {'steps': first['steps']} | {
        key: {name: torch.stack([state[key][name] for state in states]) for name in first[key]}
        for key in ('means', 'squares')}


def unstack(state: dict[str, Any], index: int) -> dict[str, Any]:
    """Return the state of one of the Adams that `stack` made one of."""
    return {'steps': state['steps']} | {
        key: {name: moment[index] for name, moment in state[key].items()}
        for key in ('means', 'squares')}
