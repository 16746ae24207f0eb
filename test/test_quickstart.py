"""The quick start: every step of the demo, small, as a user runs it; and what the README says."""

import json
from pathlib import Path
import re
import subprocess
import sys

import numpy as np
import pytest

for module in ('torch', 'minari', 'rosbags', 'ogbench', 'rclpy'):
    pytest.importorskip(module, reason=f'{module} is not installed')

SOURCE = Path(__file__).resolve().parents[1]


def run_demo(output, *arguments):
    """Run the small demo; return its folder and what it printed."""
    done = subprocess.run(
        [sys.executable, '-m', 'training.demo', '--small', '--output', str(output), *arguments],
        cwd=SOURCE, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return output, done


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    """Return the folder of the small demo, and what it printed."""
    return run_demo(tmp_path_factory.mktemp('quickstart') / 'demo_output')


def test_every_step_runs_and_is_summarised(demo):
    output, done = demo
    summary = json.loads((output / 'summary.json').read_text())
    assert summary['episodes'] == 5
    assert set(summary['success']) == {'driver', 'one_sample', 'idql', 'idql_ros'}
    assert 0 < summary['latency_ms']['p50'] <= summary['latency_ms']['p99']
    assert set(summary['seconds']) == {
        'record', 'convert', 'train', 'export', 'evaluate', 'deploy', 'total'}
    for name in ('summary.md', 'trajectories.png', 'training.png', 'latency.png'):
        assert (output / name).stat().st_size > 200
    assert 'worst' in done.stdout  # of the exported file against the trained network
    for bar in ('record', 'convert', 'driver', 'one sample', 'IDQL', 'ROS 2'):
        assert f'{bar}:' in done.stderr
    assert 'Traceback' not in done.stderr


def test_returns_over_ros_equal_those_of_the_evaluation(demo):
    output, _ = demo
    summary = json.loads((output / 'summary.json').read_text())
    assert summary['ros_returns_equal'] is True
    assert summary['returns']['idql_ros'] == summary['returns']['idql']
    assert summary['command_timeouts'] == 0
    for log in (output / 'ros').glob('*.log'):
        assert 'Traceback' not in log.read_text()


def test_the_dataset_is_one_that_plain_minari_loads(demo, monkeypatch):
    import minari
    output, _ = demo
    monkeypatch.setenv('MINARI_DATASETS_PATH', str(output / 'datasets'))
    dataset = minari.load_dataset('demo/pointmaze-medium-v0')
    # 4 bags of 3000 steps, five a decision; the first tick of a bag only starts it.
    assert 4 * 600 - 8 <= dataset.total_steps <= 4 * 600
    for episode in dataset.iterate_episodes():
        assert len(episode.observations) == len(episode.actions) + 1
        assert (episode.rewards == 0.0).sum() == episode.terminations.sum()


def test_the_policy_file_alone_is_scored(demo):
    output, _ = demo
    done = subprocess.run(
        [sys.executable, '-m', 'training.evaluate', str(output / 'policy.onnx'), '--episodes', '2',
         '--json-file', str(output / 'scores.json')],
        cwd=SOURCE, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    scores = json.loads((output / 'scores.json').read_text())
    summary = json.loads((output / 'summary.json').read_text())
    assert scores['candidates']['32']['returns'] == summary['returns']['idql'][:2]


def test_a_second_robot_goes_the_same_way(tmp_path):
    output, done = run_demo(tmp_path / 'arm', '--robot', 'ur5e_cube')
    summary = json.loads((output / 'summary.json').read_text())
    assert set(summary['success']) == {'one_sample', 'idql', 'idql_ros'}
    assert summary['ros_returns_equal'] is True and summary['command_timeouts'] == 0
    assert 'Traceback' not in done.stderr


def test_goals_of_the_demonstrations_are_those_of_the_environments():
    from idql_ros import environments
    from training.demo import read_demonstration
    goal = {}
    for robot in ('pointmaze_medium', 'ur5e_cube'):
        goal[robot] = read_demonstration(robot, small=False).task['sparse_goal']
    maze = environments.make(environments.ROBOTS['pointmaze_medium']).unwrapped
    maze.reset(seed=0)
    assert np.allclose(goal['pointmaze_medium']['goal'], maze.cur_goal_xy)
    assert goal['pointmaze_medium']['tolerance'] == maze._goal_tol
    cube = environments.make(environments.ROBOTS['ur5e_cube']).unwrapped
    cube.reset(seed=0)
    # In decimetres from the middle of the table, as the spec has it.
    assert np.allclose(
        goal['ur5e_cube']['goal'], 10 * (cube.data.mocap_pos[0] - [0.425, 0.0, 0.0]))
    for away, reached in ((0.039, True), (0.041, False)):
        cube.data.joint('object_joint_0').qpos[:3] = cube.data.mocap_pos[0] + [away, 0, 0]
        assert cube._compute_successes() == [reached]
        assert (10 * away <= goal['ur5e_cube']['tolerance']) == reached


def test_a_robot_without_a_demonstration_is_refused_with_those_that_have_one(tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'training.demo', '--robot', 'ur10', '--output', str(tmp_path)],
        cwd=SOURCE, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == 'error: ur10: expected one of pointmaze_medium, ur5e_cube\n'


def test_the_readme_names_commands_that_exist():
    readme = (SOURCE / 'README.md').read_text()
    makefile = (SOURCE / 'Makefile').read_text()
    for target in set(re.findall(r'`?make (\w+)', readme)):
        assert re.search(rf'^{target}:', makefile, re.MULTILINE), target
    for module in set(re.findall(r'python -m (training\.\w+)', readme)):
        assert (SOURCE / (module.replace('.', '/') + '.py')).is_file(), module
    for launch_file in set(re.findall(r'(\w+\.launch\.py)', readme)):
        assert (SOURCE / 'launch' / launch_file).is_file(), launch_file
    for path in set(re.findall(r'\]\((?!https?:)([^)#]+)\)', readme)):
        assert (SOURCE / path).exists(), path


def test_the_demo_replaces_no_folder_but_its_own(tmp_path):
    (tmp_path / 'thesis.txt').write_text('years of work')
    done = subprocess.run(
        [sys.executable, '-m', 'training.demo', '--small', '--output', str(tmp_path)],
        cwd=SOURCE, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    assert (tmp_path / 'thesis.txt').read_text() == 'years of work'
