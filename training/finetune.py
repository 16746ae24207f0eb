"""Finetune IDQL online: `python -m training.finetune CHECKPOINT [--config FILE] [--overrides]`.

A policy trained on a dataset goes on to learn in an environment: it explores, and every update is
on a batch that is half dataset, half what exploration met. The environment is driven through the
messages of the spec, as in evaluation and by the nodes.

Writes into the output folder: checkpoint.pt (as training.train's, with what is needed to go on),
metrics.csv and TensorBoard events; where it evaluates, evaluations.csv and the policy files it
scored. A run that was stopped goes on with the same command and --resume, at the transition it
stopped at, and with a new episode.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
import hashlib
import json
from pathlib import Path
import time
from typing import Any, Literal, NamedTuple
import warnings

from idql_ros import environments
from idql_ros import message as messages
from idql_ros import spec as specs
from idql_ros.environments import SimulationError
from idql_ros.guard import Guard
from idql_ros.observer import Observer
from idql_ros.policy import choose, Decision, MAX_CANDIDATES, Policy
from idql_ros.simulated_robot import plain_spec, SimulatedRobot
import numpy as np
import torch
from tqdm import trange
from training import machine
from training.checkpoint import (
    check_same_run,
    CHECKPOINT,
    CheckpointError,
    learner,
    read_checkpoint,
    save_checkpoint,
)
from training.config import read_yaml, TrainConfig
from training.datasets import DatasetError
from training.evaluate import act, comparability, Decide, evaluate, tick_time
from training.export import export
from training.idql import Batch, IDQL, IDQLConfig, Info
from training.logs import Log, METRICS
from training.provenance import code_version
from training.statistics import summarise
from training.train import (
    Data,
    DivergenceError,
    load_data,
    run_command,
    signals_received,
    Stopped,
    to_batch,
)
import tyro

Actor = Literal['frozen', 'trained']

# Exploration's episodes start with seeds from here on, evaluation's from 0 on: the policy is never
# scored on a start that it has practised.
EXPLORATION_SEEDS = 2**31
MAX_SEED = 2**30


@dataclass(frozen=True)
class FinetuneConfig:
    """What to finetune, where, for how long, and where the results go.

    A step is a tick of the spec: one decision and one transition, however many steps of the
    environment it lasts.
    """

    # checkpoint.pt of training.train, or of an earlier finetuning.
    checkpoint: tyro.conf.Positional[str]
    # module:factory, or an id of Gymnasium or OGBench; None: that of the checkpoint's run, or of
    # the robot in its spec.
    environment: str | None = None
    # The dataset that the checkpoint was trained on; None: by the name it had then.
    dataset: str | None = None
    # Folder of the dataset; None: where it was then.
    root: str | None = None
    # Multiplies the environment's reward of a tick, before the checkpoint's own reward scaling and
    # shift: it turns the environment's unit of reward into the dataset's.
    reward_factor: float = 1.0
    # Folder for checkpoint, metrics, evaluations and TensorBoard events.
    output: str = 'runs/finetuned'
    # Steps: decisions in the environment.
    steps: int = 1_000_000
    # Steps before the first update.
    start_after: int = 5_000
    # Updates after each step from then on.
    updates_per_step: int = 1
    # Transitions per update, half of them from the dataset.
    batch_size: int = 512
    # trained: the behaviour model learns the new actions too. frozen: critics and value only.
    actor: Actor = 'trained'
    # Adam's learning rate for the noise predictor, constant; its cosine has ended by now.
    actor_learning_rate: float = 3e-5
    # How exploration chooses among the candidates.
    exploration: Literal['implicit', 'greedy'] = 'implicit'
    # N, the candidates of exploration and evaluation; None: those of the checkpoint.
    candidates: int | None = None
    # Seed of the episodes' starts, the candidates, the batches, diffusion steps, noise, dropout.
    seed: int = 0
    # Steps between two rows of metrics; a row holds means since the row before.
    log_every: int = 1_000
    # Steps between two checkpoints; the last step always writes one.
    checkpoint_every: int = 25_000
    # Steps between two evaluations of the policy as a file, greedy; the first comes before the
    # first step, the last after the last. None: no evaluation.
    evaluate_every: int | None = 25_000
    # Episodes of an evaluation, always from the same starts.
    evaluate_episodes: int = 50
    # Simulated robots at a time, each in a process of its own.
    evaluate_parallel: int = 4
    # Go on from the checkpoint in the output folder.
    resume: bool = False
    # CPU threads; None: PyTorch decides.
    threads: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: One is outside its range.
        """
        for name in ('steps', 'updates_per_step', 'log_every', 'checkpoint_every',
                     'evaluate_every', 'evaluate_episodes', 'evaluate_parallel', 'threads'):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f'{name}: expected 1 or more, found {value}')
        if self.start_after < 0:
            raise ValueError(f'start_after: expected 0 or more, found {self.start_after}')
        if self.batch_size < 2 or self.batch_size % 2:
            raise ValueError(f'batch_size: expected an even number of 2 or more, half of it from '
                             f'the dataset, found {self.batch_size}')
        if self.candidates is not None and not 1 <= self.candidates <= MAX_CANDIDATES:
            raise ValueError(
                f'candidates: expected 1 to {MAX_CANDIDATES}, found {self.candidates}')
        if not 0 < self.actor_learning_rate < np.inf:
            raise ValueError(f'actor_learning_rate: expected a number above 0, found '
                             f"{self.actor_learning_rate}; without learning it is actor 'frozen'")
        if not 0 < self.reward_factor < np.inf:
            raise ValueError(
                f'reward_factor: expected a number above 0, found {self.reward_factor}')
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f'seed: expected 0 to {MAX_SEED}, found {self.seed}')


class Transition(NamedTuple):
    """What a tick led to, in the spec's units."""

    observation: np.ndarray  # (O,) float32
    action: np.ndarray  # (A,) float32, as sent
    reward: float  # the environment's, summed over the tick
    mask: float  # 0 only at a true terminal
    next_observation: np.ndarray  # (O,) float32
    length: int  # environment's steps


class Replay:
    """What exploration met: up to a fixed number of transitions, none of them thrown away."""

    def __init__(self, capacity: int, observation_size: int, action_size: int) -> None:
        """Make room; memory is taken as it fills."""
        self._size = 0
        self._columns = Batch(
            torch.empty(capacity, observation_size), torch.empty(capacity, action_size),
            torch.empty(capacity), torch.empty(capacity), torch.empty(capacity, observation_size))

    def __len__(self) -> int:
        """Return the number of transitions."""
        return self._size

    def add(self, transition: Transition, reward: float) -> None:
        """Append a transition, with the reward that is learned from."""
        for column, value in zip(self._columns, (
                transition.observation, transition.action, reward, transition.mask,
                transition.next_observation), strict=True):
            column[self._size] = torch.as_tensor(value)
        self._size += 1

    def stored(self) -> Batch:
        """Return all transitions, oldest first; the tensors share the replay's memory."""
        return Batch(*(column[:self._size] for column in self._columns))

    def restore(self, stored: Mapping[str, torch.Tensor]) -> None:
        """Take transitions that `stored` gave, by column, in place of what is here."""
        self._size = len(stored['rewards'])
        for column, name in zip(self._columns, Batch._fields, strict=True):
            column[:self._size] = stored[name]


def mixed_batch(offline: Batch, online: Batch, size: int, generator: torch.Generator) -> Batch:
    """Draw a batch, with replacement: the first half offline, the second online.

    Args:
        offline: The dataset's transitions.
        online: The replay's, at least one.
        size: B, even.
        generator: Decides which.
    """
    def half(columns: Batch) -> Batch:
        chosen = torch.randint(len(columns.rewards), (size // 2,), generator=generator)
        return Batch(*(column[chosen] for column in columns))

    return Batch(*map(torch.cat, zip(half(offline), half(online), strict=True)))


def update(
    idql: IDQL, batch: Batch, actor: Actor, generator: torch.Generator
) -> Info:
    """Take one step of value and critics, and of the actor where it is trained.

    Args:
        idql: The learner.
        batch: In physical units.
        actor: Of a frozen one, neither the actor nor its average moves.
        generator: Of the actor's diffusion steps, noise and dropout.

    Returns:
        The losses and mean V and Q before the step.
    """
    if actor == 'trained':
        return idql.update(batch, *idql.draw(len(batch.rewards), generator))
    idql.begin_update()
    return idql.learn_critic(idql.network_units(batch))


def explorer(
    idql: IDQL, extraction: Literal['implicit', 'greedy'], candidates: int,
    generator: torch.Generator,
) -> Decide:
    """Return how exploration decides: with the learner as it is at that moment.

    Args:
        idql: The learner; its averaged actor proposes, its target critics and value weigh.
        extraction: See `idql_ros.policy.choose`.
        candidates: N.
        generator: Of noise and choice.
    """
    shape = 1, idql.config.diffusion_steps, candidates, idql.action_size

    def decide(observation: np.ndarray, _: int) -> Decision:
        noise = torch.randn(shape, generator=generator)
        observations = torch.from_numpy(observation)[None]
        with torch.no_grad():
            actions, q, v = (x[0].numpy() for x in idql(observations, noise))
        chosen = choose(
            q, float(v), extraction, uniform=torch.rand((), generator=generator).item(),
            critic_loss=idql.config.critic_loss, critic_parameter=idql.config.critic_parameter)
        return Decision(actions[chosen], float(q[chosen]), float(v), actions, q)

    return decide


def transitions(robot: SimulatedRobot, episode: int, decide: Decide) -> Iterator[Transition]:
    """Run an episode, tick by tick, as `training.evaluate.run_episode` does.

    A tick that a limit of the episode's length cuts short is no transition: it lasted less than
    the others. One that a true terminal cuts short is: nothing follows it. Where an observation
    is not valid, the ticks before and after it are none.

    Args:
        robot: The robot.
        episode: Its number; fixes start and stamps.
        decide: The policy; asked again only after the transition before was taken.

    Raises:
        SimulationError: There is neither a valid observation nor a stop that could be sent.
    """
    spec = robot.spec
    observer, guard = Observer(spec), Guard(spec)
    robot.reset(episode)
    before: np.ndarray | None = None  # the valid observation that the action at hand answers
    action, total_reward, length = np.zeros(0, np.float32), 0.0, 0
    while True:
        for topic, message in robot.observe().items():
            observer.add(topic, message, robot.time_ns)
        if robot.at_tick or robot.terminated:
            tick_ns = robot.time_ns if robot.over else tick_time(spec, observer, robot.time_ns)
            observation, reasons = (
                observer.observe(tick_ns) if robot.over else observer.observe_tick(tick_ns))
            if before is not None and observation is not None:
                yield Transition(
                    before, action, robot.total_reward - total_reward,
                    0.0 if robot.terminated else 1.0, observation, robot.length - length)
            if not robot.over:
                sent, _ = act(
                    tick_ns, observation, reasons, observer.hold_s(tick_ns), guard, decide)
                commands = messages.write_topics(spec.actions, sent, tick_ns, messages.blank)
                action = robot.read_action(commands)
                before, total_reward, length = observation, robot.total_reward, robot.length
        if robot.over:
            return
        robot.advance(action)


def explore(
    robot: SimulatedRobot, episode: int, decide: Decide,
    finished: Callable[[float, bool, int], None],
) -> Iterator[Transition]:
    """Run episode after episode, without end; no transition reaches from one into another.

    Args:
        robot: The robot.
        episode: The first episode's number.
        decide: The policy.
        finished: Told return, success and length (environment's steps) of an episode at its end.

    Raises:
        SimulationError: An episode holds no transition.
    """
    while True:
        found = False
        for transition in transitions(robot, episode, decide):
            found = True
            yield transition
        if not found:
            raise SimulationError(
                f'episode {episode}: expected transitions, found none in {robot.length} steps of '
                f'the environment, {robot.steps_per_tick} to a tick; look at rate and max_age in '
                'the spec')
        finished(robot.total_reward, robot.success, robot.length)
        episode += 1


@dataclass
class Progress:
    """How far a finetuning is, and what the row of metrics to come is made of."""

    step: int = 0
    environment_steps: int = 0
    episode: int = 0  # the next to begin
    updates: int = 0  # in the row, as all that follows
    sums: dict[str, torch.Tensor] = field(default_factory=dict)  # of the updates' losses
    # Return, success, length (environment's steps) of the episodes that ended.
    ended: list[list[float]] = field(default_factory=list)

    def add(self, info: Info) -> None:
        """Count an update."""
        self.updates += 1
        self.sums = {key: value + self.sums.get(key, 0) for key, value in info.items()}

    def take_row(self, actor: Actor) -> dict[str, float | None]:
        """Return the row's means, None where there was nothing, and begin another row."""
        ended = np.array(self.ended, np.float64).reshape(-1, 3)
        means = ended.mean(0).tolist() if len(ended) else [None] * 3
        losses = ([] if actor == 'frozen' else ['actor_loss']) + [
            'value_loss', 'v', 'critic_loss', 'q']
        row = {
            'episodes': len(ended),
            **dict(zip(('episode_return', 'episode_success', 'episode_length'), means,
                       strict=True)),
            **{key: self.sums[key].item() / self.updates if self.updates else None
               for key in losses},
        }
        self.updates, self.sums, self.ended = 0, {}, []
        return row


def finetune(config: FinetuneConfig) -> IDQL:
    """Finetune, writing logs and checkpoints on the way.

    Args:
        config: Everything there is to choose.

    Returns:
        The learner; the same as `load_checkpoint` gives from the output folder.

    Raises:
        CheckpointError: There is no checkpoint to begin with or to resume, or it is another run's.
        DatasetError: The dataset is absent, or not the one of the checkpoint.
        SimulationError, MessageError: Environment and spec disagree.
        DivergenceError: A loss is no longer finite.
        Stopped: SIGTERM or SIGINT came.
        OSError: Something cannot be written; the last checkpoint stays.
    """
    machine.prepare(config.threads)
    source, output = Path(config.checkpoint), Path(config.output)
    if source.resolve() == (output / CHECKPOINT).resolve():
        raise CheckpointError(
            f'{source}: expected an output folder other than that of the checkpoint, which would '
            'be written over; to go on with a finetuning, name the checkpoint it began with')
    original = read_checkpoint(source)
    data = read_data(config, original)
    environment, spec = read_robot(config, original)
    robot = SimulatedRobot(
        environments.make(environment), spec, EXPLORATION_SEEDS + config.seed)
    comparability(original['provenance'], robot.env)  # refuses another task than the data's
    # The learner goes on as it was trained, but for the actor's learning rate.
    training = original['config'] | {'idql': original['config']['idql'] | {
        'actor_learning_rate': config.actor_learning_rate, 'actor_decay_steps': None}}
    # A checkpoint is known by its numbers, wherever it lies.
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    run = asdict(config) | {'checkpoint': digest, 'environment': environment}

    output.mkdir(parents=True, exist_ok=True)
    exploring = torch.Generator().manual_seed(config.seed)  # candidates and their choice
    learning = torch.Generator().manual_seed(config.seed + 1)  # batches and the updates' draws
    if config.resume:
        resumed = read_resumed(output / CHECKPOINT)
        before = resumed['finetuning']
        check_same_run(
            {'config': before['config'] | {
                'explored': before['config']['environment'], 'idql': resumed['config']['idql']},
             'provenance': resumed['provenance']},
            run | {'explored': environment, 'idql': training['idql']}, data.provenance,
            output / CHECKPOINT)
        idql, progress = learner(resumed), Progress(**before['progress'])
        exploring.set_state(before['exploring'])
        learning.set_state(before['learning'])
    else:
        idql, progress = learner(original | {'config': training}), Progress()
    start, sizes = progress.step, (idql.observation_size, idql.action_size)
    if (spec.observation_size, spec.action_size) != sizes:
        raise SimulationError(
            f'environment {environment}: expected {sizes[0]} observations and {sizes[1]} actions '
            f'as {source} has, found {spec.observation_size} and {spec.action_size}')
    replay = Replay(max(config.steps, start), *sizes)
    if config.resume:
        replay.restore(before['replay'])
    offline = to_batch(data.training)
    candidates = config.candidates or idql.config.candidates
    explored = explore(
        robot, progress.episode, explorer(idql, config.exploration, candidates, exploring),
        lambda *episode: progress.ended.append(list(episode)))

    def scores_after(step: int) -> bool:
        return config.evaluate_every is not None and (
            step % config.evaluate_every == 0 or step == config.steps)

    def statistics() -> dict[str, torch.Tensor]:
        """Return what is to be told of all that was learned from, exploration included."""
        return summarise(offline.observations.numpy(), replay.stored().observations.numpy())

    def save() -> None:
        """Write the checkpoint of the last step."""
        save_checkpoint(output / CHECKPOINT, original | {
            'config': training,
            'statistics': statistics(),
            'provenance': provenance(original, run, progress, idql),
            'step': idql.updates,
            'model': idql.state_dict(),
            'optimisers': {k: o.state_dict() for k, o in idql.optimisers.items()},
            'finetuning': {
                'config': run,
                'progress': vars(progress),
                'exploring': exploring.get_state(),
                'learning': learning.get_state(),
                # Copies: saved as they are, they would bring all the room that is left.
                'replay': {k: v.clone() for k, v in replay.stored()._asdict().items()},
            },
        })

    with Log(output, start) as log, signals_received() as signals:
        def score() -> None:
            """Evaluate the policy file that would be exported now."""
            # An evaluation takes minutes, and is made again on resuming: a signal ends it.
            with signals.ending(idql.updates, output / CHECKPOINT):
                path = output / f'policy-{progress.step}.onnx'
                export(idql, spec.to_json(), provenance(original, run, progress, idql), path,
                       statistics=statistics())
                log.evaluation(progress.step, candidates, evaluate(
                    Policy(path), environment, config.evaluate_episodes, 0, candidates,
                    f'evaluate at {progress.step}', parallel=config.evaluate_parallel))

        # A stop may have come between checkpoint and evaluation.
        if scores_after(start) and not log.has_evaluation(start, candidates):
            if not config.resume:
                save()
            score()
        timed, updated, started = start, idql.updates, time.perf_counter()
        for step in trange(start + 1, config.steps + 1, desc='finetune', unit='step',
                           initial=start, total=config.steps, dynamic_ncols=True):
            transition = next(explored)
            replay.add(transition, data.reward_scale * config.reward_factor * transition.reward
                       + training['reward_shift'])
            progress.step = step
            progress.episode = robot.episode + 1
            progress.environment_steps += transition.length
            if step == config.start_after + 1:
                warn_of_other_rewards(offline.rewards, replay.stored().rewards)
            for _ in range(config.updates_per_step if step > config.start_after else 0):
                batch = mixed_batch(offline, replay.stored(), config.batch_size, learning)
                info = update(idql, batch, config.actor, learning)
                if not torch.stack(list(info.values())).isfinite().all():
                    found = {key: value.item() for key, value in info.items()}
                    raise DivergenceError(
                        f'step {step}: expected finite losses, found {found}; look at the '
                        f'learning rates and the scale of the rewards, and at {output / METRICS}')
                progress.add(info)

            last = step == config.steps
            if step % config.log_every == 0 or last:
                seconds = time.perf_counter() - started
                log.metrics(step, progress.take_row(config.actor) | {
                    'replay': len(replay),
                    'updates_per_second': (idql.updates - updated) / seconds,
                    'steps_per_second': (step - timed) / seconds})
                timed, updated, started = step, idql.updates, time.perf_counter()

            scores = scores_after(step)
            if step % config.checkpoint_every == 0 or last or scores or signals:
                save()
            if signals and not last:
                raise Stopped(signals[0], idql.updates, output / CHECKPOINT)
            if scores:
                paused = time.perf_counter()
                score()
                started += time.perf_counter() - paused
    return idql.eval()


def provenance(
    original: Mapping[str, Any], run: Mapping[str, Any], progress: Progress, idql: IDQL
) -> dict[str, Any]:
    """Return where a finetuned policy comes from: its offline training, then each finetuning."""
    elsewhere = ('dataset', 'root', 'output', 'resume')
    before = original['provenance']
    # As training.export has it for a policy that no robot's spec says where to run.
    plain = {'environment': run['environment']} if original['spec_json'] is None else {}
    return before | plain | {
        'updates': idql.updates,
        'finetuned': [*before.get('finetuned', []), {
            'checkpoint_sha256': run['checkpoint'],
            'environment': run['environment'],
            'environment_steps': progress.environment_steps,
            'transitions': progress.step,
            'config': {key: value for key, value in run.items() if key not in elsewhere},
            'code_version': code_version(),
            'torch_version': str(torch.__version__),
        }],
    }


def read_data(config: FinetuneConfig, original: Mapping[str, Any]) -> Data:
    """Return the dataset of a checkpoint, rewards transformed as they were for it.

    Raises:
        DatasetError: It is absent, or not the one that the checkpoint was trained on.
    """
    values = original['config']
    training = TrainConfig(**values | {'idql': IDQLConfig(**values['idql'])})
    if config.dataset is not None:
        training = replace(training, dataset=config.dataset)
    if config.root is not None:
        training = replace(training, root=config.root)
    data = load_data(training)
    expected, found = (p['dataset_hash'] for p in (original['provenance'], data.provenance))
    if expected != found:
        raise DatasetError(
            f'dataset {training.dataset}: expected the data that {config.checkpoint} was trained '
            f'on, with hash {expected}, found {found}; look at --dataset and --root, or train '
            'offline on this dataset first')
    return data


def read_robot(config: FinetuneConfig, original: Mapping[str, Any]) -> tuple[str, specs.Spec]:
    """Return the environment's name and the spec that it is driven by.

    Raises:
        SimulationError: No environment is known, or only code to run, which is not for a file to
            say.
        SpecError: The checkpoint's spec cannot be used.
    """
    environment = config.environment or original['config']['environment']
    if config.environment is None and ':' in (environment or ''):
        raise SimulationError(
            f'{config.checkpoint}: expected the id of an environment, found {environment}, which '
            'would run code that the file names; if you trust it, give it as --environment')
    if original['spec_json'] is None:
        if environment is None:
            raise SimulationError(
                f'{config.checkpoint}: the dataset has no spec, and so names no robot: give '
                '--environment')
        return environment, plain_spec(environment)
    spec = specs.parse(json.loads(original['spec_json']), f'{config.checkpoint}: spec')
    environment = environment or environments.ROBOTS.get(spec.name)
    if environment is None:
        raise SimulationError(
            f'{config.checkpoint}: no environment is known for the robot {spec.name}: give '
            '--environment')
    return environment, spec


def read_resumed(path: Path) -> dict[str, Any]:
    """Return the checkpoint that a finetuning goes on from.

    Raises:
        CheckpointError: There is none.
    """
    if not path.is_file():
        raise CheckpointError(f'{path}: expected a checkpoint to go on from, found none; a run '
                              'begins without --resume')
    content = read_checkpoint(path)
    if 'finetuning' not in content:
        raise CheckpointError(f'{path}: expected a checkpoint of training.finetune to go on from, '
                              'found one of training.train; a run begins without --resume')
    return content


def warn_of_other_rewards(offline: torch.Tensor, online: torch.Tensor) -> None:
    """Warn of rewards (M,) online that lie far from those (M',) of the dataset.

    Critics that learn from two units of reward at a time learn neither.
    """
    smallest, largest = offline.min().item(), offline.max().item()
    extent = largest - smallest
    found = online.min().item(), online.max().item()
    if found[0] < smallest - extent or found[1] > largest + extent:
        warnings.warn(
            f'reward: expected a tick to give what the dataset has, {smallest:.4g} to '
            f'{largest:.4g}, found {found[0]:.4g} to {found[1]:.4g}; is it the same reward in the '
            'same unit? Look at reward_factor', stacklevel=3)


def read_config(path: Path) -> FinetuneConfig:
    """Return the configuration in a YAML file; see `training.config.read_yaml`."""
    return read_yaml(FinetuneConfig, path, 'checkpoint')


def main(arguments: Sequence[str] | None = None) -> None:
    """Finetune as the command line says.

    Args:
        arguments: Without the program's name; None: sys.argv.
    """
    run_command(
        FinetuneConfig, read_config, finetune, 'python -m training.finetune', arguments)


if __name__ == '__main__':
    main()
