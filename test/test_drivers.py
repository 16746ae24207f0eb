"""Scripted drivers: they do what the published sets show, and a seed fixes what they do."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip('gymnasium', reason='gymnasium is not installed')
pytest.importorskip('ogbench', reason='ogbench is not installed')
pytest.importorskip('tyro', reason='tyro is not installed')
import gymnasium  # noqa: E402
from idql_ros import environments  # noqa: E402
from training import collect, drivers  # noqa: E402
from training.drivers import Recipe, RECIPES, WanderingDriver  # noqa: E402

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')


def shortened(name, episodes, steps):
    """Return a recipe with fewer and shorter episodes."""
    return replace(RECIPES[name], episodes=episodes, steps=steps)


def test_the_driver_carries_the_cube_to_its_target():
    episode = collect.collect_episode(shortened('cube-single-play-v0', 1, 110), 0, 0)
    cube = episode.columns['qpos'][:, 14:17]
    assert episode.reached == 1
    assert cube[:, 2].max() > 0.1 and cube[-1, 2] < 0.05
    assert np.linalg.norm(cube[-1, :2] - cube[0, :2]) > 0.04


def test_pressed_buttons_are_kept():
    episode = collect.collect_episode(shortened('puzzle-3x3-play-v0', 1, 60), 0, 0)
    states = episode.columns['button_states']
    assert episode.reached >= 1
    assert states.dtype == np.int64 and states.shape == (60, 9)
    assert len(np.unique(states, axis=0)) > 1


def test_a_stitched_episode_goes_four_cells_and_stays():
    recipe = RECIPES['pointmaze-medium-stitch-v0']
    for number in range(5):
        episode = collect.collect_episode(recipe, 0, number)
        maze = collect._driver(recipe).env.unwrapped
        ends = [maze.xy_to_ij(episode.columns['qpos'][i]) for i in (0, -1)]
        _, distances = maze.get_oracle_subgoal(*map(maze.ij_to_xy, ends))
        assert episode.reached == 1
        assert abs(distances[ends[0]] - drivers.STITCH_DISTANCE) <= 1  # noise moves it at the end


@pytest.mark.parametrize(('y', 'z', 'accepted'), [
    (0.0, 0.02, True), (0.29, 0.02, False), (-0.31, 0.07, True), (-0.31, 0.02, False),
    (-0.31, 0.09, False)])
def test_a_scene_whose_cube_is_out_of_sight_is_not_kept(y, z, accepted):
    qpos = np.zeros((3, 25))
    qpos[1, 15:17] = y, z
    assert collect._driver(shortened('scene-noisy-v0', 4, 50)).accepts(qpos) == accepted


def test_recipes_are_those_of_the_published_sets():
    import ogbench.locomaze  # noqa: F401 (registers its environments)
    import ogbench.manipspace  # noqa: F401
    assert RECIPES['cube-single-play-v0'] == Recipe('cube-single', 'play', 1000, 1001, 0.0)
    assert RECIPES['cube-triple-noisy-v0'] == Recipe('cube-triple', 'noisy', 3000, 1001, 0.1)
    assert RECIPES['puzzle-4x6-noisy-v0'] == Recipe('puzzle-4x6', 'noisy', 5000, 1001, 0.2)
    assert RECIPES['pointmaze-giant-navigate-v0'] == Recipe(
        'pointmaze-giant', 'navigate', 500, 2001)
    assert RECIPES['pointmaze-large-stitch-v0'] == Recipe('pointmaze-large', 'stitch', 5000, 201)
    assert RECIPES['cube-single-play-v0'].validation_episodes == 100
    assert Recipe('cube-single', 'play', 3, 1001).validation_episodes == 1
    for name, recipe in RECIPES.items():
        gymnasium.spec(f'{recipe.environment}-v0')
        assert name == f'{recipe.environment}-{recipe.driver}-v0'


def wander(seed, steps):
    """Return where a wandering driver goes in the maze, (steps, 2) in m."""
    env = environments.make(environments.ROBOTS['pointmaze_medium'], terminate_at_goal=False,
                            max_episode_steps=steps + 1)
    _, info = env.reset(seed=0)
    driver = WanderingDriver(env)
    driver.seed(seed)
    driver.begin(None, info)
    path = []
    for _ in range(steps):
        env.step(2.0 * np.clip(driver.act(None, info), -1, 1).astype(np.float32))
        driver.watch(info)
        path.append(env.unwrapped.get_xy().copy())
    return np.array(path)


def test_a_wandering_driver_comes_about_in_the_maze_as_its_seed_says():
    path = wander(0, 3000)
    assert len(np.unique(np.round(path / 4), axis=0)) >= 15  # cells of 4 m
    assert np.array_equal(path[:200], wander(0, 200))
    assert not np.array_equal(path[:200], wander(1, 200))
