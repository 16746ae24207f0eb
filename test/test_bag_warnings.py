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


def test_copies_of_a_recording_are_named():
    first = bag(robot(), 'a')
    again = [made.copy_of(first, f'b{i}') for i in range(5)]
    assert warned(summary_of(first, again[0]), 'bags', 'a and b0 are copies of one recording')
    assert warned(summary_of(first, *again), 'bags', 'a, b0, b1, b2 and 2 more bags are copies of')
    assert summary_of(first, bag(robot(), 'c'))['warnings'] == []
    many = [result for i in range(25) for other in [bag(robot(), f'{i}', 20)]
            for result in (other, made.copy_of(other, f'{i}x'))]
    found = [w['text'] for w in summary_of(*many)['warnings'] if w['about'] == 'bags']
    assert len(found) == 21 and 'copies too: 5;' in found[-1]


@pytest.mark.parametrize(('reason', 'advice'), [
    ('a signal was too old between its tick and the next one',
     ' Raise `max_age` of the signal to more than the interval between its messages, if what'),
    ('pose (topic /history/missing): not finite, [#]', ' Check `fields`: use numbers'),
    ('drive (topic cmd_vel): not finite', ' Check `fields`: use numbers'),
    ('pose (topic stale2): missing, no message of type std_msgs/msg/Empty came yet',
     ' Check `topic` and `type`'),
])
def test_advice_is_that_for_the_reason_and_not_for_a_name(reason, advice):
    summary = summary_of(bag(robot(), decisions=100, unused={reason: 1900}))
    text, = (w['text'] for w in summary['warnings'] if w['about'] == 'ticks')
    assert f'(1,900 times).{advice}' in text


@pytest.mark.parametrize(('operation', 'words'), [
    ({'sectors': {'count': 2, 'reduce': 'min', 'max': 3.5, 'min': 0.1}},
     '`min` and `max` of `sectors`'),
    ({'scale': 2.0}, '`fields` and `operations`'), (None, 'Check `fields`: use numbers')])
def test_advice_for_numbers_that_are_not_finite_names_the_operations(operation, words):
    spec = robot(signal={'operations': [operation]} if operation else {})

    def never_finite(streams):
        streams['pose'][3][:] = np.nan
    result = bag(spec, change=never_finite, decisions=0,
                 unused={'pose (topic pose): not finite, [#, #]': 2000})
    summary = summary_of(result, spec=spec)
    assert warned(summary, 'ticks', words)
    assert warned(summary, 'pose', words)
    assert warned(summary, 'pose', '100 % of the values of pose[0] are NaN or infinite')


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
        'none_timed': [], 'too_late': {'pose': 80}}
    assert warned(summary, 'late samples', 'belongs to (or is): pose 80 of 4,000.')
    assert warned(summary, 'late samples', '`tick: arrival`')
    assert warned(summary, 'clock', 'set back 2 times')
    assert not warned(summary, 'pose', 'the log (median)')


@pytest.mark.parametrize(('late', 'level'), [
    ({'pose': 99}, 'note'), ({'pose': 100}, 'warning'), ({'pose': 99, 'twist': 1000}, 'warning'),
    ({'pose': 0}, None), ({}, None)])
def test_late_samples_are_one_warning_or_a_note_where_they_are_few(late, level):
    data = robot(clock='header').to_dict()
    data['observations'].append({**data['observations'][0], 'name': 'twist', 'topic': 'twist'})
    clock = {'source': '/clock', 'set_back': 0, 'out_of_order': 0, 'without_time': 0,
             'too_late': late}
    result = bag(robot(), clock=clock)
    del result.samples['decisions']
    result.account['streams'].append(
        {**result.account['streams'][0], 'name': 'twist', 'topic': 'twist'})
    warnings = summary_of(result, spec=specs.parse(data, 'robot'))['warnings']
    assert [w['level'] for w in warnings if w['about'] == 'late samples'] == [level] * bool(level)
    assert not any('logged after the tick' in w['text'] for w in warnings
                   if w['about'] != 'late samples')


def test_of_many_topics_with_late_samples_four_are_named_the_worst_first():
    clock = {'source': '/clock', 'set_back': 0, 'out_of_order': 0, 'without_time': 0,
             'too_late': {f't{i}': i for i in range(9)}}
    spec = robot(clock='header')
    assert warned(summary_of(bag(spec, clock=clock), spec=spec), 'late samples',
                  't8 8 of 0, t7 7 of 0, t6 6 of 0, t5 5 of 0 and 4 more topics. Here')


def untimed(name='none', **more):
    """Return the result of a bag in whose headers' clock no message has a time."""
    clock = {'source': 'headers', 'set_back': 0, 'out_of_order': 0, 'without_time': 4000,
             'too_late': {}}
    result = bag(robot(clock='header'), name, n=1, clock=clock)
    result.account.update({'messages': 0, 'ticks': 0, 'decisions': 0, **more}, streams=[])
    return BagResult(result.account, {}, [])


def test_bag_without_the_clock_of_the_headers_is_an_error_before_all_others():
    spec = robot(clock='header')
    refused = BagResult(BagAccount('broken', {}, refused='no topic pose').to_dict(), {}, [])
    warnings = summary_of(refused, untimed(), spec=spec)['warnings']
    assert warnings[0]['level'] == 'error' and warnings[0]['about'] == 'clock'
    assert 'neither /clock nor a header stamp in what is observed' in warnings[0]['text']
    assert 'Use `clock: received`' in warnings[0]['text']
    assert [w['about'] for w in warnings if w['level'] == 'error'] == ['clock', 'broken']
    only = summary_of(untimed(), spec=spec)['warnings']
    assert [w['level'] for w in only] == ['error'] and ' of none' not in only[0]['text']


def test_bags_without_the_clock_of_the_headers_are_named_where_others_have_one():
    spec = robot(clock='header')
    summary = summary_of(bag(spec), untimed('x'), untimed('y'), spec=spec)
    assert warned(summary, 'clock', 'what is observed of x and y, or none of them is filled in')
    assert summary_of(bag(spec), untimed(refused='it is damaged'), spec=spec)[
        'clock']['none_timed'] == []


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
    (0.0, 0.0, GOAL, True), (0.0, 1.0, GOAL, False),
    # What float32 makes of the reward, of several.
    (np.float32(-0.7) + np.tile([0, 6e-8, -6e-8, 6e-8], 500), 50 * -0.7, GOAL, True),
    (-0.7 + np.tile([0, 1e-4], 1000), 50 * -0.7, GOAL, False)])
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


def test_one_other_reward_that_was_not_drawn_denies_that_all_are_equal():
    result = bag(robot())
    result.samples['decisions'][:, -1] = -1.0
    result.episodes = [(50, -50.0, True)] * 2000
    assert warned(summary_of(result), 'reward', 'All rewards are -1:')
    result.episodes[77] = (50, -49.0, True)
    assert not warned(summary_of(result), 'reward', 'All rewards')


@pytest.mark.parametrize(('limits', 'said'), [
    ((-0.5, 0.5), True), ((-0.5, 1.0), False), ((-1.0, 0.5), False)])
def test_limits_that_are_only_what_was_seen_are_said_to_be(limits, said):
    lower, upper = limits
    dimension = {'kind': 'velocity', 'unit': 'm/s', 'lower': lower, 'upper': upper,
                 'stop': 'zero'}
    spec = robot(command={'dimensions': [dimension, dimension]})

    def clipped(streams):
        streams['drive'][3][:] = np.clip(2 * streams['drive'][3], -0.5, 0.5)
    summary = summary_of(bag(spec, change=clipped), spec=spec)
    assert warned(summary, 'drive', 'at a limit')
    assert warned(summary, 'drive', ', or the limits are only what was seen in this bag. ') is said


def test_short_and_single_episodes_are_said():
    result = bag(robot())
    result.episodes = [(5, -5.0, True)] * 400
    assert warned(summary_of(result), 'episodes', 'Half of the episodes are shorter than 10')
    result.episodes = [(2000, -1999.0, True)]
    assert warned(summary_of(result), 'episodes', '2,000 decisions in 1 episode')
