"""Start Gazebo with a robot in its world, the bridge to ROS, the policy, and their reset."""

import re
import shlex
from xml.etree import ElementTree

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare


def _world_name(path: str) -> str:
    """Return the name of the world in a file.

    Raises:
        ValueError: It cannot be read, or has no name that a service can be called by.
    """
    try:
        world = ElementTree.parse(path).find('world')
    except (OSError, ElementTree.ParseError) as error:
        raise ValueError(
            f'world:={path}: expected the path of a world (.sdf), found: {error}') from None
    name = None if world is None else world.get('name')
    if not re.fullmatch('[A-Za-z_][A-Za-z0-9_]*', name or ''):
        raise ValueError(
            f'world:={path}: expected a <world> right below the root, named with letters, digits '
            f'and underscores, no digit first, found {"none" if name is None else repr(name)}')
    return name


def _simulation(context: LaunchContext) -> list[IncludeLaunchDescription | Node]:
    """Return Gazebo, the bridge and the reset: all that needs the name of the world."""
    world = LaunchConfiguration('world').perform(context)
    name = _world_name(world)
    options = '-r -s' if LaunchConfiguration('headless').perform(context) == 'true' else '-r'
    return [
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(PathJoinSubstitution(
                [FindPackageShare('ros_gz_sim'), 'launch', 'gz_sim.launch.py'])),
            launch_arguments={
                'gz_args': f'{options} {shlex.quote(world)}',
                'on_exit_shutdown': 'true',
            }.items(),
        ),
        Node(
            package='ros_gz_bridge',
            executable='parameter_bridge',
            name='gazebo_bridge',
            namespace=LaunchConfiguration('namespace'),
            parameters=[{
                'config_file': ParameterValue(LaunchConfiguration('bridge'), value_type=str),
            }],
            # Not in the file: bridges of before 2025 take services from the command line only.
            arguments=[f'/world/{name}/control@ros_gz_interfaces/srv/ControlWorld'],
            ros_arguments=['--log-level', LaunchConfiguration('log_level')],
            output='screen',
        ),
        Node(
            package='idql_ros',
            executable='gazebo_reset_node',
            name='gazebo_reset_node',
            namespace=LaunchConfiguration('namespace'),
            parameters=[{'world': ParameterValue(name, value_type=str)}],
            ros_arguments=['--log-level', LaunchConfiguration('log_level')],
            output='screen',
        ),
    ]


def generate_launch_description() -> LaunchDescription:
    """Return the arguments, the simulation and the policy."""
    share = FindPackageShare('idql_ros')
    return LaunchDescription([
        DeclareLaunchArgument(
            'world',
            default_value=PathJoinSubstitution([share, 'config/gazebo/pointmaze_medium.sdf']),
            description='World (.sdf) with the robot in it.'),
        DeclareLaunchArgument(
            'bridge',
            default_value=PathJoinSubstitution(
                [share, 'config/gazebo/pointmaze_medium.bridge.yaml']),
            description='Topics that pass between ROS and Gazebo; for ros_gz_bridge.'),
        DeclareLaunchArgument(
            'headless', default_value='false', choices=['true', 'false'],
            description='Run without a window.'),
        DeclareLaunchArgument(
            'model', default_value='',
            description='Policy file (.onnx) of this robot. Empty: the installed one.'),
        DeclareLaunchArgument(
            'enable_commands', default_value='true', choices=['true', 'false'],
            description='Send commands to the robot: there is nothing to hurt.'),
        DeclareLaunchArgument(
            'namespace', default_value='', description='Namespace of all nodes.'),
        DeclareLaunchArgument(
            'log_level', default_value='info', description='Level of what is logged.'),
        # Before the policy: where Gazebo is not installed, nothing is started.
        OpaqueFunction(function=_simulation),
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(
                PathJoinSubstitution([share, 'launch', 'policy.launch.py'])),
            launch_arguments={
                'model': LaunchConfiguration('model'),
                'namespace': LaunchConfiguration('namespace'),
                'log_level': LaunchConfiguration('log_level'),
                'enable_commands': LaunchConfiguration('enable_commands'),
                'use_sim_time': 'true',
            }.items(),
        ),
    ])
