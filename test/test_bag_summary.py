"""The numbers of a report are those of the bags."""

import json

import numpy as np
import pytest

hypothesis = pytest.importorskip('hypothesis', reason='hypothesis is not installed')
from bag_results import any_result, bag, copy_of, digest, GOAL, robot, summary_of  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from training.bag_summary import summarise  # noqa: E402


def test_numbers_are_those_of_the_bags():
    first, second = bag(robot(), 'a', 2000), bag(robot(), 'b', 1000, seed=1)
    first.account['unused'] = {'late': 3, 'stale': 1}
    second.account['unused'] = {'stale': 9}
    summary = summary_of(first, second)
    assert summary['totals'] == {
        'bags': 2, 'refused': 0, 'duration_s': pytest.approx(300), 'messages': 6000,
        'ticks': 3000, 'decisions': 3000, 'ties': 0, 'episodes': 60}
    assert list(summary['unused'].items()) == [('stale', 10), ('late', 3)]
    pose, = summary['signals']
    assert pose['count'] == 3000 and pose['bags'] == 2
    assert pose['rate_hz'] == pytest.approx(10)
    assert pose['stamps']['skew_s']['p50'] == pytest.approx(1e-3)
    # The median of the bags, by their messages, is the longer bag's.
    assert pose['age_at_ticks_s'] == first.account['streams'][0]['age_at_ticks_s']
    lows = [r.account['streams'][0]['low'][0] for r in (first, second)]
    assert pose['dimensions'][0]['low'] == min(lows)
    assert summary['episodes']['terminal_share'] == 1.0
    assert summary['episodes']['length']['mean'] == 50
    assert summary['episodes']['return']['mean'] == -49
    shown = summary['action_histograms']['shown']
    assert [h['name'] for h in shown] == ['drive linear.x', 'drive angular.z']
    assert sum(shown[0]['counts']) == 3000 and shown[0]['limits'] == [-1.0, 1.0]
    assert [b['bag'] for b in summary['bags']] == ['a', 'b']
    assert summary['bags'][0]['files'] == {'a_0.mcap': digest('a')}
    json.dumps(summary, allow_nan=False)


def test_longest_gap_is_that_of_the_worst_bag():
    gaps = [[{'at_s': 1.0, 'length_s': 2.0}, {'at_s': 5.0, 'length_s': 3.0}],
            [{'at_s': 2.0, 'length_s': 4.0}], []]
    results = [bag(robot(), name, 100) for name in 'abc']
    for result, listed in zip(results, gaps, strict=True):
        result.account['streams'][0].update(gaps=len(listed), gaps_listed=listed)
    pose, = summary_of(*results)['signals']
    assert pose['gaps'] == 3
    assert pose['longest_gap'] == {'at_s': 2.0, 'length_s': 4.0, 'bag': 'b'}


def test_most_drift_is_that_of_the_worst_bag():
    drifts = {'a': (0.0, 0.1), 'b': (0.3, -0.2), 'c': (5.0, 5.0)}
    results = [bag(robot(), name, 100) for name in drifts]
    for result, (begin, end) in zip(results, drifts.values(), strict=True):
        result.account['streams'][0]['stamps'].update(skew_begin_s=begin, skew_end_s=end)
    stamps = summary_of(*results)['signals'][0]['stamps']
    assert stamps['most_drift'] == {'bag': 'b', 'begin_s': 0.3, 'end_s': -0.2}
    assert stamps['simulated'] is False


def test_rows_that_cannot_be_drawn_are_nan():
    result = bag(robot(), n=3)
    result.samples['drive'][1, 2] = 1e300
    assert np.isnan(result.rows('drive', 3)).sum() == 1
    assert result.rows('none', 3).shape == (0, 3)


def test_shares_of_all_bags_are_weighted_by_their_messages():
    def outside(streams):
        streams['drive'][3][:, 0] = 2.0
    summary = summary_of(bag(robot(), 'a', 300, change=outside), bag(robot(), 'b', 900))
    drive, = summary['commands']
    assert drive['dimensions'][0]['outside_limits'] == pytest.approx(0.25)
    assert drive['dimensions'][1]['outside_limits'] == 0


def test_copies_are_told_and_left_out_of_the_behaviour():
    one, other = bag(robot(), 'one', 600), bag(robot(), 'other', 500, seed=1)
    copies = [copy_of(one, 'again'), copy_of(one, 'once more')]
    summary = summary_of(one, other, *copies)
    assert summary['copies'] == [['one', 'again', 'once more']]
    assert summary['behaviour'] == summary_of(one, other)['behaviour']
    assert summary['behaviour']['decisions'] == 1100
    assert summary['totals']['decisions'] == 2300


def test_bags_whose_files_were_not_read_or_are_others_are_no_copies():
    results = [bag(robot(), name, 100, files={}) for name in 'ab']
    more = bag(robot(), 'c', 100)
    longer = bag(robot(), 'd', 100, files={**more.account['files'], 'd_1.mcap': 'cd' * 32})
    assert summary_of(*results, more, longer)['copies'] == []


def test_histograms_of_a_signal_with_history_are_of_its_newest_frame():
    spec = robot(signal={'history': 3})
    result = bag(robot())
    rows = result.samples['decisions']
    result.samples['decisions'] = np.column_stack([0 * rows[:, :2], 0 * rows[:, :2], rows])
    summary = summary_of(result, spec=spec)
    one, = (h for h in summary['observation_histograms']['shown'] if h['name'] == 'pose[0]')
    assert one['edges'][0] == pytest.approx(rows[:, 0].min())
    assert summary['observation_histograms']['dimensions'] == 2


@hypothesis.settings(max_examples=100, deadline=None,
                     suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(st.data())
def test_any_account_has_a_summary_that_json_holds(data):
    spec = data.draw(st.sampled_from([robot(), robot(3, clock='header')]))
    results = data.draw(st.lists(any_result(spec), max_size=3))
    with np.errstate(all='raise', under='ignore'):
        summary = summarise(results, spec, data.draw(st.sampled_from([GOAL, None])))
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
