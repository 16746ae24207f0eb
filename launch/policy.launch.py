"""Start policy_node: observe a robot, act, and send commands if enable_commands says so."""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction
from launch.conditions import UnlessCondition
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare


def _node(context: LaunchContext) -> list[Node]:
    """Return the node; what is empty is left to the parameter file, and then to the node."""
    arguments = {'use_sim_time': bool, 'autostart': bool, 'enable_commands': bool}
    for name, value_type in (('model', str), ('publish_candidates', bool)):
        if LaunchConfiguration(name).perform(context):
            arguments[name] = value_type
    return [Node(
        package='idql_ros',
        executable='policy_node',
        name='policy_node',
        namespace=LaunchConfiguration('namespace'),
        parameters=[LaunchConfiguration('params_file'), {
            # Typed, as a path or a name may look like a number.
            name: ParameterValue(LaunchConfiguration(name), value_type=value_type)
            for name, value_type in arguments.items()
        }],
        ros_arguments=['--log-level', LaunchConfiguration('log_level')],
        output='screen',
    )]


def generate_launch_description() -> LaunchDescription:
    """Return the arguments and the node."""
    share = FindPackageShare('idql_ros')
    return LaunchDescription([
        DeclareLaunchArgument(
            'model', default_value='',
            description='Policy file (.onnx). Empty: as in params_file, else the installed one.'),
        DeclareLaunchArgument(
            'params_file',
            default_value=PathJoinSubstitution([share, 'config', 'policy_node.yaml']),
            description='Parameters that are not arguments here; arguments win over it.'),
        DeclareLaunchArgument(
            'namespace', default_value='',
            description='Namespace of the node and, with it, of the robot topics.'),
        DeclareLaunchArgument(
            'use_sim_time', default_value='false', choices=['true', 'false'],
            description='Take the time from /clock.'),
        DeclareLaunchArgument(
            'autostart', default_value='true', choices=['true', 'false'],
            description='Configure and activate the node at once.'),
        DeclareLaunchArgument(
            'enable_commands', default_value='false', choices=['true', 'false'],
            description='Send commands to the robot. false: they only go to ~/command_preview.'),
        DeclareLaunchArgument(
            'publish_candidates', default_value='', choices=['', 'true', 'false'],
            description='Publish the candidates as markers. Empty: as in params_file.'),
        DeclareLaunchArgument(
            'log_level', default_value='info', description='Level of what is logged.'),
        LogInfo(
            condition=UnlessCondition(LaunchConfiguration('enable_commands')),
            msg='Commands are not sent to the robot, only to ~/command_preview. '
                'To send them: enable_commands:=true'),
        OpaqueFunction(function=_node),
    ])
