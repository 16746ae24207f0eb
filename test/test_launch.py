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
from idql_ros.environments import make, ROBOTS  # noqa: E402
from idql_ros.policy import default_path, Policy, PolicyError  # noqa: E402
from idql_ros.spec import SpecError  # noqa: E402
from launch import (  # noqa: E402
    actions,
    event_handlers,
    events,
    LaunchContext,
    LaunchDescription,
    LaunchService,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource  # noqa: E402
import numpy as np  # noqa: E402
import yaml  # noqa: E402


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
        'publish_candidates', 'log_level'}),
    ('mujoco.launch.py', {
        'robot', 'environment', 'model', 'seed', 'episodes', 'lock_step', 'real_time_factor',
        'results_file', 'view', 'description', 'image_rate', 'image_width', 'image_height', 'film',
        'film_speed', 'namespace', 'log_level'}),
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


def test_mujoco_launch_films_an_episode_with_the_candidates(tmp_path):
    pytest.importorskip('ogbench', reason='the simulation needs pip install ogbench')
    image = pytest.importorskip('PIL.Image', reason='pillow is not installed')
    film = tmp_path / 'film.gif'
    written, codes = run('mujoco.launch.py', {
        'episodes': '1', 'seed': '3', 'real_time_factor': '0', 'image_rate': '1.0',
        'image_width': '200', 'image_height': '200', 'film': str(film)})
    if 'expected OpenGL' in written:
        pytest.skip('no OpenGL without a screen')
    assert codes == {'policy_node': 0, 'sim_node': 0} and 'Traceback' not in written
    with image.open(film) as opened:
        assert opened.n_frames > 5
        opened.seek(2)
        red, green, blue = (channel.astype(int) for channel in np.asarray(
            opened.convert('RGB')).transpose(2, 0, 1))
    # The line to the chosen candidate; nothing in the maze is green.
    assert np.count_nonzero((green > 100) & (green > 1.5 * red) & (green > 1.5 * blue)) > 3


def started(monkeypatch, absent=(), **arguments):
    """Return what mujoco.launch.py starts, as if only `absent` of what shows it were not here.

    Returns:
        Package -> node, and the text of its log.
    """
    launch_file = runpy.run_path(str(SHARE / 'launch' / 'mujoco.launch.py'))
    installed = {'idql_ros': SHARE, **{name: Path('/opt') / name for name in (
        'rviz2', 'robot_state_publisher', 'tf2_ros', 'xacro', 'ur_description')}}

    def share(package):
        if package in absent:
            raise packages.PackageNotFoundError(package)
        return str(installed[package])

    monkeypatch.setitem(
        launch_file['_start'].__globals__, 'get_package_share_directory', share)
    context = LaunchContext()
    for argument in launch_file['generate_launch_description']().get_launch_arguments():
        context.launch_configurations[argument.name] = ''.join(
            part.perform(context) for part in argument.default_value)
    context.launch_configurations.update(arguments)
    entities = launch_file['_start'](context)
    said = ''.join(part.perform(context) for entity in entities
                   if isinstance(entity, actions.LogInfo) for part in entity.msg)
    policy, = (e for e in entities if isinstance(e, actions.IncludeLaunchDescription))
    return {
        'policy': dict(policy.launch_arguments),
        **{e.node_package: e for e in entities if hasattr(e, 'node_package')}}, said


@pytest.mark.parametrize(('arguments', 'absent', 'expected'), [
    ({'robot': 'hopper'}, (), 'robot hopper: expected a policy file'),
    ({'robot': 'nobody'}, (), 'nobody.yaml'),
    ({'view': 'rviz'}, ['rviz2'], 'view:=rviz: expected RViz, found none: apt install ros-'),
    ({'description': 'true'}, (),
     'robot pointmaze_medium: expected a file that names its description, found none at '),
    ({'robot': 'ur5e_cube', 'description': 'true'}, ['ur_description'],
     'robot ur5e_cube: expected the packages that publish its description, found not all of '
     'them: apt install ros-'),
])
def test_mujoco_launch_says_what_is_missing(monkeypatch, arguments, absent, expected):
    with pytest.raises((SpecError, FileNotFoundError), match=re.escape(expected)):
        started(monkeypatch, absent, **arguments)


SHOWING = {'robot_state_publisher', 'tf2_ros'}


@pytest.mark.parametrize(('arguments', 'shown'), [
    ({}, set()),
    ({'view': 'window'}, set()),
    ({'view': 'rviz'}, {'rviz2', *SHOWING}),
    ({'description': 'true'}, SHOWING),
    ({'view': 'window', 'description': 'true'}, SHOWING),
    ({'view': 'rviz', 'description': 'true'}, {'rviz2', *SHOWING}),
    ({'robot': 'pointmaze_medium', 'view': 'rviz'}, {'rviz2'}),
])
def test_the_description_of_the_arm_is_published_for_rviz_and_where_it_is_asked_for(
        monkeypatch, arguments, shown):
    nodes, said = started(monkeypatch, **{'robot': 'ur5e_cube', **arguments})
    assert set(nodes) == {'policy', 'idql_ros', *shown} and not said
    assert nodes['policy']['publish_candidates'] == ('true' if shown else '')


def test_without_ur_description_rviz_starts_and_it_is_said_what_to_install(monkeypatch):
    nodes, said = started(
        monkeypatch, ['robot_state_publisher', 'tf2_ros', 'xacro', 'ur_description'],
        robot='ur5e_cube', view='rviz')
    assert set(nodes) == {'policy', 'idql_ros', 'rviz2'}
    assert re.search('apt install ros-.*robot-state-publisher ros-.*tf2-ros ros-.*xacro '
                     'ros-.*-ur-description', said)


# Stands for a program that may not be here: says what it was given, until it is interrupted.
STAND_IN = f"""#!{sys.executable}
import json, pathlib, signal, sys
signal.signal(signal.SIGINT, lambda *_: sys.exit())
given = sys.argv[1:]
files = [pathlib.Path(path).read_text() for option, path in zip(given, given[1:])
         if option == '--params-file']
print(json.dumps([pathlib.Path(sys.argv[0]).name, given, files]), flush=True)
signal.pause()
"""


def test_the_arm_is_described_in_frames_of_its_own_on_the_frame_of_its_spec(tmp_path, monkeypatch):
    pytest.importorskip('ogbench', reason='the simulation needs pip install ogbench')
    programs = {'robot_state_publisher': 'robot_state_publisher/robot_state_publisher',
                'tf2_ros': 'tf2_ros/static_transform_publisher'}
    for package in (*programs, 'xacro', 'ur_description'):
        (tmp_path / 'share' / package).mkdir(parents=True)
        marker = tmp_path / 'share/ament_index/resource_index/packages' / package
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    for path, text in (*((f'lib/{path}', STAND_IN) for path in programs.values()),
                       ('bin/xacro', '#!/bin/sh\necho "<robot> $* </robot>"\n')):
        program = tmp_path / path
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
    monkeypatch.setenv('AMENT_PREFIX_PATH', f'{tmp_path}:{os.environ["AMENT_PREFIX_PATH"]}')
    monkeypatch.setenv('PATH', f'{tmp_path / "bin"}:{os.environ["PATH"]}')
    written, codes = run('mujoco.launch.py', {
        'robot': 'ur5e_cube', 'description': 'true', 'namespace': 'one', 'episodes': '1',
        'real_time_factor': '0'})
    assert codes == dict.fromkeys(
        ('policy_node', 'sim_node', 'robot_state_publisher', 'static_transform_publisher'), 0)
    given = {name: (arguments, files) for name, arguments, files in (
        json.loads(line) for line in written.splitlines() if line.startswith('["'))}
    arguments, files = given['robot_state_publisher']
    assert '__ns:=/one' in arguments
    parameters = {name: value for text in files for node in yaml.safe_load(text).values()
                  for name, value in node['ros__parameters'].items()}
    assert parameters == {
        'robot_description': f'<robot> {tmp_path}/share/ur_description/urdf/ur.urdf.xacro '
                             'ur_type:=ur5e name:=ur </robot>\n',
        'frame_prefix': 'ur5e_cube/', 'use_sim_time': True}
    arguments, _ = given['static_transform_publisher']
    assert arguments[:6] == ['--yaw', str(0.5 * np.pi), '--frame-id', 'world',
                             '--child-frame-id', 'ur5e_cube/world']


# Where a joint of a UR5e lies in the link before: x, y, z (m), roll, pitch, yaw; ur_description's
# config/ur5e/default_kinematics.yaml, after the half turn of base_link_inertia.
UR5E = [(0, 0, 0.1625, 0, 0, 0), (0, 0, 0, np.pi / 2, 0, 0), (-0.425, 0, 0, 0, 0, 0),
        (-0.3922, 0, 0.1333, 0, 0, 0), (0, -0.0997, 0, np.pi / 2, 0, 0),
        (0, 0.0996, 0, np.pi / 2, np.pi, np.pi)]


def turned(axis, angle):
    """Return the rotation about an axis, 0 to 2, (4, 4)."""
    matrix, (i, j) = np.eye(4), ((1, 2), (2, 0), (0, 1))[axis]
    matrix[[i, i, j, j], [i, j, i, j]] = (
        np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle))
    return matrix


def test_the_arm_in_rviz_stands_as_the_simulated_one():
    pytest.importorskip('ogbench', reason='the simulation needs pip install ogbench')
    description = yaml.safe_load(
        (SHARE / 'config' / 'descriptions' / 'ur5e_cube.yaml').read_text())
    env = make(ROBOTS['ur5e_cube'])
    for seed in range(3):
        observation, _ = env.reset(seed=seed)
        flange = turned(2, description['yaw']) @ turned(2, np.pi)
        for (x, y, z, roll, pitch, own_yaw), angle in zip(
                UR5E, observation['arm_position'], strict=True):
            moved = np.eye(4)
            moved[:3, 3] = x, y, z
            flange = flange @ moved @ turned(2, own_yaw) @ turned(1, pitch) @ turned(
                0, roll) @ turned(2, angle)
        simulated = env.unwrapped.data.site('ur5e/attachment_site').xpos
        assert flange[:3, 3] == pytest.approx(simulated, abs=2e-3)
    env.close()
