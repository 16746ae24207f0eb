"""A bag replayed to the real node over DDS: it acts on the observations of the dataset."""

from dataclasses import replace
import gc
import json
import os
from pathlib import Path
import subprocess
import sys

import pytest

pytest.importorskip('torch', reason='torch is not installed')
pytest.importorskip('minari', reason='minari is not installed')
pytest.importorskip('rosbags', reason='rosbags is not installed')
harness = pytest.importorskip('harness', reason='rclpy is not installed')

from idql_ros import message as messages  # noqa: E402
from idql_ros import spec as specs  # noqa: E402
from idql_ros.policy_node import PolicyNode  # noqa: E402
import rclpy  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.lifecycle import TransitionCallbackReturn  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from training import demo  # noqa: E402
from training.conversion import Conversion, convert  # noqa: E402
from training.datasets import load_minari  # noqa: E402
from training.rewards import Task  # noqa: E402

HERE = Path(__file__).parent


def reliable(spec):
    """Return the spec with a transport that loses nothing."""
    return replace(spec, observations=tuple(
        replace(s, reliability='reliable', durability='volatile', depth=100)
        for s in spec.observations))


class Watched:
    """A node in this process, and what it was given and acted on."""

    def __init__(self, policy):
        """Configure it, in simulated time; it stays inactive."""
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        # Under a name of its own: while anything of it is left, nobody takes it for another's.
        self.node = PolicyNode(
            context=self.context, cli_args=['--ros-args', '-r', '__node:=replayed'],
            parameter_overrides=[
                Parameter('model', value=str(policy)), Parameter('use_sim_time', value=True)])
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        assert self.node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        self.received = self.ticks = 0
        self.observations = []
        self.runner = self.node._runner
        decide = self.runner._decide

        def watch(policy, observation, *arguments):
            self.observations.append(observation.copy())
            return decide(policy, observation, *arguments)

        self.runner._decide = watch

    def activate(self):
        """Activate it, and count what comes and what begins from then on."""
        assert self.node.trigger_activate() == TransitionCallbackReturn.SUCCESS
        add, begin = self.runner.observer.add, self.runner._begin

        def count_message(*arguments):
            self.received += 1
            return add(*arguments)

        def count_tick(tick_ns):
            self.ticks += 1
            begin(tick_ns)

        self.runner.observer.add, self.runner._begin = count_message, count_tick

    def now_ns(self):
        """Return its clock."""
        return self.node.get_clock().now().nanoseconds

    def spin_until(self, condition, what, limit_s=60.0):
        """Serve callbacks until `condition()`; fail the test when it stays away."""
        deadline = harness.time.monotonic() + limit_s
        while not condition():
            assert harness.time.monotonic() < deadline, f'not seen within {limit_s} s: {what}'
            self.executor.spin_once(timeout_sec=0.02)

    def close(self):
        """End it, and leave nothing of it on the network."""
        assert self.node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
        assert self.node.trigger_cleanup() == TransitionCallbackReturn.SUCCESS
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)
        del self.executor, self.node, self.runner, self.context
        gc.collect()  # what watches it refers to it


def replayed(path, spec, folder):
    """Return the observations that the real node acts on while a bag is replayed to it."""
    watched = Watched(harness.untrained(spec, folder / 'policy.onnx'))
    replay = subprocess.Popen(
        [sys.executable, HERE / 'replay.py', path, spec.to_json()], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=HERE.parent,
        env=os.environ | {'PYTHONPATH': str(HERE.parent)})

    def step():
        replay.stdin.write('\n')
        replay.stdin.flush()
        return json.loads(replay.stdout.readline() or 'null')

    try:
        assert json.loads(replay.stdout.readline())['topics']
        first = step()
        watched.spin_until(lambda: watched.now_ns() == first['clock'], 'the first clock')
        watched.activate()
        while told := step():
            # Released only when the node has taken what was sent, and done what it asks for.
            watched.spin_until(
                lambda told=told: watched.received == told['messages']
                and watched.now_ns() == told['clock']
                and (spec.tick == 'arrival' or watched.ticks == told['due'] - 1)
                and not watched.runner.busy, str(told))
        counts = watched.runner.counts
        assert counts['missed'] == counts['dropped'] == 0
    finally:
        replay.stdin.close()
        replay.wait(10)
    watched.close()
    return watched.observations


def assert_equal(path, spec, folder):
    """Check a bag's dataset against the node; return how many transitions it has."""
    live = [o.tobytes() for o in replayed(path, spec, folder)]
    task = Task({'action_cost': {}}, 'never')
    convert([path], Conversion(spec, task), 'test/parity-v0', folder / 'datasets')
    dataset, _ = load_minari('test/parity-v0', folder / 'datasets')
    position = 0
    for before, after in zip(dataset.observations, dataset.next_observations, strict=True):
        # Each transition is two ticks of the node, one right after the other.
        position = live.index(before.tobytes(), position)
        assert live[position + 1] == after.tobytes()
    return len(dataset.observations)


def test_node_acts_on_the_observations_of_the_dataset_of_the_demos_robot(tmp_path):
    spec = reliable(demo.robot_spec('pointmaze_medium'))
    demo.record_bag(tmp_path / 'bag', 'pointmaze_medium', 0, replace(
        demo.read_demonstration('pointmaze_medium', small=True), steps=400))
    assert assert_equal(tmp_path / 'bag', spec, tmp_path) == 79


@pytest.mark.parametrize('name', ['epuck_webots', 'selfdrive_test', 'p4_pitch45'])
def test_node_acts_on_the_observations_of_the_dataset_of_a_real_robot(tmp_path, name):
    bags = os.environ.get('IDQL_ROS_BAGS')
    if bags is None:
        pytest.skip('IDQL_ROS_BAGS names no folder with bags of other robots')
    spec = reliable(specs.load(HERE / 'specs' / f'{name}.yaml'))
    for stream in spec.observations:
        messages.ros_class(stream.type)
    assert assert_equal(Path(bags, name), spec, tmp_path) >= 50
