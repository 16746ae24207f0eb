"""Faults around policy_node, and what it does: `make faults`.

Each fault is injected from this process into a node of its own: on its topics, its clock, its
processor time. The table says when the node reacted and what was allowed, what it sent, and when
it acted again; `verdict.py` judges every single command. Exit code 1: a row failed.
"""

import argparse
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
import functools
import json
import math
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import tempfile
import time

import conftest  # noqa: F401 (a ROS domain of its own, before rclpy is imported)
import harness
import injection
from injection import Driver, Load, NS
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
import numpy as np
from rcl_interfaces.msg import Parameter, ParameterType
from rcl_interfaces.srv import SetParameters
from rclpy.qos import ReliabilityPolicy
from std_srvs.srv import SetBool, Trigger
from training.files import write_all
from verdict import Verdict

NODE = 'idql_ros.policy_node'
# One inference, on this machine, is to take so much of a tick where it is made ten times slower.
SLOW_SHARE = 0.15
CLOCK_TIMEOUT_S = 0.5
# In simulated time a reason to stop counts when it has held for so long: it is looked at twice, a
# tick more; and the clock of this suite goes in steps.
SIMULATED_S = 0.04 + 1.0 / injection.SPEC['rate'] + injection.STEP_S
STOPS_S = (0.15, 0.3, 0.5, 0.7, 1.0, 0.2, 0.4, 1.5)
CYCLES = 1000
FULL_CYCLES_S = 60.0


@dataclass
class Row:
    """What became of a fault; times in s, None where there is none to tell."""

    fault: str
    # From the fault to the first command that is not an action (or what `reaction` names).
    reaction_s: float | None = None
    # What is allowed: the configured time, one tick, the scheduling delay of the node then.
    configured_s: float | None = None
    delay_s: float | None = None
    sent: str = ''
    # From the end of the fault to the first action.
    recovery_s: float | None = None
    recovery: str = 'by itself'
    problems: list[str] = field(default_factory=list)
    begin_ns: int = 0
    end_ns: int = 0


class Scene:
    """A node under test, and the other side of it."""

    def __init__(self, process, driver, policy, folder, cycles=CYCLES):
        """Take both, running."""
        self.process, self.driver = process, driver
        self.policy, self.folder, self.cycles = policy, folder, cycles
        self.tick_s = 1.0 / driver.spec.rate
        self.pid = process.child.pid
        self.load = driver.load = Load(self.pid)

    def call(self, name, request=None):
        """Call a service of the node that takes nothing."""
        return self.driver.call(Trigger, f'/policy_node/{name}', Trigger.Request())

    def estop(self, engaged):
        """Engage or release the emergency stop; return the future of the answer."""
        return self.driver.ask(SetBool, '/policy_node/estop', SetBool.Request(data=engaged))

    def change_state(self, transition):
        """Make a lifecycle transition."""
        request = ChangeState.Request()
        request.transition.id = transition
        assert self.driver.call(ChangeState, '/policy_node/change_state', request).success

    # What the record says of a row.

    def react(self, row, since_ns, configured_s, reason=''):
        """Judge the first command after a fault that is no action."""
        row.configured_s = configured_s
        _, found = self.driver.heard(max(since_ns, row.begin_ns), row.end_ns)
        if not found:
            row.problems.append('no reaction')
            return None
        first_ns = found[0].sent_ns
        row.reaction_s = (first_ns - since_ns) / NS
        row.delay_s = self.load.delay_s(since_ns, first_ns)
        allowed_s = configured_s + self.tick_s + row.delay_s
        if row.reaction_s > allowed_s:
            row.problems.append(f'reacted after {row.reaction_s:.3f} s, allowed {allowed_s:.3f} s')
        texts = [s.text for s in self.driver.states if row.begin_ns < s.sent_ns <= row.end_ns]
        if not any(re.search(reason, text) for text in texts):
            row.problems.append(f'expected the reason {reason!r}, found {texts}')
        return first_ns

    def tell_sent(self, row):
        """Say which states of the ladder there were, and for how long."""
        states = [s for s in self.driver.states if s.sent_ns <= row.end_ns]
        at = max(len([s for s in states if s.sent_ns <= row.begin_ns]) - 1, 0)
        told = []
        ends = [*(s.sent_ns for s in states[at + 1:]), row.end_ns]
        for state, end_ns in zip(states[at:], ends, strict=True):
            seconds = (end_ns - max(state.sent_ns, row.begin_ns)) / NS
            if told and told[-1][0] == state.state:
                told[-1][1] += seconds
            else:
                told.append([state.state, seconds])
        if len(told) > 5:
            acted_s = sum(seconds for state, seconds in told if state == 'acting')
            row.sent = (f'{len(told)} changes, acting {acted_s:.2f} s of '
                        f'{sum(seconds for _, seconds in told):.2f} s')
        else:
            row.sent = ', '.join(f'{state} {seconds:.2f} s' for state, seconds in told)

    def hold(self, row, first_ns, hold_s):
        """Judge how long the last command was held."""
        after = [s.sent_ns for s in self.driver.states
                 if s.sent_ns > first_ns - NS // 100 and s.state in ('ramping', 'stopped')]
        if not after or after[0] > row.end_ns:
            row.problems.append('the hold did not end')
            return
        held_s = (after[0] - first_ns) / NS
        allowed_s = hold_s + self.tick_s + self.load.delay_s(first_ns, after[0])
        if not hold_s - self.tick_s <= held_s <= allowed_s:
            row.problems.append(f'held for {held_s:.3f} s, expected {hold_s} to {allowed_s:.3f} s')

    def stopped(self, row):
        """Judge that the spec's stop was reached, and what it is."""
        if self.driver.state != 'stopped':
            row.problems.append(f'expected the stop, found {self.driver.state}')
            return
        for command in self.driver.spec.actions:
            values = self.driver.commands[command.topic][-1].values
            for value, dimension in zip(values, command.dimensions, strict=True):
                expected = {'zero': 0.0, 'pose': dimension.pose}.get(dimension.stop)
                if expected is not None and abs(value - expected) > 1e-6:
                    row.problems.append(f'stopped at {value}, expected {expected}')

    def recover(self, row):
        """Wait until the node acts again, and say when it did."""
        row.end_ns = time.time_ns()
        try:
            self.driver.until_acting()
        except TimeoutError as error:
            row.problems.append(f'recovery: {error}: {self.driver.states[-1].text}')
            return
        actions, _ = self.driver.heard(row.end_ns, time.time_ns())
        row.recovery_s = (actions[0].sent_ns - row.end_ns) / NS


def set_model(driver, path):
    """Set the node's parameter `model`."""
    request = SetParameters.Request(parameters=[Parameter(name='model')])
    request.parameters[0].value.type = ParameterType.PARAMETER_STRING
    request.parameters[0].value.string_value = str(path)
    result, = driver.call(SetParameters, '/policy_node/set_parameters', request).results
    assert result.successful, result.reason


# What happens to streams.


def withhold(message):
    """Deliver nothing."""
    return []


def every(number):
    """Deliver each so many-th message."""
    counted = 0

    def deliver(message):
        nonlocal counted
        counted += 1
        return [message] if counted % number == 0 else []
    return deliver


def in_bursts(number):
    """Deliver so many messages together, when the last of them comes."""
    kept = []

    def deliver(message):
        kept.append(message)
        if len(kept) < number:
            return []
        due = kept.copy()
        kept.clear()
        return due
    return deliver


def not_finite(message):
    """Make a joint's position NaN."""
    message.position[0] = math.nan


def too_short(message):
    """Drop a position of a joint that is named."""
    message.position = message.position[:2]


def other_joints(message):
    """Name other joints."""
    message.name = ['wrist', 'gripper', 'finger']


def misnamed_joint(message):
    """Name one joint otherwise."""
    message.name = ['shoulder', 'elbow', 'wrist']


def shifted(seconds):
    """Stamp otherwise."""
    def spoil(message):
        injection.split_ns(
            message.header.stamp, injection.stamp_of(message) + round(seconds * NS))
    return spoil


def stream_row(scene, name, signals, *, deliver=None, spoil=None, after=None, hold=None,
               reason='', lasts=1.6):
    """Run a fault of streams.

    Args:
        scene: the node.
        name: of the row.
        signals: the streams.
        deliver: makes what decides which messages are delivered.
        spoil: makes a message wrong.
        after: configured time until the reaction, s: from the last good sample, or for what is
            refused at once (0) from the first bad one; None: no reaction is due.
        hold: how long the last command is to be held; None: that is not judged.
        reason: pattern of the reason that has to be told.
        lasts: s.
    """
    driver = scene.driver
    row = Row(name, begin_ns=time.time_ns())
    for one in signals:
        stream = driver.streams[one]
        stream.deliver, stream.spoil = deliver() if deliver else None, spoil
    driver.run_for(lasts)
    row.end_ns = time.time_ns()
    if hold is not None:
        scene.stopped(row)
    for one in signals:
        driver.streams[one].mend()
    scene.recover(row)
    if after is not None:
        _, ladder = driver.heard(row.begin_ns, row.end_ns)
        before_ns = ladder[0].sent_ns if ladder else row.end_ns
        samples = [s for one in signals for s in driver.streams[one].samples]
        since_ns = (
            max(s.published_ns for s in samples if s.good and s.published_ns < before_ns)
            if after else
            min(s.published_ns for s in samples if s.published_ns > row.begin_ns))
        first_ns = scene.react(row, since_ns, after, reason)
        if hold is not None and first_ns is not None:
            scene.hold(row, first_ns, hold)
    scene.tell_sent(row)
    return row


def restart_row(scene, name, signal_name, reliability, after, hold, reason):
    """Restart a publisher with another QoS; one that does not fit sends nothing that arrives."""
    driver = scene.driver
    since_ns = driver.streams[signal_name].samples[-1].published_ns
    row = Row(name, begin_ns=time.time_ns())
    driver.connect(signal_name, reliability)
    driver.run_for(1.6)
    row.end_ns = time.time_ns()
    if after is not None:
        scene.stopped(row)
        driver.connect(signal_name)
        row.recovery = 'when its QoS fits again'
        if 'has another reliability' not in scene.process.output():
            row.problems.append('the QoS that does not fit was not told')
    scene.recover(row)
    if after is not None:
        first_ns = scene.react(row, since_ns, after, reason)
        if first_ns is not None:
            scene.hold(row, first_ns, hold)
    scene.tell_sent(row)
    return row


# What happens to the process.


@contextmanager
def busy_processes(number):
    """Keep processes that take all the processor time they get."""
    children = [subprocess.Popen([sys.executable, '-S', '-c', 'while True: pass'])
                for _ in range(number)]
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


def starved_row(scene, name):
    """Give two busy processes the processor; no gap without any command may be too long."""
    driver = scene.driver
    row = Row(name, begin_ns=time.time_ns())
    with busy_processes(2):
        driver.run_for(5.0)
    scene.recover(row)
    sent = [s.sent_ns for s in driver.commands['base_command']
            if row.begin_ns < s.sent_ns <= row.end_ns]
    gaps = np.diff([row.begin_ns, *sent, row.end_ns])
    at = int(np.argmax(gaps))
    row.reaction_s = float(gaps[at] / NS)
    # Late decisions are dropped for two ticks and the smallest max_age; then the stop is due.
    row.configured_s = 2 * scene.tick_s + min(s.max_age for s in driver.spec.observations)
    begin_ns = [row.begin_ns, *sent][at]
    row.delay_s = scene.load.delay_s(begin_ns, begin_ns + int(gaps[at]))
    if row.reaction_s > row.configured_s + scene.tick_s + row.delay_s:
        row.problems.append(f'nothing was sent for {row.reaction_s:.3f} s')
    due = round((row.end_ns - row.begin_ns) / NS * driver.spec.rate)
    row.sent = (f'{len(sent)} commands in {due} ticks, '
                f'{len(driver.heard(row.begin_ns, row.end_ns)[0])} of them actions; the '
                'time is that of the longest gap')
    return row


def stopped_process_row(scene, name):
    """SIGSTOP and SIGCONT: what is sent first has to be a fresh action or the stop."""
    driver = scene.driver
    row = Row(name, begin_ns=time.time_ns(), configured_s=0.0, reaction_s=0.0, delay_s=0.0)
    first = {'action': 0, 'stop': 0}
    phases = np.random.default_rng(0).uniform(0.0, 2 * scene.tick_s, len(STOPS_S))
    for seconds, phase_s in zip(STOPS_S, phases, strict=True):
        # What woke this process was a command: without this wait it would always be the same one.
        time.sleep(phase_s)
        scene.process.child.send_signal(signal.SIGSTOP)
        driver.run_for(seconds)
        continued_ns = time.time_ns()
        scene.process.child.send_signal(signal.SIGCONT)
        driver.until_acting()
        actions, others = driver.heard(continued_ns, time.time_ns())
        sent = sorted([*actions, *others], key=lambda s: s.sent_ns)
        first['action' if sent[0] is actions[0] else 'stop'] += 1
        reaction_s = (sent[0].sent_ns - continued_ns) / NS
        delay_s = scene.load.delay_s(continued_ns, sent[0].sent_ns)
        if reaction_s > scene.tick_s + delay_s:
            row.problems.append(f'stopped for {seconds} s, then silent for {reaction_s:.3f} s, '
                                f'allowed {scene.tick_s + delay_s:.3f} s')
        if reaction_s >= row.reaction_s:
            row.reaction_s, row.delay_s = reaction_s, delay_s
            row.recovery_s = (actions[0].sent_ns - continued_ns) / NS
        driver.run_for(0.2)
    row.end_ns = time.time_ns()
    row.sent = (f'{len(STOPS_S)} times, {min(STOPS_S)} to {max(STOPS_S)} s: first of all '
                f'{first["action"]} times a fresh action, {first["stop"]} times the hold or stop')
    return row


def corrupt_reload_row(scene, name):
    """Reload a file that is cut off: the policy stays, and goes on acting."""
    driver = scene.driver
    broken = scene.folder / 'broken.onnx'
    broken.write_bytes(scene.policy.read_bytes()[:5000])
    set_model(driver, broken)
    row = Row(name, begin_ns=time.time_ns())
    answer = scene.call('reload')
    row.end_ns = time.time_ns()
    if answer.success or 'the policy stays as it was' not in answer.message:
        row.problems.append(f'the answer: {answer.message}')
    set_model(driver, scene.policy)
    scene.recover(row)
    acted = len(driver.heard(row.begin_ns, row.end_ns)[0])
    row.sent = f'refused; {acted} actions of the old policy meanwhile'
    if not acted:
        row.problems.append('it did not act meanwhile')
    return row


def slow_row(scene, name):
    """Make each inference ten times: what is too late is dropped, then the ladder begins."""
    driver = scene.driver
    flag = scene.folder / 'tenfold'
    before = len(driver.decisions)
    row = Row(name, begin_ns=time.time_ns())
    flag.touch()
    driver.run_for(2.5)
    row.end_ns = time.time_ns()
    scene.stopped(row)
    flag.unlink()
    scene.recover(row)
    actions, _ = driver.heard(0, row.end_ns)
    # Late decisions are dropped for two ticks and the smallest max_age; then the ladder is due.
    first_ns = scene.react(
        row, actions[-1].stamp_ns if before else row.begin_ns,
        2 * scene.tick_s + min(s.max_age for s in driver.spec.observations),
        'no decision in time|too old')
    if first_ns is not None:
        scene.hold(row, first_ns, driver.spec.hold_time)
    scene.tell_sent(row)
    return row


def estop_row(scene, name, flag=None):
    """Engage the emergency stop, with `flag` while an inference runs; release, resume."""
    driver = scene.driver
    scene.estop(False)
    driver.run_for(0.2)
    row = Row(name, recovery='after ~/resume')
    if flag is not None:
        flag.touch()
        driver.run_for(1.5 * scene.tick_s)
    row.begin_ns = time.time_ns()
    driver.at_once.append((row.begin_ns, 2**63))
    scene.estop(True)
    driver.run_for(1.0)
    if flag is not None:
        flag.unlink()
        driver.run_for(0.5)
    row.end_ns = time.time_ns()
    scene.stopped(row)
    first_ns = scene.react(row, row.begin_ns, 0.0, 'e-stop')
    if first_ns is not None:
        acted, _ = driver.heard(first_ns, row.end_ns)
        if acted:
            row.problems.append(f'{len(acted)} actions after the stop')
        stop = next(s for s in driver.commands['base_command'] if s.sent_ns >= first_ns)
        if stop.values[0] != 0.0:
            row.problems.append(f'the first stop is {stop.values[0]} m/s')
    scene.estop(False)
    driver.run_for(0.2)
    released_ns = time.time_ns()
    answer = scene.call('resume')
    if not answer.success:
        row.problems.append(f'resume: {answer.message}')
    driver.at_once[-1] = (row.begin_ns, released_ns)
    scene.tell_sent(row)
    scene.recover(row)
    return row


def estop_during_inference_row(scene, name):
    """Engage the emergency stop during a slow inference."""
    return estop_row(scene, name, scene.folder / 'tenfold')


def cycles_row(scene, name):
    """Activate and deactivate many times, clean up and configure some."""
    driver = scene.driver
    row = Row(name, begin_ns=time.time_ns(), recovery='after activation')
    driver.at_once.append((row.begin_ns, 2**63))

    def cycle(full):
        scene.change_state(Transition.TRANSITION_DEACTIVATE)
        if full:
            scene.change_state(Transition.TRANSITION_CLEANUP)
            scene.change_state(Transition.TRANSITION_CONFIGURE)
        scene.change_state(Transition.TRANSITION_ACTIVATE)

    def reading():
        return (injection.memory_mb(scene.pid)[0], injection.count(scene.pid, 'task'),
                injection.count(scene.pid, 'fd'))

    # What is allocated once is.
    for full in [False] * 20 + [True] * 3:
        cycle(full)
    before = reading()
    for _ in range(scene.cycles):
        cycle(False)
    half = reading()
    begun_s, full = time.monotonic(), 0
    while full < scene.cycles and time.monotonic() - begun_s < min(
            FULL_CYCLES_S, scene.cycles / 10):
        cycle(True)
        full += 1
    after = reading()
    released_ns = time.time_ns()
    driver.at_once[-1] = (row.begin_ns, released_ns)
    scene.recover(row)
    row.sent = (
        f'{scene.cycles} times deactivated and activated, {full} times cleaned up and configured '
        f'as well: private memory {before[0]:.1f}, {half[0]:.1f}, {after[0]:.1f} MB, threads '
        f'{before[1]}, {half[1]}, {after[1]}, descriptors {before[2]}, {half[2]}, {after[2]}')
    if after[1] > before[1] or after[2] > before[2]:
        row.problems.append('threads or descriptors were left')
    if half[0] - before[0] > 5.0 or after[0] - half[0] > 5.0:
        row.problems.append('memory grew by more than 5 MB')
    return row


# What happens to simulated time.


def clock_stops_row(scene, name):
    """Let /clock and the streams stand still, as when a simulator hangs."""
    driver = scene.driver
    since_ns = driver.clocks[-1][0]
    row = Row(name, begin_ns=time.time_ns())
    driver.clock_runs = False
    driver.run_for(CLOCK_TIMEOUT_S + 1.6)
    row.end_ns = time.time_ns()
    scene.stopped(row)
    driver.clock_runs = True
    scene.recover(row)
    scene.react(row, since_ns, CLOCK_TIMEOUT_S + SIMULATED_S, 'stands still')
    scene.tell_sent(row)
    return row


def clock_leaps_row(scene, name, seconds):
    """Set /clock, back as when a simulation begins anew or forward; it goes on from there."""
    driver = scene.driver
    row = Row(name, begin_ns=time.time_ns())
    driver.now_ns += round(seconds * NS)
    driver.publish_clock()
    scene.recover(row)
    _, ladder = driver.heard(row.begin_ns, time.time_ns())
    row.sent = f'{len(ladder)} commands that were no actions, before actions of the new time'
    row.end_ns = time.time_ns()
    return row


def rows(group):
    """Return the rows of a group: name -> function of a scene and the name."""
    if group == 'slow inference':
        return {'inference 10 times slower': slow_row,
                'e-stop during inference': estop_during_inference_row}
    joints, base = injection.robot_spec().observations
    stale = 'stale'
    joint_row = functools.partial(stream_row, signals=['joints'])
    at_once = functools.partial(joint_row, after=0.0, hold=joints.hold_time)
    lost = functools.partial(
        joint_row, after=joints.max_age, hold=joints.hold_time, reason=stale)
    if group == 'simulated time':
        return {
            'simulated time: joint states stop': functools.partial(
                lost, after=joints.max_age + SIMULATED_S, deliver=lambda: withhold),
            '/clock stops': clock_stops_row,
            '/clock jumps back': functools.partial(clock_leaps_row, seconds=-3.003),
            '/clock jumps forward': functools.partial(clock_leaps_row, seconds=5.007)}
    return {
        'joint states stop': functools.partial(lost, deliver=lambda: withhold),
        'odometry stops': functools.partial(
            stream_row, signals=['base'], deliver=lambda: withhold, after=base.max_age,
            hold=base.hold_time, reason=stale),
        'all streams stop': functools.partial(
            stream_row, signals=['joints', 'base'], deliver=lambda: withhold,
            after=joints.max_age, hold=base.hold_time, reason=stale),
        'joint states slow down to 20 Hz': functools.partial(
            joint_row, deliver=lambda: every(5)),
        'joint states slow down to 4 Hz': functools.partial(
            joint_row, deliver=lambda: every(25), after=joints.max_age, reason=stale, lasts=2.5),
        'joint states in bursts of 6': functools.partial(
            joint_row, deliver=lambda: in_bursts(6)),
        'NaN': functools.partial(at_once, spoil=not_finite, reason='not finite'),
        'a number is missing': functools.partial(at_once, spoil=too_short, reason='joints'),
        'a joint has another name': functools.partial(
            at_once, spoil=misnamed_joint, reason='number'),
        'joints of another robot': functools.partial(lost, spoil=other_joints),
        'stamps jump back by 10 s': functools.partial(
            at_once, spoil=shifted(-10.0), reason='stale'),
        'stamps jump forward by 10 s': functools.partial(
            at_once, spoil=shifted(10.0), reason='in the future'),
        'publisher restarts, QoS fits': functools.partial(
            restart_row, signal_name='base', reliability=ReliabilityPolicy.BEST_EFFORT,
            after=None, hold=None, reason=''),
        'publisher restarts, QoS does not fit': functools.partial(
            restart_row, signal_name='joints', reliability=ReliabilityPolicy.BEST_EFFORT,
            after=joints.max_age, hold=joints.hold_time, reason=stale),
        'two busy processes for 5 s': starved_row,
        'SIGSTOP, SIGCONT': stopped_process_row,
        'reload of a corrupt file': corrupt_reload_row,
        'e-stop': estop_row,
        'lifecycle cycles': cycles_row,
    }


GROUPS = ('real time', 'slow inference', 'simulated time')


def slow_candidates(policy):
    """Return N for which an inference takes SLOW_SHARE of a tick on this machine."""
    from idql_ros.policy import Policy
    opened = Policy(policy)
    observation = np.zeros(opened.spec.observation_size, np.float32)
    candidates = 16
    while candidates < 2**15:
        seconds = []
        for tick in range(5):
            begun_s = time.perf_counter()
            opened.decide(observation, tick, 0, candidates)
            seconds.append(time.perf_counter() - begun_s)
        if min(seconds) * opened.spec.rate >= SLOW_SHARE:
            break
        candidates *= 2
    return candidates


@contextmanager
def staged(group, folder, cycles=CYCLES):
    """Start a node for a group of faults, and give its scene while it acts."""
    simulated = group == 'simulated time'
    spec = injection.robot_spec('arrival' if simulated else 'timer')
    policy = harness.untrained(spec, folder / f'{spec.tick}.onnx')
    parameters = {
        'model': policy, 'autostart': True, 'enable_commands': True, 'seed': 3,
        'use_sim_time': simulated, 'clock_timeout': CLOCK_TIMEOUT_S}
    fault = ''
    if group == 'slow inference':
        parameters['candidates'] = slow_candidates(policy)
        fault = f'tenfold:{folder / "tenfold"}'
    driver = Driver(spec, simulated=simulated)
    log = folder / f'{group.replace(" ", "_")}.log'
    try:
        with harness.running(NODE, parameters, log, fault) as process:
            try:
                driver.until_acting(limit_s=60.0)
            except TimeoutError as error:
                raise RuntimeError(f'{error}; the node printed:\n{process.output()}') from error
            yield Scene(process, driver, policy, folder, cycles)
            code = process.end()
            assert code == 0, f'the node ended with {code}'
            assert 'Traceback' not in process.output(), process.output()
    finally:
        driver.close()


def run(folder, chosen=lambda name: True, cycles=CYCLES, say=print):
    """Run the faults that are chosen by their names; return the rows."""
    chosen = {group: {name: row for name, row in rows(group).items() if chosen(name)}
              for group in GROUPS}
    total, done, begun_s = sum(map(len, chosen.values())), [], time.monotonic()
    for group, functions in chosen.items():
        if not functions:
            continue
        with staged(group, folder, cycles) as scene:
            first = len(done)
            for name, row in functions.items():
                done.append(row(scene, name))
                passed_s = time.monotonic() - begun_s
                say(f'{len(done)}/{total} {name}: {"; ".join(done[-1].problems) or "as expected"}'
                    f' (about {passed_s / len(done) * (total - len(done)):.0f} s left)')
            scene.driver.run_for(0.1)
            judge(scene, done[first:])
    return done


def judge(scene, done):
    """Judge all that a node sent; what is wrong goes to the row in whose time it was sent."""
    verdict = Verdict(scene.driver)
    for fault in verdict.faults:
        row = next((r for r in reversed(done) if r.begin_ns <= fault.sent_ns), done[0])
        if len(row.problems) < 10:
            at_s = (fault.sent_ns - row.begin_ns) / NS
            row.problems.append(f'unsafe at {at_s:.3f} s: {fault.text}')


def table(done):
    """Return the rows as Markdown."""
    def milliseconds(value):
        return '' if value is None else f'{1e3 * value:.0f}'

    lines = [
        '| fault | reaction, ms | allowed, ms: configured + tick + scheduling | what was sent '
        '| acts again | |', '|---|---|---|---|---|---|']
    for row in done:
        allowed = '' if row.configured_s is None else (
            f'{milliseconds(row.configured_s)} + {milliseconds(1 / injection.SPEC["rate"])} + '
            f'{milliseconds(row.delay_s or 0.0)}')
        again = '' if row.recovery_s is None else (
            f'{milliseconds(row.recovery_s)} ms, {row.recovery}')
        lines.append(
            f'| {row.fault} | {milliseconds(row.reaction_s) or "none due"} | {allowed} '
            f'| {row.sent} | {again} | {"; ".join(row.problems) or "as expected"} |')
    return '\n'.join(lines)


def write(done, folder, seconds):
    """Write faults.md and faults.json."""
    head = (f'# Faults\n\nFaults: {len(done)}, {sum(not r.problems for r in done)} as expected, '
            f'{seconds:.0f} s, {os.cpu_count()} cores.\n\n')
    write_all({
        folder / 'faults.md': (head + table(done) + '\n').encode(),
        folder / 'faults.json': json.dumps(
            [asdict(row) for row in done], indent=1).encode()})


def main(arguments=None):
    """Run the suite and write its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--only', default='', help='part of the names of the faults to run')
    parser.add_argument('--output', type=Path, default=Path('faults_output'))
    chosen = parser.parse_args(arguments)
    chosen.output.mkdir(parents=True, exist_ok=True)
    begun_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        done = run(Path(folder), lambda name: chosen.only in name)
    seconds = time.monotonic() - begun_s
    write(done, chosen.output, seconds)
    print(table(done))
    print(f'{chosen.output / "faults.md"} and faults.json, after {seconds:.0f} s')
    return 1 if any(row.problems for row in done) else 0


if __name__ == '__main__':
    sys.exit(main())
