"""Processes that work for a program: they leave an interrupt to it, and end when it does."""

import multiprocessing
import os
import signal
import threading
import warnings


def begin() -> None:
    """Begin a worker, a process that was started by `multiprocessing`.

    The parent alone answers an interrupt, and nothing but errors is printed into its progress bar.
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
