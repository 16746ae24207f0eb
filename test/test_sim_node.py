"""sim_node as a process of its own, driven over DDS by the test."""

import json
import re
import signal
import time

import numpy as np
import pytest

harness = pytest.importorskip('harness', reason='rclpy is not installed')
pytest.importorskip('ogbench', reason='ogbench is not installed')

from nav_msgs.msg import Odometry  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from std_msgs.msg import Float64MultiArray  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
import yaml  # noqa: E402

NODE = 'idql_ros.sim_node'
SPEC = harness.SOURCE / 'config' / 'robots' / 'pointmaze_medium.yaml'
TICK_NS = 500_000_000


@pytest.fixture
def driver():
    """Give the other side of the simulation: hears odometry, publishes commands."""
    with harness.robot() as made:
        made.node.destroy_publisher(made.odometry)
        made.node.destroy_subscription(next(iter(made.node.subscriptions)))
        made.seen = made.listen(Odometry, 'odom')
        made.pub = made.node.create_publisher(harness.TwistStamped, 'cmd_vel', 10)
        yield made


def command(stamp_ns, x=1.0, y=0.5):
    message = harness.TwistStamped()
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
    message.twist.linear.x, message.twist.linear.y = x, y
    message.header.frame_id = 'odom'
    return message


def x_of(odometry):
    return odometry.pose.pose.position.x


def lock_step(**parameters):
    return {'spec': SPEC, 'lock_step': True, 'real_time_factor': 0.0, 'command_timeout': 15.0,
            **parameters}


def test_lock_step_waits_for_the_command_of_the_tick_and_holds_it(driver, tmp_path):
    clock = driver.listen(Clock, '/clock')
    with harness.running(NODE, lock_step(), tmp_path / 'log'):
        driver.spin_until(lambda: driver.seen, 'the first observation')
        driver.spin_for(0.3)
        assert len(driver.seen) == 1
        first_ns = harness.stamp_ns(driver.seen[0])
        # A command with another stamp answers another tick.
        driver.pub.publish(command(first_ns - TICK_NS))
        driver.spin_for(0.3)
        assert len(driver.seen) == 1
        driver.pub.publish(command(first_ns))
        driver.spin_until(lambda: len(driver.seen) == 6, 'the steps of the tick')
        driver.spin_for(0.3)
        assert len(driver.seen) == 6
        stamps = [harness.stamp_ns(o) for o in driver.seen]
        assert np.diff(stamps).tolist() == [100_000_000] * 5
        assert {s.clock.sec * 10**9 + s.clock.nanosec for s in clock} <= set(stamps)
        moved = np.diff([x_of(o) for o in driver.seen])
        assert np.allclose(moved, 0.1)  # 1 m/s for 0.1 s


def test_lock_step_reports_a_time_out_and_stops_the_robot(driver, tmp_path):
    with harness.running(NODE, lock_step(command_timeout=0.3), tmp_path / 'log') as process:
        driver.spin_until(lambda: len(driver.seen) > 10, 'observations')
        assert np.ptp([x_of(o) for o in driver.seen]) < 1e-6
        assert 'no command on cmd_vel' in process.output()


def test_episodes_are_reported_on_a_topic_and_in_the_results_file(driver, tmp_path):
    results = tmp_path / 'results.jsonl'
    reported = driver.listen(Float64MultiArray, '/sim_node/episode')
    process = harness.Process(
        NODE, lock_step(episodes=2, seed=7, results_file=results), tmp_path / 'log')
    answered = set()

    def ended():
        for odometry in driver.seen:
            stamp_ns = harness.stamp_ns(odometry)
            if stamp_ns % TICK_NS == 0 and stamp_ns not in answered:
                answered.add(stamp_ns)
                driver.pub.publish(command(stamp_ns, x=0.0, y=0.0))
        driver.seen.clear()
        return process.child.poll() is not None
    driver.spin_until(ended, 'the end', limit_s=60)
    assert process.child.returncode == 0
    assert 'Traceback' not in process.output()
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [row['episode'] for row in rows] == [0, 1]
    for row in rows:
        assert (row['return'], row['success'], row['length']) == (-1000.0, False, 1000)
        assert row['command_timeouts'] == 0
        assert len(row['latency_ms']) == 200
        assert min(row['latency_ms']) > 0
    labels = [d.label for d in reported[0].layout.dim]
    assert labels == ['episode', 'return', 'success', 'length', 'command_timeouts']
    assert list(reported[0].data) == [0.0, -1000.0, 0.0, 1000.0, 0.0]


def drive_through(driver, log, **parameters):
    """Run an episode in which every tick is answered; return where the robot was at each step."""
    driver.seen.clear()
    process = harness.Process(NODE, lock_step(episodes=1, seed=7, **parameters), log)
    answered, found = set(), []

    def ended():
        found.extend((x_of(o), o.pose.pose.position.y) for o in driver.seen)
        for odometry in driver.seen:
            stamp_ns = harness.stamp_ns(odometry)
            if stamp_ns % TICK_NS == 0 and stamp_ns not in answered:
                answered.add(stamp_ns)
                turn = len(answered) % 4
                driver.pub.publish(command(stamp_ns, x=1.0 - turn % 2, y=0.5 * turn - 0.5))
        driver.seen.clear()
        return process.child.poll() is not None

    driver.spin_until(ended, 'the end', limit_s=60)
    assert process.child.returncode == 0, process.output()
    return found


def test_an_episode_that_is_filmed_is_the_same_step_by_step(driver, tmp_path):
    av = pytest.importorskip('av', reason='av is not installed')
    film = tmp_path / 'film.mp4'
    plain = drive_through(driver, tmp_path / 'log', results_file=tmp_path / 'plain')
    filmed = drive_through(driver, tmp_path / 'log', results_file=tmp_path / 'filmed',
                           film=film, image_rate=2.0, film_speed=4.0, image_width=128)
    if 'expected OpenGL' in (tmp_path / 'log').read_text():
        pytest.skip('no OpenGL without a screen')
    assert len(plain) == 1000 and filmed == plain
    results = [json.loads((tmp_path / name).read_text()) for name in ('plain', 'filmed')]
    assert results[0]['return'] == results[1]['return']
    with av.open(film) as opened:
        stream, = opened.streams.video
        assert (stream.width, stream.height, stream.average_rate) == (128, 240, 8)
        assert sum(1 for _ in opened.decode(video=0)) == 201  # and the end


def test_a_run_that_is_interrupted_leaves_no_part_of_a_film(driver, tmp_path):
    with harness.running(
            NODE, {'spec': SPEC, 'film': tmp_path / 'film.mp4'}, tmp_path / 'log') as process:
        driver.spin_until(lambda: len(driver.seen) > 3 or process.child.poll() is not None,
                          'observations')
        if 'expected OpenGL' in process.output():
            pytest.skip('no OpenGL without a screen')
        assert list(tmp_path.glob('.film.mp4.*.unfinished'))
        assert process.end() == 0
        assert 'Traceback' not in process.output()
    assert [path.name for path in tmp_path.iterdir()] == ['log']


@pytest.mark.parametrize(('parameters', 'environment', 'expected'), [
    ({'film': 'film.avi'}, {}, r'ends in \.mp4 or \.gif'),
    ({'film': 'film.mp4', 'candidates_topic': 'a b'}, {}, 'candidates_topic'),
    ({'image_rate': 5.0}, {'__EGL_VENDOR_LIBRARY_FILENAMES': '/nowhere'}, 'apt install libegl1'),
    ({'window': True}, {'DISPLAY': '', 'WAYLAND_DISPLAY': ''}, 'expected a display'),
])
def test_what_cannot_be_shown_is_told_in_one_line(
        tmp_path, monkeypatch, parameters, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    process = harness.Process(NODE, {'spec': SPEC, **parameters}, tmp_path / 'log')
    assert process.child.wait(30) == 1
    line, = process.output().splitlines()
    assert re.search(expected, line)


def test_every_parameter_is_described_and_documented():
    from idql_ros.sim_node import SimNode
    with harness.robot() as robot:
        node = SimNode(context=robot.context)
        names = set(node._parameters) - {'use_sim_time', 'start_type_description_service'}
        described = {name: node.describe_parameter(name) for name in names}
        defaults = {name: node.get_parameter(name).value for name in names}
        node.destroy_node()
    assert all(found.description and found.read_only for found in described.values())
    text = (harness.SOURCE / 'doc' / 'nodes.md').read_text().partition('\n## sim_node')[2]
    table = dict(re.findall(r'^\| `(\w+)` \| *([^|]*?) *\|', text.partition('\n## ')[0], re.M))
    assert set(table) == names
    for name, default in defaults.items():
        if isinstance(default, (bool, int, float)):
            assert table[name].split()[0].strip('`') == str(default).lower()


def test_the_reset_service_starts_the_next_episode(driver, tmp_path):
    with harness.running(NODE, {'spec': SPEC, 'real_time_factor': 1.0}, tmp_path / 'log'):
        driver.spin_until(lambda: driver.seen, 'the first observation')
        before_ns = harness.stamp_ns(driver.seen[-1])
        assert driver.call(Trigger, '/sim_node/reset', Trigger.Request()).success
        # Episodes never share a stamp: each has room for the longest.
        driver.spin_until(
            lambda: harness.stamp_ns(driver.seen[-1]) - before_ns > 50 * 10**9, 'the next episode')


def test_a_reset_in_lock_step_is_no_wait_for_a_first_command(driver, tmp_path):
    with harness.running(NODE, lock_step(), tmp_path / 'log') as process:
        driver.spin_until(lambda: driver.seen, 'the first observation')
        before_ns = harness.stamp_ns(driver.seen[-1])
        assert driver.call(Trigger, '/sim_node/reset', Trigger.Request()).success
        driver.spin_until(
            lambda: harness.stamp_ns(driver.seen[-1]) - before_ns > 50 * 10**9, 'the next episode')
        assert 'waiting for a first command' not in process.output()


def test_a_film_that_fails_does_not_cost_the_result_of_its_episode(driver, tmp_path):
    film = tmp_path / 'film.gif'
    with harness.running(NODE, {
        'spec': SPEC, 'film': film, 'episodes': 2, 'results_file': tmp_path / 'results',
    }, tmp_path / 'log') as process:
        driver.spin_until(lambda: len(driver.seen) > 3 or process.child.poll() is not None,
                          'observations')
        if 'expected OpenGL' in process.output():
            pytest.skip('no OpenGL without a screen')
        film.mkdir()  # it can no longer get its name
        assert driver.call(Trigger, '/sim_node/reset', Trigger.Request()).success
        assert process.child.wait(30) == 1
        assert process.output().splitlines()[-1].count('film.gif: expected that it can be written')
    assert json.loads((tmp_path / 'results').read_text())['episode'] == 0
    assert {path.name for path in tmp_path.iterdir()} == {'film.gif', 'log', 'results'}


def test_in_real_time_a_robot_without_commands_stops_by_itself(driver, tmp_path):
    with harness.running(
            NODE, {'spec': SPEC, 'real_time_factor': 5.0, 'command_timeout': 1.0},
            tmp_path / 'log') as process:
        driver.spin_until(lambda: driver.seen, 'the first observation')
        started_s, start_ns = time.monotonic(), harness.stamp_ns(driver.seen[-1])
        driver.spin_for(0.5)
        assert np.ptp([x_of(o) for o in driver.seen]) < 1e-6
        driver.pub.publish(command(harness.stamp_ns(driver.seen[-1])))
        driver.spin_until(lambda: 'stops by itself' in process.output(), 'the time-out')
        at_stop = x_of(driver.seen[-1])
        driver.spin_for(0.4)
        assert 0.8 < at_stop - x_of(driver.seen[0]) < 1.5  # 1 m/s for 1 s
        assert abs(x_of(driver.seen[-1]) - at_stop) < 0.2
        simulated_s = (harness.stamp_ns(driver.seen[-1]) - start_ns) / 1e9
        assert 0.6 < simulated_s / (5.0 * (time.monotonic() - started_s)) < 1.1


@pytest.mark.parametrize(('change', 'expected'), [
    (lambda d: d.update(rate=3.0), 'a whole number of steps'),
    (lambda d: (d.pop('space'), d['observations'][0]['fields'].pop()),
     'with 1 observation numbers'),
    (lambda d: d['actions'][0]['dimensions'][0].update(upper=9.0), 'action limits within'),
    (lambda d: d['observations'][0].update(operations=['cos_sin']), 'observation numbers'),
    (lambda d: d['observations'][0].update(
        fields=['pose.pose.position.x'], operations=['cos_sin']), 'found that they tell'),
    (lambda d: d['observations'][0].update(
        fields=['pose.pose.position.q', 'twist']), 'position.q'),
    (lambda d: d.update(name='other'), 'expected the parameter environment'),
    (lambda d: d.update(colour='red'), 'colour'),
])
def test_a_spec_that_the_simulation_cannot_serve_is_refused_in_one_line(
        tmp_path, change, expected):
    data = yaml.safe_load(SPEC.read_text())
    change(data)
    path = tmp_path / 'robot.yaml'
    path.write_text(yaml.safe_dump(data))
    process = harness.Process(NODE, {'spec': path}, tmp_path / 'log')
    assert process.child.wait(20) == 1
    assert 'Traceback' not in process.output()
    assert expected in process.output()
    assert len(process.output().splitlines()) == 1


def test_the_spec_of_a_policy_file_that_fails_its_check_is_refused_in_one_line(tmp_path):
    onnx = pytest.importorskip('onnx', reason='onnx is not installed')
    model = onnx.load(harness.DEFAULT_POLICY)
    model.ir_version = 9  # ONNX Runtime would take it
    onnx.save(model, tmp_path / 'p.onnx')
    process = harness.Process(NODE, {'spec': tmp_path / 'p.onnx'}, tmp_path / 'log')
    assert process.child.wait(20) == 1
    line, = process.output().splitlines()
    assert 'p.onnx: IR version: expected 8' in line


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_without_a_traceback(driver, tmp_path, number):
    with harness.running(NODE, {'spec': SPEC}, tmp_path / 'log') as process:
        driver.spin_until(lambda: driver.seen, 'the first observation')
        assert process.end(number) == 0
        assert 'Traceback' not in process.output()
