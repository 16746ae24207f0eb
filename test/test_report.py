"""The report of the demo: its numbers are those of the episodes, its pictures are pictures."""

import csv
import dataclasses
import json

import numpy as np
import pytest

pytest.importorskip('matplotlib', reason='matplotlib is not installed')
pytest.importorskip('ogbench', reason='ogbench is not installed')
pytest.importorskip('tyro', reason='tyro is not installed')
from idql_ros import environments  # noqa: E402
from training import report  # noqa: E402
from training.demo import robot_spec  # noqa: E402
from training.evaluate import EpisodeResult, success_interval  # noqa: E402

SUCCESS = {'driver': [True, False, False, False], 'one_sample': [False] * 4, 'idql': [True] * 4}
LOSSES = ['value_loss', 'critic_loss', 'actor_loss', 'q', 'v', 'advantage']


def results(length=5):
    """Return episodes of each row; one decision of the last is a stop."""
    rng = np.random.default_rng(0)
    rows = {name: [EpisodeResult(-10.0 - k, success, 10 + k, rng.uniform(0, 20, (length, 2)),
                                 rng.normal(size=length))
                   for k, success in enumerate(successes)] for name, successes in SUCCESS.items()}
    rows['idql'][-1].q[0] = np.nan
    return rows


def over_ros(rows):
    """Return what the simulation writes, equal to the rows of the evaluation."""
    return [{'episode': k, 'return': r.total_reward, 'success': r.success, 'length': r.length,
             'command_timeouts': 0, 'latency_ms': [1.0, 2.0, 3.0, 100.0]}
            for k, r in enumerate(rows['idql'])]


def write(folder, rows, ros, robot='pointmaze_medium'):
    """Write the report beside some metrics; return its summary."""
    (folder / 'training').mkdir(exist_ok=True)
    with (folder / 'training' / 'metrics.csv').open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['step', *LOSSES])
        writer.writerows([step, *np.random.default_rng(step).normal(size=6)]
                         for step in (100, 200, 300))
    report.write(folder, rows, ros, {'record': 1.24, 'total': 12.0},
                 environments.ROBOTS[robot], robot_spec(robot))
    return json.loads((folder / 'summary.json').read_text())


def test_summary_holds_the_numbers_of_the_episodes(tmp_path, capsys):
    rows = results()
    summary = write(tmp_path, rows, over_ros(rows))
    assert summary['episodes'] == 4
    assert summary['success'] == {
        'driver': 0.25, 'one_sample': 0.0, 'idql': 1.0, 'idql_ros': 1.0}
    assert summary['interval_95']['driver'] == list(success_interval(1, 4))
    assert summary['returns']['idql'] == summary['returns']['idql_ros'] == [-10, -11, -12, -13]
    assert summary['ros_returns_equal'] is True
    assert summary['latency_ms'] == {'p50': 2.5, 'p99': pytest.approx(100.0)}
    assert summary['seconds'] == {'record': 1.2, 'total': 12.0}
    printed = capsys.readouterr().out
    low, high = success_interval(4, 4)
    assert f'| IDQL over ROS 2 | 1.00 | {low:.2f} - {high:.2f} |' in printed
    assert 'equal, episode by episode' in printed and 'p50 2.50 ms, p99 100.00 ms' in printed
    assert str(tmp_path / 'summary.md') in printed


@pytest.mark.parametrize('change', [
    lambda ros: ros[2].update({'return': -12.0000001}), lambda ros: ros.reverse()])
def test_returns_are_equal_only_if_each_is(tmp_path, capsys, change):
    rows = results()
    ros = over_ros(rows)
    change(ros)
    assert write(tmp_path, rows, ros)['ros_returns_equal'] is False
    assert 'NOT EQUAL' in capsys.readouterr().out
    assert 'NOT EQUAL' in (tmp_path / 'summary.md').read_text()


def test_pictures_of_the_markdown_are_there(tmp_path):
    rows = results()
    write(tmp_path, rows, over_ros(rows))
    text = (tmp_path / 'summary.md').read_text()
    for name in ('trajectories', 'training', 'latency'):
        assert f'({name}.png)' in text
        content = (tmp_path / f'{name}.png').read_bytes()
        assert content.startswith(b'\x89PNG') and len(content) > 5000
    assert not [p for p in tmp_path.iterdir() if p.name.startswith('.')]


def test_paths_are_drawn_of_robots_that_are_in_no_maze(tmp_path):
    rows = {name: [dataclasses.replace(r, observations=np.tile(r.observations, (1, 14)))
                   for r in episodes]
            for name, episodes in results().items() if name != 'driver'}
    write(tmp_path, rows, over_ros(rows), 'ur5e_cube')
    assert (tmp_path / 'trajectories.png').read_bytes().startswith(b'\x89PNG')
    assert 'driver' not in (tmp_path / 'summary.md').read_text()
