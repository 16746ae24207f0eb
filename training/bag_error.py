"""What is wrong with a bag, in one line that is safe to print."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
from pathlib import Path


class BagError(ValueError):
    """A bag that cannot be read; names it, what was expected, what was found, where to look.

    One line that is safe to print, whatever names and texts the bag holds.
    """

    def __init__(self, text: str) -> None:
        """Take the text."""
        super().__init__(''.join(c if c.isprintable() else ' ' for c in text))


# What can be done about what rosbags says of a file.
_HINTS = {
    'File end magic is invalid': '; the recording or a copy ended early: mcap recover brings back '
                                 'what is there',
    'Bag is not indexed': '; the recording ended early: rosbag reindex brings back what is there',
    'Bag index looks damaged': '; rosbag reindex brings back what is there',
}


def one_line(error: BaseException) -> str:
    """Return what an error says in one line, and what can be done where that is known."""
    text = ' '.join(f'{error}'.split()) or type(error).__name__
    text = text if len(text) <= 400 else f'{text[:400]}...'
    return text + next((hint for said, hint in _HINTS.items() if text.startswith(said)), '')


@contextlib.contextmanager
def refusing(path: Path, what: str) -> Iterator[None]:
    """Turn whatever damaged bytes make a library raise into one line."""
    try:
        yield
    except BagError:
        raise
    except Exception as error:  # rosbags and what it stands on raise any type
        reason = (isinstance(error, OSError) and error.strerror) or one_line(error)
        if isinstance(error, (KeyError, AssertionError)):
            reason = f'{type(error).__name__} {reason}'
        raise BagError(f'{path}: {what}: {reason}') from error
