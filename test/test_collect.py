"""Collected data sets: fixed by their seed, read by ogbench, and whole or not there."""

import contextlib
from dataclasses import replace
import os
from pathlib import Path
import signal
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip('gymnasium', reason='gymnasium is not installed')
ogbench = pytest.importorskip('ogbench', reason='ogbench is not installed')
pytest.importorskip('tyro', reason='tyro is not installed')
from training import collect  # noqa: E402
from training.collect import CollectError  # noqa: E402
from training.drivers import RecipeError, RECIPES  # noqa: E402

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')
ROOT = Path(__file__).parents[1]
# With it the point is at the goal of its task for some of 60 steps.
SEED_AT_GOAL = 22


def shortened(name, episodes, steps):
    """Return a recipe with fewer and shorter episodes."""
    return replace(RECIPES[name], episodes=episodes, steps=steps)


def equal(one, other):
    """Return whether two episodes are the same numbers."""
    assert one.columns.keys() == other.columns.keys()
    return all(np.array_equal(values, other.columns[name])
               for name, values in one.columns.items())


# Episode 3 of the scene goes on to a kind of object that its beginning does not set: without
# care it would see what episode 0 wanted of it.
@pytest.mark.parametrize(('name', 'number'), [
    ('scene-noisy-v0', 3), ('cube-single-play-v0', 1), ('pointmaze-medium-navigate-v0', 1),
    ('pointmaze-teleport-stitch-v0', 1)])
def test_an_episode_is_a_function_of_seed_and_number_alone(name, number):
    recipe = replace(shortened(name, 4, 50), random_actions=0.0)
    collect.collect_episode(recipe, 0, 0)
    after = collect.collect_episode(recipe, 0, number)
    collect._driver.cache_clear()
    np.random.seed(99)
    alone = collect.collect_episode(recipe, 0, number)
    assert equal(after, alone)
    assert not equal(alone, collect.collect_episode(recipe, 1, number))
    assert not equal(alone, collect.collect_episode(recipe, 0, number + 1))


def test_random_actions_are_seeded_too():
    recipe = replace(shortened('cube-single-noisy-v0', 1, 20), random_actions=1.0)
    assert equal(collect.collect_episode(recipe, 0, 0), collect.collect_episode(recipe, 0, 0))


def test_the_number_of_processes_does_not_change_the_files(tmp_path):
    recipe = shortened('pointmaze-large-stitch-v0', 12, 30)
    state = np.random.get_state()[1].copy()
    for jobs in (1, 2):
        collect.collect(recipe, tmp_path / str(jobs) / 'a.npz', seed=3, jobs=jobs)
    for file in ('a.npz', 'a-val.npz'):
        assert (tmp_path / '1' / file).read_bytes() == (tmp_path / '2' / file).read_bytes()
    assert np.array_equal(np.random.get_state()[1], state)


def test_files_hold_the_episodes_in_order_with_those_of_validation_last(tmp_path):
    recipe = shortened('pointmaze-medium-navigate-v0', 12, 30)
    summary = collect.collect(recipe, tmp_path / 'a.npz', seed=3, jobs=2)
    assert '12 episodes of 30 steps, and 1 for validation' in summary
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a-val.npz', 'a.npz']
    types = {'observations': np.float32, 'actions': np.float32, 'terminals': np.bool_,
             'qpos': np.float32, 'qvel': np.float32}
    for file, numbers in (('a.npz', range(12)), ('a-val.npz', [12])):
        with np.load(tmp_path / file) as found:
            assert {name: found[name].dtype for name in found} == types
            assert np.flatnonzero(found['terminals']).tolist() == [
                30 * (i + 1) - 1 for i in range(len(numbers))]
            assert np.abs(found['actions']).max() <= 1
            for i, number in enumerate(numbers):
                expected = collect.collect_episode(recipe, 3, number)
                for name, values in expected.columns.items():
                    assert np.array_equal(found[name][30 * i:30 * (i + 1)], values), name


@pytest.mark.parametrize(('name', 'task', 'position', 'near'), [
    ('cube-single-play-v0', 'cube-single-play-singletask-task2-v0', slice(14, 17), 0.04),
    ('pointmaze-medium-navigate-v0', 'pointmaze-medium-navigate-singletask-task1-v0',
     slice(0, 2), 1.0)])
def test_ogbench_reads_and_relabels_the_files(tmp_path, name, task, position, near):
    path = tmp_path / f'{name}.npz'
    collect.collect(shortened(name, 2, 60), path, SEED_AT_GOAL)
    env, *found = ogbench.make_env_and_datasets(task, dataset_path=str(path))
    # Relabelling has reset the environment, so its goal is that of the task.
    goal = env.unwrapped.cur_goal_xy if 'maze' in name else env.unwrapped.data.mocap_pos[0]
    for file, episodes, dataset in zip((path, path.with_name(f'{name}-val.npz')), (2, 1), found,
                                       strict=True):
        with np.load(file) as stored:
            columns = dict(stored)
        rows = ~columns['terminals']
        assert len(dataset['observations']) == 59 * episodes
        assert dataset['observations'].shape[1:] == env.observation_space.shape
        assert dataset['actions'].shape[1:] == env.action_space.shape
        assert np.array_equal(dataset['next_observations'][:59], columns['observations'][1:60])
        solved = np.linalg.norm(columns['qpos'][rows, position] - goal, axis=1) <= near
        assert np.array_equal(dataset['rewards'], solved - 1.0)
        assert np.array_equal(dataset['masks'], 1.0 - solved)
        if 'maze' in name and episodes == 2:
            assert solved.any() and not solved.all()
    if 'cube' in name:
        # The simulator's state belongs to the observation beside it: the cube, in its units.
        assert np.allclose(columns['observations'][:, 19:22],
                           10 * (columns['qpos'][:, 14:17] - [0.425, 0, 0]), atol=1e-5)


def run(*arguments):
    """Run `python -m training.collect`."""
    return subprocess.run([sys.executable, '-m', 'training.collect', *map(str, arguments)],
                          cwd=ROOT, capture_output=True, text=True)


def test_an_unknown_name_lists_the_known_ones_in_one_line(tmp_path):
    done = run('cube-simple-play-v0', '--output', tmp_path)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.count('\n') == 1
    assert all(name in done.stderr for name in ['cube-simple-play-v0', *RECIPES])


def test_what_cannot_be_is_refused_before_anything_is_collected(tmp_path):
    (tmp_path / 'a-val.npz').write_text('of somebody else')
    recipe = shortened('pointmaze-medium-stitch-v0', 1, 10)
    with pytest.raises(CollectError, match='a-val.npz exists'):
        collect.collect(recipe, tmp_path / 'a.npz')
    with pytest.raises(CollectError, match='found seed -1'):
        collect.collect(recipe, tmp_path / 'b.npz', seed=-1)
    with pytest.raises(CollectError, match='0 processes'):
        collect.collect(recipe, tmp_path / 'b.npz', jobs=0)
    with pytest.raises(RecipeError, match='found 0 of 10'):
        replace(recipe, episodes=0)
    assert [path.name for path in tmp_path.iterdir()] == ['a-val.npz']


@pytest.mark.timeout(60)
@pytest.mark.parametrize(('ending', 'group'), [
    # A terminal sends SIGINT to all of them, who stops a service SIGTERM.
    (signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGINT, True),
    (signal.SIGKILL, False)])
def test_an_interrupt_leaves_no_file_and_no_process(tmp_path, ending, group):
    child = subprocess.Popen(
        [sys.executable, '-m', 'training.collect', 'pointmaze-medium-stitch-v0', '--output',
         tmp_path / 'data', '--jobs', '2'], cwd=ROOT, stderr=subprocess.PIPE,
        start_new_session=True,
        # A shell without job control lets what it starts in the background ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        seen = b''
        while b'targets an episode' not in seen:  # it is under way
            part = child.stderr.read1()
            assert part, seen
            seen += part
        if group:
            os.killpg(child.pid, ending)
        else:
            child.send_signal(ending)
        # Read to the end: the workers hold the other end of this pipe as long as they live.
        seen += child.stderr.read()
        assert child.wait() == (1 if ending != signal.SIGKILL else -signal.SIGKILL)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.stderr.close()
        child.wait()
    if ending != signal.SIGKILL:
        assert seen.decode().endswith('error: interrupted; nothing was written\n')
        assert b'Traceback' not in seen
    assert not list((tmp_path / 'data').iterdir())
