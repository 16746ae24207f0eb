"""A dataset with other rewards and ends: the same transitions, without the bags.

The result is what converting the bags with the new task would give, array for array. Episodes
that were cut at the old task's terminals are joined, judged as one, and cut at the new ones.
Those that were cut because a stretch grew too long stay cut, as a conversion leaves them. What the
conversion left out, because a topic of its task told no reward for it, is not there to be judged
by a task that needs none.
"""

from collections.abc import Iterable, Iterator
import hashlib
import json
from pathlib import Path
import sys
from typing import Annotated

import h5py
from idql_ros import spec as specs
import numpy as np
from tqdm import tqdm
from training.alignment import key
from training.datasets import (
    BETWEEN_KEY,
    data_folder,
    DatasetError,
    Episode,
    EPISODES_FILE,
    episodes_of,
    read_episodes,
    read_metadata,
    SPEC_KEY,
    write_minari,
)
from training.provenance import code_version
from training.rewards import parse_task, RewardError, Steps, Task, TopicValue
import tyro

# In the metadata, as JSON: the task of the rewards, and the one that the bags were read for,
# whose topics' values are stored.
TASK_KEY = 'task'
CONVERTED_KEY = 'converted_with'
ORIGIN_KEY = 'relabelled_from'
VERSION_KEY = 'relabelled_with'


def relabel(
    dataset_id: str, root: Path | str, task: Task, output_id: str, overwrite: bool = False
) -> Path:
    """Write a converted dataset anew with the rewards and ends of another task.

    Args:
        dataset_id: '[namespace/]name-v0', made by `python -m training.bags`.
        root: The folder of both datasets.
        task: What is judged and when an episode ends.
        output_id: Of the new dataset.
        overwrite: Replace a dataset of that id; it may be `dataset_id`.

    Returns:
        The new dataset's folder.

    Raises:
        DatasetError: There is no such dataset, it does not hold what is needed, or the new one
            cannot be written.
        RewardError: The task does not fit it.
    """
    where = f'dataset {dataset_id!r}'
    metadata = read_metadata(dataset_id, root)
    if not all(key in metadata for key in (SPEC_KEY, BETWEEN_KEY, TASK_KEY)):
        raise DatasetError(
            f'{where}: expected one with what was observed between its ticks, as '
            '`python -m training.bags` writes it, found one without; convert the bags anew')
    try:
        spec = specs.parse(json.loads(metadata[SPEC_KEY]), where)
    except (TypeError, json.JSONDecodeError) as error:
        raise DatasetError(f'{where}: expected a spec as JSON, found none: {error}') from error
    task.check(spec.observation_size, spec.action_size)
    converted = metadata.get(CONVERTED_KEY, metadata[TASK_KEY])
    try:
        held = Task.from_json(converted).needs
    except RewardError as error:
        raise DatasetError(f'{where}: {error}') from error
    for need in task.needs:
        if not any(_is_same(need, other) for other in held):
            found = ', '.join(f'{h.topic}.{h.field} ({h.reduce})' for h in held)
            raise RewardError(
                f'{where}: expected the values of {need.topic}.{need.field} ({need.reduce}) for '
                f'the {need.kind}, found {found or "no topics"}; convert the bags with this task')
    try:
        with open(data_folder(dataset_id, root) / EPISODES_FILE, 'rb') as file:
            digest = hashlib.file_digest(file, 'sha256').hexdigest()
    except OSError as error:
        raise DatasetError(f'{where}: cannot be read: {error}') from error
    kept = {key: value for key, value in metadata.items() if key not in (SPEC_KEY, BETWEEN_KEY)}
    return write_minari(
        relabelled(_shown(dataset_id, root), task, spec.rate, f'{where}, '), output_id, root,
        kept | {TASK_KEY: task.to_json(), CONVERTED_KEY: converted,
                ORIGIN_KEY: f'{dataset_id} {EPISODES_FILE} sha256:{digest}',
                VERSION_KEY: code_version()},
        metadata[SPEC_KEY], overwrite)


def _is_same(need: TopicValue, other: TopicValue) -> bool:
    """Return whether two values are one: a topic's leading slash may be left out."""
    return need._replace(topic=key(need.topic)) == other._replace(topic=key(other.topic))


def _shown(dataset_id: str, root: Path | str) -> Iterator[Episode]:
    """Yield the episodes of a dataset, with a progress bar from the first one on."""
    try:
        with h5py.File(data_folder(dataset_id, root) / EPISODES_FILE) as file:
            count = len(file)
    except (OSError, RuntimeError) as error:  # h5py raises either on a damaged file
        raise DatasetError(f'dataset {dataset_id!r}: cannot be read: '
                           f'{" ".join(str(error).split())}') from error
    yield from tqdm(read_episodes(dataset_id, root), desc='relabel', total=count,
                    unit='episode', dynamic_ncols=True)


def relabelled(
    episodes: Iterable[Episode], task: Task, rate: float, where: str = ''
) -> Iterator[Episode]:
    """Yield the episodes that a task makes of others, in their order.

    Args:
        episodes: With what was observed between their ticks.
        task: Gives rewards and terminals.
        rate: Hz.
        where: Begins the errors.

    Raises:
        DatasetError: An episode is without what was observed between its ticks, or is said to go
            on from another, and does not.
        RewardError: The task does not fit them.
    """
    pieces: list[Episode] = []
    for number, episode in enumerate(episodes):
        if episode.between is None:
            raise DatasetError(f'{where}episode {number}: expected what was observed between its '
                               'ticks, found none; convert the bags anew')
        if episode.continues == 'terminal':
            if not pieces or not np.array_equal(
                    pieces[-1].observations[-1], episode.observations[0]):
                raise DatasetError(
                    f'{where}episode {number}: expected it to begin where the one before it ends, '
                    'as it says, found another observation')
        elif pieces:
            yield from _judged(pieces, task, rate)
            pieces = []
        pieces.append(episode)
    if pieces:
        yield from _judged(pieces, task, rate)


def _judged(pieces: list[Episode], task: Task, rate: float) -> Iterator[Episode]:
    """Yield the episodes of a stretch that was cut into pieces at terminals."""
    kinds = set.intersection(*(set(piece.topics) for piece in pieces))
    steps = Steps(
        observations=np.concatenate(
            [piece.observations[:-1] for piece in pieces] + [pieces[-1].observations[-1:]]),
        actions=np.concatenate([piece.actions for piece in pieces]),
        between=np.concatenate([piece.between for piece in pieces]),
        counts=np.concatenate([piece.counts for piece in pieces]),
        rate=rate,
        topics={kind: np.concatenate([piece.topics[kind] for piece in pieces])
                for kind in sorted(kinds)},
    )
    return episodes_of(steps, task, pieces[0].continues)


def main(
    dataset_id: tyro.conf.Positional[str],
    /,
    root: Path,
    reward: str,
    output_id: str,
    terminal: str = 'reward',
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Write a converted dataset anew with other rewards and ends.

    Args:
        dataset_id: '[namespace/]name-v0', made by `python -m training.bags`.
        root: The folder of datasets (MINARI_DATASETS_PATH).
        reward: As for `python -m training.bags`: 'NAME: {PARAMETERS}', such as
            'sparse_goal: {goal: [16, 20], tolerance: 0.5}', module:function, or a .yaml file.
        output_id: Of the new dataset.
        terminal: reward, never, or 'topic: {topic: NAME, field: PATH}'.
        overwrite: Replace a dataset of the new id.
    """
    print(f'wrote {relabel(dataset_id, root, parse_task(reward, terminal), output_id, overwrite)}')


if __name__ == '__main__':
    try:
        tyro.cli(main)
    except (DatasetError, RewardError, specs.SpecError, OSError) as error:
        sys.exit(f'error: {error}')
