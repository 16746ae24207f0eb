"""How fast updates are: `python -m training.bench`; --bags and --inference measure others.

Measures in one process, in turns, the machine's float32 matrix rate (a large product with the
same library and threads), the same update as plain PyTorch code, and the update of training.train
with its batches and draws. The share of the limit is what of the matrix rate the products that an
update needs make up; how noisy the machine is does not change a ratio much.
"""

from collections.abc import Callable
import copy
from dataclasses import replace
import json
import math
from pathlib import Path
import platform
import statistics
import sys
import time
from typing import Annotated, Any, Literal

import torch
from torch import nn, Tensor
from torch.nn import functional as F
from tqdm import tqdm
from training import bag_bench, inference_bench, machine
from training.config import read_config
from training.idql import Batch, IDQL, IDQLConfig, LARGEST_ACTION
from training.train import arrange, Sampler, updater
import tyro

CONFIGS = Path(__file__).parents[1] / 'config' / 'training'
# Rows of the made-up dataset.
ROWS = 200_000
# The large product: this many rows and columns.
LARGE = 2048
# Seconds for which each of those measured runs in a round, at least.
TURN = 0.7
# Updates whose time is split into kernels.
SPLIT = 20
PRODUCTS = ('aten::mm', 'aten::addmm', 'aten::bmm', 'aten::baddbmm')
# What we aim at: configuration -> of which number, at least how much; 'seeds_times_one' at most.
GOALS = {
    'cpu': {'paper': {'share_of_limit': 0.8}, 'demo': {'times_eager': 1.6},
            'paper_bfloat16': {'share_of_limit': 1.25}},
    'cuda': {'paper': {'updates_per_s': 3000, 'times_eager': 3, 'seeds_times_one': 2.5}},
}


class PlainBlock(nn.Module):
    """A residual block in plain PyTorch."""

    def __init__(self, width: int, dropout: float) -> None:
        """Build the layers."""
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width) to (B, width)."""
        return x + self.contract(F.mish(self.expand(self.norm(self.dropout(x)))))


class PlainActor(nn.Module):
    """The noise predictor in plain PyTorch."""

    def __init__(self, observations: int, actions: int, config: IDQLConfig) -> None:
        """Build the layers."""
        super().__init__()
        features, hidden = config.time_features
        self.frequencies = nn.Parameter(torch.randn(features // 2) * 0.2)
        self.time = nn.Sequential(
            nn.Linear(features, hidden), nn.Mish(), nn.Linear(hidden, hidden))
        self.input = nn.Linear(actions + observations + hidden, config.actor_width)
        self.blocks = nn.Sequential(*(
            PlainBlock(config.actor_width, config.actor_dropout)
            for _ in range(config.actor_blocks)))
        self.output = nn.Linear(config.actor_width, actions)

    def forward(self, noisy_actions: Tensor, observations: Tensor, times: Tensor) -> Tensor:
        """Predict the noise (B, A) in actions (B, A), given steps (B,)."""
        angles = 2 * math.pi * times[:, None].float() * self.frequencies
        time = self.time(torch.cat([angles.cos(), angles.sin()], 1))
        x = self.blocks(self.input(torch.cat([noisy_actions, observations, time], 1)))
        return self.output(F.mish(x))


def plain_network(inputs: int, hidden: tuple[int, ...], layer_norm: bool) -> nn.Sequential:
    """Return a critic or value network in plain PyTorch."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers.append(nn.Linear(inputs, width))
        layers += [nn.LayerNorm(width, eps=1e-6)] if layer_norm else []
        layers.append(nn.ReLU())
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, 1))


class PlainLearner:
    """The update that `IDQL.update` makes, for the expectile loss, as one would first write it.

    It is what the learner's speed is measured against; a test holds that it makes the same update.
    """

    def __init__(self, observations: int, actions: int, config: IDQLConfig, device: str) -> None:
        """Build networks and optimisers."""
        self.config = config
        self.actor = PlainActor(observations, actions, config).to(device)
        self.critics = nn.ModuleList(
            plain_network(observations + actions, config.critic_hidden, config.critic_layer_norm)
            for _ in range(config.critics)).to(device)
        self.value = plain_network(
            observations, config.value_hidden, config.value_layer_norm).to(device)
        self.averaged_actor = copy.deepcopy(self.actor)
        self.target_critics = copy.deepcopy(self.critics)
        self.optimisers = {
            'actor': torch.optim.Adam(self.actor.parameters(), config.actor_learning_rate),
            'critics': torch.optim.Adam(self.critics.parameters(), config.critic_learning_rate),
            'value': torch.optim.Adam(self.value.parameters(), config.critic_learning_rate)}

    def update(self, batch: Batch, times: Tensor, noise: Tensor, alpha_hats: Tensor) -> None:
        """Take one step of all networks.

        Args:
            batch: In network units.
            times: (B,) diffusion steps.
            noise: (B, A).
            alpha_hats: (T,) of the noise schedule.
        """
        config = self.config
        actions = batch.actions.clamp(-LARGEST_ACTION, LARGEST_ACTION)
        alpha_hat = alpha_hats[times][:, None]
        noisy = alpha_hat.sqrt() * actions + (1 - alpha_hat).sqrt() * noise
        error = self.actor(noisy, batch.observations, times) - noise
        self._step('actor', error.square().sum(1).mean())

        pairs = torch.cat([batch.observations, actions], 1)
        with torch.no_grad():
            q = torch.stack([critic(pairs)[:, 0] for critic in self.target_critics]).amin(0)
        u = q - self.value(batch.observations)[:, 0]
        weight = torch.where(u > 0, config.critic_parameter, 1 - config.critic_parameter)
        self._step('value', (weight * u.square()).mean())

        with torch.no_grad():
            next_v = self.value(batch.next_observations)[:, 0]
            target = batch.rewards + config.discount * batch.masks * next_v
        q = torch.stack([critic(pairs)[:, 0] for critic in self.critics])
        self._step('critics', (q - target).square().mean())

        for average, online, rate in (
                (self.averaged_actor, self.actor, config.actor_average_rate),
                (self.target_critics, self.critics, config.critic_target_rate)):
            with torch.no_grad():
                for a, o in zip(average.parameters(), online.parameters(), strict=True):
                    a.copy_((1 - rate) * a + rate * o)

    def _step(self, name: str, loss: Tensor) -> None:
        self.optimisers[name].zero_grad()
        loss.backward()
        self.optimisers[name].step()


def update_flops(config: IDQLConfig, observations: int, actions: int, batch: int) -> int:
    """Return the floating point operations of the matrix products that an update needs.

    A layer of n x m needs 2 n m a row: forwards, for the gradient of its weight, and for that of
    its input unless that is data. The diffusion step is embedded T times, not once a row: left
    out.
    """
    width = config.actor_width
    actor = 2 * (actions + observations) * width + 3 * config.actor_blocks * 8 * width**2
    actor += 3 * width * actions

    def layers(inputs: int, hidden: tuple[int, ...]) -> tuple[int, int]:
        sizes = [inputs, *hidden, 1]
        forwards = sum(a * b for a, b in zip(sizes, sizes[1:], strict=False))
        return forwards, 3 * forwards - sizes[0] * sizes[1]

    # The target critics and V(s') go forwards only.
    critics = config.critics * sum(layers(observations + actions, config.critic_hidden))
    value = sum(layers(observations, config.value_hidden))
    return 2 * batch * (actor + critics + value)


def made_up_data(observations: int, actions: int, device: str) -> Batch:
    """Return transitions of random numbers in network units."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    return Batch(normal(ROWS, observations), normal(ROWS, actions).clamp(-1, 1), normal(ROWS),
                 (normal(ROWS) < 2).float(), normal(ROWS, observations))


def learners(number: int, config: IDQLConfig, observations: int, actions: int) -> list[IDQL]:
    """Return learners in network units, one for each seed."""
    found = []
    for seed in range(number):
        torch.manual_seed(seed)
        found.append(IDQL(config, torch.zeros(observations), torch.ones(observations),
                          torch.zeros(actions), torch.ones(actions)))
    return found


def ours(number: int, config: IDQLConfig, data: Batch, batch: int) -> Callable[[], Any]:
    """Return an update of the learner as training.train makes it, of so many seeds at once."""
    alone = learners(number, config, data.observations.shape[1], data.actions.shape[1])
    samplers = [Sampler(data, batch, seed) for seed in range(number)]
    return updater(arrange(alone, data.rewards.device.type), samplers)


def plain(config: IDQLConfig, data: Batch, batch: int) -> Callable[[], Any]:
    """Return an update in plain PyTorch, with its batch and draws."""
    device = data.rewards.device
    observations, actions = data.observations.shape[1], data.actions.shape[1]
    torch.manual_seed(0)
    learner = PlainLearner(observations, actions, config, str(device))
    alpha_hats = learners(1, config, observations, actions)[0].alpha_hats.to(device)

    def update() -> None:
        rows = torch.randint(len(data.rewards), (batch,), device=device)
        times = torch.randint(config.diffusion_steps, (batch,), device=device)
        noise = torch.randn((batch, actions), device=device)
        learner.update(Batch(*(column[rows] for column in data)), times, noise, alpha_hats)

    return update


def rate(call: Callable[[], Any], device: str) -> float:
    """Return calls per second, in one turn."""
    synchronise = torch.cuda.synchronize if device == 'cuda' else lambda: None
    synchronise()
    calls, started = 0, time.perf_counter()
    while time.perf_counter() - started < TURN:
        for _ in range(10 if device == 'cuda' else 1):  # launches run ahead of the clock
            call()
            calls += 1
        synchronise()
    return calls / (time.perf_counter() - started)


def split(update: Callable[[], Any]) -> tuple[float, float]:
    """Return the share of an update's time in matrix products, and its kernel calls, on a CPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(SPLIT):
            update()
    kernels = [event for event in profile.key_averages() if event.key.startswith('aten::')]
    everything = sum(event.self_cpu_time_total for event in profile.key_averages())
    products = sum(event.self_cpu_time_total for event in kernels if event.key in PRODUCTS)
    return products / everything, sum(event.count for event in kernels) / SPLIT


def measure(
    configurations: dict[str, tuple[IDQLConfig, int, int, int]], device: str, rounds: int,
    seeds: int,
) -> dict[str, Any]:
    """Measure in turns.

    Args:
        configurations: Name -> the learner's configuration, observations, actions, batch size.
        device: 'cpu' or 'cuda'.
        rounds: How often each has its turn; what is returned are medians over them.
        seeds: So many at once are compared with one; 1: nothing is.

    Returns:
        What --json prints.
    """
    left, right, out = (torch.randn(LARGE, LARGE, device=device) for _ in range(3))
    calls: dict[str, Callable[[], Any]] = {'matrix': lambda: torch.mm(left, right, out=out)}
    for name, (config, observations, actions, batch) in configurations.items():
        data = made_up_data(observations, actions, device)
        calls[f'{name} plain'] = plain(replace(config, actor_precision='float32'), data, batch)
        calls[f'{name} ours'] = ours(1, config, data, batch)
        if seeds > 1:
            calls[f'{name} seeds'] = ours(seeds, config, data, batch)
    for call in tqdm(calls.values(), desc='warm up', leave=False):
        rate(call, device)
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for _ in tqdm(range(rounds), desc='measure', unit='round', leave=False):
        for name, call in calls.items():
            rates[name].append(rate(call, device))

    def median(values: Any) -> float:
        return float(f'{statistics.median(values):.4g}')

    limits = [2 * LARGE**3 * value for value in rates['matrix']]
    result: dict[str, Any] = {
        'matrix_gflops': median(limit / 1e9 for limit in limits),
        'kind': device,
        'device': torch.cuda.get_device_name() if device == 'cuda' else platform.machine(),
        'threads': torch.get_num_threads(), 'torch': str(torch.__version__), 'rounds': rounds,
        'configurations': {}}
    for name, (config, *sizes) in configurations.items():
        flops = update_flops(config, *sizes)
        mine, theirs = rates[f'{name} ours'], rates[f'{name} plain']
        result['configurations'][name] = {
            'updates_per_s': median(mine),
            'share_of_limit': median(
                flops * r / limit for r, limit in zip(mine, limits, strict=True)),
            'times_eager': median(a / b for a, b in zip(mine, theirs, strict=True)),
            'eager_updates_per_s': median(theirs),
            'eager_share_of_limit': median(
                flops * r / limit for r, limit in zip(theirs, limits, strict=True)),
            'gflop_per_update': flops / 1e9}
        if device == 'cpu':
            products, kernels = split(calls[f'{name} ours'])
            result['configurations'][name] |= {
                'products_share_of_time': float(f'{products:.3g}'), 'kernel_calls': kernels}
        if seeds > 1:
            result['configurations'][name] |= {'seeds': seeds, 'seeds_times_one': median(
                a / b for a, b in zip(mine, rates[f'{name} seeds'], strict=True))}
    return result


def table(result: dict[str, Any]) -> str:
    """Return what was measured as a table."""
    lines = [
        f'{result["device"]}, {result["threads"]} threads, torch {result["torch"]}: float32 '
        f'matrix products at {result["matrix_gflops"]:.0f} GFLOP/s; medians of '
        f'{result["rounds"]} rounds',
        f'{"":16s} {"updates/s":>10s} {"of limit":>9s} {"plain":>10s} {"of limit":>9s} '
        f'{"ours/plain":>11s}']
    for name, row in result['configurations'].items():
        if 'unavailable' in row:
            lines.append(f'{name:16s} unavailable: {row["unavailable"]}')
            continue
        lines.append(
            f'{name:16s} {row["updates_per_s"]:10.1f} {row["share_of_limit"]:9.2f} '
            f'{row["eager_updates_per_s"]:10.1f} {row["eager_share_of_limit"]:9.2f} '
            f'{row["times_eager"]:11.2f}'
            + (f'   {row["seeds"]} seeds take {row["seeds_times_one"]:.2f} times as long as one'
               if 'seeds' in row else ''))
    return '\n'.join([*lines, *goals(result)])


def goals(result: dict[str, Any]) -> list[str]:
    """Return a line for each goal: whether it is met, and what takes the time where it is not."""
    lines = []
    for name, wanted in GOALS[result['kind']].items():
        row = result['configurations'][name]
        for number, goal in wanted.items():
            if number not in row:
                continue
            met = row[number] <= goal if number == 'seeds_times_one' else row[number] >= goal
            line = (f'goal: {name}, {number.replace("_", " ")} '
                    f'{"at most" if number == "seeds_times_one" else "at least"} {goal}: '
                    f'{row[number]}, {"met" if met else "missed"}')
            if not met and 'kernel_calls' in row:
                line += (f'; {row["products_share_of_time"]:.0%} of the time is matrix products, '
                         f'the rest is spread over {row["kernel_calls"]:.0f} calls')
            lines.append(line)
    return lines


def main(
    bags: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    inference: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    json_: Annotated[bool, tyro.conf.arg(name='json')] = False,
    device: Literal['cpu', 'cuda'] | None = None,
    threads: int | None = None,
    seeds: int | None = None,
    rounds: int = 8,
) -> None:
    """Measure how fast updates are, beside plain PyTorch and the machine's matrix rate.

    Args:
        bags: Measure the conversion of bags instead, beside plain decoding.
        inference: Measure a policy file's decisions instead, beside the machine's matrix rate; one
            thread unless --threads says otherwise.
        json_: Print JSON instead of a table.
        device: cpu, or cuda for a GPU; default: a GPU where there is one.
        threads: CPU threads; default: PyTorch's.
        seeds: Compare so many seeds at once with one; default: 8 on a GPU, else none.
        rounds: How often each has its turn.
    """
    machine.prepare(threads)
    device = device or machine.default_device()
    if device == 'cuda' and not torch.cuda.is_available():
        sys.exit('error: --device cuda: expected a GPU that PyTorch can use, found none')
    if rounds < 1 or (seeds is not None and seeds < 1):
        sys.exit(f'error: expected 1 round or more and 1 seed or more, found {rounds}, {seeds}')
    if bags:
        print(bag_bench.bench(json_, rounds))
        return
    if inference:
        print(inference_bench.bench(json_, rounds, threads or 1))
        return
    demo = read_config(CONFIGS / 'demo.yaml')
    paper = IDQLConfig(actor_decay_steps=3_000_000)
    configurations = {'paper': (paper, 17, 6, 512), 'demo': (demo.idql, 2, 2, demo.batch_size)}
    bfloat16 = machine.multiplies_bfloat16(torch.device(device))
    if bfloat16:
        configurations['paper_bfloat16'] = (
            replace(paper, actor_precision='bfloat16'), 17, 6, 512)
    result = measure(
        configurations, device, rounds, seeds or (8 if device == 'cuda' else 1))
    if not bfloat16:
        result['configurations']['paper_bfloat16'] = {
            'unavailable': 'this processor does not multiply bfloat16 (AVX512_BF16, AMX)'}
    print(json.dumps(result) if json_ else table(result))


if __name__ == '__main__':
    tyro.cli(main)
