"""Where the candidates of a decision lie in space, and how they are coloured. Pure: no ROS.

Places are in the units of the messages: what the operations of the spec scaled and shifted for the
policy is undone.
"""

from __future__ import annotations

from collections.abc import Sequence

from idql_ros import message as messages
from idql_ros.spec import Signal, Spec, Stream
import numpy as np

_WORST, _BEST = np.array([0.2, 0.3, 0.9, 0.5]), np.array([1.0, 0.6, 0.1, 1.0])


def why_nowhere(spec: Spec) -> str:
    """Return why candidates cannot be drawn: what of the spec was expected and found; else ''."""
    space = spec.space
    if space is None:
        return ('expected the key space in the spec, which says what the action means in space, '
                'found none')
    for key, streams, indices in (('origin', spec.observations, space.origin),
                                  ('action', spec.actions, space.action)):
        for index in indices:
            stream, _, place = _where(streams, index)
            # An angle is no coordinate; what stands before a quaternion stays what it is.
            if not all(operation.name in ('scale', 'offset')
                       or operation.first is not None and place < operation.first
                       for operation in stream.operations):
                return (f'expected space.{key} to name numbers that the operations of the spec '
                        f'only scale and shift, found {index}, number {place} of {stream.name}')
    return ''


def origin(spec: Spec, observation: np.ndarray) -> np.ndarray:
    """Return where the actions of an observation (O,) begin, (3,)."""
    return _in_space(_told(spec.observations, observation, spec.space.origin))


def points(spec: Spec, observation: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Return where actions (N, A) lead, (N, 3), given an observation (O,)."""
    told = np.array([_told(spec.actions, action, spec.space.action) for action in actions])
    return origin(spec, observation) + spec.space.scale * _in_space(told)


def reach(spec: Spec) -> float:
    """Return how far an action leads along an axis at most: by it the drawn things get a size."""
    lower, upper = (
        _told(spec.actions, np.array([getattr(d, side) for d in spec.dimensions]),
              spec.space.action)
        for side in ('lower', 'upper'))
    return float(abs(spec.space.scale) * 0.5 * np.max(np.abs(upper - lower)))


def colours(q: np.ndarray) -> np.ndarray:
    """Return red, green, blue, alpha (N, 4) from the lowest to the highest Q (N,)."""
    extent = np.ptp(q)
    share = (q - q.min()) / extent if extent > 0 else np.ones_like(q)
    return _WORST + share[:, None] * (_BEST - _WORST)


def _told(streams: Sequence[Stream], values: np.ndarray, indices: Sequence[int]) -> np.ndarray:
    """Return the numbers at `indices` of `values` (n,) as the messages have them, (P,)."""
    return np.array([
        messages.invert(stream, values[frame:frame + stream.size])[place]
        for stream, frame, place in (_where(streams, index) for index in indices)])


def _where(streams: Sequence[Stream], index: int) -> tuple[Stream, int, int]:
    """Return the stream of a number, where the frame that holds it begins, and its place there."""
    begin = 0
    for stream in streams:
        width = stream.width if isinstance(stream, Signal) else stream.size
        if index < begin + width:
            break
        begin += width
    frame, place = divmod(index - begin, stream.size)
    return stream, begin + frame * stream.size, place


def _in_space(values: np.ndarray) -> np.ndarray:
    """Fill up the last axis to three coordinates."""
    whole = np.zeros((*values.shape[:-1], 3))
    whole[..., :values.shape[-1]] = values
    return whole
