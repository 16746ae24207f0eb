"""Writes small bags, for the tests of what is made of them."""

from idql_ros import message as messages
from idql_ros import spec as specs
import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores

MS = 10**6
T = 1_000 * 10**9  # where a period of every rate used here begins

ODOMETRY = {'name': 'position', 'topic': 'odom', 'type': 'nav_msgs/msg/Odometry',
            'fields': ['pose.pose.position.x', 'pose.pose.position.y'], 'unit': 'm',
            'max_age': 0.25}
JOINTS = {'name': 'joints', 'topic': 'joint_states', 'type': 'sensor_msgs/msg/JointState',
          'fields': ['position[elbow]', 'velocity[elbow]'], 'operations': [{'scale': [1.0, 0.1]}],
          'unit': 'rad', 'max_age': 0.25}
LEVEL = {'name': 'level', 'topic': 'level', 'type': 'std_msgs/msg/Float32', 'fields': ['data'],
         'unit': '1', 'max_age': 0.25}
LIMITED = {'kind': 'velocity', 'unit': 'm/s', 'lower': -10, 'upper': 10, 'stop': 'zero'}
VELOCITY = {'name': 'velocity', 'topic': 'cmd_vel', 'type': 'geometry_msgs/msg/TwistStamped',
            'fields': ['twist.linear.x'], 'dimensions': [LIMITED]}
GRIPPER = {'name': 'gripper', 'topic': 'gripper', 'type': 'std_msgs/msg/Float64',
           'fields': ['data'], 'dimensions': [LIMITED]}


def robot(observations=(ODOMETRY,), actions=(VELOCITY,), rate=2, tick='arrival', **more):
    """Return a spec."""
    return specs.parse({'spec_version': 1, 'name': 'robot', 'rate': rate, 'tick': tick,
                        'observations': list(observations), 'actions': list(actions), **more},
                       'robot')


class Recording:
    """Messages on the topics of a spec, and the bag they become."""

    def __init__(self, spec):
        """Begin with no message."""
        self.spec = spec
        self._streams = {s.name: s for s in (*spec.observations, *spec.actions)}
        self.typestore = get_typestore(Stores.ROS2_JAZZY)
        # (log time, topic, type, bytes)
        self.entries = []

    def add(self, name, values, stamp_ns, logged_ns=None):
        """Add a message of a signal or command, by default logged 1 ms after its stamp."""
        stream = self._streams[name]
        message = messages.write(
            stream, np.array(values, float), messages.blank(stream.type), stamp_ns)
        self.add_message(stream.topic, message, stamp_ns + MS if logged_ns is None else logged_ns)

    def add_message(self, topic, message, logged_ns):
        """Add any plain message."""
        message_type = message.__msgtype__
        self.entries.append((logged_ns, topic, message_type,
                             bytes(self.typestore.serialize_cdr(message, message_type))))

    def logged(self):
        """Yield (topic, log time, message), as a bag's reader does."""
        for logged_ns, topic, message_type, content in sorted(
                self.entries, key=lambda entry: entry[0]):
            yield topic, logged_ns, self.typestore.deserialize_cdr(content, message_type)

    def save(self, path, storage='mcap', silent=()):
        """Write the bag, with the topics of the spec and those of the messages; return the path.

        Args:
            path: The folder.
            storage: 'mcap' or 'sqlite3'.
            silent: Names of streams whose topic shall not be in the bag.
        """
        topics = {s.topic: s.type for name, s in self._streams.items() if name not in silent}
        topics |= {topic: message_type for _, topic, message_type, _ in self.entries}
        plugin = {'mcap': StoragePlugin.MCAP, 'sqlite3': StoragePlugin.SQLITE3}[storage]
        with Writer(path, version=9, storage_plugin=plugin) as writer:
            connections = {
                topic: writer.add_connection(
                    f'/{topic.lstrip("/")}', message_type, typestore=self.typestore)
                for topic, message_type in topics.items()}
            for logged_ns, topic, _, content in sorted(self.entries, key=lambda entry: entry[0]):
                writer.write(connections[topic], logged_ns, content)
        return path


def drive(ticks, spec=None, start_ns=T, first=0):
    """Return a recording at 10 Hz, the command of each 2 Hz tick 10 ms after it.

    Tick k observes x = k, between ticks x = k + 0.2 ... k + 0.8, y = -x; its command is k / 10.
    """
    recording = Recording(spec or robot())
    for step in range(5 * ticks):
        stamp_ns = start_ns + 100 * MS * step
        x = first + step / 5
        recording.add('position', [x, -x], stamp_ns)
        if step % 5 == 0:
            recording.add('velocity', [x / 10], stamp_ns, stamp_ns + 10 * MS)
    return recording
