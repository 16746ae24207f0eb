"""What may be sent now: limits, what is not finite, and the stop. Pure: no ROS, no clock."""

from __future__ import annotations

import dataclasses

from idql_ros.spec import Spec
import numpy as np


@dataclasses.dataclass(frozen=True)
class Limited:
    """A limit that bit."""

    # Index into the action.
    dimension: int
    # What the policy asked for and what is sent instead, in the dimension's unit.
    asked: float
    sent: float


class Guard:
    """Turns what the policy asks for, or its silence, into what may be sent.

    Every value that it returns is finite and within the spec's limits, also after rounding to
    float32. It remembers what was sent since `reset` for the stops that hold.
    """

    def __init__(self, spec: Spec) -> None:
        """Start with nothing sent."""
        self._spec = spec
        lower = np.array([d.lower for d in spec.dimensions])
        upper = np.array([d.upper for d in spec.dimensions])
        self._lower, self._upper = lower.astype(np.float32), upper.astype(np.float32)
        # The float32 nearest to a limit may lie outside it.
        infinity = np.float32(np.inf)
        self._lower = np.where(
            self._lower < lower, np.nextafter(self._lower, infinity), self._lower)
        self._upper = np.where(
            self._upper > upper, np.nextafter(self._upper, -infinity), self._upper)
        self.reset()

    def reset(self) -> None:
        """Forget what was sent and measured."""
        self._sent: np.ndarray | None = None
        self._measured: np.ndarray | None = None
        self._held: list[np.ndarray | None] | None = None

    def measure(self, observation: np.ndarray) -> None:
        """Take a valid observation (O,), for the stops that hold what is measured."""
        self._measured = observation

    def act(self, action: np.ndarray, q: float) -> tuple[np.ndarray | None, list[Limited]]:
        """Return what may be sent for an action.

        Args:
            action: (A,), what the policy asks for.
            q: Q of the action, by which it was chosen.

        Returns:
            The action within the limits, float32 (A,), and the limits that bit; or None where
            action or Q are not finite, and then the stop is due.
        """
        if not np.all(np.isfinite(action)) or not np.isfinite(q):
            return None, []
        with np.errstate(over='ignore'):
            asked = action.astype(np.float32)
        sent = np.clip(asked, self._lower, self._upper)
        limited = [Limited(int(i), float(action[i]), float(sent[i]))
                   for i in np.flatnonzero(sent != asked)]
        self._sent, self._held = sent, None
        return sent, limited

    def stop(self) -> list[np.ndarray | None]:
        """Return the spec's stop: for each command its numbers, or None where none is known.

        'hold_measured' holds what the last valid observation measured, else what was last sent;
        'hold_last_sent' what was last sent. Both hold the values of the moment the stop began.
        With neither there is no number that is known not to move the robot, and the command is
        not sent until there is one.
        """
        if self._held is None or any(part is None for part in self._held):
            action = np.full(self._spec.action_size, np.nan, np.float32)
            for i, dimension in enumerate(self._spec.dimensions):
                if dimension.stop == 'zero':
                    action[i] = 0.0
                elif dimension.stop == 'pose':
                    action[i] = dimension.pose
                elif dimension.stop == 'hold_measured' and self._measured is not None:
                    action[i] = self._measured[dimension.measured]
                elif self._sent is not None:
                    action[i] = self._sent[i]
            action = np.clip(action, self._lower, self._upper)
            parts = [part if np.all(np.isfinite(part)) else None
                     for part in self._spec.split_action(action)]
            self._held = parts if self._held is None else [
                part if held is None else held
                for held, part in zip(self._held, parts, strict=True)]
        return self._held
