"""What may be sent now: limits, what is not finite, the ladder to the stop, the latches.

    acting --refuse--> holding --hold time--> ramping --at the stop--> stopped
       ^                  |                      |                        |
       '-------act--------'----------------------'------------------------'

Pure: no ROS, no clock. Times are nanoseconds that the caller gives. The same calls give the same
bytes, in the node and in evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import math

from idql_ros.limits import Limited, Limits
from idql_ros.message import NS
from idql_ros.spec import Spec
from idql_ros.value_guard import ValueGuard
import numpy as np

STATES = ('acting', 'holding', 'ramping', 'stopped')


@dataclasses.dataclass(frozen=True)
class Output:
    """What is to be sent now, and why."""

    state: str  # of STATES
    # Numbers of each command, float32; None: no number is known that is safe, so none is sent.
    parts: list[np.ndarray | None]
    # Why the policy's action is not sent; () while acting.
    reasons: tuple[str, ...] = ()
    # The limits that bit on the policy's action.
    limited: tuple[Limited, ...] = ()
    # Why an action that was proposed is not sent: 'not finite', 'jump', 'value' or 'latched'.
    refused: str = ''
    # Which values of the decision are out of their range, also where that is only reported.
    warnings: tuple[str, ...] = ()


class Stop:
    """The spec's stop: the numbers that are sent when the policy may not act.

    'hold_measured' holds what the last valid observation measured, else what was last sent;
    'hold_last_sent' what was last sent. Both hold the values of the moment the stop began. With
    neither there is no number that is known not to move the robot until there is one.
    """

    def __init__(self, spec: Spec, limits: Limits) -> None:
        """Start with nothing sent."""
        self._spec, self._limits = spec, limits
        self.reset()

    def reset(self) -> None:
        """Forget what was sent and measured."""
        self.sent: np.ndarray | None = None
        # What measures each dimension (A,), NaN where nothing does.
        self.measured = np.full(self._spec.action_size, np.nan, np.float32)
        self._held: np.ndarray | None = None

    def measure(self, observation: np.ndarray) -> None:
        """Take a valid observation (O,)."""
        for i, dimension in enumerate(self._spec.dimensions):
            if dimension.measured is not None:
                self.measured[i] = observation[dimension.measured]

    def send(self, action: np.ndarray) -> None:
        """Take an action (A,) of the policy that is sent: no stop is going on."""
        self.sent, self._held = action, None

    def hold(self) -> np.ndarray:
        """Begin the stop, or go on with it; return its numbers (A,), NaN where none is known."""
        if self._held is None or np.isnan(self._held).any():
            action = np.full(self._spec.action_size, np.nan, np.float32)
            for i, dimension in enumerate(self._spec.dimensions):
                if dimension.stop == 'zero':
                    action[i] = 0.0
                elif dimension.stop == 'pose':
                    action[i] = dimension.pose
                elif dimension.stop == 'hold_measured' and not np.isnan(self.measured[i]):
                    action[i] = self.measured[i]
                elif self.sent is not None:
                    action[i] = self.sent[i]
            found = self._limits.clip(action)
            self._held = found if self._held is None else np.where(
                np.isnan(self._held), found, self._held)
        return self._held


@dataclasses.dataclass(frozen=True)
class _Moment:
    """What a guard knew before an action."""

    sent: np.ndarray | None
    at: np.ndarray
    speed: np.ndarray
    last_ns: int | None
    state: str
    acted: bool
    from_measured: bool


class Guard:
    """Turns what the policy asks for, or its silence, into what may be sent.

    Every value that it returns is finite and within the spec's limits, also after rounding to
    float32. Calls with a clock that stands still neither end a hold nor move a ramp: who has seen
    that a clock stands still gives the time of one that runs.
    """

    def __init__(self, spec: Spec, *, latch_stop: bool = False,
                 value_guard: ValueGuard | None = None) -> None:
        """Start with nothing sent.

        Args:
            spec: What states the limits and the stop.
            latch_stop: The end of the ladder lasts until `resume`.
            value_guard: Watches the values of decisions.
        """
        self._spec, self._latch_stop = spec, latch_stop
        self._value_guard = value_guard
        self._limits = Limits(spec)
        self._stop = Stop(spec, self._limits)
        self._period_ns = round(NS / spec.rate)
        # What a command is before the first one, where zero is no motion.
        self._zero = np.array([
            math.nan if d.kind == 'position' else 0.0 for d in spec.dimensions])
        self._estops: list[str] = []  # sources that are engaged
        self._estopped = self._paused = self._latched = False
        self.reset()

    def reset(self) -> None:
        """Forget what was sent and measured, and blend anew; the latches stay."""
        self._stop.reset()
        # Before anything was sent there is nothing to hold, and the stop is due.
        self._state = 'ramping'
        self._acted = False  # since the last stop
        # What the commands are now (A,), NaN where it is not known, and how fast they got there.
        self._at = np.full(self._spec.action_size, np.nan)
        self._speed = np.zeros(self._spec.action_size)
        self._last_ns: int | None = None  # the last call
        self._held_ns = 0  # how long the last command is held
        self._from: np.ndarray | None = None  # (A,) what was measured when the blend began
        self._blended_s = 0.0
        self._from_measured = False  # the next action is the first one after a resume
        self._before = self._moment()
        if self._value_guard is not None:
            self._value_guard.reset()

    def rearm(self) -> None:
        """Blend anew from what is measured; what was sent still counts."""
        self._from = None
        if self._value_guard is not None:
            self._value_guard.reset()

    @property
    def resting(self) -> bool:
        """Return whether the commands are at the stop, or none was sent."""
        return self._state == 'stopped' or self._stop.sent is None

    def measure(self, observation: np.ndarray) -> None:
        """Take a valid observation (O,): for the stops that hold, the blend, the first action."""
        self._stop.measure(observation)

    @property
    def blocked(self) -> tuple[str, ...]:
        """Return why nothing is sent until `resume`; () where nothing is latched."""
        reasons = []
        if self._estops:
            reasons.append(f'e-stop ({", ".join(self._estops)})')
        elif self._estopped:
            reasons.append('e-stop released, not resumed')
        if self._paused:
            reasons.append('paused')
        if self._latched:
            reasons.append('the stop is latched until it is resumed')
        return tuple(reasons)

    def set_estop(self, source: str, engaged: bool) -> None:
        """Latch the e-stop; released by every source, it still lasts until `resume`."""
        if engaged:
            self._estopped = True
            if source not in self._estops:
                self._estops.append(source)
        elif source in self._estops:
            self._estops.remove(source)

    def pause(self) -> None:
        """Stop, without a hold, until `resume`."""
        self._paused = True

    def resume(self) -> str:
        """Take the latches off, and blend anew where there were any; return '' or why not."""
        if self._estops:
            return f'the e-stop is still engaged ({", ".join(self._estops)}): release it first'
        if self.blocked:
            self._estopped = self._paused = self._latched = False
            self._from = None
            # While it stood still the robot may have been moved.
            self._from_measured = self._state == 'stopped'
        return ''

    def act(self, now_ns: int, action: np.ndarray, values: Mapping[str, float]) -> Output:
        """Return what may be sent for an action.

        Args:
            now_ns: time of the tick.
            action: (A,), what the policy asks for.
            values: of the decision, by VALUE_NAMES; 'q' is what the action was chosen by.

        Returns:
            The action within the limits; or, where it is refused, the next step of the ladder.
        """
        before = self._moment()
        self._pass(now_ns)
        if self.blocked:
            return self._keep_blocked((), 'latched')
        hold_s = self._spec.hold_time
        if not np.all(np.isfinite(action)) or not math.isfinite(values['q']):
            return self._descend([
                f'the policy gave what is not finite: action {action.tolist()}, Q '
                f'{values["q"]}'], hold_s, 'not finite')
        warnings: list[str] = []
        if self._value_guard is not None:
            warnings, due = self._value_guard.check(values)
            if due:
                hold_s = hold_s if self._value_guard.action == 'hold' else 0.0
                return self._descend(warnings, hold_s, 'value', warnings)
        asked, limited = self._blend(action)
        reference = self._reference()
        jumps = self._limits.jumps(asked, self._nearest(asked, reference))
        if jumps:
            return self._descend(jumps, hold_s, 'jump', warnings)
        sent, bit = self._limits.position(asked)
        limited += bit
        self._before = before
        self._at = sent.astype(np.float64)
        for i in self._limits.slow:
            if not math.isnan(reference[i]):
                self._at[i], self._speed[i], bit = self._limits.step(
                    i, float(sent[i]), reference[i], self._speed[i], self._dt_s)
                limited += bit
        sent = self._limits.clip(self._at)
        self._stop.send(sent)
        self._state, self._acted, self._from_measured = 'acting', True, False
        return Output('acting', self._spec.split_action(sent), limited=tuple(limited),
                      warnings=tuple(warnings))

    def take_back(self, kept: int) -> None:
        """Forget the last action but for its first `kept` numbers: no more of it was sent."""
        before = self._before
        self._at[kept:], self._speed[kept:] = before.at[kept:], before.speed[kept:]
        if kept and before.sent is not None:
            self._stop.sent = np.concatenate([self._stop.sent[:kept], before.sent[kept:]])
        elif kept:
            self._state = 'ramping'  # no whole command was sent that could be held
        else:
            self._stop.sent = before.sent
            # The time since the last command that was sent is still to be used.
            self._last_ns, self._state, self._acted, self._from_measured = (
                before.last_ns, before.state, before.acted, before.from_measured)

    def _moment(self) -> _Moment:
        return _Moment(self._stop.sent, self._at, self._speed.copy(), self._last_ns, self._state,
                       self._acted, self._from_measured)

    def refuse(self, now_ns: int, reasons: Sequence[str], hold_s: float) -> Output:
        """Return what is sent while the policy may not act; called at the tick rate.

        Args:
            now_ns: time of the call.
            reasons: why it may not act.
            hold_s: how long (s) the last command may be held, from the first refusal on.
        """
        self._pass(now_ns)
        if self.blocked:
            return self._keep_blocked(reasons, '')
        return self._descend(reasons, hold_s, '')

    def halt(self, now_ns: int, reasons: Sequence[str]) -> Output:
        """Return the stop at once, without hold or ramp; only a pose is gone to within limits.

        For the end of the activity and the e-stop; it is no stop that is latched.
        """
        self._pass(now_ns)
        return self._halt(reasons, '')

    def _pass(self, now_ns: int) -> None:
        """Take the time of a call: how long it may move, and how long it was since the last."""
        passed_ns = (self._period_ns if self._last_ns is None else now_ns - self._last_ns)
        if -self._period_ns <= passed_ns < 0:
            passed_ns = 0  # time that was counted already
        else:
            self._last_ns = now_ns
        # A clock that was set back: nobody knows how long it was.
        self._passed_ns = self._period_ns if passed_ns < 0 else passed_ns
        # A tick that was missed earns no larger step.
        self._dt_s = min(self._passed_ns, self._period_ns) / NS

    def _keep_blocked(self, reasons: Sequence[str], refused: str) -> Output:
        reasons = tuple(dict.fromkeys((*self.blocked, *reasons)))
        return (self._halt(reasons, refused) if self._estopped
                else self._descend(reasons, 0.0, refused))

    def _halt(self, reasons: Sequence[str], refused: str) -> Output:
        parts = self._ramp(at_once=True)
        self._acted = False
        return Output(self._state, parts, tuple(reasons), refused=refused)

    def _descend(self, reasons: Sequence[str], hold_s: float, refused: str,
                 warnings: Sequence[str] = ()) -> Output:
        """Take the next step of the ladder."""
        if self._state == 'acting':
            self._state, self._held_ns = 'holding', 0
            self._stop.hold()  # what is measured at this moment
        elif self._state == 'holding':
            self._held_ns += self._passed_ns
        if self._state == 'holding' and self._held_ns / NS < hold_s:
            self._speed[:] = 0.0
            parts = self._spec.split_action(self._stop.sent)
        else:
            parts = self._ramp(at_once=False)
            if self._state == 'stopped':
                self._latched |= self._latch_stop and self._acted
                self._acted = False
        return Output(self._state, parts, tuple(reasons), refused=refused,
                      warnings=tuple(warnings))

    def _ramp(self, at_once: bool) -> list[np.ndarray | None]:
        """Take the next step to the stop; `at_once`: only a pose takes more than one."""
        target = self._stop.hold()
        reference = self._reference()
        at, arrived = target.astype(np.float64), True
        for i in self._limits.slow:
            # A hold or a zero is no motion, nor is a number that is sent already.
            if self._state == 'stopped' or math.isnan(at[i]) or (
                    self._spec.dimensions[i].stop != 'pose'
                    and (at_once or self._stop.sent is None)):
                self._speed[i] = 0.0
            elif math.isnan(reference[i]):
                at[i], arrived = math.nan, False
            else:
                at[i], self._speed[i], _ = self._limits.step(
                    i, at[i], reference[i], self._speed[i], self._dt_s)
                arrived = arrived and np.float32(at[i]) == target[i]
        self._at = np.where(np.isnan(at), self._at, at)
        self._state = 'stopped' if arrived else 'ramping'
        if arrived:
            self._speed[:] = 0.0
            self._from = None
        return [None if np.isnan(part).any() else part
                for part in self._spec.split_action(self._limits.clip(at))]

    def _reference(self) -> np.ndarray:
        """Return what the commands are now (A,) float64; NaN where nobody knows."""
        measured = self._stop.measured.astype(np.float64)
        first, second = (measured, self._at) if self._from_measured else (self._at, measured)
        return np.where(~np.isnan(first), first, np.where(~np.isnan(second), second, self._zero))

    def _nearest(self, asked: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """Return what jumps count from (A,): while a blend goes on, also what is measured.

        The blend begins there, and the robot may have moved since the last command.
        """
        if self._blended_s >= self._spec.blend_time:
            return reference
        measured = self._stop.measured.astype(np.float64)
        return np.where(np.abs(asked - measured) < np.abs(asked - reference), measured, reference)

    def _blend(self, action: np.ndarray) -> tuple[np.ndarray, list[Limited]]:
        """Return the action (A,) on its way from what was measured when the blend began."""
        blend_s = self._spec.blend_time
        if self._from is None:
            self._from, self._blended_s = self._stop.measured.astype(np.float64), 0.0
        else:
            self._blended_s = min(self._blended_s + self._dt_s, blend_s)
        if self._blended_s >= blend_s:
            return action, []
        asked = action.astype(np.float64)
        blended = np.where(np.isnan(self._from), asked,
                           self._from + self._blended_s / blend_s * (asked - self._from))
        return blended, [Limited(int(i), 'blend', float(asked[i]), float(blended[i]))
                         for i in np.flatnonzero(blended != asked)]
