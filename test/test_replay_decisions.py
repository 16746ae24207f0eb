"""Decisions computed again: what is equal, what is a tie, what is a difference."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')
pytest.importorskip('onnx', reason='onnx is not installed')
from idql_ros.policy import default_path, draw_uniform, Policy  # noqa: E402
from replayed import (  # noqa: E402
    changed,
    decided,
    MS,
    run,
    T,
    WAYS,
    write_bag,
)
from training import replay_decisions  # noqa: E402
from training.recorded_run import Opened  # noqa: E402
from training.replay import replay_bag  # noqa: E402
from training.replay_decisions import recompute  # noqa: E402


def test_the_first_difference_is_told_with_tick_dimension_and_both_numbers(
        tmp_path, policy, records, capsys):
    for number in (4, 7):
        action = records[number].action.copy()
        action[1] += 0.25
        records[number] = changed(records[number], action=action)
    bag = write_bag(tmp_path / 'bag', policy.spec, records)
    code, printed, _ = run(bag, '--policy', default_path(), capsys=capsys)
    assert code == 1
    found = replay_bag(bag, [default_path()]).decisions.first_beyond
    expected = float(decided(policy, 4, candidates=3, extraction='implicit').action[1])
    assert (found.number, found.tick_ns, found.what) == (4, T + 2000 * MS, 'action[1]')
    assert (found.recorded, found.recomputed) == (float(records[4].action[1]), expected)
    assert found.error == pytest.approx(0.25 / 2)  # a network unit is 2 m/s
    assert str(found) in printed and 'NOT equal' in printed


@pytest.mark.parametrize(('name', 'error', 'code'), [
    ('action', 1e-4, 0), ('action', 3e-4, 1), ('q', 1e-4, 0), ('q', 3e-4, 1), ('v', 3e-4, 1),
    ('distance', 3e-4, 1)])
def test_within_2e_4_network_units_is_another_machine_and_beyond_is_a_difference(
        tmp_path, policy, records, capsys, name, error, code):
    before = getattr(records[3], name)
    of_q = max(abs(records[3].q), abs(records[3].v))
    assert of_q > 1 > records[3].distance
    unit = {'action': 2.0, 'distance': 1.0}.get(name, of_q)  # 2 m/s is a network unit
    value = before + np.float32(error * unit) if name == 'action' else before + error * unit
    records[3] = changed(records[3], **{name: value})
    bag = write_bag(tmp_path / 'bag', policy.spec, records)
    found, printed, _ = run(bag, '--policy', default_path(), capsys=capsys)
    assert found == code
    assert 'first difference: decision 3' in printed


def test_decisions_of_other_arithmetic_are_equal_within_the_tolerance(tmp_path, policy, capsys):
    pytest.importorskip('torch', reason='torch is not installed')
    # Stands for another machine: the sums of its products have another order.
    other = Policy(default_path(), backend='torch', device='cpu')
    records = [decided(other, number, **WAYS[number % 3]) for number in range(60)]
    bag = write_bag(tmp_path / 'bag', policy.spec, records)
    code, printed, _ = run(bag, '--policy', default_path(), capsys=capsys)
    assert code == 0, printed
    assert 'equal within the tolerances' in printed


def test_another_candidate_that_is_as_good_is_a_tie(policy):
    record = decided(policy, 0)
    decision = recompute(record, policy)
    best, other = np.argsort(decision.candidate_q)[[-1, 0]]
    opened = Opened(policy, np.array([2.0, 2.0]))
    swapped = changed(record, action=decision.candidates[other])
    assert replay_decisions._as_good(swapped, decision, opened) is None
    q = decision.candidate_q.copy()
    q[other] = np.nextafter(q[best], np.float32(-np.inf))
    near = dataclasses.replace(decision, candidate_q=q)
    assert np.array_equal(replay_decisions._as_good(swapped, near, opened).action, swapped.action)


def test_a_draw_at_the_border_of_two_candidates_is_a_tie(policy):
    opened = Opened(policy, np.array([2.0, 2.0]))
    record = decided(policy, 0, extraction='softmax', softmax_temperature=0.0)
    decision = recompute(record, policy)
    uniform = draw_uniform(record.seed, record.tick_ns)
    # All candidates are alike: this one is far from the number that was drawn.
    far = decision.candidates[int(8 * uniform + 4) % 8]
    assert replay_decisions._as_good(changed(record, action=far), decision, opened) is None
    assert replay_decisions._as_good(record, decision, opened) is not None
