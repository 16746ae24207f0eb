"""Percentiles are those of the last durations, and of nothing else."""

from idql_ros.latency import Window
import numpy as np
import pytest


def test_an_empty_window_has_no_percentiles():
    assert Window().percentiles() is None


def test_percentiles_are_those_of_all_durations_while_they_fit():
    window, values = Window(100), np.random.default_rng(0).random(60)
    for value in values:
        window.add(value)
    found = window.percentiles()
    assert (found.p50, found.p95, found.p99) == pytest.approx(
        tuple(np.percentile(values, (50, 95, 99))))
    assert found.max == values.max()
    assert window.mean() == pytest.approx(values.mean())
    assert len(window) == 60


def test_what_is_older_than_the_window_is_forgotten():
    window = Window(10)
    for value in (9.0, *([1.0] * 10)):
        window.add(value)
    assert window.percentiles().max == 1.0
    assert len(window) == 10
    window.clear()
    assert window.percentiles() is None
