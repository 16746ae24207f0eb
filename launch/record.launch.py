"""Record a run with `ros2 bag record`: everything that `python -m training.replay` asks for."""

from idql_ros import recorded, vetting
from idql_ros.policy import default_path
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction
from launch.substitutions import LaunchConfiguration


def _recorder(context: LaunchContext) -> list[ExecuteProcess]:
    """Return the recorder of what the policy's spec names."""
    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    node = f'{value("namespace")}/{value("node")}'
    topics = [
        *recorded.topics(vetting.read_spec(value('model') or default_path()), node),
        *(recorded.full_name(topic, node) for topic in value('topics').split())]
    command = ['ros2', 'bag', 'record', '--storage', value('storage')]
    if value('output'):
        command += ['--output', value('output')]
    if value('use_sim_time') == 'true':
        command.append('--use-sim-time')
    return [ExecuteProcess(
        # Topics are subscribed to as they appear, with the QoS that their publishers offer. They
        # are given as an expression, which every distribution takes by the same name.
        cmd=[*command, '--regex', f'^({"|".join(topics)})$'],
        output='screen',
        # What is still in its cache is written after Ctrl-C.
        sigterm_timeout='60',
    )]


def generate_launch_description() -> LaunchDescription:
    """Return the arguments and the recorder."""
    return LaunchDescription([
        DeclareLaunchArgument(
            'model', default_value='',
            description='Policy file (.onnx) of the node; its spec tells the topics. Empty: the '
                        'installed one.'),
        DeclareLaunchArgument(
            'namespace', default_value='', description='Namespace of the node.'),
        DeclareLaunchArgument(
            'node', default_value='policy_node', description='Name of the node.'),
        DeclareLaunchArgument(
            'output', default_value='',
            description='Folder of the bag; it must not exist. Empty: named after the time.'),
        DeclareLaunchArgument(
            'storage', default_value='mcap', choices=['mcap', 'sqlite3'],
            description='Storage of the bag.'),
        DeclareLaunchArgument(
            'use_sim_time', default_value='false', choices=['true', 'false'],
            description='Log by /clock; as the node has it.'),
        DeclareLaunchArgument(
            'topics', default_value='',
            description='Further topics, separated by spaces, named as the node would; remapped '
                        'ones are to be given here.'),
        OpaqueFunction(function=_recorder),
    ])
