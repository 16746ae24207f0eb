"""Asynchronous messages -> the observation at a tick, or the reasons why there is none.

The node and the bag conversion feed the same class, so that both see the same observations. A
missing number is a reason, never a zero.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from idql_ros import message as messages
from idql_ros.spec import Signal, Spec
import numpy as np

# A message that is later than this was not overtaken on the way: its clock was set back. Without
# it one wrong stamp of a signal that may be old would hide all that follow.
_LONGEST_OVERTAKING_S = 1.0


@dataclasses.dataclass
class _Sample:
    values: np.ndarray | None
    # Why there are no values.
    error: str
    # Header stamp, else the time of receipt.
    stamp_ns: int
    has_header: bool
    # No tick was taken since it came.
    new: bool = True


class Observer:
    """Keeps the newest sample of each signal of a spec.

    Times are nanoseconds of the clock that stamps the messages (the node's clock, or the bag's log
    time for what has no header).
    """

    def __init__(self, spec: Spec) -> None:
        """Start without any sample."""
        self._spec = spec
        self._samples: dict[str, _Sample | None] = {s.name: None for s in spec.observations}
        self._signals: dict[str, list[Signal]] = {}
        for signal in spec.observations:
            self._signals.setdefault(signal.topic, []).append(signal)
        self._period: int | None = None

    def add(self, topic: str, message: Any, received_ns: int) -> None:
        """Take a message that was received (or logged) at `received_ns`.

        The newest sample is the last one received. A stamp that lies before the kept one by less
        than the maximum age, and than a second, is a message overtaken on its way, and is dropped;
        one that lies further back means that the clock was set back, and is kept. What has no
        header is never overtaken.
        """
        stamp_ns = messages.stamp_ns(message, received_ns)
        has_header = getattr(message, 'header', None) is not None
        for signal in self._signals.get(topic, ()):
            kept = self._samples[signal.name]
            if kept is not None and has_header and (
                    0 < kept.stamp_ns - stamp_ns
                    <= min(signal.max_age, _LONGEST_OVERTAKING_S) * messages.NS):
                continue
            try:
                values, error = messages.read(signal, message), ''
            except messages.MessageError as reason:
                values, error = None, str(reason)
            self._samples[signal.name] = _Sample(values, error, stamp_ns, has_header)

    def take_tick(self, now_ns: int) -> int | None:
        """Return the time of the tick that the last message completed, or None.

        A tick is complete when every signal has a sample in one period of the spec's rate in which
        none was taken yet. Its time is the newest header stamp among them (`now_ns` where no
        message has a header); what has no header belongs to the tick when it came after the last
        one.
        """
        samples = list(self._samples.values())
        if any(sample is None for sample in samples):
            return None
        tick_ns = max((s.stamp_ns for s in samples if s.has_header), default=now_ns)
        period = self._spec.period_of(tick_ns)
        if period == self._period or not all(
                self._spec.period_of(s.stamp_ns) == period if s.has_header else s.new
                for s in samples):
            return None
        self._period = period
        for sample in samples:
            sample.new = False
            if not sample.has_header:
                # It came with this tick. Its own time is that of the node's clock, which in
                # simulation may still lag behind the stamps.
                sample.stamp_ns = tick_ns
        return tick_ns

    def observe(self, tick_ns: int) -> tuple[np.ndarray | None, list[str]]:
        """Return the observation (O,) float32 at a tick, or None and the reasons, one a signal."""
        values, reasons = [], []
        for signal in self._spec.observations:
            reason = self._reason(signal, tick_ns)
            if reason is None:
                values.append(self._samples[signal.name].values)
            else:
                reasons.append(reason)
        return (None, reasons) if reasons else (np.concatenate(values), [])

    def _reason(self, signal: Signal, tick_ns: int) -> str | None:
        sample = self._samples[signal.name]
        name = f'{signal.name} (topic {signal.topic})'
        if sample is None:
            return f'{name}: missing, no message of type {signal.type} came yet'
        if sample.stamp_ns < 0:
            return f'{name}: stamped with a negative time, {sample.stamp_ns / messages.NS:.3f} s'
        age = (tick_ns - sample.stamp_ns) / messages.NS
        if age > signal.max_age:
            return f'{name}: stale, {age:.3f} s old, at most {signal.max_age} s allowed'
        if age < -signal.max_age:
            return (f'{name}: stamped {-age:.3f} s in the future, at most {signal.max_age} s '
                    'allowed; do both sides use the same clock?')
        if sample.values is None:
            return f'{name}: {sample.error}'
        if not np.all(np.isfinite(sample.values)):
            return f'{name}: not finite, {sample.values.tolist()}'
        return None
