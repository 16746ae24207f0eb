"""Recorded runs are computed again bit for bit, what differs is found, and they convert."""

from contextlib import contextmanager
import dataclasses
import json
import math
import os
from pathlib import Path
import signal
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')
pytest.importorskip('onnx', reason='onnx is not installed')
from idql_ros import decision_record  # noqa: E402
from idql_ros import message as messages  # noqa: E402
from idql_ros.policy import default_path, Policy  # noqa: E402
from recording import MS, Recording  # noqa: E402
from rosbags.rosbag2 import Reader, StoragePlugin, Writer  # noqa: E402
from rosbags.typesys import get_typestore, Stores  # noqa: E402
from training import replay  # noqa: E402
from training.storage import Bag  # noqa: E402

SOURCE = Path(__file__).resolve().parents[1]
JAZZY = get_typestore(Stores.ROS2_JAZZY)
DECISION = 'std_msgs/msg/Float64MultiArray'
T = 1_000 * 10**9


def decision_message(record):
    """Return the message in which the node tells a decision."""
    labels, data = decision_record.pack(record)
    message = messages.blank(DECISION)
    for label, size in labels:
        dimension = messages.blank('std_msgs/msg/MultiArrayDimension')
        dimension.label, dimension.size = label, size
        message.layout.dim = [*message.layout.dim, dimension]
    message.data = data
    return message


def read_record(message):
    """Return the record in a message."""
    return decision_record.unpack([(d.label, d.size) for d in message.layout.dim], message.data)


def decided(policy, number, **changes):
    """Return the record of the decision at a tick of 2 Hz."""
    tick_ns = T + 500 * MS * number
    observation = np.array([number / 10, 1.0], np.float32)
    settings = {'candidates': 8, 'extraction': 'greedy', 'softmax_temperature': 1.0,
                'sampling_temperature': 1.0, 'seed': 2**63 + 5} | changes
    decision = policy.decide(
        observation, tick_ns, settings['seed'], settings['candidates'],
        extraction=settings['extraction'], temperature=settings['softmax_temperature'],
        sampling_temperature=settings['sampling_temperature'])
    return decision_record.DecisionRecord(
        tick_ns=tick_ns, digest=decision_record.short_digest(policy.digest), q=decision.q,
        v=decision.v, q_mean=decision.q_mean, q_spread=decision.q_spread,
        distance=decision.distance, published=True, observation=observation,
        action=decision.action, sent=decision.action / 2, **settings)


def write_bag(path, spec, records, node='policy_node', log_ns=0):
    """Write what a run leaves; its log is `log_ns` ahead of the stamps."""
    recording = Recording(spec)
    namespace = node.rpartition('policy_node')[0]
    for record in records:
        tick_ns = record.tick_ns
        odometry = messages.write(spec.observations[0], record.observation,
                                  messages.blank('nav_msgs/msg/Odometry'), tick_ns)
        recording.add_message(f'{namespace}odom', odometry, tick_ns + MS + log_ns)
        if record.published:
            command = messages.write(spec.actions[0], record.sent,
                                     messages.blank(spec.actions[0].type), tick_ns)
            recording.add_message(f'{namespace}cmd_vel', command, tick_ns + 5 * MS + log_ns)
        recording.add_message(f'{node}/decision', decision_message(record),
                              tick_ns + 6 * MS + log_ns)
    return recording.save(path)


@pytest.fixture(scope='module')
def policy():
    """Return the default policy."""
    return Policy(default_path())


WAYS = ({}, {'candidates': 3, 'extraction': 'implicit'},
        {'extraction': 'softmax', 'softmax_temperature': 5.0, 'sampling_temperature': 0.5})


@pytest.fixture
def records(policy):
    """Return the records of ten decisions, made in three ways."""
    return [decided(policy, number, **WAYS[number % 3]) for number in range(10)]


def run(*arguments, capsys):
    """Return the exit status of the command line, what it printed, and its errors."""
    capsys.readouterr()
    code = replay.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith('error')]
    return code, printed.out, '\n'.join(errors)


def changed(record, **changes):
    """Return a record with other numbers."""
    return dataclasses.replace(record, **changes)


def test_equal_decisions_of_every_extraction_pass(tmp_path, policy, records, capsys):
    bag = write_bag(tmp_path / 'bag', policy.spec, records)
    code, printed, _ = run(
        bag, '--policy', default_path(), '--figure', tmp_path / 'values.png', capsys=capsys)
    assert code == 0
    assert 'all 10 equal bit for bit' in printed
    assert '10 of 10 are made again' in printed
    assert 'commands on /cmd_vel: 10 found' in printed
    assert (tmp_path / 'values.png').read_bytes().startswith(b'\x89PNG')


def test_the_first_difference_is_told_with_tick_dimension_and_both_numbers(
        tmp_path, policy, records, capsys):
    for number in (4, 7):
        action = records[number].action.copy()
        action[1] += 0.25
        records[number] = changed(records[number], action=action)
    bag = write_bag(tmp_path / 'bag', policy.spec, records)
    code, printed, _ = run(bag, '--policy', default_path(), capsys=capsys)
    assert code == 1
    found = replay.replay_bag(bag, [default_path()]).first_beyond
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
    decision = replay.recompute(record, policy)
    best, other = np.argsort(decision.candidate_q)[[-1, 0]]
    opened = replay.Opened(policy, np.array([2.0, 2.0]))
    swapped = changed(record, action=decision.candidates[other])
    assert replay._as_good(swapped, decision, opened) is None
    q = decision.candidate_q.copy()
    q[other] = np.nextafter(q[best], np.float32(-np.inf))
    near = dataclasses.replace(decision, candidate_q=q)
    assert np.array_equal(replay._as_good(swapped, near, opened).action, swapped.action)


def test_a_draw_at_the_border_of_two_candidates_is_a_tie(policy):
    opened = replay.Opened(policy, np.array([2.0, 2.0]))
    record = decided(policy, 0, extraction='softmax', softmax_temperature=0.0)
    decision = replay.recompute(record, policy)
    uniform = replay.draw_uniform(record.seed, record.tick_ns)
    # All candidates are alike: this one is far from the number that was drawn.
    far = decision.candidates[int(8 * uniform + 4) % 8]
    assert replay._as_good(changed(record, action=far), decision, opened) is None
    assert replay._as_good(record, decision, opened) is not None


def test_a_command_that_is_not_what_the_guard_let_through_is_found(
        tmp_path, policy, records, capsys):
    told = [changed(record, sent=record.sent + np.float32(0.01) * (number == 5))
            for number, record in enumerate(records)]
    bag = write_bag(tmp_path / 'bag', policy.spec, records)
    with_others = write_bag(tmp_path / 'other', policy.spec, told)
    # The commands of the one with the decisions of the other.
    mixed = rewrite(bag, tmp_path / 'mixed', 'policy_node/decision', iter(
        [message for _, _, message in _read(with_others, 'policy_node/decision')]).__next__)
    code, printed, _ = run(mixed, '--policy', default_path(), capsys=capsys)
    assert code == 1
    assert f'1 NOT as recorded, the first of tick {records[5].tick_ns} ns' in printed
    assert 'all 10 equal' not in printed


def test_a_dry_run_sends_nothing_and_one_that_does_is_found(tmp_path, policy, records, capsys):
    dry = [changed(record, published=False) for record in records]
    silent = write_bag(tmp_path / 'silent', policy.spec, dry)
    assert run(silent, '--policy', default_path(), capsys=capsys)[0] == 0
    sent = write_bag(tmp_path / 'sent', policy.spec, records)
    told = iter([decision_message(record) for record in dry])
    lying = rewrite(sent, tmp_path / 'lying', 'policy_node/decision', told.__next__)
    code, printed, _ = run(lying, '--policy', default_path(), capsys=capsys)
    assert code == 1 and '10 NOT as recorded' in printed


def test_refused_actions_were_not_sent_and_are_recomputed(tmp_path, policy, records, capsys):
    records[2] = changed(records[2], published=False, sent=np.full(2, math.nan, np.float32))
    bag = write_bag(tmp_path / 'bag', policy.spec, records)
    code, printed, _ = run(bag, '--policy', default_path(), capsys=capsys)
    assert code == 0 and 'commands on /cmd_vel: 9 found' in printed


def test_commands_without_a_stamp_are_found_by_when_they_were_logged(
        tmp_path, policy, records, capsys):
    onnx = pytest.importorskip('onnx')
    model = onnx.load(default_path())
    entry, = model.metadata_props
    metadata = json.loads(entry.value)
    command, = metadata['spec']['actions']
    command |= {'type': 'geometry_msgs/msg/Twist', 'fields': ['linear.x', 'linear.y']}
    del command['frame_id']
    entry.value = json.dumps(metadata)
    onnx.save(model, tmp_path / 'twist.onnx')
    twist = Policy(tmp_path / 'twist.onnx')
    digest = decision_record.short_digest(twist.digest)
    records = [changed(record, digest=digest) for record in records]
    bag = write_bag(tmp_path / 'bag', twist.spec, records)
    code, printed, _ = run(bag, '--policy', twist.path, capsys=capsys)
    assert code == 0 and 'commands on /cmd_vel: 10 found' in printed


def test_a_run_in_simulated_time_may_be_logged_by_the_wall_clock(
        tmp_path, policy, records, capsys):
    bag = write_bag(tmp_path / 'bag', policy.spec, records, log_ns=10**18)
    code, printed, _ = run(bag, '--policy', default_path(), capsys=capsys)
    assert code == 0
    assert 'commands on /cmd_vel: 10 found' in printed and '10 of 10 are made again' in printed


def test_a_node_in_a_namespace_is_replayed_by_its_name(tmp_path, policy, records, capsys):
    bag = write_bag(tmp_path / 'bag', policy.spec, records, node='one/policy_node')
    code, printed, _ = run(bag, '--policy', default_path(), capsys=capsys)
    assert code == 0 and 'commands on /one/cmd_vel: 10 found' in printed
    code, _, error = run(
        bag, '--policy', default_path(), '--node', '/two/policy_node', capsys=capsys)
    assert code == 2 and '/two/policy_node/decision' in error


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


@pytest.mark.parametrize('policies', [[], ['other.onnx']])
def test_a_policy_file_is_told_by_its_hash(tmp_path, policy, records, capsys, policies):
    onnx = pytest.importorskip('onnx')
    model = onnx.load(default_path())
    model.producer_name = 'another'
    onnx.save(model, tmp_path / 'other.onnx')
    bag = write_bag(tmp_path / 'bag', policy.spec, records)
    named = [part for name in policies for part in ('--policy', tmp_path / name)]
    code, printed, error = run(bag, *named, capsys=capsys)
    assert code == 2 and not printed
    assert f'SHA-256 begins with {policy.digest[:12]}' in error
    assert ('other.onnx' if policies else 'found none') in error


def test_a_run_with_a_reload_takes_both_files(tmp_path, policy, records, capsys):
    onnx = pytest.importorskip('onnx')
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


def _read(path, topic):
    with Bag(path) as bag:
        return list(bag.messages([topic]))


def rewrite(source, target, topic, change):
    """Copy a bag; each message of a topic becomes what `change()` returns; return the copy."""
    with Reader(source) as reader, Writer(
            target, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {c.id: writer.add_connection(c.topic, c.msgtype, typestore=JAZZY)
                       for c in reader.connections}
        for connection, log_ns, content in reader.messages():
            if connection.topic.lstrip('/') == topic:
                content = JAZZY.serialize_cdr(change(), connection.msgtype)
            writer.write(connections[connection.id], log_ns, content)
    return target


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
    found = replay.replay_bag(bag, [path])
    assert found.decisions >= 90
    assert found.equal == found.decisions and found.ties == 0
    command, = found.commands
    assert command.found >= found.decisions - 2 and not command.differing
    # The recorder takes messages at other moments than the node.
    assert found.observed > 0.5 * found.decisions
    assert found.seeds == {7: found.decisions}


def test_the_policy_file_is_found_where_the_diagnostics_say(driven, capsys):
    _, bag = driven
    code, printed, error = run(bag, capsys=capsys)
    assert code == 0, printed + error


def test_a_changed_action_of_a_real_run_is_the_first_difference(driven, tmp_path, capsys):
    path, bag = driven
    records = [read_record(message) for _, _, message in _read(bag, 'policy_node/decision')]
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
    records = [read_record(message) for _, _, message in _read(bag, 'policy_node/decision')]
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
    found = replay.replay_bag(bag, [path])
    assert found.equal == found.decisions
    assert set(found.candidates) == {16, 8}
    assert set(found.extractions) == {'softmax'}
    assert _read(bag, 'cmd_vel') == []
    records = [read_record(message) for _, _, message in _read(bag, 'policy_node/decision')]
    assert not any(record.published for record in records)
    previews = {message.data.astype(np.float32).tobytes()
                for _, _, message in _read(bag, 'policy_node/command_preview')}
    assert {record.sent.tobytes() for record in records[5:]} <= previews
