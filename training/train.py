"""Train IDQL on a dataset: `python -m training.train --config FILE [--overrides]`.

Writes into the output folder: checkpoint.pt (everything needed to export or go on), metrics.csv
and TensorBoard events; where it evaluates, evaluations.csv and the policy files it scored. Several
seeds have a folder each. A run that was stopped goes on with the same command and --resume, to the
same parameters as one that was not.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, ExitStack
from dataclasses import asdict, dataclass, replace
import json
from pathlib import Path
import signal
import threading
import time
from typing import Any

from idql_ros import environments
from idql_ros import spec as specs
from idql_ros.policy import Policy
from idql_ros.simulated_robot import plain_spec, SimulatedRobot
import numpy as np
import torch
from tqdm import trange
from training import datasets, machine, rewards
from training.checkpoint import (
    check_same_run,
    CHECKPOINT,
    CheckpointError,
    learner,
    read_checkpoint,
    save_checkpoints,
)
from training.config import ConfigError, read_config, TrainConfig
from training.datasets import Dataset, DatasetError
from training.evaluate import comparability, evaluate
from training.export import export
from training.graph import GraphedUpdate
from training.idql import Batch, Draws, IDQL, IDQLConfig, Info
from training.logs import Log
from training.provenance import code_version, shortened
from training.statistics import summarise
import tyro

# Transitions that validation losses are means of, at most.
VALIDATION_ROWS = 4096


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
class Data:
    """What is learned from, rewards transformed, and what is known of it."""

    training: Dataset
    validation: Dataset | None
    spec_json: str | None
    limits_json: str | None  # of the action, where there is no spec
    provenance: dict[str, Any]
    reward_scale: float  # the factor of reward_scaling
    statistics: dict[str, torch.Tensor]  # see summarise


class Sampler:
    """The batches of one seed, and what it draws.

    Attributes:
        generator: Decides both.
    """

    def __init__(self, columns: Batch, batch_size: int, seed: int) -> None:
        """Begin.

        Args:
            columns: All transitions, on the device where the learner is.
            batch_size: B.
            seed: Of the generator.
        """
        self._columns, self._size = columns, batch_size
        self.generator = torch.Generator(columns.rewards.device).manual_seed(seed)

    def draw(self, idql: IDQL) -> tuple[Batch, Draws]:
        """Return a batch, and what an update on it draws."""
        rows = len(self._columns.rewards)
        indices = torch.randint(
            rows, (self._size,), generator=self.generator, device=self.generator.device)
        return Batch(*(c[indices] for c in self._columns)), idql.draw(self._size, self.generator)


def arrange(alone: Sequence[IDQL], device: str) -> list[IDQL]:
    """Return what is updated to train learners side by side.

    On a GPU one learner that is all of them, whose products are batched. On a CPU each by itself,
    in turn: there a batch of products takes as long as one after the other, but rounds
    differently, and at a ReLU the last digit can decide: a seed would not be its run alone.
    """
    if device == 'cuda':
        return [(alone[0] if len(alone) == 1 else IDQL.stack(alone)).to(device)]
    return list(alone)


def updater(learners: Sequence[IDQL], samplers: Sequence[Sampler]) -> Callable[[], Info]:
    """Return what makes an update of every seed each time it is called.

    What it returns is what `IDQL.update` does, with an axis of seeds where there are several.

    Args:
        learners: As `arrange` returns them.
        samplers: One for each seed.
    """
    if len(learners) > 1:
        each = [updater([idql], [sampler])
                for idql, sampler in zip(learners, samplers, strict=True)]

        def update_each() -> Info:
            infos = [update() for update in each]
            return {key: torch.stack([info[key] for info in infos]) for key in infos[0]}

        return update_each
    idql, = learners

    def update(learn: Callable[..., Info]) -> Info:
        batches, draws = zip(*(sampler.draw(idql) for sampler in samplers), strict=True)
        return learn(_side_by_side(batches), *_side_by_side(draws))

    if samplers[0].generator.device.type == 'cuda':
        generators = [sampler.generator for sampler in samplers]
        return GraphedUpdate(idql, lambda: update(idql.learn), generators)
    return lambda: update(idql.update)


class Run:
    """What one seed has for itself: its data, its random numbers, and what it writes.

    Attributes:
        config: As if this seed trained alone.
        data: What it learns from.
        sampler: Its batches and draws.
        output: Its folder.
        log: What it writes on its way.
    """

    def __init__(self, config: TrainConfig, data: Data, columns: Batch, step: int) -> None:
        """Begin, or go on after an update.

        Args:
            config: As if this seed trained alone.
            data: What it learns from.
            columns: The same, on the device.
            step: Updates that were made before.
        """
        self.config, self.data = config, data
        self.sampler = Sampler(columns, config.batch_size, config.seed)
        self.output = Path(config.output)
        self.log = Log(self.output, step)
        self._validation = None
        if data.validation is not None:
            self._validation = fixed_sample(data.validation, config)

    def write_metrics(
        self, step: int, means: dict[str, float], alone: IDQL, updates_per_second: float
    ) -> None:
        """Write a row of metrics.

        Args:
            step: The update it follows.
            means: Of what the updates since the last row returned.
            alone: The learner as it is.
            updates_per_second: Of all seeds together, each counted once.

        Raises:
            DivergenceError: A loss is not finite.
        """
        row = dict(means)
        if self._validation is not None:
            row |= validation_losses(alone, *self._validation)
        row['updates_per_second'] = updates_per_second
        self.log.metrics(step, row)
        if not np.isfinite(list(row.values())).all():
            raise DivergenceError(
                f'update {step}: expected finite losses, found {row}; look at the learning rates '
                f'and the scale of the rewards, and at the metrics in {self.output}')

    def state(self, alone: IDQL, step: int, since: int, sums: Info) -> dict[str, Any]:
        """Return what a checkpoint holds.

        Args:
            alone: The learner as it is.
            step: The update it follows.
            since: Updates since the last row of metrics.
            sums: Over these, of what they returned.

        Raises:
            DivergenceError: A parameter is not finite.
        """
        model = alone.state_dict()
        for name, tensor in model.items():
            if not tensor.isfinite().all():
                raise DivergenceError(
                    f'update {step}: expected finite parameters, found {name} of seed '
                    f'{self.config.seed} otherwise; the checkpoint before stays. Look at the '
                    'learning rates and the scale of the rewards')
        return {
            'config': asdict(self.config),
            'spec_json': self.data.spec_json,
            'statistics': self.data.statistics,
            'provenance': self.data.provenance | {'updates': step},
            'step': step,
            'since': since,
            'sums': sums,
            'model': model,
            'optimisers': {k: o.state_dict() for k, o in alone.optimisers.items()},
            'generator': self.sampler.generator.get_state(),
        }

    def score(self, alone: IDQL, step: int, environment: str) -> None:
        """Export the policy and evaluate the file: greedy, and one diffusion sample.

        What was evaluated before a stop is not evaluated again.
        """
        missing = [n for n in sorted({1, self.config.idql.candidates})
                   if not self.log.has_evaluation(step, n)]
        if not missing:
            return
        spec_json, provenance = self.data.spec_json, self.data.provenance | {'updates': step}
        if spec_json is None:
            spec_json = plain_spec(environment).to_json()
            provenance |= {'environment': environment}
        path = self.output / f'policy-{step}.onnx'
        export(alone, spec_json, provenance, path, statistics=self.data.statistics)
        policy = Policy(path)
        for n in missing:
            results = evaluate(
                policy, environment, self.config.evaluate_episodes, 0, n,
                f'evaluate seed {self.config.seed} at {step}, N = {n}',
                parallel=self.config.evaluate_parallel)
            self.log.evaluation(step, n, results)


def train(config: TrainConfig) -> IDQL:
    """Train, writing logs and checkpoints on the way.

    Args:
        config: Everything there is to choose.

    Returns:
        The trained learner; the same as `load_checkpoint` gives from the output folder. With
        several seeds: all of them, side by side.

    Raises:
        ConfigError: There is no such device, or no environment to evaluate in.
        DatasetError: The dataset is absent or unfit.
        CheckpointError: There is nothing to resume, or it is another run's.
        DivergenceError: A loss is no longer finite.
        SimulationError: The environment is absent, or not that of the data.
        Stopped: SIGTERM or SIGINT came.
        OSError: Something cannot be written; the last checkpoint stays.
    """
    machine.prepare(config.threads)
    config = replace(config, device=config.device or machine.default_device())
    if config.device == 'cuda' and not torch.cuda.is_available():
        raise ConfigError('device: expected a GPU that PyTorch can use, found none')
    if config.idql.actor_decay_steps is None:
        _check_decay(config)
        config = replace(config, idql=replace(config.idql, actor_decay_steps=config.steps))
    learners, runs, start, since, sums = _begin(config)
    environment = None
    if config.evaluate_every is not None:
        environment = find_environment(config, runs[0].data.spec_json)
        check_environment(environment, runs[0].data, learners[0])

    update = updater(learners, [run.sampler for run in runs])

    def each() -> list[IDQL]:  # as it is, and as it stays while training goes on
        return [alone for idql in learners for alone in idql.unstack()]

    def scores_after(step: int) -> bool:
        return environment is not None and step > 0 and (
            step % config.evaluate_every == 0 or step == config.steps)

    with ExitStack() as logs, signals_received() as signals:
        def score(step: int, found: Sequence[IDQL]) -> None:
            # An evaluation takes minutes, and is made again on resuming: a signal ends it.
            with signals.ending(step, Path(config.output) / CHECKPOINT):
                for run, alone in zip(runs, found, strict=True):
                    run.score(alone, step, environment)

        for run in runs:
            logs.enter_context(run.log)
        if scores_after(start):  # a stop may have come between checkpoint and evaluation
            score(start, each())
        timed, started = start, time.perf_counter()
        for step in trange(start + 1, config.steps + 1, desc=config.dataset, unit='update',
                           initial=start, total=config.steps, dynamic_ncols=True):
            sums = {key: value + sums.get(key, 0) for key, value in update().items()}
            since += 1

            last = step == config.steps
            reports = step % config.log_every == 0 or last
            periodic = step % config.checkpoint_every == 0 or last
            scores = scores_after(step)
            if not (reports or periodic or scores or signals):
                continue
            found = each()
            if reports:
                rate = (step - timed) / (time.perf_counter() - started)
                for i, run in enumerate(runs):
                    means = {k: v.reshape(-1)[i].item() / since for k, v in sums.items()}
                    run.write_metrics(step, means, found[i], rate)
                sums, since, timed, started = {}, 0, step, time.perf_counter()
            if periodic or scores or signals:
                states = {}
                for i, run in enumerate(runs):
                    own = {key: value.reshape(-1)[i].cpu() for key, value in sums.items()}
                    states[run.output] = run.state(found[i], step, since, own)
                save_checkpoints({folder / CHECKPOINT: s for folder, s in states.items()})
                if periodic and config.keep_checkpoints:
                    save_checkpoints(
                        {folder / f'checkpoint-{step}.pt': s for folder, s in states.items()})
            if signals and not last:
                raise Stopped(signals[0], step, Path(config.output) / CHECKPOINT)
            if scores:
                paused = time.perf_counter()
                score(step, found)
                started += time.perf_counter() - paused
    return (learners[0] if len(learners) == 1 else IDQL.stack(learners)).eval()


def _begin(config: TrainConfig) -> tuple[list[IDQL], list[Run], int, int, Info]:
    """Return the learners, the seeds' runs, the updates done, those since a row, and its sums."""
    alone, runs, states = [], [], []
    data = None
    for own in each_seed(config):
        output = Path(own.output)
        # Seeds that split the dataset differently have data of their own.
        if data is None or own.validation_fraction > 0:
            data = load_data(own)
            columns = Batch(*(c.to(config.device) for c in to_batch(data.training)))
        step = 0
        if config.resume:
            states.append(_read_state(own, data))
            step = states[-1]['step']
        elif (output / CHECKPOINT).exists():
            raise CheckpointError(
                f'{output}: expected a folder without a checkpoint, found one; --resume goes on '
                'from it, another --output begins beside it')
        output.mkdir(parents=True, exist_ok=True)
        described = replace(data, provenance=data.provenance | {'config': describe(own)})
        run = Run(own, described, columns, step)
        if config.resume:
            run.sampler.generator.set_state(states[-1]['generator'])
            alone.append(learner(states[-1]))
        else:
            torch.manual_seed(own.seed)  # initial networks
            alone.append(build(own.idql, data.training, data.spec_json, data.limits_json))
        runs.append(run)
    steps = {state['step'] for state in states}
    if len(steps) > 1:
        raise CheckpointError(
            f'{config.output}: expected seeds that stopped after the same update, found '
            f'{sorted(steps)}; go on with each alone: --seed K --seeds 1 --output '
            f'{config.output}/seed-K')
    learners = arrange(alone, config.device)
    if not config.resume:
        return learners, runs, 0, 0, {}
    sums = {key: torch.stack([state['sums'][key] for state in states]).to(config.device)
            for key in states[0]['sums']}
    if len(alone) == 1:
        sums = {key: value[0] for key, value in sums.items()}
    return learners, runs, states[0]['step'], states[0]['since'], sums


def _read_state(config: TrainConfig, data: Data) -> dict[str, Any]:
    """Return the checkpoint that a seed goes on from."""
    path = Path(config.output) / CHECKPOINT
    if not path.is_file():
        raise CheckpointError(f'{path}: expected a checkpoint to go on from, found none; a run '
                              'begins without --resume')
    state = read_checkpoint(path)
    check_same_run(state, asdict(config), data.provenance, path)
    return state


def _side_by_side(parts: Sequence[Any]) -> Any:
    """Return named tuples of tensors as one, with a leading axis where there are several."""
    if len(parts) == 1:
        return parts[0]
    return type(parts[0])(*(
        None if tensors[0] is None else torch.stack(tensors)
        for tensors in zip(*parts, strict=True)))


def each_seed(config: TrainConfig) -> list[TrainConfig]:
    """Return the configuration of each seed as if it trained alone."""
    if config.seeds == 1:
        return [config]
    seeds = range(config.seed, config.seed + config.seeds)
    return [replace(config, seed=seed, seeds=1, output=str(Path(config.output) / f'seed-{seed}'))
            for seed in seeds]


def find_environment(config: TrainConfig, spec_json: str | None) -> str:
    """Return the environment that evaluations take place in.

    Raises:
        ConfigError: None is known.
    """
    robot = None if spec_json is None else json.loads(spec_json)['name']
    environment = config.environment or environments.ROBOTS.get(robot)
    if environment is None:
        raise ConfigError(
            f'environment: expected one to evaluate in, found none, and none is known for the '
            f'robot {robot} of {config.dataset}; give module:factory or an id of Gymnasium or '
            'OGBench, or no evaluate_every')
    return environment


def check_environment(environment: str, data: Data, idql: IDQL) -> None:
    """Raise SimulationError unless the policy can be evaluated in an environment."""
    env = environments.make(environment)
    try:
        comparability(data.provenance, env)
        spec = plain_spec(environment) if data.spec_json is None else specs.parse(
            json.loads(data.spec_json), 'the spec of the dataset')
        SimulatedRobot(env, spec, 0)
    finally:
        env.close()
    sizes = spec.observation_size, spec.action_size
    if sizes != (idql.observation_size, idql.action_size):
        raise environments.SimulationError(
            f'environment {environment}: expected {idql.observation_size} observations and '
            f'{idql.action_size} actions as in the dataset, found {sizes[0]} and {sizes[1]}')


def _check_decay(config: TrainConfig) -> None:
    """Raise CheckpointError where a run would be resumed for another number of updates.

    The actor's learning rate then had its cosine over the first number.
    """
    path = Path(each_seed(config)[0].output) / CHECKPOINT
    if not config.resume or not path.is_file():
        return
    decay = read_checkpoint(path)['config']['idql']['actor_decay_steps']
    if decay != config.steps:
        raise CheckpointError(
            f'steps: expected {decay} as in {path}, found {config.steps}: over these the learning '
            f'rate of the actor goes to 0. Give --idql.actor-decay-steps {decay} to keep to that '
            'with another number')


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
    scale = rewards.scale(config.reward_scaling, training.rewards, training.episodes)
    provenance = {
        'dataset': describe(config)['dataset'],
        'dataset_hash': dataset.content_hash(),
        'validation_hash': None if validation is None else validation.content_hash(),
        'dataset_metadata': shortened(metadata),
        'transitions': len(training.rewards),
        'episodes': len(np.unique(training.episodes)),
        'config': describe(config),
        'reward_scale': scale,  # what its reward_scaling came to
        'code_version': code_version(),
        'torch_version': str(torch.__version__),
    }
    if scale != 1 or config.reward_shift != 0:
        def transform(part: Dataset) -> Dataset:
            return replace(part, rewards=np.float32(scale) * part.rewards
                           + np.float32(config.reward_shift))

        training = transform(training)
        validation = None if validation is None else transform(validation)
    return Data(training, validation, spec_json, limits_json, provenance, scale,
                summarise(training.observations))


def describe(config: TrainConfig) -> dict[str, Any]:
    """Return a configuration as a policy's provenance has it.

    Where the files lay says nothing about the policy, which goes to other machines.
    """
    values = {key: value for key, value in asdict(config).items()
              if key not in ('root', 'output', 'resume', 'seeds')}
    if config.dataset.endswith('.hdf5'):
        values['dataset'] = Path(config.dataset).name
    return values


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


class Signals(list[int]):
    """The numbers of SIGTERM and SIGINT, as they come."""

    _ends = False

    def receive(self, number: int, frame: Any) -> None:
        """Take one; within `ending`, end what is going on."""
        self.append(number)
        if self._ends:
            raise KeyboardInterrupt

    @contextmanager
    def ending(self, step: int, path: Path) -> Iterator[None]:
        """Let a signal end the block, of which no result is needed.

        Args:
            step: The update that the checkpoint holds.
            path: Where it lies.

        Raises:
            Stopped: A signal came, before the block or within.
        """
        try:
            self._ends = True
            if self:
                raise KeyboardInterrupt
            yield
        except KeyboardInterrupt:
            if not self:
                raise
            raise Stopped(self[0], step, path) from None
        finally:
            self._ends = False


@contextmanager
def signals_received() -> Iterator[Signals]:
    """Collect SIGTERM and SIGINT instead of ending, so that an update is finished first."""
    received = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield received  # Python hands signals to the main thread only
        return
    kinds = signal.SIGTERM, signal.SIGINT
    before = [signal.signal(kind, received.receive) for kind in kinds]
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


def run_command(
    kind: type, read: Callable[[Path], Any], run: Callable[[Any], Any], program: str,
    arguments: Sequence[str] | None,
) -> None:
    """Do what a command line asks for, over what its --config FILE says.

    Args:
        kind: The configuration's class; its first field is left to the command line.
        read: Returns the configuration in a file.
        run: Takes the configuration.
        program: The command's name.
        arguments: Without the program's name; None: sys.argv.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('--config', type=Path)
    known, overrides = parser.parse_known_args(arguments)
    try:
        config = tyro.cli(
            kind,
            prog=program,
            description='--config FILE reads a YAML file first; every option below overrides it.',
            default=kind(tyro.MISSING) if known.config is None else read(known.config),
            args=overrides,
        )
        run(config)
    except Stopped as stopped:
        print(stopped)
        raise SystemExit(0 if stopped.signal == signal.SIGTERM else 130) from None
    except (DivergenceError, OSError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the command line says.

    Args:
        arguments: Without the program's name; None: sys.argv.
    """
    run_command(TrainConfig, read_config, train, 'python -m training.train', arguments)


if __name__ == '__main__':
    main()
