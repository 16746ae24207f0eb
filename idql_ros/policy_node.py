"""Lifecycle node that runs a policy file: subscribe -> observe -> decide -> guard -> publish.

All state lives in the executor's thread; one worker thread runs the inference and hands its result
back through a guard condition.
"""

from __future__ import annotations

from collections.abc import Callable
import concurrent.futures
import dataclasses
import signal
import socket
import sys
import threading
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from idql_ros import message as messages
from idql_ros.guard import Guard
from idql_ros.observer import Observer
from idql_ros.policy import Decision, default_path, MAX_CANDIDATES, Policy, PolicyError
from idql_ros.spec import Spec, Stream
import numpy as np
from rcl_interfaces.msg import IntegerRange, ParameterDescriptor, SetParametersResult
import rclpy
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.time import Time
from std_msgs.msg import Float64MultiArray

# Parameters that a configured node no longer takes.
_CONFIGURED = ('model', 'seed', 'candidates', 'threads')
_LOG_PERIOD_S = 5.0
_DIAGNOSTICS_PERIOD_S = 1.0
_WATCH_PERIOD_S = 0.05
_LAST_WORD_S = 0.5


def qos_profile(stream: Stream) -> QoSProfile:
    """Return the QoS that the spec states for a stream."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=stream.depth,
        reliability=ReliabilityPolicy.RELIABLE if stream.reliability == 'reliable'
        else ReliabilityPolicy.BEST_EFFORT)


@dataclasses.dataclass
class _Job:
    """An inference under way."""

    tick_ns: int
    future: concurrent.futures.Future[Decision]


class PolicyNode(LifecycleNode):
    """Runs one policy file.

    Unconfigured it has no policy; inactive it has opened one and is silent; active it observes and
    decides, and sends what it decides where the parameter `enable_commands` is true.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Declare the parameters; keyword arguments go to rclpy's node."""
        super().__init__('policy_node', **kwargs)
        self._declare_parameters()
        self._policy: Policy | None = None
        self._running = False
        self._worker = concurrent.futures.ThreadPoolExecutor(1, 'inference')
        self._inference_done = self.create_guard_condition(self._finish)
        self._job: _Job | None = None
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.add_on_set_parameters_callback(self._check_parameters)
        self._enabled = self.get_parameter('enable_commands').value

    def _declare_parameters(self) -> None:
        def declare(name: str, value: Any, description: str, low: int = 0, high: int = 0) -> None:
            limits = [IntegerRange(from_value=low, to_value=high, step=0)] if high else []
            self.declare_parameter(name, value, ParameterDescriptor(
                description=description, integer_range=limits))

        declare('model', '', 'Policy file (.onnx); empty: the policy installed with the package. '
                'Read when the node is configured.')
        declare('enable_commands', False, 'Whether commands are sent. False: nothing is sent on '
                'the action topics, the would-be command goes to ~/command_preview.')
        declare('autostart', False, 'Whether the node configures and activates itself on start.')
        declare('seed', 0, 'Seed of the diffusion noise. Read when the node is configured.',
                0, 2**63 - 1)
        declare('candidates', 0, 'Actions drawn for each decision (N); 0: as many as the policy '
                'file says. Read when the node is configured.', 0, MAX_CANDIDATES)
        declare('threads', 1, 'Threads for one inference. Read when the node is configured.',
                1, 64)

    def _check_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        for parameter in parameters:
            if self._policy is not None and parameter.name in _CONFIGURED:
                return SetParametersResult(successful=False, reason=(
                    f'{parameter.name} is read when the node is configured: expected an '
                    'unconfigured node (ros2 lifecycle set ... cleanup), found a configured one'))
        for parameter in parameters:
            if parameter.name == 'enable_commands':
                self._enable(parameter.value)
        return SetParametersResult(successful=True)

    def _enable(self, enabled: bool) -> None:
        if self._running and self._enabled and not enabled:
            self._send_stop(self._now_ns(), ['enable_commands was set to false'])
        self._enabled = enabled
        if self._running:
            self._log_enabled()

    def _log_enabled(self) -> None:
        if self._enabled:
            self.get_logger().info('commands are sent (enable_commands is true)')
        else:
            self.get_logger().warning(
                'dry run: no command is sent, see ~/command_preview; to send them: ros2 param set '
                f'{self.get_fully_qualified_name()} enable_commands true')

    def _LifecycleNodeMixin__on_change_state(self, request: Any, response: Any) -> Any:  # noqa: N802
        # The service as rclpy has it lets an operator's mistake (a transition that the present
        # state does not have) end the node with an exception.
        try:
            return super()._LifecycleNodeMixin__on_change_state(request, response)
        except rclpy_implementation.RCLError as error:
            self.get_logger().error(f'transition {request.transition.id} refused: {error}')
            response.success = False
            return response

    # Lifecycle. rclpy swallows exceptions of these callbacks on released distributions: each is
    # caught, logged, and answered with FAILURE.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Open and check the policy file, warm it up, create the publishers."""
        return self._transition(self._configure, state, super().on_configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe and begin to decide."""
        return self._transition(self._activate, state, super().on_activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Send the stop and fall silent."""
        return self._transition(self._deactivate, state, super().on_deactivate, first=True)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Forget the policy."""
        return self._transition(self._cleanup, state, super().on_cleanup, first=True)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Send the stop where the node was active, and forget the policy."""
        def finish() -> None:
            self._deactivate()
            self._cleanup()
        return self._transition(finish, state, super().on_shutdown, first=True)

    def _transition(
            self, own: Callable[[], None], state: LifecycleState,
            entities: Callable[[LifecycleState], TransitionCallbackReturn],
            first: bool = False) -> TransitionCallbackReturn:
        # Publishers speak only between their activation and deactivation (`entities`), so what
        # sends the stop goes first.
        try:
            if first:
                own()
                return entities(state)
            result = entities(state)
            own()
            return result
        except (PolicyError, messages.MessageError) as error:
            self.get_logger().error(str(error))
        except Exception as error:
            self.get_logger().error(f'{type(error).__name__}: {error}')
        return TransitionCallbackReturn.FAILURE

    def _configure(self) -> None:
        path = self.get_parameter('model').value or default_path()
        policy = Policy(path, self.get_parameter('threads').value)
        spec = policy.spec
        for stream in (*spec.observations, *spec.actions):
            messages.check_fields(stream, messages.ros_class(stream.type)())
        self._candidates = self.get_parameter('candidates').value or policy.candidates
        self._seed = self.get_parameter('seed').value
        # The first inference allocates; it is made here, not on the robot's first tick.
        policy.decide(np.zeros(spec.observation_size, np.float32), 0, 0, self._candidates)
        self._command_publishers = [
            self.create_lifecycle_publisher(
                messages.ros_class(command.type), command.topic, qos_profile(command))
            for command in spec.actions]
        self._preview_publisher = self.create_lifecycle_publisher(
            Float64MultiArray, '~/command_preview', 1)
        self._diagnostics_publisher = self.create_lifecycle_publisher(
            DiagnosticArray, '/diagnostics', 1)
        self._guard = Guard(spec)
        self._observer = Observer(spec)
        self._policy = policy
        self.get_logger().info(
            f'policy {spec.name} from {path}: {spec.observation_size} observations, '
            f'{spec.action_size} actions, {spec.rate} Hz, N = {self._candidates}, sha256 '
            f'{policy.digest[:12]}')

    def _activate(self) -> None:
        spec = self._policy.spec
        self._observer = Observer(spec)
        self._guard.reset()
        self._stop_reasons: list[str] = []
        self._limited: list[str] = []
        self._counts = dict.fromkeys(('decided', 'sent', 'stops', 'missed', 'dropped'), 0)
        self._taken_ns: int | None = None
        self._grace_until_ns = self._now_ns() + self._shortest_age_ns(spec)
        self._sampled_since_jump = True
        self._running = True
        self._subscriptions_of_spec = [
            self.create_subscription(
                messages.ros_class(stream.type), topic,
                lambda m, topic=topic: self._receive(topic, m), qos_profile(stream))
            for topic, stream in {s.topic: s for s in spec.observations}.items()]
        self._timers_of_spec = [
            self.create_timer(1.0 / spec.rate, self._on_timer),
            self.create_timer(_WATCH_PERIOD_S, self._take_arrival, clock=self._steady),
            self.create_timer(
                _DIAGNOSTICS_PERIOD_S, self._publish_diagnostics, clock=self._steady)]
        # A leap of simulated time makes samples look old that were new a moment ago.
        self._jump_handle = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=Duration(nanoseconds=self._shortest_age_ns(spec)),
                          min_backward=Duration(nanoseconds=-1)),
            post_callback=self._on_jump)
        self._log_enabled()

    def _deactivate(self) -> None:
        if not self._running:
            return
        self._send_stop(self._now_ns(), ['the node is being deactivated'])
        self._publish_diagnostics()
        self._running = False
        self._job = None
        self._jump_handle.unregister()
        for timer in self._timers_of_spec:
            self.destroy_timer(timer)
        for subscription in self._subscriptions_of_spec:
            self.destroy_subscription(subscription)

    def _cleanup(self) -> None:
        if self._policy is None:
            return
        for publisher in (
                *self._command_publishers, self._preview_publisher, self._diagnostics_publisher):
            self.destroy_publisher(publisher)
        self._policy = None

    # The walk of a tick.

    def _now_ns(self) -> int:
        return self.get_clock().now().nanoseconds

    @staticmethod
    def _shortest_age_ns(spec: Spec) -> int:
        return int(min(s.max_age for s in spec.observations) * messages.NS)

    def _receive(self, topic: str, message: Any) -> None:
        self._observer.add(topic, message, self._now_ns())
        self._sampled_since_jump = True
        self._take_arrival()

    def _on_jump(self, _: Any) -> None:
        # One grace for each leap that follows on samples: a clock that only leaps earns no more.
        if self._sampled_since_jump:
            self._grace_until_ns = self._now_ns() + self._shortest_age_ns(self._policy.spec)
            self._sampled_since_jump = False

    def _take_arrival(self) -> None:
        """Begin the tick that the last message completed (for specs that tick on arrival)."""
        if self._policy.spec.tick != 'arrival' or self._nobody_listens():
            return
        tick_ns = self._observer.take_tick(self._now_ns())
        if tick_ns is not None:
            self._begin(tick_ns)

    def _nobody_listens(self) -> bool:
        # A tick stays due until its command can reach somebody: a receiver that was just started
        # is matched a moment later, and its first command is not lost. Watched by a steady timer.
        unheard = [command.topic for command, publisher in zip(
            self._policy.spec.actions, self._command_publishers, strict=True)
            if self._enabled and publisher.get_subscription_count() == 0]
        if unheard:
            self.get_logger().warning(
                f'nobody listens on {", ".join(unheard)}: no tick is taken',
                throttle_duration_sec=_LOG_PERIOD_S)
        return bool(unheard)

    def _on_timer(self) -> None:
        """Begin a tick (for specs that tick on a timer), or stop where nothing arrives."""
        spec = self._policy.spec
        now_ns = self._now_ns()
        if spec.tick == 'timer':
            self._begin(now_ns)
            return
        period_ns = int(messages.NS / spec.rate)
        # A tick of this period was answered, if only by the stop.
        taken = self._taken_ns is not None and 0 <= now_ns - self._taken_ns < period_ns
        if self._job is not None or taken or (
                now_ns < self._grace_until_ns <= now_ns + self._shortest_age_ns(spec)):
            return
        observation, reasons = self._observer.observe(now_ns)
        silent_ns = now_ns - max(self._grace_until_ns, self._taken_ns or 0)
        # Fresh signals that complete no tick; told after silence would have been told as such.
        if observation is not None and (
                silent_ns > 2 * period_ns + self._shortest_age_ns(spec)):
            reasons = [f'no tick for {silent_ns / messages.NS:.3f} s: expected every signal at '
                       f'least once a period of {period_ns / messages.NS:.3f} s']
        if reasons:
            self._send_stop(now_ns, reasons)

    def _begin(self, tick_ns: int) -> None:
        if self._job is not None:
            self._counts['missed'] += 1
            self.get_logger().warning(
                'missed a tick: the inference of an earlier one is still running',
                throttle_duration_sec=_LOG_PERIOD_S)
            return
        # Ages count on the node's clock. In simulation /clock may come after the stamps it belongs
        # to.
        self._taken_ns = now_ns = self._now_ns()
        simulated = self.get_clock().ros_time_is_active
        observation, reasons = self._observer.observe(
            max(now_ns, tick_ns) if simulated else now_ns)
        if observation is None:
            self._send_stop(tick_ns, reasons)
            return
        self._guard.measure(observation)
        future = self._worker.submit(
            self._policy.decide, observation, tick_ns, self._seed, self._candidates)
        self._job = _Job(tick_ns, future)
        # Once the node is inactive nobody waits for the result, and the handle may be gone.
        future.add_done_callback(lambda _: self._running and self._inference_done.trigger())

    def _finish(self) -> None:
        """Send what the worker decided."""
        job = self._job
        if job is None or not job.future.done():
            return
        self._job = None
        late_ns = self._now_ns() - job.tick_ns
        if late_ns > self._shortest_age_ns(self._policy.spec):
            self._counts['dropped'] += 1
            self._send_stop(self._now_ns(), [
                f'the decision came {late_ns / messages.NS:.3f} s after its tick, when its '
                'observation was too old'])
            return
        decision = job.future.result()
        self._counts['decided'] += 1
        sent, limited = (self._guard.act(decision.action) if np.isfinite(decision.q)
                         else (None, []))
        if sent is None:
            self._send_stop(job.tick_ns, [
                f'the policy gave what is not finite: action {decision.action.tolist()}, Q '
                f'{decision.q}'])
            return
        if self._stop_reasons:
            self.get_logger().info('a valid observation again: acting')
        self._stop_reasons = []
        self._limited = [f'dimension {x.dimension}: {x.asked:.6g} held to {x.sent:.6g}'
                         for x in limited]
        self._counts['sent'] += self._enabled
        self._publish(self._policy.spec.split_action(sent), job.tick_ns)

    def _send_stop(self, stamp_ns: int, reasons: list[str]) -> None:
        """Send the spec's stop and say why."""
        self._counts['stops'] += 1
        if [r.partition(',')[0] for r in reasons] != [
                r.partition(',')[0] for r in self._stop_reasons]:
            self.get_logger().warning(f'stopped: {"; ".join(reasons)}')
        self._stop_reasons = reasons
        parts = self._guard.stop()
        for command, part in zip(self._policy.spec.actions, parts, strict=True):
            if part is None:
                self.get_logger().warning(
                    f'no stop is sent on {command.topic}: it holds a position, and none was '
                    'measured or sent since the activation', throttle_duration_sec=_LOG_PERIOD_S)
        self._publish(parts, stamp_ns)

    def _publish(self, parts: list[np.ndarray | None], stamp_ns: int) -> None:
        if not rclpy.ok(context=self.context):
            return
        if not self._enabled:
            if all(part is not None for part in parts):
                self._preview_publisher.publish(Float64MultiArray(
                    data=np.concatenate(parts).astype(float).tolist()))
            return
        for command, publisher, part in zip(
                self._policy.spec.actions, self._command_publishers, parts, strict=True):
            if part is not None:
                publisher.publish(messages.write(
                    command, part, messages.ros_class(command.type)(), stamp_ns))

    def _publish_diagnostics(self) -> None:
        status = DiagnosticStatus(
            name=f'{self.get_fully_qualified_name()}: policy', hardware_id=self._policy.spec.name)
        if self._stop_reasons:
            status.level = DiagnosticStatus.ERROR
            status.message = f'stopped: {"; ".join(self._stop_reasons)}'
        elif self._taken_ns is None:
            status.level, status.message = DiagnosticStatus.WARN, 'waiting for the first tick'
        elif self._limited:
            status.level, status.message = DiagnosticStatus.WARN, '; '.join(self._limited)
        else:
            status.level, status.message = DiagnosticStatus.OK, (
                'acting' if self._enabled else 'acting, dry run: enable_commands is false')
        values = {'policy': self._policy.path, 'sha256': self._policy.digest,
                  'candidates': self._candidates, 'enable_commands': self._enabled, **self._counts}
        status.values = [KeyValue(key=k, value=str(v)) for k, v in values.items()]
        array = DiagnosticArray(status=[status])
        array.header.stamp = Time(
            nanoseconds=self._now_ns(), clock_type=self.get_clock().clock_type).to_msg()
        self._diagnostics_publisher.publish(array)

    def stop_and_end(self) -> None:
        """Send the stop where the node is active, and end the worker; for the process' end."""
        self._worker.shutdown(wait=False, cancel_futures=True)
        if self._running:
            self._deactivate()
            # What was just published leaves with the process unless it is waited for.
            for publisher in self._command_publishers:
                publisher.wait_for_all_acked(Duration(seconds=_LAST_WORD_S))


def main() -> None:
    """Run the node until SIGINT or SIGTERM; exit with 1 when something went wrong."""
    # rclpy's own handlers shut publishing down before the stop could be sent. These do nothing,
    # and a second Ctrl-C does nothing more; the byte that the interpreter writes wakes the
    # executor.
    signal_reader, signal_writer = socket.socketpair()
    signal_writer.setblocking(False)
    signal.set_wakeup_fd(signal_writer.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = PolicyNode()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    ending = threading.Event()
    wake = node.create_guard_condition(lambda: None)

    def wait_for_signal() -> None:
        if signal_reader.recv(1):  # else the process is ending by itself
            ending.set()
            wake.trigger()

    threading.Thread(target=wait_for_signal, daemon=True).start()
    failed = False
    try:
        if node.get_parameter('autostart').value:
            failed = (node.trigger_configure() != TransitionCallbackReturn.SUCCESS
                      or node.trigger_activate() != TransitionCallbackReturn.SUCCESS)
        while not failed and not ending.is_set():
            executor.spin_once()
    except ExternalShutdownException:
        pass
    except Exception as error:
        node.get_logger().fatal(f'{type(error).__name__}: {error}; stopping')
        failed = True
    finally:
        node.stop_and_end()
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
