"""The environment of a test run: no ROS traffic with anything outside it."""

import fcntl
import importlib.util
import os
from pathlib import Path
import re
import tempfile

import pytest

# Set before any test module imports rclpy. Tests and what they start talk on a domain of their
# own, on this machine only: never on that of the shell, where a robot may listen. Each process (a
# run, or a worker of one) holds the lock of its domain as long as it lives.
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'


def _claim_domain() -> int:
    domains = [d for d in range(1, 102) if str(d) != os.environ.get('ROS_DOMAIN_ID')]
    for domain in domains:  # 1 to 101: their ports are free on every system
        path = Path(tempfile.gettempdir(), f'idql_ros_test_domain_{domain}.lock')
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except PermissionError:  # of another user
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        return domain
    raise RuntimeError('all ROS domains of this machine are taken by other test runs')


os.environ['ROS_DOMAIN_ID'] = str(_claim_domain())

# A robot has none of the workstation's packages: there `colcon test` tests the robot side alone.
collect_ignore = [] if importlib.util.find_spec('torch') else sorted(
    path.name for path in Path(__file__).parent.glob('test_*.py')
    if re.search(r'^(import|from) (minari|onnx|rosbags|torch|training)\b', path.read_text(), re.M))


def pytest_report_header() -> str:
    """Return what of this run is not visible in its tests."""
    left_out = f', without torch not run: {", ".join(collect_ignore)}' if collect_ignore else ''
    return f'ROS_DOMAIN_ID: {os.environ["ROS_DOMAIN_ID"]}{left_out}'


@pytest.fixture(scope='session')
def fast_policy(tmp_path_factory):
    """Return the default policy at a rate that keeps the tests of nodes short."""
    import harness
    return harness.policy_with(
        tmp_path_factory.mktemp('policy') / 'fast.onnx',
        lambda metadata: metadata['spec'].update(rate=harness.RATE))


@pytest.fixture(scope='session')
def policy():
    """Return the default policy."""
    from idql_ros.policy import default_path, Policy
    return Policy(default_path())


@pytest.fixture
def records(policy):
    """Return the records of ten decisions, made in three ways."""
    import replayed
    return [replayed.decided(policy, number, **replayed.WAYS[number % 3]) for number in range(10)]


@pytest.fixture
def robot():
    """Give the other side of a node."""
    import harness
    with harness.robot() as made:
        yield made


@pytest.fixture
def active(fast_policy, tmp_path):
    """Give a policy_node that started itself with commands enabled."""
    import harness
    with harness.running(harness.NODE, {
        'model': fast_policy, 'autostart': True, 'enable_commands': True,
    }, tmp_path / 'node.log') as process:
        yield process
