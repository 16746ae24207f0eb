"""Recompute every decision of a recorded run: `python -m training.replay BAG [--policy FILE]...`.

The node tells each decision on ~/decision with all that it was made from; `record.launch.py`
records it. Here the policy file decides again from the same numbers, through the same code as in
the node. Further it is looked up whether the commands in the bag are those that the guard let
through, and how many observations can be made again from the messages of the sensors: the log
tells when the recorder took a message, not when the node did, so not all of them are.

Exit status: 0 all equal within the tolerances, 1 not, 2 the bag or a policy file cannot be used.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
import copy
from dataclasses import dataclass, field, replace
import hashlib
import json
import math
from pathlib import Path
import re
import sys
from typing import Any

from idql_ros import decision_record, recorded, vetting
from idql_ros import message as messages
from idql_ros.decision_record import DecisionRecord
from idql_ros.observer import Observer
from idql_ros.policy import (
    choose,
    Decision,
    draw_uniform,
    MAX_CANDIDATES,
    METADATA_KEY,
    Policy,
    PolicyError,
    read_file,
)
from idql_ros.spec import Command, Spec
import matplotlib
from matplotlib.figure import Figure
import numpy as np
import onnx
from tqdm import tqdm
from training import alignment
from training.bag_error import BagError
from training.storage import Bag
from training.wording import counted, listed, seconds

# Pictures go to files; no screen is needed.
matplotlib.use('Agg')

# Largest error on another machine than that of the run: of actions in network units (physical ones
# divided by the file's action_scale), of values as a share of the magnitude of Q and V, of the
# distance as a share of its own, or of 1 where they are smaller.
TOLERANCE = 2e-4
# How far the number that draws a candidate may lie behind the border of its neighbour.
_DRAW_TOLERANCE = 1e-3
# Numbers of a message may be less precise than what was written.
_MESSAGE_TOLERANCE = 1e-5
VALUES = ('q', 'v', 'q_mean', 'q_spread', 'distance')
_DECISION_TYPE = 'std_msgs/msg/Float64MultiArray'
_DIAGNOSTICS_TYPE = 'diagnostic_msgs/msg/DiagnosticArray'
_LEAST_SLACK_NS = messages.NS // 10


class ReplayError(BagError):
    """A bag or policy file that cannot be used for a replay; one line that is safe to print."""


@dataclass(frozen=True)
class Opened:
    """A policy file, opened as the node opens it."""

    policy: Policy
    # (A,) physical units in one network unit.
    action_scale: np.ndarray


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
class Commands:
    """How the commands on a topic compare with what the guard let through."""

    topic: str
    # Whether the topic is in the bag.
    there: bool = True
    found: int = 0
    # Sent before the first or after the last command in the bag.
    outside: int = 0
    # Ticks whose command is not in the bag as sent, or is though the node was in a dry run.
    differing: list[int] = field(default_factory=list)


@dataclass
class Replay:
    """What a replay found."""

    node: str
    spec: Spec
    policies: list[Policy]
    decisions: int = 0
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
    commands: list[Commands] = field(default_factory=list)
    # Observations made again from the sensors' messages; None: they were not.
    observed: int | None = None
    why_not_observed: str = ''

    @property
    def passed(self) -> bool:
        """Return whether everything is equal within the tolerances."""
        return self.first_beyond is None and not any(c.differing for c in self.commands)


# ---- what the bag holds -------------------------------------------------------------------------


def decision_topic(bag: Bag, node: str | None) -> str:
    """Return the topic, without its slash, with the decisions of a node.

    Args:
        bag: The open bag.
        node: Its name with its namespace; None: the only one there is.

    Raises:
        ReplayError: There is none, or there are several to choose from.
    """
    found = [key for key, topic in bag.topics.items()
             if topic.type == _DECISION_TYPE and topic.count
             and re.fullmatch(r'(\w+/)+decision', key, re.ASCII)]
    if node is not None:
        wanted = alignment.key(recorded.full_name('~/decision', node))
        if wanted not in found:
            raise ReplayError(f'{bag.path}: expected decisions on the topic /{wanted}, found '
                              f'{_names(found)}')
        return wanted
    if len(found) != 1:
        raise ReplayError(
            f'{bag.path}: expected decisions of one node, recorded by record.launch.py, found '
            f'{_names(found)}' + ('; choose with --node' if found else ''))
    return found[0]


def _names(topics: Sequence[str]) -> str:
    return listed([f'/{topic}' for topic in topics], 5, 'topic') if topics else 'none'


def read_decisions(bag: Bag, topic: str) -> Iterator[tuple[int, DecisionRecord]]:
    """Yield (log time in ns, decision) of a topic, in the order of the log.

    Raises:
        ReplayError: A message is no record of a decision.
        BagError: The bag cannot be read.
    """
    for number, (_, log_ns, message) in enumerate(bag.messages([topic])):
        try:
            record = decision_record.unpack(
                [(d.label, d.size) for d in message.layout.dim], message.data)
            if not 1 <= record.candidates <= MAX_CANDIDATES:
                raise ValueError(f'candidates: expected 1 to {MAX_CANDIDATES}, found '
                                 f'{record.candidates}')
            if record.tick_ns >= 2**63:
                raise ValueError(f'tick_s_ns: expected below 2^63 ns, found {record.tick_ns}')
        except ValueError as error:
            raise ReplayError(f'{bag.path}: topic {topic}: message {number} is no record of a '
                              f'decision: {error}') from error
        yield log_ns, record


def named_policies(bag: Bag, node: str) -> dict[str, Path]:
    """Return the policy files that the diagnostics of a node name: SHA-256 -> path."""
    topic = bag.topics.get('diagnostics')
    if topic is None or topic.type != _DIAGNOSTICS_TYPE:
        return {}
    found = {}
    for _, _, message in bag.messages(['diagnostics']):
        for status in message.status:
            values = {pair.key: pair.value for pair in status.values}
            if status.name.startswith(f'{node}: ') and {'sha256', 'policy'} <= set(values):
                found[values['sha256']] = Path(values['policy'])
    return found


# ---- the policy files ---------------------------------------------------------------------------


class Policies:
    """The policy files of a run, opened when they are asked for."""

    def __init__(self, paths: Sequence[Path], bag: Bag, node: str, threads: int) -> None:
        """Take the files that the user names.

        Raises:
            PolicyError: One cannot be read.
        """
        self._bag, self._threads = bag.path, threads
        self._paths = {hashlib.sha256(read_file(path)).hexdigest(): path for path in paths}
        self._named = named_policies(bag, node)
        self._opened: dict[str, Opened] = {}

    def of(self, digest: str) -> Opened:
        """Return the file whose SHA-256 begins so.

        Raises:
            ReplayError: No file was given that does, and the bag names none.
            PolicyError: It is no policy file.
        """
        if digest not in self._opened:
            self._opened[digest] = self._open(self._find(digest))
        return self._opened[digest]

    @property
    def used(self) -> list[Policy]:
        """Return those that were asked for."""
        return [opened.policy for opened in self._opened.values()]

    def _find(self, digest: str) -> Path:
        for whole, path in self._paths.items():
            if whole.startswith(digest):
                return path
        path = next((path for whole, path in self._named.items() if whole.startswith(digest)),
                    None)
        given = listed([f'{path} ({whole[:len(digest)]}...)'
                        for whole, path in self._paths.items()], 3, 'file') if (
                            self._paths) else 'none'
        expected = (f'{self._bag}: expected the policy file whose SHA-256 begins with '
                    f'{digest} (--policy, several for a run with reloads), found {given}')
        if path is None:
            raise ReplayError(expected)
        try:
            found = hashlib.sha256(read_file(path)).hexdigest()
        except PolicyError as error:
            raise ReplayError(f'{expected}; the bag names one: {error}') from error
        if not found.startswith(digest):
            raise ReplayError(f'{expected}; {path}, which the bag names, has another by now: '
                              f'{found[:len(digest)]}...')
        return path

    def _open(self, path: Path) -> Opened:
        # As the node does: checked in a process of its own, and run as the graph that left it.
        vetted = vetting.vet(path, threads=self._threads)
        policy = Policy(path, self._threads, vetted=vetted)
        return Opened(policy, _action_scale(vetted.content, policy))


def _action_scale(content: bytes, policy: Policy) -> np.ndarray:
    """Return how much of each dimension (A,) is one network unit."""
    model = onnx.ModelProto.FromString(content)
    text, = (entry.value for entry in model.metadata_props if entry.key == METADATA_KEY)
    scale = json.loads(text)['model'].get('action_scale')
    try:
        scale = np.asarray(scale, np.float64)
    except (TypeError, ValueError):
        scale = np.zeros(0)
    if scale.shape != (policy.spec.action_size,) or not (np.isfinite(scale) & (scale > 0)).all():
        raise ReplayError(
            f'{policy.path}: model.action_scale: expected {policy.spec.action_size} numbers above '
            '0, which training.export writes, found others')
    return scale


# ---- the decisions ------------------------------------------------------------------------------


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


def _take(replay: Replay, record: DecisionRecord, opened: Opened) -> None:
    """Compute a decision again and compare it."""
    decision = recompute(record, opened.policy)
    equal, error = _compare(record, decision, opened.action_scale)
    if error.max() > TOLERANCE:
        other = _as_good(record, decision, opened)
        if other is not None:
            _, error_there = _compare(record, other, opened.action_scale)
            if error_there.max() <= TOLERANCE:
                replay.ties += 1
                equal, error, decision = np.zeros_like(equal), error_there, other
    names = [*(f'action[{i}]' for i in range(len(record.action))), *VALUES]
    size = len(record.action)
    for kind, part in (('action', slice(size)), *(
            (name, slice(size + i, size + i + 1)) for i, name in enumerate(VALUES))):
        tally = replay.kinds[kind]
        tally.equal += bool(equal[part].all())
        tally.beyond += bool(error[part].max() > TOLERANCE)
        tally.worst = max(tally.worst, float(error[part].max()))
    if equal.all():
        replay.equal += 1
    elif replay.first_unequal is None or replay.first_beyond is None:
        worst = int(error.argmax())
        difference = Difference(
            replay.decisions, record.tick_ns, names[worst], float(_numbers(record)[worst]),
            float(_numbers(decision)[worst]), float(error[worst]))
        replay.first_unequal = replay.first_unequal or difference
        if error[worst] > TOLERANCE and replay.first_beyond is None:
            replay.first_beyond = difference
    replay.decisions += 1
    replay.candidates[record.candidates] += 1
    replay.extractions[record.extraction] += 1
    replay.seeds[record.seed] += 1
    replay.rows.append((
        record.tick_ns / messages.NS, *(getattr(record, name) for name in VALUES),
        record.candidates, bool(np.isfinite(record.sent).all())))


# ---- the commands -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sent:
    """What became of an action."""

    tick_ns: int
    log_ns: int
    published: bool
    sent: np.ndarray  # (A,)


def _check_commands(bag: Bag, replay: Replay, passed: Sequence[_Sent]) -> None:
    """Look up in the bag what the guard let through."""
    position = 0
    for command in replay.spec.actions:
        part = slice(position, position + command.size)
        position += command.size
        topic = recorded.full_name(command.topic, replay.node)
        found = Commands(topic)
        replay.commands.append(found)
        found.there = alignment.key(topic) in bag.topics
        if found.there:
            _check_command(bag, replay.spec, command, found, [
                replace(action, sent=action.sent[part]) for action in passed])


def _check_command(
        bag: Bag, spec: Spec, command: Command, result: Commands, passed: Sequence[_Sent],
) -> None:
    """Compare the messages of one topic with what passed on it, by stamp where they have one."""
    times, rows, template, stamped = [], [], None, True
    for _, log_ns, message in bag.messages([alignment.key(result.topic)]):
        try:
            if not messages.concerns(command, message):
                continue
            rows.append(messages.read(command, message))
        except messages.MessageError:  # of another publisher
            continue
        if template is None:
            template, stamped = message, messages.header_of(message) is not None
        times.append(messages.stamp_ns(message, log_ns))
    order = np.argsort(np.array(times, np.int64), kind='stable')
    moments = np.array(times, np.int64)[order]
    # A message without a stamp is logged about when its decision is.
    slack_ns = 0 if stamped else max(_LEAST_SLACK_NS, int(messages.NS / spec.rate))
    for action in passed:
        moment_ns = action.tick_ns if stamped else action.log_ns
        here = order[np.searchsorted(moments, moment_ns - slack_ns):
                     np.searchsorted(moments, moment_ns + slack_ns, side='right')]
        there = _is_among(command, action.sent, [rows[i] for i in here], template)
        if not action.published:
            if stamped and there:
                result.differing.append(action.tick_ns)
        elif there:
            result.found += 1
        elif len(moments) and moments[0] <= moment_ns <= moments[-1]:
            result.differing.append(action.tick_ns)
        else:
            result.outside += 1


def _is_among(
        command: Command, sent: np.ndarray, rows: Sequence[np.ndarray], template: Any) -> bool:
    """Return whether one of the rows read from messages is what was written for `sent`."""
    if any(np.array_equal(row, sent) for row in rows):
        return True
    if not rows:
        return False
    # Six numbers of a rotation, as one example, come back as others of the same rotation.
    written = messages.read(command, messages.write(command, sent, copy.deepcopy(template), 0))
    return any(np.allclose(row, written, _MESSAGE_TOLERANCE, _MESSAGE_TOLERANCE) for row in rows)


# ---- the observations ---------------------------------------------------------------------------


def _observe(bag: Bag, replay: Replay, ticks: dict[int, set[bytes]]) -> None:
    """Count the recorded observations that the bag's own messages give again."""
    spec = replay.spec
    names = {recorded.full_name(signal.topic, replay.node): signal.topic
             for signal in spec.observations}
    missing = [name for name in names if alignment.key(name) not in bag.topics]
    if spec.tick != 'arrival':
        replay.why_not_observed = "a timer's ticks lie between the messages"
    elif missing:
        replay.why_not_observed = f'not in the bag: {", ".join(missing)}'
    if replay.why_not_observed:
        return
    keys = {alignment.key(name): topic for name, topic in names.items()}
    read = {*keys, 'clock'} if spec.clock == 'header' and 'clock' in bag.topics else set(keys)
    logged = ((alignment.key(keys.get(topic, topic)), log_ns, message)
              for topic, log_ns, message in bag.messages(read))
    of_key = {alignment.key(topic): topic for topic in names.values()}
    observer, replay.observed = Observer(spec), 0
    for time_ns, topic, _, message in alignment.in_tick_clock(
            logged, spec, alignment.new_account(str(bag.path), spec)):
        if message is None:
            observer.reset()
            continue
        observer.add(of_key[topic], message, time_ns)
        tick_ns = observer.take_tick(time_ns)
        if tick_ns is not None:
            # Aged by the tick: the log may be in another clock than the stamps.
            observation, _ = observer.observe_tick(tick_ns)
            replay.observed += (
                observation is not None and observation.tobytes() in ticks.get(tick_ns, ()))


# ---- the whole ----------------------------------------------------------------------------------


def replay_bag(
        path: Path, policies: Sequence[Path] = (), node: str | None = None,
        threads: int = 1) -> Replay:
    """Compute every decision in a bag again.

    Args:
        path: The bag.
        policies: Policy files; those that are missing are taken from where the bag's diagnostics
            name them, if they still are the same there.
        node: Whose decisions, '/namespace/name'; None: the only one's.
        threads: For one inference.

    Raises:
        BagError, PolicyError: The bag or a policy file cannot be used.
    """
    with Bag(path) as bag:
        topic = decision_topic(bag, node)
        name = '/' + topic.rpartition('/')[0]
        files = Policies(policies, bag, name, threads)
        passed: list[_Sent] = []
        ticks: dict[int, set[bytes]] = {}
        replay: Replay | None = None
        for log_ns, record in tqdm(
                read_decisions(bag, topic), total=bag.topics[topic].count, desc='replay',
                unit='decision', dynamic_ncols=True):
            opened = files.of(record.digest)
            if replay is None:
                replay = Replay(name, opened.policy.spec, files.used)
            if opened.policy.spec != replay.spec:
                raise ReplayError(f'{path}: expected policies of one spec, found another one in '
                                  f'{opened.policy.path}')
            _take(replay, record, opened)
            ticks.setdefault(record.tick_ns, set()).add(record.observation.tobytes())
            if np.isfinite(record.sent).all():
                passed.append(_Sent(record.tick_ns, log_ns, record.published, record.sent))
        replay.policies = files.used
        _check_commands(bag, replay, passed)
        _observe(bag, replay, ticks)
    return replay


def text(replay: Replay) -> str:
    """Return what was found as text."""
    span_s = replay.rows[-1][0] - replay.rows[0][0]
    lines = [f'{counted(replay.decisions, "decision")} of {replay.node} in {seconds(span_s)}; '
             f'N {_counts(replay.candidates)}; {_counts(replay.extractions)}; '
             f'seed {_counts(replay.seeds)}']
    lines += [f'policy {policy.path}, sha256 {decision_record.short_digest(policy.digest)}, '
              f'{policy.provider}' for policy in replay.policies]
    lines += ['', f'{"what":22} {"bit for bit":>12} {"worst error":>12} {"allowed":>8}']
    lines += [f'{name:22} {kind.equal:12,} {kind.worst:12.1e} {TOLERANCE:8.0e}  '
              f'{"FAIL, " + format(kind.beyond, ",") + " beyond" if kind.beyond else "ok"}'
              for name, kind in replay.kinds.items()]
    lines += ['errors of the action in network units, of the others as a share of the magnitude '
              'of Q (distance: of its own), or of 1', '']
    if replay.ties:
        lines.append(f'{counted(replay.ties, "tie")}: another candidate is as good to within the '
                     'tolerance, and was chosen')
    for command in replay.commands:
        lines.append(_command_text(command))
    lines.append(
        f'observations: not made again, {replay.why_not_observed}' if replay.observed is None
        else f'observations: {replay.observed:,} of {replay.decisions:,} are made again from the '
        "bag's messages")
    if replay.first_unequal is not None:
        lines.append(f'first difference: {replay.first_unequal}')
    if replay.first_beyond not in (None, replay.first_unequal):
        lines.append(f'first beyond the tolerance: {replay.first_beyond}')
    lines.append(_verdict(replay))
    return '\n'.join(lines)


def _verdict(replay: Replay) -> str:
    if not replay.passed:
        return 'NOT equal'
    if replay.equal == replay.decisions:
        return f'all {replay.decisions:,} equal bit for bit'
    return (f'equal within the tolerances, {replay.equal:,} of {replay.decisions:,} bit for bit')


def _command_text(command: Commands) -> str:
    if not command.there:
        return f'commands on {command.topic}: not compared, the topic is not in the bag'
    told = f'commands on {command.topic}: {command.found:,} found as the guard let them through'
    if command.outside:
        told += f', {command.outside:,} before the first or after the last in the bag'
    if command.differing:
        told += (f', {len(command.differing):,} NOT as recorded, the first of tick '
                 f'{command.differing[0]} ns')
    return told


def _counts(counter: Counter[Any]) -> str:
    if len(counter) == 1:
        return str(*counter)
    return listed([f'{key} ({count:,})' for key, count in counter.most_common()], 5, 'other')


def draw(replay: Replay, target: Path) -> None:
    """Write a picture of the recorded values over time; grey is where the guard let none pass."""
    rows = np.array(replay.rows, np.float64)
    time_s = rows[:, 0] - rows[0, 0]
    columns = {name: rows[:, 1 + i] for i, name in enumerate((*VALUES, 'N'))}
    panels = [(('q', 'v', 'q_mean'), 'Q, V'), (('q_spread',), 'spread of Q'),
              (('distance',), 'distance from the data'), (('N',), 'N')]
    panels = [(names, label) for names, label in panels
              if np.isfinite(columns[names[0]]).any() and (
                  label != 'N' or len(replay.candidates) > 1)]
    figure = Figure(figsize=(9, 0.8 + 1.7 * len(panels)), layout='constrained')
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    # The ticks of two periods may be almost two periods apart.
    apart_s = 2.0 / replay.spec.rate
    # No line through a time without decisions.
    breaks = np.flatnonzero(np.diff(time_s) > apart_s) + 1
    stops = [(time_s[i - 1], time_s[i]) for i in breaks]
    refused = time_s[rows[:, -1] == 0]
    labels = {'q': 'Q of the action', 'v': 'V', 'q_mean': 'mean Q of the candidates'}
    for axis, (names, label) in zip(axes, panels, strict=True):
        for name in names:
            axis.plot(np.insert(time_s, breaks, np.nan), np.insert(columns[name], breaks, np.nan),
                      lw=0.9, label=labels.get(name),
                      drawstyle='steps-post' if name == 'N' else 'default')
        for begin_s, end_s in stops:
            axis.axvspan(begin_s, end_s, color='0.85', lw=0)
        for moment_s in refused:
            axis.axvline(moment_s, color='tab:red', lw=0.8, alpha=0.5)
        axis.set_ylabel(label)
        axis.spines[['top', 'right']].set_visible(False)
    axes[0].legend(fontsize=8, loc='center left', bbox_to_anchor=(1, 0.5), frameon=False)
    told = ['grey: no decision'] * bool(stops) + ['red: the guard refused it'] * bool(len(refused))
    axes[0].set_title(', '.join([f'{replay.node}, {replay.spec.name}', *told]).replace('$', r'\$'),
                      fontsize=9, loc='left')
    axes[-1].set_xlabel('time (s)')
    figure.savefig(target, dpi=100)


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay as the command line says; return the exit status.

    Args:
        arguments: Without the program's name; None: sys.argv.
    """
    parser = argparse.ArgumentParser(
        prog='python -m training.replay',
        description='Recompute every decision of a recorded run, and report what differs.')
    parser.add_argument('bag', type=Path, help='recorded with record.launch.py')
    parser.add_argument('--policy', type=Path, action='append', default=[],
                        help='policy file of the run; several times where it was reloaded '
                        '(default: where the diagnostics in the bag say)')
    parser.add_argument('--node', help='whose decisions, /namespace/name (default: the only one)')
    parser.add_argument('--threads', type=int, default=1,
                        help="of one inference, as the node's parameter (default: 1)")
    parser.add_argument('--figure', type=Path, help='picture of the values over time (.png)')
    options = parser.parse_args(arguments)
    try:
        replay = replay_bag(options.bag, options.policy, options.node, options.threads)
        print(text(replay))
        if options.figure is not None:
            draw(replay, options.figure)
            print(f'picture: {options.figure}')
    except (OSError, ValueError) as error:  # BagError, PolicyError, MessageError
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0 if replay.passed else 1


if __name__ == '__main__':
    sys.exit(main())
