"""The quick start, as a script that reads like its section of the README.

A simulated robot drives through a maze, its bags become a dataset, IDQL learns from it, and the
policy file drives the robot: in evaluation, and over ROS 2 between two processes. `make demo` runs
it; everything it writes lies in one folder.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
import json
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Annotated, Any

from idql_ros import environments
from idql_ros import message as messages
from idql_ros import spec as specs
from idql_ros.policy import Decision, Policy
from idql_ros.simulated_robot import SimulatedRobot
import numpy as np
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores
from tqdm import tqdm
from training import evaluate, report
from training.checkpoint import CHECKPOINT, read_checkpoint
from training.collect import maze_cells
from training.conversion import Conversion, convert
from training.export import export
from training.rewards import Task
from training.train import read_config, train
import tyro

SOURCE = Path(__file__).resolve().parents[1]
ROBOT = SOURCE / 'config' / 'robots' / 'pointmaze_medium.yaml'
ENVIRONMENT = environments.ROBOTS['pointmaze_medium']
DATASET = 'demo/pointmaze-medium-v0'
# Lies in the demo's folder, which it may replace.
MARKER = '.idql_ros_demo'
# The driver's Gaussian noise, in the environment's own action (OGBench's "navigate" recipe).
DRIVER_NOISE = 0.5
# What a recorder sees: a message is logged some time after its stamp.
ODOMETRY_DELAY_NS = (300_000, 2_000_000)
COMMAND_DELAY_NS = (5_000_000, 20_000_000)
# The first bag begins here, the others at distances; any date would do.
RECORDED_AT_NS = 1_750_000_000 * messages.NS
BAG_DISTANCE_NS = 86_400 * messages.NS


@dataclass(frozen=True)
class Scale:
    """How large the demo is."""

    bags: int
    steps_per_bag: int  # simulation steps of 0.1 s
    training: Path
    episodes: int


FULL = Scale(20, 10_000, SOURCE / 'config' / 'training' / 'demo.yaml', 50)
SMALL = Scale(4, 3_000, SOURCE / 'config' / 'training' / 'demo_small.yaml', 5)


class Driver:
    """A scripted driver that wanders to random goals of the maze, with noise on its commands."""

    def __init__(self, env: Any, seed: int) -> None:
        """Choose a first goal.

        Args:
            env: The maze, made by its factory.
            seed: Of goals and noise.
        """
        self._maze = env.unwrapped
        self._generator = np.random.default_rng(seed)
        self._cells, self._goals = maze_cells(self._maze.maze_map)
        self._choose_goal()

    def _choose_goal(self) -> None:
        cell = self._goals[self._generator.integers(len(self._goals))]
        self._goal = np.array(self._maze.ij_to_xy(cell))

    def random_cell(self) -> np.ndarray:
        """Return the centre (2,) of a random free cell, in m."""
        return np.array(self._maze.ij_to_xy(
            self._cells[self._generator.integers(len(self._cells))]))

    def act(self, position: np.ndarray) -> np.ndarray:
        """Return a velocity (2,) float32 in m/s at a position (2,) in m."""
        if np.linalg.norm(position - self._goal) <= self._maze._goal_tol:
            self._choose_goal()
        subgoal, _ = self._maze.get_oracle_subgoal(position, self._goal)
        direction = subgoal - position
        direction = direction / (np.linalg.norm(direction) + 1e-6)
        noisy = direction + self._generator.normal(0.0, DRIVER_NOISE, 2)
        return (2.0 * np.clip(noisy, -1.0, 1.0)).astype(np.float32)


def record_bag(path: Path, number: int, steps: int) -> int:
    """Drive through the maze and write what a recorder would have written; return its messages."""
    spec = specs.load(ROBOT)
    env = environments.make(ENVIRONMENT, terminate_at_goal=False, max_episode_steps=steps + 1)
    robot = SimulatedRobot(env, spec, seed=number)
    driver = Driver(env, seed=number)
    robot.reset(0)
    env.unwrapped.set_xy(driver.random_cell())
    offset_ns = RECORDED_AT_NS + number * BAG_DISTANCE_NS - robot.time_ns
    delays = np.random.default_rng([number, 1])
    typestore = get_typestore(Stores.ROS2_JAZZY)
    (signal_,), (command,) = spec.observations, spec.actions
    written: list[tuple[int, str, bytes]] = []
    action = np.zeros(spec.action_size, np.float32)
    for _ in range(steps):
        position = env.unwrapped.get_xy()
        stamp_ns = robot.time_ns + offset_ns
        odometry = messages.write(
            signal_, position.astype(np.float32), messages.blank(signal_.type), stamp_ns)
        odometry.header.frame_id, odometry.child_frame_id = 'odom', 'base_link'
        written.append((stamp_ns + int(delays.integers(*ODOMETRY_DELAY_NS)), signal_.topic,
                        typestore.serialize_cdr(odometry, signal_.type)))
        if robot.at_tick:
            action = driver.act(position)
            answer = messages.write(command, action, messages.blank(command.type), stamp_ns)
            written.append((stamp_ns + int(delays.integers(*COMMAND_DELAY_NS)), command.topic,
                            typestore.serialize_cdr(answer, command.type)))
        robot.advance(action)
    # A recorder writes in the order of its log.
    written.sort(key=lambda entry: entry[0])
    with tempfile.TemporaryDirectory(dir=path.parent, prefix='.writing-') as temporary:
        # The storage file is named after its folder.
        unfinished = Path(temporary, path.name)
        with Writer(unfinished, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
            connections = {
                s.topic: writer.add_connection(
                    f'/{s.topic}', s.type, typestore=typestore, offered_qos_profiles=[_qos(s)])
                for s in (signal_, command)}
            for logged_ns, topic, content in written:
                writer.write(connections[topic], logged_ns, content)
        unfinished.rename(path)
    return len(written)


def _qos(stream: specs.Stream) -> Qos:
    """Return what a recorder notes of a publisher with the spec's QoS."""
    forever = QosTime(2147483647, 4294967295)
    return Qos(
        QosHistory.KEEP_LAST, stream.depth, QosReliability[stream.reliability.upper()],
        QosDurability.VOLATILE, forever, forever, QosLiveliness.AUTOMATIC, forever, False)


def record(folder: Path, scale: Scale) -> list[Path]:
    """Record the demo's bags, in parallel; return their folders."""
    folder.mkdir(parents=True)
    paths = [folder / f'drive_{number:02d}' for number in range(scale.bags)]
    with ProcessPoolExecutor(min(scale.bags, os.cpu_count() or 1)) as pool:
        futures = [pool.submit(record_bag, path, number, scale.steps_per_bag)
                   for number, path in enumerate(paths)]
        for future in tqdm(futures, desc='record', unit='bag', dynamic_ncols=True):
            future.result()
    return paths


def evaluate_driver(episodes: int) -> list[evaluate.EpisodeResult]:
    """Return how often the driver happens to reach the goal in the time of an episode."""
    robot = SimulatedRobot(environments.make(ENVIRONMENT), specs.load(ROBOT), seed=0)
    results = []
    for episode in tqdm(range(episodes), desc='driver', unit='episode', dynamic_ncols=True):
        driver = Driver(robot.env, seed=1000 + episode)

        def decide(observation: np.ndarray, _: int, driver: Driver = driver) -> Decision:
            action = driver.act(observation)
            return Decision(action, 0.0, 0.0, action[None], np.zeros(1))

        results.append(evaluate.run_episode(robot, episode, decide))
    return results


@contextmanager
def process(module: str, parameters: dict[str, Any], log: Path) -> Iterator[subprocess.Popen]:
    """Run a node as a process of its own; at the end interrupt it and wait."""
    arguments = [sys.executable, '-m', module, '--ros-args']
    for name, value in parameters.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        arguments += ['-p', f'{name}:={text}']
    # The commands of the demo are for this machine, and not for a robot on the user's own domain.
    domains = [str(n) for n in range(1, 101) if str(n) != os.environ.get('ROS_DOMAIN_ID')]
    environment = {**os.environ, 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
                   'ROS_DOMAIN_ID': domains[os.getpid() % len(domains)]}
    with log.open('w', encoding='utf-8') as file:
        child = subprocess.Popen(
            arguments, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=SOURCE)
        try:
            yield child
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGINT)
                try:
                    child.wait(10)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()


def deploy(policy: Path, episodes: int, folder: Path) -> list[dict[str, Any]]:
    """Run the same episodes over ROS 2: policy_node and sim_node as two processes, in lock-step.

    Raises:
        RuntimeError: A process ended early; says where its log is.
    """
    folder.mkdir(parents=True)
    results_file = folder / 'episodes.jsonl'
    node_log, sim_log = folder / 'policy_node.log', folder / 'sim_node.log'
    with process('idql_ros.policy_node', {
        'model': policy, 'seed': 0, 'autostart': True, 'enable_commands': True,
        'use_sim_time': True,
    }, node_log) as node, process('idql_ros.sim_node', {
        'spec': policy, 'seed': 0, 'episodes': episodes, 'lock_step': True,
        'real_time_factor': 0.0, 'command_timeout': 10.0, 'results_file': results_file,
    }, sim_log) as sim, tqdm(
            total=episodes, desc='ROS 2', unit='episode', dynamic_ncols=True) as bar:
        while sim.poll() is None:
            if node.poll() is not None:
                raise RuntimeError(f'policy_node ended: see {node_log}')
            time.sleep(0.1)
            if results_file.exists():
                bar.update(results_file.read_bytes().count(b'\n') - bar.n)
        if sim.returncode != 0:
            raise RuntimeError(f'sim_node ended with {sim.returncode}: see {sim_log}')
        results = [json.loads(line) for line in results_file.read_text().splitlines()]
        bar.update(len(results) - bar.n)
    return results


def main(
    output: Path = Path('demo_output'),
    small: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Run the quick start.

    Args:
        output: Folder for everything; that of an earlier demo is replaced.
        small: A quick pass through every step; its policy is not trained long enough to be good.
    """
    scale = SMALL if small else FULL
    seconds: dict[str, float] = {}

    def timed(name: str, step: Callable[[], Any]) -> Any:
        started = time.monotonic()
        result = step()
        seconds[name] = time.monotonic() - started
        return result

    output = output.resolve()
    if output.exists() and any(output.iterdir()) and not (output / MARKER).exists():
        raise ValueError(f'{output}: expected an empty folder or one that the demo wrote, found '
                         'other files; it would replace them')
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    (output / MARKER).touch()
    spec = specs.load(ROBOT)
    goal, tolerance = report.maze_goal(ENVIRONMENT)

    paths = timed('record', lambda: record(output / 'bags', scale))
    task = Task({'sparse_goal': {'goal': goal.tolist(), 'tolerance': tolerance}})
    timed('convert', lambda: convert(
        paths, Conversion(spec, task), DATASET, output / 'datasets', jobs=os.cpu_count() or 1))
    config = replace(read_config(scale.training), dataset=DATASET,
                     root=str(output / 'datasets'), output=str(output / 'training'))
    idql = timed('train', lambda: train(config))
    checkpoint = read_checkpoint(output / 'training' / CHECKPOINT)
    path = output / 'policy.onnx'
    print(timed('export', lambda: export(
        idql, checkpoint['spec_json'], checkpoint['provenance'], path,
        statistics=checkpoint['statistics'])))

    def score() -> dict[str, list[evaluate.EpisodeResult]]:
        policy = Policy(path)
        return {
            'driver': evaluate_driver(scale.episodes),
            'one_sample': evaluate.evaluate(
                policy, ENVIRONMENT, scale.episodes, 0, 1, 'one sample'),
            'idql': evaluate.evaluate(
                policy, ENVIRONMENT, scale.episodes, 0, policy.candidates, 'IDQL'),
        }

    results = timed('evaluate', score)
    over_ros = timed('deploy', lambda: deploy(path, scale.episodes, output / 'ros'))
    seconds['total'] = sum(seconds.values())
    if not report.write(output, results, over_ros, seconds, ENVIRONMENT):
        raise RuntimeError(
            f'expected equal returns over ROS 2 and in evaluation, see {output / "summary.json"}')


if __name__ == '__main__':
    try:
        tyro.cli(main)
    except (RuntimeError, ValueError, OSError) as error:
        sys.exit(f'error: {error}')
