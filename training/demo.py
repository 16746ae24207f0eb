"""The quick start, as a script that reads like its section of the README.

A simulated robot is driven by a scripted driver, its bags become a dataset, IDQL learns from it,
and the policy file drives the robot: in evaluation, and over ROS 2 between two processes.
`make demo` runs it with a robot in a maze; everything it writes lies in one folder.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import as_completed, ProcessPoolExecutor
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
from training.conversion import Conversion, convert
from training.drivers import ManipulationDriver, RECIPES, WanderingDriver
from training.export import export
from training.rewards import Task
from training.train import read_config, train
import tyro
import yaml

SOURCE = Path(__file__).resolve().parents[1]
DEMOS = SOURCE / 'config' / 'demos'
# Lies in the demo's folder, which it may replace.
MARKER = '.idql_ros_demo'
# What a recorder sees: a message is logged some time after its stamp.
OBSERVATION_DELAY_NS = (300_000, 2_000_000)
COMMAND_DELAY_NS = (5_000_000, 20_000_000)
# The first bag begins here, the others at distances; any date would do.
RECORDED_AT_NS = 1_750_000_000 * messages.NS
BAG_DISTANCE_NS = 86_400 * messages.NS


@dataclass(frozen=True)
class Demonstration:
    """What the demo does with a robot; config/demos/ROBOT.yaml."""

    driver: str  # who drives while bags are recorded: 'wander', or a recipe of training.drivers
    recording: dict[str, Any]  # keywords of the environment while they are
    bags: int
    steps: int  # env.steps of an episode
    task: dict[str, Any]  # the reward, as training.bags takes it
    training: str  # a file of config/training
    evaluate_driver: bool  # whether the driver is scored beside the policy
    evaluate_episodes: int
    episodes_per_bag: int = 1


def read_demonstration(robot: str, small: bool) -> Demonstration:
    """Return config/demos/ROBOT.yaml; `small`: with what its key `small` says instead.

    Raises:
        ValueError: There is no such file.
    """
    path = DEMOS / f'{robot}.yaml'
    if not path.is_file():
        raise ValueError(f'{robot}: expected one of '
                         f'{", ".join(sorted(p.stem for p in DEMOS.glob("*.yaml")))}')
    keys = yaml.safe_load(path.read_text())
    smaller = keys.pop('small')
    return Demonstration(**{**keys, **(smaller if small else {})})


def robot_spec(robot: str) -> specs.Spec:
    """Return the spec in config/robots."""
    return specs.load(SOURCE / 'config' / 'robots' / f'{robot}.yaml')


def record_bag(path: Path, robot_name: str, number: int, demonstration: Demonstration) -> int:
    """Drive, and write what a recorder would have written; return how many messages."""
    spec = robot_spec(robot_name)
    env = environments.make(
        environments.ROBOTS[robot_name], max_episode_steps=demonstration.steps + 1,
        **demonstration.recording)
    episodes = demonstration.episodes_per_bag
    robot = SimulatedRobot(env, spec, seed=number * episodes,
                           epoch_ns=RECORDED_AT_NS + number * BAG_DISTANCE_NS)
    driver = _driver(demonstration, env)
    delays = np.random.default_rng([number, 1])
    typestore = get_typestore(Stores.ROS2_JAZZY)
    streams = {stream.topic: stream for stream in (*spec.observations, *spec.actions)}
    written: list[tuple[int, str, bytes]] = []

    def write(sent: dict[str, Any], stamp_ns: int, delay_ns: tuple[int, int]) -> None:
        for topic, message in sent.items():
            written.append((stamp_ns + int(delays.integers(*delay_ns)), topic,
                            typestore.serialize_cdr(message, streams[topic].type)))

    for episode in range(episodes):
        robot.reset(episode)
        driver.seed(number * episodes + episode)
        driver.begin(None, robot.info)
        for _ in range(demonstration.steps):
            write(robot.observe(), robot.time_ns, OBSERVATION_DELAY_NS)
            if robot.at_tick:
                action = _in_units(driver.act(None, robot.info), env.action_space)
                write(messages.write_topics(spec.actions, action, robot.time_ns, messages.blank),
                      robot.time_ns, COMMAND_DELAY_NS)
            robot.advance(action)
            driver.watch(robot.info)
    # A recorder writes in the order of its log.
    written.sort(key=lambda entry: entry[0])
    with tempfile.TemporaryDirectory(dir=path.parent, prefix='.writing-') as temporary:
        # The storage file is named after its folder.
        unfinished = Path(temporary, path.name)
        with Writer(unfinished, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
            connections = {
                topic: writer.add_connection(
                    f'/{topic}', stream.type, typestore=typestore,
                    offered_qos_profiles=[_qos(stream)])
                for topic, stream in streams.items()}
            for logged_ns, topic, content in written:
                writer.write(connections[topic], logged_ns, content)
        unfinished.rename(path)
    return len(written)


def _driver(demonstration: Demonstration, env: Any) -> WanderingDriver | ManipulationDriver:
    if demonstration.driver == 'wander':
        return WanderingDriver(env)
    return ManipulationDriver(RECIPES[demonstration.driver], env)


def _in_units(action: np.ndarray, space: Any) -> np.ndarray:
    """Return a driver's numbers in [-1, 1] as an action (A,) float32 in a robot's units."""
    share = 0.5 * (np.clip(action, -1.0, 1.0) + 1.0)
    return (space.low + share * (space.high - space.low)).astype(np.float32)


def _qos(stream: specs.Stream) -> Qos:
    """Return what a recorder notes of a publisher with the spec's QoS."""
    forever = QosTime(2147483647, 4294967295)
    return Qos(
        QosHistory.KEEP_LAST, stream.depth, QosReliability[stream.reliability.upper()],
        QosDurability.VOLATILE, forever, forever, QosLiveliness.AUTOMATIC, forever, False)


def record(folder: Path, robot: str, demonstration: Demonstration) -> list[Path]:
    """Record the demo's bags, in parallel; return their folders."""
    folder.mkdir(parents=True)
    paths = [folder / f'drive_{number:02d}' for number in range(demonstration.bags)]
    with ProcessPoolExecutor(min(len(paths), os.cpu_count() or 1)) as pool:
        futures = [pool.submit(record_bag, path, robot, number, demonstration)
                   for number, path in enumerate(paths)]
        for future in tqdm(as_completed(futures), total=len(paths), desc='record', unit='bag',
                           dynamic_ncols=True):
            future.result()
    return paths


def evaluate_driver(robot: str, demonstration: Demonstration) -> list[evaluate.EpisodeResult]:
    """Return how often the driver happens to reach the goal in the time of an episode."""
    simulated = SimulatedRobot(
        environments.make(environments.ROBOTS[robot]), robot_spec(robot), seed=0)
    driver = _driver(demonstration, simulated.env)
    results = []
    for episode in tqdm(range(demonstration.evaluate_episodes), desc='driver', unit='episode',
                        dynamic_ncols=True):
        driver.seed(1000 + episode)
        driver.begin(None, {})

        def decide(*_: Any) -> Decision:
            action = _in_units(driver.act(None, simulated.info), simulated.env.action_space)
            return Decision(action, 0.0, 0.0, action[None], np.zeros(1))

        results.append(evaluate.run_episode(simulated, episode, decide))
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
    robot: str = 'pointmaze_medium',
    small: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Run the quick start.

    Args:
        output: Folder for everything; that of an earlier demo is replaced.
        robot: A robot that config/demos holds a demonstration of.
        small: A quick pass through every step; its policy is not trained long enough to be good.
    """
    demonstration = read_demonstration(robot, small)
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
    environment, spec = environments.ROBOTS[robot], robot_spec(robot)
    dataset = f'demo/{robot.replace("_", "-")}-v0'

    paths = timed('record', lambda: record(output / 'bags', robot, demonstration))
    timed('convert', lambda: convert(
        paths, Conversion(spec, Task(demonstration.task)), dataset, output / 'datasets',
        jobs=os.cpu_count() or 1))
    config = replace(
        read_config(SOURCE / 'config' / 'training' / demonstration.training), dataset=dataset,
        root=str(output / 'datasets'), output=str(output / 'training'))
    idql = timed('train', lambda: train(config))
    checkpoint = read_checkpoint(output / 'training' / CHECKPOINT)
    path = output / 'policy.onnx'
    print(timed('export', lambda: export(
        idql, checkpoint['spec_json'], checkpoint['provenance'], path,
        statistics=checkpoint['statistics'])))

    def score() -> dict[str, list[evaluate.EpisodeResult]]:
        policy = Policy(path)
        episodes = demonstration.evaluate_episodes
        results = {}
        if demonstration.evaluate_driver:
            results['driver'] = evaluate_driver(robot, demonstration)
        for row, candidates, bar in (
                ('one_sample', 1, 'one sample'), ('idql', policy.candidates, 'IDQL')):
            results[row] = evaluate.evaluate(policy, environment, episodes, 0, candidates, bar)
        return results

    results = timed('evaluate', score)
    over_ros = timed('deploy', lambda: deploy(
        path, demonstration.evaluate_episodes, output / 'ros'))
    seconds['total'] = sum(seconds.values())
    if not report.write(output, results, over_ros, seconds, environment, spec):
        raise RuntimeError(
            f'expected equal returns over ROS 2 and in evaluation, see {output / "summary.json"}')


if __name__ == '__main__':
    try:
        tyro.cli(main)
    except (RuntimeError, ValueError, OSError) as error:
        sys.exit(f'error: {error}')
