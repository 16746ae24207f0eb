"""The messages of a recording in simulated time, which its headers tell, and not its log.

The clock is /clock where it was recorded, else the newest stamp so far of what is observed by its
header and is not latched; where /clock lags behind such a stamp by more than a second, the stamp
moves the clock. What has no such stamp, commands too, lies between the two moments of the clock
about it, in proportion to the log; where /clock repeats a moment, at that moment. Before the
clock's first moment and after its last one it has no time and is left out; so it is where the
clock has stood still for a minute of the log.

Stamps are put in order. A message with a stamp so old that later ones have been let go, a second
of the clock, counts as stamped when it came. /clock that goes back was set back; without /clock,
the clock was where the stamps of one topic go back by more than a second.
"""

from collections.abc import Iterable, Iterator
import heapq
from typing import Any, NamedTuple

from idql_ros import message as messages
from idql_ros import spec as specs
from idql_ros.observer import LONGEST_OVERTAKING_S

CLOCK_TOPIC = 'clock'
# Messages are put in order that are so much out of it.
_SLACK_NS = round(LONGEST_OVERTAKING_S * messages.NS)
# A clock that has not moved for so long, in the time of the log, is not waited for.
_LONGEST_PAUSE_NS = 60 * messages.NS


class Timed(NamedTuple):
    """A message at its time."""

    time_ns: int
    # As bags are asked for it; '' where the clock was set back, and there is no message.
    topic: str
    logged_ns: int
    message: Any


class _Waiting(NamedTuple):
    """A message without a stamp, until the clock has moved on."""

    number: int
    topic: str
    logged_ns: int
    message: Any


class HeaderClock:
    """Orders messages by the clock of their headers."""

    def __init__(
        self, spec: specs.Spec, stamped: set[str], latched: set[str], told: dict[str, Any],
    ) -> None:
        """Start before the first message.

        Args:
            spec: Of its ticks, for what a node would have had too late.
            stamped: Topics that are observed by their header.
            latched: Those of them whose stamps do not move the clock.
            told: Is told source, speed, set_back, out_of_order, without_time, too_late.
        """
        self._spec, self._stamped, self._latched, self._told = spec, stamped, latched, told
        # Topic -> its last stamp.
        self._stamps: dict[str, int] = {}
        told.update(source='headers', set_back=0, out_of_order=0, without_time=0, too_late={})
        # The clock's first and newest moments: (time, when it was logged).
        self._first: tuple[int, int] | None = None
        self._now_ns = self._now_logged_ns = 0
        # When the last message was that was let go.
        self._passed_ns = 0
        # What has a time, the earliest first: (time, number, topic, logged, message).
        self._due: list[tuple[int, int, str, int, Any]] = []
        self._waiting: list[_Waiting] = []

    def order(self, logged: Iterable[tuple[str, int, Any]]) -> Iterator[Timed]:
        """Yield the messages (topic, log time, message) in the order of their times."""
        for number, (topic, logged_ns, message) in enumerate(logged):
            is_clock = topic == CLOCK_TOPIC and topic not in self._stamped
            stamp_ns = 0
            if is_clock:
                self._told['source'] = '/clock'
                stamp_ns = messages.time_message_ns(message.clock)
            elif topic in self._stamped:
                stamp_ns = messages.stamp_ns(message, 0)
                self._count_late(topic, stamp_ns)
            if stamp_ns > 0 and topic not in self._latched:
                if self._first is None:
                    self._begin(stamp_ns, logged_ns)
                elif self._goes_back(is_clock, topic, stamp_ns):
                    yield from self._set_back(stamp_ns, logged_ns)
                elif self._moves(is_clock, stamp_ns):
                    self._move(stamp_ns, logged_ns)
                self._stamps[topic] = stamp_ns
            paused = logged_ns - self._now_logged_ns > _LONGEST_PAUSE_NS
            if not is_clock:
                if stamp_ns > 0:
                    if stamp_ns < self._passed_ns:
                        self._told['out_of_order'] += 1
                        stamp_ns = max(self._passed_ns, self._now_ns)
                    heapq.heappush(self._due, (stamp_ns, number, topic, logged_ns, message))
                elif self._first is None or paused:
                    self._told['without_time'] += 1
                else:
                    self._waiting.append(_Waiting(number, topic, logged_ns, message))
            yield from self._release(self._now_ns - (0 if paused else _SLACK_NS))
        self._told['without_time'] += len(self._waiting)
        if self._first is not None and self._now_logged_ns > self._first[1]:
            self._told['speed'] = (
                (self._now_ns - self._first[0]) / (self._now_logged_ns - self._first[1]))
        yield from self._release(2**63)

    def _goes_back(self, is_clock: bool, topic: str, stamp_ns: int) -> bool:
        before_ns = self._stamps.get(topic, 0)
        if is_clock:
            return stamp_ns < before_ns
        return self._told['source'] == 'headers' and stamp_ns < before_ns - _SLACK_NS

    def _moves(self, is_clock: bool, stamp_ns: int) -> bool:
        if is_clock:
            return stamp_ns >= self._now_ns
        slack_ns = 0 if self._told['source'] == 'headers' else _SLACK_NS
        return stamp_ns > self._now_ns + slack_ns

    def _begin(self, stamp_ns: int, logged_ns: int) -> None:
        self._first = self._now_ns, self._now_logged_ns = stamp_ns, logged_ns

    def _move(self, stamp_ns: int, logged_ns: int) -> None:
        """Move the clock on, and give a time to what waits."""
        for waiting in self._waiting:
            share = (waiting.logged_ns - self._now_logged_ns) / max(
                1, logged_ns - self._now_logged_ns)
            time_ns = self._now_ns + round(share * (stamp_ns - self._now_ns))
            heapq.heappush(self._due, (time_ns, *waiting))
        self._waiting.clear()
        self._now_ns, self._now_logged_ns = stamp_ns, logged_ns

    def _set_back(self, stamp_ns: int, logged_ns: int) -> Iterator[Timed]:
        """Let go what was before, and begin anew."""
        self._told['set_back'] += 1
        self._told['without_time'] += len(self._waiting)
        self._waiting.clear()
        # What has come of the time after is far before the newest moment of the time before.
        after = [entry for entry in self._due if entry[0] <= self._now_ns - _SLACK_NS]
        self._due = [entry for entry in self._due if entry[0] > self._now_ns - _SLACK_NS]
        heapq.heapify(self._due)
        yield from self._release(2**63)
        yield Timed(0, '', 0, None)
        heapq.heapify(after)
        self._due, self._passed_ns = after, 0
        self._stamps.clear()
        self._begin(stamp_ns, logged_ns)

    def _release(self, until_ns: int) -> Iterator[Timed]:
        while self._due and self._due[0][0] <= until_ns:
            self._passed_ns, _, topic, logged_ns, message = heapq.heappop(self._due)
            yield Timed(self._passed_ns, topic, logged_ns, message)

    def _count_late(self, topic: str, stamp_ns: int) -> None:
        """Count a message that a live timer would have had too late: its tick had passed."""
        spec, late = self._spec, self._told['too_late']
        if spec.tick == 'timer' and 0 < stamp_ns <= self._now_ns and (
                spec.start_of(spec.period_of(self._now_ns)) >= stamp_ns):
            late[topic] = late.get(topic, 0) + 1
