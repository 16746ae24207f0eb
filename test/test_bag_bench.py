"""The benchmark of the conversion measures what it says, on the path that users run."""

import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')
pytest.importorskip('minari', reason='minari is not installed')
from training import bag_bench  # noqa: E402
from training.storage import Bag  # noqa: E402


@pytest.mark.parametrize('name', ['joint_states', 'odometry'])
def test_generated_bag_holds_what_is_observed_and_what_is_not_used(tmp_path, name):
    bag_bench.record(tmp_path / 'bag', name, 300)
    topic = bag_bench.spec_of(name).observations[0].topic
    with Bag(tmp_path / 'bag') as bag:
        counts = {key: found.count for key, found in bag.topics.items()}
    assert counts == {topic: 300, 'cmd_vel': 30, 'other': 100}
    assert bag_bench.decode(tmp_path / 'bag', {topic, 'cmd_vel'}) == 330


def test_goals_are_judged_by_the_medians():
    row = {'decoded_per_s': 3e4, 'converted_per_s': 2e4, 'share_of_decoding': 0.69,
           'two_processes': 1.8}
    text = bag_bench.table({'odometry': row})
    assert 'odometry, share of decoding at least 0.7: 0.69, missed' in text
    assert 'odometry, two processes at least 1.7: 1.80, met' in text


def test_one_turn_measures_decoding_and_conversion_in_one_and_in_two_processes():
    result = bag_bench.measure(400, 1)
    assert set(result) == {'joint_states', 'odometry'}
    assert all(value > 0 for row in result.values() for value in row.values())
