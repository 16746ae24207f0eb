"""Collect OGBench's data sets anew: `python -m training.collect NAME --output DIR`.

The `ogbench` package carries the scripted drivers of its manipulation sets and the shortest paths
of its mazes; this drives them with the settings of the published sets. Two files come of it,
DIR/NAME.npz and DIR/NAME-val.npz, in the layout that `ogbench.make_env_and_datasets` reads: one
row a step, of what was seen before the step and what was done, episode after episode:

    observations   o0  o1 ... on   o0  o1 ...     (rows, O) float32
    actions        a0  a1 ... an   a0  a1 ...     (rows, A) float32, in [-1, 1]
    terminals       0   0 ...  1    0   0 ...     (rows,) bool, 1 where an episode was cut
    qpos, qvel     the simulator's state at o     (rows, ...) float32
    button_states  where there are buttons        (rows, buttons) int64

The published sets were collected without a seed: these are drawn from the same distribution, but
are not the same numbers. Sets of images, and those whose driver was trained (the ant, the
humanoid), are not among them.
"""

from concurrent.futures import as_completed, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
import copy
from dataclasses import dataclass
import functools
import multiprocessing
import os
from pathlib import Path
import signal
import sys
from typing import Any, Literal

import gymnasium
import numpy as np
from tqdm import tqdm
from training import workers
import tyro

# Settings of the published sets, the same for all of them.
PLAN_NOISE = 0.1  # on the way points of "play", smoothed over time
PLAN_SMOOTHING = 0.5
MARKOV_NOISE = 0.1  # on the actions of "noisy": each episode draws its own, up to this
MARKOV_NOISE_SCALES = (1.0, 1.0, 1.0, 3.0, 10.0)  # x, y, z, yaw, gripper
MARKOV_SHORTEST_MOVE = 0.4
MAZE_NOISE = 0.5
# Cells between the start and the goal of a "stitch" episode.
STITCH_DISTANCE = 4
# How often a cube goes on top of another: each episode draws its own between these.
STACKING = {'cube-single': (0.0, 0.0), 'cube-double': (0.0, 0.25), 'cube-triple': (0.05, 0.35),
            'cube-quadruple': (0.1, 0.5)}
# Objects a driver handles, by the environment's family.
HANDLED = {'cube': ('cube',), 'scene': ('cube', 'button', 'drawer', 'window'),
           'puzzle': ('button',)}


class CollectError(ValueError):
    """A data set cannot be collected; says what was expected and found."""


@dataclass(frozen=True)
class Recipe:
    """How a data set is collected."""

    environment: str  # without the version, such as cube-single
    driver: Literal['play', 'noisy', 'navigate', 'stitch']
    episodes: int  # of training; validation has a tenth more
    steps: int  # of every episode
    random_actions: float = 0.0  # share of the steps

    def __post_init__(self) -> None:
        """Check the counts.

        Raises:
            CollectError: A count is below 1, or there is no next observation.
        """
        if self.episodes < 1 or self.steps < 2:
            raise CollectError(f'expected 1 episode or more of 2 steps or more, found '
                               f'{self.episodes} of {self.steps}')

    @property
    def validation_episodes(self) -> int:
        """Return how many episodes more are kept for validation, at least one."""
        return max(1, self.episodes // 10)


RECIPES = {
    **{f'{environment}-{driver}-v0': Recipe(
        environment, driver, episodes, 1001, 0.0 if driver == 'play' else random_actions)
       for environment, episodes, random_actions in (
           ('cube-single', 1000, 0.1), ('cube-double', 1000, 0.1), ('cube-triple', 3000, 0.1),
           ('cube-quadruple', 5000, 0.1), ('scene', 1000, 0.1), ('puzzle-3x3', 1000, 0.2),
           ('puzzle-4x4', 1000, 0.2), ('puzzle-4x5', 3000, 0.2), ('puzzle-4x6', 5000, 0.2))
       for driver in ('play', 'noisy')},
    **{f'pointmaze-{maze}-navigate-v0': Recipe(
        f'pointmaze-{maze}', 'navigate', 500 if maze == 'giant' else 1000,
        2001 if maze == 'giant' else 1001) for maze in ('medium', 'large', 'giant', 'teleport')},
    **{f'pointmaze-{maze}-stitch-v0': Recipe(f'pointmaze-{maze}', 'stitch', 5000, 201)
       for maze in ('medium', 'large', 'giant', 'teleport')},
}


class ManipulationDriver:
    """Moves, presses and opens things with the package's oracles, one target after another.

    Attributes:
        env: The environment.
        reached: How many targets were reached in the running episode.
    """

    def __init__(self, recipe: Recipe) -> None:
        """Make the environment and an oracle for each kind of object."""
        from ogbench.manipspace.oracles.markov.button_markov import ButtonMarkovOracle
        from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle
        from ogbench.manipspace.oracles.markov.drawer_markov import DrawerMarkovOracle
        from ogbench.manipspace.oracles.markov.window_markov import WindowMarkovOracle
        from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
        from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
        from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
        from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

        self._recipe = recipe
        self._family = recipe.environment.split('-')[0]
        self.env = gymnasium.make(
            f'{recipe.environment}-v0', terminate_at_goal=False, mode='data_collection',
            max_episode_steps=recipe.steps, disable_env_checker=True)
        if recipe.driver == 'play':
            kinds = {'cube': CubePlanOracle, 'button': ButtonPlanOracle,
                     'drawer': DrawerPlanOracle, 'window': WindowPlanOracle}
            settings = {'noise': PLAN_NOISE, 'noise_smoothing': PLAN_SMOOTHING}
        else:
            kinds = {'cube': CubeMarkovOracle, 'button': ButtonMarkovOracle,
                     'drawer': DrawerMarkovOracle, 'window': WindowMarkovOracle}
            settings = {'min_norm': MARKOV_SHORTEST_MOVE}
        if self._family == 'puzzle':
            settings['gripper_always_closed'] = True
        self._oracles = {
            kind: kinds[kind](env=self.env, **settings) for kind in HANDLED[self._family]}
        # The environment makes a new space, with a random seed, each time it is asked for one.
        self._actions = self.env.action_space
        # A reset leaves targets of kinds that it does not choose as the last episode had them.
        self._initial_targets = {
            name: copy.deepcopy(value) for name, value in vars(self.env.unwrapped).items()
            if name.startswith('_target_')}

    def seed(self, number: int) -> None:
        """Fix what `act` draws beside numpy's global state."""
        self._actions.seed(number)

    def start(self, seed: int | None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; return the first observation and the environment's info."""
        vars(self.env.unwrapped).update(copy.deepcopy(self._initial_targets))
        observation, info = self.env.reset(seed=seed)
        # What the published generator gives other environments than cubes has no effect.
        self._stacking = np.random.uniform(*STACKING.get(self._recipe.environment, (0.5, 0.5)))
        self._noise = np.random.uniform(0.0, MARKOV_NOISE) * np.array(MARKOV_NOISE_SCALES)
        self.reached = 0
        self._take(observation, info)
        return observation, info

    def _take(self, observation: np.ndarray, info: dict[str, Any]) -> None:
        """Give the target in `info` to the oracle that handles it."""
        self._oracle = self._oracles[info['privileged/target_task']]
        self._oracle.reset(observation, info)

    def act(self, observation: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """Return an action (5,), not yet clipped."""
        if np.random.uniform() < self._recipe.random_actions:
            return self._actions.sample()
        action = np.asarray(self._oracle.select_action(observation, info))
        if self._recipe.driver == 'noisy':
            action = action + np.random.normal(0.0, self._noise)
        return action

    def watch(self, info: dict[str, Any]) -> None:
        """Choose the next target where the oracle is done with this one."""
        if self._oracle.done:
            self.reached += bool(info['success'])
            self._take(*self.env.unwrapped.set_new_target(p_stack=self._stacking))

    def accepts(self, qpos: np.ndarray) -> bool:
        """Return whether an episode's states (steps, nq) may be kept.

        In a scene the cube must stay where the camera of the visual sets would see it, or in the
        drawer.
        """
        if self._family != 'scene':
            return True
        y, z = qpos[:, 15], qpos[:, 16]  # of the cube, in m
        beside_drawer = (y <= -0.3) & ((z < 0.06) | (z > 0.08))
        return not (np.any(y >= 0.29) or np.any(beside_drawer))


def maze_cells(walls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the cells to start in (n, 2) and those to go to (m, 2), of a maze map (1: wall)."""
    free = walls == 0
    # Not the cells of a straight corridor: crossings, corners and dead ends.
    north, south = np.roll(free, 1, 0), np.roll(free, -1, 0)
    west, east = np.roll(free, 1, 1), np.roll(free, -1, 1)
    straight = (north & south & ~west & ~east) | (west & east & ~north & ~south)
    return np.argwhere(free), np.argwhere(free & ~straight)


class MazeDriver:
    """Follows the shortest path to random goals ("navigate") or to one nearby goal ("stitch").

    Attributes:
        env: The environment.
        reached: How many goals were reached in the running episode.
    """

    def __init__(self, recipe: Recipe) -> None:
        """Make the environment and find the cells to start in and to go to."""
        import ogbench.locomaze  # noqa: F401 (registers its environments)

        self._recipe = recipe
        self.env = gymnasium.make(
            f'{recipe.environment}-v0', terminate_at_goal=False, render_mode=None,
            max_episode_steps=recipe.steps, disable_env_checker=True)
        self._maze = self.env.unwrapped
        self._cells, self._goals = maze_cells(self._maze.maze_map)

    def seed(self, number: int) -> None:
        """Fix what a reset draws beside numpy's global state and its own generator."""
        self._maze.action_space.seed(number)

    def start(self, seed: int | None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; return the first observation and the environment's info."""
        start, goals = _choose(self._cells), self._goals
        if self._recipe.driver == 'stitch':
            position = self._maze.ij_to_xy(start)
            _, distances = self._maze.get_oracle_subgoal(position, position)  # in cells
            near = np.argwhere(distances == STITCH_DISTANCE)
            goals = near if len(near) else start[None]
        self.reached = 0
        return self.env.reset(seed=seed, options={
            'task_info': {'init_ij': start, 'goal_ij': _choose(goals)}})

    def act(self, observation: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """Return an action (2,), not yet clipped."""
        position = self._maze.get_xy()
        subgoal, _ = self._maze.get_oracle_subgoal(position, self._maze.cur_goal_xy)
        way = subgoal - position
        return way / (np.linalg.norm(way) + 1e-6) + np.random.normal(0.0, MAZE_NOISE, 2)

    def watch(self, info: dict[str, Any]) -> None:
        """Choose the next goal where this one is reached, and only one is not wanted."""
        if not info['success']:
            return
        if self._recipe.driver == 'stitch':
            self.reached = 1
        else:
            self.reached += 1
            self._maze.set_goal(
                goal_xy=self._maze.add_noise(self._maze.ij_to_xy(_choose(self._goals))))

    def accepts(self, qpos: np.ndarray) -> bool:
        """Return whether an episode's states may be kept: always."""
        return True


def _choose(cells: np.ndarray) -> np.ndarray:
    """Return one of the cells (n, 2), by numpy's global state as all that the package draws."""
    return cells[np.random.randint(len(cells))]


@dataclass(frozen=True)
class Collected:
    """One episode, and how many targets its driver reached."""

    number: int
    columns: dict[str, np.ndarray]  # (steps, ...) each, as in the file
    reached: int


def collect_episode(recipe: Recipe, seed: int, number: int) -> Collected:
    """Return an episode, a function of (recipe, seed, number) alone.

    It seeds numpy's global generator, which environments and oracles draw from.

    Args:
        recipe: How to collect.
        seed: Of the data set.
        number: Of the episode; validation goes on where training ends.

    Raises:
        CollectError: The simulation gave numbers that are not finite.
    """
    driver = _driver(recipe)
    env = driver.env
    words = [int(word) for word in np.random.SeedSequence([seed, number]).generate_state(3)]
    np.random.seed(words[0])
    driver.seed(words[1])
    reset_seed: int | None = words[2]
    while True:
        observation, info = driver.start(reset_seed)
        reset_seed = None  # another try goes on drawing
        rows: dict[str, list[Any]] = {}
        done = False
        while not done:
            action = np.clip(driver.act(observation, info), -1.0, 1.0)
            following, _, terminated, truncated, info = env.step(action)
            done = terminated or truncated
            driver.watch(info)
            row = {'observations': observation, 'actions': action, 'terminals': done,
                   'qpos': info['prev_qpos'], 'qvel': info['prev_qvel']}
            if 'prev_button_states' in info:
                row['button_states'] = info['prev_button_states']
            for name, value in row.items():
                rows.setdefault(name, []).append(value)
            observation = following
        if driver.accepts(np.array(rows['qpos'])):
            break
    types = {'terminals': np.bool_, 'button_states': np.int64}
    columns = {name: np.array(values, types.get(name, np.float32))
               for name, values in rows.items()}
    for name, values in columns.items():
        if not np.isfinite(values).all():
            raise CollectError(f'episode {number}: expected finite {name}, found others: the '
                               'simulation is unstable')
    return Collected(number, columns, driver.reached)


@functools.cache
def _driver(recipe: Recipe) -> ManipulationDriver | MazeDriver:
    """Return the driver of this process: to make an environment takes as long as 300 steps."""
    kind = MazeDriver if recipe.driver in ('navigate', 'stitch') else ManipulationDriver
    return kind(recipe)


def collect(recipe: Recipe, path: Path, seed: int = 0, jobs: int = 1) -> str:
    """Collect a data set into PATH and its validation episodes into the sibling -val.npz.

    The files have their names only when they are whole. How many processes collect does not
    change them.

    Args:
        recipe: How to collect.
        path: The file of training, ending in .npz.
        seed: Of everything.
        jobs: Processes.

    Returns:
        A line that sums up what was written.

    Raises:
        CollectError: A file is there already, or an argument is out of range.
        OSError: A file cannot be written.
        BrokenProcessPool: A process ended early.
    """
    validation = path.with_name(f'{path.stem}-val.npz')
    for file in (path, validation):
        if file.exists():
            raise CollectError(f'{file} exists; choose another folder or remove it')
    if seed < 0 or jobs < 1:
        raise CollectError(f'expected a seed of 0 or more and 1 process or more, found seed '
                           f'{seed} and {jobs} processes')
    path.parent.mkdir(parents=True, exist_ok=True)
    episodes = recipe.episodes + recipe.validation_episodes
    columns: dict[str, np.ndarray] = {}
    reached = collected = 0
    # Processes of their own even where it is one: the caller's random state stays as it is, and
    # a simulator started afresh has nothing of the caller's threads and windows.
    with ProcessPoolExecutor(
        min(jobs, episodes), multiprocessing.get_context('spawn'), workers.begin
    ) as pool, tqdm(total=episodes * recipe.steps, desc=path.stem, unit='step', unit_scale=True,
                    dynamic_ncols=True) as bar:
        try:
            # No list of futures: it would keep what they returned a second time.
            for future in as_completed({pool.submit(collect_episode, recipe, seed, number)
                                        for number in range(episodes)}):
                episode = future.result()
                first = episode.number * recipe.steps
                for name, values in episode.columns.items():
                    if name not in columns:
                        columns[name] = np.empty(
                            (episodes * recipe.steps, *values.shape[1:]), values.dtype)
                    columns[name][first:first + recipe.steps] = values
                collected += 1
                reached += episode.reached
                bar.update(recipe.steps)
                bar.set_postfix_str(f'{reached / collected:.1f} targets an episode')
        except BaseException:
            # Waiting here: leaving the block would shut down again, and cancel nothing.
            pool.shutdown(cancel_futures=True)
            raise
    rows = recipe.episodes * recipe.steps
    # Training last: where it is, both are.
    _write([(validation, {name: values[rows:] for name, values in columns.items()}),
            (path, {name: values[:rows] for name, values in columns.items()})])
    return (f'{path}: {recipe.episodes} episodes of {recipe.steps} steps, and '
            f'{recipe.validation_episodes} for validation; {reached / episodes:.1f} targets '
            'reached in an episode')


def _write(files: list[tuple[Path, dict[str, np.ndarray]]]) -> None:
    """Write all the files, then give them their names."""
    # Still ending in .npz, or numpy would append it.
    written = [path.with_name(f'.{os.getpid()}.{path.name}') for path, _ in files]
    try:
        for temporary, (_, columns) in zip(written, files, strict=True):
            np.savez_compressed(temporary, **columns)
        for temporary, (path, _) in zip(written, files, strict=True):
            temporary.rename(path)
    finally:
        for temporary in written:
            temporary.unlink(missing_ok=True)


def main(
    name: tyro.conf.Positional[str],
    /,
    output: Path,
    episodes: int | None = None,
    seed: int = 0,
    jobs: int | None = None,
) -> None:
    """Collect one of OGBench's data sets anew, with the drivers of the ogbench package.

    Args:
        name: Of the data set, such as cube-single-play-v0.
        output: Folder for NAME.npz and NAME-val.npz.
        episodes: Of training; validation has a tenth more. Default: as many as published.
        seed: Of everything; together with the name and the number of episodes it fixes the files.
        jobs: Processes. Default: one for each core.
    """
    if name not in RECIPES:
        raise CollectError(f'{name}: expected one of {", ".join(RECIPES)}')
    recipe = RECIPES[name]
    if episodes is not None:
        recipe = Recipe(recipe.environment, recipe.driver, episodes, recipe.steps,
                        recipe.random_actions)
    print(collect(recipe, output / f'{name}.npz', seed,
                  (os.cpu_count() or 1) if jobs is None else jobs))


if __name__ == '__main__':
    # To be ended is to be interrupted: the processes are ended too, and no file is left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        tyro.cli(main)
    except KeyboardInterrupt:
        sys.exit('error: interrupted; nothing was written')
    except (CollectError, BrokenProcessPool, ImportError, OSError) as error:
        sys.exit(f'error: {error}')
