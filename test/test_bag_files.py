"""Storage files that are compressed, have a journal or no index are read whole, or refused."""

import shutil
import sqlite3
import tempfile

import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')
from bag_samples import (  # noqa: E402
    contents,
    counted,
    JAZZY,
    only_file,
    recorded,
    refusal,
    T,
    TEXT,
    text,
    write2,
    write_humble,
    write_mcap,
)
from training import bag_files  # noqa: E402
from training.storage import Bag  # noqa: E402


@pytest.mark.parametrize(('chunked', 'indexed', 'statistics'), [
    (False, False, True), (False, False, False), (True, False, True), (True, True, True),
    (True, True, False)])
def test_mcap_without_message_index_is_read_and_sorted(tmp_path, chunked, indexed, statistics):
    entries = [(T + k, k) for k in (4, 1, 7, 7, 2)]
    file = write_mcap(tmp_path / 'fast.mcap', entries, chunked, indexed, statistics)
    found = contents(file, ['rob/text'])
    assert [(log_ns, k) for _, log_ns, k in found] == sorted(entries)
    assert counted(file) == {'rob/text': 5}


@pytest.mark.parametrize('encoding', [b'protobuf', b'jsonschema'])
@pytest.mark.parametrize('statistics', [True, False])
@pytest.mark.parametrize('definition', [b'{}', b'\n\xff\x01'])
def test_schema_in_an_encoding_of_others_is_named(tmp_path, encoding, statistics, definition):
    file = write_mcap(tmp_path / 'fox.mcap', [(T, 1)], statistics=statistics, encoding=encoding,
                      definition=definition)
    assert (f'expected ros2msg or ros2idl definitions, found schema encoding {encoding.decode()}'
            in refusal(file))


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
    monkeypatch.setattr(bag_files, '_SPARE_DISK', 2**62)
    assert 'expected disk for its decompressed or copied content' in refusal(only_file(bag))
