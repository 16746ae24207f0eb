"""Collect OGBench's data sets anew: `python -m training.collect NAME --output DIR`.

With the drivers and the settings of the published sets. Two files come of it, DIR/NAME.npz and
DIR/NAME-val.npz, in the layout that `ogbench.make_env_and_datasets` reads: one row a step, of what
was seen before the step and what was done, episode after episode:

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
from dataclasses import dataclass
import functools
import multiprocessing
import os
from pathlib import Path
import signal
import sys
from typing import Any

import gymnasium
import numpy as np
from tqdm import tqdm
from training import workers
from training.drivers import ManipulationDriver, MazeDriver, Recipe, RecipeError, RECIPES
import tyro


class CollectError(ValueError):
    """A data set cannot be collected; says what was expected and found."""


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
    keys = {'terminate_at_goal': False, 'max_episode_steps': recipe.steps,
            'disable_env_checker': True}
    if recipe.driver in ('navigate', 'stitch'):
        import ogbench.locomaze  # noqa: F401 (registers its environments)

        return MazeDriver(recipe, gymnasium.make(
            f'{recipe.environment}-v0', render_mode=None, **keys))
    import ogbench.manipspace  # noqa: F401

    return ManipulationDriver(recipe, gymnasium.make(
        f'{recipe.environment}-v0', mode='data_collection', **keys))


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
    except (CollectError, RecipeError, BrokenProcessPool, ImportError, OSError) as error:
        sys.exit(f'error: {error}')
