"""What a policy file tells of its training data, for the value guard to compare with.

A run keeps a sample of its observations in the checkpoint (`summarise`), because the dataset is
not at hand at export; the export asks the policy file itself what it does on them
(`propose_ranges`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from idql_ros.budget import LADDER
from idql_ros.familiarity import Familiarity, MAX_PROTOTYPES, NAMES_OF_N, Ranges, UsualValues
from idql_ros.policy import Decision, Policy
import numpy as np
import torch
from torch import Tensor

# Observations that the values' ranges are taken from, at most, and those that prototypes are
# chosen from; no observation is both.
CALIBRATION = 4096
POOL = 2**15
# Numbers in all prototypes together, at most: a policy file stays small beside its network.
PROTOTYPE_NUMBERS = 2**17
# Candidates drawn for the ranges altogether, as long as so few observations leave percentiles.
CANDIDATES = 2**16
LEAST_OBSERVATIONS = 200

# Of the training observations' values, the percentiles between which they are as expected.
PERCENTILES = (0.5, 99.5)
DISTANCE_PERCENTILE = 99.9


def summarise(*parts: np.ndarray) -> dict[str, Tensor]:
    """Return what a checkpoint keeps of its observations.

    The prototypes are chosen farthest first (Gonzalez, Clustering to minimize the maximum
    intercluster distance, 1985): each is the observation that is farthest from those before it,
    so that rare regions have theirs.

    Args:
        *parts: Observations (M, O) float32 in physical units, one row in all of them together at
            least; each part has the same share, as far as it goes.

    Returns:
        'calibration' (C, O) and 'prototypes' (P, O), float32, rows of the parts, and 'scale' (O,)
        float64, the spread of each dimension.
    """
    generator = np.random.default_rng(0)
    share = (CALIBRATION + POOL) // len(parts)
    drawn = generator.permutation(np.concatenate([
        part[generator.choice(len(part), min(len(part), share), replace=False)]
        for part in parts]))
    held_out = max(1, min(CALIBRATION, len(drawn) // 2))
    pool = drawn[min(held_out, len(drawn) - 1):]  # of a single observation, both
    mean, scale = pool.mean(0, np.float64), pool.std(0, np.float64)
    # What never moved is a constant but for rounding; from there a thousandth of its magnitude (or
    # of its unit, around 0) counts as one spread: where it moves on the robot, that is far away.
    magnitude = np.maximum(1, np.abs(mean))
    scale = np.where(scale < 1e-6 * magnitude, 1e-3 * magnitude, scale)
    count = max(1, min(MAX_PROTOTYPES, PROTOTYPE_NUMBERS // pool.shape[1]))
    chosen = _farthest_first(((pool - mean) / scale).astype(np.float32), count)
    return {
        'calibration': torch.from_numpy(drawn[:held_out]),
        'prototypes': torch.from_numpy(pool[chosen]),
        'scale': torch.from_numpy(scale),
    }


def _farthest_first(points: np.ndarray, count: int) -> list[int]:
    """Return the rows of points (M, O) to choose, at most so many; no two are equal."""
    chosen: list[int] = []
    nearest = np.full(len(points), np.inf, np.float32)
    while len(chosen) < count and nearest.max() > 0:
        chosen.append(int(nearest.argmax()))
        np.minimum(nearest, np.square(points - points[chosen[-1]]).sum(1), out=nearest)
    return chosen


def propose_ranges(policy: Policy, statistics: Mapping[str, Tensor]) -> UsualValues:
    """Return between which values a policy is as on its training data.

    Args:
        policy: The policy file, as the robot runs it: greedy, with its own N and with those that
            a deadline may bring about.
        statistics: As `summarise` returned them.
    """
    observations = statistics['calibration'].numpy()
    rows = max(LEAST_OBSERVATIONS, CANDIDATES // policy.candidates)
    decisions = policy.decide_batch(
        observations[:rows], range(len(observations[:rows])), 0, policy.candidates)
    familiarity = Familiarity(statistics['prototypes'].numpy(), statistics['scale'].numpy())
    distances = [familiarity.distance(observation) for observation in observations]
    fewer = sorted({1, *(n for n in LADDER if n < policy.candidates), policy.candidates})
    return UsualValues(
        (0.0, float(np.percentile(distances, DISTANCE_PERCENTILE))),
        {n: _between([_best_of_first(n, decision) for decision in decisions]) for n in fewer})


def _best_of_first(candidates: int, decision: Decision) -> Decision:
    """Return what is decided of a decision's first candidates: N draws are n draws and more."""
    q = decision.candidate_q[:candidates]
    best = int(np.argmax(q))
    return replace(decision, action=decision.candidates[best], q=float(q[best]),
                   candidates=decision.candidates[:candidates], candidate_q=q)


def _between(decisions: Sequence[Decision]) -> Ranges:
    values = [decision.values for decision in decisions]
    ranges = {}
    for name in NAMES_OF_N:
        low, high = np.percentile([value[name] for value in values], PERCENTILES)
        ranges[name] = (float(low), float(high))
    return ranges
