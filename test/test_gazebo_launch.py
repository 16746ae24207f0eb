"""gazebo.launch.py, run by the real launch_ros; programs stand for Gazebo and its bridge."""

import json
import os
import runpy
import sys
from xml.etree import ElementTree

import pytest
import yaml

installed = pytest.importorskip('test_launch')  # skips where that does

from launch import LaunchContext  # noqa: E402
from launch.utilities import perform_substitutions  # noqa: E402

SHARE = installed.SHARE
FILE = SHARE / 'launch' / 'gazebo.launch.py'
WORLD = SHARE / 'config' / 'gazebo' / 'pointmaze_medium.sdf'
# Says what it was called with, and stays, as Gazebo and its bridge do.
PROGRAM = f"""#!{sys.executable}
import json, pathlib, signal, sys
files = [pathlib.Path(a).read_text() for a in sys.argv if a.startswith('/tmp/launch_params')]
print(json.dumps([pathlib.Path(sys.argv[0]).name, sys.argv[1:], files]), flush=True)
signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
signal.pause()
"""
GAZEBO = """
import pathlib
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess
from launch.substitutions import LaunchConfiguration


def generate_launch_description():
    return LaunchDescription([
        DeclareLaunchArgument('gz_args'), DeclareLaunchArgument('on_exit_shutdown'),
        ExecuteProcess(
            cmd=['exec', str(pathlib.Path(__file__).with_name('gazebo')),
                 LaunchConfiguration('gz_args'), LaunchConfiguration('on_exit_shutdown')],
            shell=True, output='screen')])
"""


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """Put packages in place that have the files and programs that the launch file asks for."""
    for package, files in (
            ('ros_gz_sim', {'share/ros_gz_sim/launch/gz_sim.launch.py': GAZEBO,
                            'share/ros_gz_sim/launch/gazebo': PROGRAM}),
            ('ros_gz_bridge', {'lib/ros_gz_bridge/parameter_bridge': PROGRAM})):
        files[f'share/ament_index/resource_index/packages/{package}'] = ''
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)
    (tmp_path / 'ros_gz_interfaces').mkdir()
    (tmp_path / 'ros_gz_interfaces' / 'srv.py').write_text(
        'from std_srvs.srv import SetBool as ControlWorld\n')
    for variable in ('AMENT_PREFIX_PATH', 'PYTHONPATH'):
        monkeypatch.setenv(variable, f'{tmp_path}:{os.environ.get(variable, "")}')


def simulation(**arguments):
    """Return what the launch file adds for Gazebo, and what it was performed with."""
    module = runpy.run_path(str(FILE))
    context = LaunchContext()
    for argument in module['generate_launch_description']().get_launch_arguments():
        context.launch_configurations[argument.name] = perform_substitutions(
            context, argument.default_value)
    context.launch_configurations.update(arguments)
    return module['_simulation'](context), context


def test_arguments_are_described_and_have_a_default():
    description = runpy.run_path(str(FILE))['generate_launch_description']()
    arguments = {argument.name: argument for argument in description.entities
                 if hasattr(argument, 'default_value')}
    assert set(arguments) == {'world', 'bridge', 'headless', 'model', 'enable_commands',
                              'namespace', 'log_level'}
    assert all(a.description and a.default_value is not None for a in arguments.values())


@pytest.mark.parametrize(('headless', 'options'), [('true', '-r -s'), ('false', '-r')])
def test_gazebo_is_asked_for_the_world_with_and_without_a_window(headless, options, tmp_path):
    path = tmp_path / 'a world.sdf'
    path.write_text(WORLD.read_text())
    (gazebo, *_), _ = simulation(headless=headless, world=str(path))
    assert dict(gazebo.launch_arguments)['gz_args'] == f"{options} '{path}'"


@pytest.mark.parametrize(('text', 'found'), [
    (None, 'No such file'), ('{}', 'not well-formed'), ('<sdf/>', 'found none'),
    ('<sdf><x><world name="maze"/></x></sdf>', 'found none'),
    ('<sdf><world/></sdf>', 'found none'),
    ('<sdf><world name=""/></sdf>', "found ''"),
    ('<sdf><world name="a maze"/></sdf>', "found 'a maze'"),
    ('<sdf><world name="2nd"/></sdf>', "found '2nd'")])
def test_world_that_no_service_can_be_named_after_is_refused_in_words(text, found, tmp_path):
    path = tmp_path / 'world.sdf'
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=found) as error:
        simulation(world=str(path))
    assert str(error.value).startswith(f'world:={path}: expected ')


def test_all_of_it_starts_together_and_ends_cleanly(stand_ins):
    written, codes = installed.run(
        'gazebo.launch.py', {'headless': 'true', 'namespace': 'one'}, end_at='commands are sent')
    assert 'Traceback' not in written
    assert {'policy_node': 0, 'gazebo_reset_node': 0, 'parameter_bridge': 0}.items() <= (
        codes.items())
    told = {name: (arguments, files) for name, arguments, files in (
        json.loads(line) for line in written.splitlines() if line.startswith('["'))}
    assert told['gazebo'][0] == ['-r', '-s', str(WORLD), 'true']
    arguments, files = told['parameter_bridge']
    name = ElementTree.parse(WORLD).find('world').get('name')
    assert arguments[0] == f'/world/{name}/control@ros_gz_interfaces/srv/ControlWorld'
    assert '__ns:=/one' in arguments
    parameters, = (next(iter(yaml.safe_load(text).values())) for text in files)
    config = parameters['ros__parameters']['config_file']
    assert {entry['ros_topic_name'] for entry in yaml.safe_load(open(config))} == {
        '/clock', 'odom', 'cmd_vel'}
