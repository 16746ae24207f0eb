"""Where the definition of a message comes from, and its bytes -> the message.

A definition is in the bag, in .msg files that a user gives, in an installed ROS, or one of the
types that a release of ROS brings. Several may be possible; the first message that fits decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
import os
from pathlib import Path
import re
from typing import Any

from rosbags.interfaces import Connection, MessageDefinition, MessageDefinitionFormat, Nodetype
from rosbags.typesys import get_types_from_idl, get_types_from_msg, get_typestore, Stores
from training.bag_error import BagError, one_line, refusing

# Type name -> its constants and fields, as rosbags parses them: tuples, lists, text and numbers.
Definitions = dict[str, Any]


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
        with refusing(given, 'cannot be read as message definitions'):
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
    with refusing(file, 'cannot be read as a message definition'):
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


def candidates(
        connection: Connection, ros1: bool, digest: str, given: Definitions,
        releases: Sequence[Stores]) -> list[tuple[str, Definitions]]:
    """Return the definitions that the messages of a connection may have, best first.

    Args:
        connection: The connection, with what the bag says of its type.
        ros1: Whether it is of ROS 1.
        digest: That the bag states, or ''.
        given: From `definitions`.
        releases: Whose standard types are tried, in this order.

    Returns:
        Where each is from, in words, and its types.

    Raises:
        BagError: There is none; says why, without the bag and the topic.
    """
    message_type = connection.msgtype
    if not ros1 and (encoding := connection.ext.serialization_format) != 'cdr':
        raise BagError(f'expected messages in CDR, found {encoding}')
    try:
        embedded = _parse_embedded(message_type, connection.msgdef)
    except Exception as error:
        raise BagError(f'the definition of {message_type} in the bag cannot be parsed: '
                       f'{one_line(error)}') from error
    prefixes = os.environ.get('AMENT_PREFIX_PATH', '')
    inside = ('the bag', embedded.get)
    by_user = ('the given definitions', given.get)
    installed = ('the installed ROS', lambda name: _installed(name, prefixes))
    standard = [(store.value, functools.partial(_standard, store))
                for store in ([Stores.ROS1_NOETIC] if ros1 else releases)]
    chains = []
    if message_type in embedded:
        chains += [[inside, by_user, *([] if ros1 else [installed]), *standard]]
    # What some recorders put into the bag is no definition of the type. Without a digest that
    # tells, the first message does.
    if not chains or not (ros1 or digest.startswith('RIHS01_')):
        chains += [[by_user, installed, release] for release in standard]
        chains += [[by_user, release] for release in standard]
    found: list[tuple[str, Definitions]] = []
    unknown = ''
    for chain in chains:
        try:
            origin, types = _closure(message_type, chain)
        except _UnknownType as error:
            unknown = unknown or f'{error}'
            continue
        if all(types != known for _, known in found):
            found.append((origin, types))
    if not found:
        within = '' if unknown == message_type else f', within {message_type}'
        raise BagError(f'no definition of {unknown} is known{within}; '
                       f'{_give_definition(unknown)}')
    return found


class Decoder:
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
