"""How near a policy's actions are to those that were recorded at the same observations."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
import warnings

from idql_ros.policy import Policy
import numpy as np
from tqdm import tqdm
from training.bag_summary import label
from training.datasets import DatasetError, load

# Recorded decisions that are looked at, at most.
COMPARED = 2000
# Observations in an inference.
_BATCH = 50
# The shares of the decisions of which the distance is told that so many are within.
_SHARES = np.linspace(0, 1, 41)


@dataclass(frozen=True)
class Recorded:
    """Recorded decisions, drawn from all of a dataset."""

    dataset: str
    same: bool | None  # whether it is what the policy was trained on; None: that is not known
    decisions: int  # of the dataset
    observations: np.ndarray  # (n, O) float32
    actions: np.ndarray  # (n, A)
    mean_action: np.ndarray  # (A,) of all decisions of the dataset


def read(dataset: str, root: Path | None, policy: Policy) -> Recorded:
    """Read recorded decisions.

    Args:
        dataset: As training takes it, see `datasets.load`.
        root: Likewise.
        policy: Whose decisions they will be compared with.

    Raises:
        DatasetError: There is none, or it is of another robot.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # nothing is learned from it
        found, _ = load(dataset, root)
    expected = policy.spec.observation_size, policy.spec.action_size
    sizes = found.observations.shape[1], found.actions.shape[1]
    if sizes != expected:
        raise DatasetError(
            f'dataset {dataset}: expected {expected[0]} observations and {expected[1]} actions as '
            f'{policy.path} has, found {sizes[0]} and {sizes[1]}')
    count = len(found.actions)
    rows = np.sort(np.random.default_rng(0).choice(count, min(count, COMPARED), replace=False))
    known = policy.provenance.get('dataset_hash')
    return Recorded(
        Path(dataset).name if dataset.endswith('.hdf5') else dataset,
        None if known is None else known == found.content_hash(), count,
        found.observations[rows], found.actions[rows], found.actions.mean(0, np.float64))


def compare(
    policy: Policy, recorded: Recorded, seed: int, candidates: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return how far actions are from the recorded ones, in each dimension.

    Args:
        policy: The file.
        recorded: What was done.
        seed: Of the noise.
        candidates: N.
        settings: How a candidate is chosen: keywords of `Policy.decide_batch`.

    Returns:
        Plain data. Each of 'dimensions' has name, unit, and of the chosen action ('chosen'), the
        first candidate ('sample') and the mean of all recorded actions ('mean') the mean distance
        and 'quantiles' of it at the 'shares'.
    """
    rows = range(len(recorded.actions))
    decisions = []
    with tqdm(total=len(rows), desc='agreement', unit='decision', dynamic_ncols=True) as bar:
        for first in rows[::_BATCH]:
            part = rows[first:first + _BATCH]
            decisions += policy.decide_batch(
                recorded.observations[first:first + _BATCH], part, seed, candidates, **settings)
            bar.update(len(part))
    distances = {
        'chosen': np.abs(np.stack([d.action for d in decisions]) - recorded.actions),
        # Candidates are alike before one is chosen.
        'sample': np.abs(np.stack([d.candidates[0] for d in decisions]) - recorded.actions),
        'mean': np.abs(recorded.mean_action - recorded.actions),
    }
    streams = [(stream, i) for stream in policy.spec.actions for i in range(stream.size)]
    return {
        'dataset': recorded.dataset, 'same': recorded.same, 'decisions': recorded.decisions,
        'compared': len(rows), 'shares': _SHARES,
        'dimensions': [
            {'name': label(stream, i), 'unit': stream.dimensions[i].unit, **{
                key: {'mean': values[:, column].mean(),
                      'quantiles': np.quantile(values[:, column], _SHARES)}
                for key, values in distances.items()}}
            for column, (stream, i) in enumerate(streams)]}
