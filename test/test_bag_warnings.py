"""What is amiss in bags is said, with what to do about it, and nothing else is."""

import numpy as np
import pytest

pytest.importorskip('hypothesis', reason='hypothesis is not installed')
import bag_results as made  # noqa: E402
from bag_results import bag, GOAL, robot, summary_of  # noqa: E402
from idql_ros import spec as specs  # noqa: E402
from training.account import BagAccount  # noqa: E402
from training.bag_summary import BagResult  # noqa: E402


def warned(summary, about, words):
    """Return whether there is a warning about something that has these words."""
    return any(w['about'] == about and words in w['text'] for w in summary['warnings'])


def with_twin(change):
    """Return spec and result of a bag with a second signal of the topic pose, which is equal."""
    data = robot().to_dict()
    data['observations'].append({**data['observations'][0], 'name': 'twin'})
    result = bag(robot(), change=change)
    result.account['streams'].append({**result.account['streams'][0], 'name': 'twin'})
    del result.samples['decisions']
    return specs.parse(data, 'robot'), result


def test_healthy_bag_gives_no_warning():
    assert summary_of(bag(robot()))['warnings'] == []


def test_refused_bag_comes_first_with_its_reason():
    spec = robot()
    empty = BagResult(BagAccount('none', {}, refused='no topic pose').to_dict(), {}, [])
    summary = summary_of(bag(spec), empty)
    assert summary['warnings'][0]['level'] == 'error'
    assert warned(summary, 'none', 'no topic pose')
    assert summary['totals']['refused'] == 1
    # It was not read: that is no statement about its topics.
    assert not warned(summary_of(empty), 'pose', 'No message')


def test_warnings_are_in_the_order_of_their_importance():
    def bad(streams):
        streams['pose'][2] -= 5 * made.NS
        streams['pose'][3][:, 1] = 7.0
        streams['drive'][3][:, 0] = 0.0
        streams['drive'][3][:10, 1] = 4.0
    result = bag(robot(), change=bad, refused='it is damaged', decisions=500, ties=3)
    found = [(w['level'], w['about']) for w in summary_of(result)['warnings']]
    assert found[0] == ('error', 'bag')
    assert found[1:5] == [('warning', 'ticks'), ('warning', 'drive'), ('warning', 'drive'),
                          ('warning', 'pose')]
    levels = [level for level, _ in found]
    assert levels == sorted(levels, key=['error', 'warning', 'note'].index)
    assert found[-3:] == [('note', 'pose'), ('note', 'ticks'), ('note', 'episodes')]


@pytest.mark.parametrize(('change', 'level', 'about', 'words'), [
    (made.constant_command, 'warning', 'drive', 'The command never changes'),
    (made.outside_limits, 'warning', 'drive', '`lower` and `upper`'),
    (made.often_at_limit, 'warning', 'drive', 'at a limit'),
    (made.skewed, 'warning', 'pose', '2 days before the log (median)'),
    (made.skewed, 'warning', 'pose', 'not the same: `time: received`'),
    (made.simulated, 'warning', 'pose', '`clock: header` if the robot was simulated'),
    (made.zero_stamps, 'warning', 'pose', 'Header stamps that are zero: 2,000 of 2,000.'),
    (made.drifting, 'warning', 'pose', 'drift apart by'),
    (made.with_nan, 'warning', 'pose', '5 % of the values of pose[1] are NaN'),
    (made.constant_input, 'note', 'pose', 'pose[1] never changes: that is no input'),
    (made.with_gap, 'note', 'pose', '1 gap longer than 250 ms, the longest 10.1 s in bag 99.9 s'),
    (made.repeated_stamps, 'note', 'pose', 'repeated: 1, going backward: 0, '),
    (made.unreadable, 'warning', 'pose', 'Messages that could not be read: 2,000 of 2,000.'),
])
def test_what_is_amiss_in_a_stream_is_said(change, level, about, words):
    summary = summary_of(bag(robot(), change=change))
    assert [w['level'] for w in summary['warnings']
            if w['about'] == about and words in w['text']] == [level], summary['warnings']


@pytest.mark.parametrize(('more', 'about', 'words'), [
    ({'decisions': 0}, 'ticks', 'No decision came of 2,000 ticks'),
    ({'decisions': 900, 'unused': {'pose (topic pose): stale, # s old': 1100}}, 'ticks',
     '55 % of 2,000 ticks became no decision: most of the recording is not used. Most often: '
     'pose (topic pose): stale, # s old (1,100 times). Raise `max_age`'),
    ({'decisions': 999, 'ticks': 999}, 'episodes', '999 decisions in 40 episodes'),
    ({'ties': 2}, 'ticks', 'in the very nanosecond of a tick: 2.'),
])
def test_what_is_amiss_with_the_ticks_is_said(more, about, words):
    assert warned(summary_of(bag(robot(), **more)), about, words)


def test_equal_flaws_of_the_signals_of_a_topic_are_one_warning():
    spec, result = with_twin(made.repeated_stamps)
    about = [w['about'] for w in summary_of(result, spec=spec)['warnings']]
    assert about == ['pose, twin']
    # Another text is another warning.
    spec, result = with_twin(made.constant_input)
    summary = summary_of(result, spec=spec)
    assert warned(summary, 'pose', 'pose[1] never changes')
    assert warned(summary, 'twin', 'twin[1] never changes')


def test_signals_of_one_topic_in_simulated_time_are_no_several_topics():
    spec, result = with_twin(made.simulated)
    assert warned(summary_of(result, spec=spec), 'pose, twin', 'if the robot was simulated')


def test_constant_numbers_are_named():
    def constant(streams):
        streams['pose'][3][:] = 1.0
        streams['drive'][3][:, 1] = 0.5
    spec = robot(7)
    summary = summary_of(bag(spec, change=constant), spec=spec)
    assert warned(summary, 'drive', 'drive angular.z never changes: there is nothing to learn')
    assert warned(summary, 'pose', 'pose[0], pose[1], pose[2], pose[3], pose[4] and 2 more never '
                                   'change: ')


def test_zero_stamps_alone_say_nothing_of_the_clock_of_the_others():
    def half(streams):
        streams['pose'][2][::2] = 0
    summary = summary_of(bag(robot(), change=half))
    assert warned(summary, 'pose', 'Header stamps that are zero: 1,000 of 2,000.')
    assert not warned(summary, 'pose', 'the log (median)')
    assert not warned(summary, 'pose', 'drift')


def test_what_a_message_lacks_is_said():
    result = bag(robot(), change=made.unreadable)
    result.account['streams'][0]['unreadable_because'] = 'field data[0] has 0 elements'
    assert warned(summary_of(result), 'pose', '(field data[0] has 0 elements). Check `fields`')


def test_notes_of_the_reader_are_said_once():
    note = 'topic odom: decoded as in the bag'
    results = [bag(robot(), name, notes=[note, note]) for name in ('a', 'b')]
    notes = summary_of(*results)['warnings']
    assert notes == [{'level': 'note', 'about': '2 bags', 'text': note}]
    assert summary_of(results[0])['warnings'][0]['about'] == 'a'
    many = bag(robot(), notes=[f'note {i}' for i in range(50)])
    assert len(summary_of(many)['warnings']) == 21
    assert warned(summary_of(many), 'bags', '30 more notes')


def test_several_signals_in_simulated_time_need_the_clock_of_the_headers():
    data = robot().to_dict()
    data['observations'].append({**data['observations'][0], 'name': 'twist', 'topic': 'twist'})
    result = bag(robot(), change=made.simulated)
    del result.samples['decisions']
    pose = result.account['streams'][0]
    result.account['streams'].append({**pose, 'name': 'twist', 'topic': 'twist'})
    summary = summary_of(result, spec=specs.parse(data, 'robot'))
    assert all(warned(summary, name, 'those of other topics too: `clock: header`')
               for name in ('pose', 'twist'))


@pytest.mark.parametrize('change', [made.skewed, made.simulated, made.zero_stamps, made.drifting])
def test_stamps_do_not_matter_where_the_time_is_that_of_receipt(change):
    spec = robot(signal={'time': 'received'})
    assert summary_of(bag(spec, change=change), spec=spec)['warnings'] == []


def test_clock_of_the_headers_is_told_and_its_late_samples_are_a_warning():
    spec = robot(clock='header')
    clock = {'source': '/clock', 'set_back': 1, 'out_of_order': 2, 'without_time': 3,
             'too_late': {'pose': 40}, 'speed': 0.5}
    result = bag(spec, change=made.simulated, clock=clock)
    summary = summary_of(result, bag(spec, 'b', clock={**clock, 'speed': 0.7}), spec=spec)
    assert summary['clock'] == {
        'sources': {'/clock': 2}, 'speed_median': pytest.approx(0.6), 'speed_lowest': 0.5,
        'speed_highest': 0.7, 'set_back': 2, 'out_of_order': 4, 'without_time': 6,
        'too_late': {'pose': 80}}
    assert warned(summary, 'pose', 'tick that their stamp belongs to: 80 of 4,000.')
    assert warned(summary, 'pose', '`tick: arrival`')
    assert warned(summary, 'clock', 'set back 2 times')
    assert not warned(summary, 'pose', 'the log (median)')


@pytest.mark.parametrize(('spec', 'about', 'words'), [
    (robot(rate=20.0), 'pose', 'It comes at 10 Hz, ticks at 20 Hz: several ticks see the same'),
    (robot(rate=20.0), 'drive', '`max_age` above 100 ms'),
    (robot(rate=20.0, command={'max_age': 0.5}), 'drive', None),
    (robot(rate=2.0), 'drive', 'of 5 commands the last one stands for all. `rule: mean`'),
    (robot(rate=2.0, command={'rule': 'mean'}), 'drive', None),
])
def test_rates_that_do_not_fit_the_ticks_are_said(spec, about, words):
    summary = summary_of(bag(robot()), spec=spec)
    found = [w['text'] for w in summary['warnings'] if w['about'] == about]
    assert found == [] if words is None else words in found[0]


@pytest.mark.parametrize(('rewards', 'returns', 'task', 'equal'), [
    (-1.0, -50.0, GOAL, True), (-1.0, -49.0, GOAL, False), (np.nan, np.nan, None, False),
    (0.0, 0.0, GOAL, True), (0.0, 1.0, GOAL, False)])
def test_rewards_are_equal_only_where_the_returns_say_so_too(rewards, returns, task, equal):
    # One that is not among the decisions drawn shows in the returns.
    result = bag(robot())
    result.samples['decisions'][:, -1] = rewards
    result.episodes = [(50, returns, True)] * 40
    assert warned(summary_of(result, task=task), 'reward', 'All rewards are') is equal


@pytest.mark.parametrize(('task', 'said'), [
    (GOAL, True), ({**GOAL, 'terminal': 'never'}, False),
    ({**GOAL, 'terminal': {'topic': {'topic': 'done', 'field': 'data'}}}, True),
    ({'reward': {'action_cost': {}}, 'terminal': 'reward'}, False),
    ({'reward': {'mine:function': {}}, 'terminal': 'reward'}, False),
    ({'reward': {'weighted_sum': [{'weight': 1, 'action_cost': {}},
                                  {'weight': 2, **GOAL['reward']}]}, 'terminal': 'reward'}, True),
    (None, False)])
def test_absent_terminals_are_said_of_a_task_that_has_them(task, said):
    result = bag(robot())
    result.episodes = [(length, value, False) for length, value, _ in result.episodes]
    assert warned(summary_of(result, task=task), 'reward', 'true terminal') is said


def test_short_and_single_episodes_are_said():
    result = bag(robot())
    result.episodes = [(5, -5.0, True)] * 400
    assert warned(summary_of(result), 'episodes', 'Half of the episodes are shorter than 10')
    result.episodes = [(2000, -1999.0, True)]
    assert warned(summary_of(result), 'episodes', '2,000 decisions in 1 episode')
