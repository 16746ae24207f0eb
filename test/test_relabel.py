"""Relabelling: what converting with the new task would have given, and nothing else changed."""

from dataclasses import replace
import hashlib
import json
import os
from pathlib import Path
import subprocess
import sys

import h5py
from idql_ros import spec as specs
import minari
import numpy as np
import pytest

hypothesis = pytest.importorskip('hypothesis', reason='hypothesis is not installed')
from hypothesis import strategies as st  # noqa: E402
from training.datasets import (  # noqa: E402
    DatasetError,
    episodes_of,
    load_minari,
    read_episodes,
    read_metadata,
    write_minari,
)
from training.provenance import code_version  # noqa: E402
from training.relabel import relabel, relabelled  # noqa: E402
from training.rewards import RewardError, Steps, Task  # noqa: E402

ROOT = Path(__file__).parents[1]
SPEC = specs.load(ROOT / 'config/robots/pointmaze_medium.yaml')
SCORE = {'topic': {'topic': 'score', 'field': 'data'}}
DONE = {'topic': {'topic': 'done', 'field': 'data'}}


def goal(x, tolerance=1.0):
    """Return the reward of reaching (x, x)."""
    return {'sparse_goal': {'goal': [x, x], 'tolerance': tolerance}}


TASKS = [
    Task(goal(0)), Task(goal(2)), Task(goal(2), 'never'), Task(goal(1), DONE), Task(SCORE, DONE),
    Task({'reach_and_hold': {'goal': [1, 1], 'tolerance': 2, 'seconds': 1}}),
    Task({'weighted_sum': [{'weight': 1, **SCORE}, {'weight': 0.1, 'action_cost': {}},
                           {'weight': 2, 'goal_distance': {'goal': [3, 3]}}]}),
]
# A task that names both topics, so that the values of both are stored.
BOTH = Task(SCORE, DONE)


def stretch(seed, steps, topics=True):
    """Return an uninterrupted random walk over a few cells."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 4, steps)

    def cells(rows):
        return rng.integers(0, 4, (rows, 2)).astype(np.float32)

    return Steps(
        cells(steps + 1), rng.normal(size=(steps, 2)).astype(np.float32), cells(counts.sum()),
        counts, SPEC.rate,
        {'reward': rng.normal(size=steps), 'terminal': rng.random(steps) < 0.2} if topics else {})


def converted(stretches, task):
    """Yield episodes as a conversion does; every other stretch was cut for its length."""
    for number, steps in enumerate(stretches):
        yield from episodes_of(steps, task, 'length' if number % 2 else '')


def write(root, stretches, task, dataset_id='demo/old-v0', **metadata):
    """Write a dataset as a conversion does."""
    return write_minari(
        converted(stretches, task), dataset_id, root,
        {'bags': 'a, b', 'task': task.to_json(), **metadata}, SPEC.to_json())


def assert_same(found, expected):
    """Compare episodes, all that is stored of them."""
    for one, other in zip(found, expected, strict=True):
        for name in ('observations', 'actions', 'rewards', 'between', 'counts'):
            values = getattr(one, name)
            assert values.dtype == getattr(other, name).dtype
            assert np.array_equal(values, getattr(other, name)), name
        assert one.topics.keys() == other.topics.keys()
        for kind in one.topics:
            assert np.array_equal(one.topics[kind], other.topics[kind])
        assert (one.terminated, one.truncated, one.continues) == (
            other.terminated, other.truncated, other.continues)


@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 99), st.integers(1, 30)), min_size=1, max_size=4),
    st.sampled_from(TASKS), st.sampled_from(TASKS))
@hypothesis.settings(max_examples=150, deadline=None)
def test_episodes_are_those_of_a_conversion_with_the_new_task(sizes, old, new):
    stretches = [stretch(seed, steps) for seed, steps in sizes]
    assert_same(relabelled(converted(stretches, old), new, SPEC.rate), converted(stretches, new))


@pytest.mark.parametrize('old', TASKS[:2])
@pytest.mark.parametrize('new', TASKS[:2])
def test_dataset_is_that_of_a_conversion_with_the_new_task(tmp_path, monkeypatch, old, new):
    stretches = [stretch(seed, 40, topics=False) for seed in range(4)]
    folder = write(tmp_path, stretches, old)
    digest = hashlib.sha256((folder / 'data/main_data.hdf5').read_bytes()).hexdigest()
    assert relabel('demo/old-v0', tmp_path, new, 'new-v0') == tmp_path / 'new-v0'
    write(tmp_path / 'anew', stretches, new, 'new-v0')
    assert_same(read_episodes('new-v0', tmp_path), read_episodes('new-v0', tmp_path / 'anew'))
    assert load_minari('new-v0', tmp_path)[0].content_hash() == load_minari(
        'new-v0', tmp_path / 'anew')[0].content_hash()
    assert read_metadata('new-v0', tmp_path) == {
        'bags': 'a, b', 'spec': SPEC.to_json(), 'between': 'stored', 'task': new.to_json(),
        'converted_with': old.to_json(),
        'relabelled_from': f'demo/old-v0 main_data.hdf5 sha256:{digest}',
        'relabelled_with': code_version()}
    monkeypatch.setenv('MINARI_DATASETS_PATH', str(tmp_path))
    assert minari.load_dataset('new-v0').total_steps == 160


def test_relabelling_there_and_back_changes_no_number(tmp_path):
    stretches = [stretch(seed, 40) for seed in range(3)]
    write(tmp_path, stretches, BOTH)
    relabel('demo/old-v0', tmp_path, Task(goal(1), 'never'), 'middle-v0')
    # The topics' values are still there, under a task that names none.
    relabel('middle-v0', tmp_path, BOTH, 'back-v0')
    assert_same(read_episodes('back-v0', tmp_path), read_episodes('demo/old-v0', tmp_path))


def test_a_dataset_may_replace_itself(tmp_path):
    stretches = [stretch(0, 40)]
    write(tmp_path, stretches, TASKS[0])
    with pytest.raises(DatasetError, match='exists'):
        relabel('demo/old-v0', tmp_path, TASKS[1], 'demo/old-v0')
    relabel('demo/old-v0', tmp_path, TASKS[1], 'demo/old-v0', overwrite=True)
    assert_same(read_episodes('demo/old-v0', tmp_path), converted(stretches, TASKS[1]))
    assert [path.name for path in tmp_path.iterdir()] == ['demo']


@pytest.mark.parametrize('task', [
    Task({'topic': {'topic': 'other', 'field': 'data'}}), Task({'topic': {
        'topic': 'score', 'field': 'data', 'reduce': 'last'}}), Task(goal(1), {
            'topic': {'topic': 'done', 'field': 'flag'}}),
])
def test_values_of_topics_that_were_not_read_need_the_bags(tmp_path, task):
    write(tmp_path, [stretch(0, 9)], BOTH)
    with pytest.raises(RewardError, match=(
            r'expected the values of \w+\.\w+ .* found score.data \(sum\), done.data \(any\); '
            'convert the bags with this task')):
        relabel('demo/old-v0', tmp_path, task, 'new-v0')


def test_topics_are_the_same_with_and_without_a_leading_slash(tmp_path):
    write(tmp_path, [stretch(0, 9)], BOTH)
    slashed = Task({'topic': {'topic': '/score', 'field': 'data'}},
                   {'topic': {'topic': '/done', 'field': 'data'}})
    relabel('demo/old-v0', tmp_path, slashed, 'new-v0')
    assert_same(read_episodes('new-v0', tmp_path), read_episodes('demo/old-v0', tmp_path))
    # And back, from a dataset that was converted with the others.
    write(tmp_path, [stretch(0, 9)], slashed, 'other-v0')
    relabel('other-v0', tmp_path, BOTH, 'back-v0')
    assert_same(read_episodes('back-v0', tmp_path), read_episodes('demo/old-v0', tmp_path))


def damage_metadata(folder):
    path = folder / 'data/metadata.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'idql_ros_task': '{}'}))


def drop_between(folder):
    with h5py.File(folder / 'data/main_data.hdf5', 'a') as file:
        for name in ('idql_ros_between', 'idql_ros_counts'):
            del file['episode_0'][name]


@pytest.mark.parametrize('damage', [
    lambda folder: (folder / 'data/main_data.hdf5').write_bytes(b'no HDF5'),
    lambda folder: os.truncate(folder / 'data/main_data.hdf5', 3000),
    lambda folder: (folder / 'data/main_data.hdf5').unlink(),
    damage_metadata, drop_between,
])
def test_damaged_dataset_is_named_in_one_line_and_nothing_is_written(tmp_path, damage):
    damage(write(tmp_path, [stretch(0, 40)], TASKS[0]))
    with pytest.raises(DatasetError, match="^dataset 'demo/old-v0'") as refused:
        relabel('demo/old-v0', tmp_path, TASKS[1], 'new-v0')
    assert '\n' not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ['demo']


def test_task_that_does_not_fit_the_robot_is_refused(tmp_path):
    write(tmp_path, [stretch(0, 9)], BOTH)
    with pytest.raises(RewardError, match='a goal of 1 to 2 numbers'):
        relabel('demo/old-v0', tmp_path, Task({'goal_distance': {'goal': [1] * 3}}), 'new-v0')


def test_dataset_without_what_relabelling_needs_is_refused(tmp_path):
    plain = [replace(episode, between=None, counts=None)
             for episode in converted([stretch(0, 9)], TASKS[2])]
    write_minari(plain, 'demo/old-v0', tmp_path, {'task': TASKS[2].to_json()}, SPEC.to_json())
    with pytest.raises(DatasetError, match='what was observed between its ticks.*convert the bag'):
        relabel('demo/old-v0', tmp_path, TASKS[0], 'new-v0')


def test_episode_that_does_not_go_on_where_it_says_is_refused():
    pieces = list(converted([stretch(1, 30)], TASKS[0]))
    assert len(pieces) > 2
    for broken in (pieces[1:], [pieces[0], *pieces[2:]]):
        with pytest.raises(DatasetError, match='expected it to begin where the one before'):
            list(relabelled(broken, TASKS[1], SPEC.rate))


def run(*arguments):
    """Run the command line."""
    return subprocess.run(
        [sys.executable, '-m', 'training.relabel', *arguments], cwd=ROOT, capture_output=True,
        text=True, timeout=120)


def test_command_line_relabels_and_tells_a_mistake_in_a_line(tmp_path):
    write(tmp_path, [stretch(0, 40)], TASKS[0])
    arguments = ('demo/old-v0', '--root', str(tmp_path), '--output-id', 'new-v0', '--reward')
    done = run(*arguments, json.dumps(goal(2)), '--terminal', 'never')
    assert done.returncode == 0 and done.stdout == f'wrote {tmp_path / "new-v0"}\n'
    assert_same(read_episodes('new-v0', tmp_path), converted([stretch(0, 40)], TASKS[2]))
    for given, message in (
        ([*arguments, json.dumps(goal(2))], 'exists; choose another id'),
        ([*arguments, 'reach: {}'], 'expected one of goal_distance'),
        (['none-v0', *arguments[1:], 'action_cost'], "dataset 'none-v0': expected a Minari"),
    ):
        failed = run(*given)
        assert failed.returncode == 1 and message in failed.stderr
        assert failed.stderr.startswith('error: ') and failed.stderr.count('\n') == 1
