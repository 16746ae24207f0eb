"""Scripted drivers of OGBench's environments: who the recorded data come from.

The `ogbench` package carries oracles of its manipulation environments and the shortest paths of
its mazes; this drives them with the settings of the published sets. A driver says what it wants
as the environment's own action, of numbers in [-1, 1].
"""

import copy
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium
import numpy as np

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


class RecipeError(ValueError):
    """A data set cannot be described; says what was expected and found."""


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
            RecipeError: A count is below 1, or there is no next observation.
        """
        if self.episodes < 1 or self.steps < 2:
            raise RecipeError(f'expected 1 episode or more of 2 steps or more, found '
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

    def __init__(self, recipe: Recipe, env: Any) -> None:
        """Make an oracle for each kind of object of an environment that collects data."""
        from ogbench.manipspace.oracles.markov.button_markov import ButtonMarkovOracle
        from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle
        from ogbench.manipspace.oracles.markov.drawer_markov import DrawerMarkovOracle
        from ogbench.manipspace.oracles.markov.window_markov import WindowMarkovOracle
        from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
        from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
        from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
        from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

        self._recipe, self.env = recipe, env
        self._family = recipe.environment.split('-')[0]
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
        self._actions = gymnasium.spaces.Box(-1.0, 1.0, (5,), np.float32)
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
        self.begin(observation, info)
        return observation, info

    def begin(self, observation: np.ndarray, info: dict[str, Any]) -> None:
        """Take over an environment that was reset."""
        # What the published generator gives other environments than cubes has no effect.
        self._stacking = np.random.uniform(*STACKING.get(self._recipe.environment, (0.5, 0.5)))
        self._noise = np.random.uniform(0.0, MARKOV_NOISE) * np.array(MARKOV_NOISE_SCALES)
        self.reached = 0
        self._take(observation, info)

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


def _way(maze: Any, goal: np.ndarray) -> np.ndarray:
    """Return the direction (2,), of length 1, of the shortest path to a goal (2,) in m."""
    position = maze.get_xy()
    subgoal, _ = maze.get_oracle_subgoal(position, goal)
    way = subgoal - position
    return way / (np.linalg.norm(way) + 1e-6)


class MazeDriver:
    """Follows the shortest path to random goals ("navigate") or to one nearby goal ("stitch").

    Attributes:
        env: The environment.
        reached: How many goals were reached in the running episode.
    """

    def __init__(self, recipe: Recipe, env: Any) -> None:
        """Find the cells to start in and to go to."""
        self._recipe, self.env = recipe, env
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
        return _way(self._maze, self._maze.cur_goal_xy) + np.random.normal(0.0, MAZE_NOISE, 2)

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


class WanderingDriver:
    """Follows the shortest path of a maze to random goals, with noise, from where it stands."""

    def __init__(self, env: Any) -> None:
        """Find the goals."""
        self._maze = env.unwrapped
        _, self._goals = maze_cells(self._maze.maze_map)

    def seed(self, number: int) -> None:
        """Fix goals and noise."""
        self._generator = np.random.default_rng(number)

    def begin(self, observation: Any, info: dict[str, Any]) -> None:
        """Choose a first goal."""
        self._choose_goal()

    def _choose_goal(self) -> None:
        cell = self._goals[self._generator.integers(len(self._goals))]
        self._goal = np.array(self._maze.ij_to_xy(cell))

    def act(self, observation: Any, info: dict[str, Any]) -> np.ndarray:
        """Return an action (2,), not yet clipped."""
        if np.linalg.norm(self._maze.get_xy() - self._goal) <= self._maze._goal_tol:
            self._choose_goal()
        return _way(self._maze, self._goal) + self._generator.normal(0.0, MAZE_NOISE, 2)

    def watch(self, info: dict[str, Any]) -> None:
        """Need nothing: where it is shows at the next action."""
