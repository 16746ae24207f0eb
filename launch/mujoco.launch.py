"""Start a simulated robot and the policy that drives it; ends when the asked episodes are over."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare


def generate_launch_description() -> LaunchDescription:
    """Return the arguments, the policy and the simulation."""
    share = FindPackageShare('idql_ros')
    return LaunchDescription([
        DeclareLaunchArgument(
            'robot', default_value='pointmaze_medium',
            description='Name of a robot in config/robots.'),
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
            'namespace', default_value='', description='Namespace of both nodes.'),
        DeclareLaunchArgument(
            'log_level', default_value='info', description='Level of what is logged.'),
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(
                PathJoinSubstitution([share, 'launch', 'policy.launch.py'])),
            launch_arguments={
                'model': LaunchConfiguration('model'),
                'namespace': LaunchConfiguration('namespace'),
                'log_level': LaunchConfiguration('log_level'),
                'use_sim_time': 'true',
                'enable_commands': 'true',  # there is nothing to hurt
            }.items(),
        ),
        Node(
            package='idql_ros',
            executable='sim_node',
            name='sim_node',
            namespace=LaunchConfiguration('namespace'),
            parameters=[{
                'spec': ParameterValue(
                    [share, '/config/robots/', LaunchConfiguration('robot'), '.yaml'],
                    value_type=str),
                **{
                    name: ParameterValue(LaunchConfiguration(name), value_type=value_type)
                    for name, value_type in (
                        ('environment', str),
                        ('seed', int),
                        ('episodes', int),
                        ('lock_step', bool),
                        ('real_time_factor', float),
                        ('results_file', str),
                    )
                },
            }],
            ros_arguments=['--log-level', LaunchConfiguration('log_level')],
            output='screen',
            on_exit=Shutdown(reason='the simulation has ended'),
        ),
    ])
