"""Bags of every kind give exactly their messages in the order of the log, or one line of refusal.

What is expected is counted without the code under test: by SQLite, and by a small reader of mcap.
"""

from collections import Counter
import os
from pathlib import Path
import pickle
import shutil
import sqlite3
import struct
import sys
import tempfile

import numpy as np
import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')
hypothesis = pytest.importorskip('hypothesis', reason='hypothesis is not installed')
from hypothesis import strategies as st  # noqa: E402
import lz4.frame  # noqa: E402
from rosbags import rosbag1, rosbag2  # noqa: E402
from rosbags.typesys import get_types_from_msg, get_typestore, Stores  # noqa: E402
from training import storage  # noqa: E402
from training.storage import Bag, BagError, definitions, find  # noqa: E402
import yaml  # noqa: E402

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
    with writer:
        connections = {}
        for topic, kind, log_ns, k in entries:
            if topic not in connections:
                connections[topic] = writer.add_connection(f'/{topic}', kind, typestore=store)
            writer.write(connections[topic], log_ns,
                         bytes(store.serialize_cdr(make(kind, k, store), kind)))
    return path


def write1(path, entries, compression=None):
    """Write a bag of ROS 1 with rosbags; return it."""
    writer = rosbag1.Writer(path)
    if compression:
        writer.set_compression(rosbag1.Writer.CompressionFormat[compression])
    with writer:
        connections = {}
        for topic, kind, log_ns, k in entries:
            if topic not in connections:
                connections[topic] = writer.add_connection(f'/{topic}', kind, typestore=NOETIC)
            writer.write(connections[topic], log_ns,
                         bytes(NOETIC.serialize_ros1(make(kind, k, NOETIC), kind)))
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


# ---- formats ------------------------------------------------------------------------------------


@pytest.mark.parametrize('version', [8, 9])
@pytest.mark.parametrize(('plugin', 'mode'), [
    ('mcap', 'plain'), ('mcap', 'file'), ('mcap', 'message'), ('mcap', 'storage'),
    ('db3', 'plain'), ('db3', 'file'), ('db3', 'message')])
def test_every_storage_gives_its_messages_with_and_without_metadata_and_alone(
        tmp_path, plugin, mode, version):
    entries = recorded()
    bag = write2(tmp_path / 'bag', entries, plugin, mode, version)
    assert contents(bag) == expected(entries)
    file = only_file(bag)
    assert file.name.endswith('.zstd') == (mode == 'file')
    assert contents(file) == expected(entries)
    (bag / 'metadata.yaml').unlink()
    assert contents(bag) == expected(entries)


@pytest.mark.parametrize('compression', [None, 'LZ4', 'BZ2'])
def test_ros1_bag_gives_its_messages_in_the_order_they_were_written(tmp_path, compression):
    entries = recorded()
    # Of one time the second topic came first, for once.
    entries[6], entries[7] = entries[7], entries[6]
    bag = write1(tmp_path / 'run.bag', entries, compression)
    assert contents(bag) == expected(entries)


@pytest.mark.parametrize('plugin', ['mcap', 'db3'])
def test_messages_of_one_time_keep_the_order_of_the_storage(tmp_path, plugin):
    entries = [(topic, kind, T, k) for k in range(30) for topic, kind in (
        ('rob/text', TEXT), ('joint_states', JOINTS))[::1 if k % 3 else -1]]
    bag = write2(tmp_path / 'bag', entries, plugin)
    assert contents(bag) == expected(entries)
    assert contents(bag, ['rob/text']) == [e for e in expected(entries) if e[0] == 'rob/text']


def test_messages_are_sorted_by_log_time_where_the_file_is_not_and_has_no_index(tmp_path):
    rows = [(0, T + k * 10**6, bytes(JAZZY.serialize_cdr(text(JAZZY, k), TEXT)))
            for k in (5, 3, 9, 3, 0)]
    bag = write_humble(tmp_path / 'bag', [('/rob/text', TEXT)], rows, index=False)
    assert [k for _, _, k in contents(bag, ['rob/text'])] == [0, 3, 3, 5, 9]
    write2(tmp_path / 'other', [('rob/text', TEXT, T + k, k) for k in (5, 3, 9, 3, 0)], 'mcap')
    assert [k for _, _, k in contents(tmp_path / 'other', ['rob/text'])] == [0, 3, 3, 5, 9]


@pytest.mark.parametrize('plugin', ['mcap', 'db3'])
@pytest.mark.parametrize('metadata', [True, False])
def test_pieces_of_a_bag_are_merged_by_log_time(tmp_path, plugin, metadata):
    entries = recorded(count=60)
    # The second piece begins before the first one ends; the eleventh sorts behind the third.
    parts = [entries[:40] + entries[44:46], entries[40:44] + entries[46:80], entries[80:]]
    bag = tmp_path / 'bag'
    bag.mkdir()
    names = [f'bag_{i}.{plugin}' for i in (0, 2, 11)]
    for i, part in enumerate(parts):
        write2(tmp_path / f'part{i}', part, plugin)
        shutil.copy(only_file(tmp_path / f'part{i}'), bag / names[i])
    if metadata:
        shutil.copy(tmp_path / 'part0' / 'metadata.yaml', bag)

        def all_of_them(information):
            information['relative_file_paths'] = names
            information['message_count'] = len(entries)
            for topic in information['topics_with_message_count']:
                topic['message_count'] = len(entries) // 2
        edit_metadata(bag, all_of_them)
    assert contents(bag) == expected(entries)
    with Bag(bag) as opened:
        assert [path.name for path in opened.files] == names
        assert opened.count == len(entries) and opened.topics['rob/text'].count == 60


@pytest.mark.parametrize('name', ['run#1', 'half 50%41', 'what?x=1', 'ümlaut'])
@pytest.mark.parametrize('plugin', ['mcap', 'db3'])
def test_any_name_of_a_folder_will_do(tmp_path, name, plugin):
    entries = recorded()
    bag = write2(tmp_path / 'bag', entries, plugin).rename(tmp_path / name)
    assert contents(bag) == expected(entries)
    assert contents(only_file(bag).rename(bag / f'{name}.{plugin}')) == expected(entries)


def test_raw_gives_the_bytes_and_the_digest_is_of_the_files(tmp_path):
    import hashlib
    entries = recorded(count=3)
    bag = write2(tmp_path / 'bag', entries, 'db3', 'message')
    with Bag(bag) as opened:
        found = list(opened.raw(['/rob/text']))
        digests = opened.sha256()
    assert [JAZZY.deserialize_cdr(data, TEXT).data for _, _, data in found] == [
        'number 0', 'number 1', 'number 2']
    file = only_file(bag)
    assert digests == {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}


@pytest.mark.parametrize('kind', ['mcap', 'db3', 'ros1', 'fast'])
def test_two_readings_of_one_bag_do_not_disturb_each_other(tmp_path, kind):
    if kind == 'fast':
        bag = write_mcap(tmp_path / 'fast.mcap', [(T + k, k) for k in range(50)])
    elif kind == 'ros1':
        bag = write1(tmp_path / 'run.bag', recorded(count=50))
    else:
        bag = write2(tmp_path / 'bag', recorded(count=50), kind)
    with Bag(bag) as opened:
        pairs = zip(opened.messages(['rob/text']), opened.raw(['rob/text']), strict=True)
        assert [(number(a[2]), a[:2]) for a, _ in pairs] == [
            (k, ('rob/text', T + k * (1 if kind == 'fast' else 10**7))) for k in range(50)]


def test_no_topics_give_no_messages_and_unknown_topics_are_named(tmp_path):
    bag = write2(tmp_path / 'bag', recorded(count=2))
    with Bag(bag) as opened:
        assert list(opened.messages([])) == []
        assert list(opened.raw(())) == []
    assert 'expected the topic odom, found joint_states, rob/text' in refusal(bag, ['odom'])


def test_bag_without_messages_opens(tmp_path):
    bag = write_humble(tmp_path / 'bag', [('/rob/text', TEXT)], [])
    with Bag(bag) as opened:
        assert opened.count == 0 and list(opened.messages(['rob/text'])) == []


# ---- mcap files that rosbags does not write -----------------------------------------------------


def record(opcode, content):
    """Return a record of mcap."""
    return bytes([opcode]) + struct.pack('<Q', len(content)) + content


def prefixed(content):
    """Return bytes with their length."""
    return struct.pack('<I', len(content)) + content


def write_mcap(path, entries, chunked=False, indexed=False, statistics=True):
    """Write text messages as an mcap file whose messages have no index.

    Args:
        path: The file.
        entries: (log time, k), in the order of the file.
        chunked: Whether they lie in a chunk.
        indexed: Whether the summary names the chunk (but not where its messages are).
        statistics: Whether the summary counts the messages.
    """
    schema = record(3, struct.pack('<H', 1) + prefixed(TEXT.encode()) + prefixed(b'ros2msg')
                    + prefixed(b'string data\n'))
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


@pytest.mark.parametrize(('chunked', 'indexed', 'statistics'), [
    (False, False, True), (False, False, False), (True, False, True), (True, True, True),
    (True, True, False)])
def test_mcap_without_message_index_is_read_and_sorted(tmp_path, chunked, indexed, statistics):
    entries = [(T + k, k) for k in (4, 1, 7, 7, 2)]
    file = write_mcap(tmp_path / 'fast.mcap', entries, chunked, indexed, statistics)
    found = contents(file, ['rob/text'])
    assert [(log_ns, k) for _, log_ns, k in found] == sorted(entries)
    assert counted(file) == {'rob/text': 5}


# ---- counts -------------------------------------------------------------------------------------


@pytest.mark.parametrize('plugin', ['mcap', 'db3'])
@pytest.mark.parametrize('change', ['all', 'topic', 'another'])
def test_metadata_that_states_other_counts_is_refused(tmp_path, plugin, change):
    bag = write2(tmp_path / 'bag', recorded(), plugin)

    def wrong(information):
        topic = information['topics_with_message_count'][0]
        if change == 'all':
            information['message_count'] += 1
        elif change == 'topic':
            topic['message_count'] -= 1
        else:
            topic['topic_metadata']['name'] = '/elsewhere'
    edit_metadata(bag, wrong)
    assert 'expected the messages that metadata.yaml states, found others' in refusal(bag)


def test_times_in_the_metadata_are_not_believed(tmp_path):
    entries = recorded()
    bag = write2(tmp_path / 'bag', entries)

    def late(information):
        information['starting_time'] = {'nanoseconds_since_epoch': T + 180 * 10**9}
        information['duration'] = {'nanoseconds': 1}
    edit_metadata(bag, late)
    assert contents(bag) == expected(entries)


def test_metadata_of_another_quality_of_service_loses_nothing(tmp_path):
    entries = recorded()
    bag = write2(tmp_path / 'bag', entries, 'db3')

    def other(information):
        for topic in information['topics_with_message_count']:
            topic['topic_metadata']['offered_qos_profiles'] = '- history: 3\n  depth: 1\n'
    edit_metadata(bag, other)
    assert contents(bag) == expected(entries)


def test_renamed_file_is_taken_where_the_counts_agree_else_refused(tmp_path):
    entries = recorded()
    bag = write2(tmp_path / 'bag', entries, 'db3')
    only_file(bag).rename(bag / 'renamed.db3')
    assert contents(bag) == expected(entries)
    shutil.copy(only_file(write2(tmp_path / 'other', recorded(count=3), 'db3')),
                bag / 'renamed.db3')
    assert 'it names bag.db3, which is not there, and renamed.db3 is not the same' in refusal(bag)


def test_plain_and_compressed_file_of_one_name_are_not_read_twice(tmp_path):
    bag = write2(tmp_path / 'bag', recorded())
    file = only_file(bag)
    file.with_name(f'{file.name}.zstd').write_bytes(zstd.compress(file.read_bytes()))
    assert contents(bag) == expected(recorded())
    (bag / 'metadata.yaml').unlink()
    assert 'expected bag.mcap once, found it also compressed' in refusal(bag)


def test_rows_of_no_topic_are_refused(tmp_path):
    bag = write_humble(tmp_path / 'bag', [('/rob/text', TEXT)], [(0, T, b''), (7, T, b'')])
    assert 'expected the 2 messages that the file states, found 1' in refusal(bag)


def test_index_that_lacks_a_row_is_refused(tmp_path):
    rows = [(0, T + k, bytes(JAZZY.serialize_cdr(text(JAZZY, k), TEXT))) for k in range(4)]
    bag = write_humble(tmp_path / 'bag', [('/rob/text', TEXT)], rows)
    file = only_file(bag)
    with sqlite3.connect(file) as database:
        database.execute('PRAGMA writable_schema = ON')
        database.execute("UPDATE sqlite_master SET sql = 'CREATE INDEX timestamp_idx ON messages "
                         "(timestamp ASC) WHERE id < 3' WHERE name = 'timestamp_idx'")
        database.execute('PRAGMA writable_schema = RESET')
        database.execute('REINDEX')
        database.execute('PRAGMA writable_schema = ON')
        database.execute("UPDATE sqlite_master SET sql = 'CREATE INDEX timestamp_idx ON messages "
                         "(timestamp ASC)' WHERE name = 'timestamp_idx'")
    database.close()
    assert 'it is damaged' in refusal(bag)


# ---- SQLite beside the database -----------------------------------------------------------------


def with_log(tmp_path):
    """Return a bag whose last messages are only in the write-ahead log, and its text."""
    bag = write2(tmp_path / 'bag', recorded(count=5), 'db3')
    file = only_file(bag)
    database = sqlite3.connect(file)
    database.execute('PRAGMA journal_mode = WAL')
    database.execute('PRAGMA wal_autocheckpoint = 0')
    kind, = database.execute("SELECT id FROM topics WHERE name = '/rob/text'").fetchone()
    for k in range(5, 8):
        database.execute(
            'INSERT INTO messages(topic_id, timestamp, data) VALUES (?, ?, ?)',
            (kind, T + k * 10**7, bytes(JAZZY.serialize_cdr(text(JAZZY, k), TEXT))))
    database.commit()
    copy = tmp_path / 'copy'
    copy.mkdir()
    for path in bag.iterdir():
        if path.name != 'metadata.yaml' and not path.name.endswith('-shm'):
            shutil.copy(path, copy)
    database.close()
    assert (copy / 'bag.db3-wal').stat().st_size
    return copy


def test_messages_that_are_still_in_the_log_of_the_database_are_read(tmp_path):
    bag = with_log(tmp_path)
    before = {path: path.read_bytes() for path in bag.iterdir()}
    for folder in (bag, bag / 'bag.db3'):
        assert [k for _, _, k in contents(folder, ['rob/text'])] == list(range(8))
    assert {path: path.read_bytes() for path in bag.iterdir()} == before


def test_nothing_is_written_beside_the_bag_and_nothing_is_left_over(tmp_path, monkeypatch):
    scratch = tmp_path / 'scratch'
    scratch.mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(scratch))
    for plugin in ('db3', 'mcap'):
        bag = write2(tmp_path / plugin, recorded(), plugin, 'file')
        before = sorted(bag.iterdir())
        with Bag(bag) as opened:
            assert list(scratch.iterdir())
            assert next(iter(opened.messages(['rob/text'])))[0] == 'rob/text'
        assert sorted(bag.iterdir()) == before and not list(scratch.iterdir())
        damaged = only_file(bag)
        damaged.write_bytes(damaged.read_bytes()[:-20])
        assert 'cannot be read as a bag' in refusal(damaged)
        assert not list(scratch.iterdir())


def test_what_does_not_fit_on_the_disk_is_refused(tmp_path, monkeypatch):
    bag = write2(tmp_path / 'bag', recorded(), 'db3', 'file')
    monkeypatch.setattr(storage, '_SPARE_DISK', 2**62)
    assert 'expected disk for its decompressed or copied content' in refusal(only_file(bag))


def test_message_that_expands_beyond_all_measure_is_refused(tmp_path, monkeypatch):
    bag = write2(tmp_path / 'bag', recorded(), 'db3', 'message')
    monkeypatch.setattr(storage, '_LARGEST_MESSAGE', 10)
    assert 'message 0, logged at 1700000000000000000 ns, cannot be decompressed' in refusal(bag)


# ---- definitions --------------------------------------------------------------------------------

FINS = 'float32[4] fin\nint8 THRUST=3\nPart part\n'
PART = 'float64 speed\nstring name\n'


def fins_store(fins=FINS):
    """Return a store that knows a type nobody else has."""
    store = get_typestore(Stores.ROS2_JAZZY)
    store.register(get_types_from_msg(fins, 'boat_msgs/msg/Fins')
                   | get_types_from_msg(PART, 'boat_msgs/msg/Part'))
    return store


def fins_message(store):
    """Return a message of that type, serialized."""
    part = store.types['boat_msgs/msg/Part'](0.5, 'port')
    message = store.types['boat_msgs/msg/Fins'](np.arange(4, dtype=np.float32), part)
    return bytes(store.serialize_cdr(message, 'boat_msgs/msg/Fins'))


def write_definitions(folder):
    """Write the .msg files of that type as a package has them; return its folder."""
    (folder / 'boat_msgs' / 'msg').mkdir(parents=True)
    (folder / 'boat_msgs' / 'msg' / 'Fins.msg').write_text(FINS)
    (folder / 'boat_msgs' / 'msg' / 'Part.msg').write_text(PART)
    return folder


@pytest.mark.parametrize('plugin', ['mcap', 'db3'])
def test_type_of_ones_own_is_decoded_as_the_bag_defines_it(tmp_path, plugin):
    store = fins_store()
    with rosbag2.Writer(tmp_path / 'bag', version=9, storage_plugin=PLUGINS[plugin]) as writer:
        connection = writer.add_connection('/fins', 'boat_msgs/msg/Fins', typestore=store)
        writer.write(connection, T, fins_message(store))
    with Bag(tmp_path / 'bag') as bag:
        (_, _, message), = bag.messages(['fins'])
        assert not bag.topics['fins'].unreadable
    assert message.part.speed == 0.5 and message.fin.tolist() == [0, 1, 2, 3]


def without_definition(tmp_path):
    """Return a bag that lacks the definition of one of its two types."""
    rows = [(0, T, fins_message(fins_store())),
            (1, T + 1, bytes(JAZZY.serialize_cdr(text(JAZZY, 0), TEXT)))]
    return write_humble(
        tmp_path / 'bag', [('/fins', 'boat_msgs/msg/Fins'), ('/rob/text', TEXT)], rows)


def test_unknown_type_spoils_its_own_topic_only_and_can_be_given(tmp_path):
    bag = without_definition(tmp_path)
    with Bag(bag) as opened:
        assert 'no definition of boat_msgs/msg/Fins is known' in opened.topics['fins'].unreadable
        assert len(list(opened.messages(['rob/text']))) == 1
        assert len(list(opened.raw(['fins']))) == 1
    line = refusal(bag, ['fins'])
    assert 'topic fins (boat_msgs/msg/Fins)' in line and '--definitions PATH' in line
    package = write_definitions(tmp_path / 'src')
    for given in ([package], [package / 'boat_msgs'],
                  sorted((package / 'boat_msgs' / 'msg').iterdir())):
        known = pickle.loads(pickle.dumps(definitions(given)))
        with Bag(bag, known) as opened:
            (_, _, message), = opened.messages(['fins'])
        assert message.part.name == 'port'
    lone = definitions([package / 'boat_msgs' / 'msg' / 'Fins.msg'])
    assert 'no definition of boat_msgs/msg/Part is known, within boat_msgs/msg/Fins' in refusal(
        bag, ['fins'], lone)


def test_definition_of_an_installed_ros_is_found(tmp_path, monkeypatch):
    bag = without_definition(tmp_path)
    write_definitions(tmp_path / 'ros' / 'share')
    monkeypatch.setenv('AMENT_PREFIX_PATH', f'/nowhere:{tmp_path / "ros"}')
    with Bag(bag) as opened:
        (_, _, message), = opened.messages(['fins'])
    assert message.part.name == 'port'
    storage._installed.cache_clear()
    (tmp_path / 'ros/share/boat_msgs/msg/Part.msg').write_text('float64\n')
    assert 'Part.msg: line 1: expected a field' in refusal(bag, ['fins'])
    with Bag(bag) as opened:
        assert len(list(opened.messages(['rob/text']))) == 1
    storage._installed.cache_clear()


@pytest.mark.parametrize(('write', 'where'), [
    ('float64 x\nfloat64 9\n', 'line 2: expected a field such as float64 x, found'),
    ('\xff', "codec can't decode")])
def test_definitions_that_cannot_be_parsed_name_file_and_line(tmp_path, write, where):
    file = tmp_path / 'boat_msgs' / 'Fins.msg'
    file.parent.mkdir()
    file.write_bytes(write.encode('latin-1'))
    with pytest.raises(BagError, match=where) as refused:
        definitions([tmp_path])
    assert str(refused.value).startswith(f'{file}: ') and '\n' not in str(refused.value)


def test_definitions_that_are_not_there_or_contradict_are_refused(tmp_path):
    with pytest.raises(BagError, match='expected .msg files in it or below, found none'):
        definitions([tmp_path])
    with pytest.raises(BagError, match='No such file'):
        definitions([tmp_path / 'boat_msgs' / 'Fins.msg'])
    for name, content in (('one', 'int8 x'), ('two', 'int16 x')):
        (tmp_path / name / 'boat_msgs').mkdir(parents=True)
        (tmp_path / name / 'boat_msgs' / 'Fins.msg').write_text(content)
    with pytest.raises(BagError, match='expected one definition of boat_msgs/msg/Fins'):
        definitions([tmp_path])


@pytest.mark.parametrize('recorded_with', ['humble', 'jazzy'])
@pytest.mark.parametrize('stated', [True, False])
def test_type_that_releases_define_differently_is_decoded_as_it_was_recorded(
        tmp_path, recorded_with, stated):
    store = {'humble': HUMBLE, 'jazzy': JAZZY}[recorded_with]
    kind = 'sensor_msgs/msg/Range'
    header = store.types['std_msgs/msg/Header'](
        store.types['builtin_interfaces/msg/Time'](1, 2), 'tof')
    more = [0.25] if recorded_with == 'jazzy' else []
    message = store.types[kind](header, 1, 0.1, 0.2, 4.0, 3.5, *more)
    bag = write_humble(
        tmp_path / 'bag', [('/tof', kind)], [(0, T, bytes(store.serialize_cdr(message, kind)))],
        distro=recorded_with if stated else None)
    with Bag(bag) as opened:
        (_, _, found), = opened.messages(['tof'])
        notes = opened.notes
    assert found.range == 3.5 and hasattr(found, 'variance') == (recorded_with == 'jazzy')
    # Humble is taken for what wrote metadata of version 5, which was wrong here once.
    assert bool(notes) == (not stated and recorded_with == 'jazzy')


def test_definition_in_the_bag_that_does_not_fit_gives_way_only_where_no_digest_tells(tmp_path):
    bag = write2(tmp_path / 'bag', [('joint_states', JOINTS, T, 4)], 'db3')

    def change(sql):
        with sqlite3.connect(only_file(bag)) as database:
            database.execute(sql)
        database.close()
    change("UPDATE message_definitions SET encoded_message_definition = 'string data'")
    assert 'with the digest RIHS01_' in refusal(bag, ['joint_states'])
    change("UPDATE topics SET type_description_hash = ''")
    edit_metadata(bag, lambda information: [
        topic['topic_metadata'].pop('type_description_hash')
        for topic in information['topics_with_message_count']])
    with Bag(bag) as opened:
        (_, _, message), = opened.messages(['joint_states'])
        assert message.position.tolist() == [4.0, -4.0]
        assert 'as in the bag it does not fit' in opened.notes[0]


def test_digest_that_is_not_of_the_definition_is_refused_for_the_topics_that_are_read(tmp_path):
    bag = write2(tmp_path / 'bag', recorded(), 'mcap')
    other = 'RIHS01_' + 64 * '0'

    def change(information):
        for topic in information['topics_with_message_count']:
            if topic['topic_metadata']['name'] == '/joint_states':
                topic['topic_metadata']['type_description_hash'] = other
    edit_metadata(bag, change)
    assert len(contents(bag, ['rob/text'])) == 20
    assert f'with the digest {other} that the bag states, found RIHS01_' in refusal(
        bag, ['joint_states'])


@pytest.mark.parametrize('encoding', ['', 'unknown'])
def test_definition_in_no_encoding_is_none_and_spoils_nothing(tmp_path, encoding):
    bag = write2(tmp_path / 'bag', recorded(), 'db3')
    with sqlite3.connect(only_file(bag)) as database:
        database.execute("UPDATE message_definitions SET encoding = ?, encoded_message_definition "
                         "= '' WHERE topic_type = ?", (encoding, JOINTS))
    database.close()
    before = only_file(bag).read_bytes()
    assert contents(bag) == expected(recorded())
    assert only_file(bag).read_bytes() == before


@pytest.mark.parametrize(('table', 'value', 'said'), [
    ('message_definitions', 'float64', 'in the bag cannot be parsed'),
    ('topics', 'protobuf', 'expected messages in CDR, found protobuf')])
def test_topic_that_cannot_be_decoded_does_not_spoil_the_others(tmp_path, table, value, said):
    bag = write2(tmp_path / 'bag', recorded(), 'db3')
    column, where = {
        'message_definitions': ('encoded_message_definition', f"topic_type = '{JOINTS}'"),
        'topics': ('serialization_format', "name = '/joint_states'")}[table]
    with sqlite3.connect(only_file(bag)) as database:
        database.execute(f"UPDATE {table} SET {column} = '{value}' WHERE {where}")
    database.close()
    assert len(contents(bag, ['rob/text'])) == 20
    assert said in refusal(bag, ['joint_states'])


def test_topic_of_two_types_is_refused_when_it_is_asked_for(tmp_path):
    rows = [(0, T, b''), (1, T, b''),
            (2, T, bytes(JAZZY.serialize_cdr(text(JAZZY, 3), TEXT)))]
    bag = write_humble(tmp_path / 'bag', [('/a', TEXT), ('/a', JOINTS), ('/rob/text', TEXT)], rows)
    assert contents(bag, ['rob/text']) == [('rob/text', T, 3)]
    assert f'it was recorded with the types {JOINTS} and {TEXT}' in refusal(bag, ['a'])


def test_message_that_cannot_be_decoded_is_named(tmp_path):
    data = bytes(JAZZY.serialize_cdr(text(JAZZY, 3), TEXT))
    bag = write_humble(tmp_path / 'bag', [('/rob/text', TEXT)],
                       [(0, T, data), (0, T + 5, data[:-3])])
    assert (f'topic rob/text ({TEXT}): message 1, logged at {T + 5} ns, cannot be decoded'
            in refusal(bag))


# ---- damage -------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """Return kind -> (bag, its file): a small bag of each kind of file."""
    folder = tmp_path_factory.mktemp('whole')
    entries = recorded(count=40)
    result = {}
    for plugin, mode in (('mcap', 'plain'), ('mcap', 'storage'), ('mcap', 'file'),
                         ('db3', 'plain'), ('db3', 'file'), ('db3', 'message')):
        bag = write2(folder / f'{plugin}_{mode}', entries, plugin, mode)
        result[f'{plugin} {mode}'] = (bag, only_file(bag))
    for compression in (None, 'LZ4'):
        path = write1(folder / f'{compression}.bag', entries, compression)
        result[f'ros1 {compression}'] = (path, path)
    return result


KINDS = ('mcap plain', 'mcap storage', 'mcap file', 'db3 plain', 'db3 file', 'db3 message',
         'ros1 None', 'ros1 LZ4')


def with_content(kind, whole, content, alone, read=contents):
    """Return what is read of a bag whose file has another content: messages, or the refusal."""
    bag, file = whole[kind]
    with tempfile.TemporaryDirectory() as folder:
        damaged = Path(folder, file.name)
        damaged.write_bytes(content)
        path = damaged
        if not alone and bag != file:
            shutil.copy(bag / 'metadata.yaml', folder)
            path = Path(folder)
        try:
            return read(path)
        except BagError as error:
            assert str(error).startswith(folder) and '\n' not in str(error)
            return str(error)


@pytest.mark.parametrize('kind', KINDS)
@hypothesis.given(content=st.binary(max_size=300), alone=st.booleans(), magic=st.booleans())
@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
def test_random_bytes_are_refused_in_one_line(whole, kind, content, alone, magic):
    head = whole[kind][1].read_bytes()[:40] if magic else b''
    assert isinstance(with_content(kind, whole, head + content, alone), str)


@pytest.mark.parametrize('kind', KINDS)
@hypothesis.given(data=st.data(), alone=st.booleans())
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
def test_truncated_bag_is_refused_or_gives_all_messages(whole, kind, data, alone):
    content = whole[kind][1].read_bytes()
    end = data.draw(st.integers(0, len(content) - 1))
    found = with_content(kind, whole, content[:end], alone)
    assert isinstance(found, str) or found == expected(recorded(count=40))


@pytest.mark.parametrize('kind', KINDS)
@hypothesis.given(data=st.data(), alone=st.booleans())
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
def test_flipped_bytes_never_raise_another_error(whole, kind, data, alone):
    content = bytearray(whole[kind][1].read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))

    def read(path):  # what the bytes say may be another text, another name
        with Bag(path) as bag:
            return len(list(bag.messages(bag.topics)))
    with_content(kind, whole, bytes(content), alone, read)


@hypothesis.given(offset=st.integers(0, 10**6), bit=st.integers(1, 255))
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
def test_flipped_byte_in_a_chunk_with_a_checksum_is_never_read(whole, offset, bit):
    content = bytearray(whole['mcap storage'][1].read_bytes())
    inside = content.index(zstd.compress(b'')[:4])  # the frame of the chunk
    content[inside + 10 + offset % 200] ^= bit
    found = with_content('mcap storage', whole, bytes(content), False)
    assert isinstance(found, str) or found == expected(recorded(count=40))


@pytest.mark.parametrize('name', [
    'demo.mcap', 'talker.db3', 'run.bag', 'a.mcap.zstd', 'metadata.yaml'])
def test_pointer_of_git_lfs_is_named_as_such(tmp_path, name):
    (tmp_path / name).write_text('version https://git-lfs.github.com/spec/v1\noid sha256:27\n')
    path = tmp_path / name
    if name == 'metadata.yaml':
        (tmp_path / 'a.mcap').touch()
        path = tmp_path
    assert 'git lfs pull' in refusal(path)


@pytest.mark.parametrize(('content', 'said'), [
    (b'\xff\xfe\x00', 'cannot be read as YAML'), (b'', 'expected a value of type dict'),
    (b'- 1\n', 'rosbag2_bagfile_information: expected a value of type dict, found nothing'),
    (b'rosbag2_bagfile_information: [', 'cannot be read as YAML'),
    (b'rosbag2_bagfile_information: {topics_with_message_count: 3}', 'type list, found 3'),
    (b'rosbag2_bagfile_information: {topics_with_message_count: [3]}', 'type dict, found nothing'),
    (b'rosbag2_bagfile_information: {topics_with_message_count: []}',
     'relative_file_paths: expected a value of type list, found nothing'),
    (b'rosbag2_bagfile_information: {topics_with_message_count: [], relative_file_paths: [], '
     b'message_count: true}', 'message_count: expected a value of type int, found True'),
    (b'rosbag2_bagfile_information: !!python/object/apply:os.getcwd []', 'cannot be read as YAML'),
])
def test_metadata_of_another_shape_is_refused(tmp_path, content, said):
    bag = write2(tmp_path / 'bag', recorded(count=1))
    (bag / 'metadata.yaml').write_bytes(content)
    assert said in refusal(bag)


def test_what_is_no_bag_is_refused(tmp_path):
    assert 'no such file or folder' in refusal(tmp_path / 'nothing')
    assert 'expected metadata.yaml or files' in refusal(tmp_path)
    (tmp_path / 'notes.txt').touch()
    assert 'found the name notes.txt' in refusal(tmp_path / 'notes.txt')
    (tmp_path / 'x.mcap').mkdir()
    assert 'expected metadata.yaml or files' in refusal(tmp_path / 'x.mcap')
    (tmp_path / 'y.db3').touch()
    assert 'found 0 bytes' in refusal(tmp_path / 'y.db3')
    bag = write2(tmp_path / 'bag', recorded(count=1))
    only_file(bag).unlink()
    assert 'expected the storage files that it names beside it' in refusal(bag)


@pytest.mark.skipif(os.geteuid() == 0, reason='to root every file is readable')
def test_file_that_may_not_be_read_is_refused(tmp_path):
    bag = write2(tmp_path / 'bag', recorded(count=1))
    only_file(bag).chmod(0)
    assert 'Permission denied' in refusal(bag)


# ---- names on a command line --------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path):
    """Return a folder with bags at several depths."""
    folder = tmp_path / 'runs'
    (folder / 'day1' / 'deep').mkdir(parents=True)
    write2(folder / 'day1' / 'b', recorded(count=1))
    write2(folder / 'day1' / 'deep' / 'a', recorded(count=1), 'db3', 'file')
    write1(folder / 'day1' / 'old.bag', recorded(count=1))
    (folder / 'day1' / 'notes.txt').touch()
    file = only_file(folder / 'day1' / 'b')
    for name in ('pieces/run_0.mcap', 'pieces/run_1.mcap', 'pieces/run_10.mcap',
                 'loose/one.mcap', 'loose/two.mcap', 'other/metadata.yaml'):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(file, folder / name)
    return folder


def test_folders_of_bags_are_looked_through(runs):
    found = [path.relative_to(runs).as_posix() for path in find([runs])]
    assert found == ['day1/b', 'day1/deep/a', 'day1/old.bag', 'loose/one.mcap', 'loose/two.mcap',
                     'pieces']


def test_globs_are_expanded_and_what_is_no_bag_is_left_out(runs):
    assert find([f'{runs}/day1/*']) == find([runs / 'day1'])
    assert find([f'{runs}/**']) == find([runs])
    assert find([f'{runs}/day1/*.bag', runs / 'day1' / 'b']) == [
        runs / 'day1' / 'b', runs / 'day1' / 'old.bag']


def test_name_with_the_signs_of_a_glob_is_a_name(tmp_path):
    bag = write2(tmp_path / 'run[1]', recorded(count=1))
    assert find([bag]) == [bag]


def test_link_to_a_folder_above_ends(runs):
    (runs / 'day1' / 'up').symlink_to(runs)
    assert len(find([runs])) == 6


@pytest.mark.parametrize('again', ['day1/b', 'day1/deep/../b', 'day1', 'link', 'day1/b/b.mcap'])
def test_bag_that_is_named_twice_is_refused(runs, again):
    (runs / 'link').symlink_to(runs / 'day1' / 'b')
    for patterns in ([runs / 'day1' / 'b', runs / again], [runs / again, runs / 'day1' / 'b']):
        with pytest.raises(BagError, match='expected each bag once, found it twice'):
            find(patterns)


@pytest.mark.parametrize('pattern', ['nothing', 'no*', 'day1/notes.txt', 'other', 'day1/*.txt'])
def test_pattern_that_names_no_bag_is_refused(runs, pattern):
    with pytest.raises(BagError, match='expected a bag'):
        find([runs, runs / pattern])


# ---- bags of other people -----------------------------------------------------------------------


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


def bags_of_others():
    """Return the bags in the folder that IDQL_ROS_BAGS names."""
    folder = os.environ.get('IDQL_ROS_BAGS')
    if not folder:
        return [pytest.param(None, marks=pytest.mark.skip(reason='IDQL_ROS_BAGS names no folder'))]
    result = []
    for path in sorted(Path(folder).iterdir()):
        files = [file for file in path.iterdir() if storage._is_storage(file)
                 or file.suffix == '.bag'] if path.is_dir() else []
        alone = len({file.suffix for file in files}) > 1 or any(f.suffix == '.bag' for f in files)
        result += sorted(files) if alone and not (path / 'metadata.yaml').exists() else [
            path] if files else []
    return [pytest.param(path, id=path.relative_to(folder).as_posix()) for path in result]


@pytest.mark.parametrize('path', bags_of_others())
def test_bag_of_others_gives_what_is_counted_elsewhere_or_is_refused_in_one_line(path):
    files = [path] if path.is_file() else [
        file for file in path.iterdir() if storage._is_storage(file)]
    parts = [counted(file) for file in files]
    if None in parts:
        assert len(refusal(path)) > len(str(path)) + 20
        return
    counts = sum(parts, Counter())
    with Bag(path) as bag:
        assert bag.count == counts.total()
        assert {key: topic.count for key, topic in bag.topics.items() if topic.count} == +counts
        assert Counter(key for key, _, _ in bag.raw(bag.topics)) == +counts
        for key, topic in bag.topics.items():
            if topic.unreadable:
                assert '--definitions' in topic.unreadable
                continue
            try:
                times = []
                for _, log_ns, message in bag.messages([key]):
                    assert message.__msgtype__ == topic.type
                    times.append(log_ns)
                assert times == sorted(times) and len(times) == topic.count
            except BagError as error:  # bytes that are no message
                assert f'topic {key} ({topic.type}): message' in str(error)
                assert 'broken' in path.parts and '\n' not in str(error)
