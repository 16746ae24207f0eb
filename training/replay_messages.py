"""Compares a recorded run's decisions with the other messages in its bag.

Whether the commands are those that the guard let through, and how many observations can be made
again from the messages of the sensors: the log tells when the recorder took a message, not when
the node did, so not all of them are.
"""

from collections.abc import Mapping, Sequence
import copy
from dataclasses import dataclass, field, replace
from typing import Any

from idql_ros import message as messages
from idql_ros import recorded
from idql_ros.observer import Observer
from idql_ros.spec import Command, Spec
import numpy as np
from training import alignment
from training.storage import Bag

# Numbers of a message may be less precise than what was written.
_MESSAGE_TOLERANCE = 1e-5
_LEAST_SLACK_NS = messages.NS // 10


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


@dataclass(frozen=True)
class Sent:
    """What became of an action."""

    tick_ns: int
    log_ns: int
    published: bool
    sent: np.ndarray  # (A,)


def check_commands(
        bag: Bag, spec: Spec, node: str, passed: Sequence[Sent]) -> list[Commands]:
    """Look up in the bag what the guard of a node let through.

    Args:
        bag: The open bag.
        spec: Of the node's policy.
        node: '/namespace/name'.
        passed: The actions that were not refused.
    """
    results = []
    position = 0
    for command in spec.actions:
        part = slice(position, position + command.size)
        position += command.size
        topic = recorded.full_name(command.topic, node)
        results.append(Commands(topic, alignment.key(topic) in bag.topics))
        if results[-1].there:
            _check_command(bag, spec, command, results[-1], [
                replace(action, sent=action.sent[part]) for action in passed])
    return results


def _check_command(
        bag: Bag, spec: Spec, command: Command, result: Commands, passed: Sequence[Sent],
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


@dataclass
class Observations:
    """How many observations are made again from the sensors' messages, or why none were."""

    made_again: int = 0
    why_not: str = ''


def observe(
        bag: Bag, spec: Spec, node: str, ticks: Mapping[int, set[bytes]]) -> Observations:
    """Count the recorded observations that the bag's own messages give again.

    Args:
        bag: The open bag.
        spec: Of the node's policy.
        node: '/namespace/name'.
        ticks: Time of a tick (ns) -> the bytes of what was observed then.
    """
    names = {recorded.full_name(signal.topic, node): signal.topic
             for signal in spec.observations}
    missing = [name for name in names if alignment.key(name) not in bag.topics]
    if spec.tick != 'arrival':
        return Observations(why_not="a timer's ticks lie between the messages")
    if missing:
        return Observations(why_not=f'not in the bag: {", ".join(missing)}')
    keys = {alignment.key(name): topic for name, topic in names.items()}
    read = {*keys, 'clock'} if spec.clock == 'header' and 'clock' in bag.topics else set(keys)
    logged = ((alignment.key(keys.get(topic, topic)), log_ns, message)
              for topic, log_ns, message in bag.messages(read))
    of_key = {alignment.key(topic): topic for topic in names.values()}
    observer, result = Observer(spec), Observations()
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
            result.made_again += (
                observation is not None and observation.tobytes() in ticks.get(tick_ns, ()))
    return result
