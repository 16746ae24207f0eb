"""What the guard let through lies on the topics of the commands, and nothing else does."""

import json
import math

import numpy as np
import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')
pytest.importorskip('onnx', reason='onnx is not installed')
from idql_ros import decision_record  # noqa: E402
from idql_ros.policy import default_path, Policy  # noqa: E402
from replayed import (  # noqa: E402
    changed,
    decision_message,
    read_messages,
    rewrite,
    run,
    write_bag,
)


def test_a_command_that_is_not_what_the_guard_let_through_is_found(
        tmp_path, policy, records, capsys):
    told = [changed(record, sent=record.sent + np.float32(0.01) * (number == 5))
            for number, record in enumerate(records)]
    bag = write_bag(tmp_path / 'bag', policy.spec, records)
    with_others = write_bag(tmp_path / 'other', policy.spec, told)
    # The commands of the one with the decisions of the other.
    others = iter([message for _, _, message in read_messages(
        with_others, 'policy_node/decision')])
    mixed = rewrite(bag, tmp_path / 'mixed', 'policy_node/decision', others.__next__)
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
