"""Bag files of any kind -> topics, counts, and decoded messages in the order of the log.

The formats are rosbags' business; this file decides what belongs to a bag, where the definition of
a message comes from, and that nothing is lost: what was read is compared with what the storage
counts, and that with what metadata.yaml states. Times are those of the messages alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
import contextlib
from dataclasses import dataclass
import functools
import glob
import hashlib
import heapq
import os
from pathlib import Path, PurePath
import re
import shutil
import sqlite3
import sys
import tempfile
from typing import Any

from rosbags import rosbag1, rosbag2
from rosbags.interfaces import Connection, MessageDefinition, MessageDefinitionFormat, Nodetype
from rosbags.typesys import get_types_from_idl, get_types_from_msg, get_typestore, Stores
import yaml

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# Type name -> its constants and fields, as rosbags parses them: tuples, lists, text and numbers.
Definitions = dict[str, Any]

STORAGES = ('.mcap', '.db3')
_COMPRESSED = '.zstd'
_ROS1 = '.bag'
# Begins every zstd frame; no message begins so, whose first byte (CDR) is 0.
_ZSTD_MAGIC = b'\x28\xb5\x2f\xfd'
_LFS_MAGIC = b'version https://git-lfs.github.com/spec/'
# No message of a robot is larger; a small frame can expand to all of the memory.
_LARGEST_MESSAGE = 2**30
# Left free on a disk that a bag is decompressed or copied to.
_SPARE_DISK = 2**25
_BLOCK = 2**22
# The parser in C, where it was built: a bag of many topics has thousands of lines.
_SafeLoader = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)


class BagError(ValueError):
    """A bag that cannot be read; names it, what was expected, what was found, where to look.

    One line that is safe to print, whatever names and texts the bag holds.
    """

    def __init__(self, text: str) -> None:
        """Take the text."""
        super().__init__(''.join(c if c.isprintable() else ' ' for c in text))


@dataclass(frozen=True)
class Topic:
    """A topic of a bag."""

    # As recorded, with its slash.
    name: str
    type: str
    # Its messages, counted in the storage.
    count: int
    # Why its messages cannot be decoded; empty where they can, as far as is known without them.
    unreadable: str


# What can be done about what rosbags says of a file.
_HINTS = {
    'File end magic is invalid': '; the recording or a copy ended early: mcap recover brings back '
                                 'what is there',
    'Bag is not indexed': '; the recording ended early: rosbag reindex brings back what is there',
    'Bag index looks damaged': '; rosbag reindex brings back what is there',
}


def _line(error: BaseException) -> str:
    text = ' '.join(f'{error}'.split()) or type(error).__name__
    text = text if len(text) <= 400 else f'{text[:400]}...'
    return text + next((hint for said, hint in _HINTS.items() if text.startswith(said)), '')


@contextlib.contextmanager
def _refusing(path: Path, what: str) -> Iterator[None]:
    """Turn whatever damaged bytes make a library raise into one line."""
    try:
        yield
    except BagError:
        raise
    except Exception as error:  # rosbags and what it stands on raise any type
        reason = (error.strerror or _line(error)) if isinstance(error, OSError) else _line(error)
        if isinstance(error, (KeyError, AssertionError)):
            reason = f'{type(error).__name__} {reason}'
        raise BagError(f'{path}: {what}: {reason}') from error


# ---- which files are a bag ----------------------------------------------------------------------


def _is_storage(path: Path) -> bool:
    name = path.name.removesuffix(_COMPRESSED)
    return name.endswith(STORAGES) and not name.startswith('.')


def _by_number(path: Path) -> list[Any]:
    """Return a key that sorts the second file of a bag before its tenth."""
    return [int(part) if part.isdigit() else part for part in re.split(r'(\d+)', path.name)]


def _storage_files(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if _is_storage(path) and path.is_file()),
                  key=_by_number)


def _is_one_bag(folder: Path) -> bool:
    """Return whether a folder is a bag, rather than one with bags in it."""
    metadata = folder / 'metadata.yaml'
    files = _storage_files(folder)
    if metadata.is_file():  # other programs give files this name, too
        return bool(files) or b'rosbag2_bagfile_information' in metadata.read_bytes()
    # Without metadata the pieces of one recording are told from recordings that lie side by side
    # by the number that the recorder gives each piece.
    stems = {re.sub(r'(_\d+)?(\.\w+?)(\.zstd)?$', '', file.name) for file in files}
    return len(stems) == 1


def _below(folder: Path, seen: set[Path]) -> Iterator[Path]:
    if folder.resolve() in seen:  # a link that leads back up
        return
    seen.add(folder.resolve())
    if _is_one_bag(folder):
        yield folder
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _below(path, seen)
        elif path.is_file() and (_is_storage(path) or path.suffix == _ROS1):
            yield path


def find(patterns: Sequence[str | Path]) -> list[Path]:
    """Return the bags that are named on a command line.

    Args:
        patterns: Bag folders, lone files, folders of bags at any depth, or globs of these. What a
            glob matches beside bags is left out. A folder without metadata.yaml is one bag where
            its files are the numbered pieces of one name, else each file is a bag.

    Returns:
        Each bag once, sorted.

    Raises:
        BagError: A pattern matches nothing, or a bag is named twice.
    """
    found: dict[Path, Path] = {}
    for pattern in patterns:
        path = Path(pattern)
        with _refusing(path, 'cannot be looked through'):
            matches = [path] if path.exists() else [
                Path(match) for match in sorted(glob.glob(str(pattern), recursive=True))]
            seen: set[Path] = set()
            here: dict[Path, Path] = {}
            for match in matches:
                bags = list(_below(match, seen)) if match.is_dir() else [
                    match] if _is_storage(match) or match.suffix == _ROS1 else []
                here |= {bag.resolve(): bag for bag in bags}
        # A glob that goes into a bag matches the bag and its files.
        here = {resolved: bag for resolved, bag in here.items() if resolved.parent not in here}
        if not here:
            raise BagError(
                f'{pattern}: expected a bag (a folder of rosbag2, or a file .mcap, .db3, .bag, '
                f'.mcap.zstd, .db3.zstd) or a folder of bags, found '
                f'{"none in it" if matches else "no such file or folder"}')
        for resolved, bag in here.items():
            if resolved in found or resolved.parent in found:
                raise BagError(f'{bag}: expected each bag once, found it twice among the bags')
        for resolved in list(found):
            if resolved.parent in here:
                raise BagError(
                    f'{found[resolved]}: expected each bag once, found it twice among the bags')
        found |= here
    return sorted(found.values())


# ---- definitions of messages --------------------------------------------------------------------


def definitions(paths: Sequence[Path]) -> Definitions:
    """Parse message definitions that a user gives.

    Args:
        paths: .msg files, or folders with PKG/msg/X.msg or PKG/X.msg at any depth.

    Returns:
        Plain data for `Bag`; can be sent to another process.

    Raises:
        BagError: A file cannot be read or parsed (with the line), a folder holds none, or a type
            is defined in two ways.
    """
    result: Definitions = {}
    origin: dict[str, Path] = {}
    for given in paths:
        with _refusing(given, 'cannot be read as message definitions'):
            files = sorted(given.rglob('*.msg')) if given.is_dir() else [given]
            if not files:
                raise BagError(f'{given}: expected .msg files in it or below, found none')
            for file in files:
                for name, definition in _parse_file(file).items():
                    if result.setdefault(name, definition) != definition:
                        raise BagError(
                            f'{file}: expected one definition of {name}, found another in '
                            f'{origin[name]}')
                    origin.setdefault(name, file)
    return result


_TYPE = re.compile(r'[A-Za-z]\w*/msg/[A-Za-z]\w*', re.ASCII)


def _parse_file(file: Path) -> Definitions:
    folder = file.resolve().parent
    package = folder.parent.name if folder.name == 'msg' else folder.name
    name = f'{package}/msg/{file.stem}'
    if not _TYPE.fullmatch(name) or file.suffix != '.msg':
        raise BagError(
            f'{file}: expected a definition PKG/msg/NAME.msg, in the folder of its package; found '
            f'{package}, {file.name}')
    with _refusing(file, 'cannot be read as a message definition'):
        text = file.read_text(encoding='utf-8')
        try:
            return get_types_from_msg(text, name)
        except Exception as error:
            # The parser says no line; a definition has one field a line.
            for number, line in enumerate(text.splitlines(), 1):
                try:
                    get_types_from_msg(line, name)
                except Exception:
                    raise BagError(
                        f'{file}: line {number}: expected a field such as float64 x, found '
                        f'{line.strip()[:80]!r}') from error
            raise


@functools.lru_cache(maxsize=1024)
def _parse_embedded(message_type: str, definition: MessageDefinition) -> Definitions:
    """Return the types in a definition inside a bag, {} where it holds none."""
    if definition.format == MessageDefinitionFormat.MSG:
        return get_types_from_msg(definition.data, message_type)
    types: Definitions = {}
    if definition.format == MessageDefinitionFormat.IDL:
        # Several files follow each other, each below a ruler and a line with its name.
        for part in re.split(r'^={80}\nIDL: .*\n', definition.data, flags=re.MULTILINE):
            if part.strip():
                types |= get_types_from_idl(part)
    return types


@functools.cache
def _installed(message_type: str, prefixes: str) -> Any:
    """Return the definition of a type in an installed ROS, None where there is none."""
    if not _TYPE.fullmatch(message_type):  # it becomes a path
        return None
    package, _, name = message_type.split('/')
    for prefix in filter(None, prefixes.split(os.pathsep)):
        file = Path(prefix, 'share', package, 'msg', f'{name}.msg')
        if file.is_file():
            return _parse_file(file)[message_type]
    return None


@functools.cache
def _types_of(store: Stores) -> Definitions:
    return {**get_typestore(Stores.EMPTY).fielddefs, **get_typestore(store).fielddefs}


def _standard(store: Stores, message_type: str) -> Any:
    return _types_of(store).get(message_type)


# Says where it looks, and returns the definition of one type or None.
_Lookup = tuple[str, Callable[[str], Any]]


class _UnknownType(Exception):
    pass


def _closure(message_type: str, lookups: Sequence[_Lookup]) -> tuple[str, Definitions]:
    """Return the definition of a type and of all that it is made of; each from the first lookup.

    Returns:
        The lookups that were used, in words, and the types.

    Raises:
        _UnknownType: No lookup has one of them.
    """
    types: Definitions = {}
    used = set()
    wanted = [message_type]
    while wanted:
        name = wanted.pop()
        if name in types:
            continue
        found = next(((origin, definition) for origin, lookup in lookups
                      if (definition := lookup(name)) is not None), None)
        if found is None:
            raise _UnknownType(name)
        origin, definition = found
        used.add(origin)
        types[name] = definition
        for _, description in definition[1]:
            kind, value = description
            if kind in (Nodetype.ARRAY, Nodetype.SEQUENCE):
                kind, value = value[0]
            if kind == Nodetype.NAME:
                wanted.append(value)
    return ' and '.join(origin for origin, _ in lookups if origin in used), types


def _give_definition(message_type: str) -> str:
    return (f'give the .msg file of {message_type}, or the folder of its package, with '
            '--definitions PATH')


class _Decoder:
    """Bytes -> messages of one type, with the first of its definitions that fits."""

    def __init__(
            self, message_type: str, candidates: list[tuple[str, Definitions]], digest: str,
            ros1: bool) -> None:
        self._type = message_type
        # Where the definition is from, and the function.
        self._functions: list[tuple[str, Callable[[bytes], Any]]] = []
        found = ''
        for origin, types in candidates:
            store = get_typestore(Stores.EMPTY)
            store.register(types)
            # Those of ROS 1 are not compared: they depend on how a constant was spelled.
            if digest.startswith('RIHS01_'):
                found = store.hash_rihs01(message_type)
                if found != digest:
                    continue
            function = store.deserialize_ros1 if ros1 else store.deserialize_cdr
            self._functions.append((origin, functools.partial(function, typename=message_type)))
        if not self._functions:
            raise BagError(
                f'expected a definition of {message_type} with the digest {digest} that the bag '
                f'states, found {found}; {_give_definition(message_type)}')
        # None until a message has told.
        self.decode: Callable[[bytes], Any] | None = None

    def choose(self, data: bytes) -> str:
        """Set `decode`, judged by a message; return what to tell about it, or ''."""
        refused = []
        for origin, function in self._functions:
            try:
                function(data)
            except Exception:
                refused.append(origin)
                continue
            self.decode = function
            if not refused:
                return ''
            return (f'{self._type}: decoded as in {origin}; as in {", ".join(refused)} it does '
                    'not fit')
        # It fails again where it is known which message it is.
        _, self.decode = self._functions[0]
        return ''


# ---- files --------------------------------------------------------------------------------------


def _check_disk(folder: Path, size: int, path: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free - size < _SPARE_DISK:
        raise BagError(
            f'{path}: expected disk for its decompressed or copied content, found {free >> 20} '
            f'MiB free in {folder}; set TMPDIR to a folder with more')


def _decompress(path: Path, folder: Path) -> Path:
    target = folder / path.name.removesuffix(_COMPRESSED)
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


class _File:
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
        self.ros1 = path.suffix == _ROS1
        with path.open('rb') as file:
            head = file.read(len(_LFS_MAGIC))
        if not head:
            raise BagError(f'{path}: expected a storage file, found 0 bytes')
        if head == _LFS_MAGIC:
            raise BagError(f'{path}: expected a storage file, found a pointer of git-LFS; in its '
                           'repository run git lfs pull')
        source = path
        if path.name.endswith(_COMPRESSED):
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
        self._reader.open()
        self.connections: list[Connection] = list(self._reader.connections)
        self.counts = {c.id: c.msgcount for c in self.connections}
        self.start_ns = self._reader.start_time
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
                storage.meta_scan()
                statistics = storage.statistics
                self.connections = list(storage.connections)
                self.counts = {c.id: statistics.channel_message_counts.get(c.id, 0)
                               for c in self.connections}
                self.start_ns = statistics.start_time
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


# ---- metadata.yaml ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Metadata:
    """What metadata.yaml states, as far as it is believed."""

    names: tuple[str, ...]
    count: int
    # By the topic's name without its slash.
    counts: Counter[str]
    digests: dict[str, str]
    version: int
    distro: str


def _read_metadata(path: Path) -> _Metadata:
    try:
        text = path.read_bytes()
        if text.startswith(_LFS_MAGIC):
            raise BagError(f'{path}: expected metadata, found a pointer of git-LFS; in its '
                           'repository run git lfs pull')
        data = _SafeLoader(text.decode()).get_single_data()
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise BagError(f'{path}: cannot be read as YAML: {_line(error)}') from error

    def take(owner: Any, key: str, kind: type, default: Any = ...) -> Any:
        value = owner.get(key, default) if isinstance(owner, dict) else ...
        if default is not ... and value is None:
            value = default
        if not isinstance(value, kind) or isinstance(value, bool):
            found = 'nothing' if value is ... else repr(value)[:80]
            raise BagError(
                f'{path}: {key}: expected a value of type {kind.__name__}, found {found}')
        return value

    information = take(data, 'rosbag2_bagfile_information', dict)
    counts: Counter[str] = Counter()
    digests = {}
    for item in take(information, 'topics_with_message_count', list):
        topic = take(item, 'topic_metadata', dict)
        name = take(topic, 'name', str).lstrip('/')
        counts[name] += take(item, 'message_count', int)
        digests[name] = take(topic, 'type_description_hash', str, '')
    return _Metadata(
        tuple(PurePath(str(name)).name for name in take(information, 'relative_file_paths', list)),
        take(information, 'message_count', int), counts, digests,
        take(information, 'version', int), take(information, 'ros_distro', str, ''))


# ---- the bag ------------------------------------------------------------------------------------


@dataclass
class _Source:
    """A connection of a file, while it is read."""

    key: str
    ros1: bool
    # None where bytes are asked for.
    decoder: _Decoder | None


class Bag:
    """A bag, open within `with`."""

    path: Path
    # The storage files.
    files: tuple[Path, ...]
    # By the topic's name without its slash.
    topics: dict[str, Topic]
    # All messages.
    count: int
    # What was decided about this bag that its reader may want to know, a line each.
    notes: list[str]

    def __init__(self, path: str | Path, definitions: Definitions | None = None) -> None:
        """Name a bag.

        Args:
            path: A bag folder (rosbag2), or a lone file of it, or a ROS 1 .bag file.
            definitions: From `definitions`, for types that the bag does not define.
        """
        self.path = Path(path)
        self.files, self.topics, self.count, self.notes = (), {}, 0, []
        self._definitions = definitions or {}
        self._stack = contextlib.ExitStack()
        self._files: list[_File] = []
        self._metadata: _Metadata | None = None
        # Topic -> its types.
        self._types: dict[str, set[str]] = {}

    def __enter__(self) -> Bag:
        """Open the files, count, and compare the counts.

        Raises:
            BagError: The bag cannot be read, or is not what its metadata.yaml states.
        """
        with contextlib.ExitStack() as stack:
            self._stack = stack
            with _refusing(self.path, 'cannot be read as a bag'):
                self._open()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """Close the files; remove what was decompressed."""
        self._files.clear()
        self._stack.close()

    def _folder(self) -> Path:
        return Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix='idql_ros_bag_')))

    def _open(self) -> None:
        if not self.path.exists():
            raise BagError(f'{self.path}: expected a bag, found no such file or folder')
        renamed = False
        if self.path.is_dir():
            self.files, renamed = self._files_of_folder()
        elif _is_storage(self.path) or self.path.suffix == _ROS1:
            self.files = (self.path,)
        else:
            raise BagError(
                f'{self.path}: expected a folder of rosbag2 or a file .mcap, .db3, .bag, '
                f'.mcap.zstd, .db3.zstd, found the name {self.path.name}')
        for path in self.files:
            with _refusing(path, 'cannot be read as a bag'):
                file = _File(path, self._folder)
                self._stack.callback(file.close)
                self._files.append(file)
        counts: Counter[str] = Counter()
        names: dict[str, str] = {}
        for file in self._files:
            for connection in file.connections:
                key = connection.topic.lstrip('/')
                names.setdefault(key, connection.topic)
                counts[key] += file.counts[connection.id]
                self._types.setdefault(key, set()).add(connection.msgtype)
        self.count = counts.total()
        self._compare(counts, renamed)
        self.topics = {key: Topic(names[key], ' and '.join(sorted(self._types[key])), counts[key],
                                  self._unreadable(key)) for key in names}

    def _files_of_folder(self) -> tuple[tuple[Path, ...], bool]:
        """Return the storage files of a folder, and whether not those that the metadata name."""
        here = _storage_files(self.path)
        metadata = self.path / 'metadata.yaml'
        if not metadata.is_file():
            if not here:
                raise BagError(f'{self.path}: expected metadata.yaml or files .mcap, .db3, '
                               '.mcap.zstd, .db3.zstd in the folder of a bag, found none')
            plain = Counter(path.name.removesuffix(_COMPRESSED) for path in here)
            (name, times), = plain.most_common(1)
            if times > 1:
                raise BagError(f'{self.path}: without metadata.yaml expected {name} once, found '
                               'it also compressed')
            return tuple(here), False
        self._metadata = _read_metadata(metadata)
        named = [self.path / name for name in self._metadata.names]
        if named and all(path.is_file() for path in named):
            return tuple(named), False
        if not here:
            raise BagError(
                f'{metadata}: expected the storage files that it names beside it, found none of '
                f'{", ".join(self._metadata.names) or "them"}')
        return tuple(here), True

    def _compare(self, counts: Counter[str], renamed: bool) -> None:
        stated = self._metadata
        if stated is None:
            return
        differing = [
            f'{key} {stated.counts[key]} stated, {counts[key]} found'
            for key in sorted({*stated.counts, *counts}) if stated.counts[key] != counts[key]]
        if stated.count != self.count:
            differing.append(f'in all {stated.count} stated, {self.count} found')
        if not differing:
            return
        hint = 'a file is damaged or missing, or metadata.yaml is of another bag'
        if renamed:
            missing = [name for name in stated.names if not (self.path / name).is_file()]
            hint = (f'it names {", ".join(missing) or "no file"}, which is not there, and '
                    f'{", ".join(path.name for path in self.files)} is not the same, renamed')
        raise BagError(
            f'{self.path}: expected the messages that metadata.yaml states, found others: '
            f'{"; ".join(differing[:3])}; {hint}')

    def _candidates(
            self, connection: Connection, ros1: bool) -> tuple[str, list[tuple[str, Definitions]]]:
        """Return the digest that is stated, and the definitions with their origins, best first.

        Raises:
            BagError: There is none; says why, without the bag and the topic.
        """
        message_type = connection.msgtype
        digest = connection.digest
        if self._metadata is not None:
            digest = digest or self._metadata.digests.get(connection.topic.lstrip('/'), '')
        if not ros1 and (encoding := connection.ext.serialization_format) != 'cdr':
            raise BagError(f'expected messages in CDR, found {encoding}')
        try:
            embedded = _parse_embedded(message_type, connection.msgdef)
        except Exception as error:
            raise BagError(f'the definition of {message_type} in the bag cannot be parsed: '
                           f'{_line(error)}') from error
        prefixes = os.environ.get('AMENT_PREFIX_PATH', '')
        inside = ('the bag', embedded.get)
        given = ('the given definitions', self._definitions.get)
        installed = ('the installed ROS', lambda name: _installed(name, prefixes))
        standard = [(store.value, functools.partial(_standard, store))
                    for store in ([Stores.ROS1_NOETIC] if ros1 else self._stores())]
        chains = []
        if message_type in embedded:
            chains += [[inside, given, *([] if ros1 else [installed]), *standard]]
        # What some recorders put into the bag is no definition of the type. Without a digest that
        # tells, the first message does.
        if not chains or not (ros1 or digest.startswith('RIHS01_')):
            chains += [[given, installed, release] for release in standard]
            chains += [[given, release] for release in standard]
        candidates: list[tuple[str, Definitions]] = []
        unknown = ''
        for chain in chains:
            try:
                origin, types = _closure(message_type, chain)
            except _UnknownType as error:
                unknown = unknown or f'{error}'
                continue
            if all(types != known for _, known in candidates):
                candidates.append((origin, types))
        if not candidates:
            within = '' if unknown == message_type else f', within {message_type}'
            raise BagError(f'no definition of {unknown} is known{within}; '
                           f'{_give_definition(unknown)}')
        return digest, candidates

    def _stores(self) -> list[Stores]:
        """Return the releases whose standard types are tried, in this order."""
        metadata = self._metadata
        if metadata is not None:
            name = f'ros2_{metadata.distro}'
            if name in {store.value for store in Stores}:
                return [Stores(name)]
            if metadata.version <= 5:  # what Humble and those before it write
                return [Stores.ROS2_HUMBLE, Stores.ROS2_JAZZY]
        return [Stores.ROS2_JAZZY, Stores.ROS2_HUMBLE]

    def _connections(self, key: str) -> Iterator[tuple[int, Connection, bool]]:
        for index, file in enumerate(self._files):
            for connection in file.connections:
                if connection.topic.lstrip('/') == key:
                    yield index, connection, file.ros1

    def _unreadable(self, key: str) -> str:
        if len(self._types[key]) > 1:
            return f'it was recorded with the types {" and ".join(sorted(self._types[key]))}'
        for _, connection, ros1 in self._connections(key):
            try:
                self._candidates(connection, ros1)
            except BagError as error:
                return str(error)
        return ''

    def _check_topics(self, topics: Collection[str], decoded: bool) -> list[str]:
        keys = sorted({topic.lstrip('/') for topic in topics})
        for key in keys:
            if key not in self.topics:
                raise BagError(f'{self.path}: expected the topic {key}, found '
                               f'{", ".join(sorted(self.topics)) or "none"}')
            topic = self.topics[key]
            if len(self._types[key]) > 1 or (decoded and topic.unreadable):
                raise BagError(f'{self.path}: topic {key} ({topic.type}): {topic.unreadable}')
        return keys

    def _decoder(self, key: str, connection: Connection, ros1: bool) -> _Decoder:
        try:
            digest, candidates = self._candidates(connection, ros1)
            return _Decoder(connection.msgtype, candidates, digest, ros1)
        except Exception as error:
            raise BagError(f'{self.path}: topic {key} ({connection.msgtype}): '
                           f'{_line(error)}') from error

    def messages(self, topics: Collection[str]) -> Iterator[tuple[str, int, Any]]:
        """Yield (topic without its slash, log time in ns, message) in the order of the log.

        Messages of one time come in the order of the storage. Nothing else is decoded.

        Raises:
            BagError: A topic is not in the bag or cannot be decoded, a message cannot be, or after
                the last one fewer or more were read than the storage counts.
        """
        return self._read(topics, decoded=True)

    def raw(self, topics: Collection[str]) -> Iterator[tuple[str, int, bytes]]:
        """Yield (topic without its slash, log time in ns, bytes), otherwise as `messages`."""
        return self._read(topics, decoded=False)

    def _read(self, topics: Collection[str], decoded: bool) -> Iterator[tuple[str, int, Any]]:
        keys = self._check_topics(topics, decoded)
        chosen: list[dict[int, _Source]] = [{} for _ in self._files]
        decoders: dict[tuple[str, MessageDefinition, str], _Decoder] = {}
        for key in keys:
            for index, connection, ros1 in self._connections(key):
                decoder = None
                if decoded:
                    same = (key, connection.msgdef, connection.digest)
                    if same not in decoders:
                        decoders[same] = self._decoder(key, connection, ros1)
                    decoder = decoders[same]
                chosen[index][connection.id] = _Source(key, ros1, decoder)
        read = dict.fromkeys(keys, 0)
        for log_ns, source, data in self._in_order(chosen):
            key = source.key
            if data[:4] == _ZSTD_MAGIC and not source.ros1:
                data = self._expand(key, read[key], log_ns, data)
            if (decoder := source.decoder) is not None:
                try:
                    if decoder.decode is None and (note := decoder.choose(data)):
                        self.notes.append(f'topic {key}: {note}')
                    data = decoder.decode(data)
                except Exception as error:
                    raise BagError(
                        f'{self.path}: topic {key} ({self.topics[key].type}): message '
                        f'{read[key]}, logged at {log_ns} ns, cannot be decoded: {_line(error)}; '
                        'the bag is damaged, or was recorded with another definition of the type'
                    ) from error
            read[key] += 1
            yield key, log_ns, data
        for key in keys:
            if read[key] != self.topics[key].count:
                raise BagError(
                    f'{self.path}: topic {key}: expected the {self.topics[key].count} messages '
                    f'that the storage counts, read {read[key]}; the bag is damaged')

    def _expand(self, key: str, index: int, log_ns: int, data: bytes) -> bytes:
        try:
            decompressor = zstd.ZstdDecompressor()
            expanded = decompressor.decompress(data, max_length=_LARGEST_MESSAGE)
            if not decompressor.eof:
                raise BagError(f'expected a whole message of at most {_LARGEST_MESSAGE} bytes')
        except Exception as error:
            raise BagError(
                f'{self.path}: topic {key}: message {index}, logged at {log_ns} ns, cannot be '
                f'decompressed: {_line(error)}; the bag is damaged') from error
        return expanded

    def _in_order(
            self, chosen: list[dict[int, _Source]]) -> Iterator[tuple[int, _Source, bytes]]:
        """Yield (log time, source, bytes) of all files, and check that time does not go back."""
        parts = [self._part(file, sources)
                 for file, sources in zip(self._files, chosen, strict=True) if sources]
        before_ns = -2**63
        for log_ns, source, data in heapq.merge(*parts, key=lambda message: message[0]):
            if log_ns < before_ns:
                raise BagError(
                    f'{self.path}: expected messages in the order of their log times, found '
                    f'{log_ns} ns after {before_ns} ns; an index of the bag is damaged')
            before_ns = log_ns
            if source is not None:
                yield log_ns, source, data

    @staticmethod
    def _part(
            file: _File, sources: dict[int, _Source]) -> Iterator[tuple[int, Any, Any]]:
        # First an empty one: the merge then begins with a file when its time has come.
        yield min(file.start_ns, 2**63 - 1), None, None
        connections = [c for c in file.connections if c.id in sources]
        with _refusing(file.path, 'cannot be read on'):
            for connection, log_ns, data in file.messages(connections):
                if type(log_ns) is not int or type(data) is not bytes:  # SQLite takes anything
                    raise BagError(f'{file.path}: expected messages of a time and bytes, found '
                                   f'{type(log_ns).__name__} and {type(data).__name__}')
                yield log_ns, sources[connection.id], data

    def sha256(self) -> dict[str, str]:
        """Return the digest of each storage file, by its name.

        Raises:
            BagError: One cannot be read.
        """
        result = {}
        for path in self.files:
            with _refusing(path, 'cannot be read'), path.open('rb') as file:
                result[path.name] = hashlib.file_digest(file, 'sha256').hexdigest()
        return result
