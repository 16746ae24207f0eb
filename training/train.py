"""Train IDQL on a dataset: `python -m training.train --config FILE [--overrides]`.

Writes into the output folder: checkpoint.pt (everything needed to export or go on), metrics.csv
and TensorBoard events. A run that was stopped goes on with the same command and --resume, to the
same parameters as one that was not.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
import csv
from dataclasses import asdict, dataclass, field, is_dataclass, replace
import json
from pathlib import Path
import signal
import subprocess
import threading
import time
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints, Literal

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import trange
from training import datasets, rewards
from training.checkpoint import (
    check_same_run,
    CHECKPOINT,
    CheckpointError,
    learner,
    read_checkpoint,
    save_checkpoint,
    write_whole,
)
from training.datasets import Dataset, DatasetError
from training.idql import Batch, IDQL, IDQLConfig
import tyro
import yaml

METRICS = 'metrics.csv'
# Transitions that validation losses are means of, at most.
VALIDATION_ROWS = 4096


class ConfigError(ValueError):
    """A training configuration cannot be used."""


class DivergenceError(RuntimeError):
    """Training produced numbers that are not finite."""


class Stopped(KeyboardInterrupt):
    """A signal asked to stop, and a checkpoint holds what was done until then.

    Attributes:
        signal: Which.
    """

    def __init__(self, number: int, step: int, path: Path) -> None:
        """Say what was received, after which update, and where the checkpoint lies."""
        self.signal = signal.Signals(number)
        super().__init__(f'stopped by {self.signal.name} after update {step}, which {path} '
                         'holds; the same command with --resume goes on from there')


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
    # Updates between two rows of metrics; a row holds means since the row before.
    log_every: int = 1000
    # Updates between two checkpoints; the last update always writes one.
    checkpoint_every: int = 100_000
    # Keep each of them as checkpoint-STEP.pt too, for a learning curve.
    keep_checkpoints: bool = False
    # Go on from the checkpoint in the output folder.
    resume: bool = False
    # CPU threads; None: PyTorch decides.
    threads: int | None = None
    # The learner.
    idql: IDQLConfig = field(default_factory=IDQLConfig)

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: A count is below 1, or a share none.
        """
        for name in ('steps', 'batch_size', 'log_every', 'checkpoint_every', 'threads'):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f'{name}: expected 1 or more, found {value}')
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f'validation_fraction: expected a value in [0, 1), found '
                             f'{self.validation_fraction}')
        if not np.isfinite(self.reward_shift):
            raise ValueError(f'reward_shift: expected a finite number, found {self.reward_shift}')


@dataclass(frozen=True)
class Data:
    """What is learned from, rewards transformed, and what is known of it."""

    training: Dataset
    validation: Dataset | None
    spec_json: str | None
    limits_json: str | None  # of the action, where there is no spec
    provenance: dict[str, Any]


def train(config: TrainConfig) -> IDQL:
    """Train, writing logs and checkpoints on the way.

    Args:
        config: Everything there is to choose.

    Returns:
        The trained learner; the same as `load_checkpoint` gives from the output folder.

    Raises:
        DatasetError: The dataset is absent or unfit.
        CheckpointError: There is nothing to resume, or it is another run's.
        DivergenceError: A loss is no longer finite.
        Stopped: SIGTERM or SIGINT came.
        OSError: Something cannot be written; the last checkpoint stays.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.idql.actor_decay_steps is None:
        config = replace(config, idql=replace(config.idql, actor_decay_steps=config.steps))
    data = load_data(config)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(config.seed)  # initial networks
    generator = torch.Generator().manual_seed(config.seed)  # batches and the updates' draws
    start, since, sums = 0, 0, {}  # updates done; in the row of metrics to come; its sums
    if config.resume:
        if not (output / CHECKPOINT).is_file():
            raise CheckpointError(f'{output / CHECKPOINT}: expected a checkpoint to go on from, '
                                  'found none; a run begins without --resume')
        checkpoint = read_checkpoint(output / CHECKPOINT)
        check_same_run(checkpoint, asdict(config), data.provenance, output / CHECKPOINT)
        idql = learner(checkpoint)
        start, since, sums = (checkpoint[key] for key in ('step', 'since', 'sums'))
        generator.set_state(checkpoint['generator'])
    else:
        idql = build(config.idql, data.training, data.spec_json, data.limits_json)
    columns = to_batch(data.training)
    rows = len(columns.rewards)
    validation = None if data.validation is None else fixed_sample(data.validation, config)
    # What was written after the checkpoint is written again.
    write_whole(output / METRICS, metrics_until(output / METRICS, start).encode())

    with SummaryWriter(output, purge_step=start + 1) as tensorboard, open(
        output / METRICS, 'a', newline=''
    ) as metrics_file, signals_received() as signals:
        metrics = csv.writer(metrics_file)
        timed, started = start, time.perf_counter()
        for step in trange(start + 1, config.steps + 1, desc=config.dataset, unit='update',
                           initial=start, total=config.steps, dynamic_ncols=True):
            indices = torch.randint(rows, (config.batch_size,), generator=generator)
            draws = idql.draw(config.batch_size, generator)
            info = idql.update(Batch(*(c[indices] for c in columns)), *draws)
            sums = {key: value + sums.get(key, 0) for key, value in info.items()}
            since += 1

            if step % config.log_every == 0 or step == config.steps:
                row = {key: value.item() / since for key, value in sums.items()}
                if validation is not None:
                    row |= validation_losses(idql, *validation)
                row['updates_per_second'] = (step - timed) / (time.perf_counter() - started)
                if metrics_file.tell() == 0:
                    metrics.writerow(['step', *row])
                metrics.writerow([step, *row.values()])
                metrics_file.flush()
                for key, value in row.items():
                    tensorboard.add_scalar(key, value, step)
                if not np.isfinite(list(row.values())).all():
                    raise DivergenceError(
                        f'update {step}: expected finite losses, found {row}; look at the '
                        f'learning rates and the scale of the rewards, and at {metrics_file.name}'
                    )
                sums, since, timed, started = {}, 0, step, time.perf_counter()

            periodic = step % config.checkpoint_every == 0 or step == config.steps
            if periodic or signals:
                content = {
                    'config': asdict(config),
                    'spec_json': data.spec_json,
                    'provenance': data.provenance | {'updates': step},
                    'step': step,
                    'since': since,
                    'sums': sums,
                    'model': idql.state_dict(),
                    'optimisers': {k: o.state_dict() for k, o in idql.optimisers.items()},
                    'generator': generator.get_state(),
                }
                save_checkpoint(output / CHECKPOINT, content)
                if periodic and config.keep_checkpoints:
                    save_checkpoint(output / f'checkpoint-{step}.pt', content)
            if signals and step < config.steps:
                raise Stopped(signals[0], step, output / CHECKPOINT)
    return idql.eval()


def load_data(config: TrainConfig) -> Data:
    """Read the dataset, keep some of it for validation, transform the rewards.

    Raises:
        DatasetError: The dataset is absent or unfit.
    """
    dataset, metadata = datasets.load(config.dataset, config.root)
    spec_json = metadata.pop(datasets.SPEC_KEY, None)
    limits_json = metadata.pop(datasets.LIMITS_KEY, None)
    training, validation = dataset, None
    if config.validation_fraction > 0:
        training, validation = datasets.split(dataset, config.validation_fraction, config.seed)
    else:
        validation = datasets.load_validation(config.dataset, config.root)
    # Where the files lay says nothing about the policy, which goes to other machines.
    name = config.dataset
    if name.endswith('.hdf5'):
        name = Path(name).name
    elsewhere = ('root', 'output', 'resume')
    provenance = {
        'dataset': name,
        'dataset_hash': dataset.content_hash(),
        'validation_hash': None if validation is None else validation.content_hash(),
        'dataset_metadata': metadata,
        'transitions': len(training.rewards),
        'episodes': len(np.unique(training.episodes)),
        'config': {k: v for k, v in asdict(config).items() if k not in elsewhere} | {
            'dataset': name},
        'code_version': code_version(),
        'torch_version': str(torch.__version__),
    }
    scale = rewards.scale(config.reward_scaling, training.rewards, training.episodes)
    if scale != 1 or config.reward_shift != 0:
        def transform(part: Dataset) -> Dataset:
            return replace(part, rewards=np.float32(scale) * part.rewards
                           + np.float32(config.reward_shift))

        training = transform(training)
        validation = None if validation is None else transform(validation)
    return Data(training, validation, spec_json, limits_json, provenance)


def to_batch(dataset: Dataset) -> Batch:
    """Return a dataset's columns as tensors that share its memory."""
    return Batch(*(torch.from_numpy(getattr(dataset, name)) for name in Batch._fields))


def fixed_sample(
    dataset: Dataset, config: TrainConfig
) -> tuple[Batch, torch.Tensor, torch.Tensor]:
    """Return transitions for validation, their diffusion steps and noise.

    They are the same in every row of metrics, so that two rows differ by the parameters alone,
    and drawn from a generator of their own, so that training draws what it draws without them.
    """
    generator = torch.Generator().manual_seed(config.seed)
    chosen = torch.randperm(len(dataset.rewards), generator=generator)[:VALIDATION_ROWS]
    batch = Batch(*(column[chosen] for column in to_batch(dataset)))
    times = torch.randint(config.idql.diffusion_steps, (len(chosen),), generator=generator)
    return batch, times, torch.randn(batch.actions.shape, generator=generator)


@torch.no_grad()
def validation_losses(
    idql: IDQL, batch: Batch, times: torch.Tensor, noise: torch.Tensor
) -> dict[str, float]:
    """Return the losses on transitions that are not trained on, without dropout."""
    batch = idql.network_units(batch)
    info = idql.actor_loss(batch, times, noise)[1]
    info |= idql.value_loss(batch)[1] | idql.critic_loss(batch)[1]
    return {f'validation_{key}': value.item() for key, value in info.items()}


def metrics_until(path: Path, step: int) -> str:
    """Return the header and rows of a metrics.csv up to an update; what is half a row is none."""
    if step == 0 or not path.exists():
        return ''
    with open(path, newline='') as file:
        lines = file.read().splitlines(keepends=True)
    columns = lines[0].count(',') if lines else 0
    whole = [line for line in lines if line.endswith('\n') and line.count(',') == columns]
    return ''.join(
        line for i, line in enumerate(whole) if i == 0 or int(line.split(',')[0]) <= step)


@contextmanager
def signals_received() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT instead of ending, so that an update is finished first."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # Python hands signals to the main thread only
        return
    kinds = signal.SIGTERM, signal.SIGINT
    before = [signal.signal(kind, lambda number, _: received.append(number)) for kind in kinds]
    try:
        yield received
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


def build(
    config: IDQLConfig, dataset: Dataset, spec_json: str | None, limits_json: str | None = None
) -> IDQL:
    """Return an untrained learner whose units fit a dataset.

    Args:
        config: The hyper-parameters.
        dataset: Gives the observations' statistics.
        spec_json: Gives the action's limits; None: the next one does.
        limits_json: The action's limits, [[lower, ...], [upper, ...]]; None: the smallest and
            largest action seen are.

    Raises:
        DatasetError: The spec's action is not the dataset's.
    """
    mean = dataset.observations.mean(0, dtype=np.float64)
    std = dataset.observations.std(0, dtype=np.float64)
    # What never moved tells nothing; dividing by its rounding noise would make it shout.
    std[std < 1e-6 * np.maximum(1, np.abs(mean))] = 1
    if spec_json is None and limits_json is not None:
        lower, upper = np.array(json.loads(limits_json), np.float64)
    elif spec_json is None:
        lower = dataset.actions.min(0).astype(np.float64)
        upper = dataset.actions.max(0).astype(np.float64)
        upper[lower == upper] += 1  # a constant action still needs some scale
    else:
        lower, upper = datasets.action_bounds(json.loads(spec_json))
        if len(lower) != dataset.actions.shape[1]:
            raise DatasetError(
                f'spec: expected {dataset.actions.shape[1]} action dimensions as in the dataset, '
                f'found {len(lower)}; the dataset was converted with another spec'
            )
    return IDQL(
        config,
        torch.from_numpy(mean),
        torch.from_numpy(std),
        torch.from_numpy((lower + upper) / 2),
        torch.from_numpy((upper - lower) / 2),
    )


def code_version() -> str:
    """Return the commit of this code, '-dirty' where files differ from it; else 'unknown'."""
    try:
        return subprocess.run(
            ['git', 'describe', '--always', '--dirty'],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'


def read_config(path: Path) -> TrainConfig:
    """Return the configuration in a YAML file; a dataset may be left to the command line.

    Args:
        path: The file.

    Raises:
        ConfigError: It is no YAML, a key is unknown or a value does not fit.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f'{path}: expected YAML, found {error}') from error
    if isinstance(values, Mapping):
        values = {'dataset': tyro.MISSING} | values
    return _from_yaml(TrainConfig, values, str(path))


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
    if get_origin(kind) is UnionType:  # X | None
        if value is None and NoneType in options:
            return None
        kind = options[0]
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the command line says.

    Args:
        arguments: Without the program's name; None: sys.argv.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('--config', type=Path)
    known, overrides = parser.parse_known_args(arguments)
    try:
        if known.config is None:
            default = TrainConfig(tyro.MISSING)
        else:
            default = read_config(known.config)
        config = tyro.cli(
            TrainConfig,
            prog='python -m training.train',
            description='--config FILE reads a YAML file first; every option below overrides it.',
            default=default,
            args=overrides,
        )
        train(config)
    except Stopped as stopped:
        print(stopped)
        raise SystemExit(0 if stopped.signal == signal.SIGTERM else 130) from None
    except (DivergenceError, OSError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
    main()
