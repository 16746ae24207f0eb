"""One storage file: opened whatever it is, its messages counted, and read in the order of the log.

The formats are rosbags' business; here lies what it passes by: compressed files, what is in a
journal, files without an index, names that are none for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import os
from pathlib import Path
import re
import shutil
import sqlite3
import struct
import sys

from rosbags import rosbag1, rosbag2
from rosbags.interfaces import Connection
from training.bag_error import BagError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

STORAGES = ('.mcap', '.db3')
COMPRESSED = '.zstd'
ROS1 = '.bag'
LFS_MAGIC = b'version https://git-lfs.github.com/spec/'
# Left free on a disk that a bag is decompressed or copied to.
_SPARE_DISK = 2**25
_BLOCK = 2**22


def is_storage(path: Path) -> bool:
    """Return whether a file of this name is one of rosbag2."""
    name = path.name.removesuffix(COMPRESSED)
    return name.endswith(STORAGES) and not name.startswith('.')


def _check_disk(folder: Path, size: int, path: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free - size < _SPARE_DISK:
        raise BagError(
            f'{path}: expected disk for its decompressed or copied content, found {free >> 20} '
            f'MiB free in {folder}; set TMPDIR to a folder with more')


def _decompress(path: Path, folder: Path) -> Path:
    target = folder / path.name.removesuffix(COMPRESSED)
    with zstd.open(path, 'rb') as source, target.open('wb') as file:
        while block := source.read(_BLOCK):
            # What a small file expands to is not known before.
            _check_disk(folder, len(block), path)
            file.write(block)
    return target


def _has_journal(path: Path) -> bool:
    beside = (path.with_name(path.name + suffix) for suffix in ('-wal', '-journal'))
    return any(journal.is_file() and journal.stat().st_size for journal in beside)


# Converters give this to a type whose definition they lack; rosbags reads no such database.
_UNDEFINED = "FROM message_definitions WHERE encoding NOT IN ('ros2msg', 'ros2idl')"


def _has_undefined(path: Path) -> bool:
    try:
        with contextlib.closing(sqlite3.connect(
                f'{path.absolute().as_uri()}?immutable=1', uri=True)) as database:
            return bool(database.execute(f'SELECT count(*) {_UNDEFINED}').fetchone()[0])
    except sqlite3.Error:  # no such table before Iron; what is damaged is told by rosbags
        return False


def _readable_copy(path: Path, folder: Path) -> Path:
    """Return a copy of a database with what is in the journal beside it, which rosbags passes by.

    Raises:
        BagError: The journal cannot be brought in.
    """
    parts = [part for suffix in ('', '-wal', '-journal')
             if (part := path.with_name(path.name + suffix)).is_file()]
    _check_disk(folder, sum(2 * part.stat().st_size for part in parts), path)
    for part in parts:
        shutil.copyfile(part, folder / part.name)
    copy = folder / path.name
    with contextlib.closing(sqlite3.connect(copy)) as database:
        database.execute('SELECT count(*) FROM sqlite_master').fetchone()
        if _has_undefined(path):
            database.execute(f'DELETE {_UNDEFINED}')
            database.commit()
        database.execute('PRAGMA wal_checkpoint(TRUNCATE)').fetchone()
    if _has_journal(copy):
        raise BagError(
            f'{path}: messages are left in {path.name}-wal and could not be brought in; on a copy '
            f"that can be written: sqlite3 {path.name} 'PRAGMA wal_checkpoint(TRUNCATE)'")
    return copy


# The encodings of definitions in mcap files that rosbags knows; of others it raises these errors.
_ENCODINGS = {'ros2msg', 'ros2idl', 'omgidl', ''}
_UNKNOWN_ENCODING = (KeyError, UnicodeDecodeError)


def _schema_encodings(path: Path) -> set[str]:
    """Return the encodings of the definitions in an mcap file, of those outside of its chunks."""
    result = set()
    with path.open('rb') as file:
        end = file.seek(-37, os.SEEK_END)
        summary, = struct.unpack_from('<Q', file.read(), 9)
        file.seek(summary or 8)
        while file.tell() < end:
            opcode, size = struct.unpack('<BQ', file.read(9))
            following = file.tell() + size
            if following > end:
                break
            if opcode == 3:  # a schema: its number, name, encoding and text
                record = file.read(size)
                start = 6 + struct.unpack_from('<I', record, 2)[0]
                length, = struct.unpack_from('<I', record, start)
                result.add(record[start + 4:start + 4 + length].decode())
            file.seek(following)
    return result


@contextlib.contextmanager
def _known_schemas(path: Path, source: Path) -> Iterator[None]:
    """Name the encoding of definitions where rosbags does not know it."""
    try:
        yield
    except _UNKNOWN_ENCODING as error:
        found: set[str] = set()
        if source.suffix == '.mcap':
            with contextlib.suppress(struct.error, UnicodeDecodeError, OSError):
                found = _schema_encodings(source) - _ENCODINGS
        if not found:
            raise
        raise BagError(
            f'{path}: expected ros2msg or ros2idl definitions, found schema encoding '
            f'{" and ".join(sorted(found))}') from error


class BagFile:
    """One storage file, open."""

    def __init__(self, path: Path, folder: Callable[[], Path]) -> None:
        """Open.

        Args:
            path: The file.
            folder: Returns a new folder for what must be decompressed or copied.

        Raises:
            BagError: It is not a storage file, or it is damaged.
        """
        self.path = path
        self.ros1 = path.suffix == ROS1
        with path.open('rb') as file:
            head = file.read(len(LFS_MAGIC))
        if not head:
            raise BagError(f'{path}: expected a storage file, found 0 bytes')
        if head == LFS_MAGIC:
            raise BagError(f'{path}: expected a storage file, found a pointer of git-LFS; in its '
                           'repository run git lfs pull')
        source = path
        if path.name.endswith(COMPRESSED):
            source = _decompress(path, folder())
        self._database = source.suffix == '.db3'
        if self._database:
            if _has_journal(source) or _has_undefined(source):
                source = _readable_copy(source, folder())
            if re.search('[?#%]', str(source.absolute())):
                # rosbags makes a URI of the path, in which these characters are none of it.
                link = folder() / 'storage.db3'
                link.symlink_to(source.absolute())
                source = link
        self._reader = rosbag1.Reader(source) if self.ros1 else rosbag2.Reader(source)
        with _known_schemas(path, source):
            self._reader.open()
        self.connections: list[Connection] = list(self._reader.connections)
        self.counts = {c.id: c.msgcount for c in self.connections}
        # Of the first and of the last message, where there are any.
        self.start_ns = self._reader.start_time
        self.last_ns = self._reader.end_time - 1
        self._unindexed = False
        stated = self._reader.message_count
        if self.ros1:  # rosbags leaves out what belongs to no connection
            stated = sum(sum(chunk.connection_counts.values())
                         for chunk in self._reader.chunk_infos)
        elif not self._database:
            storage = self._reader.storage
            self._unindexed = not storage.chunks or not all(
                chunk.message_index_offsets for chunk in storage.chunks)
            if (self._unindexed and storage.chunks) or (
                    stated and not storage.statistics.channel_message_counts):
                # rosbags counts by indexes and statistics; a file may lack either.
                with _known_schemas(path, source):
                    storage.meta_scan()
                statistics = storage.statistics
                self.connections = list(storage.connections)
                self.counts = {c.id: statistics.channel_message_counts.get(c.id, 0)
                               for c in self.connections}
                self.start_ns, self.last_ns = statistics.start_time, statistics.end_time
                stated = statistics.message_count
        if sum(self.counts.values()) != stated:
            self._reader.close()
            raise BagError(
                f'{path}: expected the {stated} messages that the file states, found '
                f'{sum(self.counts.values())} that belong to a topic; it is damaged')

    def close(self) -> None:
        """Close."""
        self._reader.close()

    def messages(self, connections: list[Connection]) -> Iterator[tuple[Connection, int, bytes]]:
        """Yield (connection, log time, bytes) in the order of the log."""
        if self.ros1:
            return self._ties_in_order(connections)
        if self._unindexed:
            return self._sorted_on_disk(connections)
        return self._reader.messages(connections)

    def _ties_in_order(
            self, connections: list[Connection]) -> Iterator[tuple[Connection, int, bytes]]:
        # In simulated time many messages have one time, and rosbags yields those by connection.
        position = dict.fromkeys(self.counts, 0)
        ties: list[tuple[tuple[int, int], Connection, int, bytes]] = []
        for connection, log_ns, data in self._reader.messages(connections):
            if ties and ties[0][2] != log_ns:
                for _, *message in sorted(ties, key=lambda tie: tie[0]):
                    yield tuple(message)
                ties.clear()
            entry = self._reader.indexes[connection.id][position[connection.id]]
            position[connection.id] += 1
            ties.append(((entry.chunk_pos, entry.offset), connection, log_ns, data))
        for _, *message in sorted(ties, key=lambda tie: tie[0]):
            yield tuple(message)

    def _sorted_on_disk(
            self, connections: list[Connection]) -> Iterator[tuple[Connection, int, bytes]]:
        # Without an index the order of the file is known, which need not be that of the log. The
        # database without a name is a temporary file that nobody else sees.
        by_id = {connection.id: connection for connection in connections}
        with contextlib.closing(sqlite3.connect('', isolation_level=None)) as database:
            database.execute('PRAGMA journal_mode = OFF')
            database.execute('CREATE TABLE messages (connection INT, log_ns INT, data BLOB)')
            database.execute('BEGIN')
            database.executemany(
                'INSERT INTO messages VALUES (?, ?, ?)',
                ((connection.id, log_ns, data) for connection, log_ns, data
                 in self._reader.storage.messages_scan(connections)))
            for connection, log_ns, data in database.execute(
                    'SELECT connection, log_ns, data FROM messages ORDER BY log_ns, rowid'):
                yield by_id[connection], log_ns, data
