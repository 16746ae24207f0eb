"""Recorded episodes as Minari datasets, and Minari datasets as transitions to learn from.

All numbers are in physical units. Layout of one episode of n steps, and of its transitions:

    observations   o0  o1  o2 ... on        (n + 1 rows)
    actions          a0  a1 ... a(n-1)      (n rows)
    rewards          r0  r1 ... r(n-1)
    transition t   = (o_t, a_t, r_t, mask_t, o_t+1)

mask_t is 0 only where the episode truly ended; where a recording was cut it stays 1.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
import hashlib
import json
import os
from pathlib import Path
import shutil
import tempfile
import warnings

from gymnasium import spaces
import minari
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_dataset import parse_dataset_id
from minari.storage.datasets_root_dir import get_dataset_path
import numpy as np

# Our entries in a Minari dataset's metadata.json start with this, so they meet none of Minari's.
METADATA_PREFIX = 'idql_ros_'
SPEC_KEY = 'spec'


class DatasetError(ValueError):
    """A dataset cannot be written, read or learned from."""


@dataclass(frozen=True)
class Episode:
    """One recorded episode of n steps, in physical units."""

    observations: np.ndarray  # (n + 1, O) float32
    actions: np.ndarray  # (n, A) float32
    rewards: np.ndarray  # (n,)
    terminated: bool  # the last step reached a true terminal
    truncated: bool  # the episode was cut there


@dataclass(frozen=True)
class Dataset:
    """M transitions, in physical units."""

    observations: np.ndarray  # (M, O) float32
    actions: np.ndarray  # (M, A) float32
    rewards: np.ndarray  # (M,) float32
    masks: np.ndarray  # (M,) float32, 0 only at a true terminal
    next_observations: np.ndarray  # (M, O) float32
    episodes: np.ndarray  # (M,) int64, the episode of each transition

    def content_hash(self) -> str:
        """Return a SHA-256 over all arrays: equal numbers, equal hash, wherever they lie."""
        digest = hashlib.sha256()
        for array in vars(self).values():
            digest.update(repr((array.dtype.str, array.shape)).encode())
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()


def action_bounds(spec: dict) -> tuple[np.ndarray, np.ndarray]:
    """Return the limits of a spec's action, all its streams in order.

    Args:
        spec: The spec as parsed JSON; spec['actions'] is a list of streams, each with
            'dimensions', each with 'lower' and 'upper' in physical units.

    Returns:
        lower (A,) and upper (A,), float64.

    Raises:
        DatasetError: The limits are absent or not in order.
    """
    try:
        dimensions = [d for stream in spec['actions'] for d in stream['dimensions']]
        lower = np.array([float(d['lower']) for d in dimensions])
        upper = np.array([float(d['upper']) for d in dimensions])
    except (KeyError, TypeError) as error:
        raise DatasetError(
            'spec: expected actions: [{dimensions: [{lower, upper}, ...]}, ...], '
            f'found none at {error}; look at the spec JSON stored with the dataset'
        ) from error
    if not (lower < upper).all():
        raise DatasetError(
            f'spec: expected lower < upper in every action dimension, found lower '
            f'{lower.tolist()}, upper {upper.tolist()}; look at actions in the spec'
        )
    return lower, upper


def check_dataset_id(dataset_id: str) -> None:
    """Raise DatasetError where Minari would not take a dataset's id."""
    try:
        parse_dataset_id(dataset_id)
    except (TypeError, ValueError) as error:  # Minari's own check fails on some
        raise DatasetError(
            f"dataset id: expected '[namespace/]name-v0', found {dataset_id!r}") from error


def write_minari(
    episodes: Sequence[Episode],
    dataset_id: str,
    root: Path | str,
    metadata: dict[str, str],
    spec_json: str,
    overwrite: bool = False,
) -> Path:
    """Write episodes as a Minari dataset that `minari.load_dataset(dataset_id)` reads.

    The dataset is complete under a hidden temporary folder before it gets its name.

    Args:
        episodes: One or more episodes, all with the same O and A.
        dataset_id: '[namespace/]name-v0'.
        root: The folder of datasets (MINARI_DATASETS_PATH when loading with Minari).
        metadata: Stored with the dataset, read back by `load_minari`.
        spec_json: The spec as JSON, stored likewise, character by character.
        overwrite: Replace a dataset of the same id.

    Returns:
        The dataset's folder, root / dataset_id.

    Raises:
        DatasetError: The episodes are unfit, the id is malformed or taken.
    """
    check_dataset_id(dataset_id)
    if SPEC_KEY in metadata:
        raise DatasetError(f'metadata: {SPEC_KEY!r} is the spec; pass it as spec_json')
    root = Path(root).expanduser().resolve()
    target = root / dataset_id
    if target.exists() and not overwrite:
        raise DatasetError(f'{target} exists; choose another id or allow overwriting')
    _check(episodes)
    lower, upper = action_bounds(json.loads(spec_json))
    observation_size = episodes[0].observations.shape[1]
    root.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix='.writing-', dir=root))
    try:
        with _minari_root(temporary), warnings.catch_warnings():
            # Minari asks for author, environment and so on; a bag has none of them.
            warnings.simplefilter('ignore', UserWarning)
            dataset = minari.create_dataset_from_buffers(
                dataset_id,
                [_buffer(episode) for episode in episodes],
                observation_space=spaces.Box(-np.inf, np.inf, (observation_size,), np.float32),
                action_space=spaces.Box(lower.astype(np.float32), upper.astype(np.float32)),
            )
        dataset.storage.update_metadata(
            {METADATA_PREFIX + key: value for key, value in metadata.items()}
            | {METADATA_PREFIX + SPEC_KEY: spec_json}
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            target.rename(temporary / 'replaced')
        (temporary / dataset_id).rename(target)
    finally:
        shutil.rmtree(temporary)
    return target


def load_minari(dataset_id: str, root: Path | str | None = None) -> tuple[Dataset, dict[str, str]]:
    """Read a Minari dataset with flat (Box) observations and actions.

    Args:
        dataset_id: '[namespace/]name-v0'.
        root: The folder of datasets; None: where Minari looks, MINARI_DATASETS_PATH or
            ~/.minari/datasets.

    Returns:
        The transitions, and the metadata given to `write_minari`, the spec JSON under 'spec'
        (both absent from a dataset written by others).

    Raises:
        DatasetError: There is no such dataset, or it cannot be learned from.
    """
    folder = get_dataset_path(dataset_id) if root is None else Path(root).expanduser() / dataset_id
    if not (folder / 'data').is_dir():
        raise DatasetError(
            f'dataset {dataset_id!r}: expected a Minari dataset at {folder}, found none; '
            'look at the id, the root and MINARI_DATASETS_PATH'
        )
    stored = minari.MinariDataset(folder / 'data')
    for name, space in (
        ('observation', stored.observation_space), ('action', stored.action_space)
    ):
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise DatasetError(
                f'dataset {dataset_id!r}: expected a flat Box {name} space, found {space}'
            )
    parts = []
    for number, episode in enumerate(stored.iterate_episodes()):
        where = f'dataset {dataset_id!r}, episode {number}'
        _check_arrays(episode.observations, episode.actions, episode.rewards, where)
        parts.append((
            episode.observations[:-1],
            episode.actions,
            episode.rewards,
            1 - np.asarray(episode.terminations, np.float32),
            episode.observations[1:],
            np.full(len(episode.rewards), number),
        ))
    if not parts:
        raise DatasetError(f'dataset {dataset_id!r}: expected episodes, found none in {folder}')
    *columns, numbers = (np.concatenate(column) for column in zip(*parts, strict=True))
    dataset = Dataset(*(c.astype(np.float32) for c in columns), numbers.astype(np.int64))
    if (dataset.rewards == dataset.rewards[0]).all():
        warnings.warn(
            f'dataset {dataset_id!r}: every reward is {dataset.rewards[0]}; there is nothing to '
            'prefer, the policy will imitate. Look at the task given at conversion.',
            stacklevel=2,
        )
    return dataset, {
        key.removeprefix(METADATA_PREFIX): value
        for key, value in stored.storage.metadata.items()
        if key.startswith(METADATA_PREFIX)
    }


@contextmanager
def _minari_root(root: Path) -> Iterator[None]:
    """Point Minari at another root; an environment variable is the only way it offers."""
    before = os.environ.get('MINARI_DATASETS_PATH')
    os.environ['MINARI_DATASETS_PATH'] = str(root)
    try:
        yield
    finally:
        if before is None:
            del os.environ['MINARI_DATASETS_PATH']
        else:
            os.environ['MINARI_DATASETS_PATH'] = before


def _buffer(episode: Episode) -> EpisodeBuffer:
    """Return an episode as Minari wants it: flags per step, the last one telling the end."""
    before = [False] * (len(episode.rewards) - 1)
    return EpisodeBuffer(
        observations=np.asarray(episode.observations, np.float32),
        actions=np.asarray(episode.actions, np.float32),
        rewards=np.asarray(episode.rewards, np.float32),
        terminations=[*before, bool(episode.terminated)],
        truncations=[*before, bool(episode.truncated)],
    )


def _check(episodes: Sequence[Episode]) -> None:
    """Raise DatasetError unless the episodes make one dataset."""
    if not episodes:
        raise DatasetError('episodes: expected one or more, found none')
    first = episodes[0]
    for number, episode in enumerate(episodes):
        where = f'episode {number}'
        _check_arrays(episode.observations, episode.actions, episode.rewards, where)
        for name in ('observations', 'actions'):
            expected, found = getattr(first, name).shape[1], getattr(episode, name).shape[1]
            if found != expected:
                raise DatasetError(
                    f'{where}: expected {name} of size {expected} as in episode 0, found {found}'
                )


def _check_arrays(
    observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray, where: str
) -> None:
    """Raise DatasetError unless the arrays make one episode of finite numbers."""
    steps = len(rewards)
    if steps == 0:
        raise DatasetError(f'{where}: expected one or more steps, found none')
    for name, array, rows, axes in (
        ('observations', observations, steps + 1, 2),
        ('actions', actions, steps, 2),
        ('rewards', rewards, steps, 1),
    ):
        if array.ndim != axes or len(array) != rows:
            raise DatasetError(
                f'{where}: expected {rows} rows and {axes} axes of {name} for {steps} rewards, '
                f'found shape {array.shape}'
            )
        if not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array))[0, 0])
            raise DatasetError(
                f'{where}: expected finite {name}, found {array[row]} at step {row}'
            )
