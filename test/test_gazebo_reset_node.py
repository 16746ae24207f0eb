"""gazebo_reset_node between the real policy_node and a world that behaves as Gazebo's does."""

import re
from types import SimpleNamespace

import pytest

harness = pytest.importorskip('harness', reason='rclpy is not installed')

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue  # noqa: E402
from idql_ros.gazebo_reset_node import world_request  # noqa: E402
from idql_ros.topics import LATCHED  # noqa: E402
from nav_msgs.msg import Odometry  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from std_srvs.srv import SetBool, Trigger  # noqa: E402

NODE = 'set_bool_world_reset'
STEP_NS = 20_000_000
TIMEOUT_S = 1.5
# Nodes that are not to hear those of the fixture.
ALONE = [('__ns', '/alone')]


class World:
    """A simulation beside the robot that it holds: time, one position, and its control.

    As in Gazebo, a request is answered before it is carried out, the last one counts, and /clock
    goes on to be published while the world stands still.
    """

    def __init__(self, robot):
        """Begin at zero, and go on in real time."""
        self._robot = robot
        self.asked, self.resets, self.success, self.delay = [], 0, True, 10
        self.begin()
        node = robot.node
        self._clock = node.create_publisher(Clock, '/clock', 10)
        node.create_service(SetBool, '/world/maze/control', self._control)
        node.create_timer(STEP_NS / 1e9, self._step)

    def begin(self):
        """Put everything back to the start."""
        self.time_ns, self.x, self.paused, self._reset_in = 0, 0.0, False, None

    def _control(self, request, response):
        self.asked.append('reset' if request.data else 'run')
        response.success = self.success
        if self.success:
            self.paused, self._reset_in = request.data, self.delay if request.data else None
        return response

    def _step(self):
        if self._reset_in is not None:
            self._reset_in -= 1
            if self._reset_in < 0:
                self.begin()
                self.paused = True
                self.resets += 1
        if not self.paused:
            self.time_ns += STEP_NS
            if self._robot.commands:
                self.x += harness.velocity(self._robot.commands[-1])[0] * STEP_NS / 1e9
        seconds, nanoseconds = divmod(self.time_ns, 10**9)
        clock = Clock()
        clock.clock.sec, clock.clock.nanosec = seconds, nanoseconds
        self._clock.publish(clock)
        if not self.paused:
            message = Odometry()
            message.header.stamp = clock.clock
            message.pose.pose.position.x = self.x
            self._robot.odometry.publish(message)


@pytest.fixture(scope='module')
def nodes(fast_policy, tmp_path_factory):
    """Give robot, world and the last status of a policy_node, with the reset between them."""
    folder = tmp_path_factory.mktemp('reset')
    with harness.robot() as robot:
        world, status = World(robot), []
        robot.node.create_subscription(
            DiagnosticStatus, '/policy_node/status', status.append, LATCHED)
        with harness.running(harness.NODE, {
                'model': fast_policy, 'autostart': True, 'enable_commands': True,
                'use_sim_time': True}, folder / 'policy.log') as policy, harness.running(
                NODE, {'world': 'maze', 'timeout': TIMEOUT_S}, folder / 'reset.log'):
            made = SimpleNamespace(robot=robot, world=world, status=status, policy=policy)
            made.blocked = lambda: {v.key: v.value for v in status[-1].values}['blocked']
            made.reset = lambda: robot.call(Trigger, '/gazebo_reset_node/reset', Trigger.Request())
            robot.client(Trigger, '/gazebo_reset_node/reset')
            yield made


@pytest.fixture
def moving(nodes):
    """Give the nodes while the policy drives."""
    robot, world = nodes.robot, nodes.world
    world.success, world.delay = True, 10
    world.paused = False
    assert robot.estop(False).success
    assert robot.trigger('resume').success
    world.asked.clear()
    robot.commands.clear()
    robot.spin_until(lambda: any(not harness.is_stop(c) for c in robot.commands), 'a command')
    robot.spin_until(lambda: world.x != 0 and not nodes.blocked(), 'a robot that moves')
    return nodes


def goes_on(robot):
    robot.commands.clear()
    robot.spin_until(lambda: any(not harness.is_stop(c) for c in robot.commands), 'a command')


def stays_stopped(robot):
    robot.commands.clear()
    robot.spin_for(0.4)
    assert all(harness.is_stop(c) for c in robot.commands)


def test_the_world_begins_anew_and_the_policy_goes_on(moving):
    robot, world = moving.robot, moving.world
    robot.spin_until(lambda: world.time_ns > 2 * 10**9, 'some simulated time')
    resets, before_ns = world.resets, world.time_ns
    logged = len(moving.policy.output())
    moving.status.clear()
    answer = moving.reset()
    assert answer.success and 'the policy was resumed' in answer.message
    # Asked to run only once it had reset: it would have forgotten it.
    assert world.asked == ['reset', 'run'] and world.resets == resets + 1
    assert world.time_ns < before_ns - 10**9
    # It had been stopped first, with the word that paused it.
    assert any('paused' in status.message for status in moving.status)
    # Before it went on it forgot what it had observed.
    robot.spin_until(
        lambda: re.findall('paused; to go on|reset: nothing|: resumed',
                           moving.policy.output()[logged:]) == [
            'paused; to go on', 'reset: nothing', ': resumed'], 'pause, reset, resume in its log')
    goes_on(robot)
    assert all(harness.stamp_ns(c) < before_ns for c in robot.commands)


def test_resets_in_a_row_are_as_good_as_one(moving):
    for _ in range(3):
        answer = moving.reset()
        assert answer.success and 'the policy was resumed' in answer.message
    assert moving.world.asked == 3 * ['reset', 'run']
    goes_on(moving.robot)


def test_resets_that_are_asked_for_together_are_done_one_after_the_other(moving):
    robot = moving.robot
    client = robot.client(Trigger, '/gazebo_reset_node/reset')
    futures = [client.call_async(Trigger.Request()) for _ in range(2)]
    robot.spin_until(lambda: all(future.done() for future in futures), 'the answers')
    assert all('the policy was resumed' in future.result().message for future in futures)
    assert moving.world.asked == 2 * ['reset', 'run']
    goes_on(robot)


def test_reset_right_after_a_resume_is_resumed(moving):
    robot = moving.robot
    assert robot.trigger('pause').success
    robot.spin_until(lambda: 'paused' in moving.blocked(), 'the pause')
    assert robot.trigger('resume').success
    answer = moving.reset()
    assert answer.success and 'the policy was resumed' in answer.message
    goes_on(robot)


def test_policy_that_its_operator_paused_stays_paused(moving):
    robot = moving.robot
    assert robot.trigger('pause').success
    robot.spin_until(lambda: 'paused' in moving.blocked(), 'the pause')
    answer = moving.reset()
    assert answer.success and 'stays blocked (paused)' in answer.message
    assert moving.world.time_ns < 10**9 and not moving.world.paused
    stays_stopped(robot)


def test_policy_that_was_stopped_by_an_e_stop_stays_stopped(moving):
    robot = moving.robot
    robot.estop(True)
    robot.estop(False)
    robot.spin_until(lambda: 'e-stop' in moving.blocked(), 'the e-stop')
    answer = moving.reset()
    assert answer.success and 'e-stop released, not resumed' in answer.message
    stays_stopped(robot)


def test_e_stop_during_the_reset_is_not_resumed(moving):
    robot, world = moving.robot, moving.world
    world.delay = 40
    future = robot.client(Trigger, '/gazebo_reset_node/reset').call_async(Trigger.Request())
    robot.spin_until(lambda: world.asked == ['reset'], 'the request to the world')
    robot.estop(True)
    robot.estop(False)
    robot.spin_until(future.done, 'the answer')
    assert future.result().success and 'e-stop' in future.result().message
    stays_stopped(robot)


@pytest.mark.parametrize('already', [False, True])
def test_e_stop_that_its_operator_resumed_during_the_reset_blocks_no_more(moving, already):
    robot, world = moving.robot, moving.world
    world.delay = 40
    if already:
        robot.estop(True)
        robot.spin_until(lambda: 'e-stop' in moving.blocked(), 'the e-stop')
    future = robot.client(Trigger, '/gazebo_reset_node/reset').call_async(Trigger.Request())
    robot.spin_until(lambda: world.asked == ['reset'], 'the request to the world')
    robot.estop(True)
    robot.spin_until(lambda: 'e-stop' in moving.blocked(), 'the e-stop')
    robot.estop(False)
    assert robot.trigger('resume').success
    robot.spin_until(future.done, 'the answer')
    assert future.result().success and 'the policy was resumed' in future.result().message
    goes_on(robot)


def test_inactive_policy_is_not_said_to_go_on(moving):
    deactivate, activate = 4, 3
    assert moving.robot.change_state(deactivate)
    answer = moving.reset()
    assert answer.success and answer.message == (
        'the world and the history of the policy were reset; the policy was resumed')
    assert moving.robot.change_state(activate)
    goes_on(moving.robot)


def test_world_that_refuses_leaves_the_policy_paused(moving):
    moving.world.success = False
    answer = moving.reset()
    assert not answer.success
    assert '/world/maze/control: expected success, found a refusal' in answer.message
    assert 'not resumed' in answer.message
    stays_stopped(moving.robot)


def test_clock_that_does_not_go_back_leaves_the_policy_paused(moving):
    moving.world.delay = 10**6
    answer = moving.reset()
    assert not answer.success and moving.world.asked == ['reset']
    assert f'/clock: expected it to go back to the start within {TIMEOUT_S} s' in answer.message
    stays_stopped(moving.robot)


def test_policy_that_refuses_is_told_in_its_words(moving):
    cleanup, deactivate, configure, activate = 2, 4, 1, 3
    assert moving.robot.change_state(deactivate) and moving.robot.change_state(cleanup)
    answer = moving.reset()
    assert not answer.success and moving.world.asked == []
    assert 'policy_node/pause: expected success, found the node is not configured' in (
        answer.message)
    assert moving.robot.change_state(configure) and moving.robot.change_state(activate)


def test_nothing_is_reset_without_a_policy_or_a_world(robot, tmp_path):
    status = robot.node.create_publisher(DiagnosticStatus, '/alone/policy_node/status', LATCHED)

    def answer():
        return robot.call(Trigger, '/alone/gazebo_reset_node/reset', Trigger.Request())
    with harness.running(NODE, {'world': 'maze'}, tmp_path / 'log',
                         remap=[*ALONE, ('/clock', '/alone/clock')]) as process:
        # It says nothing of what blocks it: another one's, and no reason to fall.
        status.publish(DiagnosticStatus())
        robot.spin_until(lambda: status.get_subscription_count() == 1, 'its subscription')
        robot.spin_for(0.3)
        assert process.child.poll() is None, process.output()
        missing = 'nothing was reset: expected a message on '
        refused = answer()
        assert not refused.success and f'{missing}policy_node/status' in refused.message
        status.publish(DiagnosticStatus(values=[KeyValue(key='blocked', value='')]))
        robot.spin_until(lambda: f'{missing}/clock' in answer().message, 'what is missing now')


def test_world_that_is_no_name_is_refused_in_words(tmp_path):
    with harness.running(NODE, {'world': 'a-maze'}, tmp_path / 'log') as process:
        assert process.child.wait(15) == 1
    assert 'Traceback' not in process.output() and 'a-maze' in process.output()


def test_node_ends_cleanly_on_sigint(robot, tmp_path):
    with harness.running(NODE, {'world': 'maze'}, tmp_path / 'log', remap=ALONE) as process:
        robot.client(Trigger, '/alone/gazebo_reset_node/reset')
        assert process.end() == 0
    assert 'Traceback' not in process.output()


def test_without_the_interfaces_of_gazebo_the_package_is_named(tmp_path):
    try:
        import ros_gz_interfaces  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip('ros_gz_interfaces is installed')
    with harness.running('idql_ros.gazebo_reset_node', {'world': 'maze'}, tmp_path / 'log') as (
            process):
        assert process.child.wait(15) == 1
    assert 'expected the package ros_gz_interfaces' in process.output()
    assert 'Traceback' not in process.output()


# As ros_gz_interfaces defines them, Humble to Rolling.
WORLD_CONTROL = """
bool pause
bool step
uint32 multi_step
ros_gz_interfaces/WorldReset reset
uint32 seed
builtin_interfaces/Time run_to_sim_time
"""
WORLD_RESET = """
bool all false
bool time_only false
bool model_only false
"""


@pytest.mark.parametrize(('pause', 'reset'), [(True, True), (False, False)])
def test_request_to_the_world_says_what_is_meant(pause, reset):
    rosbags = pytest.importorskip('rosbags.typesys', reason='rosbags is not installed')
    store = rosbags.get_typestore(rosbags.Stores.ROS2_JAZZY)
    for name, text in (('WorldControl', WORLD_CONTROL), ('WorldReset', WORLD_RESET)):
        store.register(rosbags.get_types_from_msg(text, f'ros_gz_interfaces/msg/{name}'))
    new = {name.rpartition('/')[2]: store.types[f'ros_gz_interfaces/msg/{name}']
           for name in ('WorldControl', 'WorldReset')}
    empty = SimpleNamespace(world_control=new['WorldControl'](
        False, False, 0, new['WorldReset'](False, False, False), 0,
        store.types['builtin_interfaces/msg/Time'](0, 0)))
    control = world_request(empty, pause, reset).world_control
    assert (control.pause, control.reset.all) == (pause, reset)
    assert vars(control).keys() == set(new['WorldControl'].__dataclass_fields__)
    assert vars(control.reset).keys() == set(new['WorldReset'].__dataclass_fields__)
    assert not control.reset.model_only and not control.step
