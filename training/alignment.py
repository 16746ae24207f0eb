"""Messages of one bag -> stretches of decisions, through the Observer that the node uses.

    time    --o--o--T-o--c-o--c--o--T--o-----      o observed, c commanded, T tick
    decision        |observation at T
                     |----------| between: what was observed before the next tick
                         c  c     the commands within a period of T answer it

At each tick the observation is the newest that was available by then; the action is what was
commanded within a period after it, by the rule of the command: the answer to that observation and
not the one before. Where an observation, its command or the next tick is missing the recording is
cut; no transition bridges a cut.

Available means logged by then. Where the spec's `clock` is 'header' the recording's headers tell
simulated time and its log the wall's: then ticks are in simulated time, and available means
stamped by then (training.header_clock).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
import re
from typing import Any

from idql_ros import message as messages
from idql_ros import spec as specs
from idql_ros.observer import follows, Observer
import numpy as np
from training.account import BagAccount, StreamAccount
from training.header_clock import HeaderClock
from training.rewards import Steps

# (topic without its leading slash, log time in ns, message)
Logged = tuple[str, int, Any]

# A stretch ends, and the next goes on from its last observation, when it has so many decisions or
# so many bytes were observed between its ticks: a recording may be of any length.
LONGEST_STRETCH = 10_000
_MOST_BETWEEN = 64 * 2**20
# A gap of a command's topic, for the report: commands that were not repeated for so long.
_COMMAND_GAP_S = 1.0


@dataclass(frozen=True)
class Stretch:
    """Uninterrupted decisions."""

    steps: Steps
    # '' where a recording or a cut begins it, 'length' where it goes on from the stretch before.
    continues: str


@dataclass(frozen=True)
class TaskTopic:
    """A topic that tells rewards or ends."""

    # The topic and number, as a stream to read.
    stream: specs.Stream
    # 'reward' or 'terminal'.
    kind: str
    # Of several messages within a decision: 'sum' or 'last' reward, or 'any' terminal.
    reduce: str


def task_topic(kind: str, topic: str, message_type: str, path: str, reduce: str) -> TaskTopic:
    """Return a topic that tells rewards or ends in the number at a path of its messages.

    Raises:
        ValueError: The path is none.
    """
    stream = specs.Stream(
        name=kind, topic=topic, type=message_type, fields=(specs.parse_path(path),),
        operations=(), reliability='reliable', depth=1, durability='volatile', deadline=None,
        joints=(),
        frame_id='')
    return TaskTopic(stream, kind, reduce)


@dataclass(slots=True)
class _Decision:
    """A tick that waits for its command and for the next tick."""

    # The last moment whose commands answer it, in the clock of the ticks.
    end_ns: int
    # Command -> the newest before the tick: (time, numbers).
    before: dict[str, tuple[int, np.ndarray]]
    # Command -> numbers since the tick: the newest, or all where their mean is asked for.
    commands: dict[str, list[np.ndarray]] = field(default_factory=dict)
    rewards: list[float] = field(default_factory=list)
    terminal: bool = False
    between: int = 0
    # Whether a signal was too old at some moment since the tick.
    stale: bool = False


class _Rows:
    """Rows (n, width) float32 that grow in place."""

    def __init__(self, width: int) -> None:
        self._rows = np.empty((64, width), np.float32)
        self.count = 0

    def append(self, row: np.ndarray) -> None:
        if self.count == len(self._rows):
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
        self._rows[self.count] = row
        self.count += 1

    def take(self, count: int) -> np.ndarray:
        return self._rows[:count].copy()

    @property
    def nbytes(self) -> int:
        return self.count * self._rows.shape[1] * self._rows.itemsize


class _Builder:
    """Decisions -> stretches."""

    def __init__(self, spec: specs.Spec, kinds: list[str]) -> None:
        self._spec, self._kinds = spec, kinds
        self.finished: list[Stretch] = []
        self._begin('')

    def _begin(self, continues: str) -> None:
        size = self._spec.observation_size
        self._continues = continues
        self._observations, self._actions = _Rows(size), _Rows(self._spec.action_size)
        self.between = _Rows(size)
        self._counts: list[int] = []
        self._topics: dict[str, list[float]] = {kind: [] for kind in self._kinds}

    def begin(self, observation: np.ndarray) -> None:
        """Take the observation of a tick; where decisions came before it, it is their last."""
        if not self._observations.count:
            self._observations.append(observation)

    def add(self, action: np.ndarray, between: int, topics: dict[str, float],
            following: np.ndarray) -> None:
        """Take a decision, and the observation that followed."""
        self._actions.append(action)
        self._counts.append(between)
        for kind, value in topics.items():
            self._topics[kind].append(value)
        self._observations.append(following)
        if len(self._counts) >= LONGEST_STRETCH or self.between.nbytes >= _MOST_BETWEEN:
            self._finish()
            self._begin('length')
            self.begin(following)

    def cut(self) -> None:
        """End the stretch."""
        self._finish()
        self._begin('')

    def _finish(self) -> None:
        count = len(self._counts)
        if not count:
            return
        self.finished.append(Stretch(Steps(
            observations=self._observations.take(count + 1),
            actions=self._actions.take(count),
            between=self.between.take(sum(self._counts)),
            counts=np.array(self._counts, np.int64),
            rate=self._spec.rate,
            topics={kind: np.array(values, bool if kind == 'terminal' else np.float64)
                    for kind, values in self._topics.items()},
        ), self._continues))


def _kind_of(reason: str) -> str:
    """Return a reason without the numbers that differ from tick to tick."""
    name, separator, rest = reason.partition('): ')
    return name + separator + re.sub(r'[-+.\d]+(e[-+]?\d+)?', '#', rest)


class _Ticks:
    """Pairs ticks with the commands that answer them."""

    def __init__(self, spec: specs.Spec, kinds: list[str], account: BagAccount) -> None:
        self._spec, self._account = spec, account
        self.observer = Observer(spec)
        self._period_ns = spec.start_of(1)
        self._arrival = spec.tick == 'arrival'
        self._kinds = kinds
        self.builder = _Builder(spec, kinds)
        self._open: _Decision | None = None
        # The last tick: (time, when it was complete).
        self._last_tick: tuple[int, int] | None = None
        # For a timer: the last period that had its tick, and after when the next one is due.
        self._period: int | None = None
        self.due_ns = 2**63 if self._arrival else -1
        # When the last message was available.
        self.event_ns = 0
        self._newest: dict[str, tuple[int, np.ndarray]] = {}

    def observe(self, topic: str, message: Any, time_ns: int) -> list[np.ndarray | None]:
        """Take a message of an observed topic; return its signals' numbers."""
        if self._open is not None and 0 <= self.observer.fresh_until_ns < time_ns:
            self._open.stale = True
        read = self.observer.add(topic, message, time_ns)
        if self._arrival:
            tick_ns = self.observer.take_tick(time_ns)
            if tick_ns is not None:
                self._tick(tick_ns, time_ns)
                return read
        if self._open is not None:
            observation = self.observer.peek(time_ns)
            if observation is not None:
                self.builder.between.append(observation)
                self._open.between += 1
        return read

    def command(self, command: specs.Command, values: np.ndarray, time_ns: int) -> None:
        """Take a command."""
        self._newest[command.name] = (time_ns, values)
        if self._open is not None and time_ns <= self._open.end_ns:
            if command.rule == 'mean':
                self._open.commands.setdefault(command.name, []).append(values)
            else:
                self._open.commands[command.name] = [values]

    def tell(self, topic: TaskTopic, value: float) -> None:
        """Take a reward or an end that a topic tells."""
        if self._open is None:
            return
        if topic.kind == 'terminal':
            self._open.terminal |= bool(value)
        elif topic.reduce == 'sum':
            self._open.rewards.append(value)
        else:
            self._open.rewards = [value]

    def pass_time(self, now_ns: int) -> None:
        """Make the ticks of a timer that lie before `now_ns`, which is after `due_ns`."""
        last = self._spec.period_of(now_ns - 1)
        if self._period is not None and last > self._period:
            # Of a hole the first ticks close what was open, the last one may begin anew, and those
            # between them have no observation.
            blind = self._spec.period_of(self.observer.fresh_until_ns) + 2
            first = self._period + 1
            for period in (*range(first, min(max(blind, first + 2), last)), last):
                start_ns = self._spec.start_of(period)
                self._tick(start_ns, start_ns)
        self._period = last
        self.due_ns = self._spec.start_of(last + 1)

    def _tick(self, tick_ns: int, at_ns: int) -> None:
        """Take a tick, which was complete at `at_ns`."""
        spec = self._spec
        # As in the node: ages count when it was complete.
        now_ns = max(tick_ns, at_ns)
        self._account.ticks += 1
        for signal, age_s in zip(spec.observations, self.observer.ages_s(now_ns), strict=True):
            self._account.streams[signal.name].ages.append(age_s)
        next_one = self._last_tick is not None and (
            follows(spec, self._last_tick[0], tick_ns)
            # One wrong stamp makes no tick of what came later.
            and at_ns - self._last_tick[1] <= 2 * self._period_ns)
        observation, reasons = self.observer.observe_tick(tick_ns, now_ns)
        for reason in reasons:
            self._account.unuse(_kind_of(reason))
        self._account.ties += sum(
            time_ns == at_ns for time_ns, _ in self._newest.values())
        self._close(observation, next_one)
        self._last_tick = tick_ns, at_ns
        if observation is not None:
            self.builder.begin(observation)
            end_ns = (at_ns + self._period_ns if self._arrival
                      else spec.start_of(spec.period_of(tick_ns) + 1))
            self._open = _Decision(end_ns, dict(self._newest))

    def _close(self, following: np.ndarray | None, next_one: bool) -> None:
        """Complete the open decision with the observation that follows it, or cut there."""
        decision, self._open = self._open, None
        action = None if decision is None else self._action(decision)
        if action is not None and not next_one:
            self._account.unuse('the tick after it did not come in the next period')
        elif action is not None and decision.stale:
            self._account.unuse('a signal was too old between its tick and the next one')
            action = None
        topics = {}
        if action is not None and 'reward' in self._kinds:
            if not decision.rewards:
                self._account.unuse('no reward came within its decision')
                action = None
            else:
                topics['reward'] = sum(decision.rewards)
        if action is None or following is None or not next_one:
            self.builder.cut()
            return
        if 'terminal' in self._kinds:
            topics['terminal'] = decision.terminal
        self.builder.add(action, decision.between, topics, following)
        self._account.decisions += 1

    def _action(self, decision: _Decision) -> np.ndarray | None:
        """Return what was commanded in answer to a tick (A,), or None and count why."""
        parts = []
        for command in self._spec.actions:
            found = decision.commands.get(command.name)
            max_age_ns = round(command.max_age * messages.NS)
            held = max_age_ns > self._period_ns
            if found is None and command.name in decision.before:
                # Commands slower than the ticks: the one before is still in force.
                time_ns, values = decision.before[command.name]
                if held and decision.end_ns - time_ns <= max_age_ns:
                    found = [values]
            name = f'{command.name} (topic {command.topic})'
            if found is None:
                self._account.unuse(f'{name}: no command for longer than its maximum age' if held
                                    else f'{name}: no command within a period of its tick')
                return None
            part = found[0] if len(found) == 1 else np.mean(
                found, axis=0, dtype=np.float64).astype(np.float32)
            if not np.isfinite(part).all():
                self._account.unuse(f'{name}: not finite')
                return None
            parts.append(part)
        return np.concatenate(parts)

    def cut(self) -> None:
        """End what is going on: the clock was set back."""
        self.observer.reset()
        self._open = self._last_tick = None
        self.builder.cut()
        self._newest, self._period = {}, None
        if not self._arrival:
            self.due_ns = -1

    def finish(self) -> None:
        """End with the last message."""
        if self.event_ns + 1 > self.due_ns:
            self.pass_time(self.event_ns + 1)
        if self._open is not None:
            self._account.unuse('the bag ended before its decision did')
        self.builder.cut()


@dataclass(frozen=True)
class _Use:
    """What a topic is used for."""

    # As the spec writes it; None: it is not observed.
    observed: str | None
    signals: tuple[specs.Signal, ...]
    streams: tuple[StreamAccount, ...]
    command: specs.Command | None
    commanded: StreamAccount | None
    told: tuple[TaskTopic, ...]


def key(topic: str) -> str:
    """Return a topic as bags are asked for it."""
    return topic.lstrip('/')


def topics_of(spec: specs.Spec, task_topics: Iterable[TaskTopic]) -> set[str]:
    """Return the topics that are read, without leading slashes."""
    streams = (*spec.observations, *spec.actions, *(topic.stream for topic in task_topics))
    return {key(stream.topic) for stream in streams}


def new_account(bag: str, spec: specs.Spec) -> BagAccount:
    """Return an account for a bag, of every stream of the spec."""
    return BagAccount(bag, {
        stream.name: StreamAccount(
            stream, stream.max_age if isinstance(stream, specs.Signal)
            else max(stream.max_age, _COMMAND_GAP_S))
        for stream in (*spec.observations, *spec.actions)})


def align(
    logged: Iterable[Logged], spec: specs.Spec, task_topics: list[TaskTopic],
    account: BagAccount,
) -> Iterator[Stretch]:
    """Yield the stretches of decisions of a bag, each as soon as it is complete.

    Args:
        logged: Messages of the topics of `topics_of`, in the order of the log; where the spec's
            clock is 'header' those of /clock too, if there are any.
        spec: What to take from them.
        task_topics: Topics that tell rewards and ends.
        account: Is told what became of every message and tick.

    Raises:
        MessageError: A command cannot be read, or none of a signal's messages, or one is in
            another frame than the spec states.
    """
    uses = _uses(spec, task_topics, account)
    kinds = sorted({topic.kind for topic in task_topics})
    ticks = _Ticks(spec, kinds, account)
    finished = ticks.builder.finished
    # Command -> a message that names other joints only; None once one was for it.
    elsewhere: dict[str, Any] = {}
    for time_ns, topic, logged_ns, message in in_tick_clock(logged, spec, account):
        if message is None:
            ticks.cut()
            continue
        if time_ns > ticks.due_ns:
            ticks.pass_time(time_ns)
        if account.begin_ns is None:
            account.begin_ns = time_ns
        ticks.event_ns = account.end_ns = time_ns
        account.messages += 1
        use = uses[topic]
        header = messages.header_of(message)
        stamp_ns = None if header is None else messages.time_message_ns(header.stamp)
        for told in use.told:
            ticks.tell(told, float(messages.read(told.stream, message)[0]))
        if use.command is not None and not messages.concerns(use.command, message):
            elsewhere.setdefault(use.command.name, message)
        elif use.command is not None:
            values = messages.read(use.command, message)
            elsewhere[use.command.name] = None
            ticks.command(use.command, values, time_ns)
            use.commanded.add(time_ns, logged_ns, stamp_ns, values)
        if use.observed is not None:
            read = ticks.observe(use.observed, message, time_ns)
            for signal, stream, values in zip(use.signals, use.streams, read, strict=True):
                if values is not None and not values.size:  # of another publisher's joints
                    continue
                stream.add(time_ns, logged_ns, stamp_ns, values)
                if values is None:
                    stream.unreadable = stream.unreadable or messages.why_unreadable(
                        signal, message)
                    if signal.frame_id and header is not None and (
                            header.frame_id != signal.frame_id):
                        raise messages.MessageError(messages.why_unreadable(signal, message))
        if finished:
            yield from finished
            finished.clear()
    ticks.finish()
    for name, overtaken in ticks.observer.overtaken.items():
        stream = account.streams[name]
        stream.overtaken = overtaken
        if stream.none_readable:
            raise messages.MessageError(stream.unreadable)
    for reason in ticks.observer.unheard:
        raise messages.MessageError(reason)
    for command in spec.actions:
        if elsewhere.get(command.name) is not None:
            messages.read(command, elsewhere[command.name])  # says which joints there are
    yield from finished


def _uses(
    spec: specs.Spec, task_topics: list[TaskTopic], account: BagAccount
) -> dict[str, _Use]:
    commands = {key(command.topic): command for command in spec.actions}
    uses = {}
    for name in topics_of(spec, task_topics):
        signals = [signal for signal in spec.observations if key(signal.topic) == name]
        command = commands.get(name)
        uses[name] = _Use(
            signals[0].topic if signals else None, tuple(signals),
            tuple(account.streams[signal.name] for signal in signals), command,
            account.streams[command.name] if command else None,
            tuple(topic for topic in task_topics if key(topic.stream.topic) == name))
    return uses


def in_tick_clock(
    logged: Iterable[Logged], spec: specs.Spec, account: BagAccount
) -> Iterator[tuple[int, str, int, Any]]:
    """Yield (time in ns, topic, log time, message) in the order of the clock of the ticks.

    The message is None where that clock was set back.
    """
    if spec.clock == 'header':
        stamped, latched = (
            {key(signal.topic) for signal in spec.observations
             if signal.time == 'header' and signal.latched in kinds}
            for kinds in ((False, True), (True,)))
        return HeaderClock(spec, stamped, latched, account.clock).order(logged)
    return ((logged_ns, topic, logged_ns, message) for topic, logged_ns, message in logged)
