"""What a run writes down: whole rows, each once, also where it was stopped and went on."""

import csv
import math

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training.evaluate import EpisodeResult
from training.logs import EVALUATIONS, Log, METRICS


def rows(path):
    """Return the rows of a CSV file, the header among them."""
    with open(path, newline='') as file:
        return list(csv.reader(file))


def episodes(*returns, successes=0):
    """Return episodes of these returns, the first of them successful."""
    return [EpisodeResult(total_reward, i < successes, 3, np.zeros((3, 2)), np.zeros(3))
            for i, total_reward in enumerate(returns)]


def write(folder, start, steps, loss=1.0):
    """Log steps, each with a row of metrics and an evaluation of one sample and of two."""
    with Log(folder, start) as log:
        for step in steps:
            log.metrics(step, {'loss': loss, 'success': None})
            for n in (1, 2):
                log.evaluation(step, n, episodes(loss))


def test_the_header_is_there_once_and_none_is_an_empty_cell(tmp_path):
    write(tmp_path, 0, [5], loss=0.5)
    write(tmp_path, 5, [10, 15])
    assert rows(tmp_path / METRICS) == [
        ['step', 'loss', 'success'], ['5', '0.5', ''], ['10', '1.0', ''], ['15', '1.0', '']]
    assert [row[0] for row in rows(tmp_path / EVALUATIONS)] == [
        'step', '5', '5', '10', '10', '15', '15']


def test_rows_after_the_checkpoint_are_written_again_and_those_before_it_stay(tmp_path):
    write(tmp_path, 0, [5, 10, 15], loss=0.5)
    write(tmp_path, 10, [15, 20], loss=0.25)
    for name, column, times in ((METRICS, 1, 1), (EVALUATIONS, -1, 2)):
        found = [(row[0], float(row[column])) for row in rows(tmp_path / name)[1:]]
        expected = [('5', 0.5), ('10', 0.5), ('15', 0.25), ('20', 0.25)]
        assert found == [row for row in expected for _ in range(times)]


@pytest.mark.parametrize('name', [METRICS, EVALUATIONS])
def test_half_a_row_at_the_end_is_dropped(tmp_path, name):
    write(tmp_path, 0, [5, 10])
    whole = (tmp_path / name).read_bytes()
    last = whole.splitlines()[-1]
    # Broken off within the first cell, within the row, before the end of the line, and within it;
    # the last is half a row that another was written behind.
    for half in (b'1', b'10,0.1', last, last + b'\r', b'10,0.1\r\n' + last):
        (tmp_path / name).write_bytes(whole + half)
        write(tmp_path, 10, [])
        assert (tmp_path / name).read_bytes() == whole


def test_a_new_run_keeps_nothing_of_the_one_before(tmp_path):
    write(tmp_path, 0, [5, 10], loss=0.5)
    write(tmp_path, 0, [5])
    assert [row[:2] for row in rows(tmp_path / METRICS)] == [['step', 'loss'], ['5', '1.0']]
    assert len(rows(tmp_path / EVALUATIONS)) == 3


def test_an_evaluation_has_the_success_with_wilsons_interval_and_the_mean_return(tmp_path):
    results = episodes(*range(10), successes=7)
    with Log(tmp_path, 0) as log:
        log.evaluation(100, 32, results)
    header, row = rows(tmp_path / EVALUATIONS)
    assert header == ['step', 'candidates', 'episodes', 'success', 'success_low', 'success_high',
                      'mean_return']
    assert row[:3] == ['100', '32', '10']
    # Wilson (1927): the p for which 7 of 10 lies 1.96 standard deviations off.
    z, n, share = 1.959964, 10, 0.7
    center = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert [float(cell) for cell in row[3:]] == pytest.approx(
        [share, center - half, center + half, 4.5], abs=1e-4)


def test_tensorboard_shows_the_same_numbers_and_after_a_resume_each_step_once(tmp_path):
    write(tmp_path, 0, [5, 10, 15], loss=0.5)
    write(tmp_path, 10, [15, 20], loss=0.25)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()['scalars']) == {'loss'} | {
        f'evaluation_{key}/N={n}' for key in ('success', 'mean_return') for n in (1, 2)}
    for tag in ('loss', 'evaluation_mean_return/N=2'):
        assert [(event.step, event.value) for event in events.Scalars(tag)] == [
            (5, 0.5), (10, 0.5), (15, 0.25), (20, 0.25)]
