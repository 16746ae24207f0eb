"""A decision as labelled numbers: all that it takes to compute it again, and what became of it.

The node publishes one for each decision on ~/decision (std_msgs/Float64MultiArray; each dimension
of the layout is a label with the count of its numbers); `training.replay` reads them from a bag.
Every integer is below 2^53, so that float64 holds it exactly.
"""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

from idql_ros.policy import Extraction
import numpy as np

EXTRACTIONS = get_args(Extraction)
_HALF = 2**32
_DIGEST_DIGITS = 12


class RecordError(ValueError):
    """Numbers that are no record of a decision; the text says what was expected and found."""


@dataclasses.dataclass(frozen=True)
class DecisionRecord:
    """What a decision was made from, what it gave, and what was sent."""

    tick_ns: int
    seed: int
    candidates: int
    # First digits of the policy file's SHA-256, in hex.
    digest: str
    extraction: Extraction
    softmax_temperature: float
    sampling_temperature: float
    q: float
    v: float
    q_mean: float
    q_spread: float
    distance: float
    # Whether the action left on the topics of the commands: not refused, and no dry run.
    published: bool
    observation: np.ndarray  # (O,) float32
    action: np.ndarray  # (A,) float32, as the policy chose it
    sent: np.ndarray  # (A,) float32, what the guard made of it; NaN where it refused it


def short_digest(digest: str) -> str:
    """Return what a record keeps of a SHA-256 in hex."""
    return digest[:_DIGEST_DIGITS]


def pack(record: DecisionRecord) -> tuple[list[tuple[str, int]], np.ndarray]:
    """Return the labels with the count of their numbers, and the numbers (float64)."""
    parts = {
        'tick_s_ns': divmod(record.tick_ns, 10**9),
        'seed_high_low': divmod(record.seed, _HALF),
        'candidates': [record.candidates],
        'policy': [int(record.digest, 16)],
        'extraction': [EXTRACTIONS.index(record.extraction)],
        'softmax_temperature': [record.softmax_temperature],
        'sampling_temperature': [record.sampling_temperature],
        'q': [record.q], 'v': [record.v], 'q_mean': [record.q_mean],
        'q_spread': [record.q_spread], 'distance': [record.distance],
        'published': [record.published],
        'observation': record.observation, 'action': record.action, 'sent': record.sent,
    }
    return ([(label, len(values)) for label, values in parts.items()],
            np.concatenate([np.asarray(values, np.float64) for values in parts.values()]))


def unpack(labels: list[tuple[str, int]], data: Any) -> DecisionRecord:
    """Return the record that `pack` made into labels and numbers.

    Raises:
        RecordError: They are of no record.
    """
    data = np.asarray(data, np.float64)
    if sum(size for _, size in labels) != len(data) or any(size < 0 for _, size in labels):
        raise RecordError(
            f'expected as many numbers as the layout says, found {len(data)} for {labels}')
    ends = np.cumsum([size for _, size in labels])[:-1]
    parts = dict(zip([label for label, _ in labels], np.split(data, ends), strict=True))

    def take(label: str, size: int) -> list[float]:
        found = parts.pop(label, None)
        if found is None or len(found) != size:
            raise RecordError(f'{label}: expected {size} numbers, found '
                              f'{"none" if found is None else len(found)}')
        return found.tolist()

    def whole(label: str, limits: tuple[int, ...]) -> list[int]:
        found = take(label, len(limits))
        for value, limit in zip(found, limits, strict=True):
            if not (value.is_integer() and 0 <= value < limit):
                raise RecordError(
                    f'{label}: expected whole numbers from 0 to {limit - 1}, found {value}')
        return [int(value) for value in found]

    seconds, nanoseconds = whole('tick_s_ns', (2**34, 10**9))
    high, low = whole('seed_high_low', (_HALF, _HALF))
    (candidates,), (policy,) = whole('candidates', (2**53,)), whole(
        'policy', (16**_DIGEST_DIGITS,))
    (extraction,), (published,) = whole('extraction', (len(EXTRACTIONS),)), whole(
        'published', (2,))
    numbers = {label: take(label, 1)[0] for label in (
        'softmax_temperature', 'sampling_temperature', 'q', 'v', 'q_mean', 'q_spread',
        'distance')}
    vectors = {label: parts.pop(label, np.zeros(0)).astype(np.float32)
               for label in ('observation', 'action', 'sent')}
    if parts:
        raise RecordError(f'expected no other labels, found {", ".join(parts)}')
    return DecisionRecord(
        tick_ns=seconds * 10**9 + nanoseconds, seed=high * _HALF + low, candidates=candidates,
        digest=f'{policy:0{_DIGEST_DIGITS}x}', extraction=EXTRACTIONS[extraction],
        published=bool(published), **numbers, **vectors)
