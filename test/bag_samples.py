"""Small bags of every kind on disk, and what is in a bag by other means than the code under test.

Messages are counted by SQLite, and by a small reader of mcap.
"""

from collections import Counter
import shutil
import sqlite3
import struct
import sys
import tempfile

import lz4.frame
import numpy as np
import pytest
from rosbags import rosbag1, rosbag2
from rosbags.typesys import get_typestore, Stores
from training.storage import Bag, BagError
import yaml

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

T = 1_700_000_000 * 10**9
JAZZY = get_typestore(Stores.ROS2_JAZZY)
HUMBLE = get_typestore(Stores.ROS2_HUMBLE)
NOETIC = get_typestore(Stores.ROS1_NOETIC)
JOINTS, TEXT = 'sensor_msgs/msg/JointState', 'std_msgs/msg/String'
PLUGINS = {'mcap': rosbag2.StoragePlugin.MCAP, 'db3': rosbag2.StoragePlugin.SQLITE3}
MODES = {'plain': rosbag2.CompressionMode.NONE, 'file': rosbag2.CompressionMode.FILE,
         'message': rosbag2.CompressionMode.MESSAGE, 'storage': rosbag2.CompressionMode.STORAGE}


def joints(store, k):
    """Return a message of two joints that holds k."""
    header = store.types['std_msgs/msg/Header']
    stamp = store.types['builtin_interfaces/msg/Time'](k, 0)
    head = header(stamp, 'base') if store is not NOETIC else header(k, stamp, 'base')
    return store.types[JOINTS](
        head, ['a', 'b'], np.array([k, -k], float), np.zeros(2), np.zeros(0))


def text(store, k):
    """Return a message with the text k."""
    return store.types[TEXT](f'number {k}')


def recorded(first=0, count=20):
    """Return (topic, type, log time, k): two topics, each log time twice."""
    return [(topic, kind, T + k * 10**7, k) for k in range(first, first + count)
            for topic, kind in (('joint_states', JOINTS), ('rob/text', TEXT))]


def make(kind, k, store=JAZZY):
    """Return the message k of a type."""
    return joints(store, k) if kind == JOINTS else text(store, k)


def write2(path, entries, plugin='mcap', mode='plain', version=9, store=JAZZY):
    """Write a bag of rosbag2 with rosbags; return its folder."""
    writer = rosbag2.Writer(path, version=version, storage_plugin=PLUGINS[plugin])
    writer.set_compression(MODES[mode], rosbag2.CompressionFormat.ZSTD)
    return _write(writer, path, entries, store, store.serialize_cdr)


def write1(path, entries, compression=None):
    """Write a bag of ROS 1 with rosbags; return it."""
    writer = rosbag1.Writer(path)
    if compression:
        writer.set_compression(rosbag1.Writer.CompressionFormat[compression])
    return _write(writer, path, entries, NOETIC, NOETIC.serialize_ros1)


def _write(writer, path, entries, store, serialize):
    with writer:
        connections = {}
        for topic, kind, log_ns, k in entries:
            if topic not in connections:
                connections[topic] = writer.add_connection(f'/{topic}', kind, typestore=store)
            writer.write(connections[topic], log_ns, bytes(serialize(make(kind, k, store), kind)))
    return path


def write_humble(path, topics, rows, distro=None, index=True):
    """Write a bag as Humble does, without definitions.

    Args:
        path: The folder.
        topics: (name, type) each.
        rows: (index of the topic, log time, bytes) each.
        distro: Stated in metadata.yaml.
        index: Whether the times have an index.
    """
    path.mkdir()
    with sqlite3.connect(path / 'bag_0.db3') as database:
        database.execute('CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type '
                         'TEXT NOT NULL, serialization_format TEXT NOT NULL, '
                         'offered_qos_profiles TEXT NOT NULL)')
        database.execute('CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT '
                         'NULL, timestamp INTEGER NOT NULL, data BLOB NOT NULL)')
        if index:
            database.execute('CREATE INDEX timestamp_idx ON messages (timestamp ASC)')
        for number, (name, kind) in enumerate(topics):
            database.execute('INSERT INTO topics VALUES (?, ?, ?, ?, ?)',
                             (number, name, kind, 'cdr', ''))
        database.executemany(
            'INSERT INTO messages(topic_id, timestamp, data) VALUES (?, ?, ?)', rows)
    database.close()
    counts = Counter(number for number, _, _ in rows)
    information = {
        'version': 5, 'storage_identifier': 'sqlite3', 'message_count': len(rows),
        'duration': {'nanoseconds': 0}, 'starting_time': {'nanoseconds_since_epoch': 0},
        'relative_file_paths': ['bag_0.db3'], 'compression_format': '', 'compression_mode': '',
        'topics_with_message_count': [
            {'message_count': counts[number], 'topic_metadata': {
                'name': name, 'type': kind, 'serialization_format': 'cdr',
                'offered_qos_profiles': ''}} for number, (name, kind) in enumerate(topics)]}
    if distro:
        information |= {'version': 8, 'ros_distro': distro}
    (path / 'metadata.yaml').write_text(yaml.safe_dump(
        {'rosbag2_bagfile_information': information}))
    return path


def edit_metadata(bag, change):
    """Let `change` edit what metadata.yaml states."""
    path = bag / 'metadata.yaml'
    data = yaml.safe_load(path.read_text())
    change(data['rosbag2_bagfile_information'])
    path.write_text(yaml.safe_dump(data))


def number(message):
    """Return the k that a message was made of."""
    return (int(message.position[0]) if hasattr(message, 'position')
            else int(message.data.split()[1]))


def contents(path, topics=('joint_states', 'rob/text'), given=None):
    """Return (topic, log time, k) of the messages of a bag, as read."""
    with Bag(path, given) as bag:
        return [(topic, log_ns, number(message))
                for topic, log_ns, message in bag.messages(topics)]


def expected(entries):
    """Return what `contents` shall be."""
    return [(topic, log_ns, k) for topic, _, log_ns, k in entries]


def refusal(path, topics=None, given=None):
    """Return the one line that refuses a bag."""
    with pytest.raises(BagError) as refused:
        with Bag(path, given) as bag:
            list(bag.messages(bag.topics if topics is None else topics))
    line = str(refused.value)
    assert line.startswith(f'{path}') and '\n' not in line
    return line


def only_file(bag):
    """Return the one storage file of a bag."""
    return next(path for path in bag.iterdir() if path.name != 'metadata.yaml')


def side_by_side(folder, parts, names, plugin='mcap'):
    """Write recordings into one folder, each as a file of a name, and return it."""
    folder.mkdir()
    for i, (part, name) in enumerate(zip(parts, names, strict=True)):
        write2(folder.parent / f'{folder.name}_{i}', part, plugin)
        shutil.copy(only_file(folder.parent / f'{folder.name}_{i}'), folder / name)
    return folder


def record(opcode, content):
    """Return a record of mcap."""
    return bytes([opcode]) + struct.pack('<Q', len(content)) + content


def prefixed(content):
    """Return bytes with their length."""
    return struct.pack('<I', len(content)) + content


def write_mcap(path, entries, chunked=False, indexed=False, statistics=True,
               encoding=b'ros2msg', definition=b'string data\n'):
    """Write text messages as an mcap file whose messages have no index.

    Args:
        path: The file.
        entries: (log time, k), in the order of the file.
        chunked: Whether they lie in a chunk.
        indexed: Whether the summary names the chunk (but not where its messages are).
        statistics: Whether the summary counts the messages.
        encoding: Of the definition.
        definition: The text or bytes of it.
    """
    schema = record(3, struct.pack('<H', 1) + prefixed(TEXT.encode()) + prefixed(encoding)
                    + prefixed(definition))
    channel = record(4, struct.pack('<HH', 1, 1) + prefixed(b'/rob/text') + prefixed(b'cdr')
                     + prefixed(b''))
    messages = b''.join(
        record(5, struct.pack('<HIQQ', 1, 0, log_ns, log_ns)
               + bytes(JAZZY.serialize_cdr(text(JAZZY, k), TEXT))) for log_ns, k in entries)
    times = [log_ns for log_ns, _ in entries]
    data = b'\x89MCAP0\r\n' + record(1, prefixed(b'ros2') + prefixed(b''))
    start = len(data)
    body = schema + channel + messages
    if chunked:
        body = record(6, struct.pack('<QQQI', min(times), max(times), len(body), 0)
                      + prefixed(b'') + struct.pack('<Q', len(body)) + body)
    data += body + record(15, struct.pack('<I', 0))
    summary = schema + channel
    if indexed:
        inner = len(schema + channel + messages)
        summary += record(8, struct.pack('<QQQQ', min(times), max(times), start, len(body))
                          + prefixed(b'') + struct.pack('<Q', 0) + prefixed(b'')
                          + struct.pack('<QQ', inner, inner))
    if statistics:
        summary += record(11, struct.pack(
            '<QHIIIIQQ', len(entries), 1, 1, 0, 0, int(chunked), min(times), max(times))
            + prefixed(struct.pack('<HQ', 1, len(entries))))
    summary_start = len(data) if indexed or statistics else 0
    data += summary if summary_start else b''
    data += record(2, struct.pack('<QQI', summary_start, 0, 0)) + b'\x89MCAP0\r\n'
    path.write_bytes(data)
    return path


def counted(path):
    """Return topic -> messages of a storage file, None where it is none or damaged."""
    content = path.read_bytes()
    try:
        if path.name.endswith('.zstd'):
            content = zstd.decompress(content)
        if '.mcap' in path.name:
            return counted_mcap(content)
        if path.suffix == '.bag':
            with rosbag1.Reader(path) as reader:
                return sum((Counter({c.topic.lstrip('/'): c.msgcount})
                            for c in reader.connections), Counter())
        with tempfile.NamedTemporaryFile(suffix='.db3') as copy:
            copy.write(content)
            copy.flush()
            database = sqlite3.connect(f'file:{copy.name}?immutable=1', uri=True)
            return Counter({name.lstrip('/'): count for name, count in database.execute(
                'SELECT name, (SELECT count(*) FROM messages WHERE topic_id = topics.id) '
                'FROM topics')})
    except (sqlite3.Error, struct.error, AssertionError, IndexError, rosbag1.ReaderError,
            zstd.ZstdError):
        return None


def counted_mcap(content):
    """Return topic -> messages of an mcap file, by all its records."""
    magic = b'\x89MCAP0\r\n'
    assert content[:8] == content[-8:] == magic
    topics, counts = {}, Counter()

    def walk(data):
        position = 0
        while position < len(data):
            opcode, size = struct.unpack_from('<BQ', data, position)
            body = data[position + 9:position + 9 + size]
            assert len(body) == size
            position += 9 + size
            if opcode == 4:
                channel, _, length = struct.unpack_from('<HHI', body)
                topics[channel] = body[8:8 + length].decode().lstrip('/')
            elif opcode == 5:
                counts[struct.unpack_from('<H', body)[0]] += 1
            elif opcode == 6:
                length, = struct.unpack_from('<I', body, 28)
                name, inner = body[32:32 + length], body[40 + length:]
                walk({b'': bytes, b'zstd': zstd.decompress,
                      b'lz4': lz4.frame.decompress}[name](inner))
    walk(content[8:-8])
    result = Counter(dict.fromkeys(topics.values(), 0))
    for channel, count in counts.items():
        result[topics[channel]] += count
    return result
