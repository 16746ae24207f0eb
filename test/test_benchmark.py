"""Benchmarks: presets that can run, published numbers, scores, and tables whole or not there."""

import csv
from dataclasses import replace
import math
from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest

gymnasium = pytest.importorskip('gymnasium', reason='gymnasium is not installed')
pytest.importorskip('ogbench', reason='ogbench is not installed')
from training import benchmark  # noqa: E402
from training.benchmark import (  # noqa: E402
    all_presets,
    BenchmarkError,
    configure,
    Evaluation,
    find,
    normalised,
    read_result,
    Score,
    score,
)
from training.collect import collect, RECIPES  # noqa: E402
from training.config import ConfigError  # noqa: E402
from training.datasets import Dataset  # noqa: E402

ROOT = Path(__file__).parents[1]
PRESETS = all_presets()
CUBE = PRESETS['cube-single-play-task2']
HOPPER = PRESETS['hopper-medium-v2']


def fabricate(run, rows, episodes=50):
    """Write a run's evaluations.csv: rows of (update, candidates, success, mean return)."""
    run.mkdir(parents=True)
    with open(run / 'evaluations.csv', 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['step', 'candidates', 'episodes', 'success', 'success_low',
                         'success_high', 'mean_return'])
        for step, candidates, success, mean_return in rows:
            writer.writerow([step, candidates, episodes, success, 0, 1, mean_return])


def finished(tmp_path, preset, success=0.9, mean_return=-50.0, seeds=1):
    """Return the result of fabricated runs with four evaluations, the first of them poor."""
    config = configure(preset, tmp_path / 'out', str(tmp_path), steps=4, seeds=seeds)
    for run in benchmark.runs(config):
        fabricate(run, [
            (step, n, success / (1 if n > 1 else 2) if step > 1 else 0.0, mean_return)
            for step in (1, 2, 3, 4) for n in (1, config.idql.candidates)])
    return read_result(preset, config, preset.training, data=Score(25.0, 20.0, 31.0))


def refused(capsys, *arguments):
    """Return the error that a call ends with."""
    with pytest.raises(SystemExit) as end:
        benchmark._call(arguments)
    assert 'Traceback' not in capsys.readouterr().err
    return str(end.value)


@pytest.mark.parametrize('preset', PRESETS.values(), ids=PRESETS)
def test_every_preset_makes_a_configuration_of_data_and_environment_that_exist(preset, tmp_path):
    config = configure(preset, tmp_path)
    assert (config.dataset, config.environment) == (preset.dataset, preset.environment)
    assert config.output == str(tmp_path / preset.name)
    assert not config.resume
    assert config.evaluate_episodes == 50
    if preset.suite == 'ogbench':
        assert (config.steps, config.batch_size, config.evaluate_every) == (10**6, 256, 10**5)
        assert (config.idql.candidates, config.idql.critic_parameter) == (32, 0.9)
        stem = benchmark.wanted_file(preset, None).stem
        assert stem in RECIPES or stem == 'antmaze-large-navigate-v0'
    elif preset.suite == 'd4rl-gym':
        assert config.reward_scaling == 'return_range'
        assert (config.idql.candidates, config.idql.critic_parameter) == (128, 0.7)
    else:
        assert config.reward_shift == -1
        assert (config.idql.candidates, config.idql.critic_parameter) == (32, 0.9)
        return  # the d4rl package has its environment
    assert gymnasium.spec(preset.environment).id == preset.environment


def test_there_are_the_presets_of_three_suites():
    suites = [preset.suite for preset in PRESETS.values()]
    assert {s: suites.count(s) for s in set(suites)} == {
        'd4rl-gym': 9, 'd4rl-antmaze': 6, 'ogbench': 35}


def test_a_name_without_a_task_is_the_default_one_and_each_preset_comes_once():
    names = ['scene-play', 'puzzle-3x3-play', 'pointmaze-medium-navigate', 'scene-play-task2',
             'cube-double-play', 'antmaze-large-navigate', 'hopper-medium-v2']
    assert [preset.name for preset in find(names)] == [
        'scene-play-task2', 'puzzle-3x3-play-task4', 'pointmaze-medium-navigate-task1',
        'cube-double-play-task2', 'antmaze-large-navigate-task1', 'hopper-medium-v2']


@pytest.mark.parametrize(('alias', 'preset'), [
    ('cube-single', 'cube-single-play-task2'), ('cube-double', 'cube-double-play-task2'),
    ('scene', 'scene-play-task2'), ('puzzle-3x3', 'puzzle-3x3-play-task4'),
    ('puzzle-4x4', 'puzzle-4x4-play-task4'), ('antmaze-large', 'antmaze-large-navigate-task1'),
    ('pointmaze', 'pointmaze-medium-navigate-task1')])
def test_a_short_name_is_the_default_task_listed_and_documented(alias, preset):
    assert [found.name for found in find([alias, preset])] == [preset]
    assert [alias, preset] in [line.split() for line in benchmark.listing(None).splitlines()]
    assert f'`{alias}`' in (ROOT / 'doc' / 'benchmarks.md').read_text()


def test_an_unknown_name_is_refused_with_near_ones():
    with pytest.raises(BenchmarkError, match='hopper-medium-v2'):
        find(['hopper-medium'])


@pytest.mark.parametrize(('name', 'published'), [
    ('halfcheetah-medium-v2', {'idql_a': 51.0, 'idql_1': 49.7, 'cleandiffuser_idql': 51.5,
                               'best_known': '71.2 (BDPO)'}),
    ('walker2d-medium-replay-v2', {'idql_a': 85.1, 'idql_1': 79.8, 'cleandiffuser_idql': 89.1,
                                   'best_known': '106.2 (OFQL)'}),
    ('hopper-medium-expert-v2', {'idql_a': 108.6, 'idql_1': 105.3, 'cleandiffuser_idql': 110.1,
                                 'best_known': '112.3 (DAC)'}),
    ('antmaze-large-diverse-v0', {'idql_a': 67.9}),
    ('cube-single-play-task2', {'idql_task': 96, 'idql_mean_of_tasks': 95,
                                'ifql_mean_of_tasks': 79, 'fql_mean_of_tasks': 96}),
    ('antmaze-large-navigate-task4', {'idql_task': 62, 'idql_mean_of_tasks': 21,
                                      'ifql_mean_of_tasks': 28, 'fql_mean_of_tasks': 79}),
    ('scene-play-task5', {'idql_task': 0, 'idql_mean_of_tasks': 46, 'ifql_mean_of_tasks': 30,
                          'fql_mean_of_tasks': 56}),
    ('puzzle-4x4-play-task4', {'idql_mean_of_tasks': 29, 'ifql_mean_of_tasks': 25,
                               'fql_mean_of_tasks': 17}),
    ('pointmaze-medium-navigate-task1', {})])
def test_published_numbers_are_those_of_the_papers(name, published):
    assert PRESETS[name].published == published


def test_published_means_are_those_of_the_published_tasks():
    for name, (mean, _, _, tasks) in benchmark.OGBENCH.items():
        if tasks:
            assert round(np.mean(tasks)) == mean, name


@pytest.mark.parametrize(('robot', 'random', 'expert'), [
    ('halfcheetah', -280.178953, 12135.0), ('hopper', -20.272305, 3234.3),
    ('walker2d', 1.629008, 4592.3)])
def test_normalised_score_is_0_at_random_and_100_at_expert(robot, random, expert):
    assert normalised(robot, random) == 0
    assert normalised(robot, expert) == pytest.approx(100)
    assert normalised(robot, (random + expert) / 2) == pytest.approx(50)


def rows(*successes, episodes=50):
    """Return evaluations with some shares of success."""
    return [Evaluation(step, episodes, success, -10.0) for step, success in enumerate(successes)]


def test_a_score_is_the_mean_of_the_last_three_evaluations():
    found = score(CUBE, [rows(0.0, 1.0, 0.8, 0.9, 1.0)])
    assert found.mean == pytest.approx(90)
    # Wilson, 135 of 150.
    assert (found.low, found.high) == pytest.approx((84.15, 93.85), abs=0.05)
    assert score(CUBE, [rows(0.5)]).mean == pytest.approx(50)


def test_seeds_that_differ_by_more_than_chance_make_the_interval_wider():
    alike = score(CUBE, [rows(0.5, 0.5, 0.5), rows(0.5, 0.5, 0.5)])
    apart = score(CUBE, [rows(0.1, 0.1, 0.1), rows(0.9, 0.9, 0.9)])
    one = score(CUBE, [rows(0.5, 0.5, 0.5)])
    assert alike.mean == apart.mean == one.mean == pytest.approx(50)
    assert apart.high - apart.low > one.high - one.low > alike.high - alike.low
    sure = score(CUBE, [rows(1.0, 1.0, 1.0)] * 2)
    assert sure.high == pytest.approx(100) and sure.low < 99.5


def test_a_normalised_score_has_students_interval_over_seeds_and_none_with_one():
    low, high = benchmark.REFERENCE_RETURNS['hopper']

    def seed(value):
        return [Evaluation(1, 50, 0.0, low + value / 100 * (high - low))]

    found = score(HOPPER, [seed(60), seed(70), seed(80)])
    assert found.mean == pytest.approx(70)
    assert found.high - found.mean == pytest.approx(4.303 * 10 / math.sqrt(3))
    assert str(score(HOPPER, [seed(60)])) == '60.0'


def test_the_score_of_the_data_is_episodes_that_solve_the_task_or_their_mean_return():
    size = 6
    data = Dataset(np.zeros((size, 2)), np.zeros((size, 1)), np.array([1, 2, 3, 4, 5, 6.0]),
                   np.array([1, 0, 0, 1, 1, 1.0]), np.zeros((size, 2)),
                   np.array([3, 3, 5, 5, 7, 7]))
    found = benchmark.data_score(CUBE, data)
    assert found.mean == pytest.approx(200 / 3)
    assert 0 < found.low < 200 / 3 < found.high < 100
    found = benchmark.data_score(HOPPER, data)
    assert found.mean == pytest.approx(normalised('hopper', 7.0))
    assert found.high - found.mean == pytest.approx(found.mean - found.low)


def test_options_replace_what_the_file_says_and_leave_enough_evaluations(tmp_path):
    config = configure(CUBE, tmp_path, '/data', steps=500, seeds=3, episodes=7)
    assert (config.root, config.steps, config.seeds, config.evaluate_episodes) == (
        '/data', 500, 3, 7)
    assert config.evaluate_every == 50
    assert [run.name for run in benchmark.runs(config)] == ['seed-0', 'seed-1', 'seed-2']
    small = configure(CUBE, tmp_path, config=ROOT / 'config/training/ogbench_cube_single.yaml')
    assert (small.steps, small.evaluate_every, small.idql.actor_width) == (100_000, 20_000, 128)
    (tmp_path / 'none.yaml').write_text('steps: 70')
    assert configure(CUBE, tmp_path, config=tmp_path / 'none.yaml').evaluate_every == 7
    (tmp_path / CUBE.name / 'seed-1').mkdir(parents=True)
    (tmp_path / CUBE.name / 'seed-1' / 'checkpoint.pt').touch()
    assert configure(CUBE, tmp_path, seeds=3).resume
    assert not configure(CUBE, tmp_path, seeds=1).resume


def test_a_training_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / 'a.yaml').write_text('stepz: 5')
    with pytest.raises(ConfigError, match='stepz'):
        configure(CUBE, tmp_path, config=tmp_path / 'a.yaml')


@pytest.mark.parametrize(('name', 'file', 'way'), [
    ('cube-single-play-task2', 'cube-single-play-v0.npz',
     'python -m training.collect cube-single-play-v0'),
    ('antmaze-large-navigate', 'antmaze-large-navigate-v0.npz',
     'https://rail.eecs.berkeley.edu/datasets/ogbench/antmaze-large-navigate-v0.npz'),
    ('hopper-medium-replay-v2', 'hopper_medium_replay-v2.hdf5',
     'gym_mujoco_v2/hopper_medium_replay-v2.hdf5')])
def test_absent_data_is_named_with_its_place_and_the_way_to_get_it(
        tmp_path, capsys, name, file, way):
    error = refused(capsys, name, '--root', str(tmp_path), '--output', str(tmp_path / 'out'))
    assert str(tmp_path / file) in error and way in error
    assert not (tmp_path / 'out').exists()


def test_nothing_is_trained_where_the_data_of_one_preset_are_absent(tmp_path, capsys):
    collect(replace(RECIPES['pointmaze-medium-navigate-v0'], episodes=2, steps=5),
            tmp_path / 'pointmaze-medium-navigate-v0.npz')
    error = refused(capsys, 'pointmaze-medium-navigate', 'hopper-medium-v2', '--root',
                    str(tmp_path), '--output', str(tmp_path / 'out'))
    assert 'hopper_medium-v2.hdf5' in error and 'pointmaze' not in error
    assert not (tmp_path / 'out').exists()


def test_antmaze_of_d4rl_is_refused_where_its_environment_is_missing(tmp_path, capsys):
    preset = PRESETS['antmaze-umaze-v0']
    (tmp_path / preset.dataset).touch()
    error = refused(capsys, preset.name, '--root', str(tmp_path), '--output',
                    str(tmp_path / 'out'))
    assert "No module named 'd4rl'" in error
    assert 'python -m training.train' in error and '\n' not in error.split('\nnothing')[0]
    assert not (tmp_path / 'out').exists()


def test_no_preset_is_refused_and_list_prints_them_all(tmp_path, capsys):
    assert '--list' in refused(capsys)
    (tmp_path / 'cube-single-play-v0.npz').touch()
    benchmark._call(['--list', '--root', str(tmp_path)])
    lines = capsys.readouterr().out.split('\n\n')[0].splitlines()
    assert len(lines) == 1 + len(PRESETS)
    there = {line.split()[0] for line in lines if line.split()[3] == 'there'}
    assert there == {f'cube-single-play-task{task}' for task in range(1, 6)}


def test_tables_and_picture_hold_ours_beside_the_published(tmp_path):
    results = [finished(tmp_path, CUBE), finished(tmp_path, HOPPER, 0.0, 1606.0, seeds=2)]
    benchmark.write(tmp_path / 'out', results)
    with open(tmp_path / 'out' / 'results.csv', newline='') as file:
        cube, hopper = csv.DictReader(file)
    assert (cube['preset'], cube['environment']) == (CUBE.name, 'cube-single-singletask-task2-v0')
    assert (cube['score'], cube['one_sample'], cube['data']) == ('90.00', '45.00', '25.00')
    assert (cube['updates'], cube['seeds'], cube['evaluations'], cube['episodes']) == (
        '4', '1', '3', '150')
    assert float(cube['low']) < 90 < float(cube['high'])
    assert (cube['idql_task'], cube['fql_mean_of_tasks'], cube['idql_a']) == ('96', '96', '')
    assert (hopper['environment'], hopper['score'], hopper['seeds']) == (
        'Hopper-v4', f'{normalised("hopper", 1606.0):.2f}', '2')
    assert hopper['best_known'] == '104.0 (DOSER)'
    text = (tmp_path / 'out' / 'results.md').read_text()
    for part in (f'| {CUBE.name} |', '90.0 [', '| 104.0 (DOSER) |', 'Hopper-v4', '2304.10573',
                 '2502.02538', 'mean of its last 3 evaluations', 'mujoco-py'):
        assert part in text, part
    tables = [line for line in text.splitlines() if line.startswith('|')]
    assert {line.count('|') for line in tables[:3]} == {tables[0].count('|')}
    assert (tmp_path / 'out' / 'results.png').read_bytes().startswith(b'\x89PNG')
    assert not list((tmp_path / 'out').glob('.*'))


def test_five_tasks_give_their_mean_as_the_papers_print_it(tmp_path):
    results = [finished(tmp_path, PRESETS[f'scene-play-task{task}'], success)
               for task, success in zip(range(1, 6), (1.0, 0.2, 0.8, 0.4, 0.1), strict=True)]
    assert benchmark.mean_of_tasks(results[:4]) == []
    mean, = benchmark.mean_of_tasks(results)
    assert mean.score.mean == pytest.approx(50)
    assert mean.score.high - mean.score.low < results[1].score.high - results[1].score.low
    assert (mean.preset.published['idql_mean_of_tasks'], mean.episodes) == (46, 750)
    benchmark.write(tmp_path / 'out', results)
    assert '| scene-play, mean of the 5 tasks | scene-singletask-v0 | 50.0 [' in (
        tmp_path / 'out' / 'results.md').read_text()


@pytest.mark.parametrize(('lines', 'message'), [
    (None, 'evaluations.csv: expected the scores of a run, found none'),
    ('step,candidates\n1,32\n', "found 'episodes'"),
    ('step,candidates,episodes,success,mean_return\n1,32,50,0.5,x\n', "could not convert.*'x'"),
    ('step,candidates,episodes,success,mean_return\n1,8,50,0.5,1\n', r'1 and 32.*found \[8\]'),
    ('step,candidates,episodes,success,mean_return\n7,1,50,0.5,1\n7,32,50,0.5,1\n',
     r'after 1000000 updates, found the last of N = 1 after 7; another --output')])
def test_runs_without_usable_scores_are_refused(tmp_path, lines, message):
    config = configure(CUBE, tmp_path)
    if lines is not None:
        Path(config.output).mkdir()
        (Path(config.output) / 'evaluations.csv').write_text(lines)
    with pytest.raises(BenchmarkError, match=message):
        read_result(CUBE, config, 'a.yaml', 0.0)


@pytest.mark.filterwarnings('ignore:.*every reward')
def test_a_call_trains_and_scores_and_the_next_one_makes_the_tables_anew(tmp_path, capsys):
    name = 'pointmaze-medium-navigate-task1'
    collect(replace(RECIPES['pointmaze-medium-navigate-v0'], episodes=2, steps=50),
            tmp_path / 'pointmaze-medium-navigate-v0.npz')
    (tmp_path / 'tiny.yaml').write_text(
        'batch_size: 8\nlog_every: 3\nevaluate_every: 1\nthreads: 1\nidql: {actor_width: 8, '
        'actor_blocks: 1, critic_hidden: [8], value_hidden: [8], candidates: 2}\n')
    output = tmp_path / 'out'
    arguments = [name, '--root', str(tmp_path), '--output', str(output), '--config',
                 str(tmp_path / 'tiny.yaml'), '--steps', '3', '--episodes', '1']
    found = subprocess.run(
        [sys.executable, '-m', 'training.benchmark', *arguments], cwd=ROOT, capture_output=True,
        text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert f'[1/1] {name}, scored in pointmaze-medium-singletask-task1-v0: 3 updates' in (
        found.stdout)
    trained = {path.name: path.read_bytes() for path in (output / name).glob('*.csv')}
    assert {'evaluations.csv', 'metrics.csv'} <= trained.keys()
    tables = (output / 'results.csv').read_text(), (output / 'results.md').read_text()
    assert 'tiny.yaml' in tables[1]
    for file in output.glob('results.*'):
        file.unlink()
    benchmark._call(arguments)
    assert {path.name: path.read_bytes() for path in (output / name).glob('*.csv')} == trained
    assert ((output / 'results.csv').read_text(), (output / 'results.md').read_text()) == tables
    assert name in capsys.readouterr().out
