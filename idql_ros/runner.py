"""The walk of a tick: observe -> decide -> guard -> send, and what follows when a step fails.

Pure: the clocks, the thread of the inference and the transport are given, so that a test can play
every race step by step. All methods but `stalled` are called by one thread, the executor's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import concurrent.futures
import dataclasses
import math
import re
import threading
import time
from typing import Any, Protocol

from idql_ros.budget import Budget, rungs
from idql_ros.guard import Guard, Output
from idql_ros.latency import STAGES, Window
from idql_ros.message import MessageError, NS
from idql_ros.observer import Observer
from idql_ros.policy import Decision, Extraction, Policy, PolicyError
from idql_ros.value_guard import ValueGuard
import numpy as np

# In simulated time a reason to stop counts when it has held for so long in real time; and after a
# pause of the process a result waits for so long.
_DRAIN_NS = 40_000_000
# The process did not run, or the executor was busy, where nothing happened for so long.
_PAUSE_NS = 100_000_000
# After a pause of the process messages that waited meanwhile come within this time.
_QUEUE_NS = 10**9
_WATCH_PERIOD_S = 0.05
_LOG_PERIOD_S = 5.0

# Value -> its lowest and highest that are usual.
Ranges = dict[str, tuple[float, float]]


class Clocks(Protocol):
    """The time that ticks count by, and the one that nobody sets."""

    @property
    def simulated(self) -> bool:
        """Return whether the first one is simulated."""

    def now_ns(self) -> int:
        """Return the node's time."""

    def steady_ns(self) -> int:
        """Return real time since any moment."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a runner decides and when it stops; the parameters of the node of the same names."""

    seed: int = 0
    candidates: int = 1
    deadline_s: float = 0.0
    extraction: Extraction = 'greedy'
    softmax_temperature: float = 1.0
    sampling_temperature: float = 1.0
    latch_stop: bool = False
    value_guard: str = 'report'
    value_guard_ticks: int = 3
    # Value -> (lowest, highest), instead of those in the policy file.
    value_ranges: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    deadman_timeout_s: float = 0.0
    clock_timeout_s: float = 2.0


class TooLate(Exception):
    """The process stood still while an action was on its way out.

    Attributes:
        sent: how many of its numbers left all the same.
    """

    def __init__(self, sent: int) -> None:
        """Say so."""
        super().__init__('the process stood still until the observation was too old')
        self.sent = sent


@dataclasses.dataclass(frozen=True)
class Made:
    """A decision, and what it was made from."""

    tick_ns: int
    # It may not be sent later.
    fresh_until_ns: int
    observation: np.ndarray  # (O,)
    candidates: int
    policy: Policy
    decision: Decision


@dataclasses.dataclass
class Received:
    """What came of a signal since the start."""

    messages: int = 0
    # Without numbers, or with such that are not finite.
    unusable: int = 0


@dataclasses.dataclass
class _Job:
    """An inference under way."""

    tick_ns: int
    # When the tick began, by what durations count by, and by the steady clock.
    taken_ns: int
    taken_steady_ns: int
    # Its observation is too old from then on.
    fresh_until_ns: int
    observation: np.ndarray
    candidates: int
    ranges: Ranges
    policy: Policy
    future: concurrent.futures.Future[tuple[Decision, float]]
    # It became too old, and the ladder began.
    expired: bool = False


def without_numbers(reasons: Sequence[str]) -> tuple[str, ...]:
    """Return reasons without what changes from one tick to the next."""
    return tuple(re.sub(r'[-+]?\d+(\.\d+(e[-+]?\d+)?|e[-+]?\d+)|\bnan\b|\binf\b', '', reason)
                 for reason in reasons)


class Runner:
    """One activation of a policy: takes messages, ticks and an operator's words; sends.

    Attributes:
        policy: what decides.
        settings: how.
        observer: what was observed.
        budget: N.
        output: what was last sent, None before that.
        counts: of ticks and their ends.
        received: signal -> what came of it.
        latencies: stage -> its last durations in s.
        intervals: between the last actions, s.
        shortest_age_ns: the smallest max_age of the signals.
        longest_stall_s: by which `watch` was called too late; may be set to 0.
    """

    def __init__(
            self, policy: Policy, settings: Settings, clocks: Clocks, *,
            submit: Callable[..., concurrent.futures.Future],
            send: Callable[[Output, int, Made | None], bool],
            unheard: Callable[[], list[str]], log: Callable[..., None],
            estops: dict[str, bool]) -> None:
        """Take a policy; nothing is sent before `start`.

        Args:
            policy: the opened file.
            settings: how to decide.
            clocks: of the node.
            submit: runs a call in the thread of the inference and returns its future; when that
                is done, `finish` must be called.
            send: sends an output with a stamp in ns, and shows what it was made from; returns
                whether it left as a command. Raises MessageError where no message can be made
                of it, TooLate where what it was made from is too old by then.
            unheard: the topics of commands that nobody listens to.
            log: (level, text, at most once in so many seconds).
            estops: source -> whether its emergency stop is engaged (else: released, but not
                resumed); kept up to date for the runner that follows.
        """
        self.policy = policy
        self.budget = Budget(settings.candidates, settings.deadline_s)
        self.settings = settings
        self._clocks = clocks
        self._submit, self._send_output = submit, send
        self._unheard, self._log = unheard, log
        # N -> the ranges of a decision's values.
        self._ranges = self._ranges_of(policy, settings.candidates)
        self._value_guard = ValueGuard(settings.value_guard, settings.value_guard_ticks)
        self._guard = Guard(policy.spec, latch_stop=settings.latch_stop,
                            value_guard=self._value_guard)
        # The spec stays, whichever policy is swapped in.
        self._period_ns = int(NS / policy.spec.rate)
        self.shortest_age_ns = int(min(s.max_age for s in policy.spec.observations) * NS)
        # For the guard and what leaves it, which the watchdog's thread may also do.
        self._lock = threading.Lock()
        self._estops = estops
        for source, engaged in estops.items():
            self._guard.set_estop(source, True)
            self._guard.set_estop(source, engaged)
        self._started = False
        self._begin_anew()

    def _ranges_of(self, policy: Policy, candidates: int) -> dict[int, Ranges]:
        """Return N -> the ranges of a decision's values, for every N that may come up.

        Raises:
            PolicyError: a range that the settings and the policy file make together is empty.
        """
        return {n: self._ranges_with(policy, n) for n in rungs(
            candidates, self.settings.deadline_s)}

    def _ranges_with(self, policy: Policy, candidates: int) -> Ranges:
        ranges = policy.value_ranges_for(
            candidates, self.settings.extraction, self.settings.sampling_temperature)
        for name, given in self.settings.value_ranges.items():
            if all(map(math.isnan, given)):
                continue
            lowest, highest = (
                known if math.isnan(other) else other for known, other in zip(
                    ranges.get(name, (-math.inf, math.inf)), given, strict=True))
            if lowest > highest:
                raise PolicyError(
                    f'value_range_{name}: expected a lowest value below the highest, found '
                    f'{lowest:.6g} to {highest:.6g}, one of which {policy.path} says')
            ranges[name] = lowest, highest
        return ranges

    def _begin_anew(self) -> None:
        spec = self.policy.spec
        self.observer = Observer(spec, clock_lags=self._clocks.simulated)
        self._guard.reset()
        self.output: Output | None = None
        self.counts = dict.fromkeys(
            ('ticks', 'decided', 'sent', 'refused', 'missed', 'dropped', 'failed', 'stops',
             'pauses'), 0)
        self.received = {signal.name: Received() for signal in spec.observations}
        self._signals_of = {
            s.topic: [x.name for x in spec.observations if x.topic == s.topic]
            for s in spec.observations}
        self._ageing = {
            signal.topic for signal in spec.observations if not signal.latched}
        self.latencies = {stage: Window() for stage in STAGES}
        self.intervals = Window(100)
        self.longest_stall_s = 0.0
        self._job: _Job | None = None
        self._taken_ns: int | None = None
        self._acted_ns: int | None = None
        # Of the last decision that was in time; and whether one since then was not.
        self._decided_ns: int | None = None
        self._acted_once = False
        self._late = False
        now_ns, steady_ns = self._clocks.now_ns(), self._clocks.steady_ns()
        self._emitted_ns = now_ns
        self._guarded_ns = now_ns  # the guard's time at the last output
        self._emitted_steady_ns = self._beat_ns = steady_ns
        # What was last logged of the ladder, and when.
        self._logged: tuple[str, tuple[str, ...]] = ('', ())
        self._logged_ns = steady_ns - NS
        self._clock_ns, self._clock_went_ns = now_ns, steady_ns
        self._watched_ns: int | None = None
        self._drained_ns = steady_ns
        # How long the last pause was, and when it ended; before the first one: never.
        self._paused_ns, self._paused_until_ns = 0, -_QUEUE_NS
        self._blind_since_ns: int | None = None
        self._grace_until_ns = self._time_ns() + self.shortest_age_ns
        self._sampled_since_jump = True
        self._deadman_ns: int | None = None
        # How much of the hold time was over before the ladder began: nobody was there to hold.
        self._hold_lost_s = 0.0

    @property
    def watch_period_s(self) -> float:
        """Return how often `watch` is to be called: several times an age."""
        return min(_WATCH_PERIOD_S, max(0.005, 0.25e-9 * self.shortest_age_ns))

    @property
    def waiting(self) -> bool:
        """Return whether no tick came yet."""
        return self._taken_ns is None

    @property
    def busy(self) -> bool:
        """Return whether an inference is under way."""
        return self._job is not None

    def start(self) -> None:
        """Begin: nothing was observed, nothing was sent. What latched stays latched."""
        self._begin_anew()
        self._started = True

    def _time_ns(self) -> int:
        """Return what durations count by: nobody sets it back, but a simulation that begins anew.

        Stamps, and the ages that follow from them, count by the node's clock.
        """
        return self._clocks.now_ns() if self._clocks.simulated else self._clocks.steady_ns()

    # What comes in.

    def receive(self, topic: str, message: Any, delay_ns: int = 0) -> None:
        """Take a message of an observed topic, and the tick that it completes.

        Args:
            topic: as the spec names it.
            message: of the topic's type.
            delay_ns: how much longer than others it was under way, see `delay.Delay`.
        """
        self._beat()
        if (topic in self._ageing and not self._clocks.simulated
                and self._waited_ns(delay_ns) > self.shortest_age_ns):
            return
        read = self.observer.add(topic, message, self._clocks.now_ns())
        for name, values in zip(self._signals_of[topic], read, strict=True):
            if values is None or values.size:
                count = self.received[name]
                count.messages += 1
                count.unusable += values is None or not np.isfinite(values).all()
        self._sampled_since_jump = True
        self._take_arrival()

    def _waited_ns(self, delay_ns: int) -> int:
        """Return for how long a message lay in a queue while this process stood still."""
        # At other times a delay is no more than a guess: publishers of one topic may have clocks
        # of their own.
        after_pause = self._beat_ns < self._paused_until_ns + _QUEUE_NS
        return min(delay_ns, self._paused_ns) if after_pause else 0

    def jumped(self, delta_ns: int) -> None:
        """Take a leap of the node's clock."""
        self._beat()
        if delta_ns < 0:  # what another run observed, and decided, is nothing to act on
            self.observer.reset()
            self._job = None
        # A leap makes samples look old that were new a moment ago. One grace for each leap that
        # follows on samples: a clock that only leaps earns no more.
        if self._sampled_since_jump:
            self._grace_until_ns = self._time_ns() + self.shortest_age_ns
            self._sampled_since_jump = False

    def tick(self) -> None:
        """Begin a tick, for specs that tick on a timer; else see that the stop keeps the rate."""
        self._beat()
        if self.policy.spec.tick == 'timer':
            self._begin(self._clocks.now_ns())
        else:
            self._check()

    def watch(self) -> None:
        """See what stands still or hangs; called by the steady clock, once a `watch_period_s`."""
        self._beat()
        if self._watched_ns is not None:
            late_s = (self._beat_ns - self._watched_ns) / NS - self.watch_period_s
            self.longest_stall_s = max(self.longest_stall_s, late_s)
        self._watched_ns = self._beat_ns
        now_ns = self._clocks.now_ns()
        if now_ns != self._clock_ns:
            self._clock_ns, self._clock_went_ns = now_ns, self._clocks.steady_ns()
        self.finish()
        self._take_arrival()
        self._check()

    def _beat(self) -> None:
        steady_ns = self._clocks.steady_ns()
        if steady_ns - self._beat_ns > _PAUSE_NS:
            self.counts['pauses'] += 1
            # Of pauses that follow each other closely messages may have waited through all.
            again = self._beat_ns < self._paused_until_ns + _QUEUE_NS
            self._paused_ns = (self._paused_ns if again else 0) + steady_ns - self._beat_ns
            self._paused_until_ns = steady_ns
            self._drained_ns = steady_ns + _DRAIN_NS
        self._beat_ns = steady_ns

    # What an operator says.

    def set_estop(self, source: str, engaged: bool) -> None:
        """Engage or release an emergency stop; released, it still takes `resume` to move."""
        # Told again and again, it is news once; and what was never engaged is not released.
        if engaged == self._estops.get(source, False):
            return
        self._estops[source] = engaged
        with self._lock:
            self._guard.set_estop(source, engaged)
        if engaged:
            self.interrupt(self.blocked)

    def set_deadman(self, held: bool, delay_ns: int = 0) -> None:
        """Take what the dead man's switch says, and how long the word was under way."""
        self._beat()
        was_held = self._deadman_ns is not None
        self._deadman_ns = (
            self._clocks.steady_ns() - self._waited_ns(delay_ns) if held else None)
        if was_held and not held:
            self.interrupt(self.blocked)

    def pause(self) -> None:
        """Ramp to the stop, and stay there until `resume`."""
        with self._lock:
            self._guard.pause()
        self.interrupt(self.blocked, urgent=False)

    def resume(self) -> str:
        """Release what is latched; return '' or why it stays."""
        with self._lock:
            refused = self._guard.resume()
        if not refused:
            self._estops.clear()
        return refused

    def reset(self) -> None:
        """Forget what was observed, and begin with the start-up blend.

        Standing, what was sent is forgotten too. In motion it is not: the next command follows on
        it within the limits.
        """
        self._job = None
        self.observer.reset()
        with self._lock:
            if self._guard.resting:
                self._guard.reset()
            else:
                self._guard.rearm()

    def forget_sent(self) -> None:
        """Forget what was sent: it was only previewed and is nothing to hold."""
        self._job = None
        with self._lock:
            self._guard.reset()

    def swap(self, policy: Policy, candidates: int) -> None:
        """Go on with another policy of an equal spec; a decision under way still counts."""
        self._ranges = self._ranges_of(policy, candidates)
        self.policy = policy
        self.budget = Budget(candidates, self.settings.deadline_s)

    def interrupt(self, reasons: Sequence[str], urgent: bool = True) -> None:
        """Go to the stop, at once where it is urgent; a decision under way is not sent."""
        if self._started:
            self._job = None
            self._refuse(self._clocks.now_ns(), reasons, 0.0, urgent)

    def halt(self, reasons: Sequence[str]) -> None:
        """Send the stop at once; the last word before `start` is called again."""
        self.interrupt(reasons)
        self._started = False

    @property
    def blocked(self) -> list[str]:
        """Return what an operator's word keeps from moving."""
        return [*self._guard.blocked, *self._deadman_reasons()]

    def _deadman_reasons(self) -> list[str]:
        timeout_s = self.settings.deadman_timeout_s
        if not timeout_s:
            return []
        if self._deadman_ns is None:
            return ["the dead man's switch is not held"]
        age_s = (self._clocks.steady_ns() - self._deadman_ns) / NS
        return [f"the dead man's switch was last heard {age_s:.2f} s ago, at most {timeout_s} s "
                'allowed'] if age_s > timeout_s else []

    @property
    def _urgent(self) -> bool:
        return any(self._estops.values()) or bool(self._deadman_reasons())

    # The tick.

    def _take_arrival(self) -> None:
        """Begin the tick that the last message completed (for specs that tick on arrival)."""
        if self.policy.spec.tick != 'arrival' or self._nobody_listens():
            return
        if self._clocks.simulated and self._clocks.now_ns() == 0:
            return  # ages cannot be told before /clock begins
        tick_ns = self.observer.take_tick(self._clocks.now_ns())
        if tick_ns is not None:
            self._begin(tick_ns)

    def _nobody_listens(self) -> bool:
        # A tick stays due until its command can reach somebody: a receiver that was just started
        # is matched a moment later, and its first command is not lost. Watched by a steady timer.
        # A robot that moves is not left alone because one of its receivers is gone.
        unheard = self._unheard()
        if not unheard or (
                self._acted_once and len(unheard) < len(self.policy.spec.actions)):
            return False
        self._log('warning', f'nobody listens on {", ".join(unheard)}: no tick is taken',
                  _LOG_PERIOD_S)
        return True

    def _begin(self, tick_ns: int) -> None:
        # Ages count on the node's clock. In simulation /clock may come after the stamps it belongs
        # to. A tick that is missed is one all the same for the histories.
        begun_ns = self._clocks.steady_ns()
        now_ns = self._clocks.now_ns()
        aged_ns = max(now_ns, tick_ns) if self._clocks.simulated else now_ns
        # A stamp in the future is not for a stop; in simulation /clock follows.
        stamp_ns = tick_ns if self._clocks.simulated else min(tick_ns, now_ns)
        observation, reasons = self.observer.observe_tick(tick_ns, aged_ns)
        self.counts['ticks'] += 1
        if observation is not None:
            with self._lock:
                self._guard.measure(observation)
        if self._job is not None:
            self.counts['missed'] += 1
            self._log('warning', 'missed a tick: the inference of an earlier one is still running',
                      _LOG_PERIOD_S)
            return
        self._taken_ns = self._time_ns()
        if self.blocked:
            self._refuse(stamp_ns, self.blocked, 0.0, self._urgent)
            return
        if observation is None:
            self._refuse(stamp_ns, reasons, self.observer.hold_s(aged_ns))
            return
        self.latencies['age'].add(max(
            age for age, signal in zip(
                self.observer.ages_s(aged_ns), self.policy.spec.observations, strict=True)
            if not signal.latched))
        candidates = self.budget.candidates
        self._job = _Job(
            tick_ns, self._taken_ns, begun_ns, self.observer.fresh_until_ns, observation,
            candidates, self._ranges[candidates], self.policy, self._submit(
                self._decide, self.policy, observation, tick_ns, candidates))
        self.latencies['assemble'].add((self._clocks.steady_ns() - begun_ns) / NS)

    def _decide(self, policy: Policy, observation: np.ndarray, tick_ns: int,
                candidates: int) -> tuple[Decision, float]:
        """Return the decision and the seconds it took; in the thread of the inference."""
        begun_s = time.perf_counter()
        decision = policy.decide(
            observation, tick_ns, self.settings.seed, candidates,
            extraction=self.settings.extraction,
            temperature=self.settings.softmax_temperature,
            sampling_temperature=self.settings.sampling_temperature)
        return decision, time.perf_counter() - begun_s

    def finish(self) -> None:
        """Send what was decided, where that is done and still in time."""
        self._beat()
        job = self._job
        if job is None or not job.future.done():
            return
        if self._clocks.simulated and self._clocks.steady_ns() < self._drained_ns:
            return  # /clock may still wait in its queue, and tell that all this is long ago
        self._job = None
        now_ns = self._clocks.now_ns()
        if self.blocked:
            self._refuse(now_ns, self.blocked, 0.0, self._urgent)
            return
        try:
            decision, seconds = job.future.result()
        except Exception as error:  # whatever a policy file makes of an observation
            self.counts['failed'] += 1
            self._refuse(now_ns, [f'the inference failed: {type(error).__name__}: {error}'],
                         self.policy.spec.hold_time)
            return
        self.latencies['infer'].add(seconds)
        changed = self.budget.add(job.candidates, seconds)
        if changed:
            self._log('warning', changed)
        took_ns = self._time_ns() - job.taken_ns
        if job.expired or now_ns > job.fresh_until_ns:
            self.counts['dropped'] += 1
            self._refuse(now_ns, [
                f'the decision came {took_ns / NS:.3f} s after its tick, when its observation '
                'was too old'], self.policy.spec.hold_time)
            return
        if took_ns > self._period_ns:
            self.counts['dropped'] += 1
            self._late = True
            self._log('warning', f'dropped a decision that took {took_ns / NS:.3f} s: its period '
                      f'of {self._period_ns / NS:.3f} s is over', _LOG_PERIOD_S)
            return
        self.counts['decided'] += 1
        self._decided_ns, self._late = job.taken_ns, False
        self._act(job, decision)

    def _act(self, job: _Job, decision: Decision) -> None:
        try:
            with self._lock:
                begun_ns = self._clocks.steady_ns()
                self._value_guard.ranges = job.ranges
                output = self._guard.act(job.tick_ns, decision.action, decision.values)
                guarded_ns = self._clocks.steady_ns()
                try:
                    left = self._emit(output, job.tick_ns, job.tick_ns, Made(
                        job.tick_ns, job.fresh_until_ns, job.observation, job.candidates,
                        job.policy, decision))
                except (MessageError, TooLate) as error:
                    # No message: two columns of a rotation that are parallel.
                    if output.state == 'acting':
                        self._guard.take_back(error.sent if isinstance(error, TooLate) else 0)
                    raise
        except (MessageError, TooLate) as error:
            self.counts['refused'] += 1
            self._refuse(self._clocks.now_ns(), [str(error)], self.policy.spec.hold_time)
            return
        self.latencies['guard'].add((guarded_ns - begun_ns) / NS)
        self.latencies['publish'].add((self._clocks.steady_ns() - guarded_ns) / NS)
        if output.state != 'acting':
            self.counts['refused'] += 1
            return
        self.counts['sent'] += left
        self._acted_once = True
        if self._acted_ns is not None:
            self.intervals.add((job.taken_ns - self._acted_ns) / NS)
        self._acted_ns = job.taken_ns

    def _check(self) -> None:
        """Begin the ladder at once where the policy may act no longer; go on at the tick rate."""
        now_ns, steady_ns = self._clocks.now_ns(), self._clocks.steady_ns()
        reasons, hold_s = self._why_not(now_ns)
        if not reasons:
            self._blind_since_ns = None
            return
        if self._clocks.simulated and not self._urgent:
            # Of what waits in the queues after a pause, /clock comes newest first and samples
            # oldest first: for a moment they look older than they are.
            if self._blind_since_ns is None:
                self._blind_since_ns = steady_ns
            if steady_ns - self._blind_since_ns < _DRAIN_NS:
                return
        # Whichever clock runs: the node's may stand still.
        elapsed_ns = max(abs(now_ns - self._emitted_ns), steady_ns - self._emitted_steady_ns)
        # A tick that arrived was answered with the stop; the next may still arrive.
        answered = (
            self.policy.spec.tick == 'arrival' and self._taken_ns is not None
            and 0 <= self._time_ns() - self._taken_ns < 1.5 * self._period_ns
            and steady_ns - self._clock_went_ns < self.settings.clock_timeout_s * NS)
        if not self._reasons or (not answered and elapsed_ns >= 0.9 * self._period_ns):
            self._refuse(now_ns, reasons, hold_s, self._urgent)

    @property
    def _reasons(self) -> tuple[str, ...]:
        return () if self.output is None else self.output.reasons

    def _why_not(self, now_ns: int) -> tuple[list[str], float]:
        """Return why the policy may not act at present, and how long the last command may hold."""
        if self.blocked:
            return self.blocked, 0.0
        hold_s = self.policy.spec.hold_time
        steady_ns = self._clocks.steady_ns()
        if self._job is not None:
            # In lock-step simulated time stands still as long as the inference hangs.
            limit_ns = (self.settings.clock_timeout_s * NS if self._clocks.simulated
                        else self.shortest_age_ns)
            if now_ns <= self._job.fresh_until_ns and (
                    steady_ns - self._job.taken_steady_ns <= limit_ns):
                return self._always_late(), hold_s
            self._job.expired = True
            return ['the inference takes so long that its observation is too old'], hold_s
        if self._clocks.simulated:
            if now_ns == 0 and not self._acted_once:
                return [], hold_s  # the simulation has not begun
            still_s = (steady_ns - self._clock_went_ns) / NS
            if still_s > self.settings.clock_timeout_s:
                return [f'simulated time stands still for {still_s:.1f} s of real time: does '
                        '/clock still come?'], hold_s
        if self._time_ns() < self._grace_until_ns <= self._time_ns() + self.shortest_age_ns:
            return [], hold_s
        observation, reasons = self.observer.observe(now_ns)
        if observation is None:
            return reasons, self.observer.hold_s(now_ns)
        return self._overdue(), hold_s

    def _overdue(self) -> list[str]:
        """Return why no tick came for so long, though every signal is fresh."""
        # Told after silence it would have been told as such.
        silent_ns = self._time_ns() - max(self._grace_until_ns, self._taken_ns or 0)
        if (self.policy.spec.tick == 'arrival' and not self._nobody_listens()
                and silent_ns > self._overdue_ns):
            return [f'no tick for {silent_ns / NS:.2f} s: expected every signal at '
                    f'least once a period of {self._period_ns / NS:.3f} s']
        return self._always_late()

    def _always_late(self) -> list[str]:
        """Return why nothing was decided for so long, though ticks come."""
        silent_ns = self._time_ns() - max(self._grace_until_ns, self._decided_ns or 0)
        if self._late and silent_ns > self._overdue_ns:
            return [f'no decision in time for {silent_ns / NS:.2f} s: the inference takes longer '
                    'than a period']
        return []

    @property
    def _overdue_ns(self) -> int:
        return 2 * self._period_ns + self.shortest_age_ns

    def stalled(self) -> None:
        """Go on with the ladder where the executor does not.

        Called by another thread, often, while this runner is started.
        """
        steady_ns = self._clocks.steady_ns()
        stalled_ns = steady_ns - self._beat_ns
        released = self._deadman_reasons()
        # A simulation may wait for its answer, and its time with it: nothing grows old meanwhile.
        patience_ns = (self.settings.clock_timeout_s * NS if self._clocks.simulated
                       else self.shortest_age_ns)
        limit_ns = _PAUSE_NS if released else max(patience_ns, _PAUSE_NS)
        if stalled_ns > limit_ns and (
                not self._reasons
                or steady_ns - self._emitted_steady_ns >= 0.9 * self._period_ns):
            self._refuse(
                self._clocks.now_ns(),
                [*released, f'the executor has not run for {stalled_ns / NS:.2f} s'],
                0.0 if released else self.policy.spec.hold_time, bool(released))

    # What goes out.

    def _refuse(self, stamp_ns: int, reasons: Sequence[str], hold_s: float,
                urgent: bool = False) -> None:
        """Send the next step of the ladder, and say why."""
        with self._lock:
            # For the stops that hold what is measured: where the robot is, not where it was when
            # the last tick began.
            newest = self.observer.peek(self._clocks.now_ns())
            if newest is not None:
                self._guard.measure(newest)
            if not self._reasons:
                # The last command is held from when it was sent, also where nobody could hold it:
                # while this process or its executor stood still.
                stood_ns = self._clocks.steady_ns() - self._beat_ns
                if self._beat_ns < self._paused_until_ns + _QUEUE_NS:
                    stood_ns += self._paused_ns
                expected_ns = self.shortest_age_ns + 2 * self._period_ns
                self._hold_lost_s = max(0, stood_ns - expected_ns) / NS
            hold_s = max(0.0, hold_s - self._hold_lost_s)
            guard_ns = self._guard_time_ns(stamp_ns)
            output = (self._guard.halt(guard_ns, reasons) if urgent
                      else self._guard.refuse(guard_ns, reasons, hold_s))
            self.counts['stops'] += 1
            self._acted_ns = None  # the rate of actions counts while it acts
            self._emit(output, stamp_ns, guard_ns)

    def _guard_time_ns(self, stamp_ns: int) -> int:
        """Return the time of a refusal for the guard: its stamp, or of a clock that goes on."""
        if not self._clocks.simulated or stamp_ns < self._emitted_ns - self._period_ns:
            return stamp_ns  # a robot's clock goes on; a simulation's was set back
        idle_ns = self._clocks.steady_ns() - self._emitted_steady_ns
        return max(stamp_ns, self._guarded_ns + min(idle_ns, self._period_ns))

    def _emit(self, output: Output, stamp_ns: int, guard_ns: int,
              made: Made | None = None) -> bool:
        before, self.output = self.output, output
        self._guarded_ns = guard_ns
        self._emitted_ns, self._emitted_steady_ns = (
            self._clocks.now_ns(), self._clocks.steady_ns())
        left = self._send_output(output, stamp_ns, made)
        self._tell(output, before)  # what is sent does not wait for what is said
        return left

    def _tell(self, output: Output, before: Output | None) -> None:
        """Log a change of the ladder: of the reason, not of a number in it; once a second."""
        steady_ns = self._clocks.steady_ns()
        if output.state == 'acting':
            if before is not None and before.reasons:
                self._logged = '', ()
                self._log('info', 'a valid observation again: acting', _LOG_PERIOD_S)
        else:
            told = output.state, without_numbers(output.reasons)
            if told != self._logged and steady_ns - self._logged_ns >= NS:
                self._logged, self._logged_ns = told, steady_ns
                self._log('warning', f'{output.state}: {"; ".join(output.reasons)}')
        for topic, part in zip(
                (c.topic for c in self.policy.spec.actions), output.parts, strict=True):
            if part is None:
                self._log('warning', f'no stop is sent on {topic}: it holds a position, and none '
                          'was measured or sent since the activation', _LOG_PERIOD_S)
