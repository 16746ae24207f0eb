"""Faults around policy_node: the quick ones of `make faults`, and its table."""

import json

import pytest

faults = pytest.importorskip('faults', reason='rclpy or torch is not installed')

QUICK = ('joint states stop', 'odometry stops', 'NaN', 'stamps jump forward by 10 s',
         'publisher restarts, QoS does not fit', 'SIGSTOP, SIGCONT', 'reload of a corrupt file',
         'e-stop during inference', 'lifecycle cycles', '/clock stops', '/clock jumps back')


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    """Return the rows of the quick faults."""
    return faults.run(tmp_path_factory.mktemp('faults'), QUICK.__contains__, cycles=20)


def test_every_reaction_is_in_time_and_no_unsafe_value_is_sent(done):
    assert {row.fault for row in done} == set(QUICK)
    assert {row.fault: row.problems for row in done if row.problems} == {}


def test_the_table_says_of_each_fault_when_it_was_reacted_to_and_what_was_sent(done, tmp_path):
    faults.write(done, tmp_path, 1.0)
    lines = (tmp_path / 'faults.md').read_text().splitlines()
    told = json.loads((tmp_path / 'faults.json').read_text())
    for row, entry in zip(done, told, strict=True):
        line, = (line for line in lines if line.startswith(f'| {row.fault} |'))
        assert row.sent and row.sent in line and line.endswith('| as expected |')
        assert entry['fault'] == row.fault and entry['reaction_s'] == row.reaction_s


def test_a_row_that_failed_is_told_in_the_table_and_counted(tmp_path):
    faults.write([faults.Row('good'), faults.Row('bad', problems=['no reaction'])], tmp_path, 1.0)
    text = (tmp_path / 'faults.md').read_text()
    assert 'Faults: 2, 1 as expected' in text
    assert '| no reaction |' in text
