"""Asynchronous messages -> the observation at a tick, or the reasons why there is none.

The node and the bag conversion feed the same class, so that both see the same observations. A
missing number is a reason, never a zero.
"""

from __future__ import annotations

from collections import deque
import dataclasses
import math
from typing import Any

from idql_ros import message as messages
from idql_ros.spec import Signal, Spec
import numpy as np

# A message that is later than this was not overtaken on the way: its clock was set back. Without
# it one wrong stamp of a signal that may be old would hide all that follow.
LONGEST_OVERTAKING_S = 1.0

# Ticks of a timer that are further apart than so many periods do not follow each other.
_FOLLOWING_PERIODS = 1.5

_NOT_FOR_IT = np.zeros(0, np.float32)


@dataclasses.dataclass(eq=False, slots=True)
class _Newest:
    """The newest sample of a signal, and what does not change about the signal."""

    signal: Signal
    # Whether its headers, where it has any, tell its time.
    by_header: bool
    # Whether joints of it go by their names.
    by_name: bool
    # Where its numbers lie in a frame.
    part: slice
    # Ages in ns; None: it may be of any age.
    max_age_ns: int | None
    overtaking_ns: int
    came: bool = False
    # Finite numbers that were made at no negative time.
    usable: bool = False
    values: np.ndarray | None = None
    # Why there are no values.
    error: str = ''
    # Header stamp, or the time of receipt, as the signal's `time` says.
    stamp_ns: int = 0
    stamped: bool = False
    received_ns: int = 0
    # No tick was taken since it came.
    new: bool = False
    # Messages dropped because a newer one had overtaken them.
    overtaken: int = 0


class Observer:
    """Keeps the newest sample of each signal of a spec, and the frames of the last ticks.

    A frame is what all signals give at one tick (F,); an observation (O,) holds as many frames of
    each signal as its `history` says, the oldest first.

    Times are nanoseconds of the clock that stamps the messages (the node's clock, or the bag's log
    time for what has no header).
    """

    def __init__(self, spec: Spec, *, clock_lags: bool = False) -> None:
        """Start without any sample.

        Args:
            spec: What is observed.
            clock_lags: The clock of receipt may lag behind the stamps, as that of simulation does
                until /clock comes: what is stamped later than it was received is not too new.
        """
        self._spec, self._clock_lags = spec, clock_lags
        self._newest: list[_Newest] = []
        self._of_topic: dict[str, list[_Newest]] = {}
        begin = 0
        for signal in spec.observations:
            overtaking_s = min(signal.max_age, LONGEST_OVERTAKING_S)
            newest = _Newest(
                signal, signal.time == 'header',
                any(field.joint is not None for field in signal.fields),
                slice(begin, begin + signal.size),
                None if signal.latched else round(signal.max_age * messages.NS),
                round(overtaking_s * messages.NS))
            begin += signal.size
            self._newest.append(newest)
            self._of_topic.setdefault(signal.topic, []).append(newest)
        self._frame = np.full(spec.frame_size, np.nan, np.float32)  # (F,)
        # The times at which every sample is fresh; none while one is not usable.
        self._fresh_from_ns, self._fresh_until_ns = 0, -1
        self._frames = max(signal.history for signal in spec.observations)
        # Frames of the ticks before, the newest last, and when the newest was taken.
        self._past: deque[np.ndarray] = deque(maxlen=self._frames - 1)
        self._past_ns: int | None = None
        # Which number of the last frames, one after another, stands where in an observation.
        self._order = np.concatenate([
            spec.frame_size * frame + np.arange(newest.part.start, newest.part.stop)
            for newest in self._newest
            for frame in range(self._frames - newest.signal.history, self._frames)])
        self._period: int | None = None

    def reset(self) -> None:
        """Forget the frames and every sample that is not latched: time begins anew."""
        for newest in self._newest:
            if not newest.signal.latched:
                newest.came = newest.usable = newest.new = False
        self._past.clear()
        self._past_ns = self._period = None
        self._find_fresh()

    def add(self, topic: str, message: Any, received_ns: int) -> list[np.ndarray | None]:
        """Take a message that was received (or logged) at `received_ns`.

        The newest sample is the last one received. A stamp that lies before the kept one by less
        than the maximum age, and than a second, is a message overtaken on its way, and is dropped;
        one that lies further back means that the clock was set back, and is kept. What has no
        header, or a time of receipt by the spec, is never overtaken.

        Returns:
            The numbers of each signal of the topic, None where they could not be read, and no
            numbers where the message is not for the signal (of another publisher's joints).
        """
        read: list[np.ndarray | None] = []
        header = messages.header_of(message)
        header_ns = None if header is None else messages.time_message_ns(header.stamp)
        for newest in self._of_topic.get(topic, ()):
            if newest.by_name and not messages.concerns(newest.signal, message):
                read.append(_NOT_FOR_IT)
                if not newest.came and not newest.error:
                    newest.error = messages.why_unreadable(newest.signal, message)
                continue
            values = None
            stamped = newest.by_header and header_ns is not None
            stamp_ns = header_ns if stamped else received_ns
            try:
                values, error = messages.read(newest.signal, message), ''
            except messages.MessageError as reason:
                error = str(reason)
            read.append(values)
            if stamped and newest.came and (
                    0 < newest.stamp_ns - stamp_ns <= newest.overtaking_ns):
                newest.overtaken += 1
                continue
            newest.came = newest.new = True
            newest.values, newest.error = values, error
            newest.stamp_ns, newest.stamped = stamp_ns, stamped
            newest.received_ns = max(received_ns, stamp_ns) if self._clock_lags else received_ns
            # On so few numbers far cheaper than numpy's.
            newest.usable = (values is not None and stamp_ns >= 0
                             and all(map(math.isfinite, values.tolist())))
            if newest.usable:
                self._frame[newest.part] = values
        if read:
            self._find_fresh()
        return read

    def _find_fresh(self) -> None:
        begin_ns, end_ns = -2**63, 2**63
        for newest in self._newest:
            if not newest.usable:
                self._fresh_from_ns, self._fresh_until_ns = 0, -1
                return
            age_ns = newest.max_age_ns
            if age_ns is not None:
                stamp_ns = newest.stamp_ns
                if stamp_ns - age_ns > begin_ns:
                    begin_ns = stamp_ns - age_ns
                # A stamp in the future makes no sample live longer.
                oldest_ns = min(stamp_ns, newest.received_ns)
                if oldest_ns + age_ns < end_ns:
                    end_ns = oldest_ns + age_ns
        self._fresh_from_ns, self._fresh_until_ns = begin_ns, end_ns

    def take_tick(self, now_ns: int) -> int | None:
        """Return the time of the tick that the last message completed, or None.

        A tick is complete when every signal that is not latched has a sample in one period of the
        spec's rate in which none was taken yet. Its time is the newest header stamp among them
        (`now_ns` where no message has a header); what has no header belongs to the tick when it
        came after the last one.
        """
        if not all(newest.came for newest in self._newest):
            return None
        awaited = [newest for newest in self._newest if not newest.signal.latched]
        tick_ns = max((n.stamp_ns for n in awaited if n.stamped), default=now_ns)
        period = self._spec.period_of(tick_ns)
        if period == self._period or not all(
                self._spec.period_of(n.stamp_ns) == period if n.stamped else n.new
                for n in awaited):
            return None
        self._period = period
        for newest in awaited:
            newest.new = False
            if not newest.stamped:
                # It came with this tick. Its own time is that of the node's clock, which in
                # simulation may still lag behind the stamps.
                newest.stamp_ns = newest.received_ns = tick_ns
        self._find_fresh()
        return tick_ns

    def observe_tick(
            self, tick_ns: int, now_ns: int | None = None) -> tuple[np.ndarray | None, list[str]]:
        """Return the observation of a tick, and keep its frame for the ticks that follow.

        Args:
            tick_ns: time of the tick; one that does not follow the last one begins a new history.
            now_ns: time at which ages count; None: that of the tick.

        Returns:
            The observation (O,) float32 and [], or None and the reasons, one a signal.
        """
        if self._past_ns is not None and not follows(self._spec, self._past_ns, tick_ns):
            self._past.clear()
        now_ns = tick_ns if now_ns is None else now_ns
        observation, reasons = self.observe(now_ns)
        if self._fresh_from_ns <= now_ns <= self._fresh_until_ns:
            self._past.append(self._frame.copy())
        else:
            self._past.clear()
        self._past_ns = tick_ns
        return observation, reasons

    def observe(self, now_ns: int) -> tuple[np.ndarray | None, list[str]]:
        """Return the observation (O,) float32 at a time, or None and the reasons, one a signal."""
        observation = self.peek(now_ns)
        if observation is not None:
            return observation.copy(), []
        reasons = [reason for reason in self.reasons(now_ns) if reason]
        return None, reasons or [
            f'history: {len(self._past) + 1} of {self._frames} frames since the last gap']

    def reasons(self, now_ns: int) -> list[str]:
        """Return why each signal's newest sample is no observation at a time; '' where it is."""
        return [_reason(newest, now_ns) for newest in self._newest]

    def peek(self, now_ns: int) -> np.ndarray | None:
        """Return the observation (O,) at a time, or None; it changes with the next message."""
        if not self._fresh_from_ns <= now_ns <= self._fresh_until_ns:
            return None
        if self._frames == 1:
            return self._frame
        if len(self._past) < self._frames - 1:
            return None
        return np.concatenate([*self._past, self._frame])[self._order]

    def hold_s(self, now_ns: int) -> float:
        """Return how long (s) the last command may be held where there is no observation.

        The shortest `hold_time` of the signals that are not usable; where all of them are, as
        when the history is too short, that of the spec.
        """
        return min((newest.signal.hold_time for newest in self._newest if _reason(newest, now_ns)),
                   default=self._spec.hold_time)

    def ages_s(self, tick_ns: int) -> list[float]:
        """Return the age of each signal's newest sample at a tick; NaN before the first one."""
        return [(tick_ns - n.stamp_ns) / messages.NS if n.came else math.nan for n in self._newest]

    @property
    def fresh_until_ns(self) -> int:
        """Return the last moment at which all present samples are fresh; -1: there is none."""
        return self._fresh_until_ns

    @property
    def unheard(self) -> list[str]:
        """Return of each signal that no message was for what the first one held instead."""
        return [n.error for n in self._newest if not n.came and n.error]

    @property
    def overtaken(self) -> dict[str, int]:
        """Return signal -> messages that were dropped because a newer one had come before."""
        return {newest.signal.name: newest.overtaken for newest in self._newest}


def follows(spec: Spec, before_ns: int, tick_ns: int) -> bool:
    """Return whether a tick is the next one after another: no tick is missing between them."""
    if spec.tick == 'arrival':
        return spec.period_of(tick_ns) == spec.period_of(before_ns) + 1
    # A timer's ticks lie anywhere in the periods, and jitter.
    return 0 < tick_ns - before_ns <= _FOLLOWING_PERIODS * messages.NS / spec.rate


def _reason(newest: _Newest, tick_ns: int) -> str:
    """Return why a signal's sample is no observation; empty where it is one."""
    signal = newest.signal
    name = f'{signal.name} (topic {signal.topic})'
    if not newest.came:
        return f'{name}: {newest.error or f"missing, no message of type {signal.type} came yet"}'
    if newest.stamp_ns < 0:
        return f'{name}: stamped with a negative time, {newest.stamp_ns / messages.NS:.3f} s'
    if newest.max_age_ns is not None:
        age_ns, waited_ns = tick_ns - newest.stamp_ns, tick_ns - newest.received_ns
        if age_ns > newest.max_age_ns:
            return (f'{name}: stale, {age_ns / messages.NS:.3f} s old, at most {signal.max_age} s '
                    f'allowed{_why_old(newest, waited_ns)}')
        if age_ns < -newest.max_age_ns:
            return (f'{name}: stamped {-age_ns / messages.NS:.3f} s in the future, at most '
                    f'{signal.max_age} s allowed; do both sides use the same clock?')
        if waited_ns > newest.max_age_ns:
            return (f'{name}: received {waited_ns / messages.NS:.3f} s ago, at most '
                    f'{signal.max_age} s allowed, with a stamp that was '
                    f'{(waited_ns - age_ns) / messages.NS:.3f} s in the future; do both sides use '
                    'the same clock?')
    if newest.values is None:
        return f'{name}: {newest.error}'
    if not newest.usable:
        return f'{name}: not finite, {newest.values.tolist()}'
    return ''


def _why_old(newest: _Newest, waited_ns: int) -> str:
    """Return what is known of a stamp that is too old."""
    if newest.stamped and newest.stamp_ns == 0:
        return ('; its stamp is 0: where the publisher does not stamp, state time: received for '
                'this signal')
    if newest.stamped and 0 <= waited_ns <= newest.max_age_ns:
        return (f'; it was received only {waited_ns / messages.NS:.3f} s ago: either it was long '
                'on its way, or its publisher has another clock')
    return ''
