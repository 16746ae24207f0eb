"""Recorded episodes as Minari datasets, and datasets as transitions to learn from.

`load` reads Minari datasets, D4RL's HDF5 files and OGBench's npz files. All numbers are in
physical units. Layout of one episode of n steps, and of its transitions:

    observations   o0  o1  o2 ... on        (n + 1 rows)
    actions          a0  a1 ... a(n-1)      (n rows)
    rewards          r0  r1 ... r(n-1)
    transition t   = (o_t, a_t, r_t, mask_t, o_t+1)

mask_t is 0 only where the episode truly ended; where a recording was cut it stays 1.

Beside what Minari knows, an episode keeps what was observed between its ticks, what the bag's
topics said of it and whether it goes on from the one before it: all that other rewards and ends
are made from (`training.relabel`). Minari passes over these.
"""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
from dataclasses import dataclass, field, fields
import errno
import hashlib
import itertools
import json
import os
from pathlib import Path
import shutil
from types import TracebackType
from typing import Any, Literal
import warnings
import zipfile

from gymnasium import spaces
import h5py
import minari
from minari.dataset.minari_dataset import parse_dataset_id
from minari.dataset.minari_storage import MinariStorage
from minari.storage.datasets_root_dir import get_dataset_path
import numpy as np
from training.rewards import Steps, Task

# Our entries in a Minari dataset's metadata.json start with this, so they meet none of Minari's.
METADATA_PREFIX = 'idql_ros_'
# What `load` tells beside the transitions: the spec as JSON, or, where there is none, the limits
# of the action as JSON [[lower, ...], [upper, ...]], where those are known.
SPEC_KEY = 'spec'
LIMITS_KEY = 'action_limits'
# In the metadata of a dataset whose episodes keep what was observed between their ticks.
BETWEEN_KEY = 'between'
# Minari's name of the file with the episodes, in its layout: a group 'episode_K' for each.
EPISODES_FILE = 'main_data.hdf5'
_CONTINUES = METADATA_PREFIX + 'continues'
_BETWEEN, _COUNTS = METADATA_PREFIX + 'between', METADATA_PREFIX + 'counts'
_TOPICS = {kind: f'{METADATA_PREFIX}topic_{kind}' for kind in ('reward', 'terminal')}
# In a file of D4RL v2; next_observations are there or not.
D4RL_ARRAYS = ('observations', 'actions', 'rewards', 'terminals', 'timeouts')
# Beside what the arrays of an episode take: for HDF5's own records of them.
_MARGIN = 2**20
# Where the ogbench package keeps its files.
OGBENCH_ROOT = '~/.ogbench/data'


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
    # What was observed strictly between two ticks, oldest first (M, O) float32, and how many rows
    # of it belong to each step (n,), sum M; both or neither.
    between: np.ndarray | None = None
    counts: np.ndarray | None = None
    # See Steps.
    topics: dict[str, np.ndarray] = field(default_factory=dict)
    # Whether the first observation is the last one of the episode before: that ended at a
    # terminal, or the stretch was cut there because it grew too long.
    continues: Literal['', 'terminal', 'length'] = ''


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

    def take(self, rows: np.ndarray) -> 'Dataset':
        """Return some of the transitions, given by numbers or by a mask (M,)."""
        return Dataset(*(getattr(self, field.name)[rows] for field in fields(self)))


def load(source: str, root: Path | str | None = None) -> tuple[Dataset, dict[str, str]]:
    """Read a dataset, of whichever kind its name says.

    Args:
        source: A name with 'singletask' in it, such as cube-single-play-singletask-task2-v0:
            OGBench's file cube-single-play-v0.npz, with the rewards of that task. A name that
            ends in .hdf5: a file in the layout of D4RL v2. Any other: the id of a Minari
            dataset, '[namespace/]name-v0'.
        root: The folder of datasets, or of the file; None: where Minari or ogbench look, or the
            current folder.

    Returns:
        The transitions, and what else is known: everything given to `write_minari`, the spec
        under 'spec' or the limits of the action under 'action_limits'.

    Raises:
        DatasetError: There is no such dataset, or it cannot be learned from.
    """
    if 'singletask' in source.split('-'):
        return load_ogbench(source, ogbench_file(source, root))
    if source.endswith('.hdf5'):
        return load_d4rl(Path(root or '.').expanduser() / Path(source).expanduser())
    stem = source.removesuffix('.npz')
    if stem != source or Path(root or OGBENCH_ROOT, f'{stem}.npz').expanduser().is_file():
        name = Path(stem).name.replace('-v0', '-singletask-v0')
        raise DatasetError(
            f'dataset {source!r}: an OGBench file has no rewards; expected the name with a task, '
            f'such as {name} for the default one, and the folder as root')
    return load_minari(source, root)


def load_validation(source: str, root: Path | str | None = None) -> Dataset | None:
    """Read the validation set that a dataset comes with; None where it has none.

    Args:
        source: As in `load`; of the three kinds, only OGBench's has such a set: the file beside
            the other, -val.npz.
        root: As in `load`.

    Raises:
        DatasetError: It cannot be read.
    """
    if 'singletask' not in source.split('-'):
        return None
    path = ogbench_file(source, root)
    path = path.with_name(f'{path.stem}-val.npz')
    if not path.exists():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # nothing is learned from it
        return load_ogbench(source, path)[0]


def split(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Return a dataset as two: training and validation, every episode whole in one of them.

    Args:
        dataset: Two episodes or more.
        fraction: Of the episodes, for validation; at least one.
        seed: Decides which.

    Raises:
        DatasetError: It cannot be split.
    """
    episodes = np.unique(dataset.episodes)
    number = max(1, round(fraction * len(episodes)))
    if number >= len(episodes):
        raise DatasetError(
            f'validation: expected more than {number} episodes to keep {number} of them for '
            f'validation, found {len(episodes)}'
        )
    chosen = np.random.default_rng(seed).choice(episodes, number, replace=False)
    kept = np.isin(dataset.episodes, chosen)
    return dataset.take(~kept), dataset.take(kept)


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
            "dataset id: expected '[namespace/]name-v0' of letters, digits, - and _, a namespace "
            f'of two or more, as Minari does, found {dataset_id!r}') from error


def episodes_of(
    steps: Steps, task: Task, continues: Literal['', 'length'] = ''
) -> Iterator[Episode]:
    """Judge a stretch and cut it at its terminals; what comes after one is an episode of its own.

    Args:
        steps: The stretch.
        task: Gives rewards and terminals.
        continues: 'length' where the stretch goes on from one that was cut for its length.

    Yields:
        Episodes with one step or more, each with its share of `between`; views, not copies.

    Raises:
        RewardError: The task and the stretch do not fit.
    """
    rewards, terminals = task.judge(steps)
    rows = np.concatenate([[0], np.cumsum(steps.counts)])
    start = 0
    for end in [*(np.flatnonzero(terminals) + 1), len(rewards)]:
        if end == start:  # the last step was a terminal
            return
        ended = bool(terminals[end - 1])
        yield Episode(
            observations=steps.observations[start:end + 1],
            actions=steps.actions[start:end],
            rewards=rewards[start:end],
            terminated=ended,
            truncated=not ended,
            between=steps.between[rows[start]:rows[end]],
            counts=steps.counts[start:end],
            topics={kind: values[start:end] for kind, values in steps.topics.items()},
            continues='terminal' if start else continues,
        )
        start = end


def write_minari(
    episodes: Iterable[Episode],
    dataset_id: str,
    root: Path | str,
    metadata: dict[str, str],
    spec_json: str,
    overwrite: bool = False,
    ref_min_score: float | None = None,
    ref_max_score: float | None = None,
) -> Path:
    """Write episodes as a Minari dataset that `minari.load_dataset(dataset_id)` reads.

    One episode is held at a time. The dataset is complete under a hidden temporary folder before
    it gets its name; one that it replaces stays until then. The temporary folder is always the
    same for an id: what a killed run left goes when the next one begins.

    Args:
        episodes: One or more episodes, all with the same O and A, and all or none with what was
            observed between their ticks.
        dataset_id: '[namespace/]name-v0'.
        root: The folder of datasets (MINARI_DATASETS_PATH when loading with Minari).
        metadata: Stored with the dataset, read back by `load_minari`.
        spec_json: The spec as JSON, stored likewise, character by character.
        overwrite: Replace a dataset of the same id.
        ref_min_score: The return that Minari's normalised score has at 0, and
        ref_max_score: the one it has at 1; both or neither.

    Returns:
        The dataset's folder, root / dataset_id.

    Raises:
        DatasetError: The episodes are unfit, the id is malformed or taken, or the disk is full
            or refuses; then nothing is left of it.
    """
    check_dataset_id(dataset_id)
    for key, instead in ((SPEC_KEY, 'the spec; pass it as spec_json'),
                         (BETWEEN_KEY, 'of the episodes')):
        if key in metadata:
            raise DatasetError(f'metadata: {key!r} is {instead}')
    root = Path(root).expanduser().resolve()
    target = root / dataset_id
    temporary = root / f'.writing-{dataset_id.replace("/", "__")}'
    replaced = temporary / '.replaced'  # no dataset's name
    with _refusals(target):
        _clear(temporary, replaced, target)
    if target.exists() and not overwrite:
        raise DatasetError(f'{target} exists; choose another id or allow overwriting')
    lower, upper = action_bounds(json.loads(spec_json))
    known = {METADATA_PREFIX + key: value for key, value in metadata.items()}
    known |= {METADATA_PREFIX + SPEC_KEY: spec_json, **_scores(ref_min_score, ref_max_score)}

    checked = _checked(episodes)
    first = next(checked, None)
    if first is None:
        raise DatasetError('episodes: expected one or more, found none')
    if first.between is not None:
        known[METADATA_PREFIX + BETWEEN_KEY] = 'stored'
    try:
        data = temporary / dataset_id / 'data'
        with _refusals(target):
            data.mkdir(parents=True)
            storage = MinariStorage.new(
                data,
                observation_space=spaces.Box(
                    -np.inf, np.inf, (first.observations.shape[1],), np.float32),
                action_space=spaces.Box(lower.astype(np.float32), upper.astype(np.float32)),
                data_format='hdf5',
            )
        checked = itertools.chain([first], checked)
        del first  # not held while the others come
        with _EpisodesFile(data / EPISODES_FILE, target) as file:
            steps = sum(file.append(episode) for episode in checked)
            known |= {'total_episodes': len(file), 'total_steps': steps}
        with _refusals(target):
            storage.update_metadata({
                'dataset_id': dataset_id, 'minari_version': minari.__version__,
                'dataset_size': storage.get_size(), **known})
            target.parent.mkdir(parents=True, exist_ok=True)
            _put(temporary / dataset_id, target, replaced)
    finally:
        with contextlib.suppress(OSError):  # the next run clears it
            _clear(temporary, replaced, target)
    return target


def _scores(low: float | None, high: float | None) -> dict[str, float]:
    """Return the reference scores as Minari names them."""
    if low is None and high is None:
        return {}
    if low is None or high is None or not -np.inf < low < high < np.inf:
        raise DatasetError(
            f'reference scores: expected the lower and the higher one, found {low} and {high}')
    return {'ref_min_score': float(low), 'ref_max_score': float(high)}


def _clear(temporary: Path, replaced: Path, target: Path) -> None:
    """Remove what a run left, but give a dataset its name back that had lost it to none."""
    if replaced.exists() and not target.exists():
        replaced.rename(target)
    if temporary.exists():
        shutil.rmtree(temporary)


def _put(folder: Path, target: Path, replaced: Path) -> None:
    """Give a folder its name; what has it goes to `replaced`, or stays where that fails."""
    if not target.exists():
        folder.rename(target)
        return
    target.rename(replaced)
    try:
        folder.rename(target)
    except BaseException:
        replaced.rename(target)
        raise


@contextlib.contextmanager
def _refusals(where: Path) -> Iterator[None]:
    """Raise what the disk, or h5py of it, refuses as a DatasetError."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(
            f'{where}: cannot be written: {" ".join(str(error).split())}') from error


class _EpisodesFile:
    """An HDF5 file of episodes that is being written, in Minari's layout.

    HDF5 keeps much of a file in memory until it is closed; where the disk is full by then it
    cannot close it, and the process crashes later. So each episode's room is taken from the disk
    before HDF5 is given the episode, and what was too much goes back in the end.
    """

    def __init__(
        self, path: Path, where: Path, packed: bool = True, advice: str = 'free space'
    ) -> None:
        """Take the file's path, what to name in errors, and what to advise on a full disk."""
        self._path, self._where, self._packed, self._advice = path, where, packed, advice

    def __enter__(self) -> '_EpisodesFile':
        """Begin the file."""
        with _refusals(self._where):
            # HDF5 could not even close a new file without room.
            with open(self._path, 'wb') as file:
                self._take_room(file.fileno(), 0, _MARGIN)
            self._file = h5py.File(self._path, 'w', track_order=True)
        return self

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self._file)

    def append(self, episode: Episode) -> int:
        """Append a checked episode and return its number of steps."""
        size = sum(array.nbytes for array in (
            *(value for value in vars(episode).values() if isinstance(value, np.ndarray)),
            *episode.topics.values()))
        with _refusals(self._where):
            self._take_room(
                # Chunks are filled up, to less than twice the size in all.
                self._file.id.get_vfd_handle(), self._file.id.get_filesize(), 2 * size + _MARGIN)
            return _append(self._file, episode, self._packed)

    def _take_room(self, file: int, start: int, size: int) -> None:
        """Take a file's next bytes from the disk, or raise DatasetError."""
        try:
            os.posix_fallocate(file, start, size)
        except OSError as error:
            # Some of it may have been taken before.
            free = shutil.disk_usage(self._path.parent).free + max(
                0, os.fstat(file).st_size - start)
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL) and free >= size:
                return  # a file system that takes no room in advance
            # Else it is above a quota, or above the greatest size of a file.
            found = (f'{free / 1e6:.1f} MB free' if error.errno == errno.ENOSPC
                     else f'the error {error.strerror!r}')
            raise DatasetError(
                f'{self._where}: expected room for {size / 1e6:.1f} MB more, found {found}; '
                f'{self._advice}') from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        place: TracebackType | None,
    ) -> None:
        """Close the file."""
        try:
            with _refusals(self._where):
                try:
                    self._file.flush()
                    size = self._file.id.get_filesize()
                finally:
                    self._file.close()
                os.truncate(self._path, size)
        except DatasetError:
            if kind is None:  # else the first error tells more
                raise


class ShardWriter:
    """A file of episodes on the way to a dataset: it gets its name when all of it is written.

    One process writes it, as `with ShardWriter(path) as shard: shard.add(episode)`; whoever
    makes the dataset of several reads them with `read_shard`. After an error there is no file.
    """

    def __init__(self, path: Path) -> None:
        """Take the file's path; its folder exists."""
        self._path = path
        self._temporary = path.with_name(f'.{path.name}.unfinished')
        self._file = _EpisodesFile(
            self._temporary, path, packed=False,  # it is read once, soon
            advice='free space, then go on with --resume')

    def __enter__(self) -> 'ShardWriter':
        """Begin the file."""
        try:
            self._file.__enter__()
        except BaseException:
            self._temporary.unlink(missing_ok=True)
            raise
        return self

    def add(self, episode: Episode) -> None:
        """Append an episode.

        Raises:
            DatasetError: It is unfit, or the disk is full or refuses.
        """
        self._file.append(_check(episode, f'{self._path.name}, episode {len(self._file)}'))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        place: TracebackType | None,
    ) -> None:
        """Give the file its name, or remove it after an error."""
        try:
            self._file.__exit__(kind, error, place)
            if kind is None:
                with _refusals(self._path):
                    os.replace(self._temporary, self._path)
        finally:
            self._temporary.unlink(missing_ok=True)


def read_shard(path: Path) -> Iterator[Episode]:
    """Yield the episodes of a file that a ShardWriter wrote, one held at a time.

    Raises:
        DatasetError: It cannot be read.
    """
    return _read_episodes(path, str(path))


def read_metadata(dataset_id: str, root: Path | str | None = None) -> dict[str, str]:
    """Return what was given to `write_minari` with a dataset, and the spec under 'spec'.

    Args:
        dataset_id: '[namespace/]name-v0'.
        root: The folder of datasets; None: where Minari looks.

    Raises:
        DatasetError: There is no such dataset.
    """
    data = data_folder(dataset_id, root)
    try:
        return _own_metadata(MinariStorage.read_raw_metadata(data))
    except (OSError, ValueError, AttributeError) as error:  # the last: JSON of another kind
        raise DatasetError(
            f'dataset {dataset_id!r}: its metadata cannot be read: {error}') from error


def read_episodes(dataset_id: str, root: Path | str | None = None) -> Iterator[Episode]:
    """Yield the episodes of a dataset that `write_minari` wrote, one held at a time.

    Args:
        dataset_id: '[namespace/]name-v0'.
        root: The folder of datasets; None: where Minari looks.

    Raises:
        DatasetError: There is no such dataset, or it cannot be read.
    """
    path = data_folder(dataset_id, root) / EPISODES_FILE
    return _read_episodes(path, f'dataset {dataset_id!r}')


def data_folder(dataset_id: str, root: Path | str | None = None) -> Path:
    """Return the folder of a Minari dataset's files; raise DatasetError where it is absent."""
    folder = get_dataset_path(dataset_id) if root is None else Path(root).expanduser() / dataset_id
    if not (folder / 'data').is_dir():
        raise DatasetError(
            f'dataset {dataset_id!r}: expected a Minari dataset at {folder}, found none; '
            'look at the id, the root and MINARI_DATASETS_PATH'
        )
    return folder / 'data'


def _own_metadata(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return our entries in Minari's metadata."""
    return {key.removeprefix(METADATA_PREFIX): value for key, value in metadata.items()
            if key.startswith(METADATA_PREFIX)}


def _append(file: h5py.File, episode: Episode, packed: bool = True) -> int:
    """Append a checked episode in Minari's layout and return its number of steps."""
    steps = len(episode.rewards)
    group = file.create_group(f'episode_{len(file)}')
    group.attrs['id'] = len(file) - 1
    group.attrs['total_steps'] = steps
    if episode.continues:
        group.attrs[_CONTINUES] = episode.continues
    last = np.arange(steps) == steps - 1
    for name, values in (
        ('observations', episode.observations), ('actions', episode.actions),
        ('rewards', episode.rewards), ('terminations', last & episode.terminated),
        ('truncations', last & episode.truncated),
    ):
        # Of a size that can grow, as Minari makes them.
        group.create_dataset(
            name, data=values, chunks=True, maxshape=(None, *values.shape[1:]))
    extras = {_TOPICS[kind]: values for kind, values in episode.topics.items()}
    if episode.between is not None:
        extras |= {_BETWEEN: episode.between, _COUNTS: episode.counts.astype(np.int32)}
    for name, values in extras.items():
        # Training does not read them. A few numbers take more room compressed than as they are.
        packing = {'compression': 'gzip', 'compression_opts': 1, 'shuffle': True}
        group.create_dataset(
            name, data=values, **(packing if packed and values.nbytes > 4096 else {}))
    return steps


def _read_episodes(path: Path, where: str) -> Iterator[Episode]:
    """Yield the episodes of a file, each checked."""
    try:
        file = h5py.File(path)
    except OSError as error:
        raise DatasetError(f'{where}: cannot be read: {" ".join(str(error).split())}') from error
    with file:
        try:
            count = len(file)
        except (OSError, RuntimeError) as error:
            raise DatasetError(
                f'{where}: cannot be read: {" ".join(str(error).split())}') from error
        for number in range(count):
            yield _read_episode(file, number, f'{where}, episode {number}')


def _read_episode(file: h5py.File, number: int, where: str) -> Episode:
    """Return an episode as it was written."""
    try:
        group = file[f'episode_{number}']
        arrays = {name: group[name][()] for name in group
                  if name in ('observations', 'actions', 'rewards', 'terminations', 'truncations',
                              _BETWEEN, _COUNTS, *_TOPICS.values())}
        found = Episode(
            observations=arrays['observations'], actions=arrays['actions'],
            rewards=arrays['rewards'], terminated=bool(arrays['terminations'][-1]),
            truncated=bool(arrays['truncations'][-1]), between=arrays.get(_BETWEEN),
            counts=arrays.get(_COUNTS),
            topics={kind: arrays[name] for kind, name in _TOPICS.items() if name in arrays},
            continues=group.attrs.get(_CONTINUES, ''))
    except (KeyError, IndexError, OSError, TypeError, ValueError, AttributeError,
            RuntimeError) as error:  # h5py raises any of them on a damaged file
        raise DatasetError(f'{where}: expected arrays as training.datasets writes them, found '
                           f'{" ".join(str(error).split())}') from error
    return _check(found, where)


def load_minari(dataset_id: str, root: Path | str | None = None) -> tuple[Dataset, dict[str, str]]:
    """Read a Minari dataset with flat (Box) actions.

    Observations are flat too, or dictionaries of flat ones. Those are put one after another in
    the order of their sorted keys, a dictionary within a dictionary at its place; the metadata
    says under 'observation_order' what came of it.

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
    where = f'dataset {dataset_id!r}'
    data = data_folder(dataset_id, root)
    stored = minari.MinariDataset(data)
    parts = _flat_parts(stored.observation_space, f'{where}: observation')
    if not isinstance(stored.action_space, spaces.Box) or len(stored.action_space.shape) != 1:
        raise DatasetError(
            f'{where}: expected a flat Box action space, found {stored.action_space}')
    columns: list[tuple[np.ndarray, ...]] = []
    for number, episode in enumerate(stored.iterate_episodes()):
        observations = _join(episode.observations, parts)
        observations, actions, rewards = _check_arrays(
            observations, episode.actions, episode.rewards, f'{where}, episode {number}')
        columns.append((
            observations[:-1],
            actions,
            rewards,
            1 - np.asarray(episode.terminations, np.float32),
            observations[1:],
            np.full(len(rewards), number, np.int64),
        ))
    if not columns:
        raise DatasetError(f'{where}: expected episodes, found none in {data}')
    dataset = Dataset(*(np.concatenate(column) for column in zip(*columns, strict=True)))
    _warn(dataset, where)
    metadata = _own_metadata(stored.storage.metadata)
    if () not in parts:
        metadata['observation_order'] = ', '.join(
            f'{"/".join(keys)} ({size})' for keys, size in parts.items())
    return dataset, metadata


def _flat_parts(space: spaces.Space, where: str) -> dict[tuple[str, ...], int]:
    """Return the flat spaces within a space: the keys that lead to each, and its size."""
    if isinstance(space, spaces.Dict) and space.spaces:
        return {
            (key, *keys): size
            for key in sorted(space.spaces)
            for keys, size in _flat_parts(space.spaces[key], f'{where} {key!r}').items()
        }
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise DatasetError(f'{where}: expected a flat Box space, found {space}')
    return {(): space.shape[0]}


def _join(values: Any, parts: Mapping[tuple[str, ...], int]) -> np.ndarray:
    """Return observations (n, O), from an array or a dictionary of them."""
    columns = []
    for keys in parts:
        column = values
        for key in keys:
            column = column[key]
        columns.append(np.asarray(column))
    return columns[0] if len(columns) == 1 else np.concatenate(columns, 1)


def load_d4rl(path: Path | str) -> tuple[Dataset, dict[str, str]]:
    """Read an HDF5 file in the layout of D4RL v2.

    One row a step: observations, actions, rewards, terminals (true ends), timeouts (cuts) and,
    where there are any, next_observations. Without them the next row's observation is the next
    one; the step at a cut has none and is left out, and at a true end none is needed.

    Args:
        path: The file.

    Returns:
        The transitions, and D4RL's limits of the action: -1 and 1.

    Raises:
        DatasetError: There is no such file, or it cannot be learned from.
    """
    path = Path(path)
    where = f'dataset {path}'
    if not path.is_file():
        raise DatasetError(f'{where}: expected a file, found none')
    try:
        with h5py.File(path) as file:
            found = {name: file[name][()]
                     for name in (*D4RL_ARRAYS, 'next_observations') if name in file}
    except (OSError, TypeError, AttributeError) as error:  # the last two: a group, not an array
        raise DatasetError(
            f'{where}: expected an HDF5 file of arrays, found {" ".join(str(error).split())}'
        ) from error
    missing = [name for name in D4RL_ARRAYS if name not in found]
    if missing:
        raise DatasetError(
            f'{where}: expected the arrays of D4RL v2, found no {", ".join(missing)}')
    observations, actions, rewards = _check_arrays(
        found['observations'], found['actions'], found['rewards'], where, final=0)
    terminals, timeouts = (
        _flags(found[name], name, len(rewards), where) for name in ('terminals', 'timeouts'))
    ended = terminals | timeouts
    if 'next_observations' in found:
        following = _check_following(found['next_observations'], observations, where)
        kept = np.ones(len(rewards), bool)
        # Where they were made by shifting, that of a cut belongs to another episode.
        kept[:-1] = ~timeouts[:-1] | (following[:-1] != observations[1:]).any(1)
    else:
        # At a true end nobody asks for the value of what follows: any numbers of this episode do.
        following = observations.copy()
        following[:-1][~ended[:-1]] = observations[1:][~ended[:-1]]
        kept = ~ended
        kept[-1] = False
    kept |= terminals
    numbers = np.cumsum(ended) - ended  # an end belongs to the episode that it ends
    dataset = Dataset(observations, actions, rewards, 1 - terminals.astype(np.float32), following,
                      numbers.astype(np.int64))
    if not kept.all():
        dataset = dataset.take(kept)
    if len(dataset.rewards) == 0:
        raise DatasetError(f'{where}: expected transitions, found episodes of one step only')
    # A recorded float32 may lie a rounding outside.
    if np.abs(dataset.actions).max() > 1 + 1e-4:
        raise DatasetError(
            f"{where}: expected actions in [-1, 1] as D4RL's environments take, found "
            f'{dataset.actions.min():.4g} to {dataset.actions.max():.4g}')
    _warn(dataset, where)
    size = dataset.actions.shape[1]
    return dataset, {'layout': 'D4RL v2', LIMITS_KEY: json.dumps([[-1.0] * size, [1.0] * size])}


def _flags(values: np.ndarray, name: str, rows: int, where: str) -> np.ndarray:
    """Return flags (rows,) as bool."""
    values = np.asarray(values)
    if values.shape != (rows,):
        raise DatasetError(
            f'{where}: expected {name} of shape ({rows},) as rewards, found {values.shape}')
    if values.dtype.kind not in 'biuf' or not np.isin(values, (0, 1)).all():
        raise DatasetError(f'{where}: expected {name} to be 0 or 1, found other values')
    return values.astype(bool)


def ogbench_file(name: str, root: Path | str | None = None) -> Path:
    """Return the file of an OGBench dataset: all tasks of an environment share one.

    Args:
        name: Of the dataset and its task, such as cube-single-play-singletask-task2-v0.
        root: Its folder; None: where the ogbench package looks.
    """
    words = name.split('-')
    place = words.index('singletask')
    stem = '-'.join([*words[:place], words[-1]])
    return Path(OGBENCH_ROOT if root is None else root).expanduser() / f'{stem}.npz'


def load_ogbench(name: str, path: Path | str) -> tuple[Dataset, dict[str, str]]:
    """Read an OGBench file with the rewards and true ends of a task, as the package sees them.

    Args:
        name: Of the dataset and its task, such as cube-single-play-singletask-task2-v0; without
            a number the environment's default task.
        path: The file.

    Returns:
        The transitions, and the limits of the environment's action.

    Raises:
        DatasetError: There is no such file, environment or task, or it cannot be learned from.
    """
    path = Path(path)
    where = f'dataset {name!r}'
    if not path.is_file():
        raise DatasetError(
            f'{where}: expected the file {path}, found none; `python -m training.collect` makes '
            'such files, the ogbench package downloads the published ones')
    try:
        import gymnasium
        import ogbench
        from ogbench.relabel_utils import relabel_dataset
        from ogbench.utils import load_dataset
    except ImportError as error:
        raise DatasetError(f'{where}: needs the package ogbench: pip install ogbench') from error
    with warnings.catch_warnings():
        # Of windows that cannot be opened, and of the precision of an action space.
        warnings.simplefilter('ignore', UserWarning)
        try:
            env = ogbench.make_env_and_datasets(name, env_only=True)
        except (gymnasium.error.Error, AssertionError, ValueError) as error:
            raise DatasetError(
                f'{where}: expected a task of OGBench, found none of this name: '
                f'{" ".join(str(error).split())}') from error
        try:
            columns = load_dataset(str(path), add_info=True)
            relabel_dataset(name, env, columns)
            space = env.action_space
        except (OSError, EOFError, KeyError, IndexError, ValueError, zipfile.BadZipFile) as error:
            raise DatasetError(
                f'{where}: expected a file of this environment, found {path}: '
                f'{" ".join(str(error).split())}') from error
        finally:
            env.close()
    ends = columns['terminals'].astype(bool)
    observations, actions, rewards = _check_arrays(
        columns['observations'], columns['actions'], columns['rewards'], where, final=0)
    following = _check_following(columns['next_observations'], observations, where)
    numbers = np.cumsum(ends) - ends  # an end belongs to the episode that it ends
    dataset = Dataset(observations, actions, rewards, columns['masks'], following, numbers)
    if space.shape != dataset.actions.shape[1:]:
        raise DatasetError(f'{where}: expected actions of shape {space.shape}, found '
                           f'{dataset.actions.shape[1:]}')
    _warn(dataset, where)
    return dataset, {
        'layout': 'OGBench', 'file': path.name,
        LIMITS_KEY: json.dumps([space.low.tolist(), space.high.tolist()]),
    }


def _check_following(
    following: np.ndarray, observations: np.ndarray, where: str
) -> np.ndarray:
    """Return next observations (M, O) as finite float32, one for each of observations (M, O)."""
    if np.shape(following) != observations.shape:
        raise DatasetError(
            f'{where}: expected next_observations of shape {observations.shape} as observations, '
            f'found {np.shape(following)}')
    return _float32(following, 'next_observations', 'f', where)


def _warn(dataset: Dataset, where: str) -> None:
    """Warn of what can be learned from, but hardly taught by."""
    if (dataset.rewards == dataset.rewards[0]).all():
        warnings.warn(
            f'{where}: every reward is {dataset.rewards[0]}; there is nothing to '
            'prefer, the policy will imitate. Look at the task given at conversion.',
            stacklevel=3,
        )
    if dataset.episodes[0] == dataset.episodes[-1]:
        warnings.warn(
            f'{where}: there is one episode only; the policy knows nothing beside it.',
            stacklevel=3,
        )


def _checked(episodes: Iterable[Episode]) -> Iterator[Episode]:
    """Yield episodes as they are stored; raise DatasetError unless they make one dataset."""
    expected: tuple[int, int, bool] | None = None
    for number, episode in enumerate(episodes):
        checked = _check(episode, f'episode {number}')
        found = (checked.observations.shape[1], checked.actions.shape[1],
                 checked.between is not None)
        expected = expected or found
        for name, first, this in zip(
            ('observations of size', 'actions of size', 'rows between ticks stored:'),
            expected, found, strict=True,
        ):
            if first != this:
                raise DatasetError(f'episode {number}: expected {name} {first} as in episode 0, '
                                   f'found {this}')
        yield checked
        del episode, checked  # not held while the next one comes


def _check(episode: Episode, where: str) -> Episode:
    """Return an episode with its arrays as they are stored, or raise DatasetError."""
    observations, actions, rewards = _check_arrays(
        episode.observations, episode.actions, episode.rewards, where)
    between, counts = episode.between, episode.counts
    if (between is None) != (counts is None):
        raise DatasetError(f'{where}: expected between and counts, found one of them')
    if between is not None:
        between, counts = np.asarray(between), np.asarray(counts)
        if between.ndim != 2 or between.shape[1] != observations.shape[1]:
            raise DatasetError(f'{where}: expected rows of {observations.shape[1]} numbers '
                               f'between ticks, found shape {between.shape}')
        between = _float32(between, 'rows between ticks', 'f', where)
        if (counts.shape != rewards.shape or counts.dtype.kind not in 'iu'
                or (counts < 0).any() or counts.sum() != len(between)):
            raise DatasetError(f'{where}: expected counts (n,) with the sum {len(between)} of the '
                               f'rows between ticks, found {counts.dtype} {counts.shape}')
        counts = counts.astype(np.int64, copy=False)
    topics = {}
    for kind, values in episode.topics.items():
        values = np.asarray(values)
        if (kind not in _TOPICS or values.shape != rewards.shape
                or values.dtype.kind not in 'biuf' or not np.isfinite(values).all()):
            raise DatasetError(f'{where}: expected finite numbers (n,) of {" or ".join(_TOPICS)}, '
                               f'found {kind}: {values.dtype} {values.shape}')
        # Not rounded: a reward from them is to be the same again.
        topics[kind] = values.astype(bool if kind == 'terminal' else np.float64, copy=False)
    if not isinstance(episode.continues, str) or episode.continues not in (
            '', 'terminal', 'length'):
        raise DatasetError(f"{where}: expected continues '', 'terminal' or 'length', found "
                           f'{episode.continues!r}')
    return Episode(
        observations, actions, rewards, bool(episode.terminated), bool(episode.truncated),
        between, counts, topics, episode.continues)


def _check_arrays(
    observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray, where: str,
    final: int = 1,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the arrays as float32; one that is float32 already is not copied.

    Args:
        observations: (n + final, O).
        actions: (n, A).
        rewards: (n,).
        where: Begins the errors.
        final: 1: after the last step comes an observation more, 0: it does not.

    Raises:
        DatasetError: They are not n steps, 1 or more, of finite numbers.
    """
    steps = len(rewards) if np.ndim(rewards) else 0
    if steps == 0:
        raise DatasetError(f'{where}: expected one or more steps, found none')
    checked = []
    for name, values, rows, axes, kinds in (
        ('observations', observations, steps + final, 2, 'f'),
        ('actions', actions, steps, 2, 'f'),
        ('rewards', rewards, steps, 1, 'biuf'),
    ):
        array = np.asarray(values)
        if array.ndim != axes or len(array) != rows:
            raise DatasetError(
                f'{where}: expected {rows} rows and {axes} axes of {name} for {steps} rewards, '
                f'found shape {array.shape}'
            )
        checked.append(_float32(array, name, kinds, where))
    return checked[0], checked[1], checked[2]


def _float32(values: np.ndarray, name: str, kinds: str, where: str) -> np.ndarray:
    """Return finite numbers of certain kinds of dtype as float32."""
    array = np.asarray(values)
    if array.dtype.kind not in kinds:
        raise DatasetError(
            f'{where}: expected {name} to be floating-point numbers, found {array.dtype}')
    with np.errstate(over='ignore'):  # too large for float32: infinite, and refused below
        array = array.astype(np.float32, copy=False)
    finite = np.isfinite(array)
    if not finite.all():
        row = int(np.argwhere(~finite)[0, 0])
        raise DatasetError(f'{where}: expected finite {name}, found {array[row]} at step {row}')
    return array
