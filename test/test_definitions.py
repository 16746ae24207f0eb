"""A message is decoded as its type was defined where it was recorded, or its topic is refused."""

import pickle
import sqlite3

import numpy as np
import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')
from bag_samples import (  # noqa: E402
    contents,
    edit_metadata,
    expected,
    HUMBLE,
    JAZZY,
    JOINTS,
    only_file,
    PLUGINS,
    recorded,
    refusal,
    T,
    TEXT,
    text,
    write2,
    write_humble,
)
from rosbags import rosbag2  # noqa: E402
from rosbags.typesys import get_types_from_msg, get_typestore, Stores  # noqa: E402
from training.definitions import _installed, definitions  # noqa: E402
from training.storage import Bag, BagError  # noqa: E402

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
    _installed.cache_clear()
    (tmp_path / 'ros/share/boat_msgs/msg/Part.msg').write_text('float64\n')
    assert 'Part.msg: line 1: expected a field' in refusal(bag, ['fins'])
    with Bag(bag) as opened:
        assert len(list(opened.messages(['rob/text']))) == 1
    _installed.cache_clear()


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
