"""N falls until the deadline is met, recovers only with room to spare, and does not flap."""

from idql_ros.budget import Budget, rungs
import pytest

# Seconds that an inference takes for each candidate.
COST = 1e-4


def run(budget, inferences, cost=COST):
    """Return what changed while each inference costs in proportion to N."""
    changes = []
    for _ in range(inferences):
        n = budget.candidates
        if budget.add(n, cost * n):
            changes.append((n, budget.candidates))
    return changes


def test_without_a_deadline_n_stays():
    budget = Budget(64, 0.0)
    assert run(budget, 1000, cost=1.0) == [] and budget.candidates == 64


@pytest.mark.parametrize(('deadline_s', 'expected'), [
    (64.5 * COST, 64), (63 * COST, 32), (31 * COST, 16), (15 * COST, 8), (1 * COST, 8)])
def test_n_falls_to_the_highest_rung_that_meets_the_deadline(deadline_s, expected):
    budget = Budget(64, deadline_s)
    run(budget, 150)
    assert budget.candidates == expected


def test_rungs_are_those_below_the_configured_n():
    budget = Budget(20, 1e-9)
    assert [after for _, after in run(budget, 200)] == [16, 8]
    few = Budget(4, 1e-9)
    assert run(few, 200) == [] and few.candidates == 4


def test_without_a_deadline_no_other_n_comes_up():
    assert rungs(64, 0.0) == (64,) and rungs(64, 0.1) == (64, 32, 16, 8)


def test_one_slow_inference_of_a_hundred_changes_nothing():
    budget = Budget(64, 100 * COST)
    run(budget, 99)
    assert budget.add(64, 101 * COST) == ''
    assert run(budget, 200) == []


def test_n_recovers_rung_by_rung_once_there_is_room():
    budget = Budget(64, 20 * COST)
    run(budget, 150)
    assert budget.candidates == 16
    assert run(budget, 1000, cost=COST / 10) == [(16, 32), (32, 64)]


def test_n_does_not_rise_without_room_to_spare():
    # 16 candidates take 16 of 36: twice as many would take 32, more than 0.8 of the deadline.
    budget = Budget(32, 36 * COST)
    assert run(budget, 21, cost=2 * COST) == [(32, 16)]
    assert run(budget, 5000) == []


def test_a_rise_that_had_to_be_undone_is_tried_again_ever_later():
    budget, rises, since = Budget(16, 20 * COST), [], 0
    for _ in range(20_000):
        n = budget.candidates
        # 8 candidates are cheap, 16 are not: the proportion that the ladder assumes is wrong.
        if budget.add(n, COST * (5 if n == 8 else 40)):
            if budget.candidates == 16:
                rises.append(since)
            since = 0
        since += 1
    assert len(rises) >= 4
    assert all(later >= 1.9 * before for before, later in zip(rises, rises[1:], strict=False)
               if later < 6000)
    assert rises[-1] >= 6000


def test_a_change_says_what_and_why():
    budget = Budget(64, 0.004)
    texts = [text for _ in range(30) if (text := budget.add(budget.candidates, 0.005))]
    assert texts[0] == (
        'N 64 -> 32: the inference took 5.0 ms (p99), its deadline is 4.0 ms')


def test_an_inference_that_was_begun_with_another_n_is_not_judged():
    budget = Budget(64, 0.004)
    assert not any(budget.add(32, 1.0) for _ in range(200))
