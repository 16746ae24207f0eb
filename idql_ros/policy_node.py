"""Lifecycle node that runs a policy file: subscribe -> observe -> decide -> guard -> publish.

All state lives in the executor's thread; one worker thread runs the inference and hands its result
back through a guard condition.
"""

from __future__ import annotations

from collections.abc import Callable
import concurrent.futures
import dataclasses
import functools
import queue
import re
import signal
import socket
import sys
import threading
from typing import Any, get_args

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from idql_ros import message as messages
from idql_ros.guard import Guard
from idql_ros.observer import Observer
from idql_ros.policy import (
    check_extraction,
    Decision,
    default_path,
    Extraction,
    MAX_CANDIDATES,
    MAX_SAMPLING_TEMPERATURE,
    MAX_SOFTMAX_TEMPERATURE,
    Policy,
    PolicyError,
)
from idql_ros.spec import Spec, Stream
import numpy as np
from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
import rclpy
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.time import Time
from std_msgs.msg import Float64MultiArray

# Parameters that a configured node no longer takes.
_CONFIGURED = ('model', 'seed', 'candidates', 'extraction', 'softmax_temperature',
               'sampling_temperature', 'threads', 'use_sim_time')
_LOG_PERIOD_S = 5.0
_DIAGNOSTICS_PERIOD_S = 1.0
_WATCH_PERIOD_S = 0.05
# Simulated time without any message for so long in real time stands still.
_STALL_S = 2.0
# In simulated time a reason to stop counts when it has held for so long in real time.
_DRAIN_S = 0.04
_LAST_WORD_S = 0.5


def qos_profile(stream: Stream) -> QoSProfile:
    """Return the QoS that the spec states for a stream."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=stream.depth,
        reliability=ReliabilityPolicy.RELIABLE if stream.reliability == 'reliable'
        else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if stream.durability == 'transient_local'
        else DurabilityPolicy.VOLATILE)


@dataclasses.dataclass
class _Job:
    """An inference under way."""

    tick_ns: int
    future: concurrent.futures.Future[Decision]
    # Its observation is too old meanwhile, and the stop was sent.
    expired: bool = False


class _Worker:
    """One thread for the inference; a hung inference does not keep the process from ending."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._run, name='inference', daemon=True).start()

    def submit(self, call: Callable[..., Decision], *arguments: Any) -> concurrent.futures.Future:
        future: concurrent.futures.Future[Decision] = concurrent.futures.Future()
        self._tasks.put((future, call, arguments))
        return future

    def _run(self) -> None:
        while True:
            future, call, arguments = self._tasks.get()
            try:
                future.set_result(call(*arguments))
            except Exception as error:  # raised again where the result is asked for
                future.set_exception(error)


def _without_numbers(reasons: list[str]) -> list[str]:
    return [re.sub(r'[-+.\d]+(e[-+]?\d+)?|nan|inf', '', reason) for reason in reasons]


class PolicyNode(LifecycleNode):
    """Runs one policy file.

    Unconfigured it has no policy; inactive it has opened one and is silent; active it observes and
    decides, and sends what it decides where the parameter `enable_commands` is true.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Declare the parameters; keyword arguments go to rclpy's node."""
        super().__init__('policy_node', **kwargs)
        self._policy: Policy | None = None
        self._running = self._enabled = False
        # Before the declarations: what the command line or a file says is checked as well.
        self.add_on_set_parameters_callback(self._check_parameters)
        self._declare_parameters()
        self._worker = _Worker()
        self._inference_done = self.create_guard_condition(self._finish)
        self._job: _Job | None = None
        self._subscribed: list[Any] = []
        self._ticking: list[Any] = []
        self._jump_handle: Any = None
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)

    def _declare_parameters(self) -> None:
        def declare(name: str, value: Any, description: str, low: float = 0,
                    high: float = 0) -> None:
            descriptor = ParameterDescriptor(description=description)
            if high and isinstance(value, float):
                descriptor.floating_point_range = [
                    FloatingPointRange(from_value=float(low), to_value=float(high), step=0.0)]
            elif high:
                descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=0)]
            self.declare_parameter(name, value, descriptor)

        declare('model', '', 'Policy file (.onnx); empty: the policy installed with the package. '
                'Read when the node is configured.')
        declare('enable_commands', False, 'Whether commands are sent. False: nothing is sent on '
                'the action topics, the would-be command goes to ~/command_preview.')
        declare('autostart', False, 'Whether the node configures and activates itself on start.')
        declare('seed', 0, 'Seed of the diffusion noise. Read when the node is configured.',
                0, 2**63 - 1)
        declare('candidates', 0, 'Actions drawn for each decision (N); 0: as many as the policy '
                'file says. Read when the node is configured.', 0, MAX_CANDIDATES)
        declare('extraction', 'greedy', 'How one of the drawn actions is chosen: '
                f'{", ".join(get_args(Extraction))}. Read when the node is configured.')
        declare('softmax_temperature', 1.0, 'Of the extraction softmax, in units of 1 / Q; the '
                'higher, the greedier. Read when the node is configured.',
                0, MAX_SOFTMAX_TEMPERATURE)
        declare('sampling_temperature', 1.0, 'Scales the noise that the denoising steps add; 0: '
                'none. Read when the node is configured.', 0, MAX_SAMPLING_TEMPERATURE)
        declare('threads', 1, 'Threads for one inference. Read when the node is configured.',
                1, 64)

    def _check_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        for parameter in parameters:
            if self._policy is not None and parameter.name in _CONFIGURED:
                return SetParametersResult(successful=False, reason=(
                    f'{parameter.name} is read when the node is configured: expected an '
                    'unconfigured node (ros2 lifecycle set ... cleanup), found a configured one'))
            if parameter.name == 'extraction':
                try:
                    check_extraction(parameter.value, 1.0, 1.0)
                except PolicyError as error:
                    return SetParametersResult(successful=False, reason=str(error))
        for parameter in parameters:
            if parameter.name == 'enable_commands':
                self._enable(parameter.value)
        return SetParametersResult(successful=True)

    def _enable(self, enabled: bool) -> None:
        if self._running and self._enabled and not enabled:
            self._send_stop(self._now_ns(), ['enable_commands was set to false'])
        if self._running and enabled and not self._enabled:
            self._guard.reset()  # what was only previewed is nothing to hold
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

    def _LifecycleNodeMixin__on_change_state(
            self, request: Any, response: Any) -> Any:
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
        result = self._transition(self._activate, state, super().on_activate)
        if result != TransitionCallbackReturn.SUCCESS:
            super().on_deactivate(state)  # the publishers too
        return result

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
        for command in spec.actions:
            messages.check_limits(command, messages.ros_class(command.type))
        self._candidates = self.get_parameter('candidates').value or policy.candidates
        self._extraction = self.get_parameter('extraction').value
        self._decide = functools.partial(
            policy.decide, seed=self.get_parameter('seed').value, candidates=self._candidates,
            extraction=self._extraction,
            temperature=self.get_parameter('softmax_temperature').value,
            sampling_temperature=self.get_parameter('sampling_temperature').value)
        # The first inference allocates; it is made here, not on the robot's first tick.
        self._decide(np.zeros(spec.observation_size, np.float32), 0)
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
            f'{spec.action_size} actions, {spec.rate} Hz, N = {self._candidates}, '
            f'{self._extraction}, sha256 {policy.digest[:12]}')

    def _activate(self) -> None:
        spec = self._policy.spec
        self._observer = Observer(spec)
        self._guard.reset()
        self._period_ns = int(messages.NS / spec.rate)
        self._shortest_age_ns = int(min(s.max_age for s in spec.observations) * messages.NS)
        self._stop_reasons: list[str] = []
        self._limited: list[str] = []
        self._counts = dict.fromkeys(('decided', 'sent', 'stops', 'missed', 'dropped'), 0)
        self._taken_ns: int | None = None
        self._published_ns = self._now_ns()
        self._received_s = self._published_s = self._logged_s = self._steady_s()
        self._blind_since_s: float | None = None
        self._grace_until_ns = self._now_ns() + self._shortest_age_ns
        self._sampled_since_jump = True
        try:
            self._subscribe(spec)
        except Exception:
            self._unsubscribe()
            raise
        self._running = True
        self._log_enabled()

    def _subscribe(self, spec: Spec) -> None:
        for topic, stream in {s.topic: s for s in spec.observations}.items():
            self._subscribed.append(self.create_subscription(
                messages.ros_class(stream.type), topic,
                lambda m, topic=topic: self._receive(topic, m), qos_profile(stream)))
        watch_s = min(_WATCH_PERIOD_S, max(0.005, 0.25e-9 * self._shortest_age_ns))
        for period_s, callback, clock in (
                (1.0 / spec.rate, self._on_timer, self.get_clock()),
                (watch_s, self._watch, self._steady),
                (_DIAGNOSTICS_PERIOD_S, self._publish_diagnostics, self._steady)):
            self._ticking.append(self.create_timer(period_s, callback, clock=clock))
        # A leap of simulated time makes samples look old that were new a moment ago.
        self._jump_handle = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=Duration(nanoseconds=self._shortest_age_ns),
                          min_backward=Duration(nanoseconds=-1)),
            post_callback=self._on_jump)

    def _unsubscribe(self) -> None:
        self._running = False
        self._job = None
        if self._jump_handle is not None:
            self._jump_handle.unregister()
            self._jump_handle = None
        while self._ticking:
            self.destroy_timer(self._ticking.pop())
        while self._subscribed:
            self.destroy_subscription(self._subscribed.pop())

    def _deactivate(self) -> None:
        if not self._running:
            return
        try:
            self._send_stop(self._now_ns(), ['the node is being deactivated'])
            self._publish_diagnostics()
        finally:
            self._unsubscribe()

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

    def _steady_s(self) -> float:
        return self._steady.now().nanoseconds / messages.NS

    def _receive(self, topic: str, message: Any) -> None:
        self._observer.add(topic, message, self._now_ns())
        self._received_s = self._steady_s()
        self._sampled_since_jump = True
        self._take_arrival()

    def _on_jump(self, jump: Any) -> None:
        if jump.delta.nanoseconds < 0:
            self._observer.reset()  # what another run observed is nothing to act on
        # One grace for each leap that follows on samples: a clock that only leaps earns no more.
        if self._sampled_since_jump:
            self._grace_until_ns = self._now_ns() + self._shortest_age_ns
            self._sampled_since_jump = False

    def _on_timer(self) -> None:
        """Begin a tick, for specs that tick on a timer; else see that the stop keeps the rate."""
        if self._policy.spec.tick == 'timer':
            self._begin(self._now_ns())
        else:
            self._check()

    def _watch(self) -> None:
        # On the steady clock: it sees what stands still or hangs, within a fraction of an age.
        self._take_arrival()
        self._check()

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

    def _check(self) -> None:
        """Send the stop at once where the policy may act no longer, then at the tick rate."""
        now_ns = self._now_ns()
        reasons = self._blind(now_ns)
        if not reasons:
            self._blind_since_s = None
            return
        if self._simulated():
            # Of what waits in the queues after a stall, /clock comes newest first and samples
            # oldest first: for a moment they look older than they are.
            if self._blind_since_s is None:
                self._blind_since_s = self._steady_s()
            if self._steady_s() - self._blind_since_s < _DRAIN_S:
                return
        # Whichever clock runs: the node's may stand still.
        elapsed_ns = max(abs(now_ns - self._published_ns),
                         int((self._steady_s() - self._published_s) * messages.NS))
        # A tick that arrived was answered with the stop; the next may still arrive.
        answered = self._policy.spec.tick == 'arrival' and self._taken_ns is not None and (
            0 <= now_ns - self._taken_ns < 1.5 * self._period_ns)
        if not self._stop_reasons or (not answered and elapsed_ns >= 0.9 * self._period_ns):
            self._send_stop(now_ns, reasons)

    def _blind(self, now_ns: int) -> list[str]:
        """Return why the policy may not act at present; empty where it may."""
        if self._job is not None:
            if now_ns - self._job.tick_ns <= self._shortest_age_ns:
                return []
            self._job.expired = True
            return ['the inference takes so long that its observation is too old']
        if self._simulated():
            if now_ns == 0:
                return []  # the simulation has not begun
            silent_s = self._steady_s() - self._received_s
            if silent_s > _STALL_S:
                return [f'nothing came for {silent_s:.0f} s of real time: do /clock and the '
                        'simulation stand still?']
        if now_ns < self._grace_until_ns <= now_ns + self._shortest_age_ns:
            return []
        observation, reasons = self._observer.observe(now_ns)
        if observation is None:
            return reasons
        # Fresh signals that complete no tick; told after silence would have been told as such.
        untaken_ns = now_ns - max(self._grace_until_ns, self._taken_ns or 0)
        if (self._policy.spec.tick == 'arrival' and not self._nobody_listens()
                and untaken_ns > 2 * self._period_ns + self._shortest_age_ns):
            return [f'no tick for {untaken_ns / messages.NS:.2f} s: expected every signal at '
                    f'least once a period of {self._period_ns / messages.NS:.3f} s']
        return []

    def _simulated(self) -> bool:
        return self.get_clock().ros_time_is_active

    def _begin(self, tick_ns: int) -> None:
        # Ages count on the node's clock. In simulation /clock may come after the stamps it belongs
        # to. A tick that is missed is one all the same for the histories.
        now_ns = self._now_ns()
        observation, reasons = self._observer.observe_tick(
            tick_ns, max(now_ns, tick_ns) if self._simulated() else now_ns)
        if self._job is not None:
            self._counts['missed'] += 1
            self.get_logger().warning(
                'missed a tick: the inference of an earlier one is still running',
                throttle_duration_sec=_LOG_PERIOD_S)
            return
        self._taken_ns = now_ns
        if observation is None:
            self._send_stop(tick_ns, reasons)
            return
        self._guard.measure(observation)
        self._job = _Job(tick_ns, self._worker.submit(
            self._decide, observation, tick_ns))
        # Once the node is inactive nobody waits for the result, and the handle may be gone.
        self._job.future.add_done_callback(
            lambda _: self._running and self._inference_done.trigger())

    def _finish(self) -> None:
        """Send what the worker decided."""
        job = self._job
        if job is None or not job.future.done():
            return
        decision = job.future.result()
        late_ns = self._now_ns() - job.tick_ns
        self._job = None
        if job.expired or late_ns > self._shortest_age_ns:
            self._counts['dropped'] += 1
            self._send_stop(self._now_ns(), [
                f'the decision came {late_ns / messages.NS:.3f} s after its tick, when its '
                'observation was too old'])
            return
        self._counts['decided'] += 1
        sent, limited = self._guard.act(decision.action, decision.q)
        if sent is None:
            self._send_stop(job.tick_ns, [
                f'the policy gave what is not finite: action {decision.action.tolist()}, Q '
                f'{decision.q}'])
            return
        if self._stop_reasons:
            self.get_logger().info(
                'a valid observation again: acting', throttle_duration_sec=_LOG_PERIOD_S)
        self._stop_reasons = []
        self._limited = [f'dimension {x.dimension}: {x.asked:.6g} held to {x.sent:.6g}'
                         for x in limited]
        try:
            self._publish(self._policy.spec.split_action(sent), job.tick_ns)
        except messages.MessageError as error:  # two columns of a rotation that are parallel
            self._send_stop(job.tick_ns, [str(error)])
            return
        self._counts['sent'] += self._enabled

    def _send_stop(self, stamp_ns: int, reasons: list[str]) -> None:
        """Send the spec's stop and say why."""
        self._counts['stops'] += 1
        # Told when the reason changes, not when a number in it does; at most once a second.
        if _without_numbers(reasons) != _without_numbers(self._stop_reasons) and (
                self._steady_s() - self._logged_s > 1.0 or self._counts['stops'] == 1):
            self._logged_s = self._steady_s()
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
        self._published_ns, self._published_s = self._now_ns(), self._steady_s()
        if not self._enabled:
            if all(part is not None for part in parts):
                self._preview_publisher.publish(Float64MultiArray(
                    data=np.concatenate(parts).astype(float).tolist()))
            return
        # Those of one tick are all written before the first of them is sent.
        for publisher, message in [
                (publisher, messages.write(
                    command, part, messages.ros_class(command.type)(), stamp_ns))
                for command, publisher, part in zip(
                    self._policy.spec.actions, self._command_publishers, parts, strict=True)
                if part is not None]:
            publisher.publish(message)

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
                  'candidates': self._candidates, 'extraction': self._extraction,
                  'enable_commands': self._enabled, **self._counts}
        status.values = [KeyValue(key=k, value=str(v)) for k, v in values.items()]
        array = DiagnosticArray(status=[status])
        array.header.stamp = Time(
            nanoseconds=self._now_ns(), clock_type=self.get_clock().clock_type).to_msg()
        self._diagnostics_publisher.publish(array)

    def stop_and_end(self) -> None:
        """Send the stop where the node is active; for the process' end."""
        if self._running:
            self._deactivate()
            # What was just published leaves with the process unless it is waited for.
            for publisher in self._command_publishers:
                publisher.wait_for_all_acked(Duration(seconds=_LAST_WORD_S))


def _run(signals: socket.socket) -> bool:
    """Spin a node until a byte comes from `signals`; return whether something went wrong."""
    node = PolicyNode()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    ending = threading.Event()
    wake = node.create_guard_condition(lambda: None)

    def wait_for_signal() -> None:
        if signals.recv(1):  # else the process is ending by itself
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
    try:
        node.stop_and_end()
    except Exception as error:
        node.get_logger().fatal(f'the stop could not be sent: {type(error).__name__}: {error}')
        failed = True
    executor.shutdown()
    node.destroy_node()
    return failed


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
    try:
        failed = _run(signal_reader)
    except ParameterException as error:
        rclpy.logging.get_logger('policy_node').fatal(str(error))
        failed = True
    finally:
        rclpy.try_shutdown()
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
