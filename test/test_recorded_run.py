"""A bag tells whose decisions it holds and which files made them, or is refused in one line."""

import numpy as np
import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')
onnx = pytest.importorskip('onnx', reason='onnx is not installed')
from idql_ros import decision_record  # noqa: E402
from idql_ros import message as messages  # noqa: E402
from idql_ros.policy import default_path, Policy  # noqa: E402
from recording import Recording  # noqa: E402
from replayed import (  # noqa: E402
    changed,
    DECISION,
    decision_message,
    MS,
    run,
    T,
    write_bag,
)


@pytest.mark.parametrize('policies', [[], ['other.onnx']])
def test_a_policy_file_is_told_by_its_hash(tmp_path, policy, records, capsys, policies):
    model = onnx.load(default_path())
    model.producer_name = 'another'
    onnx.save(model, tmp_path / 'other.onnx')
    bag = write_bag(tmp_path / 'bag', policy.spec, records)
    named = [part for name in policies for part in ('--policy', tmp_path / name)]
    code, printed, error = run(bag, *named, capsys=capsys)
    assert code == 2 and not printed
    assert f'SHA-256 begins with {policy.digest[:12]}' in error
    assert ('other.onnx' if policies else 'found none') in error


def test_of_several_nodes_one_has_to_be_chosen(tmp_path, policy, records, capsys):
    recording = Recording(policy.spec)
    for name in ('left', 'right'):
        for record in records:
            recording.add_message(
                f'{name}/decision', decision_message(record), record.tick_ns + 6 * MS)
    bag = recording.save(tmp_path / 'bag', silent=('velocity', 'position'))
    code, _, error = run(bag, '--policy', default_path(), capsys=capsys)
    assert code == 2 and '/left/decision and /right/decision; choose with --node' in error
    code, printed, _ = run(
        bag, '--policy', default_path(), '--node', 'left', capsys=capsys)
    assert code == 0
    assert 'the topic is not in the bag' in printed and 'not made again' in printed


def test_a_node_in_a_namespace_is_replayed_by_its_name(tmp_path, policy, records, capsys):
    bag = write_bag(tmp_path / 'bag', policy.spec, records, node='one/policy_node')
    code, printed, _ = run(bag, '--policy', default_path(), capsys=capsys)
    assert code == 0 and 'commands on /one/cmd_vel: 10 found' in printed
    code, _, error = run(
        bag, '--policy', default_path(), '--node', '/two/policy_node', capsys=capsys)
    assert code == 2 and '/two/policy_node/decision' in error


def test_a_run_with_a_reload_takes_both_files(tmp_path, policy, records, capsys):
    model = onnx.load(default_path())
    model.producer_name = 'another'
    onnx.save(model, tmp_path / 'other.onnx')
    other = decision_record.short_digest(Policy(tmp_path / 'other.onnx').digest)
    records = [changed(r, digest=other if r.tick_ns > T + 2000 * MS else r.digest)
               for r in records]
    bag = write_bag(tmp_path / 'bag', policy.spec, records)
    code, printed, _ = run(bag, '--policy', default_path(), '--policy', tmp_path / 'other.onnx',
                           capsys=capsys)
    assert code == 0 and printed.count('sha256') == 2


def test_a_file_is_checked_with_every_number_of_candidates_in_the_bag(
        tmp_path, policy, records, capsys):
    # It answers with any number but 7.
    model = onnx.load(default_path())
    for node in model.graph.node:
        node.output[:] = ['inner' if name == 'q' else name for name in node.output]
    for name, value in (('seven', [7]), ('three', [1, 3]), ('one', [1, 1]), ('zero', [[0.0]])):
        model.graph.initializer.append(onnx.numpy_helper.from_array(
            np.array(value, np.float32 if name == 'zero' else np.int64), name))
    model.graph.node.extend(onnx.helper.make_node(kind, inputs, [output], **attributes)
                            for kind, inputs, output, attributes in (
        ('Shape', ['noise'], 'n', {'start': 2, 'end': 3}), ('Equal', ['n', 'seven'], 'it', {}),
        ('Where', ['it', 'three', 'one'], 'sizes', {}), ('Expand', ['zero', 'sizes'], 'row', {}),
        ('Add', ['inner', 'row'], 'q', {})))
    onnx.save(model, tmp_path / 'seven.onnx')
    digest = decision_record.short_digest(Policy(tmp_path / 'seven.onnx').digest)
    records = [changed(r, digest=digest) for r in records]
    arguments = '--policy', tmp_path / 'seven.onnx'
    bag = write_bag(tmp_path / 'bag', policy.spec, records)
    code, _, _ = run(bag, *arguments, capsys=capsys)
    assert code == 0
    bag = write_bag(tmp_path / 'other', policy.spec,
                    [*records[:-1], changed(records[-1], candidates=7)])
    code, _, error = run(bag, *arguments, capsys=capsys)
    assert code == 2 and 'fails with 7 candidates' in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(('changes', 'expected'), [
    ({'candidates': 2**40}, 'candidates: expected 1 to'),
    ({'candidates': 0}, 'candidates: expected 1 to'),
    ({'tick_ns': 2**34 * 10**9 - 1}, 'tick_s_ns'),
    ({'softmax_temperature': -1.0}, 'softmax_temperature'),
    ({'observation': np.zeros(3, np.float32)}, 'observation: expected 2 numbers'),
    ({'action': np.zeros(1, np.float32)}, 'action: expected 2 numbers'),
    ({'sent': np.zeros(0, np.float32)}, 'sent: expected 2 numbers'),
])
def test_what_no_node_recorded_is_refused_in_one_line(
        tmp_path, policy, records, capsys, changes, expected):
    recording = Recording(policy.spec)
    recording.add_message('policy_node/decision', decision_message(changed(records[0], **changes)),
                          T)
    bag = recording.save(tmp_path / 'bag')
    code, _, error = run(bag, '--policy', default_path(), capsys=capsys)
    assert code == 2 and expected in error
    assert len(error.splitlines()) == 1


def test_other_messages_under_the_name_of_decisions_are_refused_in_one_line(
        tmp_path, policy, capsys):
    recording = Recording(policy.spec)
    recording.add_message('policy_node/decision', messages.blank(DECISION), T)
    bag = recording.save(tmp_path / 'bag')
    code, _, error = run(bag, '--policy', default_path(), capsys=capsys)
    assert code == 2 and 'message 0 is no record of a decision' in error
    empty = Recording(policy.spec)
    code, _, error = run(empty.save(tmp_path / 'empty'), capsys=capsys)
    assert code == 2 and 'expected decisions of one node' in error
    code, _, error = run(tmp_path / 'no bag', capsys=capsys)
    assert code == 2 and 'no such file' in error
