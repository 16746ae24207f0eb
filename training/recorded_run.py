"""What the bag of a recorded run holds: a node's decisions, and which policy files made them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
import hashlib
import json
from pathlib import Path
import re

from idql_ros import decision_record, recorded, vetting
from idql_ros.decision_record import DecisionRecord
from idql_ros.policy import MAX_CANDIDATES, METADATA_KEY, Policy, PolicyError, read_file
import numpy as np
import onnx
from training import alignment
from training.bag_error import BagError
from training.storage import Bag
from training.wording import listed

_DECISION_TYPE = 'std_msgs/msg/Float64MultiArray'
_DIAGNOSTICS_TYPE = 'diagnostic_msgs/msg/DiagnosticArray'


class ReplayError(BagError):
    """A bag or policy file that cannot be used for a replay; one line that is safe to print."""


@dataclass(frozen=True)
class Opened:
    """A policy file, opened as the node opens it."""

    policy: Policy
    # (A,) physical units in one network unit.
    action_scale: np.ndarray


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
        self._opened: dict[tuple[str, int], Opened] = {}

    def of(self, digest: str, candidates: int) -> Opened:
        """Return the file whose SHA-256 begins so, checked for this many candidates.

        Raises:
            ReplayError: No file was given that does, and the bag names none.
            PolicyError: It is no policy file.
        """
        if (digest, candidates) not in self._opened:
            self._opened[digest, candidates] = self._open(self._find(digest), candidates)
        return self._opened[digest, candidates]

    @property
    def used(self) -> list[Policy]:
        """Return those that were asked for."""
        files = {digest: opened.policy for (digest, _), opened in self._opened.items()}
        return list(files.values())

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

    def _open(self, path: Path, candidates: int) -> Opened:
        # As the node does: checked in a process of its own, and run as the graph that left it.
        vetted = vetting.vet(path, threads=self._threads, candidates=[candidates])
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
