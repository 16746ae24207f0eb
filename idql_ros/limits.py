"""The limits of a spec on an action: position, jump, acceleration, rate. Pure, without a clock."""

from __future__ import annotations

import dataclasses
import math

from idql_ros.spec import Spec
import numpy as np


@dataclasses.dataclass(frozen=True)
class Limited:
    """A limit that bit."""

    # Index into the action.
    dimension: int
    # 'position', 'rate', 'acceleration' or 'blend'.
    limit: str
    # What the limit was asked for and what it let through, in the dimension's unit.
    asked: float
    sent: float


class Limits:
    """What a spec states about each number of an action; remembers nothing."""

    def __init__(self, spec: Spec) -> None:
        """Take the limits of a spec's dimensions."""
        self._dimensions = spec.dimensions
        lower = np.array([d.lower for d in spec.dimensions])
        upper = np.array([d.upper for d in spec.dimensions])
        self._lower, self._upper = lower.astype(np.float32), upper.astype(np.float32)
        # The float32 nearest to a limit may lie outside it.
        infinity = np.float32(np.inf)
        self._lower = np.where(
            self._lower < lower, np.nextafter(self._lower, infinity), self._lower)
        self._upper = np.where(
            self._upper > upper, np.nextafter(self._upper, -infinity), self._upper)
        # Dimensions whose changes are limited; the others may go anywhere at once.
        self.slow = [i for i, d in enumerate(spec.dimensions)
                     if d.max_rate is not None or d.max_acceleration is not None]
        self._jumping = [i for i, d in enumerate(spec.dimensions) if d.max_jump is not None]

    def clip(self, action: np.ndarray) -> np.ndarray:
        """Return the nearest float32 (A,) within the position limits; NaN stays."""
        with np.errstate(over='ignore'):
            return np.clip(action.astype(np.float32), self._lower, self._upper)

    def position(self, asked: np.ndarray) -> tuple[np.ndarray, list[Limited]]:
        """Return `clip` of a finite action (A,), and the limits that bit."""
        sent = self.clip(asked)
        # Rounding to float32, and a limit that it cannot hold exactly, is no limit that bites.
        with np.errstate(over='ignore'):
            bit = np.flatnonzero(
                np.abs(sent - asked.astype(np.float32)) > np.spacing(np.abs(sent)))
        return sent, [Limited(int(i), 'position', float(asked[i]), float(sent[i])) for i in bit]

    def jumps(self, asked: np.ndarray, reference: np.ndarray) -> list[str]:
        """Return a text for each dimension that asks for a jump.

        Args:
            asked: (A,) what would be sent.
            reference: (A,) what the command is now; NaN: not known.
        """
        texts = []
        for i in self._jumping:
            dimension = self._dimensions[i]
            jump = abs(float(asked[i]) - float(reference[i]))
            if jump > dimension.max_jump:
                texts.append(
                    f'dimension {i}: {float(asked[i]):.6g} {dimension.unit} would be a jump of '
                    f'{jump:.6g} from {float(reference[i]):.6g}, at most {dimension.max_jump} '
                    'allowed')
        return texts

    def step(self, i: int, target: float, at: float, speed: float, dt_s: float,
             ) -> tuple[float, float, list[Limited]]:
        """Move a dimension of `slow` towards a target that may stand still from now on.

        Its speed is kept so low that braking within max_acceleration ends at the target or before
        it, however short the steps that follow are; so it never passes a target that stands
        still, and no position limit beyond one.

        Args:
            i: the dimension.
            target: within the position limits.
            at: the command now.
            speed: how fast the command came there (unit/s).
            dt_s: how long the step lasts; in no time nothing moves.

        Returns:
            Command and speed after the step, and the limits that bit.
        """
        dimension, limited = self._dimensions[i], []
        # What is measured may lie outside.
        at = min(max(at, float(self._lower[i])), float(self._upper[i]))
        if dt_s <= 0.0:
            limit = 'acceleration' if dimension.max_rate is None else 'rate'
            return at, speed, [Limited(i, limit, target, at)] if at != target else []
        step, forward = abs(target - at), math.copysign(1.0, target - at)
        a, rate = dimension.max_acceleration, dimension.max_rate
        if a is not None:
            now = forward * speed
            # v with v dt + v^2 / 2a = step: a step at v, then braking.
            braking = 2.0 * step / (dt_s + math.sqrt(dt_s * dt_s + 2.0 * step / a))
            step = dt_s * min(max(braking, now - a * dt_s), now + a * dt_s)
            # What float32 does not tell from the target is there.
            if np.float32(at + forward * step) != np.float32(target):
                limited.append(Limited(i, 'acceleration', target, at + forward * step))
        if rate is not None and abs(step) > rate * dt_s:
            limited.append(Limited(
                i, 'rate', at + forward * step, at + forward * math.copysign(rate * dt_s, step)))
            step = math.copysign(rate * dt_s, step)
        return (at + forward * step if limited else target), forward * step / dt_s, limited
