"""Any Gymnasium environment on topics: the spec read the other way round.

Lock-step: the simulation publishes the observation and /clock of a tick and waits for one command
on every action topic, then makes the steps of that tick; stamped commands must carry the tick's
stamp. Otherwise it runs at `real_time_factor` and holds the last command, and stops by itself when
commands stay away, as a real robot's driver does.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from typing import Any, TextIO

from idql_ros import message as messages
from idql_ros import vetting
from idql_ros.camera import CameraError
from idql_ros.environments import make, ROBOTS, SimulationError
from idql_ros.film import FilmError
from idql_ros.policy import default_path, PolicyError
from idql_ros.simulated_robot import SimulatedRobot
from idql_ros.spec import load, Spec, SpecError
from idql_ros.topics import labelled, qos_profile
from idql_ros.view import View
import numpy as np
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
import rclpy
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import Trigger

_WAIT_LOG_PERIOD_S = 2.0
_RESULT_LABELS = ('episode', 'return', 'success', 'length', 'command_timeouts')


class SimNode(Node):
    """Simulates one robot.

    Publishes the spec's observation topics, /clock and `~/episode` (Float64MultiArray, labelled),
    and what its View shows; subscribes to its action topics; service `~/reset` ends the episode
    and starts the next.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Declare the parameters, make the environment, create publishers and subscriptions.

        Args:
            **kwargs: for rclpy's node.

        Raises:
            SpecError, PolicyError: the spec cannot be used.
            SimulationError, MessageError: the environment cannot be used with it.
            CameraError, FilmError, ParameterException, OSError: it cannot be shown as asked.
        """
        super().__init__('sim_node', **kwargs)
        self._declare_parameters()
        spec = _read_spec(self._value('spec'))
        environment = self._value('environment') or ROBOTS.get(spec.name)
        if environment is None:
            raise SimulationError(
                f'spec {spec.name}: expected the parameter environment (module:factory or a '
                'Gymnasium id), found none; robots with an environment of their own: '
                + ', '.join(ROBOTS))
        self._robot = SimulatedRobot(
            make(environment), spec, self._value('seed'), lambda t: messages.ros_class(t)())
        self._spec = spec
        # Topics whose messages carry the tick they belong to.
        self._stamped = {s.topic for s in spec.observations
                         if hasattr(messages.ros_class(s.type)(), 'header')}
        if self._value('lock_step') and (spec.tick != 'arrival' or not self._stamped):
            raise SimulationError(
                f'spec {spec.name}: lock-step expects tick: arrival and an observation whose '
                'message has a header, which carries the time of the tick; found tick: '
                f'{spec.tick}, headers on {sorted(self._stamped) or "no topic"}')
        if not self._value('lock_step') and spec.tick == 'timer' and any(
                d.stop == 'hold_last_sent' for d in spec.dimensions):
            raise SimulationError(
                f'spec {spec.name}: expected tick: arrival, or a stop that is known before the '
                'first command; found tick: timer with hold_last_sent: simulation and policy '
                'would wait for each other')
        self._commands: dict[str, Any] = {}
        # When a command came last on each topic, in simulated seconds.
        self._received_s: dict[str, float] = {}
        self._observation_publishers = {
            s.topic: self.create_publisher(messages.ros_class(s.type), s.topic, qos_profile(s))
            for s in spec.observations}
        self._clock_publisher = self.create_publisher(Clock, '/clock', 10)
        self._episode_publisher = self.create_publisher(Float64MultiArray, '~/episode', 10)
        self._command_subscriptions = {
            c.topic: self.create_subscription(
                messages.ros_class(c.type), c.topic,
                lambda m, topic=c.topic: self._receive(topic, m), qos_profile(c))
            for c in spec.actions}
        self.create_service(Trigger, '~/reset', self._on_reset)
        self._reset_asked = False
        self._timeouts = 0
        # From the publication of a tick's observation to its command; in lock-step.
        self._latencies_ms: list[float] = []
        self._view = View(self, self._robot, {
            name: self._value(name) for name in (
                'image_rate', 'image_width', 'image_height', 'film', 'film_speed',
                'candidates_topic', 'window')})

    def _declare_parameters(self) -> None:
        def declare(name: str, value: Any, description: str, high: float | None = None,
                    low: float = 0, step: int = 0) -> None:
            descriptor = ParameterDescriptor(description=description, read_only=True)
            if isinstance(high, int):
                descriptor.integer_range = [
                    IntegerRange(from_value=low, to_value=high, step=step)]
            elif high is not None:
                descriptor.floating_point_range = [
                    FloatingPointRange(from_value=float(low), to_value=high, step=0.0)]
            self.declare_parameter(name, value, descriptor)

        declare('spec', '', 'The robot: a spec (.yaml) or a policy file (.onnx); empty: the '
                'policy installed with the package.')
        declare('environment', '', 'module:factory or a Gymnasium id; empty: that of the robot.')
        declare('seed', 0, 'Start of the first episode; episode k starts with seed + k.',
                2**31 - 1)
        declare('episodes', 0, 'Ends after so many episodes; 0: never.', 2**31 - 1)
        declare('lock_step', False, 'Whether each tick waits for its command.')
        declare('real_time_factor', 1.0, 'Simulated seconds in a second; 0: as fast as possible. '
                'Lock-step waits for commands besides.', 1000.0)
        declare('command_timeout', 1.0, 'Seconds without a command after which the robot stops by '
                'itself (simulated seconds; in lock-step: seconds of waiting).', 3600.0)
        declare('results_file', '', 'Where one JSON object a line is written for each episode.')
        declare('image_rate', 0.0, 'Pictures in a simulated second, on ~/image and '
                '~/image/compressed, at most one a step; 0: none.', 1000.0)
        declare('image_width', 320, 'Of a picture, in pixels.', 4096, low=16, step=2)
        declare('image_height', 240, 'Of a picture, in pixels.', 4096, low=16, step=2)
        declare('film', '', 'A film of the first episode (.mp4 or .gif), with image_rate, or 10, '
                'pictures in a simulated second; empty: none.')
        declare('film_speed', 1.0, 'Simulated seconds in a second of the film.', 100.0, low=0.01)
        declare('candidates_topic', 'policy_node/candidates', "Of the policy's candidates, which "
                'are drawn into pictures.')
        declare('window', False, "Whether MuJoCo's own window is opened; needs a display.")

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _receive(self, topic: str, message: Any) -> None:
        self._commands[topic] = message
        self._received_s[topic] = self._simulated_s()

    def _simulated_s(self) -> float:
        return self._robot.time_ns / messages.NS

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._reset_asked = True
        response.success, response.message = True, 'the next episode starts with the next step'
        return response

    def run(self, executor: SingleThreadedExecutor) -> None:
        """Simulate until the episodes are done or the context is shut down."""
        episodes = self._value('episodes')
        path = self._value('results_file')
        with contextlib.ExitStack() as stack:
            stack.callback(self._view.close)
            results = stack.enter_context(open(path, 'w', encoding='utf-8')) if path else None
            if self._value('lock_step'):
                self._wait_for_policy(executor)
            episode = 0
            while rclpy.ok(context=self.context) and (episodes == 0 or episode < episodes):
                self._run_episode(episode, executor)
                if rclpy.ok(context=self.context):
                    self._report(episode, results)
                    self._view.end()  # a film that fails does not cost the result
                episode += 1

    def _wait_for_policy(self, executor: SingleThreadedExecutor) -> None:
        """Wait until every topic has its other side: the policy's node is active."""
        waited_s = time.monotonic()
        while rclpy.ok(context=self.context):
            missing = [t for t, p in self._observation_publishers.items()
                       if p.get_subscription_count() == 0]
            missing += [t for t in self._command_subscriptions if self.count_publishers(t) == 0]
            if not missing:
                return
            if time.monotonic() - waited_s > _WAIT_LOG_PERIOD_S:
                waited_s = time.monotonic()
                self.get_logger().info(
                    f'waiting for an active policy node: nobody else uses {", ".join(missing)}')
            executor.spin_once(timeout_sec=0.02)

    def _run_episode(self, episode: int, executor: SingleThreadedExecutor) -> None:
        robot = self._robot
        robot.reset(episode)
        self._view.begin()
        self._commands.clear()
        self._received_s.clear()
        self._reset_asked = False
        self._timeouts = 0
        self._latencies_ms = []
        lock_step = self._value('lock_step')
        action: np.ndarray | None = None
        due_s = time.monotonic()
        while not robot.over and not self._reset_asked and rclpy.ok(context=self.context):
            if lock_step and robot.at_tick:
                self._commands.clear()
            self._publish()
            if lock_step and robot.at_tick:
                published_s = time.perf_counter()
                action = self._wait_for_commands(executor)
                if self._reset_asked:
                    break
                self._latencies_ms.append(1e3 * (time.perf_counter() - published_s))
                self._view.await_candidates(executor)
            due_s = self._wait_until_due(due_s, executor)
            if not lock_step:
                action = self._latest_action()
            if action is None:
                # A position robot that was never commanded does not move, and time waits with it.
                self.get_logger().info('waiting for a first command',
                                       throttle_duration_sec=_WAIT_LOG_PERIOD_S)
                continue
            self._view.show()
            robot.advance(action)

    def _publish(self) -> None:
        stamp = Time(nanoseconds=self._robot.time_ns).to_msg()
        self._clock_publisher.publish(Clock(clock=stamp))
        for topic, message in self._robot.observe().items():
            # Without a header a message says not which tick it belongs to, only that it is new.
            if topic in self._stamped or self._robot.at_tick or not self._value('lock_step'):
                self._observation_publishers[topic].publish(message)

    def _wait_for_commands(self, executor: SingleThreadedExecutor) -> np.ndarray | None:
        """Return the action that answers the tick, or the robot's own stop after the time-out."""
        tick_ns = self._robot.time_ns
        deadline_s = time.monotonic() + self._value('command_timeout')
        while rclpy.ok(context=self.context) and not self._reset_asked:
            answered = [topic for topic, message in self._commands.items()
                        if messages.stamp_ns(message, tick_ns) == tick_ns]
            if len(answered) == len(self._spec.actions):
                action = self._read_action()
                if action is not None:
                    return action
            remaining_s = deadline_s - time.monotonic()
            if remaining_s <= 0:
                missing = sorted(set(self._command_subscriptions) - set(answered))
                self._timeouts += 1
                self.get_logger().error(
                    f'time-out: no command on {", ".join(missing)} with the stamp of the tick '
                    f'{tick_ns} ns within {self._value("command_timeout")} s; the robot stops')
                return self._robot.stop_action()
            executor.spin_once(timeout_sec=remaining_s)
        return None

    def _wait_until_due(self, due_s: float, executor: SingleThreadedExecutor) -> float:
        """Serve callbacks until the next step is due; return when the one after it is."""
        factor = self._value('real_time_factor')
        if factor == 0.0:
            executor.spin_once(timeout_sec=0.0)
            return due_s
        due_s += self._robot.step_seconds / factor
        while rclpy.ok(context=self.context):
            remaining_s = due_s - time.monotonic()
            if remaining_s <= 0:
                break
            executor.spin_once(timeout_sec=remaining_s)
        # A simulation that falls behind goes on from now; it does not hurry to catch up.
        return max(due_s, time.monotonic() - self._robot.step_seconds / factor)

    def _latest_action(self) -> np.ndarray | None:
        if len(self._commands) < len(self._spec.actions):
            return self._robot.stop_action()
        age_s = self._simulated_s() - min(self._received_s.values())
        if age_s > self._value('command_timeout'):
            self.get_logger().warning(
                f'no command for {age_s:.2f} simulated seconds: the robot stops by itself',
                throttle_duration_sec=_WAIT_LOG_PERIOD_S)
            return self._robot.stop_action()
        action = self._read_action()
        return self._robot.stop_action() if action is None else action

    def _read_action(self) -> np.ndarray | None:
        try:
            action = self._robot.read_action(self._commands)
        except messages.MessageError as error:
            self.get_logger().error(f'{error}; command ignored')
            self._commands.clear()
            return None
        if not np.all(np.isfinite(action)):
            self.get_logger().error(f'command not finite: {action.tolist()}; ignored')
            self._commands.clear()
            return None
        return action

    def _report(self, episode: int, results: TextIO | None) -> None:
        robot = self._robot
        values = (episode, robot.total_reward, robot.success, robot.length, self._timeouts)
        self.get_logger().info(', '.join(
            f'{label} {value}' for label, value in zip(_RESULT_LABELS, values, strict=True)))
        message = labelled([(label, 1) for label in _RESULT_LABELS])
        message.data = [float(value) for value in values]
        self._episode_publisher.publish(message)
        if results is not None:
            results.write(json.dumps({
                **dict(zip(_RESULT_LABELS, values, strict=True)),
                'latency_ms': self._latencies_ms}) + '\n')
            results.flush()


def _read_spec(path: str) -> Spec:
    if path.endswith('.onnx') or not path:
        return vetting.read_spec(path or default_path())
    return load(path)


def main() -> None:
    """Run the simulation until its episodes are done, SIGINT or SIGTERM."""
    rclpy.init()
    executor = SingleThreadedExecutor()
    failed = False
    try:
        node = SimNode()
        executor.add_node(node)
        node.run(executor)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except rclpy_implementation.RCLError:
        # A signal shut ROS down between two lines that use it.
        if rclpy.ok():
            raise
    except (SpecError, PolicyError, SimulationError, CameraError, FilmError,
            messages.MessageError, OSError, ParameterException) as error:
        rclpy.logging.get_logger('sim_node').fatal(str(error))
        failed = True
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # under a launch Ctrl-C comes twice
        executor.shutdown()
        rclpy.try_shutdown()
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
