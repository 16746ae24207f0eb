"""Records a run as record.launch.py does where there is no rosbag2: the same topics, by rosbags.

Arguments: the bag, the policy file, the node. Prints 'recording' when every topic of the policy
and of its decisions has a publisher; SIGINT ends it.
"""

from pathlib import Path
import signal
import sys
import threading
import time

from idql_ros import message as messages
from idql_ros import recorded
from idql_ros.policy import Policy
import rclpy
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.signals import SignalHandlerOptions
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores

# Of what does not come from the spec.
TYPES = {
    'estop': 'std_msgs/msg/Bool', 'deadman': 'std_msgs/msg/Bool',
    'decision': 'std_msgs/msg/Float64MultiArray', 'value': 'std_msgs/msg/Float64MultiArray',
    'command_preview': 'std_msgs/msg/Float64MultiArray',
    'status': 'diagnostic_msgs/msg/DiagnosticStatus',
    'diagnostics': 'diagnostic_msgs/msg/DiagnosticArray', 'clock': 'rosgraph_msgs/msg/Clock'}


def main():
    """Write every message, in its bytes, when it comes."""
    bag, policy, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    spec = Policy(policy).spec
    streams = (*spec.observations, *spec.actions)
    of_spec = {recorded.full_name(s.topic, name): s.type for s in streams}
    types = {topic: of_spec.get(topic) or TYPES[topic.rpartition('/')[2]]
             for topic in recorded.topics(spec, name)}
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    ended = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: ended.set())
    node = rclpy.create_node('recorder')
    typestore = get_typestore(Stores.ROS2_JAZZY)
    with Writer(bag, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        for topic, message_type in types.items():
            connection = writer.add_connection(topic, message_type, typestore=typestore)
            qos = QoSProfile(depth=1000)
            if topic.endswith('/status'):
                qos.durability = DurabilityPolicy.TRANSIENT_LOCAL
            node.create_subscription(
                messages.ros_class(message_type), topic,
                lambda content, connection=connection: writer.write(
                    connection, time.time_ns(), content), qos, raw=True)
        awaited = [*of_spec, recorded.full_name('~/decision', name)]
        told = False
        while not ended.is_set():
            rclpy.spin_once(node, timeout_sec=0.1)
            if not told and all(node.count_publishers(topic) for topic in awaited):
                told = True
                print('recording', flush=True)
    rclpy.shutdown()


if __name__ == '__main__':
    main()
