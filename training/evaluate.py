"""Scores a policy file in an environment: the file, and the path, that the robot will use.

Observations and actions go through the same messages, Observer, Guard and noise as in policy_node
and sim_node, only without DDS, one observation at a time; the returns are equal, episode by
episode. Needs neither torch nor a dataset.
"""

from collections.abc import Callable
from dataclasses import dataclass
import json
import math
import os
from pathlib import Path
import sys
from typing import Annotated, Any

from idql_ros import message as messages
from idql_ros.environments import make, ROBOTS, SimulatedRobot, SimulationError
from idql_ros.guard import Guard
from idql_ros.observer import Observer
from idql_ros.policy import (
    check_extraction,
    Decision,
    Extraction,
    MAX_CANDIDATES,
    Policy,
    PolicyError,
)
from idql_ros.spec import Spec
import numpy as np
from tqdm import tqdm
import tyro


@dataclass(frozen=True)
class EpisodeResult:
    """How an episode went."""

    total_reward: float  # undiscounted, summed over the environment's steps
    success: bool
    length: int  # environment's steps
    observations: np.ndarray  # (ticks, O)
    q: np.ndarray  # (ticks,) Q of the chosen action; nan where nothing was decided


# (observation (O,), tick in ns) -> the decision at a tick.
Decide = Callable[[np.ndarray, int], Decision]


def run_episode(robot: SimulatedRobot, episode: int, decide: Decide) -> EpisodeResult:
    """Run one episode of a simulated robot.

    Args:
        robot: The robot.
        episode: Its number; fixes start and stamps.
        decide: The policy.

    Raises:
        SimulationError: There is neither a valid observation nor a stop that could be sent.
    """
    spec = robot.spec
    observer, guard = Observer(spec), Guard(spec)
    robot.reset(episode)
    observations, q = [], []
    action = np.zeros(0, np.float32)
    while not robot.over:
        for topic, message in robot.observe().items():
            observer.add(topic, message, robot.time_ns)
        if robot.at_tick:
            tick_ns = _tick(spec, observer, robot.time_ns)
            sent, value = _act(tick_ns, observer, guard, decide)
            commands = messages.write_topics(spec.actions, sent, tick_ns, messages.blank)
            action = robot.read_action(commands)
            observation, _ = observer.observe(tick_ns)
            observations.append(
                np.full(spec.observation_size, np.nan) if observation is None else observation)
            q.append(value)
        robot.advance(action)
    return EpisodeResult(robot.total_reward, robot.success, robot.length,
                         np.stack(observations), np.array(q))


def _tick(spec: Spec, observer: Observer, time_ns: int) -> int:
    if spec.tick == 'timer':
        return time_ns
    tick_ns = observer.take_tick(time_ns)
    return time_ns if tick_ns is None else tick_ns


def _act(tick_ns: int, observer: Observer, guard: Guard, decide: Decide) -> tuple[
        np.ndarray, float]:
    """Return what is sent at a tick, and Q of it."""
    observation, reasons = observer.observe(tick_ns)
    if observation is not None:
        guard.measure(observation)
        decision = decide(observation, tick_ns)
        sent, _ = guard.act(decision.action, decision.q)
        if sent is not None:
            return sent, decision.q
        reasons = ['the policy gave what is not finite']
    parts = guard.stop()
    if any(part is None for part in parts):
        raise SimulationError(f'no action and no known stop at {tick_ns} ns: {"; ".join(reasons)}')
    return np.concatenate(parts), math.nan


def evaluate(
    policy: Policy, environment: str, episodes: int, seed: int, candidates: int, label: str,
    extraction: Extraction = 'greedy', softmax_temperature: float = 1.0,
    sampling_temperature: float = 1.0,
) -> list[EpisodeResult]:
    """Run seeded episodes with a policy file.

    Args:
        policy: The opened file.
        environment: module:factory or a Gymnasium id.
        episodes: How many.
        seed: Of the first start and of the noise; episode k starts with seed + k.
        candidates: N; 1 is a sample of the behaviour policy, without the critic.
        label: For the progress bar.
        extraction: How one of the candidates is chosen.
        softmax_temperature: Of the extraction 'softmax'.
        sampling_temperature: Scales the noise that the denoising steps add.

    Raises:
        SimulationError, MessageError: Environment and spec disagree.
    """
    robot = SimulatedRobot(make(environment), policy.spec, seed)

    def decide(observation: np.ndarray, tick_ns: int) -> Decision:
        return policy.decide(
            observation, tick_ns, seed, candidates, extraction=extraction,
            temperature=softmax_temperature, sampling_temperature=sampling_temperature)

    return [run_episode(robot, episode, decide)
            for episode in tqdm(range(episodes), desc=label, unit='episode', dynamic_ncols=True)]


def success_interval(successes: int, episodes: int) -> tuple[float, float]:
    """Return the 95 % interval of a success rate (Wilson, 1927)."""
    z = 1.959963984540054
    rate = successes / episodes
    centre = (rate + z * z / (2 * episodes)) / (1 + z * z / episodes)
    half = z / (1 + z * z / episodes) * math.sqrt(
        rate * (1 - rate) / episodes + z * z / (4 * episodes**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def summarise(results: list[EpisodeResult]) -> dict[str, Any]:
    """Return success rate with its interval, returns and lengths as plain data."""
    successes = sum(result.success for result in results)
    low, high = success_interval(successes, len(results))
    returns = [result.total_reward for result in results]
    return {'success': successes / len(results), 'interval': [low, high],
            'mean_return': float(np.mean(returns)), 'returns': returns,
            'lengths': [result.length for result in results]}


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
    temporary.write_text(text, encoding='utf-8')
    temporary.replace(path)


def main(
    policy: tyro.conf.Positional[Path],
    /,
    environment: str = '',
    episodes: int = 50,
    seed: int = 0,
    candidates: Annotated[list[int], tyro.conf.UseAppendAction] = [],  # noqa: B006
    extraction: Extraction = 'greedy',
    softmax_temperature: float = 1.0,
    sampling_temperature: float = 1.0,
    json_file: Path | None = None,
) -> None:
    """Score a policy file in an environment.

    Args:
        policy: The policy file (.onnx).
        environment: module:factory or a Gymnasium id; empty: that of the robot in the file.
        episodes: How many.
        seed: Of the first start and of the noise.
        candidates: Actions drawn for each decision; give it again to compare. Default: 1 (a sample
            of the behaviour policy) and what the file proposes.
        extraction: How one of them is chosen: the largest Q, or drawn with the weights that the
            critic's loss implies, or with weights exp(temperature * (Q - V)).
        softmax_temperature: That temperature, in units of 1 / Q; the higher, the greedier.
        sampling_temperature: Scales the noise that the denoising steps add; 0: none.
        json_file: Where to write the scores as JSON.
    """
    if json_file is not None and not json_file.parent.is_dir():
        raise SimulationError(f'{json_file}: expected an existing folder to write to')
    if episodes < 1 or not all(1 <= n <= MAX_CANDIDATES for n in candidates):
        raise SimulationError(f'expected 1 episode or more and 1 to {MAX_CANDIDATES} candidates, '
                              f'found {episodes} and {candidates}')
    if not 0 <= seed <= seed + episodes <= 2**32:  # the environments' limit
        raise SimulationError(f'expected a seed from 0 to {2**32 - episodes}, found {seed}')
    check_extraction(extraction, softmax_temperature, sampling_temperature)
    opened = Policy(policy)
    environment = environment or ROBOTS.get(opened.spec.name, '')
    if not environment:
        raise SimulationError(
            f'{policy}: no environment is known for the robot {opened.spec.name}: give '
            '--environment')
    rows = {}
    for n in candidates or sorted({1, opened.candidates}):
        rows[n] = summarise(evaluate(
            opened, environment, episodes, seed, n, f'N = {n}', extraction, softmax_temperature,
            sampling_temperature))
    print(f'{policy} in {environment}, {episodes} episodes from seed {seed}, extraction '
          f'{extraction}, softmax temperature {softmax_temperature:g}, sampling temperature '
          f'{sampling_temperature:g}')
    for n, row in rows.items():
        low, high = row['interval']
        print(f'N = {n:4d}: success {row["success"]:.2f} [{low:.2f}, {high:.2f}], '
              f'mean return {row["mean_return"]:.1f}')
    if json_file is not None:
        write_text(json_file, json.dumps(
            {'policy': str(policy), 'sha256': opened.digest, 'environment': environment,
             'episodes': episodes, 'seed': seed, 'extraction': extraction,
             'softmax_temperature': softmax_temperature,
             'sampling_temperature': sampling_temperature, 'candidates': rows}, indent=1))


if __name__ == '__main__':
    try:
        tyro.cli(main)
    except (PolicyError, SimulationError, messages.MessageError, OSError) as error:
        sys.exit(f'error: {error}')
