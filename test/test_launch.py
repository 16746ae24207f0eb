"""The launch files, run by the real launch_ros from the installed package."""

import json
import os
from pathlib import Path
import re
import runpy
import sys

import pytest

pytest.importorskip(
    'launch_ros', reason='launch_ros is not on PyPI; these tests need a ROS 2 that has it')
packages = pytest.importorskip('ament_index_python.packages')
try:
    SHARE = Path(packages.get_package_share_directory('idql_ros'))
except packages.PackageNotFoundError:
    pytest.skip('idql_ros is not installed here: colcon build', allow_module_level=True)

from idql_ros import recorded  # noqa: E402
from idql_ros.policy import default_path, Policy, PolicyError  # noqa: E402
from launch import (  # noqa: E402
    actions,
    event_handlers,
    events,
    LaunchContext,
    LaunchDescription,
    LaunchService,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource  # noqa: E402


def run(name, arguments, end_at=None, limit_s=120.0):
    """Run an installed launch file until a process ends, or one has written `end_at`.

    Returns:
        What the processes wrote, and the exit code of each program.
    """
    written, codes = [], {}

    def shutdown(reason):
        return actions.EmitEvent(event=events.Shutdown(reason=reason))

    def on_output(event):
        written.append(event.text.decode())
        return shutdown('seen') if end_at is not None and end_at in ''.join(written) else None

    def on_exit(event, _):
        codes[Path(event.cmd[0]).name] = event.returncode
        return shutdown('a process has ended')

    service = LaunchService(noninteractive=True)
    service.include_launch_description(LaunchDescription([
        actions.RegisterEventHandler(
            event_handlers.OnProcessIO(on_stdout=on_output, on_stderr=on_output)),
        actions.RegisterEventHandler(event_handlers.OnProcessExit(on_exit=on_exit)),
        actions.TimerAction(period=limit_s, actions=[shutdown('time is up')]),
        actions.IncludeLaunchDescription(
            PythonLaunchDescriptionSource(str(SHARE / 'launch' / name)),
            launch_arguments=arguments.items()),
    ]))
    assert service.run() == 0
    return ''.join(written), codes


@pytest.mark.parametrize(('name', 'expected'), [
    ('policy.launch.py', {
        'model', 'params_file', 'namespace', 'use_sim_time', 'autostart', 'enable_commands',
        'log_level'}),
    ('mujoco.launch.py', {
        'robot', 'environment', 'model', 'seed', 'episodes', 'lock_step', 'real_time_factor',
        'results_file', 'namespace', 'log_level'}),
])
def test_arguments_are_described_and_have_a_default(name, expected):
    description = runpy.run_path(str(SHARE / 'launch' / name))['generate_launch_description']()
    arguments = {argument.name: argument for argument in description.get_launch_arguments()}
    assert expected <= set(arguments)
    assert all(a.description and a.default_value is not None for a in arguments.values())


def test_policy_launch_starts_the_node_silent_and_ends_it_cleanly():
    written, codes = run('policy.launch.py', {}, end_at='dry run')
    assert 'dry run' in written
    assert 'Traceback' not in written
    assert codes == {'policy_node': 0}


def test_arguments_reach_the_node():
    missing = '/no/such/file.onnx'
    written, codes = run('policy.launch.py', {'model': missing})
    assert missing in written
    assert codes == {'policy_node': 1}


def test_record_launch_asks_for_every_topic_of_the_run_and_no_other(tmp_path, monkeypatch):
    # Stands for rosbag2, which may not be here, and says what it was asked for.
    program = tmp_path / 'ros2'
    program.write_text(f'#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n')
    program.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    written, codes = run('record.launch.py', {
        'namespace': 'one', 'output': '/tmp/a bag', 'storage': 'sqlite3', 'use_sim_time': 'true',
        'topics': 'camera /tf ~/candidates'})
    assert codes == {'ros2': 0}
    *command, option, expression = json.loads(next(
        line for line in written.splitlines() if line.startswith('[')))
    assert command == ['bag', 'record', '--storage', 'sqlite3', '--output', '/tmp/a bag',
                       '--use-sim-time']
    assert option == '--regex'
    topics = [*recorded.topics(Policy(default_path()).spec, '/one/policy_node'), '/one/camera',
              '/tf', '/one/policy_node/candidates']
    assert all(re.search(expression, topic) for topic in topics)
    assert not any(re.search(expression, topic) for topic in (
        '/odom', '/one/odom2', '/two/one/odom', '/tf_static', '/rosout'))


def test_record_launch_takes_no_spec_from_a_file_that_fails_its_check(tmp_path):
    onnx = pytest.importorskip('onnx', reason='onnx is not installed')
    model = onnx.load(default_path())
    model.ir_version = 9  # ONNX Runtime would take it
    onnx.save(model, tmp_path / 'p.onnx')
    context = LaunchContext()
    context.launch_configurations.update(
        model=str(tmp_path / 'p.onnx'), namespace='', node='policy_node')
    recorder = runpy.run_path(str(SHARE / 'launch' / 'record.launch.py'))['_recorder']
    with pytest.raises(PolicyError, match='IR version: expected 8'):
        recorder(context)


def test_mujoco_launch_runs_the_asked_episodes_and_ends(tmp_path):
    pytest.importorskip('ogbench', reason='the simulation needs pip install ogbench')
    results = tmp_path / 'results.jsonl'
    written, codes = run('mujoco.launch.py', {
        'episodes': '2', 'seed': '3', 'real_time_factor': '0', 'results_file': str(results)})
    assert 'Traceback' not in written
    assert codes == {'policy_node': 0, 'sim_node': 0}
    episodes = [json.loads(line) for line in results.read_text().splitlines()]
    assert [episode['command_timeouts'] for episode in episodes] == [0, 0]
