"""Messages become decisions: which command answers which tick, and where a recording is cut."""

import bisect

import numpy as np
import pytest

hypothesis = pytest.importorskip('hypothesis', reason='hypothesis is not installed')
pytest.importorskip('rosbags', reason='rosbags is not installed')
from hypothesis import strategies as st  # noqa: E402
from idql_ros import message as messages  # noqa: E402
import recording as rec  # noqa: E402
from recording import drive, MS, Recording, robot, T  # noqa: E402
from training import alignment  # noqa: E402
from training.alignment import align, new_account, task_topic  # noqa: E402

# Of what comes once a tick, at 2 Hz.
SPARSE, SPARSE_JOINTS, SPARSE_LEVEL = (
    {**signal, 'max_age': 1.0} for signal in (rec.ODOMETRY, rec.JOINTS, rec.LEVEL))


def stretches(recording, account=None, told=(), spec=None):
    """Return the stretches of a recording, by default with its own spec."""
    spec = spec or recording.spec
    account = account or new_account('bag', spec)
    return list(align(recording.logged(), spec, list(told), account))


def shape(found):
    """Return x of the observations and the commands of each stretch, as lists."""
    return [([round(float(x), 4) for x in s.steps.observations[:, 0]],
             [round(float(x), 4) for x in s.steps.actions[:, 0]]) for s in found]


def ticks(first, last):
    """Return what an uninterrupted part from tick `first` to tick `last` looks like."""
    return ([float(k) for k in range(first, last + 1)], [k / 10 for k in range(first, last)])


def test_each_tick_is_paired_with_the_command_that_answers_it():
    stretch, = stretches(drive(6))
    assert shape([stretch]) == [ticks(0, 5)]
    steps = stretch.steps
    assert steps.observations[1].tolist() == [1.0, -1.0]
    assert steps.observations.dtype == steps.actions.dtype == steps.between.dtype == np.float32
    # Within tick 0: what was seen after it, before tick 1.
    assert steps.counts.tolist() == [4] * 5
    assert steps.between[:4, 0] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert steps.rate == 2 and steps.topics == {} and stretch.continues == ''


@pytest.mark.parametrize(('delay_ns', 'expected'), [
    # Odometry is logged 1 ms after its stamp: that is when the tick begins for the recorder.
    (-2 * MS, 'before'), (MS - 1, 'before'), (MS + 1, 'answer'), (500 * MS, 'answer')])
def test_command_of_a_tick_comes_after_it_and_is_not_the_one_before(delay_ns, expected):
    recording = Recording(robot((SPARSE,)))
    for k in range(4):
        stamp_ns = T + 500 * MS * k
        recording.add('position', [k, 0], stamp_ns)
        recording.add('velocity', [k / 10], stamp_ns, stamp_ns + delay_ns)
    found = shape(stretches(recording))
    # A command logged no later than tick k answers tick k - 1.
    shift = 1 if expected == 'before' else 0
    assert found == [([0.0, 1.0, 2.0, 3.0], [(k + shift) / 10 for k in range(3)])]


@pytest.mark.parametrize(('rule', 'expected'), [('last', 0.9), ('mean', 0.5)])
def test_commands_faster_than_the_ticks_follow_the_rule_of_the_spec(rule, expected):
    spec = robot(actions=({**rec.VELOCITY, 'rule': rule},))
    recording = drive(3, spec)
    for shift, value in ((60, 0.6), (490, 0.9)):
        recording.add('velocity', [value], T + shift * MS)
    (_, actions), = shape(stretches(recording))
    assert actions == [expected, 0.1]


def slow(max_age=None):
    """Return a recording of six ticks that is commanded at every second one."""
    command = rec.VELOCITY if max_age is None else {**rec.VELOCITY, 'max_age': max_age}
    recording = drive(6, robot(actions=(command,)))
    recording.entries = [entry for entry in recording.entries if entry[1] != 'cmd_vel'
                         or (entry[0] - T) // (500 * MS) % 2 == 0]
    return recording


def test_command_slower_than_the_ticks_is_in_force_up_to_its_maximum_age():
    assert shape(stretches(slow(1.0))) == [([0, 1, 2, 3, 4, 5], [0, 0, 0.2, 0.2, 0.4])]
    # At the end of the second tick's period the command is 991 ms old.
    assert [len(actions) for _, actions in shape(stretches(slow(0.98)))] == [1, 1, 1]
    assert [len(actions) for _, actions in shape(stretches(slow()))] == [1, 1, 1]


def test_missing_command_cuts_and_nothing_bridges_the_cut():
    recording = drive(8)
    recording.entries = [entry for entry in recording.entries
                         if entry[:2] != (T + 3 * 500 * MS + 10 * MS, 'cmd_vel')]
    found = shape(stretches(recording))
    assert found == [ticks(0, 3), ticks(4, 7)]


def test_command_later_than_a_period_after_its_tick_is_no_answer_to_it():
    recording = Recording(robot((SPARSE,)))
    for k, wait in enumerate([500, 700, 500, 500]):
        # Odometry jitters within its periods; the command of tick 1 comes 501 ms after it.
        stamp_ns = T + (500 * k + (200 if wait == 500 and k > 1 else 0)) * MS
        recording.add('position', [k, 0], stamp_ns)
        recording.add('velocity', [k / 10], stamp_ns, stamp_ns + (502 if k == 1 else 10) * MS)
    found = shape(stretches(recording))
    assert found == [([0.0, 1.0], [0.0]), ([2.0, 3.0], [0.2])]


@pytest.mark.parametrize('missing', [1, 3])
def test_hole_in_the_observations_cuts(missing):
    recording = drive(9)
    begin_ns = T + 4 * 500 * MS
    recording.entries = [
        entry for entry in recording.entries
        if entry[1] != 'odom' or not begin_ns < entry[0] < begin_ns + missing * 500 * MS]
    found = shape(stretches(recording))
    assert found == [ticks(0, 3), ticks(4 + missing, 8)]


def test_hole_of_the_whole_recording_cuts():
    recording = drive(4)
    recording.entries += drive(4, start_ns=T + 10**12, first=10).entries
    found = shape(stretches(recording))
    assert found == [ticks(0, 3), ticks(10, 13)]


def test_headers_that_were_set_back_against_the_log_are_too_old():
    recording = drive(4)
    for logged_ns, *rest in drive(4, start_ns=T - 60 * 10**9, first=10).entries:
        recording.entries.append((logged_ns + 62 * 10**9, *rest))
    found = shape(stretches(recording))
    assert found == [ticks(0, 3)]


@pytest.mark.parametrize(('topic', 'cut'), [('odom', [(0, 2), (4, 7)]),
                                            ('cmd_vel', [(0, 3), (4, 7)])])
def test_number_that_is_not_finite_cuts(topic, cut):
    recording = drive(8)
    name = {'odom': 'position', 'cmd_vel': 'velocity'}[topic]
    at_ns = T + 3 * 500 * MS + {'odom': 1, 'cmd_vel': 10}[topic] * MS
    index = [entry[:2] for entry in recording.entries].index((at_ns, topic))
    recording.add(name, [np.nan] * {'odom': 2, 'cmd_vel': 1}[topic],
                  at_ns - {'odom': 1, 'cmd_vel': 10}[topic] * MS, at_ns)
    recording.entries[index] = recording.entries.pop()
    found = shape(stretches(recording))
    assert found == [ticks(*part) for part in cut]


def test_tick_of_several_signals_begins_when_the_last_is_in():
    spec = robot((SPARSE, SPARSE_JOINTS, SPARSE_LEVEL), (rec.VELOCITY, rec.GRIPPER))
    recording = Recording(spec)
    for k in range(4):
        stamp_ns = T + 500 * MS * k
        recording.add('position', [k, 0], stamp_ns)
        if k == 0:
            recording.add('velocity', [9], stamp_ns, stamp_ns + 2 * MS)  # the tick is not complete
        recording.add('joints', [10 + k, 0], stamp_ns, stamp_ns + 5 * MS)
        recording.add('level', [20 + k], stamp_ns, stamp_ns + 7 * MS)
        recording.add('velocity', [k], stamp_ns, stamp_ns + 9 * MS)
        recording.add('gripper', [-k], stamp_ns, stamp_ns + 8 * MS)
    stretch, = stretches(recording)
    assert [o[[0, 2, 4]].tolist() for o in stretch.steps.observations] == [
        [k, 10 + k, 20 + k] for k in range(4)]
    assert [a.tolist() for a in stretch.steps.actions] == [[k, -k] for k in range(3)]


def test_decision_needs_a_command_on_every_topic():
    spec = robot(actions=(rec.VELOCITY, rec.GRIPPER))
    recording = drive(6, spec)
    for k in (0, 1, 3, 4, 5):
        recording.add('gripper', [1], T + 500 * MS * k, T + 500 * MS * k + 20 * MS)
    found = shape(stretches(recording))
    assert found == [ticks(0, 2), ticks(3, 5)]


def test_ticks_of_a_timer_take_what_was_logged_by_then():
    spec = robot((SPARSE,), tick='timer')
    recording = Recording(spec)
    for k in range(5):
        tick_ns = T + 500 * MS * k
        recording.add('position', [k, 0], tick_ns, tick_ns)  # just in time
        recording.add('position', [99, 0], tick_ns + 1, tick_ns + 1)  # a nanosecond late
        recording.add('position', [98, 0], tick_ns + 400 * MS)
        recording.add('velocity', [k / 10], tick_ns, tick_ns + 10 * MS)
    found = shape(stretches(recording))
    assert found == [ticks(0, 4)]


def test_timer_cuts_where_the_newest_observation_is_too_old():
    spec = robot(tick='timer')
    recording = drive(9, spec)
    begin_ns = T + 4 * 500 * MS
    recording.entries = [entry for entry in recording.entries
                         if not begin_ns - 260 * MS < entry[0] < begin_ns + 50 * MS]
    # Between ticks at 500 ms: the sample of tick k is the one 100 ms before it, x = k - 0.2.
    found = shape(stretches(recording))
    assert [len(actions) for _, actions in found] == [2, 3]
    assert found[0][0] == [0.8, 1.8, 2.8] and found[1][0] == [4.8, 5.8, 6.8, 7.8]


def test_recorder_with_a_clock_of_its_own_changes_nothing_where_times_are_those_of_the_log():
    spec = robot(({**rec.ODOMETRY, 'time': 'received'},))
    recording = drive(4, spec)
    expected, = stretches(recording)
    recording.entries = [(logged_ns + 10**12, *rest) for logged_ns, *rest in recording.entries]
    found, = stretches(recording)
    assert shape([found]) == shape([expected])
    assert found.steps.between.tolist() == expected.steps.between.tolist()
    # A node would find headers that are 1000 s old.
    assert stretches(recording, spec=robot()) == []


def test_gap_longer_than_the_maximum_age_between_two_ticks_cuts():
    recording = drive(8)
    begin_ns = T + 3 * 500 * MS
    recording.entries = [
        entry for entry in recording.entries
        if entry[1] != 'odom' or not begin_ns + 50 * MS < entry[0] < begin_ns + 350 * MS]
    account = new_account('bag', recording.spec)
    assert shape(stretches(recording, account)) == [ticks(0, 3), ticks(4, 7)]
    assert account.unused['a signal was too old between its tick and the next one'] == 1


@pytest.mark.parametrize('rate', [20, 30, 100])
@pytest.mark.parametrize('tick', ['arrival', 'timer'])
def test_commands_on_ticks_keep_their_phase_at_times_of_today(rate, tick):
    """Where floating point resolves 256 ns only."""
    spec = robot(({**rec.ODOMETRY, 'time': 'received'},), rate=rate, tick=tick)
    first = spec.period_of(1_762_000_000 * 10**9)
    recording = Recording(spec)
    for k in range(60):
        at_ns = spec.start_of(first + k)
        recording.add('position', [k, 0], at_ns, at_ns)
        recording.add('velocity', [k / 10], at_ns, at_ns)
    stretch, = stretches(recording)
    observed, commanded = stretch.steps.observations[:-1, 0], stretch.steps.actions[:, 0]
    # A timer's tick comes after all of its nanosecond.
    assert np.allclose(commanded, (observed + (tick == 'timer')) / 10)


def test_stamp_in_the_future_makes_no_step_of_a_gap():
    spec = robot(({**rec.ODOMETRY, 'max_age': 5.0},), rate=10)
    recording = Recording(spec)
    for k in [*range(30), *range(35, 60)]:
        stamp_ns = T + 100 * MS * k
        recording.add('position', [k, 0], stamp_ns)
        recording.add('velocity', [k / 10], stamp_ns, stamp_ns + 10 * MS)
    recording.add('position', [30, 0], T + 3_400 * MS, T + 3_001 * MS)
    recording.add('velocity', [3], T + 3_001 * MS, T + 3_010 * MS)
    for stretch in stretches(recording):
        assert (np.diff(stretch.steps.observations[:, 0]) == 1).all()


def test_reasons_name_each_signal_with_its_digits():
    signals = [{**rec.LEVEL, 'name': f'ps{k}', 'topic': f'ps{k}', 'max_age': 0.2}
               for k in range(2)]
    recording = Recording(robot([rec.ODOMETRY, *signals], tick='timer'))
    for k in range(20):
        recording.add('position', [k, 0], T + 100 * MS * k)
    account = new_account('bag', recording.spec)
    stretches(recording, account)
    assert {reason.split(':')[0] for reason in account.unused} == {
        'ps0 (topic ps0)', 'ps1 (topic ps1)'}


def test_command_can_be_observed_too():
    before = {'name': 'before', 'topic': 'cmd_vel', 'type': rec.VELOCITY['type'],
              'fields': rec.VELOCITY['fields'], 'unit': 'm/s', 'max_age': 1}
    spec = robot((rec.ODOMETRY, before), tick='timer')
    stretch, = stretches(drive(6), spec=spec)
    previous = [float(o[2]) for o in stretch.steps.observations[1:]]
    assert previous == [float(a[0]) for a in stretch.steps.actions]


def test_leap_of_the_log_by_years_is_a_hole_like_any_other():
    spec = robot(tick='timer')
    recording = drive(4, spec=spec)
    recording.entries += drive(4, start_ns=T + 10**18, first=10, spec=spec).entries
    assert len(stretches(recording)) == 2


def test_command_in_the_nanosecond_of_its_tick_answers_it_when_it_was_written_after_it():
    """As a recorder with simulated time logs what a controller sends at once."""
    recording = Recording(robot((SPARSE,)))
    account = new_account('bag', recording.spec)
    for k in range(4):
        stamp_ns = T + 500 * MS * k
        recording.add('position', [k, 0], stamp_ns, stamp_ns)
        recording.add('velocity', [k / 10], stamp_ns, stamp_ns)
    assert shape(stretches(recording, account)) == [ticks(0, 3)]


def test_commands_in_the_nanosecond_of_a_tick_are_counted():
    recording = Recording(robot(tick='timer'))
    account = new_account('bag', recording.spec)
    for k in range(5):
        stamp_ns = T + 500 * MS * k
        recording.add('position', [k, 0], stamp_ns, stamp_ns)
        recording.add('velocity', [k / 10], stamp_ns, stamp_ns)
    stretches(recording, account)
    assert account.ties == 5


def test_stretch_of_any_length_comes_in_pieces_that_lose_no_transition(monkeypatch):
    whole, = stretches(drive(12))
    monkeypatch.setattr(alignment, 'LONGEST_STRETCH', 4)
    pieces = stretches(drive(12))
    assert [piece.continues for piece in pieces] == ['', 'length', 'length']
    assert shape(pieces) == [ticks(0, 4), ticks(4, 8), ticks(8, 11)]
    assert np.concatenate([piece.steps.between for piece in pieces]).tolist() == (
        whole.steps.between.tolist())


def test_history_is_of_the_last_ticks_and_begins_anew_after_a_cut():
    spec = robot(({**rec.ODOMETRY, 'history': 3},))
    recording = drive(12, spec)
    begin_ns = T + 6 * 500 * MS
    recording.entries = [entry for entry in recording.entries
                         if entry[1] != 'odom' or not begin_ns < entry[0] < begin_ns + 500 * MS]
    account = new_account('bag', spec)
    found = stretches(recording, account)
    assert [s.steps.observations[:, ::2].tolist() for s in found] == [
        [[k - 2, k - 1, k] for k in range(2, 6)], [[k - 2, k - 1, k] for k in range(9, 12)]]
    assert account.unused['history: 1 of 3 frames since the last gap'] == 2
    # Between two ticks the frames before are those of the ticks.
    assert found[0].steps.between[0] == pytest.approx([1, -1, 2, -2, 2.2, -2.2])


def test_latched_signal_is_of_any_age_and_no_tick_waits_for_it():
    goal = {k: v for k, v in rec.LEVEL.items() if k != 'max_age'} | {'latched': True}
    recording = drive(40, robot((rec.ODOMETRY, goal)))
    recording.add('level', [7], T - 60 * 10**9)
    found = stretches(recording)
    assert shape(found) == [ticks(0, 39)]
    assert (found[0].steps.observations[:, 2] == 7).all()


def test_rewards_and_ends_of_topics_belong_to_the_decision_they_came_in():
    recording = drive(5)
    told = [task_topic('reward', 'score', 'std_msgs/msg/Float64', 'data', 'sum'),
            task_topic('terminal', 'done', 'std_msgs/msg/Bool', 'data', 'any')]
    for k in range(5):
        if k == 2:
            continue
        for shift, value in ((100, k), (300, 10)):
            message = messages.blank('std_msgs/msg/Float64')
            message.data = float(value)
            recording.add_message('score', message, T + (500 * k + shift) * MS)
    done = messages.blank('std_msgs/msg/Bool')
    done.data = True
    recording.add_message('done', done, T + (500 + 250) * MS)
    account = new_account('bag', recording.spec)
    before, after = stretches(recording, account, told)
    assert before.steps.topics['reward'].tolist() == [10, 11]
    assert before.steps.topics['terminal'].tolist() == [False, True]
    assert after.steps.topics['reward'].tolist() == [13]
    assert account.unused['no reward came within its decision'] == 1


def test_two_publishers_of_joint_states_are_told_apart_by_their_joints():
    joints = {**rec.JOINTS, 'fields': ['position[elbow]'], 'operations': []}
    finger = {**joints, 'name': 'finger', 'fields': ['position[finger]']}
    spec = robot((rec.ODOMETRY, joints, finger))
    recording = drive(6, spec)
    for step in range(30):
        for name, shift, value in (('joints', 2, step), ('finger', 4, -step)):
            recording.add(name, [value], T + (100 * step) * MS, T + (100 * step + shift) * MS)
    account = new_account('bag', spec)
    stretch, = stretches(recording, account)
    assert stretch.steps.observations[:, 2:].tolist() == [[5 * k, -5 * k] for k in range(6)]
    counts = {s['name']: s['count'] for s in account.to_dict()['streams']}
    assert counts['joints'] == counts['finger'] == 30


def test_other_frame_is_refused_after_a_message_that_cannot_be_read_too():
    joints = {**rec.JOINTS, 'fields': ['position[0]'], 'operations': [], 'frame_id': 'base'}
    recording = drive(3, robot((rec.ODOMETRY, joints)))
    for shift, (frame_id, position) in enumerate([('base', []), ('arm', [1.0])]):
        message = messages.blank(joints['type'])
        message.header.frame_id, message.position = frame_id, position
        recording.add_message('joint_states', message, T + shift * MS)
    with pytest.raises(messages.MessageError, match='expected the frame_id base .* found .arm.'):
        stretches(recording)


def test_joint_that_no_message_names_is_told_with_those_that_are_there():
    recording = drive(3, robot((rec.ODOMETRY, {**rec.JOINTS, 'fields': ['position[elbow]'],
                                               'operations': []})))
    for step in range(15):
        recording.add('joints', [step], T + 100 * step * MS)
    wrong = robot((rec.ODOMETRY, {**rec.JOINTS, 'fields': ['position[elbo]'], 'operations': []}))
    with pytest.raises(messages.MessageError, match=r"position\[elbo\].*\['elbow'\]"):
        stretches(recording, spec=wrong)


# Whatever the streams are like.

@st.composite
def recordings(draw):
    """Return a recording with jitter, loss, reordering, duplicates and clock skew."""
    tick = draw(st.sampled_from(['arrival', 'timer']))
    rule = draw(st.sampled_from(['last', 'mean']))
    skew_ns = draw(st.sampled_from([0, 40 * MS, -40 * MS] + [10**12] * (tick == 'arrival')))
    spec = robot(actions=({**rec.VELOCITY, 'rule': rule},), tick=tick)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    loss, jitter = draw(st.sampled_from([0, 0.05, 0.4])), draw(st.sampled_from([1, 30, 300]))
    recording = Recording(spec)
    for step in range(draw(st.integers(0, 80))):
        stamp_ns = T + 100 * MS * step
        logged_ns = stamp_ns + skew_ns + int(rng.integers(0, jitter * MS))
        if rng.random() >= loss:
            # x tells when it was observed: ms since T.
            recording.add('position', [100 * step, np.nan if rng.random() < 0.02 else 0],
                          stamp_ns, logged_ns)
            if rng.random() < 0.05:
                recording.add('position', [100 * step, 0], stamp_ns, logged_ns)
        if rng.random() < 0.5:
            logged_ns = stamp_ns + skew_ns + int(rng.integers(0, jitter * MS))
            recording.add('velocity', [rng.normal()], stamp_ns, logged_ns)
    return recording


@hypothesis.given(recording=recordings())
@hypothesis.settings(max_examples=150, deadline=None, derandomize=True)
def test_alignment_keeps_its_invariants_on_any_stream(recording):
    spec = recording.spec
    account = new_account('bag', spec)
    found = stretches(recording, account)
    sent = sorted((logged_ns, float(np.float32(message.twist.linear.x)))
                  for topic, logged_ns, message in recording.logged() if topic == 'cmd_vel')
    seen = {}
    for topic, logged_ns, message in recording.logged():
        if topic == 'odom':
            seen.setdefault(message.pose.pose.position.x, logged_ns)
    assert account.messages == len(recording.entries)
    assert account.decisions == sum(len(s.steps.actions) for s in found)
    previous_end = -1.0
    for stretch in found:
        steps = stretch.steps
        assert len(steps.observations) == len(steps.actions) + 1 == len(steps.counts) + 1
        assert len(steps.between) == steps.counts.sum()
        for values in (steps.observations, steps.actions, steps.between):
            assert np.isfinite(values).all()
        x = steps.observations[:, 0]
        # What is observed never goes back, and no stretch reaches into another.
        assert (np.diff(x) >= 0).all() and x[0] >= previous_end
        previous_end = x[-1]
        # Two ticks that follow each other are less than two periods apart.
        assert (np.diff(x) < 1000 + (250 if spec.tick == 'timer' else 0)).all()
        for i, action in enumerate(steps.actions[:, 0]):
            # The action is one that was logged after the observation (or a mean of some).
            after = sent[bisect.bisect_left(sent, (seen[float(x[i])], -np.inf)):]
            if spec.actions[0].rule == 'last':
                assert float(action) in [value for _, value in after]
            else:
                values = [value for _, value in after]
                assert min(values) - 1e-6 <= action <= max(values) + 1e-6
