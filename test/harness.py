"""Starts nodes as processes of their own and talks to them over DDS."""

from contextlib import contextmanager
import json
from pathlib import Path
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from geometry_msgs.msg import TwistStamped  # noqa: E402
from lifecycle_msgs.srv import ChangeState  # noqa: E402
from nav_msgs.msg import Odometry  # noqa: E402
import rclpy  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.qos import QoSProfile  # noqa: E402

SOURCE = Path(__file__).resolve().parents[1]
DEFAULT_POLICY = SOURCE / 'config' / 'policies' / 'pointmaze_medium.onnx'


def policy_with(target, change):
    """Write the default policy, its metadata changed by `change(metadata)`; return the path."""
    onnx = pytest.importorskip('onnx', reason='onnx is not installed')
    model = onnx.load(DEFAULT_POLICY)
    entry, = (p for p in model.metadata_props if p.key == 'idql_ros')
    metadata = json.loads(entry.value)
    change(metadata)
    entry.value = json.dumps(metadata)
    onnx.save(model, target)
    return target


def untrained(spec, path):
    """Write a policy file for a spec, with a small network that was never trained."""
    torch = pytest.importorskip('torch', reason='torch is not installed')
    from training.export import export
    from training.idql import IDQL, IDQLConfig
    torch.manual_seed(0)
    lower, upper = (torch.tensor([getattr(d, side) for d in spec.dimensions])
                    for side in ('lower', 'upper'))
    idql = IDQL(
        IDQLConfig(actor_width=16, actor_blocks=1, time_features=(8, 16), critic_hidden=(16,),
                   value_hidden=(16,), candidates=2),
        torch.zeros(spec.observation_size), torch.ones(spec.observation_size),
        (lower + upper) / 2, (upper - lower) / 2)
    export(idql.eval(), spec.to_json(), {}, path)
    return path


class Process:
    """A node under test."""

    def __init__(self, module, parameters, log):
        """Start it with parameters (name -> value); what it prints goes to the file `log`."""
        arguments = [sys.executable, '-m', module, '--ros-args']
        for name, value in parameters.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            arguments += ['-p', f'{name}:={text}']
        self._log = log
        with log.open('w') as file:
            self.child = subprocess.Popen(
                arguments, cwd=SOURCE, stdout=file, stderr=subprocess.STDOUT)

    def output(self):
        """Return what it printed so far."""
        return self._log.read_text()

    def end(self, number=signal.SIGINT):
        """Send a signal and return the exit code."""
        if self.child.poll() is None:
            self.child.send_signal(number)
        try:
            return self.child.wait(15)
        except subprocess.TimeoutExpired:
            self.child.kill()
            raise


class Robot:
    """The other side of a node: publishes odometry, hears commands."""

    def __init__(self):
        """Join the domain of the test run."""
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node('robot', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.commands = []
        self.node.create_subscription(TwistStamped, 'cmd_vel', self.commands.append, 100)
        self.odometry = self.node.create_publisher(Odometry, 'odom', QoSProfile(depth=10))

    def close(self):
        """Leave."""
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def listen(self, message_type, topic):
        """Return a list that fills with the messages of a topic."""
        received = []
        self.node.create_subscription(message_type, topic, received.append, 100)
        return received

    def spin_until(self, condition, what, limit_s=20.0):
        """Serve callbacks until `condition()`; fail the test when it stays away."""
        deadline = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < deadline, f'not seen within {limit_s} s: {what}'
            self.executor.spin_once(timeout_sec=0.02)

    def spin_for(self, seconds):
        """Serve callbacks for some time."""
        deadline = time.monotonic() + seconds
        while (remaining := deadline - time.monotonic()) > 0:
            self.executor.spin_once(timeout_sec=remaining)

    def publish_odometry(self, x=0.0, y=0.0, age_s=0.0):
        """Publish a position, stamped `age_s` ago; return the stamp in ns."""
        stamp_ns = self.node.get_clock().now().nanoseconds - int(age_s * 1e9)
        message = Odometry()
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
        message.pose.pose.position.x, message.pose.pose.position.y = x, y
        self.odometry.publish(message)
        return stamp_ns

    def publish_for(self, seconds, **position):
        """Publish odometry at 50 Hz for some time."""
        for _ in range(round(seconds / 0.02)):
            self.publish_odometry(**position)
            self.spin_for(0.02)

    def drive(self, condition, what, limit_s=20.0, **position):
        """Publish odometry at 50 Hz until `condition()`."""
        next_s = time.monotonic()
        deadline = next_s + limit_s
        while not condition():
            assert time.monotonic() < deadline, f'not seen within {limit_s} s: {what}'
            if time.monotonic() >= next_s:
                next_s += 0.02
                self.publish_odometry(**position)
            self.executor.spin_once(timeout_sec=0.005)

    def call(self, service_type, name, request):
        """Call a service and return its response."""
        client = self.node.create_client(service_type, name)
        self.spin_until(client.service_is_ready, f'service {name}')
        future = client.call_async(request)
        self.spin_until(future.done, f'response of {name}')
        self.node.destroy_client(client)
        return future.result()

    def change_state(self, transition):
        """Make a lifecycle transition of /policy_node; return whether it succeeded."""
        request = ChangeState.Request()
        request.transition.id = transition
        return self.call(ChangeState, '/policy_node/change_state', request).success


def stamp_ns(message):
    """Return the stamp of a message in ns."""
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def velocity(command):
    """Return what a TwistStamped commands, (2,) in m/s."""
    return np.array([command.twist.linear.x, command.twist.linear.y])


@contextmanager
def robot():
    """Give a Robot and close it."""
    made = Robot()
    try:
        yield made
    finally:
        made.close()


@contextmanager
def running(module, parameters, log):
    """Give a Process, and end it where the test did not."""
    process = Process(module, parameters, log)
    try:
        yield process
    finally:
        process.end()
