"""The bench: it counts what an update needs, and its yardstick makes the same update."""

from dataclasses import replace
import json
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from training import bench
from training.idql import Batch, IDQL, IDQLConfig

SMALL = IDQLConfig(
    actor_width=16, actor_blocks=2, actor_dropout=0.0, time_features=(8, 12),
    critic_hidden=(16, 12), value_hidden=(10, 16), critics=3, critic_layer_norm=True,
    value_layer_norm=True, critic_parameter=0.8)


def copied(idql, plain):
    """Give the plain learner the parameters of ours."""
    def dense(theirs, ours, k=None):
        weight, bias = (p.detach() if k is None else p.detach()[k] for p in (
            ours.weight, ours.bias))
        theirs.weight.data, theirs.bias.data = weight.mT.clone(), bias.clone()

    def norm(theirs, ours, k=None):
        for name in ('weight', 'bias'):
            p = getattr(ours, name).detach()
            getattr(theirs, name).data = (p if k is None else p[k]).clone()

    def network(theirs, ours, k=None):
        layers = [layer for layer in theirs if not isinstance(layer, torch.nn.ReLU)]
        for i, (hidden, normed) in enumerate(zip(ours.hidden, ours.norms, strict=True)):
            dense(layers[2 * i], hidden, k)
            norm(layers[2 * i + 1], normed, k)
        dense(layers[-1], ours.output, k)

    for theirs, ours in ((plain.actor, idql.actor), (plain.averaged_actor, idql.averaged_actor)):
        theirs.frequencies.data = ours.frequencies.detach().clone()
        dense(theirs.time[0], ours.time_hidden)
        dense(theirs.time[2], ours.time_output)
        dense(theirs.input, ours.input)
        dense(theirs.output, ours.output)
        for one, other in zip(theirs.blocks, ours.blocks, strict=True):
            norm(one.norm, other.norm)
            dense(one.expand, other.expand)
            dense(one.contract, other.contract)
    network(plain.value, idql.value)
    for theirs, ours in ((plain.critics, idql.critics), (plain.target_critics,
                                                         idql.target_critics)):
        for k, critic in enumerate(theirs):
            network(critic, ours, k)


def random_batch(rows, observations, actions, generator):
    """Return a batch in network units."""
    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return Batch(normal(rows, observations), normal(rows, actions).clamp(-1, 1), normal(rows),
                 (normal(rows) < 1).float(), normal(rows, observations))


def test_plain_learner_makes_the_update_that_ours_makes():
    idql, = bench.learners(1, SMALL, 4, 2)
    plain = bench.PlainLearner(4, 2, SMALL, 'cpu')
    copied(idql, plain)
    generator = torch.Generator().manual_seed(0)
    before = idql.actor.output.weight.detach().clone()
    for _ in range(20):
        batch = random_batch(32, 4, 2, generator)
        draws = idql.draw(32, generator)
        idql.update(batch, *draws)
        plain.update(batch, draws.times, draws.noise, idql.alpha_hats)
    expected = bench.PlainLearner(4, 2, SMALL, 'cpu')
    copied(idql, expected)
    assert (idql.actor.output.weight - before).abs().max() > 1e-3
    for name in ('actor', 'averaged_actor', 'critics', 'target_critics', 'value'):
        for found, wanted in zip(getattr(plain, name).parameters(),
                                 getattr(expected, name).parameters(), strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('config, sizes', [
    (IDQLConfig(actor_dropout=0.0), (17, 6, 512)),
    (replace(SMALL, actor_width=64, critic_hidden=(256, 256), value_hidden=(256, 256)),
     (9, 3, 256)),
])
def test_counted_operations_are_those_of_the_matrix_products(config, sizes):
    observations, actions, rows = sizes
    idql = IDQL(config, torch.zeros(observations), torch.ones(observations),
                torch.zeros(actions), torch.ones(actions))
    generator = torch.Generator().manual_seed(0)
    batch = random_batch(rows, observations, actions, generator)
    draws = idql.draw(rows, generator)
    with FlopCounterMode(display=False) as counter:
        idql.update(batch, *draws)
    # Ours also embeds the T steps and looks them up.
    counted = bench.update_flops(config, *sizes)
    assert counted <= counter.get_total_flops() <= 1.04 * counted


def test_command_prints_what_it_measured_as_json():
    printed = subprocess.run(
        [sys.executable, '-m', 'training.bench', '--json', '--rounds', '1', '--threads', '1',
         '--seeds', '2', '--device', 'cpu'],
        capture_output=True, text=True, check=True).stdout
    result = json.loads(printed)
    assert result['matrix_gflops'] > 0
    assert result['threads'] == 1
    assert {'paper', 'demo', 'paper_bfloat16'} == set(result['configurations'])
    for name in ('paper', 'demo'):
        row = result['configurations'][name]
        assert row['share_of_limit'] == pytest.approx(
            row['updates_per_s'] * row['gflop_per_update'] / result['matrix_gflops'], rel=2e-3)
        assert row['times_eager'] == pytest.approx(
            row['updates_per_s'] / row['eager_updates_per_s'], rel=2e-3)
        assert row['seeds'] == 2
        assert 0 < row['products_share_of_time'] < 1
        assert row['kernel_calls'] > 100
        assert 0.5 < row['seeds_times_one'] < 8


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_absent_gpu_is_told_in_one_line():
    done = subprocess.run([sys.executable, '-m', 'training.bench', '--device', 'cuda'],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith('error: --device cuda: expected a GPU')


def test_a_missed_goal_says_what_takes_the_time():
    row = {'share_of_limit': 0.7, 'times_eager': 1.7, 'products_share_of_time': 0.75,
           'kernel_calls': 400.0}
    lines = bench.goals({'kind': 'cpu', 'configurations': {
        'paper': row, 'demo': row, 'paper_bfloat16': {'unavailable': 'no'}}})
    assert len(lines) == 2
    assert 'paper, share of limit at least 0.8: 0.7, missed; 75%' in lines[0]
    assert lines[1].endswith('demo, times eager at least 1.6: 1.7, met')
