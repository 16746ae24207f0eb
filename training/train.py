"""Train IDQL on a Minari dataset: `python -m training.train --config FILE [--overrides]`.

Writes into the output folder: checkpoint.pt (everything needed to export or go on), metrics.csv
and TensorBoard events.
"""

import argparse
from collections.abc import Mapping, Sequence
import csv
from dataclasses import asdict, dataclass, field, is_dataclass, replace
import json
import os
from pathlib import Path
import subprocess
import time
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints, Literal

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import trange
from training.datasets import action_bounds, Dataset, DatasetError, load_minari, SPEC_KEY
from training.idql import Batch, IDQL, IDQLConfig
import tyro
import yaml

CHECKPOINT = 'checkpoint.pt'
CHECKPOINT_FORMAT = 1


class ConfigError(ValueError):
    """A training configuration cannot be used."""


class DivergenceError(RuntimeError):
    """Training produced numbers that are not finite."""


@dataclass(frozen=True)
class TrainConfig:
    """What to train on, for how long, and where the results go."""

    # Minari dataset id, such as demo/reach-v0.
    dataset: str
    # Folder of Minari datasets; None: MINARI_DATASETS_PATH or ~/.minari/datasets.
    root: str | None = None
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
    # CPU threads; None: PyTorch decides.
    threads: int | None = None
    # The learner.
    idql: IDQLConfig = field(default_factory=IDQLConfig)

    def __post_init__(self) -> None:
        """Check the counts.

        Raises:
            ValueError: A count is below 1.
        """
        for name in ('steps', 'batch_size', 'log_every', 'checkpoint_every', 'threads'):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f'{name}: expected 1 or more, found {value}')


def train(config: TrainConfig) -> IDQL:
    """Train from scratch, writing logs and checkpoints on the way.

    Args:
        config: Everything there is to choose.

    Returns:
        The trained learner; the same as `load_checkpoint` gives from the output folder.

    Raises:
        DatasetError: The dataset is absent or unfit.
        DivergenceError: A loss is no longer finite.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.idql.actor_decay_steps is None:
        config = replace(config, idql=replace(config.idql, actor_decay_steps=config.steps))
    dataset, metadata = load_minari(config.dataset, config.root)
    spec_json = metadata.pop(SPEC_KEY, None)
    provenance = {
        'dataset': config.dataset,
        'dataset_hash': dataset.content_hash(),
        'dataset_metadata': metadata,
        'transitions': len(dataset.rewards),
        'episodes': int(dataset.episodes.max()) + 1,
        # Where the files lay says nothing about the policy, which goes to other machines.
        'config': {k: v for k, v in asdict(config).items() if k not in ('root', 'output')},
        'code_version': code_version(),
        'torch_version': str(torch.__version__),
    }

    torch.manual_seed(config.seed)  # initial networks and dropout
    generator = torch.Generator().manual_seed(config.seed)  # batches, diffusion steps, noise
    idql = build(config.idql, dataset, spec_json)
    columns = Batch(*(torch.from_numpy(getattr(dataset, name)) for name in Batch._fields))
    rows, action_size = columns.actions.shape

    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    with SummaryWriter(output) as tensorboard, open(
        output / 'metrics.csv', 'w', newline=''
    ) as metrics_file:
        metrics = csv.writer(metrics_file)
        sums: dict[str, torch.Tensor] = {}
        since, started = 0, time.perf_counter()
        for step in trange(1, config.steps + 1, desc=config.dataset, unit='update'):
            indices = torch.randint(rows, (config.batch_size,), generator=generator)
            times = torch.randint(
                config.idql.diffusion_steps, (config.batch_size,), generator=generator
            )
            noise = torch.randn((config.batch_size, action_size), generator=generator)
            info = idql.update(Batch(*(c[indices] for c in columns)), times, noise)
            sums = {key: value + sums.get(key, 0) for key, value in info.items()}
            since += 1

            if step % config.log_every == 0 or step == config.steps:
                row = {key: value.item() / since for key, value in sums.items()}
                row['updates_per_second'] = since / (time.perf_counter() - started)
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
                sums, since, started = {}, 0, time.perf_counter()
            if step % config.checkpoint_every == 0 or step == config.steps:
                save_checkpoint(output / CHECKPOINT, {
                    'config': asdict(config),
                    'spec_json': spec_json,
                    'provenance': provenance | {'updates': step},
                    'step': step,
                    'model': idql.state_dict(),
                    'optimisers': {k: o.state_dict() for k, o in idql.optimisers.items()},
                    'generator': generator.get_state(),
                    'global_generator': torch.get_rng_state(),
                })
    return idql.eval()


def build(config: IDQLConfig, dataset: Dataset, spec_json: str | None) -> IDQL:
    """Return an untrained learner whose units fit a dataset.

    Args:
        config: The hyper-parameters.
        dataset: Gives the observations' statistics.
        spec_json: Gives the action's limits; None: the smallest and largest action seen do.

    Raises:
        DatasetError: The spec's action is not the dataset's.
    """
    mean = dataset.observations.mean(0, dtype=np.float64)
    std = dataset.observations.std(0, dtype=np.float64)
    # What never moved tells nothing; dividing by its rounding noise would make it shout.
    std[std < 1e-6 * np.maximum(1, np.abs(mean))] = 1
    if spec_json is None:
        lower = dataset.actions.min(0).astype(np.float64)
        upper = dataset.actions.max(0).astype(np.float64)
        upper[lower == upper] += 1  # a constant action still needs some scale
    else:
        lower, upper = action_bounds(json.loads(spec_json))
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


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint under a temporary name, then give it its own."""
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
    torch.save({'format_version': CHECKPOINT_FORMAT} | content, temporary)
    os.replace(temporary, path)


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Return what `train` wrote into a checkpoint, without running any code from it.

    Args:
        path: The file.

    Raises:
        ConfigError: It is not a checkpoint of this version.
        OSError: It cannot be read.
    """
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except OSError:
        raise
    except Exception as error:  # what torch raises has no base of its own
        raise ConfigError(
            f'{path}: expected a checkpoint of training.train, found a file that PyTorch does '
            f'not read without running code from it: {" ".join(str(error).split())[:200]}'
        ) from error
    found = content.get('format_version') if isinstance(content, dict) else None
    if found != CHECKPOINT_FORMAT:
        raise ConfigError(
            f'{path}: expected a checkpoint of format {CHECKPOINT_FORMAT} written by '
            f'training.train, found format {found}'
        )
    return content


def load_checkpoint(path: Path | str) -> IDQL:
    """Return the learner of a checkpoint, optimisers included, in evaluation mode."""
    content = read_checkpoint(path)
    model = content['model']
    units = ('observation_mean', 'observation_std', 'action_center', 'action_scale')
    idql = IDQL(IDQLConfig(**content['config']['idql']), *(model[name] for name in units))
    idql.load_state_dict(model)
    for name, optimiser in idql.optimisers.items():
        optimiser.load_state_dict(content['optimisers'][name])
    idql.updates = content['step']
    return idql.eval()


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
    except (DivergenceError, OSError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
    main()
