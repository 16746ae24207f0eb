"""Computes recorded decisions again, through the same code as in the node, and compares."""

from collections import Counter
from dataclasses import dataclass, field, replace
import math

from idql_ros import message as messages
from idql_ros.decision_record import DecisionRecord
from idql_ros.policy import choose, Decision, draw_uniform, Policy
import numpy as np
from training.recorded_run import Opened, ReplayError

# Largest error on another machine than that of the run: of actions in network units (physical ones
# divided by the file's action_scale), of values as a share of the magnitude of Q and V, of the
# distance as a share of its own, or of 1 where they are smaller.
TOLERANCE = 2e-4
# How far the number that draws a candidate may lie behind the border of its neighbour.
_DRAW_TOLERANCE = 1e-3
VALUES = ('q', 'v', 'q_mean', 'q_spread', 'distance')


@dataclass(frozen=True)
class Difference:
    """Where a decision computed again is not the recorded one."""

    # Of the decisions in the bag, from 0 on.
    number: int
    tick_ns: int
    # The number that differs most: 'action[1]', 'q'.
    what: str
    recorded: float
    recomputed: float
    # In units of the tolerance's kind.
    error: float

    def __str__(self) -> str:
        """Return it in words."""
        return (f'decision {self.number}, tick {self.tick_ns} ns: {self.what} recorded '
                f'{self.recorded:.9g}, recomputed {self.recomputed:.9g} (error {self.error:.1e})')


@dataclass
class Kind:
    """How one kind of number compares over all decisions."""

    equal: int = 0
    worst: float = 0.0
    beyond: int = 0


@dataclass
class Decisions:
    """How the decisions of a run compare with what is computed again."""

    count: int = 0
    # Bit for bit; and those where another candidate is as good and was chosen.
    equal: int = 0
    ties: int = 0
    kinds: dict[str, Kind] = field(
        default_factory=lambda: {name: Kind() for name in ('action', *VALUES)})
    first_unequal: Difference | None = None
    first_beyond: Difference | None = None
    candidates: Counter[int] = field(default_factory=Counter)
    extractions: Counter[str] = field(default_factory=Counter)
    seeds: Counter[int] = field(default_factory=Counter)
    # A row each: tick in s, q, v, q_mean, q_spread, distance, N, whether the guard let it pass.
    rows: list[tuple[float, ...]] = field(default_factory=list)

    def add(self, record: DecisionRecord, opened: Opened) -> None:
        """Compute a decision again and compare it.

        Raises:
            ReplayError: It does not fit the policy.
        """
        decision = recompute(record, opened.policy)
        equal, error = _compare(record, decision, opened.action_scale)
        if error.max() > TOLERANCE:
            other = _as_good(record, decision, opened)
            if other is not None:
                _, error_there = _compare(record, other, opened.action_scale)
                if error_there.max() <= TOLERANCE:
                    self.ties += 1
                    equal, error, decision = np.zeros_like(equal), error_there, other
        names = [*(f'action[{i}]' for i in range(len(record.action))), *VALUES]
        size = len(record.action)
        for kind, part in (('action', slice(size)), *(
                (name, slice(size + i, size + i + 1)) for i, name in enumerate(VALUES))):
            tally = self.kinds[kind]
            tally.equal += bool(equal[part].all())
            tally.beyond += bool(error[part].max() > TOLERANCE)
            tally.worst = max(tally.worst, float(error[part].max()))
        if equal.all():
            self.equal += 1
        elif self.first_unequal is None or self.first_beyond is None:
            worst = int(error.argmax())
            difference = Difference(
                self.count, record.tick_ns, names[worst], float(_numbers(record)[worst]),
                float(_numbers(decision)[worst]), float(error[worst]))
            self.first_unequal = self.first_unequal or difference
            if error[worst] > TOLERANCE and self.first_beyond is None:
                self.first_beyond = difference
        self.count += 1
        self.candidates[record.candidates] += 1
        self.extractions[record.extraction] += 1
        self.seeds[record.seed] += 1
        self.rows.append((
            record.tick_ns / messages.NS, *(getattr(record, name) for name in VALUES),
            record.candidates, bool(np.isfinite(record.sent).all())))


def recompute(record: DecisionRecord, policy: Policy) -> Decision:
    """Return what a policy decides from a recorded decision's observation, tick, seed and N.

    Raises:
        ReplayError: They do not fit the policy.
    """
    for name, expected in (('observation', policy.spec.observation_size),
                           ('action', policy.spec.action_size),
                           ('sent', policy.spec.action_size)):
        if len(getattr(record, name)) != expected:
            raise ReplayError(
                f'tick {record.tick_ns} ns: {name}: expected {expected} numbers as {policy.path} '
                f'has it, found {len(getattr(record, name))}')
    return policy.decide(
        record.observation, record.tick_ns, record.seed, record.candidates,
        extraction=record.extraction, temperature=record.softmax_temperature,
        sampling_temperature=record.sampling_temperature)


def _numbers(decision: DecisionRecord | Decision) -> np.ndarray:
    """Return what is compared (A + 5,): the action and the values."""
    return np.concatenate([decision.action.astype(np.float64), np.array(
        [getattr(decision, name) for name in VALUES], np.float64)])


def _compare(
        record: DecisionRecord, decision: Decision, scale: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return of each number (A + 5,) whether it is equal bit for bit, and its error."""
    expected, found = _numbers(record), _numbers(decision)
    # Where the file has no statistics both say NaN.
    equal = (expected.view(np.int64) == found.view(np.int64)) | (
        np.isnan(expected) & np.isnan(found))
    # Mean and spread are of numbers as large as Q.
    of_q = np.nanmax([1.0, abs(record.q), abs(record.v)])
    units = np.array([*scale, of_q, of_q, of_q, of_q, np.fmax(1.0, abs(record.distance))])
    with np.errstate(invalid='ignore'):
        error = np.where(equal, 0.0, np.abs(found - expected) / units)
    return equal, np.nan_to_num(error, nan=np.inf, posinf=np.inf)


def _as_good(record: DecisionRecord, decision: Decision, opened: Opened) -> Decision | None:
    """Return the decision for the recorded candidate, where rounding alone may have chosen it."""
    policy = opened.policy
    distance = np.abs(decision.candidates - record.action) / opened.action_scale
    nearest = int(np.nan_to_num(distance.max(1), nan=np.inf).argmin())
    q = decision.candidate_q
    if record.extraction == 'greedy':
        good = q[nearest] >= q.max() - 2 * TOLERANCE * max(1.0, abs(float(q.max())))
    else:
        uniform = draw_uniform(record.seed, record.tick_ns)
        good = nearest in (choose(
            q, decision.v, record.extraction,
            uniform=min(max(uniform + shift, 0.0), math.nextafter(1.0, 0.0)),
            critic_loss=policy.critic_loss, critic_parameter=policy.critic_parameter,
            temperature=record.softmax_temperature)
            for shift in (-_DRAW_TOLERANCE, _DRAW_TOLERANCE))
    return replace(decision, action=decision.candidates[nearest],
                   q=float(q[nearest])) if good else None
