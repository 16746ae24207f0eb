"""Files that are whole or not there: of one that is being replaced, the one before stays."""

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
    # Always the same: what a killed process left is written over.
    temporary = path.with_name(f'.{path.name}.unfinished')
    try:
        with open(temporary, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
