"""Start a simulated robot and the policy that drives it; ends when the asked episodes are over."""

import os
from pathlib import Path

from ament_index_python.packages import get_package_share_directory, PackageNotFoundError
from idql_ros import markers, vetting
from idql_ros.spec import load
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    IncludeLaunchDescription,
    LogInfo,
    OpaqueFunction,
    Shutdown,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import Command, LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
import yaml

# Arguments that sim_node takes as they are.
_SIM_NODE = {
    'environment': str, 'seed': int, 'episodes': int, 'lock_step': bool, 'real_time_factor': float,
    'results_file': str, 'image_rate': float, 'image_width': int, 'image_height': int, 'film': str,
    'film_speed': float}


def _start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Return the policy, the simulation and what shows them."""
    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    share = Path(get_package_share_directory('idql_ros'))
    robot, view = value('robot'), value('view')
    spec_path = share / 'config' / 'robots' / f'{robot}.yaml'
    model = Path(value('model') or share / 'config' / 'policies' / f'{robot}.onnx')
    spec = load(spec_path)
    if not model.is_file():
        raise FileNotFoundError(
            f'robot {robot}: expected a policy file, found none at {model}: give one with '
            'model:=FILE')
    asked = value('description') == 'true'
    looked_at = view == 'rviz' or asked or value('film') or float(value('image_rate')) > 0.0
    drawn = looked_at and not markers.why_nowhere(vetting.read_spec(str(model)))
    frame = spec.space.frame_id if spec.space else 'world'
    shown = [_rviz(robot, frame, share)] if view == 'rviz' else []
    description = share / 'config' / 'descriptions' / f'{robot}.yaml'
    if asked or view == 'rviz' and description.is_file():
        try:
            shown += _description(robot, description, frame)
        except FileNotFoundError as error:
            if asked:
                raise
            shown.append(LogInfo(msg=f'RViz does not show the robot itself: {error}'))
    return [
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(str(share / 'launch' / 'policy.launch.py')),
            launch_arguments={
                'model': str(model),
                'namespace': value('namespace'),
                'log_level': value('log_level'),
                'use_sim_time': 'true',
                'enable_commands': 'true',  # there is nothing to hurt
                'publish_candidates': 'true' if drawn else '',
            }.items(),
        ),
        Node(
            package='idql_ros',
            executable='sim_node',
            name='sim_node',
            namespace=value('namespace'),
            parameters=[{
                'spec': str(spec_path),
                'window': view == 'window',
                **{name: ParameterValue(LaunchConfiguration(name), value_type=value_type)
                   for name, value_type in _SIM_NODE.items()},
            }],
            ros_arguments=['--log-level', value('log_level')],
            output='screen',
            on_exit=Shutdown(reason='the simulation has ended'),
        ),
        *shown,
    ]


def _rviz(robot: str, frame: str, share: Path) -> Node:
    """Return RViz.

    Raises:
        FileNotFoundError: it is not installed.
    """
    if missing := _missing('rviz2'):
        raise FileNotFoundError(f'view:=rviz: expected RViz, found none: {missing}')
    config = share / 'config' / f'{robot}.rviz'
    if not config.is_file():
        config = share / 'config' / 'policy_node.rviz'
    return Node(
        package='rviz2', executable='rviz2', name='rviz2', output='screen',
        arguments=['-d', str(config), '-f', frame], parameters=[{'use_sim_time': True}])


def _description(robot: str, path: Path, frame: str) -> list[Node]:
    """Return what tells a robot's shape and where its links are: in frames ROBOT/..., on `frame`.

    Raises:
        FileNotFoundError: there is no such file, or a package is not installed.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f'robot {robot}: expected a file that names its description, found none at {path}')
    description = yaml.safe_load(path.read_text())
    package = description['package']
    if missing := _missing('robot_state_publisher', 'tf2_ros', 'xacro', package):
        raise FileNotFoundError(
            f'robot {robot}: expected the packages that publish its description, found not all '
            f'of them: {missing}')
    xacro = Command([
        'xacro ', str(Path(get_package_share_directory(package)) / description['file']), ' ',
        description['arguments']])
    return [
        Node(
            package='robot_state_publisher', executable='robot_state_publisher',
            namespace=LaunchConfiguration('namespace'), output='screen',
            parameters=[{
                'robot_description': ParameterValue(xacro, value_type=str),
                'frame_prefix': f'{robot}/',
                'use_sim_time': True}]),
        Node(
            package='tf2_ros', executable='static_transform_publisher', output='screen',
            arguments=['--yaw', str(description['yaw']), '--frame-id', frame,
                       '--child-frame-id', f'{robot}/{description["root"]}']),
    ]


def _missing(*packages: str) -> str:
    """Return how to install those packages that are not; '' where all are."""
    names = []
    for package in packages:
        try:
            get_package_share_directory(package)
        except PackageNotFoundError:
            names.append(f'ros-{os.environ.get("ROS_DISTRO", "DISTRO")}-'
                         + package.replace('_', '-'))
    return f'apt install {" ".join(names)}' if names else ''


def generate_launch_description() -> LaunchDescription:
    """Return the arguments, the policy and the simulation."""
    return LaunchDescription([
        DeclareLaunchArgument(
            'robot', default_value='pointmaze_medium',
            description='Name of a robot in config/robots; its policy is that of config/policies '
                        'where no model is given.'),
        DeclareLaunchArgument(
            'environment', default_value='',
            description='module:factory or a Gymnasium id. Empty: the one of the robot.'),
        DeclareLaunchArgument(
            'model', default_value='',
            description='Policy file (.onnx) of this robot. Empty: the installed one.'),
        DeclareLaunchArgument(
            'seed', default_value='0', description='Of the first episode; the next has seed + 1.'),
        DeclareLaunchArgument(
            'episodes', default_value='0', description='Episodes to run. 0: endless.'),
        DeclareLaunchArgument(
            'lock_step', default_value='true', choices=['true', 'false'],
            description='Wait at each tick until its command is there.'),
        DeclareLaunchArgument(
            'real_time_factor', default_value='1.0',
            description='Simulated seconds in a second; 0: as fast as possible.'),
        DeclareLaunchArgument(
            'results_file', default_value='',
            description='Where to write a line of JSON for each episode.'),
        DeclareLaunchArgument(
            'view', default_value='none', choices=['none', 'window', 'rviz'],
            description="What shows the robot: nothing, MuJoCo's own window, or RViz (with the "
                        'topics of an empty namespace).'),
        DeclareLaunchArgument(
            'description', default_value='false', choices=['true', 'false'],
            description="Publish the robot's shape and frames, and the candidates, for an RViz or "
                        'Foxglove of your own; view:=rviz does so where the robot has a '
                        'description.'),
        DeclareLaunchArgument(
            'image_rate', default_value='0.0',
            description='Pictures in a simulated second on sim_node/image. 0: none.'),
        DeclareLaunchArgument(
            'image_width', default_value='320', description='Of a picture, in pixels.'),
        DeclareLaunchArgument(
            'image_height', default_value='240', description='Of a picture, in pixels.'),
        DeclareLaunchArgument(
            'film', default_value='',
            description='Where to write a film (.mp4 or .gif) of the first episode. Empty: none.'),
        DeclareLaunchArgument(
            'film_speed', default_value='1.0',
            description='Simulated seconds in a second of the film.'),
        DeclareLaunchArgument(
            'namespace', default_value='', description='Namespace of both nodes.'),
        DeclareLaunchArgument(
            'log_level', default_value='info', description='Level of what is logged.'),
        OpaqueFunction(function=_start),
    ])
