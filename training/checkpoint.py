"""Checkpoints: all that a training run needs to go on, or to be exported; whole, or not there."""

from collections.abc import Mapping
import io
from pathlib import Path
from typing import Any

import torch
from training.files import write_all
from training.idql import IDQL, IDQLConfig, UNITS

CHECKPOINT = 'checkpoint.pt'
CHECKPOINT_FORMAT = 4

# What a run may be resumed with, though it began with another: where its files lie (the numbers
# of the dataset are compared instead of its name), how often it writes and evaluates, how long it
# lasts.
CHANGEABLE = ('dataset', 'root', 'output', 'resume', 'steps', 'checkpoint_every',
              'keep_checkpoints', 'evaluate_every', 'evaluate_episodes', 'evaluate_parallel',
              'environment')


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or is of another run."""


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint; see `save_checkpoints`."""
    save_checkpoints({path: content})


def save_checkpoints(contents: Mapping[Path, dict[str, Any]]) -> None:
    """Write checkpoints that belong together; until all are complete, those before stay.

    Args:
        contents: The file -> numbers, text, tensors, and lists and dictionaries of them.

    Raises:
        OSError: They cannot be written; those before are as they were.
    """
    buffers = {}
    for path, content in contents.items():
        # Through memory: PyTorch's own writer of files does not say what went wrong with a disk.
        buffer = io.BytesIO()
        torch.save({'format_version': CHECKPOINT_FORMAT} | content, buffer)
        buffers[path] = buffer.getbuffer()
    try:
        write_all(buffers)
    except OSError as error:
        raise OSError(
            error.errno, f'{error.strerror}; the checkpoint before this one stays',
            str(next(iter(contents)))) from error


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Return what `save_checkpoint` wrote, without running any code from it.

    Args:
        path: The file.

    Raises:
        CheckpointError: It is not a checkpoint of this version.
        OSError: It cannot be read.
    """
    written = io.BytesIO(Path(path).read_bytes())
    try:
        content = torch.load(written, map_location='cpu', weights_only=True)
    except Exception as error:  # what torch raises has no base of its own
        raise CheckpointError(
            f'{path}: expected a checkpoint of training.train, found a file that PyTorch does '
            f'not read without running code from it: {" ".join(str(error).split())[:200]}'
        ) from error
    found = content.get('format_version') if isinstance(content, dict) else None
    if found != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f'{path}: expected a checkpoint of format {CHECKPOINT_FORMAT} written by '
            f'training.train, found format {found}'
        )
    return content


def load_checkpoint(path: Path | str) -> IDQL:
    """Return the learner of a checkpoint, optimisers included, in evaluation mode."""
    return learner(read_checkpoint(path)).eval()


def learner(content: Mapping[str, Any]) -> IDQL:
    """Return the learner in what `read_checkpoint` returned, optimisers included."""
    model = content['model']
    idql = IDQL(IDQLConfig(**content['config']['idql']), *(model[name] for name in UNITS))
    idql.load_state_dict(model)
    for name, optimiser in idql.optimisers.items():
        optimiser.load_state_dict(content['optimisers'][name])
    idql.updates = content['step']
    return idql


def check_same_run(
    content: Mapping[str, Any], config: Mapping[str, Any], provenance: Mapping[str, Any],
    path: Path,
) -> None:
    """Raise CheckpointError unless a run may go on from a checkpoint.

    Args:
        content: The checkpoint's.
        config: The run's configuration, as a dictionary.
        provenance: Of the run, with the hashes of its data.
        path: The checkpoint's, for the errors.
    """
    before, now = _flat(content['config']), _flat(config)
    for key in sorted((before.keys() | now.keys()) - set(CHANGEABLE)):
        if before.get(key) != now.get(key):
            raise CheckpointError(
                f'{key}: expected {before.get(key)!r} as in {path}, found {now.get(key)!r}; '
                'a run is resumed with the configuration it began with'
            )
    for key in ('dataset_hash', 'validation_hash'):
        if content['provenance'][key] != provenance[key]:
            raise CheckpointError(
                f'{key}: expected the data of {path}, {content["provenance"][key]} of '
                f'{content["provenance"]["dataset"]}, found {provenance[key]} of '
                f'{provenance["dataset"]}'
            )


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with the learner's keys as 'idql.key'."""
    outer = {key: value for key, value in config.items() if key != 'idql'}
    return outer | {f'idql.{key}': value for key, value in config['idql'].items()}
