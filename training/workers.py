"""Processes that work for a program: they leave an interrupt to it, and end when it does."""

from collections.abc import Iterator
from contextlib import contextmanager
import multiprocessing
from multiprocessing import resource_tracker
import os
import signal
import threading
import warnings


@contextmanager
def deaf() -> Iterator[None]:
    """Let the processes that are started within, and theirs, hear neither SIGTERM nor SIGINT.

    For those whose end is their parent's to decide, though a signal goes to all of a process
    group or of a service: they, and the server that forks them, inherit what is blocked here, and
    so none of them hears it in its first moments either. Only a closed pipe or `kill` ends them.
    """
    resource_tracker.ensure_running()  # starting it would unblock both
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin() -> None:
    """Begin a worker, a process that was started by `multiprocessing`.

    The parent alone answers an interrupt, and nothing but errors is printed into its progress bar.
    SIGTERM ends it all the same, as a pool ends its workers, unless it is `deaf`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A parent that was killed tells nobody: its workers would wait for ever.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Of windows that cannot be opened, and of the precision of an action space.
    warnings.simplefilter('ignore', UserWarning)


def _end_with_parent() -> None:
    """Wait for the parent's end, and end this process."""
    multiprocessing.parent_process().join()
    os._exit(1)
