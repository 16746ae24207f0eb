"""Node that sets Gazebo's world and the policy's history back together.

    policy: pause -> world: pause, reset -> /clock is back -> policy: reset -> world: run
    -> policy: resume

A step that fails ends it there: the policy stays paused, and the answer says what was expected.
"""

from __future__ import annotations

from collections.abc import Callable
import signal
import sys
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from idql_ros.message import NS
from idql_ros.topics import LATCHED
from rcl_interfaces.msg import FloatingPointRange, ParameterDescriptor
import rclpy
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.client import Client
from rclpy.clock import Clock as RosClock
from rclpy.clock import ClockType
from rclpy.exceptions import NameValidationException, ParameterException
from rclpy.executors import ExternalShutdownException
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.task import Future
from rosgraph_msgs.msg import Clock
from std_srvs.srv import Trigger

_POLICY = 'policy_node'


class _Failed(Exception):
    """A step of the reset failed; says which, what was expected and found."""


class GazeboResetNode(Node):
    """Offers `~/reset` (Trigger): the world and the policy's history begin anew.

    A policy that is blocked when the reset begins, or stopped by an e-stop while it goes on, is
    not resumed: that is its operator's to do.
    """

    def __init__(self, control: type, request: Callable[[bool, bool], Any]) -> None:
        """Declare the parameters, make the clients and the service.

        Args:
            control: Type of the service that controls a world; its answers tell `success`.
            request: (whether the world stands still, whether it is reset) -> what to ask it.
        """
        super().__init__('gazebo_reset_node')
        self.declare_parameter('world', '', ParameterDescriptor(
            description='Name of the world in Gazebo.', read_only=True))
        self.declare_parameter('timeout', 5.0, ParameterDescriptor(
            description='Seconds of real time that each step may take.',
            floating_point_range=[FloatingPointRange(from_value=0.1, to_value=60.0, step=0.0)]))
        self._steady = RosClock(clock_type=ClockType.STEADY_TIME)
        self._request = request
        self._control = self.create_client(
            control, f'/world/{self.get_parameter("world").value}/control')
        self._policy = {name: self.create_client(Trigger, f'{_POLICY}/{name}')
                        for name in ('pause', 'reset', 'resume')}
        # What the policy said last of its latches; None: it said nothing yet.
        self._blocked: str | None = None
        self.create_subscription(
            DiagnosticStatus, f'{_POLICY}/status', self._hear_status, LATCHED)
        self._clock_ns: int | None = None
        self._until_ns = 0
        self._went_back = Future()
        self.create_subscription(Clock, '/clock', self._hear_clock, qos_profile_sensor_data)
        # In a group of its own: while it waits, answers and /clock still come in.
        self.create_service(Trigger, '~/reset', self._on_reset,
                            callback_group=MutuallyExclusiveCallbackGroup())

    def _hear_status(self, status: DiagnosticStatus) -> None:
        told = {entry.key: entry.value for entry in status.values}
        self._blocked = told.get('blocked', self._blocked)

    def _hear_clock(self, message: Clock) -> None:
        self._clock_ns = message.clock.sec * NS + message.clock.nanosec
        # A reset of a world that had not begun leaves its clock where it is.
        if self._clock_ns < self._until_ns or self._clock_ns == 0:
            self._went_back.set_result(None)

    async def _on_reset(self, request: Trigger.Request,
                        response: Trigger.Response) -> Trigger.Response:
        try:
            response.message, response.success = await self._reset(), True
            self.get_logger().info(response.message)
        except _Failed as error:
            response.message, response.success = str(error), False
            self.get_logger().error(response.message)
        return response

    async def _reset(self) -> str:
        """Walk the steps; return what was reached.

        Raises:
            _Failed: A step failed.
        """
        if self._blocked is None or self._clock_ns is None:
            missing = f'{_POLICY}/status' if self._blocked is None else '/clock'
            raise _Failed(f'nothing was reset: expected a message on {missing}, found none yet: '
                          'needed are an active policy node and a world that runs')
        blocked = self._blocked
        await self._ask_policy('pause')
        self._until_ns, self._went_back = self._clock_ns, Future()
        await self._ask(self._control, self._request(True, True))
        # The answer says no more than that it was heard. Asked for something else before it has
        # reset, Gazebo forgets the reset.
        await self._wait(self._went_back, '/clock', 'go back to the start')
        await self._ask_policy('reset')
        await self._ask(self._control, self._request(False, False))
        if 'e-stop' in self._blocked:
            blocked = self._blocked
        # Where nothing blocks it by now, its operator resumed it meanwhile.
        if blocked and self._blocked:
            return ('the world and the history of the policy were reset; the policy stays blocked '
                    f'({blocked}): {_POLICY}/resume is up to its operator')
        await self._ask_policy('resume')
        return 'the world and the history of the policy were reset; the policy was resumed'

    async def _ask_policy(self, name: str) -> None:
        await self._ask(self._policy[name], Trigger.Request())

    async def _ask(self, client: Client, request: Any) -> None:
        """Call a service, and have it succeed."""
        if not client.service_is_ready():
            raise _failure(client.srv_name, 'expected this service, found none')
        future = client.call_async(request)
        try:
            answer = await self._wait(future, client.srv_name, 'answer')
        finally:
            client.remove_pending_request(future)
        if not answer.success:
            told = getattr(answer, 'message', '') or 'a refusal'
            raise _failure(client.srv_name, f'expected success, found {told}')

    async def _wait(self, future: Future, who: str, what: str) -> Any:
        """Return the result of a future that comes in time."""
        timeout_s = self.get_parameter('timeout').value
        timer = self.create_timer(timeout_s, future.cancel, clock=self._steady)
        try:
            result = await future
        finally:
            self.destroy_timer(timer)
        if future.cancelled():
            raise _failure(who, f'expected it to {what} within {timeout_s} s, found nothing')
        return result


def _failure(who: str, what: str) -> _Failed:
    return _Failed(f'not reset to the end: {who}: {what}; the policy was not resumed, and the '
                   f'world may stand still: ~/reset again, then {_POLICY}/resume')


def world_request(request: Any, pause: bool, reset: bool) -> Any:
    """Return a request of ros_gz_interfaces/srv/ControlWorld, filled in.

    Args:
        request: A new one.
        pause: Whether the world stands still from then on.
        reset: Whether it begins anew. All of it: Gazebo resets no models alone.
    """
    request.world_control.pause = pause
    request.world_control.reset.all = reset
    return request


def main() -> None:
    """Run the node until SIGINT or SIGTERM."""
    try:
        from ros_gz_interfaces.srv import ControlWorld
    except ImportError:
        sys.exit('gazebo_reset_node: expected the package ros_gz_interfaces, found none: '
                 'sudo apt install ros-$ROS_DISTRO-ros-gz')
    run(ControlWorld, lambda *what: world_request(ControlWorld.Request(), *what))


def run(control: type, request: Callable[[bool, bool], Any]) -> None:
    """Run a node with what it takes, see `GazeboResetNode`; exit with 1 where it cannot begin."""
    rclpy.init()
    failed = False
    try:
        rclpy.spin(GazeboResetNode(control, request))
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except (ParameterException, NameValidationException, rclpy_implementation.RCLError) as error:
        failed = rclpy.ok()
        if failed:
            rclpy.logging.get_logger('gazebo_reset_node').fatal(' '.join(str(error).split()))
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # under a launch Ctrl-C comes twice
        rclpy.try_shutdown()
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
