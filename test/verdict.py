"""Judges every command that a node sent, by the spec and the record alone: not the guard's code.

What is checked of each command: finite, within lower and upper, no step beyond max_rate x one
period, no change of speed beyond max_acceleration, nothing that jumps beyond max_jump, nothing
that was computed from an observation older than max_age; and that an action is the one that the
node's record of its decision says.
"""

from bisect import bisect_right
from dataclasses import dataclass, replace

from injection import NS, PARTS
import numpy as np

# Between the last look at the clock and the time that DDS writes into a command lie the guard
# and the making of messages.
WRITING_S = 0.005
# Outside of ticks, between the stamp of a command and the time that the guard counts with.
STAMPING_S = 0.0005
# From so many actions on, their stamps tell the guard's times exactly.
SETTLED = 4


@dataclass(frozen=True)
class Fault:
    """A command that should not have been sent."""

    sent_ns: int
    text: str


class Verdict:
    """What there is to say about the commands of a driver's record.

    Attributes:
        faults: what is wrong, in the order of the topics.
        commands: how many were judged.
        actions: how many of them were actions.
        oldest: signal -> the largest age of a sample that an action was made from, s.
    """

    def __init__(self, driver):
        """Judge the record of a driver."""
        self._driver, self._spec = driver, driver.spec
        self._published = {
            name: [sample.published_ns for sample in stream.samples]
            for name, stream in driver.streams.items()}
        self.faults, self.commands, self.actions = [], 0, 0
        self.oldest = dict.fromkeys(driver.streams, 0.0)
        self._told_ns = [state.sent_ns for state in driver.states]
        begin = 0
        for command in self._spec.actions:
            sent = driver.commands[command.topic]
            end = begin + len(command.dimensions)
            self._judge(command, sent, slice(begin, end))
            begin = end
            self.commands += len(sent)

    def _blame(self, sent, text):
        self.faults.append(Fault(sent.sent_ns, text))

    def _judge(self, command, all_sent, part):
        last = command is self._spec.actions[-1]
        period_s = 1.0 / self._spec.rate
        before, speed, before_s = None, None, None
        # An operator's stop may come at once: from its request to the first action after its
        # release.
        at_once = [(begin_ns, next(
            (s.sent_ns for s in all_sent if s.sent_ns > released_ns and self._driver.decision(s)),
            2**63)) for begin_ns, released_ns in self._driver.at_once]
        freed = False
        blended_s, following = None, 0
        for sent in all_sent:
            record = self._driver.decision(sent)
            following = 0 if record is None else following + 1
            self._check_values(command, sent)
            free = any(a <= sent.sent_ns < b for a, b in at_once)
            if record is not None:
                if not np.array_equal(sent.values, record.sent[part].astype(float)):
                    self._blame(sent, f'{command.topic}: sent {sent.values}, and the record of '
                                      f'the decision says {record.sent[part]}')
                if last:
                    self.actions += 1
                    self._check_ages(sent, record)
            if before is None or free:
                before, speed, freed = sent, None, free
                blended_s = None
                continue
            if freed and record is not None:
                # After an operator's stop the first command begins where the robot is; resumed
                # before the stop was reached, where the last command was.
                measured = np.array([record.observation[d.measured] for d in command.dimensions])
                measured = np.clip(
                    measured.astype(float), [d.lower for d in command.dimensions],
                    [d.upper for d in command.dimensions])
                nearer = np.abs(measured - sent.values) < np.abs(before.values - sent.values)
                before = replace(before, values=np.where(nearer, measured, before.values))
                freed = False
            if record is not None:
                blended_s = self._check_jump(
                    command, sent, before, record.action[part], blended_s, period_s)
            elif self._is_stopped(sent):
                blended_s = None
            speed, before_s = self._check_steps(
                command, before, sent, speed, before_s, following, period_s)
            before = sent

    def _is_stopped(self, sent):
        # The state is told after the command.
        at = bisect_right(self._told_ns, sent.sent_ns + round(WRITING_S * NS))
        return at > 0 and self._driver.states[at - 1].state == 'stopped'

    def _check_values(self, command, sent):
        for value, dimension in zip(sent.values, command.dimensions, strict=True):
            if not dimension.lower <= value <= dimension.upper:  # NaN is neither
                self._blame(sent, f'{command.topic}: {value!r}, expected {dimension.lower} to '
                                  f'{dimension.upper}')

    def _check_jump(self, command, sent, before, asked, blended_s, period_s):
        """Check what the policy asked for, once the start-up blend is over; return how far it is.

        The blend counts the time from action to action, of a period at most.
        """
        if blended_s is None:
            return 0.0
        passed_s = (sent.stamp_ns - before.stamp_ns) / NS
        blended_s += min(max(passed_s, 0.0), period_s)
        if blended_s > self._spec.blend_time + period_s:
            jumps = np.abs(asked.astype(float) - before.values)
            for jump, dimension in zip(jumps, command.dimensions, strict=True):
                if jump > dimension.max_jump + 1e-6:
                    self._blame(sent, f'{command.topic}: sent though the policy asked for a jump '
                                      f'of {jump:.4f}, at most {dimension.max_jump}')
        return blended_s

    def _check_steps(self, command, before, sent, speed, before_s, following, period_s):
        """Check rate and acceleration; return the speed, and how long its step took.

        `following`: how many actions followed on each other up to now.

        How long the guard let a command move is known where stamps tell it; else (simulated time,
        which goes in steps, outside of ticks) a period is allowed, and the acceleration is not
        judged. Nor is that of the first actions after a hold or stop, which may have come after
        their tick began: then the tick's time was counted already.
        """
        step = sent.values - before.values
        passed_s = (sent.stamp_ns - before.stamp_ns) / NS
        known = 0.0 < passed_s and (following > 1 or not self._driver.simulated)
        dt_s = min(passed_s, period_s) if known else period_s
        # Commands are float32: two roundings in a step.
        rounding = [float(np.spacing(np.float32(max(abs(d.lower), abs(d.upper)))))
                    for d in command.dimensions]
        new = np.zeros(len(step))
        for i, dimension in enumerate(command.dimensions):
            if abs(step[i]) > dimension.max_rate * period_s * (1 + 1e-9) + rounding[i]:
                self._blame(sent, f'{command.topic}: a step of {step[i]:.6f} {dimension.unit}, '
                                  f'expected {dimension.max_rate * period_s:.6f} at most')
            if not known:
                continue
            new[i] = step[i] / dt_s
            # The beginning of a hold ends a motion at once.
            holds = not following and step[i] == 0.0
            if speed is not None and not holds and not 0 < following < SETTLED:
                change = abs(new[i] - speed[i])
                allowed = (dimension.max_acceleration * dt_s * (1 + 1e-9)
                           + rounding[i] * (1 / dt_s + 1 / before_s))
                if not following:
                    allowed += dimension.max_rate * STAMPING_S / dt_s
                if change > allowed:
                    self._blame(sent, f'{command.topic}: the speed changes by {change:.6f} '
                                      f'{dimension.unit}/s, expected {allowed:.6f} at most')
        return (new, dt_s) if known else (None, None)

    def _check_ages(self, sent, record):
        """Check how old the samples were, by their stamps and by when they were published."""
        driver = self._driver
        slack_s = WRITING_S + (0.0 if driver.load is None else driver.load.delay_s(
            sent.sent_ns - NS // 50, sent.sent_ns))
        # With that much doubt about when the node looked at its clock.
        looked_ns = sent.sent_ns - round(slack_s * NS)
        node_ns = driver.node_time_ns(looked_ns, sent.sent_ns)
        for signal in self._spec.observations:
            number = float(record.observation[PARTS[signal.name]][-1])
            sample = self._sample(signal.name, number, sent.sent_ns)
            if sample is None:
                self._blame(sent, f'made from a sample of {signal.name} that was never published')
                continue
            for what, age_s in (
                    ('stamped', (node_ns - sample.stamp_ns) / NS),
                    ('published', (looked_ns - sample.published_ns) / NS)):
                if what == 'published' and driver.simulated:
                    continue  # simulated time may stand still
                self.oldest[signal.name] = max(self.oldest[signal.name], age_s)
                if age_s > signal.max_age:
                    self._blame(sent, f'made from a sample of {signal.name} that was {what} '
                                      f'{age_s:.4f} s before, expected {signal.max_age} at most')

    def _sample(self, name, number, sent_ns):
        """Return the newest sample of this number that was published before."""
        samples = self._driver.streams[name].samples
        at = bisect_right(self._published[name], sent_ns)
        for sample in samples[max(at - 4096, 0):at][::-1]:
            if sample.number == number:
                return sample
        return None
