"""How long a message waited on its way, told by two clocks that need not agree. Pure: no ROS."""

from __future__ import annotations

# The clocks may drift apart by some milliseconds in this time, not more.
WINDOW_NS = 10 * 10**9


class Delay:
    """Of the messages of a topic: how much longer each was under way than the quickest of late.

    A message may lie in a queue while its receiver does not run, and has no header to tell. The
    publisher's clock and the receiver's differ by an offset that nobody knows, but that is the
    same for all: the smallest difference of the last 10 to 20 s stands for no delay.
    """

    def __init__(self) -> None:
        """Begin without any message."""
        self._least: int | None = None
        self._least_before: int | None = None
        self._begun_ns = 0

    def of(self, sent_ns: int, taken_ns: int) -> int:
        """Take when a message was sent and taken, each by its clock; return its delay in ns."""
        difference = taken_ns - sent_ns
        if self._least is None or not 0 <= taken_ns - self._begun_ns <= WINDOW_NS:
            self._least_before, self._least = self._least, difference
            self._begun_ns = taken_ns
        self._least = min(self._least, difference)
        known = self._least if self._least_before is None else min(
            self._least, self._least_before)
        return difference - known
