"""Starts nodes as processes of their own and talks to them over DDS."""

from contextlib import contextmanager
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus  # noqa: E402
from geometry_msgs.msg import TwistStamped  # noqa: E402
from lifecycle_msgs.srv import ChangeState  # noqa: E402
from nav_msgs.msg import Odometry  # noqa: E402
from rcl_interfaces.msg import Parameter, ParameterType  # noqa: E402
from rcl_interfaces.srv import SetParameters  # noqa: E402
import rclpy  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.qos import QoSProfile  # noqa: E402
from std_srvs.srv import SetBool, Trigger  # noqa: E402

NODE = 'idql_ros.policy_node'
# Of the policies that the tests of policy_node run, Hz.
RATE = 20.0
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

    def __init__(self, module, parameters, log, fault='', remap=()):
        """Start it with parameters (name -> value); what it prints goes to the file `log`.

        With a fault it is policy_node as faulty_node.py has it. `remap`: (from, to) of topics.
        """
        program = ['-m', module] if not fault else [SOURCE / 'test' / 'faulty_node.py']
        arguments = [sys.executable, *program, '--ros-args']
        for name, value in parameters.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            arguments += ['-p', f'{name}:={text}']
        for name, other in remap:
            arguments += ['-r', f'{name}:={other}']
        self._log = log
        path = os.pathsep.join(map(str, filter(None, (
            SOURCE, SOURCE / 'test', os.environ.get('PYTHONPATH')))))
        with log.open('w') if isinstance(log, Path) else os.fdopen(os.dup(log.fileno())) as file:
            self.child = subprocess.Popen(
                arguments, cwd=SOURCE, stdout=file, stderr=subprocess.STDOUT,
                env=os.environ | {'IDQL_ROS_FAULT': fault, 'PYTHONPATH': path})

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
        self._clients = {}
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

    def client(self, service_type, name):
        """Return a client of a service that is there."""
        if name not in self._clients:
            client = self._clients[name] = self.node.create_client(service_type, name)
            self.spin_until(client.service_is_ready, f'service {name}')
            # Nobody tells when the service knows the client too; before, its response gets lost.
            self.spin_for(0.1)
        return self._clients[name]

    def call(self, service_type, name, request):
        """Call a service and return its response."""
        future = self.client(service_type, name).call_async(request)
        self.spin_until(future.done, f'response of {name}')
        return future.result()

    def change_state(self, transition):
        """Make a lifecycle transition of /policy_node; return whether it succeeded."""
        request = ChangeState.Request()
        request.transition.id = transition
        return self.call(ChangeState, '/policy_node/change_state', request).success

    def set_parameter(self, name, value):
        """Set a parameter of /policy_node, a bool or a text; return whether it took it."""
        request = SetParameters.Request(parameters=[Parameter(name=name)])
        found = request.parameters[0].value
        if isinstance(value, bool):
            found.type, found.bool_value = ParameterType.PARAMETER_BOOL, value
        else:
            found.type, found.string_value = ParameterType.PARAMETER_STRING, str(value)
        return self.call(
            SetParameters, '/policy_node/set_parameters', request).results[0].successful

    def trigger(self, name):
        """Call a service of /policy_node and return its answer."""
        return self.call(Trigger, f'/policy_node/{name}', Trigger.Request())

    def estop(self, engaged):
        """Engage or release the emergency stop of /policy_node and return the answer."""
        return self.call(SetBool, '/policy_node/estop', SetBool.Request(data=engaged))

    def reload(self):
        """Call ~/reload while odometry goes on; return the answer."""
        future = self.client(Trigger, '/policy_node/reload').call_async(Trigger.Request())
        self.drive(future.done, 'the answer')
        return future.result()

    def acts(self):
        """Wait for an action that follows on what was heard up to now."""
        self.commands.clear()
        self.drive(lambda: any(not is_stop(c) for c in self.commands), 'a command')

    def stays_stopped(self):
        """Check that for a while nothing but the stop is sent."""
        self.commands.clear()
        self.publish_for(0.5)
        assert self.commands and all(is_stop(c) for c in self.commands)

    def expect_reason(self, expected, **odometry):
        """Publish odometry until /diagnostics is an error that contains `expected`."""
        received = self.listen(DiagnosticArray, '/diagnostics')

        def found():
            return any(expected in status.message and status.level == DiagnosticStatus.ERROR
                       for array in received for status in array.status)
        if odometry:
            self.drive(found, f'diagnostics with {expected!r}', **odometry)
        else:
            self.spin_until(found, f'diagnostics with {expected!r}')


def stamp_ns(message):
    """Return the stamp of a message in ns."""
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def velocity(command):
    """Return what a TwistStamped commands, (2,) in m/s."""
    return np.array([command.twist.linear.x, command.twist.linear.y])


def is_stop(command):
    """Return whether a TwistStamped commands to stand."""
    return not velocity(command).any()


@contextmanager
def robot():
    """Give a Robot and close it."""
    made = Robot()
    try:
        yield made
    finally:
        made.close()


@contextmanager
def running(module, parameters, log, fault='', remap=()):
    """Give a Process, and end it where the test did not."""
    process = Process(module, parameters, log, fault, remap)
    try:
        yield process
    finally:
        process.end()
