"""Scores a policy file in an environment: the file, and the path, that the robot will use.

Observations and actions go through the same messages, Observer, Guard and noise as in policy_node
and sim_node, only without DDS; with one robot at a time the returns are equal, episode by episode.
Several robots at a time are simulated by a process each and wait for each other, so that one
inference decides for all of them. Needs neither torch nor a dataset. With --report a page tells
more than the score (`training/evaluation_report.py`).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
import json
import math
import multiprocessing
from multiprocessing.connection import Connection
import os
from pathlib import Path
import re
import signal
import sys
from typing import Annotated, Any

from idql_ros import message as messages
from idql_ros import vetting
from idql_ros.environments import identity, make, ROBOTS, SimulationError
from idql_ros.guard import Guard
from idql_ros.observer import Observer
from idql_ros.policy import check_extraction, Decision, Extraction, MAX_CANDIDATES, Policy
from idql_ros.simulated_robot import SimulatedRobot
from idql_ros.spec import Spec
import numpy as np
from tqdm import tqdm
from training import workers
from training.files import check_writable, write_whole
import tyro


@dataclass(frozen=True)
class EpisodeResult:
    """How an episode went."""

    total_reward: float  # undiscounted, summed over the environment's steps
    success: bool
    length: int  # environment's steps
    observations: np.ndarray  # (ticks, O)
    q: np.ndarray  # (ticks,) Q of the chosen action; nan where nothing was decided


@dataclass(frozen=True)
class RecordedEpisode(EpisodeResult):
    """An episode with what it can be repeated from, and judged by another reward."""

    actions: np.ndarray  # (ticks, A) float32, as the robot read them from its commands
    rewards: np.ndarray  # (ticks,) the environment's, summed over the steps of a tick
    terminated: bool  # the environment ended it, and not a limit of its length
    last: np.ndarray  # (O,) what was observed at the end; nan where that is not valid
    between: np.ndarray  # (M, O) what was observed strictly between two ticks, oldest first
    counts: np.ndarray  # (ticks,) how many rows of `between` belong to each tick; sum M
    success_told: bool  # whether the environment said if it was a success


# (observation (O,), tick in ns) -> the decision at a tick.
Decide = Callable[[np.ndarray, int], Decision]


def run_episode(robot: SimulatedRobot, episode: int, decide: Decide) -> RecordedEpisode:
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
    nothing = np.full(spec.observation_size, np.nan, np.float32)
    observations, q, actions, between, counts = [], [], [], [], []
    earned: list[float] = []  # until each tick
    while True:
        for topic, message in robot.observe().items():
            observer.add(topic, message, robot.time_ns)
        if robot.over:
            break
        if robot.at_tick:
            tick_ns = tick_time(spec, observer, robot.time_ns)
            observation, reasons = observer.observe_tick(tick_ns)
            sent, value = act(
                tick_ns, observation, reasons, observer.hold_s(tick_ns), guard, decide)
            commands = messages.write_topics(spec.actions, sent, tick_ns, messages.blank)
            actions.append(robot.read_action(commands))
            observations.append(nothing if observation is None else observation)
            q.append(value)
            earned.append(robot.total_reward)
            counts.append(0)
        else:
            observation, _ = observer.observe(robot.time_ns)
            if observation is not None:
                between.append(observation)
                counts[-1] += 1
        robot.advance(actions[-1])
    last, _ = observer.observe(robot.time_ns)
    return RecordedEpisode(
        robot.total_reward, robot.success, robot.length, np.stack(observations), np.array(q),
        np.stack(actions), np.diff([*earned, robot.total_reward]), robot.terminated,
        nothing if last is None else last,
        np.array(between, np.float32).reshape(-1, spec.observation_size), np.array(counts),
        robot.success_told)


def tick_time(spec: Spec, observer: Observer, time_ns: int) -> int:
    if spec.tick == 'timer':
        return time_ns
    tick_ns = observer.take_tick(time_ns)
    return time_ns if tick_ns is None else tick_ns


def act(
    tick_ns: int, observation: np.ndarray | None, reasons: list[str], hold_s: float, guard: Guard,
    decide: Decide,
) -> tuple[np.ndarray, float]:
    """Return what is sent at a tick, and Q of the action, NaN where it is not an action.

    Args:
        tick_ns: Time of the tick.
        observation: (O,), or None.
        reasons: Why there is none.
        hold_s: How long (s) the last command may be held for these reasons.
        guard: Decides what may be sent.
        decide: The policy.

    Raises:
        SimulationError: There is neither a valid observation nor a stop that could be sent.
    """
    if observation is not None:
        guard.measure(observation)
        decision = decide(observation, tick_ns)
        output = guard.act(tick_ns, decision.action, decision.values)
    else:
        output = guard.refuse(tick_ns, reasons, hold_s)
    if any(part is None for part in output.parts):
        raise SimulationError(
            f'no action and no known stop at {tick_ns} ns: {"; ".join(output.reasons)}')
    return np.concatenate(output.parts), decision.q if output.state == 'acting' else math.nan


def evaluate(
    policy: Policy, environment: str, episodes: int, seed: int, candidates: int, label: str,
    extraction: Extraction = 'greedy', softmax_temperature: float = 1.0,
    sampling_temperature: float = 1.0, parallel: int = 1, alone: bool = False,
) -> list[RecordedEpisode]:
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
        parallel: Robots at a time. More than 1: each in a process of its own; how many changes
            what a decision rounds to, and nothing else.
        alone: Each decision is an inference of its own, as on the robot, however many robots ask:
            then it does not even change that.

    Returns:
        The results in the order of the episodes.

    Raises:
        SimulationError, MessageError: Environment and spec disagree, or the environment is not
            that of the policy's data; or a process ended early.
    """
    env = make(environment)
    comparability(policy.provenance, env)
    # Also where processes have robots of their own: what does not fit is found before they start.
    robot = SimulatedRobot(env, policy.spec, seed)

    def decide_batch(observations: np.ndarray, ticks_ns: list[int]) -> list[Decision]:
        size = 1 if alone else len(ticks_ns)
        return [decision for first in range(0, len(ticks_ns), size)
                for decision in policy.decide_batch(
                    observations[first:first + size], ticks_ns[first:first + size], seed,
                    candidates, extraction=extraction, temperature=softmax_temperature,
                    sampling_temperature=sampling_temperature)]

    with tqdm(total=episodes, desc=label, unit='episode', dynamic_ncols=True) as bar:
        if min(parallel, episodes) > 1:
            env.close()
            with _robots(min(parallel, episodes), environment, policy.spec, seed) as robots:
                return _run_episodes(robots, episodes, decide_batch, bar)
        results = []
        for episode in range(episodes):
            results.append(run_episode(
                robot, episode, lambda o, tick_ns: decide_batch(o[None], [tick_ns])[0]))
            bar.update()
        return results


def _run_episodes(
    robots: list[Connection], episodes: int,
    decide_batch: Callable[[np.ndarray, list[int]], list[Decision]], bar: tqdm,
) -> list[RecordedEpisode]:
    """Run the episodes on robots in other processes; none goes on before all have asked.

    So who shares a batch with whom is fixed by the episodes, and not by who was faster.
    """
    results: dict[int, RecordedEpisode] = {}
    upcoming = iter(range(episodes))
    running: dict[Connection, int] = {}
    for robot, episode in zip(robots, upcoming, strict=False):
        running[robot] = episode
        robot.send(episode)
    while running:
        asked = {}
        for robot in list(running):
            while robot in running and robot not in asked:
                found = robot.recv()
                if isinstance(found, Exception):
                    raise found
                if not isinstance(found, RecordedEpisode):
                    asked[robot] = found
                    continue
                results[running.pop(robot)] = found
                bar.update()
                episode = next(upcoming, None)
                if episode is not None:
                    running[robot] = episode
                    robot.send(episode)
        if asked:
            observations, ticks_ns = zip(*asked.values(), strict=True)
            decisions = decide_batch(np.stack(observations), list(ticks_ns))
            for robot, decision in zip(asked, decisions, strict=True):
                robot.send(decision)
    return [results[episode] for episode in range(episodes)]


@contextmanager
def _robots(number: int, environment: str, spec: Spec, seed: int) -> Iterator[list[Connection]]:
    """Start processes that simulate a robot each; they end with the block, or with this process.

    A signal that goes to all processes ends none of them: this one may finish its evaluation.

    Raises:
        SimulationError: A process ended early.
    """
    # Not forked from here: a simulator has nothing of this process's threads and windows then.
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['gymnasium', 'ogbench', 'tyro'])  # once, and not in each
    processes, connections = [], []
    try:
        for _ in range(number):
            ours, theirs = context.Pipe()
            connections.append(ours)
            process = context.Process(
                target=_simulate, args=(theirs, environment, spec, seed), daemon=True)
            with workers.deaf():
                process.start()
            processes.append(process)
            theirs.close()  # or its end would not be seen
        yield connections
    except (EOFError, ConnectionError) as error:
        raise SimulationError(
            f'environment {environment}: expected {number} processes that simulate it, found one '
            'that ended early; what it printed, if anything, says why') from error
    finally:
        # Both: a step can take long, and an interrupt can come before a process is in the list.
        for connection in connections:
            connection.close()
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def _simulate(parent: Connection, environment: str, spec: Spec, seed: int) -> None:
    """Run the episodes that the parent names, and let it decide."""
    workers.begin()

    def decide(observation: np.ndarray, tick_ns: int) -> Decision:
        parent.send((observation, tick_ns))
        return parent.recv()

    with suppress(EOFError, ConnectionError):  # the parent wants no more
        try:
            robot = SimulatedRobot(make(environment), spec, seed)
            while True:
                parent.send(run_episode(robot, parent.recv(), decide))
        except (SimulationError, messages.MessageError) as error:
            parent.send(error)


def comparability(provenance: dict[str, Any], env: Any) -> str | None:
    """Return why a score is not comparable with published ones; None: nothing speaks against it.

    Args:
        provenance: Of the policy.
        env: What it is scored in.

    Raises:
        SimulationError: The task of the policy's data is in another environment.
    """
    dataset, where = str(provenance.get('dataset')), identity(env)
    version = re.search(r'-v(\d+)$', where)
    old = version is not None and int(version[1]) < 5
    if dataset.endswith('.hdf5') and re.match('ant_?maze', dataset, re.IGNORECASE):
        # What an adapter from Gym to Gymnasium wraps has the name gym_env.
        origin = type(getattr(env.unwrapped, 'gym_env', env).unwrapped).__module__
        if origin.split('.')[0] != 'd4rl':
            raise SimulationError(
                f"{dataset}: expected the environment of D4RL's package, whose maze, goal and "
                f'reward this data has, found {where} of {origin}; give --environment '
                'module:factory with a function that makes it')
    if dataset.endswith('.hdf5') and version is not None and not old and re.match(
            'hopper|walker2d|halfcheetah|ant', dataset, re.IGNORECASE):
        return (f"{dataset} is D4RL's and was recorded in version 2: a score in {where} is not "
                'comparable with published ones; version 4 is the nearest that Gymnasium has')
    if dataset.startswith('mujoco/') and old:
        return (f"{dataset} is Minari's, not D4RL's, and was recorded in version 5: a score in "
                f'{where} is not comparable with published ones')
    return None


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


def success_told(results: Iterable[RecordedEpisode]) -> bool:
    """Return whether the environment tells success: some do so only of what succeeds."""
    return any(result.success_told for result in results)


def success_words(row: dict[str, Any]) -> str:
    """Return the success with its interval, of a row of scores, in words."""
    if row['success'] is None:
        return 'success not told by the environment'
    low, high = row['interval']
    return f'success {row["success"]:.2f} [{low:.2f}, {high:.2f}]'


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
    parallel: int = 4,
    json_file: Path | None = None,
    report: Path | None = None,
    dataset: str | None = None,
    root: Path | None = None,
) -> None:
    """Score a policy file in an environment.

    Args:
        policy: The policy file (.onnx).
        environment: module:factory or an id of Gymnasium or OGBench; empty: that of the robot in
            the file, or the one it was exported for.
        episodes: How many.
        seed: Of the first start and of the noise.
        candidates: Actions drawn for each decision; give it again to compare. Default: 1 (a sample
            of the behaviour policy) and what the file proposes.
        extraction: How one of them is chosen: the largest Q, or drawn with the weights that the
            critic's loss implies, or with weights exp(temperature * (Q - V)).
        softmax_temperature: That temperature, in units of 1 / Q; the higher, the greedier.
        sampling_temperature: Scales the noise that the denoising steps add; 0: none.
        parallel: Robots at a time; with 1 every action has the very bits that the node sends, with
            more its last bits may differ.
        json_file: Where to write the scores as JSON.
        report: Where to write a page (.html) about the largest of the N: scores, predicted and
            obtained returns, latency, the worst episodes with pictures; its numbers as JSON
            beside it.
        dataset: For the report: recorded decisions to compare with; a name as in training.
        root: Folder of the dataset; none: where Minari or ogbench look.
    """
    if report is not None and report.suffix != '.html':
        raise SimulationError(f'{report}: expected a page with a name that ends in .html')
    if report is None and not (dataset is root is None):
        raise SimulationError('dataset, root: expected with --report, which compares with it')
    if root is not None and dataset is None:
        raise SimulationError(f'root: expected with --dataset, which lies in it, found {root}')
    _check_targets(json_file, report)
    if episodes < 1 or not all(1 <= n <= MAX_CANDIDATES for n in candidates):
        raise SimulationError(f'expected 1 episode or more and 1 to {MAX_CANDIDATES} candidates, '
                              f'found {episodes} and {candidates}')
    if parallel < 1:
        raise SimulationError(f'parallel: expected 1 robot or more at a time, found {parallel}')
    if not 0 <= seed <= seed + episodes <= 2**32:  # the environments' limit
        raise SimulationError(f'expected a seed from 0 to {2**32 - episodes}, found {seed}')
    check_extraction(extraction, softmax_temperature, sampling_temperature)
    # While robots wait for an inference, their cores are its own.
    threads = 1 if parallel == 1 else os.cpu_count() or 1
    # The file may be somebody else's; what leaves the check gives the very same answers.
    vetted = vetting.vet(policy, threads=threads, candidates=candidates or (0, 1))
    opened = Policy(policy, threads, vetted=vetted)
    environment = environment or environment_of(opened)
    env = make(environment)
    scored_in, warning = identity(env), comparability(opened.provenance, env)
    env.close()
    recorded = None
    if dataset is not None:
        # What is not there is told before hours of scoring. Scores alone need none of it: it is
        # imported here, and what draws below.
        from training import evaluation_agreement
        recorded = evaluation_agreement.read(dataset, root, opened)
    results = {n: evaluate(
        opened, environment, episodes, seed, n, f'N = {n}', extraction, softmax_temperature,
        sampling_temperature, parallel) for n in candidates or sorted({1, opened.candidates})}
    unknown = {} if success_told(chain(*results.values())) else {'success': None, 'interval': None}
    rows = {n: summarise(found) | unknown for n, found in results.items()}
    print(f'{policy} in {environment}, {episodes} episodes from seed {seed}, extraction '
          f'{extraction}, softmax temperature {softmax_temperature:g}, sampling temperature '
          f'{sampling_temperature:g}, {parallel} at a time')
    for n, row in rows.items():
        print(f'N = {n:4d}: {success_words(row)}, mean return {row["mean_return"]:.1f} '
              f'in {scored_in}')
    if warning is not None:
        print(f'warning: {warning}')
    scores = {
        'policy': str(policy), 'sha256': opened.digest, 'environment': environment,
        'environment_id': scored_in, 'warning': warning, 'episodes': episodes, 'seed': seed,
        'extraction': extraction, 'softmax_temperature': softmax_temperature,
        'sampling_temperature': sampling_temperature, 'parallel': parallel, 'candidates': rows}
    if json_file is not None:
        write_whole(json_file, json.dumps(scores, indent=1).encode())
    if report is not None:
        from training import evaluation_report
        evaluation_report.write(
            report, scores, Policy(policy, vetted=vetted), results, {
                'extraction': extraction, 'temperature': softmax_temperature,
                'sampling_temperature': sampling_temperature}, recorded)
        print(f'report: {report}')


def _check_targets(json_file: Path | None, report: Path | None) -> None:
    """Find out before hours of scoring what could not be written after them."""
    paths = [] if json_file is None else [json_file]
    if report is not None:
        paths += [report, report.with_suffix('.json')]
    if len({path.resolve() for path in paths}) < len(paths):
        raise SimulationError(
            f'{json_file}: expected another name than those of the report, {report} and the '
            'numbers beside it (.json)')
    for path in paths:
        if not path.parent.is_dir():
            raise SimulationError(f'{path}: expected an existing folder to write to')
        check_writable(path)


def environment_of(policy: Policy) -> str:
    """Return the environment of a policy file's robot, or the one that it was exported for.

    Raises:
        SimulationError: The file names none, or code to run, which is not for a file to say.
    """
    if policy.spec.name in ROBOTS:
        return ROBOTS[policy.spec.name]
    name = policy.provenance.get('environment')
    if name is None:
        raise SimulationError(
            f'{policy.path}: no environment is known for the robot {policy.spec.name}: give '
            '--environment')
    if ':' in str(name):
        raise SimulationError(
            f'{policy.path}: expected the id of an environment, found {name}, which would run '
            'code that the file names; if you trust it, give it as --environment')
    return str(name)


if __name__ == '__main__':
    # To be ended is to be interrupted: the processes are ended too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        tyro.cli(main)
    except KeyboardInterrupt:
        sys.exit('error: interrupted; no file is half written')
    except (ValueError, OSError) as error:
        sys.exit(f'error: {error}')
