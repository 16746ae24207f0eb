"""Recorded runs are computed again bit for bit, what differs is found, and they convert."""

from contextlib import contextmanager
import os
from pathlib import Path
import signal
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')
pytest.importorskip('onnx', reason='onnx is not installed')
from idql_ros import message as messages  # noqa: E402
from idql_ros.policy import default_path, Policy  # noqa: E402
from replayed import (  # noqa: E402
    changed,
    DECISION,
    decision_message,
    read_messages,
    read_records,
    rewrite,
    run,
    write_bag,
)
from training.replay import replay_bag  # noqa: E402

SOURCE = Path(__file__).resolve().parents[1]


def test_equal_decisions_of_every_extraction_pass(tmp_path, policy, records, capsys):
    bag = write_bag(tmp_path / 'bag', policy.spec, records)
    code, printed, _ = run(
        bag, '--policy', default_path(), '--figure', tmp_path / 'values.png', capsys=capsys)
    assert code == 0
    assert 'all 10 equal bit for bit' in printed
    assert '10 of 10 are made again' in printed
    assert 'commands on /cmd_vel: 10 found' in printed
    assert (tmp_path / 'values.png').read_bytes().startswith(b'\x89PNG')


# ---- recorded from the real node ----------------------------------------------------------------


@contextmanager
def recorder(bag, policy, log):
    """Give a process that records a node; it ends, and the bag is whole, at the exit."""
    with log.open('w') as file:
        child = subprocess.Popen(
            [sys.executable, SOURCE / 'test' / 'bag_recorder.py', bag, policy, '/policy_node'],
            cwd=SOURCE, stdout=file, stderr=subprocess.STDOUT,
            env=os.environ | {'PYTHONPATH': str(SOURCE)})
    try:
        yield child
    finally:
        child.send_signal(signal.SIGINT)
        try:
            code = child.wait(15)
        finally:
            child.kill()
    assert code == 0, log.read_text()


def record_run(folder, parameters, decisions):
    """Run the real node at 20 Hz and record so many of its decisions; return policy and bag."""
    harness = pytest.importorskip('harness', reason='rclpy is not installed')

    def faster(metadata):
        metadata['spec']['rate'] = 20.0
        for dimension in metadata['spec']['actions'][0]['dimensions']:
            dimension['max_rate'] = 4.0  # so that other commands are sent than the policy asks for

    path = harness.policy_with(folder / 'policy.onnx', faster)
    bag, log = folder / 'bag', folder / 'recorder.log'
    with harness.robot() as robot, harness.running('idql_ros.policy_node', {
            'model': path, 'autostart': True, 'enable_commands': True, **parameters},
            folder / 'node.log'), recorder(bag, path, log):
        told = robot.listen(messages.ros_class(DECISION), '/policy_node/decision')
        robot.spin_until(lambda: 'recording' in log.read_text(), 'a recorder')
        robot.drive(lambda: len(told) >= decisions, f'{decisions} decisions', 60.0, x=2.0, y=1.0)
        robot.spin_for(1.2)  # the stop, and once more the diagnostics
    return path, bag


@pytest.fixture(scope='module')
def driven(tmp_path_factory):
    """Return policy and bag of a run of about 5 s."""
    return record_run(tmp_path_factory.mktemp('driven'), {'seed': 7}, 90)


def test_a_run_of_the_real_node_is_recomputed_bit_for_bit(driven, capsys):
    path, bag = driven
    code, printed, error = run(bag, '--policy', path, capsys=capsys)
    assert code == 0, printed + error
    found = replay_bag(bag, [path])
    assert found.decisions.count >= 90
    decisions = found.decisions
    assert decisions.equal == decisions.count and decisions.ties == 0
    command, = found.commands
    assert command.found >= decisions.count - 2 and not command.differing
    # The recorder takes messages at other moments than the node.
    assert found.observations.made_again > 0.5 * decisions.count
    assert decisions.seeds == {7: decisions.count}


def test_the_policy_file_is_found_where_the_diagnostics_say(driven, capsys):
    _, bag = driven
    code, printed, error = run(bag, capsys=capsys)
    assert code == 0, printed + error


def test_a_changed_action_of_a_real_run_is_the_first_difference(driven, tmp_path, capsys):
    path, bag = driven
    records = read_records(bag)
    records[20] = changed(records[20], action=records[20].action[::-1].copy())
    told = iter([decision_message(record) for record in records])
    lying = rewrite(bag, tmp_path / 'bag', 'policy_node/decision', told.__next__)
    code, printed, _ = run(lying, '--policy', path, capsys=capsys)
    assert code == 1
    assert f'first difference: decision 20, tick {records[20].tick_ns} ns: action[' in printed


def test_a_recorded_run_converts_with_the_actions_as_sent(driven, tmp_path):
    pytest.importorskip('minari', reason='minari is not installed')
    from training.datasets import load_minari
    path, bag = driven
    spec = tmp_path / 'robot.yaml'
    spec.write_text(Policy(path).spec.to_json())
    converted = subprocess.run(
        [sys.executable, '-m', 'training.bags', bag, '--spec', spec, '--reward',
         '{action_cost: {}}', '--terminal', 'never', '--dataset-id', 'test/run-v0', '--root',
         tmp_path / 'datasets', '--report', tmp_path / 'report', '--jobs', '1'],
        cwd=SOURCE, capture_output=True, text=True, check=False)
    assert converted.returncode == 0, converted.stderr
    dataset, _ = load_minari('test/run-v0', tmp_path / 'datasets')
    records = read_records(bag)
    sent = {record.sent.tobytes() for record in records}
    limited = sum(record.sent.tobytes() != record.action.tobytes() for record in records)
    assert limited > len(records) / 4
    same = sum(action.astype(np.float32).tobytes() in sent for action in dataset.actions)
    # The rest are the stops of ticks that were missed.
    assert len(dataset.actions) > len(records) / 2
    assert same > 0.9 * len(dataset.actions)


def test_a_dry_run_whose_candidates_fell_and_were_drawn_is_recomputed_bit_for_bit(
        tmp_path, capsys):
    path, bag = record_run(tmp_path, {
        'deadline_ms': 0.01, 'extraction': 'softmax', 'softmax_temperature': 3.0,
        'candidates': 16, 'enable_commands': False}, 45)
    code, printed, error = run(bag, '--policy', path, capsys=capsys)
    assert code == 0, printed + error
    found = replay_bag(bag, [path]).decisions
    assert found.equal == found.count
    assert set(found.candidates) == {16, 8}
    assert set(found.extractions) == {'softmax'}
    assert read_messages(bag, 'cmd_vel') == []
    records = read_records(bag)
    assert not any(record.published for record in records)
    previews = {message.data.astype(np.float32).tobytes()
                for _, _, message in read_messages(bag, 'policy_node/command_preview')}
    assert {record.sent.tobytes() for record in records[5:]} <= previews
