"""Files that are whole or not there: of one that is being replaced, the one before stays."""

from collections.abc import Mapping
import os
from pathlib import Path


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file under a temporary name, and give it its own when all of it is on the disk.

    Args:
        path: The file; its folder exists.
        content: All of it.

    Raises:
        OSError: It cannot be written; what was there before is as it was.
    """
    write_all({path: content})


def write_all(contents: Mapping[Path, bytes | memoryview]) -> None:
    """Write files that belong together: none gets its name before all of them are on the disk.

    Args:
        contents: Path -> all of the file.

    Raises:
        OSError: One cannot be written; what was there before is as it was, unless the disk
            itself failed between two renames.
    """
    # One that cannot be renamed over is found before the first is.
    temporary = {path: _unfinished(path) for path in contents}
    try:
        for path, content in contents.items():
            with open(temporary[path], 'wb') as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path in contents:
            os.replace(temporary[path], path)
    finally:
        for unfinished in temporary.values():
            unfinished.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Find out before long work whether its result can be written.

    Args:
        path: The file; its folder exists. What is there stays as it is.

    Raises:
        OSError: It cannot be written.
    """
    unfinished = _unfinished(path)
    try:
        unfinished.open('wb').close()
        unfinished.unlink()
    except OSError as error:
        raise OSError(f'{path}: expected a place for a file, found that none can be written '
                      f'there: {error.strerror}') from error


def _unfinished(path: Path) -> Path:
    """Return the temporary name of a file; raise IsADirectoryError where there is a folder."""
    if path.is_dir():
        raise IsADirectoryError(f'{path}: expected a file or nothing, found a folder')
    # Always the same: what a killed process left is written over.
    return path.with_name(f'.{path.name}.unfinished')
