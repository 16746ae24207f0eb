"""How fast bags are converted, beside plain decoding: `python -m training.bench --bags`.

Measures in one run, in turns, on the same generated bags: decoding the messages of the used topics
with rosbags and nothing else; the whole conversion, in one process; and two processes on two
copies.
"""

from collections.abc import Callable, Iterator
import json
from pathlib import Path
import shutil
import statistics
import tempfile
import time
from typing import Any

from idql_ros import message as messages
from idql_ros import spec as specs
import numpy as np
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores
from tqdm import tqdm
from training.conversion import Conversion, convert
from training.rewards import Task

MESSAGES = 100_000
# Of them a command, and a message of a topic that no spec uses.
COMMAND_EVERY, OTHER_EVERY = 10, 3
RATE_HZ = 200
JOINTS = 20
# What we aim at, at least.
GOALS = {'share_of_decoding': 0.7, 'two_processes': 1.7}

_LIMITED = {'kind': 'velocity', 'unit': 'm/s', 'lower': -1, 'upper': 1, 'stop': 'zero'}
_SIGNALS = {
    'joint_states': {
        'name': 'joints', 'topic': 'joint_states', 'type': 'sensor_msgs/msg/JointState',
        'fields': [f'position[joint_{k}]' for k in range(6)]
        + [f'velocity[joint_{k}]' for k in range(6)], 'unit': 'rad, rad/s', 'max_age': 0.1},
    'odometry': {
        'name': 'base', 'topic': 'odom', 'type': 'nav_msgs/msg/Odometry',
        'fields': ['pose.pose.position.x', 'pose.pose.position.y', 'twist.twist.linear.x',
                   'twist.twist.angular.z'], 'unit': 'm, m/s', 'max_age': 0.1},
}


def spec_of(name: str) -> specs.Spec:
    """Return the spec that reads one kind of generated bag."""
    return specs.parse({
        'spec_version': 1, 'name': name, 'rate': 20, 'tick': 'timer',
        'observations': [_SIGNALS[name]],
        'actions': [{'name': 'velocity', 'topic': 'cmd_vel',
                     'type': 'geometry_msgs/msg/TwistStamped',
                     'fields': ['twist.linear.x', 'twist.angular.z'],
                     'dimensions': [_LIMITED, _LIMITED]}]}, name)


def record(path: Path, name: str, count: int) -> None:
    """Write a bag of `count` messages of the observed topic, and others."""
    typestore = get_typestore(Stores.ROS2_JAZZY)
    signal = _SIGNALS[name]
    generator = np.random.default_rng(0)
    observed, command = (messages.blank(kind) for kind in (
        signal['type'], 'geometry_msgs/msg/TwistStamped'))
    if name == 'joint_states':
        observed.name = [f'joint_{k}' for k in range(JOINTS)]
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        topics = {key: writer.add_connection(key, message.__msgtype__, typestore=typestore)
                  for key, message in (
                      (signal['topic'], observed), ('cmd_vel', command), ('other', observed))}

        def write(topic: str, message: Any, stamp_ns: int) -> None:
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(
                stamp_ns, messages.NS)
            writer.write(topics[topic], stamp_ns + 10**6,
                         typestore.serialize_cdr(message, message.__msgtype__))

        for number in tqdm(range(count), desc=f'record {name}', unit='message',
                           dynamic_ncols=True):
            stamp_ns = 10**18 + number * messages.NS // RATE_HZ
            values = generator.normal(size=(3, JOINTS))
            if name == 'joint_states':
                observed.position, observed.velocity, observed.effort = values
            else:
                observed.pose.pose.position.x, observed.pose.pose.position.y = values[0, :2]
                observed.twist.twist.linear.x = values[0, 2]
            write(signal['topic'], observed, stamp_ns)
            if number % OTHER_EVERY == 0:
                write('other', observed, stamp_ns)
            if number % COMMAND_EVERY == 0:
                command.twist.linear.x = float(np.tanh(values[0, 3]))
                write('cmd_vel', command, stamp_ns + 5 * 10**6)


def decode(path: Path, topics: set[str]) -> int:
    """Decode the messages of some topics with rosbags alone; return how many."""
    count = 0
    with AnyReader([path]) as reader:
        used = [c for c in reader.connections if c.topic.lstrip('/') in topics]
        for connection, _, raw in reader.messages(used):
            reader.deserialize(raw, connection.msgtype)
            count += 1
    return count


def measure(count: int, rounds: int) -> dict[str, Any]:
    """Measure both kinds of bags.

    Args:
        count: Messages of the observed topic in each bag.
        rounds: How often each has its turn.

    Returns:
        Kind of bag -> medians over the rounds: messages a second decoded and converted, their
        ratio, and what two processes reach against one.
    """
    result = {}
    with tempfile.TemporaryDirectory(prefix='idql_ros_bench_') as temporary:
        for name, signal in _SIGNALS.items():
            folder = Path(temporary, name)
            folder.mkdir()
            record(folder / 'one', name, count)
            shutil.copytree(folder / 'one', folder / 'two')
            topics = {signal['topic'], 'cmd_vel'}
            conversion = Conversion(spec_of(name), Task({'action_cost': {}}, 'never'))

            def run(bags: list[str], folder: Path = folder,
                    conversion: Conversion = conversion) -> None:
                convert([folder / bag for bag in bags], conversion, 'bench/bags-v0',
                        folder / 'datasets', jobs=len(bags), overwrite=True)

            rows = [_turn(folder / 'one', topics, run) for _ in range(rounds)]
            result[name] = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    return result


def _turn(path: Path, topics: set[str], run: Callable[[list[str]], None]) -> dict[str, float]:
    started = time.perf_counter()
    count = decode(path, topics)
    decoded = time.perf_counter()
    run(['one'])
    alone = time.perf_counter()
    run(['one', 'two'])
    both = time.perf_counter()
    return {'decoded_per_s': count / (decoded - started),
            'converted_per_s': count / (alone - decoded),
            'share_of_decoding': (decoded - started) / (alone - decoded),
            'two_processes': 2 * (alone - decoded) / (both - alone)}


def table(result: dict[str, Any]) -> str:
    """Return what was measured, and whether the goals are met, as text."""
    def lines() -> Iterator[str]:
        yield f'{"bag":14s} {"decoded/s":>10s} {"converted/s":>12s} {"share":>6s} {"two":>5s}'
        for name, row in result.items():
            yield (f'{name:14s} {row["decoded_per_s"]:10.0f} {row["converted_per_s"]:12.0f} '
                   f'{row["share_of_decoding"]:6.2f} {row["two_processes"]:5.2f}')
        for name, row in result.items():
            for number, goal in GOALS.items():
                met = 'met' if row[number] >= goal else 'missed'
                yield (f'goal: {name}, {number.replace("_", " ")} at least {goal}: '
                       f'{row[number]:.2f}, {met}')

    return '\n'.join(lines())


def bench(json_: bool, rounds: int) -> str:
    """Return the text of `python -m training.bench --bags`."""
    result = measure(MESSAGES, rounds)
    return json.dumps(result) if json_ else table(result)
