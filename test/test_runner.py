"""The walk of a tick, every race played step by step: clocks and threads are the test's own."""

import concurrent.futures
import math

from idql_ros import message as messages
from idql_ros import spec as specs
from idql_ros.policy import Decision, PolicyError
from idql_ros.runner import Runner, Settings, TooLate, without_numbers
import numpy as np
import pytest

MS = 10**6
T = 1_000 * 10**9
RATE = 20.0
PERIOD = 50 * MS

SPEC = {
    'spec_version': 1, 'name': 'robot', 'rate': RATE, 'tick': 'arrival',
    'observations': [{
        'name': 'position', 'topic': 'odom', 'type': 'nav_msgs/msg/Odometry',
        'fields': ['pose.pose.position.x', 'pose.pose.position.y'], 'unit': 'm',
        'max_age': 0.2}],
    'actions': [{
        'name': 'velocity', 'topic': 'cmd_vel', 'type': 'geometry_msgs/msg/TwistStamped',
        'fields': ['twist.linear.x'],
        'dimensions': [{'kind': 'velocity', 'unit': 'm/s', 'lower': -1.0, 'upper': 1.0,
                        'stop': 'zero'}]}]}


class Clocks:
    """Both clocks; they go on when the test says so."""

    def __init__(self, simulated):
        self.simulated = simulated
        self.now, self.steady = T, 5 * 10**9

    def now_ns(self):
        return self.now

    def steady_ns(self):
        return self.steady


class Policy:
    """Decides what the test says, as `idql_ros.policy.Policy` answers."""

    def __init__(self, spec):
        self.spec = spec
        self.action = 0.5
        self.ranges = {}
        self.path, self.digest, self.provider = 'policy.onnx', 'f' * 64, 'test'
        self.provenance_text = 'made for a test'

    def value_ranges_for(self, candidates, *_):
        return dict(self.ranges)

    def decide(self, observation, tick_ns, seed, candidates, **_):
        action = np.array([self.action], np.float32)
        return Decision(action, 1.0, 0.5, np.tile(action, (candidates, 1)), np.ones(candidates))


class Scene:
    """A runner, and what happens around it."""

    def __init__(self, simulated=False, change=lambda spec: None, **settings):
        data = {**SPEC, 'observations': [dict(s) for s in SPEC['observations']],
                'actions': [dict(SPEC['actions'][0],
                                 dimensions=[dict(SPEC['actions'][0]['dimensions'][0])])]}
        change(data)
        self.spec = specs.parse(data, 'robot')
        self.clocks = Clocks(simulated)
        self.policy = Policy(self.spec)
        self.sent, self.made, self.logged = [], [], []
        self.jobs = []
        self.unheard = []
        self.estops = {}
        self.runner = Runner(
            self.policy, Settings(candidates=4, **settings), self.clocks, submit=self.submit,
            send=self.send, unheard=lambda: self.unheard,
            log=lambda level, text, every_s=0.0: self.logged.append(text), estops=self.estops)
        self.runner.start()

    def submit(self, call, *arguments):
        future = concurrent.futures.Future()
        self.jobs.append((future, call, arguments))
        return future

    def send(self, output, stamp_ns, made):
        self.sent.append((stamp_ns, output))
        self.made.append(made)
        return True

    def observe(self, x=0.0, age_ms=0, stamp_ns=None, delay_ms=0):
        """Receive odometry; its tick begins where it completes one."""
        stamp_ns = self.clocks.now - age_ms * MS if stamp_ns is None else stamp_ns
        message = messages.write(self.spec.observations[0], np.array([x, 0.0]),
                                 messages.blank('nav_msgs/msg/Odometry'), stamp_ns)
        self.runner.receive('odom', message, delay_ms * MS)

    def infer(self):
        """Let the inference that was submitted first end, and its result come in."""
        future, call, arguments = self.jobs.pop(0)
        future.set_result(call(*arguments))
        self.runner.finish()

    def act(self, x=0.0):
        """Walk a tick through to its action."""
        self.observe(x)
        self.infer()

    def wait(self, ms, step_ms=10, clock=True):
        """Let time go on, with the watch and the tick's timer; `clock`: the node's time too."""
        for _ in range(ms // step_ms):
            self.clocks.steady += step_ms * MS
            if clock:
                self.clocks.now += step_ms * MS
                if self.clocks.now % PERIOD == 0:
                    self.runner.tick()
            self.runner.watch()

    def pause(self, ms):
        """Let time go on while the process does not run."""
        self.clocks.steady += ms * MS
        self.clocks.now += ms * MS

    @property
    def states(self):
        """Return the states that were sent, each once."""
        found = []
        for _, output in self.sent:
            found += [output.state] if found[-1:] != [output.state] else []
        return found

    @property
    def values(self):
        return [float(output.parts[0][0]) for _, output in self.sent]


def hold(data, seconds=0.1):
    data['observations'][0]['hold_time'] = seconds


def ramp(data, rate=2.0):
    data['actions'][0]['dimensions'][0]['max_rate'] = rate


def test_acts_once_a_period_with_the_stamp_of_the_observation():
    scene = Scene()
    for _ in range(3):
        for _ in range(5):
            scene.observe()
            if scene.jobs:
                scene.infer()
            scene.clocks.now += 10 * MS
            scene.clocks.steady += 10 * MS
    assert [stamp for stamp, _ in scene.sent] == [T, T + PERIOD, T + 2 * PERIOD]
    assert scene.states == ['acting'] and scene.runner.counts['sent'] == 3


def test_a_tick_that_begins_while_an_inference_runs_is_missed_and_counted():
    scene = Scene()
    scene.observe()
    scene.pause(50)
    scene.observe()
    assert scene.runner.counts['missed'] == 1 and len(scene.jobs) == 1


def test_an_action_that_the_process_sat_on_is_not_sent_and_nothing_follows_from_it():
    scene = Scene(change=ramp)
    scene.act()
    scene.wait(50)
    scene.policy.action = 1.0
    send = scene.runner._send_output

    def stand_still(output, stamp_ns, made):
        scene.runner._send_output = send
        scene.pause(300)
        assert made.fresh_until_ns == T + 250 * MS
        raise TooLate(0)
    scene.runner._send_output = stand_still
    scene.act()
    # Asked for 1 m/s at 2 m/s^2: 0.1 m/s more in each tick; what was not sent is no reference.
    assert scene.states == ['acting', 'stopped']
    assert scene.values == pytest.approx([0.1, 0.0])


def test_an_action_that_grew_too_old_on_its_way_out_begins_the_hold():
    scene = Scene(change=lambda data: (ramp(data), hold(data)))
    scene.act()
    scene.wait(50)
    send = scene.runner._send_output

    def too_late(output, stamp_ns, made):
        scene.runner._send_output = send
        raise TooLate(0)
    scene.runner._send_output = too_late
    scene.act()
    assert scene.states == ['acting', 'holding']
    assert scene.values == pytest.approx([0.1, 0.1])
    scene.wait(400)
    assert scene.states[-1] == 'stopped'


def test_a_result_that_is_later_than_its_period_is_dropped_and_counted():
    scene = Scene()
    scene.act()
    scene.wait(50)
    scene.observe()
    scene.wait(60)
    scene.infer()
    assert len(scene.sent) == 1 and scene.runner.counts['dropped'] == 1
    scene.observe()
    scene.infer()
    assert scene.states == ['acting'] and len(scene.sent) == 2


def test_what_is_computed_from_an_observation_that_is_too_old_meanwhile_is_never_sent():
    # Its own age counts, not the time since its tick: 180 of 200 ms before, 40 ms of inference.
    scene = Scene()
    scene.observe(age_ms=180)
    scene.pause(40)
    scene.infer()
    assert scene.states == ['stopped'] and 'too old' in scene.sent[0][1].reasons[0]
    assert scene.runner.counts['dropped'] == 1


def test_an_inference_that_hangs_begins_the_ladder_when_its_observation_is_too_old():
    scene = Scene()
    scene.act()
    scene.wait(50)
    scene.observe()
    scene.wait(200)
    assert scene.states == ['acting']
    scene.wait(20)
    assert scene.states == ['acting', 'stopped']
    assert 'the inference takes so long' in scene.sent[-1][1].reasons[0]
    scene.wait(500)  # and goes on at the tick rate
    assert len(scene.sent) == pytest.approx(2 + 500 / 50, abs=2)


def test_an_inference_that_hangs_in_lock_step_is_told_by_real_time():
    # The simulation waits for the command, and its time with it.
    scene = Scene(simulated=True, clock_timeout_s=1.0)
    scene.observe()
    scene.wait(900, clock=False)
    assert scene.sent == []
    scene.wait(200, clock=False)
    assert scene.states == ['stopped']


def test_results_that_are_always_late_begin_the_ladder():
    scene = Scene()
    scene.act()
    for _ in range(20):
        scene.observe()
        scene.wait(60)
        if scene.jobs:
            scene.infer()
    assert scene.runner.counts['dropped'] > 3
    assert scene.states == ['acting', 'stopped']
    assert 'no decision in time' in scene.sent[-1][1].reasons[0]


def test_a_stream_that_ends_holds_then_ramps_then_stops():
    def change(data):
        hold(data, 0.1)
        ramp(data, 2.0)
    scene = Scene(change=change)
    for _ in range(10):  # 0.1 a tick, up to 0.5
        scene.act()
        scene.wait(50)
    scene.wait(800)
    assert scene.states == ['acting', 'holding', 'ramping', 'stopped']
    first = {state: next(stamp for stamp, o in scene.sent if o.state == state)
             for state in scene.states}
    last_seen_ns = T + 9 * PERIOD
    assert 200 * MS < first['holding'] - last_seen_ns <= 210 * MS
    assert 100 * MS <= first['ramping'] - first['holding'] <= 100 * MS + PERIOD
    assert 200 * MS <= first['stopped'] - first['ramping'] <= 300 * MS
    # 2 per s, and never more than a tick's share at a time.
    assert max(abs(np.diff(scene.values))) <= 0.1 + 1e-6
    assert scene.values[-1] == 0.0


def test_in_simulation_a_reason_to_stop_must_hold_for_40_ms_of_real_time():
    scene = Scene(simulated=True)
    scene.act()
    # After a stall /clock comes newest first, and the samples that belong to it a moment later.
    scene.clocks.now += 300 * MS
    for _ in range(3):
        scene.clocks.steady += 10 * MS
        scene.runner.watch()
    scene.observe()
    scene.infer()
    assert scene.states == ['acting']
    scene.clocks.now += 300 * MS
    for _ in range(6):
        scene.clocks.steady += 10 * MS
        scene.runner.watch()
    assert scene.states == ['acting', 'stopped']


def test_on_a_robot_a_reason_to_stop_counts_at_once():
    scene = Scene()
    scene.act()
    scene.pause(210)
    scene.runner.watch()
    assert scene.states == ['acting', 'stopped']


def test_after_a_pause_in_simulation_a_result_waits_for_the_clock_and_is_dropped():
    scene = Scene(simulated=True)
    scene.act()
    scene.wait(50)
    scene.observe()
    future, call, arguments = scene.jobs.pop()
    future.set_result(call(*arguments))
    scene.clocks.steady += 3000 * MS  # SIGSTOP; the simulation goes on meanwhile
    scene.runner.watch()
    assert len(scene.sent) == 1
    scene.clocks.now += 3000 * MS  # then /clock comes
    scene.clocks.steady += 50 * MS
    scene.runner.watch()
    assert scene.states == ['acting', 'stopped'] and scene.runner.counts['dropped'] == 1


def test_after_a_pause_the_last_command_is_not_held():
    # It was sent long ago, whatever the hold time says.
    scene = Scene(change=lambda data: hold(data, 0.5))
    scene.act()
    scene.pause(3000)
    scene.runner.watch()
    assert scene.states == ['acting', 'stopped']


def test_after_a_pause_what_waited_in_a_queue_is_as_old_as_it_is():
    # Without a header its time is when it came.
    scene = Scene(change=lambda data: data['observations'][0].update(time='received'))
    scene.act()
    scene.pause(3000)
    scene.observe(delay_ms=2500)
    scene.runner.watch()
    assert scene.states == ['acting', 'stopped'] and scene.jobs == []
    scene.wait(50)
    scene.act()
    assert scene.states[-1] == 'acting'


def test_without_a_pause_the_clock_of_a_publisher_is_no_delay():
    scene = Scene(change=lambda data: data['observations'][0].update(time='received'))
    scene.act()
    scene.wait(50)
    scene.observe(delay_ms=2500)
    scene.infer()
    assert scene.states == ['acting']


@pytest.mark.parametrize('inferring', [False, True])
def test_an_emergency_stop_is_sent_at_once_and_lasts_until_resumed(inferring):
    scene = Scene(change=lambda data: (hold(data, 1.0), ramp(data, 2.0)))
    scene.act()
    scene.wait(50)
    if inferring:
        scene.observe()
    scene.runner.set_estop('service', True)
    assert scene.states == ['acting', 'stopped'] and scene.values[-1] == 0.0
    if inferring:
        scene.infer()
    for _ in range(3):
        scene.wait(50)
        scene.observe()
    scene.runner.set_estop('service', False)
    scene.wait(50)
    scene.observe()
    assert scene.states == ['acting', 'stopped'] and scene.jobs == []
    assert scene.runner.resume() == '' and scene.estops == {}
    scene.wait(50)
    scene.act()
    assert scene.states == ['acting', 'stopped', 'acting']


def test_motion_resumes_only_when_every_source_of_an_emergency_stop_is_released():
    scene = Scene()
    scene.runner.set_estop('service', True)
    scene.runner.set_estop('topic', True)
    scene.runner.set_estop('service', False)
    assert 'topic' in scene.runner.resume()
    scene.runner.set_estop('topic', False)
    assert scene.runner.resume() == ''


def test_an_emergency_stop_that_is_told_again_and_again_is_news_once():
    scene = Scene()
    scene.act()
    for _ in range(5):
        scene.runner.set_estop('topic', True)
    assert len(scene.sent) == 2


def test_a_topic_that_says_that_all_is_well_stops_nothing_now_or_later():
    scene = Scene()
    scene.runner.set_estop('topic', False)
    assert scene.estops == {} and scene.runner.blocked == []


def test_an_emergency_stop_outlives_the_runner():
    scene = Scene()
    scene.runner.set_estop('topic', True)
    scene.runner.set_estop('topic', False)
    other = Runner(scene.policy, Settings(candidates=4), scene.clocks, submit=scene.submit,
                   send=scene.send, unheard=list, log=lambda *_: None, estops=scene.estops)
    assert 'not resumed' in other.blocked[0]


def test_without_the_dead_mans_switch_nothing_moves_and_with_it_again():
    scene = Scene(deadman_timeout_s=0.3)
    scene.observe()
    assert scene.states == ['stopped'] and scene.jobs == []
    scene.runner.set_deadman(True)
    scene.wait(50)
    scene.act()
    assert scene.states[-1] == 'acting'
    scene.runner.set_deadman(False)
    assert scene.states[-1] == 'stopped'
    scene.runner.set_deadman(True)
    scene.wait(50)
    scene.act()
    for _ in range(8):  # held, but no longer heard
        scene.wait(50)
        scene.observe()
        if scene.jobs:
            scene.infer()
    assert scene.states[-1] == 'stopped' and 'last heard' in scene.sent[-1][1].reasons[0]


def test_paused_it_ramps_without_hold_and_stays_until_resumed():
    scene = Scene(change=lambda data: (hold(data, 1.0), ramp(data, 2.0)))
    for _ in range(6):
        scene.act()
        scene.wait(50)
    scene.runner.pause()
    for _ in range(10):
        scene.wait(50)
        scene.observe()
    assert scene.states == ['acting', 'ramping', 'stopped']
    assert scene.runner.resume() == ''
    scene.wait(50)
    scene.act()
    assert scene.states[-1] == 'acting'


def test_a_clock_that_stands_still_ends_in_the_stop():
    scene = Scene(simulated=True, change=lambda data: (hold(data, 0.1), ramp(data, 2.0)))
    for _ in range(6):
        scene.act()
        scene.wait(50)
    scene.wait(2000, clock=False)
    assert scene.states == ['acting']
    scene.wait(1000, clock=False)
    assert scene.states[-1] == 'stopped'
    assert 'stands still' in scene.sent[-1][1].reasons[0]
    assert max(abs(np.diff(scene.values))) <= 0.1 + 1e-6


def test_the_watchdog_goes_on_with_the_ladder_where_the_executor_stands_still():
    scene = Scene(change=lambda data: (hold(data, 0.1), ramp(data, 2.0)))
    for _ in range(6):
        scene.act()
        scene.wait(50)
    sent = len(scene.sent)
    for _ in range(19):
        scene.pause(10)
        scene.runner.stalled()
    assert len(scene.sent) == sent
    for _ in range(100):
        scene.pause(10)
        scene.runner.stalled()
    assert scene.states == ['acting', 'holding', 'ramping', 'stopped']
    assert 'the executor has not run' in scene.sent[-1][1].reasons[0]
    scene.act()
    assert scene.states[-1] == 'acting'


def test_a_simulation_that_waits_for_its_answer_is_not_answered_with_the_stop():
    # A starved executor in lock-step: simulated time stands still, nothing grows old.
    scene = Scene(simulated=True)
    scene.act()
    sent = len(scene.sent)
    for _ in range(190):
        scene.clocks.steady += 10 * MS
        scene.runner.stalled()
    assert len(scene.sent) == sent
    for _ in range(20):
        scene.clocks.steady += 10 * MS
        scene.runner.stalled()
    assert scene.states == ['acting', 'stopped']


def test_what_is_not_finite_is_not_sent_and_the_ladder_begins():
    scene = Scene()
    scene.act()
    scene.policy.action = math.nan
    scene.wait(50)
    scene.act()
    assert scene.states == ['acting', 'stopped'] and scene.runner.counts['refused'] == 1
    assert all(np.isfinite(scene.values))


def test_a_policy_is_swapped_between_two_ticks():
    scene = Scene()
    scene.observe()
    other = Policy(scene.spec)
    other.action = -0.5
    scene.runner.swap(other, 2)
    scene.infer()  # of the policy that the tick began with
    scene.wait(50)
    scene.act()
    assert scene.values == [0.5, -0.5]
    assert [made.candidates for made in scene.made] == [4, 2]


def test_a_history_that_is_not_full_is_a_reason():
    scene = Scene(change=lambda data: data['observations'][0].update(history=3))
    scene.observe()
    assert scene.states == ['stopped']
    assert 'of 3 frames since the last gap' in scene.sent[0][1].reasons[0]
    scene.wait(50)
    scene.observe()
    scene.wait(50)
    scene.act()
    assert scene.states == ['stopped', 'acting']


def test_a_clock_that_is_set_back_forgets_what_was_observed():
    scene = Scene(simulated=True)
    scene.act()
    scene.clocks.now = T // 2
    scene.runner.jumped(-T // 2)
    scene.wait(300)
    assert scene.states == ['acting', 'stopped']
    assert 'missing' in scene.sent[-1][1].reasons[0]
    scene.act()
    assert scene.states[-1] == 'acting'


def test_reset_forgets_what_was_observed_and_sent():
    scene = Scene(change=lambda data: data['observations'][0].update(history=2))
    scene.observe()
    scene.wait(50)
    scene.act()
    scene.runner.reset()
    scene.wait(50)
    scene.observe()
    assert 'of 2 frames' in scene.sent[-1][1].reasons[0]


def test_with_nobody_listening_no_tick_is_taken():
    scene = Scene()
    scene.unheard = ['cmd_vel']
    scene.observe()
    assert scene.jobs == []
    scene.unheard = []
    scene.runner.watch()
    scene.infer()
    assert scene.states == ['acting']


def test_a_timers_tick_begins_with_the_timer():
    scene = Scene(change=lambda data: data.update(tick='timer'))
    scene.observe()
    assert scene.jobs == []
    scene.runner.tick()
    scene.infer()
    assert scene.states == ['acting']


# What an operator, a network or a clock does at the wrong moment.


def limited(data):
    """Bound the steps of the command."""
    data['actions'][0]['dimensions'][0].update(max_rate=0.2, max_jump=0.3)


def test_what_was_previewed_is_forgotten_with_the_inference_that_goes_on():
    scene = Scene()
    scene.act()
    scene.wait(50)
    scene.observe()
    scene.runner.forget_sent()
    scene.infer()
    assert len(scene.sent) == 1


def test_a_robot_that_moves_is_not_left_alone_when_one_of_its_receivers_is_gone():
    def two(data):
        data['actions'].append({**data['actions'][0], 'name': 'gripper', 'topic': 'gripper'})
    scene = Scene(change=two)
    scene.policy.decide = lambda *_, **__: Decision(
        np.array([0.5, 0.5], np.float32), 1.0, 0.5, np.zeros((4, 2)), np.ones(4))
    scene.act()
    scene.unheard = ['gripper']
    scene.wait(50)
    scene.act()
    assert len(scene.sent) == 2
    scene.wait(400)
    assert scene.states == ['acting', 'stopped']


def test_before_the_simulations_clock_begins_no_tick_is_taken():
    scene = Scene(simulated=True)
    scene.clocks.now = 0
    scene.observe(stamp_ns=T)
    assert scene.jobs == []
    scene.clocks.now = T
    scene.runner.watch()
    assert len(scene.jobs) == 1


def test_an_inference_that_fails_is_no_action_and_the_next_one_may_be():
    scene = Scene()
    scene.act()
    scene.wait(50)
    scene.observe()
    future, _, _ = scene.jobs.pop()
    future.set_exception(RuntimeError('no number'))
    scene.runner.finish()
    assert scene.states == ['acting', 'stopped'] and scene.runner.counts['failed'] == 1
    assert 'RuntimeError: no number' in scene.sent[-1][1].reasons[0]
    scene.wait(50)
    scene.act()
    assert scene.states[-1] == 'acting'


def test_a_dead_mans_switch_released_during_an_inference_is_no_action():
    scene = Scene(deadman_timeout_s=0.1)
    scene.runner.set_deadman(True)
    scene.act()
    scene.wait(60)
    scene.observe()
    scene.wait(60)
    scene.infer()
    assert scene.states == ['acting', 'stopped']


def test_a_word_of_the_dead_mans_switch_that_waited_through_a_pause_is_old():
    scene = Scene(deadman_timeout_s=0.5)
    scene.runner.set_deadman(True)
    scene.act()
    scene.pause(5000)
    scene.runner.set_deadman(True, 4500 * MS)
    scene.observe()
    assert scene.jobs == [] and scene.states == ['acting', 'stopped']


def test_a_dead_mans_switch_does_not_outlive_the_activation():
    scene = Scene(deadman_timeout_s=60.0)
    scene.runner.set_deadman(True)
    scene.act()
    scene.runner.halt(['the end'])
    scene.runner.start()
    scene.observe()
    assert scene.jobs == []


def test_the_watchdog_hears_the_dead_mans_switch_end():
    scene = Scene(deadman_timeout_s=0.1, change=lambda data: hold(data, 5.0))
    scene.runner.set_deadman(True)
    scene.act()
    for _ in range(20):
        scene.pause(10)
        scene.runner.stalled()
    assert scene.states == ['acting', 'stopped']


def test_a_system_clock_that_is_set_back_does_not_keep_the_ladder_from_its_end():
    scene = Scene(change=lambda data: ramp(data, 1.0))
    for _ in range(10):
        scene.act()
        scene.wait(50)
    scene.clocks.now -= 100 * 10**9
    scene.wait(2000)
    assert scene.states[-1] == 'stopped'


def test_steps_follow_the_stamps_where_the_inference_jitters():
    scene = Scene(change=lambda data: ramp(data, 1.0))
    jitter_ms = [3, 9, 1, 12, 5, 2, 8]
    for late_ms in jitter_ms:
        scene.observe()
        scene.clocks.now += late_ms * MS
        scene.clocks.steady += late_ms * MS
        scene.infer()
        scene.clocks.now += PERIOD - late_ms * MS
        scene.clocks.steady += PERIOD - late_ms * MS
    assert np.diff(scene.values) == pytest.approx(0.05)


def test_a_hold_that_nobody_could_keep_counts_as_kept():
    scene = Scene(change=lambda data: hold(data, 10.0))
    scene.act()
    scene.pause(9500)
    scene.wait(1200)
    assert scene.states == ['acting', 'holding', 'stopped']


def test_an_emergency_stop_holds_where_the_robot_is_now():
    def position(data):
        data.update(rate=1.0)
        data['observations'][0]['max_age'] = 2.0
        data['actions'][0]['dimensions'][0] = {
            'kind': 'position', 'unit': 'm', 'lower': -1.0, 'upper': 1.0,
            'stop': 'hold_measured', 'measured': 0}
    scene = Scene(change=position)
    scene.act(x=0.1)
    scene.wait(500)
    scene.observe(x=0.4)  # between two ticks
    scene.runner.set_estop('service', True)
    assert scene.values[-1] == pytest.approx(0.4)


def test_a_message_that_waited_through_two_pauses_is_as_old_as_both():
    scene = Scene(change=lambda data: data['observations'][0].update(time='received'))
    scene.act()
    scene.pause(5000)
    scene.runner.watch()
    scene.pause(150)
    scene.observe(delay_ms=5100)
    assert scene.jobs == []


def test_a_clock_that_is_set_back_forgets_what_is_being_decided():
    scene = Scene(simulated=True)
    scene.observe()
    scene.clocks.now = T // 2
    scene.runner.jumped(-T // 2)
    scene.infer()
    assert scene.sent == []


def test_a_system_clock_that_is_set_back_does_not_hide_late_decisions():
    scene = Scene()
    scene.act()
    scene.clocks.now -= 100 * 10**9
    for _ in range(20):
        scene.observe()
        scene.wait(60)
        if scene.jobs:
            scene.infer()
    assert 'no decision in time' in scene.sent[-1][1].reasons[0]


def test_a_reset_in_motion_keeps_the_limits_of_the_next_step():
    scene = Scene(change=limited)
    for _ in range(10):
        scene.act()
        scene.wait(50)
    scene.runner.reset()
    scene.policy.action = -1.0
    scene.act()
    assert abs(scene.values[-1] - scene.values[-2]) <= 0.2 * 0.05 + 1e-6


def test_a_reason_that_changes_is_told_even_right_after_another():
    scene = Scene()
    scene.act()
    scene.policy.action = math.nan
    scene.wait(50)
    scene.act()
    scene.wait(2000)
    told = [text for text in scene.logged if text.startswith('stopped')]
    assert 'not finite' in told[0] and 'stale' in told[-1]


def test_a_range_that_file_and_parameter_make_empty_is_refused():
    scene = Scene()
    scene.policy.ranges = {'q': (0.0, 3.0)}
    with pytest.raises(PolicyError, match='value_range_q: expected a lowest value below'):
        Runner(scene.policy, Settings(candidates=4, value_ranges={'q': (5.0, math.nan)}),
               scene.clocks, submit=scene.submit, send=scene.send, unheard=list,
               log=lambda *_: None, estops={})


def test_ranges_are_those_of_the_n_that_decided():
    scene = Scene(deadline_s=1.0)
    asked = []
    scene.policy.value_ranges_for = lambda n, *_: asked.append(n) or {'q': (-n, 0.0)}
    scene.runner.swap(scene.policy, 64)
    assert asked == [64, 32, 16, 8]
    scene.act()
    assert 'q 1 is outside -64 to 0' in scene.sent[-1][1].warnings[0]


def test_messages_are_counted_by_what_came_of_them():
    scene = Scene()
    scene.observe()
    scene.observe(x=math.nan)
    received = scene.runner.received['position']
    assert (received.messages, received.unusable) == (2, 1)


def test_every_stage_of_a_tick_is_timed():
    scene = Scene()
    scene.observe(age_ms=20)
    scene.infer()
    found = {stage: window.percentiles() for stage, window in scene.runner.latencies.items()}
    assert all(found.values())
    assert found['age'].p50 == pytest.approx(0.02)


def test_reasons_are_compared_without_what_changes_every_tick():
    assert without_numbers(['x: 0.25 s old', 'nan']) == without_numbers(['x: 1e-3 s old', '7.5'])
    assert without_numbers(['joint_1: stale']) != without_numbers(['joint_2: stale'])
    assert without_numbers(['stale']) != without_numbers(['missing'])
