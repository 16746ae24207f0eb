"""Lifecycle node that runs a policy file: the topics, services and clocks around a `Runner`.

One thread runs the executor, one the inference, whose result comes back through a guard condition,
and one watches that the executor does not stand still.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
import concurrent.futures
import functools
import gc
import math
import queue
import signal
import socket
import sys
import threading
import time
from typing import Any

from idql_ros import message as messages
from idql_ros import vetting
from idql_ros.delay import Delay
from idql_ros.guard import Output
from idql_ros.health import Health, OK
from idql_ros.parameters import Parameter as Declared
from idql_ros.parameters import PARAMETERS, START, UNCONFIGURED
from idql_ros.policy import default_path, Policy, PolicyError
from idql_ros.relay import relayed
from idql_ros.runner import Made, Runner, Settings, without_numbers
from idql_ros.topics import LATCHED, qos_profile, Topics
from idql_ros.value_guard import VALUE_NAMES
import numpy as np
from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
import rclpy
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import Bool
from std_srvs.srv import SetBool, Trigger

_DIAGNOSTICS_PERIOD_S = 1.0
_LAST_WORD_S = 0.5
_LOG_PERIOD_S = 5.0


class _Worker:
    """One thread for long work; what hangs in it does not keep the process from ending."""

    def __init__(self, name: str) -> None:
        self._tasks: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, call: Callable[..., Any], *arguments: Any) -> concurrent.futures.Future:
        future: concurrent.futures.Future = concurrent.futures.Future()
        self._tasks.put((future, call, arguments))
        return future

    def _run(self) -> None:
        while True:
            future, call, arguments = self._tasks.get()
            try:
                future.set_result(call(*arguments))
            except Exception as error:  # raised again where the result is asked for
                future.set_exception(error)


class _Turn(Awaitable):
    """Lets the executor do other work; a service callback goes on at the next event."""

    def __await__(self) -> Iterator[None]:
        yield


class _Clocks:
    """The clocks of a node, for its runner."""

    def __init__(self, node: LifecycleNode) -> None:
        self._clock = node.get_clock()

    @property
    def simulated(self) -> bool:
        return self._clock.ros_time_is_active

    def now_ns(self) -> int:
        return self._clock.now().nanoseconds

    def steady_ns(self) -> int:
        return time.monotonic_ns()


def _watch_executor(runner: Runner, period_s: float, ended: threading.Event) -> None:
    """Go on with the ladder where the executor stands still."""
    while not ended.wait(period_s):
        try:
            runner.stalled()
        except Exception as error:  # it has to go on, whatever the node is doing meanwhile
            rclpy.logging.get_logger('policy_node').error(
                f'watchdog: {type(error).__name__}: {error}', throttle_duration_sec=_LOG_PERIOD_S)


class PolicyNode(LifecycleNode):
    """Runs one policy file.

    Unconfigured it has no policy; inactive it has opened one and is silent; active it observes and
    decides, and sends what it decides where the parameter `enable_commands` is true.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Declare the parameters and the services; keyword arguments go to rclpy's node."""
        super().__init__('policy_node', **kwargs)
        self._runner: Runner | None = None
        self._running = self._enabled = False
        # Before the declarations: what the command line or a file says is checked as well.
        self.add_on_set_parameters_callback(self._check_parameters)
        for declared in PARAMETERS:
            self.declare_parameter(declared.name, declared.default, _descriptor(declared))
        self._clocks = _Clocks(self)
        self._worker, self._loader = _Worker('inference'), _Worker('loading')
        self._inference_done = self.create_guard_condition(self._finish)
        # Wakes the executor, in which a reload waits for its end.
        self._loaded = self.create_guard_condition(lambda: None)
        self._loading = False
        # Emergency stops outlive the policy, and every state of the node.
        self._estops: dict[str, bool] = {}
        self._logged_s: dict[str, float] = {}
        self._subscribed: list[Any] = []
        self._ticking: list[Any] = []
        self._jump_handle: Any = None
        self._watchdog_ended = threading.Event()
        for service, name, callback in (
                (SetBool, '~/estop', self._on_estop), (Trigger, '~/pause', self._on_pause),
                (Trigger, '~/resume', self._on_resume), (Trigger, '~/reset', self._on_reset)):
            self.create_service(service, name, callback)
        # In a group of its own: what waits in it does not keep the others waiting.
        self.create_service(Trigger, '~/reload', self._on_reload,
                            callback_group=MutuallyExclusiveCallbackGroup())
        # Twice, so that it is heard whatever QoS its publisher has: at once from any, and what was
        # latched before from those that latch.
        for profile in (QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT), LATCHED):
            self.create_subscription(
                Bool, 'estop', lambda message: self._set_estop('topic', message.data), profile,
                event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=False))

    # Parameters.

    def _check_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        declared = {parameter.name: parameter for parameter in PARAMETERS}
        for parameter in parameters:
            known = declared.get(parameter.name)
            if self._runner is not None and (
                    parameter.name == 'use_sim_time'
                    or known is not None and known.changes == UNCONFIGURED):
                return SetParametersResult(successful=False, reason=(
                    f'{parameter.name} is read when the node is configured: expected an '
                    'unconfigured node (ros2 lifecycle set ... cleanup), found a configured one'))
            refused = known.why_refused(parameter.value) if known else ''
            if refused:
                return SetParametersResult(successful=False, reason=refused)
        for parameter in parameters:
            if parameter.name == 'enable_commands':
                self._enable(parameter.value)
        return SetParametersResult(successful=True)

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _enable(self, enabled: bool) -> None:
        if self._running and self._enabled and not enabled:
            self._runner.interrupt(['enable_commands was set to false'])
        if self._running and enabled and not self._enabled:
            self._runner.forget_sent()  # what was only previewed is nothing to hold
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

    def _log(self, level: str, text: str, every_s: float = 0.0) -> None:
        # By its words: of a text whose numbers change, each kind is told once in a while.
        kind = f'{level} {text[:40]}'
        now_s = time.monotonic()
        if every_s and now_s - self._logged_s.get(kind, -math.inf) < every_s:
            return
        self._logged_s[kind] = now_s
        # In two places, for rclpy lets no place change its level.
        if level == 'info':
            self.get_logger().info(text)
        else:
            self.get_logger().warning(text)

    # Services.

    def _set_estop(self, source: str, engaged: bool) -> None:
        if engaged != self._estops.get(source, False):
            self._log('warning', f'emergency stop ({source}) '
                      f'{"engaged" if engaged else "released; to move again: ~/resume"}')
        if self._runner is not None:
            self._runner.set_estop(source, engaged)
        elif engaged or source in self._estops:
            self._estops[source] = engaged

    def _on_estop(self, request: Any, response: Any) -> Any:
        self._set_estop('service', request.data)
        response.success = True
        response.message = ('emergency stop engaged' if request.data
                            else 'emergency stop released; to move again: ~/resume')
        return response

    def _answer(self, response: Any, refused: str, done: str) -> Any:
        response.success, response.message = not refused, refused or done
        self._log('warning' if refused else 'info', response.message)
        return response

    def _unconfigured(self) -> str:
        return '' if self._runner is not None else (
            'the node is not configured: ros2 lifecycle set '
            f'{self.get_fully_qualified_name()} configure')

    def _on_pause(self, request: Any, response: Any) -> Any:
        refused = self._unconfigured()
        if not refused:
            self._runner.pause()
        return self._answer(response, refused, 'paused; to go on: ~/resume')

    def _on_resume(self, request: Any, response: Any) -> Any:
        if self._runner is not None:
            refused = self._runner.resume()
            if self._running and not refused:
                # Told now: while the clock stands still no tick comes that would. And the next
                # output is told whatever it is, for it may be as the last one before this.
                self._told = None
                self._topics.status(self._health.state(self._enabled))
        else:
            engaged = [source for source, engaged in self._estops.items() if engaged]
            refused = f'emergency stop ({", ".join(engaged)}) is engaged' if engaged else ''
            if not refused:
                self._estops.clear()
        return self._answer(response, refused, 'resumed')

    def _on_reset(self, request: Any, response: Any) -> Any:
        refused = self._unconfigured()
        if not refused:
            self._runner.reset()
        return self._answer(response, refused, 'reset: nothing was observed, nothing was sent')

    async def _on_reload(self, request: Any, response: Any) -> Any:
        refused = self._unconfigured() or (
            'a reload is under way' if self._loading else '')
        if refused:
            return self._answer(response, refused, '')
        self._loading = True
        begun_s, runner = time.monotonic(), self._runner
        runner.longest_stall_s = 0.0
        path = self._value('model') or default_path()
        future = self._loader.submit(self._open, path)
        future.add_done_callback(lambda _: self._loaded.trigger())
        try:
            while not future.done():
                await _Turn()
            policy, candidates = future.result()
            refused = self._why_not_swapped(runner, policy)
            if not refused:
                runner.swap(policy, candidates)
        except PolicyError as error:
            refused = str(error)
        except Exception as error:  # no memory, no process: nothing that ends a robot's motion
            refused = f'{path}: {type(error).__name__}: {error}'
        finally:
            self._loading = False
        return self._answer(
            response, refused and f'{refused}; the policy stays as it was',
            f'policy {path} taken after {time.monotonic() - begun_s:.2f} s, in which the executor '
            f'came late by {1e3 * runner.longest_stall_s:.0f} ms at most')

    def _why_not_swapped(self, runner: Runner, policy: Policy) -> str:
        if self._runner is not runner:
            return 'the node was cleaned up meanwhile'
        if policy.spec != runner.policy.spec:
            return (f'{policy.path}: expected the spec of the policy that runs '
                    f'({runner.policy.path}), found another one: deactivate, clean up and '
                    'configure the node for it')
        return ''

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

    def _open(self, path: Any) -> tuple[Policy, int]:
        """Return a checked policy, warmed up, and N; takes a second or more."""
        threads, candidates = self._value('threads'), self._value('candidates')
        vetted = vetting.vet(path, threads=threads, candidates=[candidates],
                             deadline_s=self._value('deadline_ms') / 1e3)
        policy = Policy(path, threads, vetted=vetted, backend=self._value('backend'),
                        device=self._value('device'))
        candidates = candidates or policy.candidates
        # The first inference with each N allocates, or records what a GPU plays back; it is made
        # here, not on the robot's tick.
        for n in reversed(vetted.candidates):
            policy.decide(np.zeros(policy.spec.observation_size, np.float32), 0, 0, n)
        return policy, candidates

    def _configure(self) -> None:
        path = self._value('model') or default_path()
        policy, candidates = self._open(path)
        spec = policy.spec
        for stream in (*spec.observations, *spec.actions):
            messages.check_fields(stream, messages.ros_class(stream.type)())
        for command in spec.actions:
            messages.check_limits(command, messages.ros_class(command.type))
        settings = self._settings(candidates)
        runner = Runner(
            policy, settings, self._clocks, submit=self._infer, send=self._send,
            unheard=self._unheard, log=self._log, estops=self._estops)
        self._topics = Topics(self, policy, self._value('publish_candidates'))
        self._runner = runner
        for note in policy.notes:
            self._log('info', note)
        self.get_logger().info(
            f'policy {spec.name} from {path}: {spec.observation_size} observations, '
            f'{spec.action_size} actions, {spec.rate} Hz, N = {candidates}, '
            f'{settings.extraction}, sha256 {policy.digest[:12]}')

    def _settings(self, candidates: int) -> Settings:
        return Settings(
            seed=self._value('seed'), candidates=candidates,
            deadline_s=self._value('deadline_ms') / 1e3, extraction=self._value('extraction'),
            softmax_temperature=self._value('softmax_temperature'),
            sampling_temperature=self._value('sampling_temperature'),
            latch_stop=self._value('latch_stop'), value_guard=self._value('value_guard'),
            value_guard_ticks=self._value('value_guard_ticks'),
            value_ranges={name: tuple(self._value(f'value_range_{name}'))
                          for name in VALUE_NAMES},
            deadman_timeout_s=self._value('deadman_timeout'),
            clock_timeout_s=self._value('clock_timeout'))

    def _activate(self) -> None:
        runner = self._runner
        runner.start()
        self._health = Health(runner, self._clocks.steady_ns())
        self._told: tuple[Any, ...] | None = None
        try:
            self._subscribe(runner)
        except Exception:
            self._unsubscribe()
            raise
        # What is there now is not garbage, and a collection need not look through it.
        gc.collect()
        gc.freeze()
        self._running = True
        self._log_enabled()

    def _subscribe(self, runner: Runner) -> None:
        spec = runner.policy.spec
        for topic, stream in {s.topic: s for s in spec.observations}.items():
            self._subscribed.append(self.create_subscription(
                messages.ros_class(stream.type), topic,
                # Of exactly two arguments: with a default for a third, rclpy gives one.
                functools.partial(self._receive, topic, Delay()), qos_profile(stream),
                event_callbacks=self._topics.events_of(stream)))
        if self._value('deadman_timeout'):
            self._subscribed.append(self.create_subscription(
                Bool, 'deadman', functools.partial(self._receive_deadman, Delay()),
                QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)))
        watch_s = runner.watch_period_s
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        for period_s, callback, clock in (
                (1.0 / spec.rate, runner.tick, self.get_clock()),
                (watch_s, runner.watch, steady),
                (_DIAGNOSTICS_PERIOD_S, self._publish_diagnostics, steady)):
            self._ticking.append(self.create_timer(period_s, callback, clock=clock))
        self._jump_handle = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=Duration(nanoseconds=runner.shortest_age_ns),
                          min_backward=Duration(nanoseconds=-1)),
            post_callback=lambda jump: runner.jumped(jump.delta.nanoseconds))
        self._watchdog_ended = threading.Event()
        threading.Thread(
            target=_watch_executor, args=(runner, watch_s, self._watchdog_ended),
            name='watchdog', daemon=True).start()

    def _unsubscribe(self) -> None:
        self._running = False
        self._watchdog_ended.set()
        gc.unfreeze()
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
        self._watchdog_ended.set()
        try:
            self._runner.halt(['the node is being deactivated'])
            self._publish_diagnostics()
        finally:
            self._unsubscribe()

    def _cleanup(self) -> None:
        if self._runner is None:
            return
        self._topics.destroy()
        self._runner = None

    # What comes in.

    def _receive(self, topic: str, delay: Delay, message: Any, info: dict[str, Any]) -> None:
        self._topics.qos_problems.pop(topic, None)
        self._runner.receive(topic, message, _delay_ns(delay, info))

    def _receive_deadman(self, delay: Delay, message: Any, info: dict[str, Any]) -> None:
        self._runner.set_deadman(message.data, _delay_ns(delay, info))

    def _infer(self, call: Callable[..., Any], *arguments: Any) -> concurrent.futures.Future:
        future = self._worker.submit(call, *arguments)
        # Once the node is inactive nobody waits for the result, and the handle may be gone.
        future.add_done_callback(lambda _: self._running and self._inference_done.trigger())
        return future

    def _finish(self) -> None:
        if self._running:
            self._runner.finish()

    # What goes out.

    def _unheard(self) -> list[str]:
        return self._topics.unheard() if self._enabled else []

    def _send(self, output: Output, stamp_ns: int, made: Made | None) -> bool:
        """Publish what a runner sends, and what it was made from; return whether it left."""
        if not rclpy.ok(context=self.context):
            return False
        left = self._enabled and self._topics.command(
            output, stamp_ns,
            lambda: (output.state != 'acting'
                     or self._clocks.now_ns() <= made.fresh_until_ns))
        if not self._enabled:
            self._topics.preview(output)
        told = (output.state, without_numbers(output.reasons), self._enabled)
        if told != self._told:
            self._told = told
            self._topics.status(self._health.state(self._enabled))
        if made is not None:
            self._topics.made(output, made, self._runner.settings, left)
        return left

    def _publish_diagnostics(self) -> None:
        now_ns = self._clocks.now_ns()
        connections = self._topics.connections(self._enabled)
        if connections.level != OK:
            self._log('warning', connections.message, _LOG_PERIOD_S)
        self._topics.diagnostics(
            [self._health.ladder(self._enabled), self._health.timing(),
             *self._health.streams(now_ns, self._clocks.steady_ns()), connections], now_ns)

    def stop_and_end(self) -> None:
        """Send the stop where the node is active; for the process' end."""
        if self._running:
            try:
                self._deactivate()
            finally:
                # What was just published leaves with the process unless it is waited for.
                self._topics.wait_until_heard(_LAST_WORD_S)


def _delay_ns(delay: Delay, info: dict[str, Any]) -> int:
    """Return how much longer than others a message was under way, where the middleware tells."""
    sent_ns = info.get('source_timestamp', 0)
    return delay.of(sent_ns, time.time_ns()) if sent_ns else 0


def _descriptor(declared: Declared) -> ParameterDescriptor:
    """Return what ROS is told of a parameter."""
    descriptor = ParameterDescriptor(
        description=declared.description, read_only=declared.changes == START,
        additional_constraints='; '.join(filter(None, [
            f'one of {", ".join(declared.choices)}' if declared.choices else '',
            'changed while unconfigured only' if declared.changes == UNCONFIGURED else ''])))
    if declared.high is not None and isinstance(declared.default, float):
        descriptor.floating_point_range = [FloatingPointRange(
            from_value=declared.low, to_value=declared.high, step=0.0)]
    elif declared.high is not None:
        descriptor.integer_range = [IntegerRange(
            from_value=declared.low, to_value=declared.high, step=0)]
    return descriptor


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
    with relayed(1, 2):
        try:
            rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
            failed = _run(signal_reader)
        # The second one: the middleware refuses, for example for want of a key.
        except (ParameterException, rclpy_implementation.RCLError) as error:
            rclpy.logging.get_logger('policy_node').fatal(' '.join(str(error).split()))
            failed = True
        finally:
            rclpy.try_shutdown()
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
