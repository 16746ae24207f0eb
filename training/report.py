"""What the demo shows at its end: a table, the numbers as JSON, and pictures."""

import csv
import json
from pathlib import Path
from typing import Any

from idql_ros import environments
from idql_ros.spec import Spec
import matplotlib
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection
import numpy as np
from training.evaluate import EpisodeResult, success_interval
from training.files import write_whole

# Pictures go to files; no screen is needed.
matplotlib.use('Agg')

TITLES = {'driver': 'driver (the data)', 'one_sample': 'one diffusion sample, no critic',
          'idql': 'IDQL (greedy)', 'idql_ros': 'IDQL over ROS 2'}


def write(
    output: Path,
    results: dict[str, list[EpisodeResult]],
    over_ros: list[dict[str, Any]],
    seconds: dict[str, float],
    environment: str,
    spec: Spec,
) -> bool:
    """Write summary.json, summary.md and the pictures, and print the table.

    Args:
        output: The folder; it holds training/metrics.csv.
        results: Row -> its episodes, in evaluation.
        over_ros: sim_node's results file, a dictionary an episode.
        seconds: Step -> how long it took.
        environment: Whose walls are drawn, where it is a maze.
        spec: Whose `space` says what is drawn: the paths of the actions' origin.

    Returns:
        Whether the returns over ROS 2 equal those of the evaluation.
    """
    success = {name: float(np.mean([r.success for r in rows])) for name, rows in results.items()}
    success['idql_ros'] = float(np.mean([row['success'] for row in over_ros]))
    episodes = len(over_ros)
    intervals = {name: success_interval(round(rate * episodes), episodes)
                 for name, rate in success.items()}
    ros_returns = [row['return'] for row in over_ros]
    latencies = np.array([value for row in over_ros for value in row['latency_ms']])
    summary = {
        'episodes': episodes,
        'success': success,
        'interval_95': intervals,
        'returns': {**{name: [r.total_reward for r in rows] for name, rows in results.items()},
                    'idql_ros': ros_returns},
        'ros_returns_equal': ros_returns == [r.total_reward for r in results['idql']],
        'command_timeouts': sum(row['command_timeouts'] for row in over_ros),
        'latency_ms': {'p50': float(np.percentile(latencies, 50)),
                       'p99': float(np.percentile(latencies, 99))},
        'seconds': {name: round(value, 1) for name, value in seconds.items()},
    }
    table = ['| policy | success | 95 % interval |', '|---|---|---|']
    table += [f'| {title} | {success[name]:.2f} | {intervals[name][0]:.2f} - '
              f'{intervals[name][1]:.2f} |' for name, title in TITLES.items() if name in success]
    equal = ('equal' if summary['ros_returns_equal'] else 'NOT EQUAL')
    lines = [
        f'# {episodes} episodes', '', *table, '',
        f'Returns over ROS 2 and in evaluation: {equal}, episode by episode.',
        f'From observation to action over ROS 2: p50 {summary["latency_ms"]["p50"]:.2f} ms, '
        f'p99 {summary["latency_ms"]["p99"]:.2f} ms.',
        'Seconds: ' + ', '.join(f'{name} {value:.0f}' for name, value in seconds.items()) + '.',
    ]
    _draw_training(output / 'training' / 'metrics.csv', output / 'training.png')
    _draw_trajectories(results, environment, spec, output / 'trajectories.png')
    _draw_latency(latencies, output / 'latency.png')
    pictures = [f'![{name}]({name}.png)' for name in ('trajectories', 'training', 'latency')]
    write_whole(output / 'summary.md', '\n'.join([*lines, '', *pictures, '']).encode())
    write_whole(output / 'summary.json', json.dumps(summary, indent=1).encode())
    print('\n'.join(['', *lines, f'Report: {output / "summary.md"}']))
    return summary['ros_returns_equal']


def _draw_training(metrics: Path, target: Path) -> None:
    with metrics.open(newline='') as file:
        rows = list(csv.DictReader(file))
    steps = [int(row['step']) for row in rows]
    names = [name for name in rows[0] if name != 'step']
    figure, axes = plt.subplots(2, 3, figsize=(12, 6), layout='constrained')
    for axis, name in zip(axes.flat, names, strict=True):
        axis.plot(steps, [float(row[name]) for row in rows])
        axis.set(title=name.replace('_', ' '), xlabel='updates')
    _save(figure, target)


def _draw_trajectories(
    results: dict[str, list[EpisodeResult]], environment: str, spec: Spec, target: Path
) -> None:
    """Draw the paths from above, coloured by Q of the action chosen there."""
    maze = environments.make(environment).unwrapped
    q = np.concatenate([r.q for r in results['idql']])
    norm = plt.Normalize(np.nanmin(q), np.nanmax(q))
    figure, axes = plt.subplots(
        1, len(results), figsize=(5 * len(results), 5), layout='constrained')
    units = [signal.unit for signal in spec.observations for _ in range(signal.width)]
    across = list(spec.space.origin[:2])
    for axis, (name, rows) in zip(axes, results.items(), strict=True):
        if hasattr(maze, 'maze_map'):
            _draw_maze(axis, maze)
        for row in rows:
            points = row.observations[:, across]
            lines = LineCollection(
                np.stack([points[:-1], points[1:]], axis=1), cmap='viridis', norm=norm, lw=0.8,
                array=row.q[:-1])
            if name == 'driver':
                lines.set(array=None, color='0.4')
            axis.add_collection(lines)
        axis.set(title=TITLES[name], xlabel=f'x ({units[across[0]]})',
                 ylabel=f'y ({units[across[1]]})', aspect='equal')
        axis.autoscale_view()
    figure.colorbar(plt.cm.ScalarMappable(norm, 'viridis'), ax=axes, label='Q of the action')
    _save(figure, target)


def _draw_maze(axis: plt.Axes, maze: Any) -> None:
    maze.reset()  # sets the task
    unit = maze._maze_unit
    for cell in np.argwhere(maze.maze_map == 1):
        x, y = maze.ij_to_xy(cell)
        axis.add_patch(plt.Rectangle((x - unit / 2, y - unit / 2), unit, unit, color='0.8'))
    axis.add_patch(plt.Circle(maze.cur_goal_xy, maze._goal_tol, color='tab:red', alpha=0.5))


def _draw_latency(latencies: np.ndarray, target: Path) -> None:
    figure, axis = plt.subplots(figsize=(7, 4), layout='constrained')
    axis.hist(latencies, bins=np.geomspace(latencies.min(), latencies.max() * 1.001, 60))
    for percentile in (50, 99):
        value = np.percentile(latencies, percentile)
        axis.axvline(value, color='tab:red', ls='--')
        axis.text(value, axis.get_ylim()[1], f' p{percentile}\n {value:.2f} ms', va='top')
    axis.set(xscale='log', xlabel='from observation to action over ROS 2 (ms)', ylabel='ticks')
    _save(figure, target)


def _save(figure: plt.Figure, target: Path) -> None:
    figure.savefig(target, dpi=120)
    plt.close(figure)
