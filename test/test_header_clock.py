"""Recordings whose headers tell simulated time, and their log the wall's."""

import numpy as np
import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')
from idql_ros import message as messages  # noqa: E402
import recording as rec  # noqa: E402
from recording import MS, Recording, robot  # noqa: E402
from training import header_clock  # noqa: E402
from training.alignment import align, new_account  # noqa: E402

WALL = 1_700_000_000 * 10**9
CLOCKED = {'tick': 'timer', 'clock': 'header'}


def stretches(recording, account=None):
    """Return the stretches of a recording."""
    account = account or new_account('bag', recording.spec)
    return list(align(recording.logged(), recording.spec, [], account))


def shape(found):
    """Return x of the observations and the commands of each stretch, as lists."""
    return [([round(float(x), 4) for x in s.steps.observations[:, 0]],
             [round(float(x), 4) for x in s.steps.actions[:, 0]]) for s in found]


def ticks(first, last):
    """Return what an uninterrupted part from tick `first` to tick `last` looks like."""
    return ([float(k) for k in range(first, last + 1)], [k / 10 for k in range(first, last)])


def simulated(ticks_made, speed=1.0, latency_ms=3, clocked=False, spec=None):
    """Return 10 Hz odometry of a simulation, commands 20 ms (simulated) after each 2 Hz tick.

    x is the simulated time in ticks; the command after tick k is k / 10.
    """
    recording = Recording(spec or robot(**CLOCKED))

    def wall(simulated_ns):
        return WALL + round(simulated_ns / speed)

    for step in range(5 * ticks_made):
        stamp_ns = 500 * MS + 100 * MS * step
        recording.add('position', [1 + step / 5, 0], stamp_ns,
                      wall(stamp_ns) + latency_ms * MS)
        if clocked:
            message = messages.blank('rosgraph_msgs/msg/Clock')
            message.clock.sec, message.clock.nanosec = divmod(stamp_ns, messages.NS)
            recording.add_message('clock', message, wall(stamp_ns))
        if step % 5 == 0:
            recording.add_message('cmd_vel', velocity((1 + step / 5) / 10),
                                  wall(stamp_ns + 20 * MS) + latency_ms * MS)
    return recording


def velocity(x):
    """Return a command without a time of its own."""
    message = messages.blank('geometry_msgs/msg/TwistStamped')
    message.twist.linear.x = x
    return message


@pytest.mark.parametrize('clocked', [False, True])
@pytest.mark.parametrize('speed', [0.25, 1.0, 3.0])
def test_ticks_are_in_simulated_time_however_fast_it_runs(speed, clocked):
    recording = simulated(8, speed, clocked=clocked)
    account = new_account('bag', recording.spec)
    found = stretches(recording, account)
    assert shape(found) == [ticks(1, 8)]
    assert account.clock['source'] == ('/clock' if clocked else 'headers')
    assert account.clock['speed'] == pytest.approx(speed, rel=1e-6)
    assert account.clock['set_back'] == account.clock['out_of_order'] == 0
    # With the log's clock the same recording is all stale.
    assert stretches(simulated(8, speed, spec=robot(tick='timer'))) == []


def test_available_is_what_was_stamped_by_the_tick_and_the_late_ones_are_counted():
    spec = robot((rec.ODOMETRY, {**rec.JOINTS, 'max_age': 0.6}), **CLOCKED)
    recording = simulated(6, spec=spec)
    # The joints' state of each tick is logged 150 ms after its stamp, when the tick has passed.
    for k in range(1, 7):
        recording.add('joints', [k, 0], 500 * MS * k, WALL + (500 * k + 150) * MS)
    account = new_account('bag', spec)
    found = stretches(recording, account)
    # (k + 1 tick observes what is stamped with it)
    assert np.concatenate([s.steps.observations[:, 2] for s in found]).tolist() == list(
        range(1, 7))
    assert account.clock['too_late'] == {'joint_states': 6}


def test_simulation_that_is_reset_is_cut():
    recording = simulated(6)
    again = simulated(6)
    recording.entries += [(logged_ns + 30 * 10**9, *rest) for logged_ns, *rest in again.entries]
    account = new_account('bag', recording.spec)
    assert shape(stretches(recording, account)) == [ticks(1, 6), ticks(1, 6)]
    assert account.clock['set_back'] == 1


def test_messages_before_and_after_the_clock_have_no_time():
    recording = simulated(4)
    for logged_ns in (WALL - 10**9, WALL + 100 * 10**9):
        recording.add_message('cmd_vel', velocity(9), logged_ns)
    account = new_account('bag', recording.spec)
    assert shape(stretches(recording, account)) == [ticks(1, 4)]
    assert account.clock['without_time'] == 2


def test_stamps_out_of_order_are_put_in_order():
    recording = simulated(6)
    odometry = [i for i, entry in enumerate(recording.entries) if entry[1] == 'odom']
    for a, b in zip(odometry[1:-1:4], odometry[2:-1:4], strict=False):
        first, second = recording.entries[a], recording.entries[b]
        recording.entries[a] = (second[0], *first[1:])
        recording.entries[b] = (first[0], *second[1:])
    assert shape(stretches(recording)) == [ticks(1, 6)]


def test_clock_that_stands_still_while_commands_go_on_is_no_time():
    recording = simulated(6)
    pause_ns = WALL + 1_780 * MS
    recording.entries = [
        (at_ns + 200 * 10**9 * (at_ns > pause_ns), *rest) for at_ns, *rest in recording.entries]
    for k in range(1000):
        recording.add_message('cmd_vel', velocity(9), pause_ns + (100 + 200 * k) * MS)
    account = new_account('bag', recording.spec)
    found = stretches(recording, account)
    assert [action for _, actions in shape(found) for action in actions].count(9) <= 1
    # Those of the first minute lie between the moments about the pause, the others are left out.
    assert account.clock['without_time'] == pytest.approx(700, abs=2)


def test_nothing_waits_for_a_clock_that_never_comes():
    spec = robot(**CLOCKED)
    recording = Recording(spec)
    for k in range(50):
        recording.add('position', [k, 0], 0, WALL + k * MS)
        recording.add_message('cmd_vel', velocity(1), WALL + k * MS)
    account = new_account('bag', spec)
    clock = header_clock.HeaderClock(spec, {'odom'}, set(), account.clock)
    assert list(clock.order(recording.logged())) == [] and clock._waiting == []
    assert account.clock['without_time'] == 100


def test_stamps_move_a_clock_that_was_not_recorded_to_the_end():
    recording = simulated(20, clocked=True)
    recording.entries = [entry for entry in recording.entries
                         if entry[1] != 'clock' or entry[0] < WALL + 3 * 10**9]
    found = stretches(recording)
    assert sum(len(s.steps.actions) for s in found) >= 16
    assert shape(found)[0][0][0] == 1


def test_short_run_is_cut_from_the_one_after_a_reset_of_the_clock():
    runs, wall_ns = [], 0
    for ticks_made in (2, 4):  # of less than a second, the first
        run = simulated(ticks_made, clocked=True)
        runs += [(at_ns + wall_ns, *rest) for at_ns, *rest in run.entries]
        wall_ns += 5 * 10**9
    recording = simulated(1)
    recording.entries = runs
    account = new_account('bag', recording.spec)
    assert shape(stretches(recording, account)) == [ticks(1, 2), ticks(1, 4)]
    assert account.clock['set_back'] == 1


def test_old_run_is_not_observed_after_a_reset():
    spec = robot((rec.ODOMETRY, {**rec.JOINTS, 'max_age': 5}), **CLOCKED)
    recording = simulated(6, spec=spec)
    for k in range(30):
        recording.add('joints', [1000, 0], 500 * MS + 100 * MS * k, WALL + (504 + 100 * k) * MS)
    again = simulated(6, spec=spec)
    recording.entries += [(at_ns + 30 * 10**9, *rest) for at_ns, *rest in again.entries]
    account = new_account('bag', spec)
    found = stretches(recording, account)
    # The second run has no joints.
    assert account.clock['set_back'] == 1 and [len(s.steps.actions) for s in found] == [5]


def test_latched_signal_and_a_slow_one_are_no_resets():
    goal = {**rec.JOINTS, 'latched': True}
    del goal['max_age']
    spec = robot((rec.ODOMETRY, goal), **CLOCKED)
    recording = simulated(20, spec=spec)
    for k in range(5):  # sent again and again with its first stamp
        recording.add('joints', [7, 0], 500 * MS, WALL + (501 + 2000 * k) * MS)
    account = new_account('bag', spec)
    assert shape(stretches(recording, account)) == [ticks(1, 20)]
    assert account.clock['set_back'] == 0
    late = {**rec.JOINTS, 'max_age': 3.0}
    recording = simulated(20, spec=robot((rec.ODOMETRY, late), **CLOCKED))
    for k in range(90):
        stamp_ns = 500 * MS + 100 * MS * k
        recording.add('joints', [k, 0], stamp_ns, WALL + stamp_ns + 1_500 * MS)
    account = new_account('bag', recording.spec)
    found = stretches(recording, account)
    assert account.clock['set_back'] == 0
    # It counts when it came: at a tick it is 15 to 20 samples old, and none is of the future.
    for stretch in found:
        odometry = stretch.steps.observations[:, 0]
        joints = stretch.steps.observations[:, 2]
        assert ((5 * (odometry - 1) - joints >= 10) & (5 * (odometry - 1) - joints <= 21)).all()
    assert sum(len(s.steps.actions) for s in found) >= 10


def test_commands_of_a_pause_belong_to_the_moment_it_stands_at():
    recording = simulated(6, clocked=True)
    pause_ns = WALL + 1_705 * MS  # after the moment 1.7 s
    recording.entries = [
        (at_ns + 10 * 10**9 * (at_ns > pause_ns), *rest) for at_ns, *rest in recording.entries]
    moment = messages.blank('rosgraph_msgs/msg/Clock')
    moment.clock.sec, moment.clock.nanosec = 1, 700 * MS
    for k in range(99):
        recording.add_message('cmd_vel', velocity(-k), pause_ns + (50 + 100 * k) * MS)
        recording.add_message('clock', moment, pause_ns + (60 + 100 * k) * MS)
    (_, actions), = shape(stretches(recording))
    # Of the tick at 1.5 s the pause's last command is the newest in its period.
    assert actions == [0.1, 0.2, -98, 0.4, 0.5]
