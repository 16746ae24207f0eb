"""policy_node as a process of its own, under real rclpy and DDS."""

import contextlib
import fcntl
import math
import os
import re
import signal

import pytest

harness = pytest.importorskip('harness', reason='rclpy is not installed')

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus  # noqa: E402
from harness import is_stop, NODE, RATE  # noqa: E402
from idql_ros import spec as specs  # noqa: E402
from lifecycle_msgs.msg import Transition  # noqa: E402
import numpy as np  # noqa: E402
from rcl_interfaces.msg import ParameterType  # noqa: E402
from rcl_interfaces.srv import DescribeParameters  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from std_msgs.msg import Bool, Float64, Float64MultiArray, String  # noqa: E402


def test_silent_until_active_and_after_deactivation(robot, fast_policy, tmp_path):
    with harness.running(NODE, {'model': fast_policy, 'enable_commands': True},
                         tmp_path / 'node.log') as process:
        assert robot.change_state(Transition.TRANSITION_CONFIGURE)
        robot.spin_until(lambda: robot.node.count_publishers('cmd_vel') == 1, 'its publisher')
        robot.publish_for(0.4)
        assert robot.commands == []
        assert robot.change_state(Transition.TRANSITION_ACTIVATE)
        robot.drive(lambda: len(robot.commands) >= 3, 'commands')
        assert robot.change_state(Transition.TRANSITION_DEACTIVATE)
        robot.spin_for(0.2)
        assert is_stop(robot.commands[-1])
        robot.commands.clear()
        robot.publish_for(0.4)
        assert robot.commands == []
        assert robot.change_state(Transition.TRANSITION_ACTIVATE)
        robot.drive(lambda: len(robot.commands) >= 3, 'commands after a second activation')
        assert process.end() == 0
        assert 'Traceback' not in process.output()


def test_acts_once_a_period_with_the_stamp_of_the_observation(robot, active):
    robot.drive(lambda: len(robot.commands) >= 1, 'a command')
    robot.spin_for(0.2)
    robot.commands.clear()
    published = set()
    for _ in range(60):
        published.add(robot.publish_odometry(1.0, 2.0))
        robot.spin_for(0.02)
    stamps = [harness.stamp_ns(c) for c in robot.commands if not is_stop(c)]
    assert set(stamps) <= published
    periods = [int(stamp * RATE // 10**9) for stamp in stamps]
    assert len(set(periods)) == len(periods)
    assert len(stamps) >= 0.7 * 60 * 0.02 * RATE


def test_sends_what_the_policy_file_decides(robot, active, fast_policy):
    from idql_ros.policy import Policy
    policy = Policy(fast_policy)
    robot.drive(lambda: any(not is_stop(c) for c in robot.commands), 'a command', x=3.0, y=1.0)
    command = next(c for c in robot.commands if not is_stop(c))
    decision = policy.decide(
        np.array([3.0, 1.0], np.float32), harness.stamp_ns(command), 0, policy.candidates)
    assert np.array_equal(harness.velocity(command), decision.action.astype(float))


def test_extraction_and_temperatures_reach_the_decision(robot, fast_policy, tmp_path):
    from idql_ros.policy import Policy
    with harness.running(NODE, {
        'model': fast_policy, 'autostart': True, 'enable_commands': True, 'seed': 4,
        'extraction': 'softmax', 'softmax_temperature': 0.25, 'sampling_temperature': 0.5,
    }, tmp_path / 'node.log') as process:
        robot.drive(lambda: len([c for c in robot.commands if not is_stop(c)]) >= 5,
                    'commands', x=3.0, y=1.0)
        assert 'softmax' in process.output()
    policy = Policy(fast_policy)
    for command in robot.commands:
        if not is_stop(command):
            decision = policy.decide(
                np.array([3.0, 1.0], np.float32), harness.stamp_ns(command), 4, policy.candidates,
                extraction='softmax', temperature=0.25, sampling_temperature=0.5)
            assert np.array_equal(harness.velocity(command), decision.action.astype(float))


def test_dry_run_sends_nothing_and_shows_what_it_would_send(robot, fast_policy, tmp_path):
    previews = robot.listen(Float64MultiArray, '/policy_node/command_preview')
    with harness.running(
            NODE, {'model': fast_policy, 'autostart': True}, tmp_path / 'node.log') as process:
        robot.drive(lambda: any(any(p.data) for p in previews), 'a preview')
        assert robot.commands == []
        assert 'dry run' in process.output()
        assert robot.set_parameter('enable_commands', True)
        robot.drive(lambda: any(not is_stop(c) for c in robot.commands), 'a command')
        assert robot.set_parameter('enable_commands', False)
        robot.spin_for(0.2)
        assert is_stop(robot.commands[-1])
        robot.commands.clear()
        robot.publish_for(0.4)
        assert robot.commands == []


def test_without_any_message_it_sends_the_stop_at_the_tick_rate_and_says_why(robot, active):
    robot.spin_until(lambda: robot.commands, 'the stop')
    robot.commands.clear()
    robot.spin_for(1.0)
    assert all(is_stop(c) for c in robot.commands)
    assert 0.6 * RATE <= len(robot.commands) <= 1.2 * RATE
    robot.expect_reason('odom): missing')
    assert 'missing' in active.output()


def test_a_stale_stream_stops_and_recovers(robot, active):
    robot.drive(lambda: any(not is_stop(c) for c in robot.commands), 'a command')
    last_ns = robot.publish_odometry()
    robot.commands.clear()
    robot.spin_until(lambda: any(is_stop(c) for c in robot.commands), 'the stop', limit_s=5)
    stop = next(c for c in robot.commands if is_stop(c))
    # max_age is 0.25 s; one tick later at most, and what the scheduler adds.
    assert 0.25 <= (harness.stamp_ns(stop) - last_ns) / 1e9 <= 0.25 + 1 / RATE + 0.3
    robot.expect_reason('stale')
    robot.commands.clear()
    robot.drive(lambda: any(not is_stop(c) for c in robot.commands), 'a command again')


@pytest.mark.parametrize(('what', 'expected'), [
    ({'x': math.nan}, 'not finite'),
    ({'y': math.inf}, 'not finite'),
    ({'age_s': 1.0}, 'stale'),
    ({'age_s': -5.0}, 'in the future'),
])
def test_an_invalid_message_is_answered_with_the_stop(robot, active, what, expected):
    robot.drive(lambda: any(not is_stop(c) for c in robot.commands), 'a command')
    robot.drive(lambda: robot.commands and is_stop(robot.commands[-1]), 'the stop', **what)
    robot.commands.clear()
    robot.publish_for(0.4, **what)
    assert robot.commands
    assert all(is_stop(c) for c in robot.commands)
    robot.expect_reason(expected, **what)


def test_a_message_of_another_type_is_no_observation(robot, active):
    robot.node.destroy_publisher(robot.odometry)
    wrong = robot.node.create_publisher(String, 'odom', 10)
    robot.spin_until(lambda: robot.commands, 'the stop')
    for _ in range(10):
        wrong.publish(String(data='here'))
        robot.spin_for(0.02)
    assert all(is_stop(c) for c in robot.commands)
    robot.expect_reason('no message of type nav_msgs/msg/Odometry')


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_sends_the_stop_and_ends_cleanly(robot, active, number):
    robot.drive(lambda: any(not is_stop(c) for c in robot.commands), 'a command')
    active.child.send_signal(number)
    active.child.send_signal(number)  # under a launch, Ctrl-C reaches a node twice
    assert active.end(number) == 0
    robot.spin_for(0.3)
    assert is_stop(robot.commands[-1])
    assert 'Traceback' not in active.output()


def policy_that_spoils(path):
    """Write a policy whose candidates are not finite where x is above 50, as it never was."""
    onnx = pytest.importorskip('onnx', reason='onnx is not installed')
    make = onnx.helper.make_node
    harness.policy_with(path, lambda metadata: metadata['spec'].update(rate=RATE))
    model = onnx.load(path)
    for node in model.graph.node:
        for names in (node.output, node.input):
            for i, name in enumerate(names):
                if name == 'candidates':
                    names[i] = 'unspoilt'
    # exp(1000 (x - 50)) times 0: 0, or where it is infinite no number.
    for name, value in (('column', np.array(0)), ('far', np.array(50.0, np.float32)),
                        ('steep', np.array(1000.0, np.float32)),
                        ('zero', np.array(0.0, np.float32))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, f'spoil_{name}'))
    model.graph.node.extend([
        make('Gather', ['observations', 'spoil_column'], ['spoil_x'], axis=1),
        make('Sub', ['spoil_x', 'spoil_far'], ['spoil_beyond']),
        make('Mul', ['spoil_beyond', 'spoil_steep'], ['spoil_power']),
        make('Exp', ['spoil_power'], ['spoil_exp']),
        make('Mul', ['spoil_exp', 'spoil_zero'], ['spoil']),
        make('Add', ['unspoilt', 'spoil'], ['candidates'])])
    onnx.save(model, path)
    return path


def test_what_is_not_finite_is_never_sent(robot, tmp_path):
    policy = policy_that_spoils(tmp_path / 'nan.onnx')
    with harness.running(NODE, {
        'model': policy, 'autostart': True, 'enable_commands': True,
    }, tmp_path / 'node.log'):
        robot.drive(lambda: any(not is_stop(c) for c in robot.commands), 'a command', x=1.0)
        robot.spin_for(0.2)
        robot.commands.clear()
        robot.drive(lambda: len(robot.commands) >= 5, 'the stop', x=90.0)
        assert all(is_stop(c) for c in robot.commands)
        robot.expect_reason('not finite', x=90.0)


def test_an_exception_sends_the_stop_and_ends_with_an_error(robot, fast_policy, tmp_path):
    with harness.running(NODE, {
        'model': fast_policy, 'autostart': True, 'enable_commands': True,
    }, tmp_path / 'node.log', fault='raise') as process:
        robot.drive(lambda: any(not is_stop(c) for c in robot.commands), 'a command', x=1.0)
        robot.drive(lambda: process.child.poll() is not None, 'its end', x=9.0)
        robot.spin_for(0.3)
        assert process.child.returncode == 1
        assert is_stop(robot.commands[-1])
        assert 'a fault for the test' in process.output()


def test_an_inference_that_fails_is_answered_with_the_stop_and_the_node_lives_on(
        robot, fast_policy, tmp_path):
    with harness.running(NODE, {
        'model': fast_policy, 'autostart': True, 'enable_commands': True,
    }, tmp_path / 'node.log', fault='fail'):
        robot.drive(lambda: any(not is_stop(c) for c in robot.commands), 'a command', x=1.0)
        robot.expect_reason('the inference failed: RuntimeError: a fault for the test', x=9.0)
        robot.acts()


def test_a_log_that_nobody_reads_keeps_no_stop_from_being_sent(robot, fast_policy, tmp_path):
    reading, writing = os.pipe()
    with open(writing, 'wb') as log, harness.running(NODE, {
        'model': fast_policy, 'autostart': True, 'enable_commands': True,
    }, log):
        robot.acts()
        fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, 4096)
        os.set_blocking(writing, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writing, b'full ' * 100)
        robot.spin_until(lambda: is_stop(robot.commands[-1]), 'the stop', limit_s=5)
    os.close(reading)


def test_limits_hold_whatever_the_policy_asks(robot, tmp_path):
    def narrow(metadata):
        metadata['spec'].update(rate=RATE)
        for dimension in metadata['spec']['actions'][0]['dimensions']:
            dimension.update(lower=-0.1, upper=0.3)
    policy = harness.policy_with(tmp_path / 'narrow.onnx', narrow)
    received = robot.listen(DiagnosticArray, '/diagnostics')
    with harness.running(NODE, {
        'model': policy, 'autostart': True, 'enable_commands': True,
    }, tmp_path / 'node.log'):
        robot.drive(lambda: len([c for c in robot.commands if not is_stop(c)]) >= 20, 'commands')
        robot.drive(lambda: any('held to' in s.message for a in received for s in a.status),
                    'a report of the limit')
    values = np.array([harness.velocity(c) for c in robot.commands])
    assert values.min() >= -0.1
    assert values.max() <= 0.3


def test_ticks_by_its_own_clock_where_the_spec_says_timer(robot, tmp_path):
    policy = harness.policy_with(
        tmp_path / 'timer.onnx',
        lambda metadata: metadata['spec'].update(rate=RATE, tick='timer'))
    with harness.running(NODE, {
        'model': policy, 'autostart': True, 'enable_commands': True,
    }, tmp_path / 'node.log'):
        robot.drive(lambda: any(not is_stop(c) for c in robot.commands), 'a command')
        robot.commands.clear()
        robot.drive(lambda: len(robot.commands) >= 20, 'commands')
        stamps = np.array([harness.stamp_ns(c) for c in robot.commands]) / 1e9
        assert abs(np.median(np.diff(stamps)) - 1 / RATE) < 0.2 / RATE
        robot.commands.clear()
        robot.spin_until(lambda: robot.commands and is_stop(robot.commands[-1]), 'the stop')


@pytest.mark.parametrize(('name', 'content', 'expected'), [
    ('absent.onnx', None, 'cannot be read'),
    ('text.onnx', b'no policy', 'not an ONNX file'),
    ('truncated.onnx', 'half', 'not an ONNX file'),
])
def test_a_bad_policy_file_is_refused_in_one_line(tmp_path, name, content, expected):
    path = tmp_path / name
    if content == 'half':
        whole = harness.DEFAULT_POLICY.read_bytes()
        content = whole[:len(whole) // 2]
    if content is not None:
        path.write_bytes(content)
    process = harness.Process(NODE, {'model': path, 'autostart': True}, tmp_path / 'node.log')
    assert process.child.wait(20) == 1
    assert 'Traceback' not in process.output()
    lines = [line for line in process.output().splitlines() if name in line]
    assert len(lines) == 1
    assert expected in lines[0]


def test_a_bad_policy_file_leaves_the_node_unconfigured(robot, tmp_path):
    def disagree(metadata):
        metadata['model']['observation_size'] = 3
    policy = harness.policy_with(tmp_path / 'sizes.onnx', disagree)
    with harness.running(NODE, {'model': policy}, tmp_path / 'node.log') as process:
        assert not robot.change_state(Transition.TRANSITION_CONFIGURE)
        # What the state does not allow is refused, and the node lives on.
        assert not robot.change_state(Transition.TRANSITION_ACTIVATE)
        assert not robot.change_state(Transition.TRANSITION_CONFIGURE)
        assert 'observation_size: expected 2' in process.output()


def test_a_tick_waits_for_who_listens(robot, active):
    # With no subscription to cmd_vel a command would reach nobody; the tick is taken when one is
    # there.
    robot.node.destroy_subscription(next(iter(robot.node.subscriptions)))
    robot.drive(lambda: 'nobody listens' in active.output(), 'the report')
    robot.node.create_subscription(
        harness.TwistStamped, 'cmd_vel', robot.commands.append, 100)
    robot.drive(lambda: any(not is_stop(c) for c in robot.commands), 'a command')


def test_a_signal_that_comes_less_than_once_a_period_stops(robot, tmp_path):
    def split(metadata):
        spec = metadata['spec']
        spec['rate'] = RATE
        x = spec['observations'][0]
        y = {**x, 'name': 'y', 'topic': 'odom_y', 'fields': x['fields'][1:], 'max_age': 30.0}
        spec['observations'] = [{**x, 'fields': x['fields'][:1]}, y]
    policy = harness.policy_with(tmp_path / 'two.onnx', split)
    other = robot.node.create_publisher(harness.Odometry, 'odom_y', 10)
    with harness.running(NODE, {
        'model': policy, 'autostart': True, 'enable_commands': True,
    }, tmp_path / 'node.log'):
        robot.spin_until(lambda: other.get_subscription_count() == 1, 'its subscription')
        message = harness.Odometry()
        stamp_ns = robot.publish_odometry()
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
        other.publish(message)
        robot.expect_reason('no tick for', x=1.0)
        robot.commands.clear()
        robot.drive(lambda: len(robot.commands) >= 5, 'the stop')
        assert all(is_stop(c) for c in robot.commands)


def test_the_stop_follows_a_stale_stream_at_once_also_at_a_low_rate(robot, tmp_path):
    with harness.running(NODE, {  # the installed policy: 2 Hz, max_age 0.25 s
        'autostart': True, 'enable_commands': True,
    }, tmp_path / 'node.log'):
        robot.drive(lambda: any(not is_stop(c) for c in robot.commands), 'a command')
        last_ns = robot.publish_odometry()
        robot.commands.clear()
        robot.spin_until(lambda: any(is_stop(c) for c in robot.commands), 'the stop', limit_s=5)
        stop = next(c for c in robot.commands if is_stop(c))
        assert 0.25 <= (harness.stamp_ns(stop) - last_ns) / 1e9 <= 0.45


def test_an_inference_that_hangs_is_answered_with_the_stop(robot, fast_policy, tmp_path):
    with harness.running(NODE, {
        'model': fast_policy, 'autostart': True, 'enable_commands': True,
    }, tmp_path / 'node.log', fault='hang') as process:
        robot.drive(lambda: any(not is_stop(c) for c in robot.commands), 'a command', x=1.0)
        robot.expect_reason('too old', x=9.0)
        robot.commands.clear()
        robot.drive(lambda: len(robot.commands) >= 20, 'stops', x=9.0)
        assert all(is_stop(c) for c in robot.commands)
        gaps_s = np.diff([harness.stamp_ns(c) for c in robot.commands]) / 1e9
        assert np.median(gaps_s) < 2 / RATE
        assert process.end() == 0


def test_results_that_are_always_late_are_never_sent_and_end_in_the_stop(
        robot, fast_policy, tmp_path):
    with harness.running(NODE, {
        'model': fast_policy, 'autostart': True, 'enable_commands': True,
    }, tmp_path / 'node.log', fault='slow'):
        robot.drive(lambda: any(not is_stop(c) for c in robot.commands), 'a command', x=1.0)
        robot.publish_for(0.5, x=9.0)
        robot.commands.clear()
        robot.expect_reason('no decision in time', x=9.0)
        assert all(is_stop(c) for c in robot.commands)
        robot.drive(lambda: any(not is_stop(c) for c in robot.commands), 'a command', x=1.0)


def test_an_executor_that_stands_still_is_answered_with_the_stop(robot, fast_policy, tmp_path):
    with harness.running(NODE, {
        'model': fast_policy, 'autostart': True, 'enable_commands': True,
    }, tmp_path / 'node.log', fault='stall') as process:
        robot.drive(lambda: 'the executor has not run' in process.output(), 'the report')
        robot.drive(lambda: robot.commands and is_stop(robot.commands[-1]), 'the stop')
        robot.drive(lambda: not is_stop(robot.commands[-1]), 'a command again')


def test_what_was_only_previewed_is_nothing_to_hold(robot, tmp_path):
    def hold(metadata):
        metadata['spec']['rate'] = RATE
        for dimension in metadata['spec']['actions'][0]['dimensions']:
            dimension.update(kind='position', stop='hold_last_sent')
    policy = harness.policy_with(tmp_path / 'hold.onnx', hold)
    previews = robot.listen(Float64MultiArray, '/policy_node/command_preview')
    with harness.running(
            NODE, {'model': policy, 'autostart': True}, tmp_path / 'node.log') as process:
        robot.drive(lambda: len(previews) >= 3, 'previews')
        assert robot.set_parameter('enable_commands', True)
        robot.spin_until(lambda: 'no stop is sent on cmd_vel' in process.output(), 'the report')
        assert robot.commands == []
        robot.drive(lambda: robot.commands, 'a command')
        robot.spin_for(1.0)
        held = robot.commands[-1]
        assert len(robot.commands) > 5
        assert np.array_equal(harness.velocity(held), harness.velocity(robot.commands[-3]))


def test_a_spec_whose_commands_cannot_be_written_is_refused(robot, tmp_path):
    def gap(metadata):
        metadata['spec']['actions'][0].update(
            type='std_msgs/msg/Float64MultiArray', fields=['data[1:3]'], frame_id='')
    policy = harness.policy_with(tmp_path / 'gap.onnx', gap)
    with harness.running(NODE, {'model': policy}, tmp_path / 'node.log') as process:
        assert not robot.change_state(Transition.TRANSITION_CONFIGURE)
        robot.spin_until(lambda: 'would leave elements 0 to 0 unset' in process.output(),
                         'the report')


def test_the_clock_may_not_be_changed_under_a_configured_node(robot, active):
    robot.drive(lambda: any(not is_stop(c) for c in robot.commands), 'a command')
    assert not robot.set_parameter('use_sim_time', True)
    robot.commands.clear()
    robot.drive(lambda: any(not is_stop(c) for c in robot.commands), 'a command')


def test_simulated_time_that_stands_still_stops(robot, fast_policy, tmp_path):
    clock = robot.node.create_publisher(Clock, '/clock', 10)
    with harness.running(NODE, {
        'model': fast_policy, 'autostart': True, 'enable_commands': True, 'use_sim_time': True,
    }, tmp_path / 'node.log'):
        robot.spin_until(lambda: clock.get_subscription_count() == 1, 'its subscription')

        def step():
            stamp_ns = robot.publish_odometry(age_s=1e9)
            time = Clock()
            time.clock.sec, time.clock.nanosec = divmod(stamp_ns, 10**9)
            clock.publish(time)
            robot.spin_for(0.02)
            return any(not is_stop(c) for c in robot.commands)
        robot.spin_until(step, 'a command')
        robot.commands.clear()
        robot.spin_until(lambda: any(is_stop(c) for c in robot.commands), 'the stop', limit_s=5)


@pytest.mark.parametrize('parameters', [
    {'seed': -1}, {'threads': 0}, {'model': 5}, {'enable_commands': 3}, {'extraction': 'best'},
    {'extraction': 5}, {'softmax_temperature': -0.1}, {'sampling_temperature': 2.5},
    {'value_guard': 'act'}, {'value_range_q': '[2.0, 1.0]'}, {'clock_timeout': 0.0}])
def test_a_wrong_parameter_is_refused_in_one_line(tmp_path, parameters):
    process = harness.Process(NODE, parameters, tmp_path / 'node.log')
    assert process.child.wait(20) == 1
    assert 'Traceback' not in process.output()
    assert next(iter(parameters)) in process.output()


def test_a_middleware_that_refuses_the_node_is_told_in_one_line(tmp_path, monkeypatch):
    for name, value in (('ENABLE', 'true'), ('STRATEGY', 'Enforce'), ('KEYSTORE', tmp_path)):
        monkeypatch.setenv(f'ROS_SECURITY_{name}', str(value))
    process = harness.Process(NODE, {}, tmp_path / 'node.log')
    assert process.child.wait(20) == 1
    assert 'Traceback' not in process.output() and str(tmp_path) in process.output()


def test_latched_signal_sent_before_the_node_started_is_observed_and_frames_fill_a_history(
        robot, tmp_path):
    spec = specs.parse({
        'spec_version': 1, 'name': 'robot', 'rate': RATE, 'tick': 'arrival',
        'observations': [
            {'name': 'position', 'topic': 'odom', 'type': 'nav_msgs/msg/Odometry',
             'fields': ['pose.pose.position.x'], 'history': 3, 'unit': 'm', 'max_age': 0.5},
            {'name': 'goal', 'topic': 'goal', 'type': 'std_msgs/msg/Float64', 'fields': ['data'],
             'unit': 'm', 'latched': True}],
        'actions': [
            {'name': 'velocity', 'topic': 'cmd_vel', 'type': 'geometry_msgs/msg/TwistStamped',
             'fields': ['twist.linear.x'],
             'dimensions': [{'kind': 'velocity', 'unit': 'm/s', 'lower': -1.0, 'upper': 1.0,
                             'stop': 'zero'}]}]}, 'robot')
    policy = harness.untrained(spec, tmp_path / 'policy.onnx')
    goal = robot.node.create_publisher(Float64, 'goal', QoSProfile(
        depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))
    goal.publish(Float64(data=4.0))
    with harness.running(NODE, {
        'model': policy, 'autostart': True, 'enable_commands': True,
    }, tmp_path / 'node.log'):
        robot.drive(lambda: any(not is_stop(c) for c in robot.commands), 'a command', x=2.0)
    from idql_ros.policy import Policy
    opened = Policy(policy)
    command = next(c for c in robot.commands if not is_stop(c))
    decision = opened.decide(
        np.array([2.0, 2.0, 2.0, 4.0], np.float32), harness.stamp_ns(command), 0,
        opened.candidates)
    assert command.twist.linear.x == float(decision.action[0])


def test_message_in_another_frame_than_stated_stops_and_says_so(robot, tmp_path):
    policy = harness.policy_with(
        tmp_path / 'framed.onnx',
        lambda metadata: metadata['spec']['observations'][0].update(frame_id='map'))
    with harness.running(NODE, {
        'model': policy, 'autostart': True, 'enable_commands': True,
    }, tmp_path / 'node.log') as process:
        robot.drive(lambda: len(robot.commands) >= 2, 'the stop')
        assert all(is_stop(c) for c in robot.commands)
        assert 'expected the frame_id map that the spec states, found' in process.output()


def test_parameters_are_described_with_type_range_and_when_they_change(robot, active):
    from idql_ros.parameters import PARAMETERS, START, UNCONFIGURED
    request = DescribeParameters.Request(names=[p.name for p in PARAMETERS])
    described = robot.call(
        DescribeParameters, '/policy_node/describe_parameters', request).descriptors
    types = {bool: ParameterType.PARAMETER_BOOL, int: ParameterType.PARAMETER_INTEGER,
             float: ParameterType.PARAMETER_DOUBLE, str: ParameterType.PARAMETER_STRING,
             list: ParameterType.PARAMETER_DOUBLE_ARRAY}
    for expected, found in zip(PARAMETERS, described, strict=True):
        assert (found.name, found.description) == (expected.name, expected.description)
        assert found.type == types[type(expected.default)]
        assert found.read_only == (expected.changes == START)
        ranges = [*found.integer_range, *found.floating_point_range]
        assert [(r.from_value, r.to_value) for r in ranges] == (
            [] if expected.high is None else [(expected.low, expected.high)])
        for choice in expected.choices:
            assert choice in found.additional_constraints
        assert ('unconfigured' in found.additional_constraints) == (
            expected.changes == UNCONFIGURED)


# What an operator says.


def test_an_emergency_stop_lasts_until_it_is_released_and_resumed(robot, active):
    robot.acts()
    assert robot.estop(True).success
    robot.spin_for(0.1)
    robot.stays_stopped()
    assert not robot.trigger('resume').success
    assert robot.estop(False).success
    robot.stays_stopped()
    assert robot.trigger('resume').success
    robot.acts()


def test_an_emergency_stop_is_heard_whatever_the_qos_of_its_topic(robot, active):
    robot.acts()
    for profile in (
            QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL),
            QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)):
        publisher = robot.node.create_publisher(Bool, 'estop', profile)
        robot.spin_until(lambda p=publisher: p.get_subscription_count(), 'its subscription')

        def sent(engaged, publisher=publisher):
            # Again and again, as its source does: with best effort the first may be lost.
            publisher.publish(Bool(data=engaged))
            return True
        robot.drive(lambda: sent(True) and is_stop(robot.commands[-1]), 'the stop')
        robot.stays_stopped()
        robot.drive(lambda: sent(False) and robot.trigger('resume').success, 'release')
        robot.acts()


def test_an_emergency_stop_latched_before_the_node_started_holds_it(robot, fast_policy, tmp_path):
    publisher = robot.node.create_publisher(
        Bool, 'estop', QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))
    publisher.publish(Bool(data=True))
    with harness.running(NODE, {
        'model': fast_policy, 'autostart': True, 'enable_commands': True,
    }, tmp_path / 'node.log') as process:
        robot.drive(lambda: 'emergency stop (topic) engaged' in process.output(), 'the report')
        robot.drive(lambda: len(robot.commands) > 3, 'the stop')
        robot.stays_stopped()


def test_an_emergency_stop_survives_cleanup_and_configuration(robot, active):
    robot.acts()
    robot.estop(True)
    for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP,
                       Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
        assert robot.change_state(transition)
    robot.drive(lambda: len(robot.commands) > 3, 'the stop')
    robot.stays_stopped()
    robot.estop(False)
    assert robot.trigger('resume').success
    robot.acts()


def test_a_dead_mans_switch_has_to_be_held(robot, fast_policy, tmp_path):
    switch = robot.node.create_publisher(Bool, 'deadman', 1)
    with harness.running(NODE, {
        'model': fast_policy, 'autostart': True, 'enable_commands': True, 'deadman_timeout': 0.3,
    }, tmp_path / 'node.log'):
        robot.drive(lambda: len(robot.commands) > 3, 'the stop')
        robot.stays_stopped()

        def moving():
            switch.publish(Bool(data=True))
            robot.publish_odometry()
            robot.spin_for(0.02)
            return not is_stop(robot.commands[-1])
        robot.spin_until(moving, 'a command')
        robot.publish_for(0.5)
        robot.stays_stopped()


def test_paused_it_stands_until_resumed_and_a_reset_goes_on(robot, active):
    robot.acts()
    assert robot.trigger('pause').success
    robot.stays_stopped()
    assert robot.trigger('resume').success
    robot.acts()
    assert robot.trigger('reset').success
    robot.acts()


def test_what_blocks_it_is_told_at_once_though_no_tick_comes(robot, fast_policy, tmp_path):
    status = robot.listen(DiagnosticStatus, '/policy_node/status')
    clock = robot.node.create_publisher(Clock, '/clock', 10)

    def blocked():
        return [v.value for s in status for v in s.values if v.key == 'blocked']
    with harness.running(NODE, {
        'model': fast_policy, 'autostart': True, 'use_sim_time': True, 'clock_timeout': 60.0,
    }, tmp_path / 'node.log'):
        robot.spin_until(lambda: clock.get_subscription_count() == 1, 'its subscription')

        def acting():
            stamp_ns = robot.publish_odometry(age_s=1e9)
            time = Clock()
            time.clock.sec, time.clock.nanosec = divmod(stamp_ns, 10**9)
            clock.publish(time)
            robot.spin_for(0.02)
            return any(s.message.startswith('acting') for s in status)
        robot.spin_until(acting, 'a decision')
        # From here on the clock stands still. The second pause is in the words of the first.
        for _ in range(2):
            for word, expected in (('pause', ['paused']), ('resume', [''])):
                robot.spin_for(0.1)
                status.clear()
                assert robot.trigger(word).success
                robot.spin_until(lambda: status, f'the status after the {word}', limit_s=3.0)
                assert blocked() == expected


def test_a_node_that_was_never_active_is_resumed(robot, fast_policy, tmp_path):
    with harness.running(NODE, {'model': fast_policy, 'enable_commands': True},
                         tmp_path / 'node.log') as process:
        assert robot.change_state(Transition.TRANSITION_CONFIGURE)
        assert robot.trigger('pause').success and robot.trigger('resume').success
        assert robot.change_state(Transition.TRANSITION_ACTIVATE)
        robot.acts()
        assert 'Traceback' not in process.output()


def test_an_unconfigured_node_says_what_it_needs(robot, fast_policy, tmp_path):
    with harness.running(NODE, {'model': fast_policy}, tmp_path / 'node.log'):
        for name in ('pause', 'reset', 'reload'):
            answer = robot.trigger(name)
            assert not answer.success and 'configure' in answer.message

# Reloading.


def test_a_reload_goes_on_with_the_new_file_and_a_bad_one_with_the_old(
        robot, active, fast_policy, tmp_path):
    from idql_ros import decision_record
    from idql_ros.policy import Policy

    def change(metadata):
        metadata['spec'].update(rate=RATE)
        metadata['provenance']['changed'] = True
    other = harness.policy_with(tmp_path / 'other.onnx', change)
    decisions = robot.listen(Float64MultiArray, '/policy_node/decision')

    def digest():
        message = decisions[-1]
        return decision_record.unpack(
            [(d.label, d.size) for d in message.layout.dim], message.data).digest

    robot.acts()
    robot.drive(lambda: decisions, 'a decision')
    assert Policy(fast_policy).digest.startswith(digest())
    broken = tmp_path / 'broken.onnx'
    broken.write_bytes(fast_policy.read_bytes()[:5000])
    assert robot.set_parameter('model', broken)
    answer = robot.reload()
    assert not answer.success and 'broken.onnx' in answer.message
    assert 'the policy stays as it was' in answer.message
    robot.acts()
    assert Policy(fast_policy).digest.startswith(digest())
    assert robot.set_parameter('model', other)
    robot.acts()
    robot.commands.clear()
    answer = robot.reload()
    assert answer.success, answer.message
    robot.drive(lambda: Policy(other).digest.startswith(digest()), 'decisions of the other')
    # A stall that fits into max_age (0.25 s) costs no stop.
    stall_ms = float(re.search(r'came late by (\d+) ms', answer.message)[1])
    assert stall_ms > 150 or all(not is_stop(c) for c in robot.commands)


def test_a_file_of_another_spec_is_not_taken_while_the_node_runs(robot, active, tmp_path):
    robot.acts()
    slower = harness.policy_with(
        tmp_path / 'slower.onnx', lambda metadata: metadata['spec'].update(rate=RATE / 2))
    assert robot.set_parameter('model', slower)
    answer = robot.reload()
    assert not answer.success and 'expected the spec of the policy that runs' in answer.message
    robot.acts()


def test_an_emergency_stop_holds_through_a_reload(robot, active, fast_policy):
    robot.acts()
    robot.estop(True)
    assert robot.reload().success
    robot.stays_stopped()
