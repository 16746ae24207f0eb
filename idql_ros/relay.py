"""Standard output and error that never wait for who reads them.

A log line that is written to a full pipe (a launch that was stopped, `| less`) waits until
somebody reads, and rclpy writes it without giving up the interpreter's lock: every thread of the
process waits with it, the one that would send the stop as well. Behind a relay what nobody reads
is lost instead. So is what a process that crashes says last.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import fcntl
import os
import threading

# As much as an unprivileged process may ask for, on Linux.
_PIPE_BYTES = 2**20
# For what was said last, at the end.
_LAST_WORDS_S = 0.5


@contextlib.contextmanager
def relayed(*descriptors: int) -> Iterator[None]:
    """Relay what is written to file descriptors through a thread each, until the end."""
    relays = [_Relay(descriptor) for descriptor in descriptors]
    try:
        yield
    finally:
        for relay in relays:
            relay.close()


class _Relay:
    """One descriptor, and the thread that writes where it led before."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._target = descriptor, os.dup(descriptor)
        self._reading, writing = os.pipe()
        if hasattr(fcntl, 'F_SETPIPE_SZ'):
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        os.set_blocking(writing, False)
        os.dup2(writing, descriptor)
        os.close(writing)
        self._thread = threading.Thread(target=self._run, name='relay', daemon=True)
        self._thread.start()

    def close(self) -> None:
        os.dup2(self._target, self._descriptor)  # the thread comes to the end of what it reads
        self._thread.join(_LAST_WORDS_S)

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # nobody is there any more
            while text := os.read(self._reading, 65536):
                while text:
                    text = text[os.write(self._target, text):]
