"""Bags of runs that no node made, and how a test replays them."""

import dataclasses

from idql_ros import decision_record
from idql_ros import message as messages
import numpy as np
from recording import MS, Recording
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores
from training import replay
from training.storage import Bag

JAZZY = get_typestore(Stores.ROS2_JAZZY)
DECISION = 'std_msgs/msg/Float64MultiArray'
T = 1_000 * 10**9
# The ways in which decisions are made.
WAYS = ({}, {'candidates': 3, 'extraction': 'implicit'},
        {'extraction': 'softmax', 'softmax_temperature': 5.0, 'sampling_temperature': 0.5})


def decision_message(record):
    """Return the message in which the node tells a decision."""
    labels, data = decision_record.pack(record)
    message = messages.blank(DECISION)
    for label, size in labels:
        dimension = messages.blank('std_msgs/msg/MultiArrayDimension')
        dimension.label, dimension.size = label, size
        message.layout.dim = [*message.layout.dim, dimension]
    message.data = data
    return message


def read_records(path):
    """Return the records in a bag."""
    return [decision_record.unpack([(d.label, d.size) for d in message.layout.dim], message.data)
            for _, _, message in read_messages(path, 'policy_node/decision')]


def decided(policy, number, **changes):
    """Return the record of the decision at a tick of 2 Hz."""
    tick_ns = T + 500 * MS * number
    observation = np.array([number / 10, 1.0], np.float32)
    settings = {'candidates': 8, 'extraction': 'greedy', 'softmax_temperature': 1.0,
                'sampling_temperature': 1.0, 'seed': 2**63 + 5} | changes
    decision = policy.decide(
        observation, tick_ns, settings['seed'], settings['candidates'],
        extraction=settings['extraction'], temperature=settings['softmax_temperature'],
        sampling_temperature=settings['sampling_temperature'])
    return decision_record.DecisionRecord(
        tick_ns=tick_ns, digest=decision_record.short_digest(policy.digest), q=decision.q,
        v=decision.v, q_mean=decision.q_mean, q_spread=decision.q_spread,
        distance=decision.distance, published=True, observation=observation,
        action=decision.action, sent=decision.action / 2, **settings)


def write_bag(path, spec, records, node='policy_node', log_ns=0):
    """Write what a run leaves; its log is `log_ns` ahead of the stamps."""
    recording = Recording(spec)
    namespace = node.rpartition('policy_node')[0]
    for record in records:
        tick_ns = record.tick_ns
        odometry = messages.write(spec.observations[0], record.observation,
                                  messages.blank('nav_msgs/msg/Odometry'), tick_ns)
        recording.add_message(f'{namespace}odom', odometry, tick_ns + MS + log_ns)
        if record.published:
            command = messages.write(spec.actions[0], record.sent,
                                     messages.blank(spec.actions[0].type), tick_ns)
            recording.add_message(f'{namespace}cmd_vel', command, tick_ns + 5 * MS + log_ns)
        recording.add_message(f'{node}/decision', decision_message(record),
                              tick_ns + 6 * MS + log_ns)
    return recording.save(path)


def changed(record, **changes):
    """Return a record with other numbers."""
    return dataclasses.replace(record, **changes)


def run(*arguments, capsys):
    """Return the exit status of the command line, what it printed, and its errors."""
    capsys.readouterr()
    code = replay.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith('error')]
    return code, printed.out, '\n'.join(errors)


def read_messages(path, topic):
    """Return what a bag holds of a topic."""
    with Bag(path) as bag:
        return list(bag.messages([topic]))


def rewrite(source, target, topic, change):
    """Copy a bag; each message of a topic becomes what `change()` returns; return the copy."""
    with Reader(source) as reader, Writer(
            target, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {c.id: writer.add_connection(c.topic, c.msgtype, typestore=JAZZY)
                       for c in reader.connections}
        for connection, log_ns, content in reader.messages():
            if connection.topic.lstrip('/') == topic:
                content = JAZZY.serialize_cdr(change(), connection.msgtype)
            writer.write(connections[connection.id], log_ns, content)
    return target
