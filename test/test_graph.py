"""Updates as a CUDA graph: equal to those made one by one, and fit to be recorded."""

from dataclasses import replace
import json

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from training.checkpoint import load_checkpoint
from training.config import TrainConfig
from training.datasets import Episode, write_minari
from training.idql import Batch, Draws, IDQL, IDQLConfig
from training.train import Sampler, train, updater

on_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason='needs a GPU that PyTorch can use, and there is none')
SPEC = json.dumps({'actions': [{'dimensions': 3 * [{'lower': -1.0, 'upper': 1.0}]}]})
ROWS, OBSERVATIONS, ACTIONS = 32, 5, 3
SIZES = {'actor_width': 16, 'actor_blocks': 2, 'time_features': (8, 16), 'critic_hidden': (16, 16),
         'value_hidden': (16,), 'actor_dropout': 0.1, 'actor_decay_steps': 60}
SETTINGS = [
    {},
    {'critic_layer_norm': True, 'value_layer_norm': True, 'value_input_layer_norm': True,
     'actor_weight_decay': 0.1, 'critic_loss': 'exponential', 'critic_parameter': 1.0},
    {'actor_activation': 'silu', 'critic_loss': 'quantile', 'critics': 3, 'actor_dropout': 0.0},
    {'actor_precision': 'bfloat16', 'actor_activation': 'relu', 'critics': 1},
]


def learner(settings, seeds=1):
    """Return a small learner, or several seeds side by side."""
    units = (torch.zeros(OBSERVATIONS), torch.ones(OBSERVATIONS),
             torch.zeros(ACTIONS), torch.ones(ACTIONS))
    alone = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        alone.append(IDQL(IDQLConfig(**SIZES | settings), *units))
    return alone[0] if seeds == 1 else IDQL.stack(alone)


def transitions(rows, device, *leading):
    """Return made-up transitions, always the same."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*leading, *shape, generator=generator).to(device)

    return Batch(normal(rows, OBSERVATIONS), normal(rows, ACTIONS).tanh(), normal(rows),
                 (normal(rows) > -1).float(), normal(rows, OBSERVATIONS))


class Watch(TorchDispatchMode):
    """Looks at every operation, and leaves out Adam's, which has no form without numbers.

    Attributes:
        operations: Names of those seen.
        devices: Of the tensors that they read and wrote.
        steps: Lists of parameters and gradients that Adam was given.
    """

    def __init__(self):
        super().__init__()
        self.operations, self.devices, self.steps = set(), set(), []

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        """Run an operation, and note what it is and where."""
        adam, result = '_fused_adamw_' in str(operation), None
        if not adam:
            result = operation(*arguments, **(keywords or {}))
        self.operations.add(str(operation))
        tensors = [leaf for leaf in pytree.tree_leaves((arguments, keywords, result))
                   if isinstance(leaf, torch.Tensor)]
        self.devices |= {tensor.device.type for tensor in tensors}
        if adam:
            self.steps.append(arguments[:2])
        return result


@pytest.mark.parametrize('settings', SETTINGS)
@pytest.mark.parametrize('leading', [(), (3,)])
def test_an_update_waits_for_no_number_and_stays_on_its_device(settings, leading):
    # Tensors of 'meta' have a device and no numbers: whoever asks for one gets an error.
    idql = learner(settings, *leading).to('meta')
    idql.rate_on_device()
    batch = transitions(ROWS, 'meta', *leading)
    draws = Draws(
        torch.zeros(*leading, ROWS, dtype=torch.int64, device='meta'),
        torch.zeros(*leading, ROWS, ACTIONS, device='meta'),
        torch.zeros(*leading, 2, ROWS, 16, device='meta')
        if idql.config.actor_dropout else None)
    with Watch() as watch:
        idql.begin_update()
        idql.learn(batch, *draws)
    assert watch.devices == {'meta'}
    # The kernel for GPUs takes parameters and gradients of one layout only.
    assert len(watch.steps) == 3
    for parameters, gradients in watch.steps:
        assert [p.stride() for p in parameters] == [g.stride() for g in gradients]
        assert all(g.is_contiguous() for g in gradients)


def test_draws_wait_for_no_number():
    sampler = Sampler(transitions(200, 'cpu'), ROWS, 0)
    idql = learner({})
    with Watch() as watch:
        sampler.draw(idql)
    assert any('random_' in operation for operation in watch.operations)
    waiting = ('_local_scalar_dense', 'nonzero', 'masked_select', 'unique', 'equal')
    assert not [o for o in watch.operations if o.split('.')[1] in waiting]


@pytest.mark.parametrize('seeds', [1, 3])
def test_what_an_update_reads_and_writes_stays_where_it_is(seeds):
    idql = learner({}, seeds)
    idql.rate_on_device()
    samplers = [Sampler(transitions(200, 'cpu'), ROWS, seed) for seed in range(seeds)]

    def places():
        """Return the addresses of parameters, buffers and moments."""
        states = [idql.state_dict(), *(o.state_dict() for o in idql.optimisers.values())]
        leaves = pytree.tree_leaves([states, idql.betas, idql._actor_rate])
        return [leaf.data_ptr() for leaf in leaves]

    before, values = places(), idql.actor.output.weight.detach().clone()
    update = updater([idql], samplers)
    for _ in range(3):
        update()
    assert places() == before
    assert not torch.equal(idql.actor.output.weight, values)


def test_a_rate_on_the_device_makes_the_same_updates():
    one, other = learner({}), learner({})
    other.rate_on_device()
    for idql in (one, other):
        update = updater([idql], [Sampler(transitions(200, 'cpu'), ROWS, 0)])
        for _ in range(60):  # to the end of the cosine
            update()
    assert one.actor_learning_rate() == 0
    assert_close(one, other)


def assert_close(one, other, tolerance=1e-5):
    """Assert that two learners have the same parameters and moments."""
    assert one.updates == other.updates
    found, expected = one.state_dict(), other.state_dict()
    for name in expected:
        assert (found[name].cpu() - expected[name].cpu()).abs().max() < tolerance, name
    for name, adam in one.optimisers.items():
        ours, theirs = adam.state_dict(), other.optimisers[name].state_dict()
        assert float(ours['steps']) == float(theirs['steps']) == one.updates


@on_gpu
@pytest.mark.parametrize('settings', SETTINGS)
@pytest.mark.parametrize('seeds', [1, 3])
def test_recorded_updates_equal_those_made_one_by_one(settings, seeds):
    columns = transitions(200, 'cuda')
    graphed, plain = (learner(settings, seeds).to('cuda') for _ in range(2))
    samplers, others = ([Sampler(columns, ROWS, seed) for seed in range(seeds)] for _ in range(2))
    update = updater([graphed], samplers)
    lead = (seeds,) if seeds > 1 else ()
    for number in range(50):
        info = {key: value.clone() for key, value in update().items()}
        batches, draws = zip(*(sampler.draw(plain) for sampler in others), strict=True)
        batch, drawn = (
            type(parts[0])(*(None if column[0] is None else torch.stack(column).reshape(
                *lead, *column[0].shape) for column in zip(*parts, strict=True)))
            for parts in (batches, draws))
        expected = plain.update(batch, *drawn)
        for key, value in expected.items():
            assert (info[key] - value).abs().max() < 1e-4 * (1 + value.abs().max()), (number, key)
    assert_close(graphed, plain)
    for one, other in zip(samplers, others, strict=True):
        assert torch.equal(one.generator.get_state(), other.generator.get_state())
    start = learner(settings, seeds)
    assert (graphed.actor.output.weight.cpu() - start.actor.output.weight).abs().max() > 1e-3


@pytest.fixture
def config(tmp_path):
    """Return a small run on a GPU."""
    rng = np.random.default_rng(0)
    write_minari(
        [Episode(rng.normal(0, 1, (41, OBSERVATIONS)).astype(np.float32),
                 rng.uniform(-1, 1, (40, ACTIONS)).astype(np.float32), rng.normal(0, 1, 40),
                 terminated=True, truncated=False) for _ in range(5)],
        'demo/graph-v0', tmp_path / 'data', {}, SPEC)
    return TrainConfig(
        dataset='demo/graph-v0', root=str(tmp_path / 'data'), output=str(tmp_path / 'run'),
        steps=30, batch_size=ROWS, log_every=7, checkpoint_every=20, keep_checkpoints=True,
        validation_fraction=0.2, device='cuda', idql=IDQLConfig(**SIZES))


@on_gpu
@pytest.mark.parametrize('seeds', [1, 2])
def test_resumed_run_on_a_gpu_equals_one_that_was_not_stopped(config, tmp_path, seeds):
    config = replace(config, seeds=seeds)
    whole = train(config)
    stopped = replace(config, output=str(tmp_path / 'stopped'))
    train(replace(stopped, steps=20))
    resumed = train(replace(stopped, resume=True))
    assert_close(resumed, whole)
    folders = [''] if seeds == 1 else [f'seed-{seed}' for seed in range(seeds)]
    for i, folder in enumerate(folders):
        saved = load_checkpoint(tmp_path / 'stopped' / folder / 'checkpoint.pt')
        assert_close(saved, whole.unstack()[i])


@on_gpu
def test_a_run_on_a_gpu_begins_with_the_networks_of_one_on_the_cpu(config, tmp_path):
    ours, theirs = (
        train(replace(config, steps=1, device=device, output=str(tmp_path / device)))
        for device in ('cuda', 'cpu'))
    # One update, of other draws, moves a parameter by the learning rate at most.
    found, expected = ours.state_dict(), theirs.state_dict()
    for name in expected:
        assert (found[name].cpu() - expected[name]).abs().max() < 1e-3, name
