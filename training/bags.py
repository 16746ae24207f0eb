"""rosbag2 (mcap, sqlite3) and rosbag1 -> episodes, through the Observer that the node uses.

The only reader of bags. At each tick the observation is the newest that was logged by then, and
the action is the first command logged in (t, t + 1 / rate]: the answer to that observation, not
the one before it. Where an observation or its command is missing the recording is cut; no
transition bridges a cut.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
import re
import sys
from typing import Annotated, Any

from idql_ros import message as messages
from idql_ros import spec as specs
from idql_ros.observer import Observer
import numpy as np
from rosbags.highlevel import AnyReader
from rosbags.typesys import get_typestore, Stores
from tqdm import tqdm
from training import rewards
from training.datasets import check_dataset_id, DatasetError, Episode, write_minari
import tyro

# Given `within` (see training.rewards): rewards (n,) and terminals (n,).
Reward = Callable[[list[np.ndarray]], tuple[np.ndarray, np.ndarray]]


class BagError(ValueError):
    """A bag that cannot be read with this spec; names the bag, what was expected and found."""


@dataclass
class Segment:
    """An uninterrupted part of a recording: n decisions, n + 1 observations."""

    observations: list[np.ndarray] = field(default_factory=list)  # each (O,) float32
    actions: list[np.ndarray] = field(default_factory=list)  # each (A,) float32
    # For each decision the observations (m, O) made after its tick, up to the next one's.
    within: list[np.ndarray] = field(default_factory=list)


class _Ticks:
    """Pairs ticks with the commands that answer them, into segments."""

    def __init__(self, spec: specs.Spec, unused: Counter[str]) -> None:
        self._spec = spec
        self._unused = unused
        self._observer = Observer(spec)
        self._period_ns = messages.NS / spec.rate
        self._segment = Segment()
        self._finished: list[Segment] = []
        # The open decision: when its tick was logged, the tick's period, the commands so far and
        # what was observed since.
        self._logged_ns: int | None = None
        self._period: int | None = None
        self._commands: dict[str, np.ndarray] = {}
        self._seen: list[np.ndarray] = []

    def observe(self, topic: str, message: Any, logged_ns: int) -> None:
        """Take a message of an observed topic."""
        if self._spec.tick == 'timer':
            self.pass_time(logged_ns)
        self._observer.add(topic, message, logged_ns)
        if self._logged_ns is not None:
            now_ns = messages.stamp_ns(message, logged_ns)
            observation, _ = self._observer.observe(now_ns)
            if observation is not None:
                self._seen.append(observation)
        if self._spec.tick == 'arrival':
            tick_ns = self._observer.take_tick(logged_ns)
            if tick_ns is not None:
                self._tick(tick_ns, logged_ns)

    def command(self, command: specs.Command, message: Any, logged_ns: int) -> None:
        """Take a message of an action topic."""
        if self._spec.tick == 'timer':
            self.pass_time(logged_ns)
        if (self._logged_ns is not None and command.name not in self._commands
                and self._logged_ns < logged_ns <= self._logged_ns + self._period_ns):
            self._commands[command.name] = messages.read(command, message)

    def pass_time(self, now_ns: int) -> None:
        """Make the ticks of the fixed rate that lie before `now_ns`."""
        last = self._spec.period_of(now_ns - 1)
        if self._period is None:
            self._period = last
        # Between two messages nothing comes: of a hole the first tick closes what was open, the
        # last one may begin anew, and those between have no command.
        for period in sorted({*range(self._period + 1, min(self._period + 3, last + 1)), last}):
            if period > self._period:
                start_ns = self._spec.start_of(period)
                self._tick(start_ns, start_ns)

    def _tick(self, tick_ns: int, logged_ns: int) -> None:
        observation, reasons = self._observer.observe(tick_ns)
        self._unused.update(re.sub(r'[-+.\d]+(e[-+]?\d+)?', '#', reason) for reason in reasons)
        period = self._spec.period_of(tick_ns)
        follows = self._period is not None and period == self._period + 1
        self._close(observation if follows else None)
        if not follows:
            self._cut()
        self._period = period
        self._commands, self._seen = {}, []
        if observation is None:
            self._cut()
            self._logged_ns = None
            return
        if not self._segment.observations:
            self._segment.observations.append(observation)
        self._logged_ns = logged_ns

    def _close(self, next_observation: np.ndarray | None) -> None:
        """Complete the open decision with the observation that follows it, or cut there."""
        if self._logged_ns is None:
            return
        parts = [self._commands.get(command.name) for command in self._spec.actions]
        self._unused.update(
            f'{command.name} (topic {command.topic}): no command within a period of its tick'
            for command, part in zip(self._spec.actions, parts, strict=True) if part is None)
        if next_observation is None or any(
                part is None or not np.all(np.isfinite(part)) for part in parts):
            self._cut()
            return
        self._segment.actions.append(np.concatenate(parts))
        self._segment.within.append(np.stack([*self._seen, next_observation]))
        self._segment.observations.append(next_observation)

    def _cut(self) -> None:
        if self._segment.actions:
            self._finished.append(self._segment)
        self._segment = Segment()

    def finish(self) -> list[Segment]:
        """Return the segments after the last message."""
        self._cut()
        return self._finished


def read_segments(
    path: Path, spec: specs.Spec, unused: Counter[str] | None = None
) -> list[Segment]:
    """Read one bag.

    Args:
        path: A rosbag2 folder, or a ROS 1 .bag file.
        spec: What to take from it.
        unused: Is told why ticks were not used, and how many for each reason.

    Raises:
        BagError: The bag cannot be opened, a topic of the spec is missing or of another type, or
            fewer messages were read than the bag states.
    """
    ticks = _Ticks(spec, Counter() if unused is None else unused)
    commands = {command.topic.lstrip('/'): command for command in spec.actions}
    observed = {signal.topic.lstrip('/'): signal.topic for signal in spec.observations}
    try:
        for topic, message, logged_ns in _messages(path, spec):
            if topic in commands:
                ticks.command(commands[topic], message, logged_ns)
            if topic in observed:
                ticks.observe(observed[topic], message, logged_ns)
    except messages.MessageError as error:
        raise BagError(f'{path}: {error}') from error
    return ticks.finish()


def _messages(path: Path, spec: specs.Spec) -> Iterator[tuple[str, Any, int]]:
    """Yield (topic without its leading slash, message, log time) in the order of the log."""
    read = 0
    try:
        with AnyReader([path], default_typestore=get_typestore(Stores.ROS2_JAZZY)) as reader:
            connections, stated = _connections(reader, spec, path)
            for connection, logged_ns, raw in reader.messages(connections):
                read += 1
                message = reader.deserialize(raw, connection.msgtype)
                yield connection.topic.lstrip('/'), message, logged_ns
    except BagError:
        raise
    except Exception as error:  # on damaged bytes rosbags and the databases below it raise any
        raise BagError(
            f'{path}: cannot be read as a bag: {" ".join(str(error).split())}') from error
    if read != stated:
        raise BagError(
            f'{path}: expected the {stated} messages that the bag states for the topics of the '
            f'spec, read {read}; the bag is damaged, or its metadata.yaml is of another')


def _connections(reader: AnyReader, spec: specs.Spec, path: Path) -> tuple[list[Any], int]:
    found: dict[str, list[Any]] = {}
    for connection in reader.connections:
        found.setdefault(connection.topic.lstrip('/'), []).append(connection)
    chosen = {}
    for stream in (*spec.observations, *spec.actions):
        topic = stream.topic.lstrip('/')
        if topic not in found:
            raise BagError(f'{path}: expected the topic {topic} of the spec, found '
                           f'{", ".join(sorted(found)) or "none"}')
        for connection in found[topic]:
            if connection.msgtype != stream.type:
                raise BagError(f'{path}: topic {topic}: expected {stream.type} as the spec '
                               f'states, found {connection.msgtype}')
        chosen[topic] = found[topic]
    connections = [connection for group in chosen.values() for connection in group]
    return connections, sum(connection.msgcount for connection in connections)


def episodes_of(segment: Segment, reward: Reward) -> Iterator[Episode]:
    """Cut a segment at its terminals; what comes after one is an episode of its own."""
    values, terminals = reward(segment.within)
    start = 0
    ends = [*(np.flatnonzero(terminals) + 1), len(segment.actions)]
    for end in ends:
        if end > start:
            yield Episode(
                observations=np.stack(segment.observations[start:end + 1]),
                actions=np.stack(segment.actions[start:end]),
                rewards=values[start:end],
                terminated=bool(terminals[end - 1]),
                truncated=not terminals[end - 1],
            )
        start = end


def convert(
    paths: Iterable[Path], spec: specs.Spec, reward: Reward, dataset_id: str, root: Path,
    overwrite: bool = False,
) -> Path:
    """Convert bags into one Minari dataset and return its folder.

    Raises:
        BagError: A bag cannot be read.
        DatasetError: There is nothing to learn from.
    """
    check_dataset_id(dataset_id)
    paths = sorted(paths)
    twice = [path for path, count in Counter(p.resolve() for p in paths).items() if count > 1]
    if twice:
        raise BagError(f'{twice[0]}: expected each bag once, found it twice')
    episodes: list[Episode] = []
    unused: Counter[str] = Counter()
    for path in tqdm(paths, desc='convert', unit='bag', dynamic_ncols=True):
        for segment in read_segments(path, spec, unused):
            episodes.extend(episodes_of(segment, reward))
    reasons = [f'{count} ticks were not used: {reason}' for reason, count in unused.most_common(5)]
    if not episodes:
        raise BagError('; '.join(['expected decisions in the bags, found none', *reasons]))
    for line in [*reasons, *_outside_limits(episodes, spec)]:
        print(line)
    return write_minari(
        episodes, dataset_id, root, {'bags': ', '.join(path.name for path in paths)},
        spec.to_json(), overwrite)


def _outside_limits(episodes: list[Episode], spec: specs.Spec) -> list[str]:
    """Return a line for each action dimension that was commanded outside the spec's limits."""
    actions = np.concatenate([episode.actions for episode in episodes])
    lines = []
    for i, dimension in enumerate(spec.dimensions):
        column = actions[:, i]
        # A recorded float32 may lie a rounding outside.
        slack = 1e-6 * (dimension.upper - dimension.lower)
        outside = (column < dimension.lower - slack) | (column > dimension.upper + slack)
        if outside.any():
            lines.append(
                f'action {i}: {100 * outside.mean():.1f} % of the commands lie outside the limits '
                f'{dimension.lower} to {dimension.upper} {dimension.unit} (from '
                f'{column.min():.4g} to {column.max():.4g}); training takes them as at the limit')
    return lines


def main(
    bags: tyro.conf.Positional[list[Path]],
    /,
    spec: Path,
    dataset_id: str,
    root: Path,
    goal: tuple[float, ...],
    tolerance: float,
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Convert bags into a Minari dataset, with reward -1 until a goal is reached.

    Args:
        bags: rosbag2 folders or ROS 1 .bag files.
        spec: The robot's spec (.yaml).
        dataset_id: '[namespace/]name-v0'.
        root: The folder of datasets (MINARI_DATASETS_PATH).
        goal: Values of the first observations at the goal.
        tolerance: Distance at which the goal is reached.
        overwrite: Replace a dataset of this id.
    """
    target = np.array(goal)
    robot = specs.load(spec)
    if not 1 <= len(goal) <= robot.observation_size:
        raise BagError(f'goal: expected 1 to {robot.observation_size} numbers, values of the '
                       f'first observations of {spec}, found {len(goal)}')
    folder = convert(
        bags, robot,
        lambda within: rewards.sparse_goal(within, target, tolerance),
        dataset_id, root, overwrite)
    print(f'wrote {folder}')


if __name__ == '__main__':
    try:
        tyro.cli(main)
    except (BagError, specs.SpecError, DatasetError) as error:
        sys.exit(f'error: {error}')
