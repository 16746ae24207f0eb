"""What a training run is told: its configuration, from a YAML file and the command line."""

from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints, Literal, Union

import numpy as np
from training import rewards
from training.idql import IDQLConfig
import tyro
import yaml


class ConfigError(ValueError):
    """A training configuration cannot be used."""


@dataclass(frozen=True)
class TrainConfig:
    """What to train on, for how long, and where the results go."""

    # Minari dataset id, such as demo/reach-v0; or an OGBench dataset and its task, such as
    # cube-single-play-singletask-task2-v0; or a file of D4RL v2, such as hopper-medium-v2.hdf5.
    dataset: str
    # Folder of the dataset; None: where Minari or ogbench look (MINARI_DATASETS_PATH or
    # ~/.minari/datasets; ~/.ogbench/data), the current folder for a file.
    root: str | None = None
    # Share of the episodes kept for validation; 0: OGBench's own validation file where there is
    # one, else no validation.
    validation_fraction: float = 0.0
    # return_range: rewards times 1000 / (largest - smallest return of an episode), as the paper
    # does for locomotion.
    reward_scaling: rewards.Scaling = 'none'
    # Added to every reward, after the scaling; the paper has -1 for antmaze.
    reward_shift: float = 0.0
    # Folder for checkpoint, metrics and TensorBoard events.
    output: str = 'runs/idql'
    # Updates of actor, value and critics.
    steps: int = 3_000_000
    # Transitions per update, the same for actor and critics (the authors' code; the paper's text
    # says 1024 and 256).
    batch_size: int = 512
    # Seed of the initial networks, the batches, diffusion steps, noise and dropout.
    seed: int = 0
    # Seeds trained side by side: seed, seed + 1, ...; more than 1 leave folders seed-K in the
    # output folder, each as a run of its own would.
    seeds: int = 1
    # Updates between two rows of metrics; a row holds means since the row before.
    log_every: int = 1000
    # Updates between two checkpoints; the last update always writes one.
    checkpoint_every: int = 100_000
    # Keep each of them as checkpoint-STEP.pt too, for a learning curve.
    keep_checkpoints: bool = False
    # Go on from the checkpoint in the output folder.
    resume: bool = False
    # Updates between two evaluations of the policy as a file, greedy and as one diffusion sample;
    # the last update is followed by one too. None: no evaluation.
    evaluate_every: int | None = None
    # Episodes of an evaluation, always from the same starts.
    evaluate_episodes: int = 50
    # Simulated robots at a time, each in a process of its own.
    evaluate_parallel: int = 4
    # What they live in: module:factory, or an id of Gymnasium or OGBench. None: the environment of
    # the robot in the dataset's spec.
    environment: str | None = None
    # cpu, or cuda for a GPU; None: a GPU where there is one.
    device: Literal['cpu', 'cuda'] | None = None
    # CPU threads; None: PyTorch decides.
    threads: int | None = None
    # The learner.
    idql: IDQLConfig = field(default_factory=IDQLConfig)

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: A count is below 1, or a share none.
        """
        for name in ('steps', 'batch_size', 'log_every', 'checkpoint_every', 'threads', 'seeds',
                     'evaluate_every', 'evaluate_episodes', 'evaluate_parallel'):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f'{name}: expected 1 or more, found {value}')
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f'validation_fraction: expected a value in [0, 1), found '
                             f'{self.validation_fraction}')
        if not 0 <= self.seed <= 2**63 - self.seeds:
            raise ValueError(f'seed: expected 0 to {2**63 - self.seeds}, found {self.seed}')
        if not np.isfinite(self.reward_shift):
            raise ValueError(f'reward_shift: expected a finite number, found {self.reward_shift}')


def read_yaml(kind: type, path: Path, command_line: str) -> Any:
    """Return the configuration in a YAML file.

    Args:
        kind: The configuration's class.
        path: The file.
        command_line: The field that may be left to the command line.

    Raises:
        ConfigError: It is no YAML, a key is unknown or a value does not fit.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f'{path}: expected YAML, found {error}') from error
    if isinstance(values, Mapping):
        values = {command_line: tyro.MISSING} | values
    return _from_yaml(kind, values, str(path))


def read_config(path: Path) -> TrainConfig:
    """Return the training configuration in a YAML file; see `read_yaml`."""
    return read_yaml(TrainConfig, path, 'dataset')


def _from_yaml(kind: Any, value: Any, where: str) -> Any:
    """Return a YAML value as the type a config field has, or raise ConfigError."""
    if value is tyro.MISSING:
        return value
    if is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ConfigError(f'{where}: expected keys and values, found {value!r}')
        hints = get_type_hints(kind)
        for key in value:
            if key not in hints:
                raise ConfigError(
                    f'{where}: unknown key {key!r}; expected one of {", ".join(hints)}'
                )
        try:
            return kind(**{k: _from_yaml(hints[k], v, f'{where}: {k}') for k, v in value.items()})
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f'{where}: {error}') from error
    options = get_args(kind)
    if get_origin(kind) in (UnionType, Union):  # X | None; of a Literal it is a Union
        if value is None and NoneType in options:
            return None
        kind = options[0]
        options = get_args(kind)
    if get_origin(kind) is Literal:
        if value in options:
            return value
    elif get_origin(kind) is tuple:
        if isinstance(value, list) and (Ellipsis in options or len(value) == len(options)):
            return tuple(_from_yaml(options[0], item, where) for item in value)
    elif kind is float:
        if type(value) in (int, float):
            return float(value)
    elif type(value) is kind:
        return value
    hint = '; YAML reads 1e-3 as text, write 1.0e-3' if kind is float else ''
    raise ConfigError(f'{where}: expected {kind}, found {value!r}{hint}')
