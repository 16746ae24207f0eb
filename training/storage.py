"""Bags of any kind -> topics, counts, and decoded messages in the order of the log.

This file decides what belongs to a bag, and that nothing is lost: what was read is compared with
what the storage counts, and that with what metadata.yaml states. Times are those of the messages
alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
import contextlib
from dataclasses import dataclass
import functools
import glob
import hashlib
import heapq
import itertools
from pathlib import Path, PurePosixPath
import re
import sys
import tempfile
from typing import Any

from rosbags.interfaces import Connection, MessageDefinition
from rosbags.typesys import Stores
from training.bag_error import BagError, one_line, refusing
from training.bag_files import BagFile, COMPRESSED, is_storage, LFS_MAGIC, ROS1
from training.definitions import candidates, Decoder, Definitions, definitions
import yaml

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# What callers need to read bags.
__all__ = ['Bag', 'BagError', 'Definitions', 'Topic', 'definitions', 'find']

# Begins every zstd frame; no message begins so, whose first byte (CDR) is 0.
_ZSTD_MAGIC = b'\x28\xb5\x2f\xfd'
# No message of a robot is larger; a small frame can expand to all of the memory.
_LARGEST_MESSAGE = 2**30
# The parser in C, where it was built: a bag of many topics has thousands of lines.
_SafeLoader = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)


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


# ---- which files are a bag ----------------------------------------------------------------------


def _by_number(path: Path) -> list[Any]:
    """Return a key that sorts the second file of a bag before its tenth."""
    return [int(part) if part.isdecimal() else part for part in re.split(r'(\d+)', path.name)]


def _storage_files(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if is_storage(path) and path.is_file()),
                  key=_by_number)


_PIECE = re.compile(r'(.*)_(0|[1-9]\d*)(\.\w+)', re.ASCII)


def _doubled(files: Sequence[Path]) -> str:
    """Return the name of a file that lies there plain and compressed, or ''."""
    counts = Counter(file.name.removesuffix(COMPRESSED) for file in files)
    return next((name for name, times in counts.items() if times > 1), '')


def _no_pieces(files: Sequence[Path]) -> str:
    """Return why files, by their names, are not the pieces of one recording; '' where they are.

    A recorder numbers its pieces from 0 on. Whoever numbers recordings often begins with another
    number, or leaves one out; without metadata.yaml nothing says that a piece is missing.
    """
    found = [_PIECE.fullmatch(file.name.removesuffix(COMPRESSED)) for file in files]
    if None in found or len({(match[1], match[3]) for match in found}) > 1:
        return 'different names'
    numbers = {int(match[2]) for match in found}
    missing = next((number for number in range(len(found)) if number not in numbers), None)
    if missing is None:
        return ''
    return f'no {found[0][1]}_{missing}{found[0][3]}'


def _overlap(files: Sequence[BagFile]) -> str:
    """Return which of the pieces of a recording begins before the one before ends, or ''."""
    filled = [file for file in files if sum(file.counts.values())]
    return next((f'{after.path.name} begins before {before.path.name} ends'
                 for before, after in itertools.pairwise(filled)
                 if after.start_ns < before.last_ns), '')


def _listed(files: Sequence[Path]) -> str:
    names = [file.name for file in files]
    if len(names) > 6:
        names = [*names[:3], '...', names[-1]]
    return ', '.join(names)


def _scratch(stack: contextlib.ExitStack) -> Path:
    """Return a new folder that goes with the stack."""
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix='idql_ros_bag_')))


def _is_one_bag(folder: Path) -> bool:
    """Return whether a folder is a bag, rather than one with bags in it."""
    metadata = folder / 'metadata.yaml'
    files = _storage_files(folder)
    if metadata.is_file():  # other programs give files this name, too
        return bool(files) or b'rosbag2_bagfile_information' in metadata.read_bytes()
    # Without metadata the pieces of one recording are told from recordings that lie side by side
    # by the number that the recorder gives each piece, and by their times.
    if len(files) < 2 or _doubled(files):  # the latter is refused as a bag
        return bool(files)
    if _no_pieces(files):
        return False
    opened: list[BagFile] = []
    try:
        for path in files:
            with contextlib.ExitStack() as stack:
                opened.append(BagFile(path, functools.partial(_scratch, stack)))
                stack.callback(opened[-1].close)
    except Exception:  # a damaged piece: as a bag the whole is refused, with the reason
        return True
    return not _overlap(opened)


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
        elif path.is_file() and (is_storage(path) or path.suffix == ROS1):
            yield path


def find(patterns: Sequence[str | Path]) -> list[Path]:
    """Return the bags that are named on a command line.

    Args:
        patterns: Bag folders, lone files, folders of bags at any depth, or globs of these. What a
            glob matches beside bags is left out. A folder without metadata.yaml is one bag where
            its files are NAME_0, NAME_1 and so on without a hole, each of which begins when the
            one before has ended; else each file is a bag.

    Returns:
        Each bag once, sorted.

    Raises:
        BagError: A pattern matches nothing, or a bag is named twice.
    """
    found: dict[Path, Path] = {}
    for pattern in patterns:
        path = Path(pattern)
        with refusing(path, 'cannot be looked through'):
            matches = [path] if path.exists() else [
                Path(match) for match in sorted(glob.glob(str(pattern), recursive=True))]
            seen: set[Path] = set()
            here: dict[Path, Path] = {}
            for match in matches:
                bags = list(_below(match, seen)) if match.is_dir() else [
                    match] if is_storage(match) or match.suffix == ROS1 else []
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


# ---- metadata.yaml ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Metadata:
    """What metadata.yaml states, as far as it is believed."""

    # As it states them; with a folder where a recorder or a person did so.
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
        if text.startswith(LFS_MAGIC):
            raise BagError(f'{path}: expected metadata, found a pointer of git-LFS; in its '
                           'repository run git lfs pull')
        data = _SafeLoader(text.decode()).get_single_data()
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise BagError(f'{path}: cannot be read as YAML: {one_line(error)}') from error

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
        tuple(str(name) for name in take(information, 'relative_file_paths', list)),
        take(information, 'message_count', int), counts, digests,
        take(information, 'version', int), take(information, 'ros_distro', str, ''))


# ---- the bag ------------------------------------------------------------------------------------


@dataclass
class _Source:
    """A connection of a file, while it is read."""

    key: str
    ros1: bool
    # None where bytes are asked for.
    decoder: Decoder | None


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
        self._files: list[BagFile] = []
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
            with refusing(self.path, 'cannot be read as a bag'):
                self._open()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """Close the files; remove what was decompressed."""
        self._files.clear()
        self._stack.close()

    def _open(self) -> None:
        if not self.path.exists():
            raise BagError(f'{self.path}: expected a bag, found no such file or folder')
        renamed = False
        if self.path.is_dir():
            self.files, renamed = self._files_of_folder()
        elif is_storage(self.path) or self.path.suffix == ROS1:
            self.files = (self.path,)
        else:
            raise BagError(
                f'{self.path}: expected a folder of rosbag2 or a file .mcap, .db3, .bag, '
                f'.mcap.zstd, .db3.zstd, found the name {self.path.name}')
        for path in self.files:
            with refusing(path, 'cannot be read as a bag'):
                file = BagFile(path, functools.partial(_scratch, self._stack))
                self._stack.callback(file.close)
                self._files.append(file)
        if self._metadata is None and len(self.files) > 1:
            if why := _overlap(self._files):
                raise self._unrelated(why)
            self.notes.append(
                f'taken as the pieces of one bag: {_listed(self.files)}; there is no '
                'metadata.yaml that says so')
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
            if name := _doubled(here):
                raise BagError(f'{self.path}: without metadata.yaml expected {name} once, found '
                               'it also compressed')
            if len(here) > 1 and (why := _no_pieces(here)):
                self.files = tuple(here)
                raise self._unrelated(why)
            return tuple(here), False
        self._metadata = _read_metadata(metadata)
        named = [self._named(name) for name in self._metadata.names]
        if named and None not in named:
            beside = [path for path in here if path not in named]
            if beside:
                self.notes.append('not read, as metadata.yaml does not name '
                                  f'{"it" if len(beside) == 1 else "them"}: {_listed(beside)}')
            return tuple(named), False
        if not here:
            raise BagError(
                f'{metadata}: expected the storage files that it names beside it, found none of '
                f'{", ".join(self._metadata.names) or "them"}')
        return tuple(here), True

    def _named(self, name: str) -> Path | None:
        """Return the file that the metadata name, None where it is not there.

        Recorders of ROS before Humble put the bag's own folder before it, which may have another
        name by now. What metadata name is never looked for outside of the bag.
        """
        given = PurePosixPath(name)
        inside = not given.is_absolute() and '..' not in given.parts
        return next((path for path in [self.path / given] * inside + [self.path / given.name]
                     if path.is_file()), None)

    def _unrelated(self, why: str) -> BagError:
        return BagError(
            f'{self.path}: without metadata.yaml expected the pieces of one recording (NAME_0, '
            f'NAME_1 and so on, one after the other), found {why}: {_listed(self.files)}; give '
            'the files themselves, each of which is a bag then, or write metadata.yaml with '
            'ros2 bag reindex')

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
            missing = [name for name in stated.names if self._named(name) is None]
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
        digest = connection.digest
        if self._metadata is not None:
            digest = digest or self._metadata.digests.get(connection.topic.lstrip('/'), '')
        return digest, candidates(connection, ros1, digest, self._definitions, self._stores())

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

    def _decoder(self, key: str, connection: Connection, ros1: bool) -> Decoder:
        try:
            digest, found = self._candidates(connection, ros1)
            return Decoder(connection.msgtype, found, digest, ros1)
        except Exception as error:
            raise BagError(f'{self.path}: topic {key} ({connection.msgtype}): '
                           f'{one_line(error)}') from error

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
        decoders: dict[tuple[str, MessageDefinition, str], Decoder] = {}
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
                        f'{read[key]}, logged at {log_ns} ns, cannot be decoded: '
                        f'{one_line(error)}; the bag is damaged, or was recorded with another '
                        'definition of the type'
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
                f'decompressed: {one_line(error)}; the bag is damaged') from error
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
            file: BagFile, sources: dict[int, _Source]) -> Iterator[tuple[int, Any, Any]]:
        # First an empty one: the merge then begins with a file when its time has come.
        yield min(file.start_ns, 2**63 - 1), None, None
        connections = [c for c in file.connections if c.id in sources]
        with refusing(file.path, 'cannot be read on'):
            for connection, log_ns, data in file.messages(connections):
                if type(log_ns) is not int or type(data) is not bytes:  # SQLite takes anything
                    raise BagError(f'{file.path}: expected messages of a time and bytes, found '
                                   f'{type(log_ns).__name__} and {type(data).__name__}')
                yield log_ns, sources[connection.id], data

    def sha256(self) -> dict[str, str]:
        """Return the digest of each storage file, by its name within the bag.

        Raises:
            BagError: One cannot be read.
        """
        result = {}
        for path in self.files:
            with refusing(path, 'cannot be read'), path.open('rb') as file:
                name = path.relative_to(self.path) if path != self.path else path.name
                result[str(name)] = hashlib.file_digest(file, 'sha256').hexdigest()
        return result
