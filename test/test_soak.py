"""Policy and simulation with random faults: the short version of `make soak`."""

import pytest

soak = pytest.importorskip('soak', reason='rclpy or torch is not installed')


def test_half_a_minute_with_random_faults_is_survived_without_an_unsafe_value(tmp_path):
    report = soak.run(30.0, 1, tmp_path, settling_s=10.0)
    assert report.problems == []
    assert report.unsafe == 0 and report.shared_memory_left == []
    assert sum(report.faults.values()) >= 4
    # Between the faults the policy acts at its rate.
    assert report.quiet_actions > 0.8 * report.quiet_ticks_due > 0
    assert f'{report.ticks_due}, {report.actions}, {report.late}' in soak.table(report)
