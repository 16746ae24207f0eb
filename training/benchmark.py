"""Train and score on public benchmarks: `python -m training.benchmark PRESET...`.

A preset is a data set, the environment that scores it, a file of `config/training/` and what
others have published on it; `--list` prints them. The output folder holds

    PRESET/           the run, as training.train leaves it; PRESET/seed-K with several seeds
    results.csv       a row for each preset: scores, intervals, published numbers
    results.md        the same as tables, with what the numbers mean
    results.png       scores beside the published ones, and learning curves

The same command again goes on where a run was stopped, trains no run that is finished, and writes
the tables anew. doc/benchmarks.md holds where the numbers come from.
"""

from collections.abc import Iterable, Mapping, Sequence
import csv
from dataclasses import dataclass, field, replace
import difflib
import io
import math
from pathlib import Path
import signal
import sys
from typing import Annotated, Any
import warnings

from idql_ros import environments
from idql_ros.environments import SimulationError
from matplotlib.figure import Figure
import numpy as np
from training import datasets
from training.checkpoint import CHECKPOINT
from training.collect import RECIPES
from training.config import read_config, TrainConfig
from training.datasets import Dataset
from training.evaluate import success_interval
from training.files import write_whole
from training.logs import EVALUATIONS
from training.train import DivergenceError, Stopped, train
import tyro

CONFIGS = Path(__file__).parents[1] / 'config' / 'training'
# The score of a run is the mean of its last so many evaluations, as in the paper of FQL.
COUNTED = 3

# Mean returns of a random and an expert policy, between which D4RL's normalised score runs from 0
# to 100: d4rl/infos.py of https://github.com/Farama-Foundation/D4RL.
REFERENCE_RETURNS = {
    'halfcheetah': (-280.178953, 12135.0),
    'hopper': (-20.272305, 3234.3),
    'walker2d': (1.629008, 4592.3),
}
# Where the d4rl package keeps its files, and where it takes them from.
D4RL_ROOT = '~/.d4rl/datasets'
D4RL_URL = 'http://rail.eecs.berkeley.edu/datasets/offline_rl'
OGBENCH_URL = 'https://rail.eecs.berkeley.edu/datasets/ogbench'

# The published numbers' columns: name in results.csv -> heading in results.md.
PUBLISHED = {
    'idql_a': 'IDQL-A',
    'idql_1': 'IDQL-1',
    'cleandiffuser_idql': 'CleanDiffuser IDQL',
    'best_known': 'best known',
    'idql_task': 'IDQL, this task',
    'idql_mean_of_tasks': 'IDQL, 5 tasks',
    'ifql_mean_of_tasks': 'IFQL, 5 tasks',
    'fql_mean_of_tasks': 'FQL, 5 tasks',
}
# Normalised scores of D4RL: IDQL-A, IDQL-1, CleanDiffuser's IDQL, the best known and its method.
GYM = {
    'halfcheetah-medium': (51.0, 49.7, 51.5, 71.2, 'BDPO'),
    'hopper-medium': (65.4, 63.1, 70.1, 104.0, 'DOSER'),
    'walker2d-medium': (82.5, 80.2, 88.1, 97.9, 'DAC'),
    'halfcheetah-medium-replay': (45.9, 45.1, 46.5, 63.0, 'DOSER'),
    'hopper-medium-replay': (92.1, 82.4, 99.4, 104.4, 'DOSER'),
    'walker2d-medium-replay': (85.1, 79.8, 89.1, 106.2, 'OFQL'),
    'halfcheetah-medium-expert': (95.9, 94.4, 91.3, 108.7, 'BDPO'),
    'hopper-medium-expert': (108.6, 105.3, 110.1, 112.3, 'DAC'),
    'walker2d-medium-expert': (112.7, 111.6, 110.6, 115.6, 'BDPO'),
}
# Success of D4RL's antmaze in %, IDQL-A; and what names the data set in the file's name.
ANTMAZE = {
    'umaze': (94.0, 'u-maze_noisy_multistart_False_multigoal_False'),
    'umaze-diverse': (80.2, 'u-maze_noisy_multistart_True_multigoal_True'),
    'medium-play': (84.5, 'big-maze_noisy_multistart_True_multigoal_False'),
    'medium-diverse': (84.8, 'big-maze_noisy_multistart_True_multigoal_True'),
    'large-play': (63.5, 'hardest-maze_noisy_multistart_True_multigoal_False'),
    'large-diverse': (67.9, 'hardest-maze_noisy_multistart_True_multigoal_True'),
}
# Success of OGBench's tasks in %, from the paper of FQL: IDQL, IFQL and FQL, each the mean of
# the five tasks, and IDQL on tasks 1 to 5.
OGBENCH = {
    'antmaze-large-navigate': (21, 28, 79, (0, 14, 26, 62, 2)),
    'cube-single-play': (95, 79, 96, (95, 96, 99, 93, 90)),
    'cube-double-play': (15, 14, 29, ()),
    'scene-play': (46, 30, 56, (100, 33, 94, 4, 0)),
    'puzzle-3x3-play': (10, 19, 30, ()),
    'puzzle-4x4-play': (29, 25, 17, ()),
    'pointmaze-medium-navigate': (None, None, None, ()),
}
# The task of an environment that hyper-parameters are chosen on.
DEFAULT_TASK = {'antmaze': 1, 'pointmaze': 1, 'cube': 2, 'scene': 2, 'puzzle': 4}
TASKS = range(1, 6)
# Short names of OGBENCH's.
ALIASES = {
    'antmaze-large': 'antmaze-large-navigate',
    'cube-single': 'cube-single-play',
    'cube-double': 'cube-double-play',
    'scene': 'scene-play',
    'puzzle-3x3': 'puzzle-3x3-play',
    'puzzle-4x4': 'puzzle-4x4-play',
    'pointmaze': 'pointmaze-medium-navigate',
}

# 0.975 quantiles of Student's t with 1, 2, ... degrees of freedom; with more, the last: no
# interval is too narrow by it.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201,
               2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086)


class BenchmarkError(ValueError):
    """A benchmark cannot be run or summed up; says what was expected and found."""


@dataclass(frozen=True)
class Preset:
    """A task of a benchmark."""

    name: str
    suite: str  # its table: a key of SUITES
    dataset: str  # as training.datasets.load takes it
    environment: str  # as idql_ros.environments.make takes it
    training: str  # file of config/training
    url: str  # of the published file
    robot: str = ''  # key of REFERENCE_RETURNS; empty: the score is the success
    published: Mapping[str, float | str] = field(default_factory=dict)  # by keys of PUBLISHED


# Table -> its title, what its scores are, and the columns of PUBLISHED that it has.
SUITES = {
    'd4rl-gym': (
        'D4RL gym v2', 'normalised score',
        ('idql_a', 'idql_1', 'cleandiffuser_idql', 'best_known')),
    'd4rl-antmaze': ('D4RL antmaze v0', 'success %', ('idql_a',)),
    'ogbench': (
        'OGBench, single tasks', 'success %',
        ('idql_task', 'idql_mean_of_tasks', 'ifql_mean_of_tasks', 'fql_mean_of_tasks')),
}


def all_presets() -> dict[str, Preset]:
    """Return the presets by name."""
    presets = []
    for name, (a, one, clean, best, method) in GYM.items():
        robot, _, kind = name.partition('-')
        file = f'{robot}_{kind.replace("-", "_")}-v2.hdf5'
        environment = {'halfcheetah': 'HalfCheetah', 'hopper': 'Hopper', 'walker2d': 'Walker2d'}
        presets.append(Preset(
            f'{name}-v2', 'd4rl-gym', file, f'{environment[robot]}-v4', 'd4rl_gym.yaml',
            f'{D4RL_URL}/gym_mujoco_v2/{file}', robot,
            {'idql_a': a, 'idql_1': one, 'cleandiffuser_idql': clean,
             'best_known': f'{best} ({method})'}))
    for name, (a, stem) in ANTMAZE.items():
        file = f'Ant_maze_{stem}_sparse.hdf5'
        presets.append(Preset(
            f'antmaze-{name}-v0', 'd4rl-antmaze', file, f'd4rl:antmaze-{name}-v0',
            'd4rl_antmaze.yaml', f'{D4RL_URL}/ant_maze_new/{file}', published={'idql_a': a}))
    for name, (idql, ifql, fql, tasks) in OGBENCH.items():
        environment = name.rpartition('-')[0]
        for task in TASKS:
            published = {'idql_task': tasks[task - 1] if tasks else None,
                         'idql_mean_of_tasks': idql, 'ifql_mean_of_tasks': ifql,
                         'fql_mean_of_tasks': fql}
            presets.append(Preset(
                f'{name}-task{task}', 'ogbench', f'{name}-singletask-task{task}-v0',
                f'{environment}-singletask-task{task}-v0', 'ogbench.yaml',
                f'{OGBENCH_URL}/{name}-v0.npz',
                published={k: v for k, v in published.items() if v is not None}))
    return {preset.name: preset for preset in presets}


def default_tasks() -> dict[str, str]:
    """Return the names of OGBench without a task, long and short -> the preset of the default."""
    default = {name: f'{name}-task{DEFAULT_TASK[name.split("-")[0]]}' for name in OGBENCH}
    return default | {alias: default[name] for alias, name in ALIASES.items()}


def find(names: Sequence[str]) -> list[Preset]:
    """Return presets by their names, each once; an OGBench name without a task: its default task.

    Raises:
        BenchmarkError: There is none of a name.
    """
    presets, default = all_presets(), default_tasks()
    found = {}
    for name in names:
        preset = presets.get(default.get(name, name))
        if preset is None:
            near = difflib.get_close_matches(name, [*presets, *default], 3)
            hint = f', such as {", ".join(near)}' if near else ''
            raise BenchmarkError(
                f'preset {name!r}: expected one of those that --list prints{hint}; found none of '
                'this name')
        found[preset.name] = preset
    return list(found.values())


def configure(
    preset: Preset, output: Path, root: str | None = None, config: Path | None = None,
    steps: int | None = None, seeds: int | None = None, episodes: int | None = None,
) -> TrainConfig:
    """Return what a preset trains with.

    Args:
        preset: The preset.
        output: Folder of all runs.
        root: Folder of the data; None: that of the file, or where the library of the data looks.
        config: Training file instead of the preset's.
        steps: Updates instead of the file's.
        seeds: How many, instead of the file's.
        episodes: Of an evaluation, instead of the file's.

    Raises:
        ValueError: The file cannot be used, or a number is out of range.
        OSError: There is no such file.
    """
    values = read_config(CONFIGS / preset.training if config is None else config)
    given = {'steps': steps, 'seeds': seeds, 'evaluate_episodes': episodes}
    values = replace(
        values, dataset=preset.dataset, environment=preset.environment,
        output=str(output / preset.name), root=values.root if root is None else root,
        **{name: value for name, value in given.items() if value is not None})
    if values.root is None and preset.dataset.endswith('.hdf5'):
        values = replace(values, root=D4RL_ROOT)
    if values.evaluate_every is None or COUNTED * values.evaluate_every > values.steps:
        # Ten evaluations, as the published 1 000 000 updates have: the last ones are counted.
        values = replace(values, evaluate_every=max(1, values.steps // 10))
    return replace(values, resume=any((run / CHECKPOINT).exists() for run in runs(values)))


def runs(config: TrainConfig) -> list[Path]:
    """Return the folders that a training leaves its runs in, one for each seed."""
    output = Path(config.output)
    if config.seeds == 1:
        return [output]
    return [output / f'seed-{config.seed + k}' for k in range(config.seeds)]


def wanted_file(preset: Preset, root: str | None) -> Path:
    """Return the file that holds a preset's data.

    Args:
        preset: The preset.
        root: Its folder; None: where the library of the data looks.
    """
    if preset.dataset.endswith('.hdf5'):
        return Path(D4RL_ROOT if root is None else root).expanduser() / preset.dataset
    return datasets.ogbench_file(preset.dataset, root)


def obstacle(preset: Preset, config: TrainConfig) -> str | None:
    """Return why a preset cannot be run here, in one line; None: it can."""
    file = wanted_file(preset, config.root)
    try:
        environments.make(preset.environment).close()
    except SimulationError as error:
        if preset.suite == 'd4rl-antmaze':
            return (f'{preset.name}: is scored in the environment of the d4rl package, expected '
                    f'as {preset.environment}, and that is missing: {str(error).rstrip(".")}; to '
                    'train without a score: `python -m training.train --config '
                    f'{CONFIGS / preset.training} --dataset {preset.dataset} --root '
                    f'{file.parent}`')
        return f'{preset.name}: {error}'
    if not file.is_file():
        ways = f'the published one is {preset.url}'
        if file.stem in RECIPES:
            ways = (f'`python -m training.collect {file.stem} --output {file.parent}` makes it '
                    f'anew, {ways}')
        return (f'{preset.name}: expected the data in {file}, found no such file; --root names '
                f'another folder; {ways}')
    return None


def normalised(robot: str, mean_return: float) -> float:
    """Return D4RL's normalised score of a mean return: 0 is random, 100 expert."""
    random, expert = REFERENCE_RETURNS[robot]
    return 100 * (mean_return - random) / (expert - random)


def data_score(preset: Preset, data: Dataset) -> 'Score':
    """Return the score of what recorded the data, rewards as in its file.

    Its interval is over the episodes: Wilson's of a success, the normal one of a mean return.

    Where success is scored, an episode counts that solves the task at any of its steps: whose
    mask is 0 there. Else it is the normalised mean return of the episodes.
    """
    _, numbers = np.unique(data.episodes, return_inverse=True)
    if preset.robot:
        returns = np.bincount(numbers, data.rewards.astype(np.float64))
        scores = np.array([normalised(preset.robot, float(value)) for value in returns])
        half = 1.959963984540054 * float(scores.std()) / math.sqrt(len(scores))
        return Score(float(scores.mean()), scores.mean() - half, scores.mean() + half)
    solved = np.bincount(numbers, data.masks == 0) > 0
    low, high = success_interval(int(solved.sum()), len(solved))
    return Score(100 * float(solved.mean()), 100 * low, 100 * high)


def read_data_score(preset: Preset, config: TrainConfig) -> 'Score':
    """Return the score of what recorded a preset's data.

    Raises:
        DatasetError: The data cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # training will warn of the same
        return data_score(preset, datasets.load(config.dataset, config.root)[0])


@dataclass(frozen=True)
class Evaluation:
    """A row of a run's evaluations.csv."""

    step: int
    episodes: int
    success: float  # share of the episodes
    mean_return: float


@dataclass(frozen=True)
class Score:
    """A score with its 95 % interval; nan where there is none."""

    mean: float
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        """Return it as a table shows it."""
        if math.isnan(self.low):
            return f'{self.mean:.1f}'
        return f'{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]'


@dataclass(frozen=True)
class Result:
    """What came of a preset."""

    preset: Preset
    training: str  # file's name
    updates: int
    candidates: int
    seeds: int
    evaluations: int  # that count, for each seed
    episodes: int  # of all that count
    score: Score  # candidates, greedy
    one_sample: Score  # one candidate, no critic
    data: Score
    curves: Mapping[int, tuple[list[int], list[float]]]  # candidates -> updates, scores


def read_evaluations(path: Path) -> dict[int, list[Evaluation]]:
    """Return a run's evaluations by their number of candidates, in the order of updates.

    Raises:
        BenchmarkError: The file does not hold them.
    """
    found: dict[int, dict[int, Evaluation]] = {}
    try:
        with open(path, newline='') as file:
            for row in csv.DictReader(file):
                step = int(row['step'])
                # Of a step that was evaluated twice, the later one.
                found.setdefault(int(row['candidates']), {})[step] = Evaluation(
                    step, int(row['episodes']), float(row['success']), float(row['mean_return']))
    except FileNotFoundError:
        raise BenchmarkError(f'{path}: expected the scores of a run, found none; was it trained '
                             'without an environment?') from None
    except (KeyError, TypeError, ValueError) as error:
        raise BenchmarkError(
            f'{path}: expected the columns step, candidates, episodes, success and mean_return, '
            f'all numbers, found {error}') from error
    return {n: [rows[step] for step in sorted(rows)] for n, rows in found.items()}


def of_evaluation(preset: Preset, evaluation: Evaluation) -> float:
    """Return the score of one evaluation."""
    if preset.robot:
        return normalised(preset.robot, evaluation.mean_return)
    return 100 * evaluation.success


def score(preset: Preset, seeds: Sequence[Sequence[Evaluation]]) -> Score:
    """Return the mean over seeds of the mean of the last evaluations, with its interval.

    The interval of a success is Wilson's over the episodes of these evaluations; seeds that
    differ by more than chance make it wider, as if the episodes were fewer by the ratio of the
    variances. That of a normalised score is Student's t over the seeds, and one seed has none.

    Args:
        preset: Says what the score is.
        seeds: The evaluations of each, in the order of updates.
    """
    counted = [evaluations[-COUNTED:] for evaluations in seeds]
    means = [np.mean([of_evaluation(preset, e) for e in run]) for run in counted]
    mean = float(np.mean(means))
    if preset.robot:
        if len(means) == 1:
            return Score(mean)
        quantile = T_QUANTILES[min(len(means) - 1, len(T_QUANTILES)) - 1]
        half = quantile * float(np.std(means, ddof=1)) / math.sqrt(len(means))
        return Score(mean, mean - half, mean + half)
    episodes = sum(e.episodes for run in counted for e in run)
    rate, fewer = mean / 100, 1.0
    if len(means) > 1 and 0 < rate < 1:
        by_chance = rate * (1 - rate) * len(means) / episodes
        fewer = max(1.0, float(np.var(np.array(means) / 100, ddof=1)) / by_chance)
    low, high = success_interval(rate * episodes / fewer, episodes / fewer)
    return Score(mean, 100 * low, 100 * high)


def read_result(preset: Preset, config: TrainConfig, training: str, data: Score) -> Result:
    """Return what came of a preset, from its finished runs.

    Args:
        preset: The preset.
        config: What it was trained with.
        training: Name of the training file.
        data: The score of the data.

    Raises:
        BenchmarkError: A run holds no scores, or not of this number of candidates, or not of its
            last update.
    """
    candidates = config.idql.candidates
    found = []
    for run in runs(config):
        evaluations = read_evaluations(run / EVALUATIONS)
        for n in (1, candidates):
            if n not in evaluations:
                raise BenchmarkError(
                    f'{run / EVALUATIONS}: expected scores with 1 and {candidates} candidates, '
                    f'found {sorted(evaluations)}')
            if evaluations[n][-1].step != config.steps:
                raise BenchmarkError(
                    f'{run / EVALUATIONS}: expected scores after {config.steps} updates, found '
                    f'the last of N = {n} after {evaluations[n][-1].step}; another --output '
                    'begins a run of that length')
        found.append(evaluations)
    counted = [e for evaluations in found for e in evaluations[candidates][-COUNTED:]]
    curves = {}
    for n in {1, candidates}:
        by_step = [{e.step: of_evaluation(preset, e) for e in run[n]} for run in found]
        steps = sorted(set.intersection(*(set(values) for values in by_step)))
        curves[n] = steps, [float(np.mean([v[step] for v in by_step])) for step in steps]
    return Result(
        preset, training, config.steps, candidates, len(found), len(counted) // len(found),
        sum(e.episodes for e in counted), score(preset, [run[candidates] for run in found]),
        score(preset, [run[1] for run in found]), data, curves)


def mean_of_tasks(results: Iterable[Result]) -> list[Result]:
    """Return a result more for each OGBench environment of which all five tasks are there.

    It is what the papers print. The mean's interval is made of the tasks' (Zou and Donner, 2008).
    """
    by_name = {result.preset.name: result for result in results}
    means = []
    for name, (idql, ifql, fql, _) in OGBENCH.items():
        if not all(f'{name}-task{task}' in by_name for task in TASKS):
            continue
        tasks = [by_name[f'{name}-task{task}'] for task in TASKS]

        def mean(scores: list[Score]) -> Score:
            middle = float(np.mean([s.mean for s in scores]))
            return Score(
                middle,
                middle - math.hypot(*(s.mean - s.low for s in scores)) / len(scores),
                middle + math.hypot(*(s.high - s.mean for s in scores)) / len(scores))

        published = {'idql_mean_of_tasks': idql, 'ifql_mean_of_tasks': ifql,
                     'fql_mean_of_tasks': fql}
        first = tasks[0]
        means.append(replace(
            first,
            preset=replace(
                first.preset, name=f'{name}, mean of the 5 tasks', dataset='',
                environment=first.preset.environment.replace('-task1', ''),
                published={k: v for k, v in published.items() if v is not None}),
            updates=min(t.updates for t in tasks), seeds=min(t.seeds for t in tasks),
            evaluations=min(t.evaluations for t in tasks),
            episodes=sum(t.episodes for t in tasks), score=mean([t.score for t in tasks]),
            one_sample=mean([t.one_sample for t in tasks]),
            data=mean([t.data for t in tasks]), curves={}))
    return means


def write(output: Path, results: Sequence[Result]) -> None:
    """Write results.csv, results.md and results.png into a folder, each whole or not at all.

    Raises:
        OSError: They cannot be written.
    """
    rows = [*results, *mean_of_tasks(results)]
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / 'results.csv', as_csv(rows).encode())
    write_whole(output / 'results.md', as_markdown(rows).encode())
    write_whole(output / 'results.png', as_picture(results))


def as_csv(results: Sequence[Result]) -> str:
    """Return a row of numbers for each result, empty where there is none."""
    def number(value: float) -> str:
        return '' if math.isnan(value) else f'{value:.2f}'

    rows = [{
        'preset': r.preset.name, 'dataset': r.preset.dataset,
        'environment': r.preset.environment, 'unit': SUITES[r.preset.suite][1],
        'training': r.training, 'updates': r.updates, 'candidates': r.candidates,
        'seeds': r.seeds, 'evaluations': r.evaluations, 'episodes': r.episodes,
        'score': number(r.score.mean), 'low': number(r.score.low), 'high': number(r.score.high),
        'one_sample': number(r.one_sample.mean), 'one_sample_low': number(r.one_sample.low),
        'one_sample_high': number(r.one_sample.high), 'data': number(r.data.mean),
        'data_low': number(r.data.low), 'data_high': number(r.data.high),
        **{name: r.preset.published.get(name, '') for name in PUBLISHED},
    } for r in results]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


NOTES = f"""\
Ours: N candidates of the policy file, the one with the largest Q (greedy). A seed's score is the
mean of its last {COUNTED} evaluations, or of as many as there are; here is the mean over seeds.
One sample: the same runs with N = 1, the diffusion model without the critic.
Data: of OGBench and antmaze the share of episodes that solve the task at any of their steps, after
relabelling for that task; of gym the normalised mean return of the file's episodes.

In brackets: 95 % intervals. Of a success: Wilson's, over the episodes of all evaluations that
count, of all seeds, as if independent, though all have the same starts; where seeds differ by more
than chance it is wider by that. Of a normalised score: Student's t over the seeds; with one seed
there is none, as the returns of single episodes are not kept. Of the data: over their episodes.

Normalised score: 100 (return - random) / (expert - random), with the d4rl package's references.

The published numbers, and how their protocols differ from ours:

* IDQL-A (tuned), IDQL-1 (one setting): arXiv 2304.10573. Actor and critic there have batches of
  1024 and 256, and 3 000 000 and 1 500 000 updates ("-A"); ours share batch and updates.
* CleanDiffuser IDQL: arXiv 2406.09509, which normalises observations.
* Best known, each with its own number of updates, seeds and evaluations: BDPO arXiv 2502.04778,
  DOSER 2605.08202, DAC 2405.20555, OFQL 2508.13904.
* IDQL, IFQL, FQL on OGBench: arXiv 2502.02538. 1 000 000 updates, 8 seeds, 50 episodes every
  100 000, mean of the last three evaluations. "5 tasks" is the mean over an environment's tasks.
* D4RL's gym v2 data were recorded and the published policies scored in Gym's v2 environments
  (mujoco-py). Ours are scored in Gymnasium's v4 (mujoco), which were made to train alike but are
  another simulator. Minari's data of these names are others and scored in v5: not comparable.
* OGBench data made anew by `training.collect` have the published distribution, but are not the
  same numbers.
"""


def as_markdown(results: Sequence[Result]) -> str:
    """Return a table for each suite, and what the numbers mean."""
    lines = ['# Benchmarks', '']
    for suite, (title, unit, columns) in SUITES.items():
        rows = [result for result in results if result.preset.suite == suite]
        if not rows:
            continue
        names = ['task', 'scored in', 'ours', 'one sample', 'data',
                 *(PUBLISHED[column] for column in columns), 'N', 'updates', 'seeds',
                 'episodes', 'training file']
        lines += [f'## {title}: {unit}', '', f'| {" | ".join(names)} |', '|---' * len(names) + '|']
        for r in rows:
            cells = [r.preset.name, r.preset.environment, str(r.score), str(r.one_sample),
                     str(r.data), *(str(r.preset.published.get(c, '')) for c in columns),
                     str(r.candidates), str(r.updates), str(r.seeds), str(r.episodes), r.training]
            lines.append(f'| {" | ".join(cells)} |')
        lines.append('')
    return '\n'.join([*lines, '![scores and learning curves](results.png)', '', NOTES])


def as_picture(results: Sequence[Result]) -> bytes:
    """Return a PNG: scores beside the published ones, and the learning curves."""
    figure = Figure(figsize=(14, max(4.5, 2 + 0.4 * len(results))), layout='constrained')
    scores, curves = figure.subplots(1, 2)
    markers = dict(zip(PUBLISHED, 'sD^*sDv^', strict=True))
    drawn: dict[str, list[tuple[float, int]]] = {}  # column -> (score, row)
    for row, result in enumerate(results):
        for name, value in result.preset.published.items():
            drawn.setdefault(name, []).append((float(str(value).split()[0]), row))
    for name, points in drawn.items():
        scores.scatter(*zip(*points, strict=True), marker=markers[name], alpha=0.7,
                       label=PUBLISHED[name])
    rows = np.arange(len(results))
    scores.scatter([r.data.mean for r in results], rows, marker='x', color='0.5', label='data')
    for label, found, place, style in (
        ('one sample', [r.one_sample for r in results], 0.15, {'color': '0.5'}),
        ('ours', [r.score for r in results], -0.15, {'color': 'black'}),
    ):
        means = np.array([s.mean for s in found])
        # Without an interval (nan) the point stands alone.
        ends = np.nan_to_num([[s.mean - s.low for s in found], [s.high - s.mean for s in found]])
        scores.errorbar(means, rows + place, xerr=ends.clip(0), fmt='o', capsize=3, label=label,
                        **style)
    scores.set(yticks=rows, yticklabels=[r.preset.name for r in results],
               xlabel='success % or normalised score', title='95 % intervals, published points')
    scores.invert_yaxis()
    scores.grid(axis='x', alpha=0.3)
    for place, result in enumerate(results):
        for n, (steps, values) in result.curves.items():
            greedy = n == result.candidates
            curves.plot(steps, values, f'C{place % 10}{"-" if greedy else ":"}', marker='.',
                        label=result.preset.name if greedy else None)
    curves.set(xlabel='updates', ylabel='success % or normalised score',
               title='learning curves (dotted: one sample)')
    for axis, side in ((scores, 'left'), (curves, 'right')):
        figure.legend(*axis.get_legend_handles_labels(), loc=f'outside lower {side}', ncols=3,
                      fontsize='small')
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=120)
    return buffer.getvalue()


def listing(root: str | None) -> str:
    """Return a line for each preset: data set, environment, file, and whether it is there.

    And below, a line for each short name.
    """
    rows = [('preset', 'data set', 'scored in', 'data', 'file')]
    for preset in all_presets().values():
        file = wanted_file(preset, root)
        rows.append((preset.name, preset.dataset, preset.environment,
                     'there' if file.is_file() else 'absent', str(file)))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        '  '.join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]])
        for row in rows]
    names = [f'{alias.ljust(widths[0])}  {default_tasks()[alias]}' for alias in ALIASES]
    return '\n'.join([*lines, '', f'{"short name".ljust(widths[0])}  preset', *names])


def run(
    presets: Sequence[Preset], configs: Sequence[TrainConfig], training: str, output: Path
) -> None:
    """Train, score and sum up.

    Nothing is trained unless everything can be: files, environments and data are looked at first.

    Args:
        presets: One or more.
        configs: What each trains with.
        training: Name of the training file for all; empty: each has its preset's.
        output: Folder of all.

    Raises:
        ValueError: A preset cannot be run.
        DivergenceError: A loss is no longer finite.
        Stopped: SIGTERM or SIGINT came.
        OSError: Something cannot be written.
    """
    pairs = list(zip(presets, configs, strict=True))
    obstacles = [why for preset, config in pairs if (why := obstacle(preset, config))]
    if obstacles:
        raise BenchmarkError('\n'.join([*obstacles, 'nothing was trained']))
    data = []
    for preset, config in pairs:
        data.append(read_data_score(preset, config))
        print(f'{preset.dataset}: {SUITES[preset.suite][1]} of the data {data[-1]}',
              flush=True)
    results: list[Result] = []
    for (preset, config), of_data in zip(pairs, data, strict=True):
        print(f'[{len(results) + 1}/{len(pairs)}] {preset.name}, scored in {preset.environment}: '
              f'{config.steps} updates, {config.seeds} seed{"s" * (config.seeds > 1)}, in '
              f'{config.output}', flush=True)
        train(config)
        results.append(read_result(preset, config, training or preset.training, of_data))
        # After each: who stops a long run has the tables of what is done.
        write(output, results)
        print(f'{preset.name}: {results[-1].score}, one sample {results[-1].one_sample}, data '
              f'{of_data}', flush=True)
    print(f'{output / "results.md"}')


def main(
    presets: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    list_presets: Annotated[bool, tyro.conf.arg(name='list'), tyro.conf.FlagCreatePairsOff]
    = False,
    output: Path = Path('runs/benchmark'),
    root: str | None = None,
    config: Path | None = None,
    steps: int | None = None,
    seeds: int | None = None,
    episodes: int | None = None,
) -> None:
    """Train and score on public benchmarks, and compare with what others have published.

    Args:
        presets: Names of tasks, such as cube-single-play-task2 or hopper-medium-v2. An OGBench
            name without a task, such as scene-play or scene, is the task that is tuned on.
        list_presets: Print all presets, the file that each wants and whether it is there, and the
            short names.
        output: Folder for the runs, results.csv, results.md and results.png.
        root: Folder of the data. Default: ~/.ogbench/data and ~/.d4rl/datasets.
        config: Training file for all presets, such as config/training/ogbench_cube_single.yaml
            for a CPU. Default: what was published, days on a CPU.
        steps: Updates instead of the training file's.
        seeds: Seeds instead of the training file's.
        episodes: Episodes of an evaluation instead of the training file's.
    """
    if list_presets:
        print(listing(root))
        return
    if not presets:
        raise BenchmarkError('expected one preset or more, found none; --list prints them')
    found = find(presets)
    configs = [configure(preset, output, root, config, steps, seeds, episodes)
               for preset in found]
    run(found, configs, '' if config is None else config.name, output)


def _call(arguments: Sequence[str] | None = None) -> Any:
    """Run the command, and end as a command ends.

    Args:
        arguments: Without the program's name; None: sys.argv.
    """
    try:
        tyro.cli(main, prog='python -m training.benchmark', args=arguments)
    except Stopped as stopped:
        print(f'stopped by {stopped.signal.name}; the same command goes on from there')
        sys.exit(0 if stopped.signal == signal.SIGTERM else 130)
    except KeyboardInterrupt:
        print('interrupted; the same command goes on from the last checkpoint')
        sys.exit(130)
    except (DivergenceError, OSError, ValueError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    _call()
