"""policy_node as a process of its own, under real rclpy and DDS."""

import math
import signal

import pytest

harness = pytest.importorskip('harness', reason='rclpy is not installed')

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus  # noqa: E402
from idql_ros import spec as specs  # noqa: E402
from lifecycle_msgs.msg import Transition  # noqa: E402
import numpy as np  # noqa: E402
from rcl_interfaces.msg import Parameter, ParameterType  # noqa: E402
from rcl_interfaces.srv import SetParameters  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from std_msgs.msg import Float64, Float64MultiArray, String  # noqa: E402

NODE = 'idql_ros.policy_node'
RATE = 20.0


@pytest.fixture(scope='module')
def fast_policy(tmp_path_factory):
    """Return the default policy at a rate that keeps the tests short."""
    return harness.policy_with(
        tmp_path_factory.mktemp('policy') / 'fast.onnx',
        lambda metadata: metadata['spec'].update(rate=RATE))


@pytest.fixture
def robot():
    """Give the other side of the node."""
    with harness.robot() as made:
        yield made


@pytest.fixture
def active(fast_policy, tmp_path):
    """Give a node that started itself with commands enabled."""
    with harness.running(NODE, {
        'model': fast_policy, 'autostart': True, 'enable_commands': True,
    }, tmp_path / 'node.log') as process:
        yield process


def set_bool(robot, name, value):
    request = SetParameters.Request(parameters=[Parameter(name=name)])
    request.parameters[0].value.type = ParameterType.PARAMETER_BOOL
    request.parameters[0].value.bool_value = value
    response = robot.call(SetParameters, '/policy_node/set_parameters', request)
    return response.results[0].successful


def is_stop(command):
    return not harness.velocity(command).any()


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
        assert set_bool(robot, 'enable_commands', True)
        robot.drive(lambda: any(not is_stop(c) for c in robot.commands), 'a command')
        assert set_bool(robot, 'enable_commands', False)
        robot.spin_for(0.2)
        assert is_stop(robot.commands[-1])
        robot.commands.clear()
        robot.publish_for(0.4)
        assert robot.commands == []


def expect_reason(robot, expected, **odometry):
    """Publish odometry until /diagnostics is an error that contains `expected`."""
    received = robot.listen(DiagnosticArray, '/diagnostics')

    def found():
        return any(expected in status.message and status.level == DiagnosticStatus.ERROR
                   for array in received for status in array.status)
    if odometry:
        robot.drive(found, f'diagnostics with {expected!r}', **odometry)
    else:
        robot.spin_until(found, f'diagnostics with {expected!r}')


def test_without_any_message_it_sends_the_stop_at_the_tick_rate_and_says_why(robot, active):
    robot.spin_until(lambda: robot.commands, 'the stop')
    robot.commands.clear()
    robot.spin_for(1.0)
    assert all(is_stop(c) for c in robot.commands)
    assert 0.6 * RATE <= len(robot.commands) <= 1.2 * RATE
    expect_reason(robot, 'odom): missing')
    assert 'missing' in active.output()


def test_a_stale_stream_stops_and_recovers(robot, active):
    robot.drive(lambda: any(not is_stop(c) for c in robot.commands), 'a command')
    last_ns = robot.publish_odometry()
    robot.commands.clear()
    robot.spin_until(lambda: any(is_stop(c) for c in robot.commands), 'the stop', limit_s=5)
    stop = next(c for c in robot.commands if is_stop(c))
    # max_age is 0.25 s; one tick later at most, and what the scheduler adds.
    assert 0.25 <= (harness.stamp_ns(stop) - last_ns) / 1e9 <= 0.25 + 1 / RATE + 0.3
    expect_reason(robot, 'stale')
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
    expect_reason(robot, expected, **what)


def test_a_message_of_another_type_is_no_observation(robot, active):
    robot.node.destroy_publisher(robot.odometry)
    wrong = robot.node.create_publisher(String, 'odom', 10)
    robot.spin_until(lambda: robot.commands, 'the stop')
    for _ in range(10):
        wrong.publish(String(data='here'))
        robot.spin_for(0.02)
    assert all(is_stop(c) for c in robot.commands)
    expect_reason(robot, 'no message of type nav_msgs/msg/Odometry')


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_sends_the_stop_and_ends_cleanly(robot, active, number):
    robot.drive(lambda: any(not is_stop(c) for c in robot.commands), 'a command')
    active.child.send_signal(number)
    active.child.send_signal(number)  # under a launch, Ctrl-C reaches a node twice
    assert active.end(number) == 0
    robot.spin_for(0.3)
    assert is_stop(robot.commands[-1])
    assert 'Traceback' not in active.output()


def policy_that_spoils(path, output, spoil):
    """Write a policy whose `output` is spoilt where the robot's x is above 5.

    Args:
        path: Where to write it.
        output: 'candidates' or 'v'.
        spoil: 'nan': not finite there; 'error': the inference fails there; 'slow': the inference
            takes seconds, everywhere.
    """
    onnx = pytest.importorskip('onnx', reason='onnx is not installed')
    make = onnx.helper.make_node
    harness.policy_with(path, lambda metadata: metadata['spec'].update(rate=RATE))
    model = onnx.load(path)
    for node in model.graph.node:
        for i, name in enumerate(node.output):
            if name == output:
                node.output[i] = 'unspoilt'
        for i, name in enumerate(node.input):
            if name == output:
                node.input[i] = 'unspoilt'
    for name, value in (('column', np.array(0)), ('five', np.array(5.0, np.float32)),
                        ('zeros', np.zeros(1, np.float32)), ('zero', np.array(0.0, np.float32))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, f'spoil_{name}'))
    model.graph.node.append(
        make('Gather', ['observations', 'spoil_column'], ['spoil_x'], axis=1))
    if spoil == 'nan':
        model.graph.node.extend([
            make('Sub', ['spoil_five', 'spoil_x'], ['spoil_rest']),
            make('Sqrt', ['spoil_rest'], ['spoil_root']),
            make('Mul', ['spoil_root', 'spoil_zero'], ['spoil'])])
    elif spoil == 'slow':
        matrix = np.full((1024, 1024), 1e-4, np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(matrix, 'spoil_matrix'))
        model.graph.node.append(make('Mul', ['spoil_matrix', 'spoil_x'], ['spoil_0']))
        steps = 60  # of 2 GFLOP
        model.graph.node.extend(
            make('MatMul', [f'spoil_{i}', 'spoil_matrix'], [f'spoil_{i + 1}'])
            for i in range(steps))
        model.graph.node.extend([
            make('ReduceMax', [f'spoil_{steps}'], ['spoil_max'], keepdims=0),
            make('Mul', ['spoil_max', 'spoil_zero'], ['spoil'])])
    else:
        model.graph.node.extend([
            make('Greater', ['spoil_x', 'spoil_five'], ['spoil_is']),
            make('Cast', ['spoil_is'], ['spoil_index'], to=onnx.TensorProto.INT64),
            make('Gather', ['spoil_zeros', 'spoil_index'], ['spoil'])])
    model.graph.node.append(make('Add', ['unspoilt', 'spoil'], [output]))
    onnx.save(model, path)
    return path


def test_what_is_not_finite_is_never_sent(robot, tmp_path):
    policy = policy_that_spoils(tmp_path / 'nan.onnx', 'candidates', 'nan')
    with harness.running(NODE, {
        'model': policy, 'autostart': True, 'enable_commands': True,
    }, tmp_path / 'node.log'):
        robot.drive(lambda: any(not is_stop(c) for c in robot.commands), 'a command', x=1.0)
        robot.spin_for(0.2)
        robot.commands.clear()
        robot.drive(lambda: len(robot.commands) >= 5, 'the stop', x=9.0)
        assert all(is_stop(c) for c in robot.commands)
        expect_reason(robot, 'not finite', x=9.0)


def test_an_exception_sends_the_stop_and_ends_with_an_error(robot, tmp_path):
    policy = policy_that_spoils(tmp_path / 'error.onnx', 'v', 'error')
    with harness.running(NODE, {
        'model': policy, 'autostart': True, 'enable_commands': True,
    }, tmp_path / 'node.log') as process:
        robot.drive(lambda: any(not is_stop(c) for c in robot.commands), 'a command', x=1.0)
        robot.drive(lambda: process.child.poll() is not None, 'its end', x=9.0)
        robot.spin_for(0.3)
        assert process.child.returncode == 1
        assert is_stop(robot.commands[-1])
        assert 'Gather' in process.output()


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
        expect_reason(robot, 'no tick for', x=1.0)
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


def test_an_inference_that_takes_too_long_is_answered_with_the_stop(robot, tmp_path):
    policy = policy_that_spoils(tmp_path / 'slow.onnx', 'v', 'slow')
    with harness.running(NODE, {
        'model': policy, 'autostart': True, 'enable_commands': True,
    }, tmp_path / 'node.log'):
        expect_reason(robot, 'too old', x=1.0)
        robot.commands.clear()
        robot.drive(lambda: len(robot.commands) >= 20, 'stops', x=1.0)
        assert all(is_stop(c) for c in robot.commands)
        # Not only when an inference returns, which takes longer than this.
        gaps_s = np.diff([harness.stamp_ns(c) for c in robot.commands]) / 1e9
        assert np.median(gaps_s) < 2 / RATE


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
        assert set_bool(robot, 'enable_commands', True)
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
        assert 'would leave elements 0 to 0 unset' in process.output()


def test_the_clock_may_not_be_changed_under_a_configured_node(robot, active):
    robot.drive(lambda: any(not is_stop(c) for c in robot.commands), 'a command')
    assert not set_bool(robot, 'use_sim_time', True)
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
    {'extraction': 5}, {'softmax_temperature': -0.1}, {'sampling_temperature': 2.5}])
def test_a_wrong_parameter_is_refused_in_one_line(tmp_path, parameters):
    process = harness.Process(NODE, parameters, tmp_path / 'node.log')
    assert process.child.wait(20) == 1
    assert 'Traceback' not in process.output()
    assert next(iter(parameters)) in process.output()


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
    }, tmp_path / 'node.log') as process:
        robot.drive(lambda: any(not is_stop(c) for c in robot.commands), 'a command', x=2.0)
        assert 'of 3 frames since the last gap' in process.output()
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
