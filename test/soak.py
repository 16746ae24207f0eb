"""Policy and simulation at 50 Hz, with random faults: `make soak MINUTES=10`.

sim_node simulates `injection.Plant` in simulated time; its streams pass through this process,
where faults happen to them, to policy_node. Which faults, and when, follows from the seed. Exit
code 1: something is not as it has to be.
"""

import argparse
from dataclasses import dataclass, field
import json
import os
from pathlib import Path
import signal
import sys
import tempfile
import time

import conftest  # noqa: F401 (a ROS domain of its own, before rclpy is imported)
import faults
import harness
import injection
from injection import Driver, Load, NS
import numpy as np
from std_srvs.srv import SetBool, Trigger
from training.files import write_all
from verdict import Verdict

# How long a fault lasts, and how long it is quiet after it, s.
LASTS_S = (0.1, 1.5)
QUIET_S = (2.0, 4.0)
# The memory of the first so many seconds is no growth.
SETTLING_S = 60.0
SHARED_MEMORY = Path('/dev/shm')
LARGEST_GROWTH_MB = 5.0


@dataclass
class Report:
    """What a soak found."""

    seconds: float = 0.0
    seed: int = 0
    # Faults by name, and how often each happened.
    faults: dict[str, int] = field(default_factory=dict)
    ticks_due: int = 0
    commands: int = 0
    actions: int = 0
    late: int = 0
    quiet_ticks_due: int = 0
    quiet_actions: int = 0
    quiet_late: int = 0
    unsafe: int = 0
    unsafe_texts: list[str] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    resident_mb: list[float] = field(default_factory=list)
    memory_growth_mb: float = 0.0
    resident_growth_mb: float = 0.0
    threads: list[int] = field(default_factory=list)
    shared_memory_left: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Soak:
    """Both nodes, this side of them, and what goes wrong."""

    def __init__(self, driver, node, simulation, random):
        """Take them, running."""
        self.driver, self.node, self.simulation = driver, node, simulation
        self.random = random
        driver.load = Load(node.child.pid)

    def faults(self):
        """Return the faults: name -> what makes one that lasts so many seconds."""
        def stream(deliver=None, spoil=None):
            def inject(seconds):
                chosen = self.driver.streams[self.random.choice(['joints', 'base'])]
                chosen.deliver, chosen.spoil = deliver and deliver(), spoil
                self.driver.run_for(seconds)
                chosen.mend()
            return inject

        def joints(spoil):
            def inject(seconds):
                self.driver.streams['joints'].spoil = spoil
                self.driver.run_for(seconds)
                self.driver.streams['joints'].mend()
            return inject

        return {
            'stream stops': stream(lambda: faults.withhold),
            'stream slows down to 20 Hz': stream(lambda: faults.every(5)),
            'stream slows down to 4 Hz': stream(lambda: faults.every(25)),
            'stream in bursts of 6': stream(lambda: faults.in_bursts(6)),
            'NaN': joints(faults.not_finite),
            'a number is missing': joints(faults.too_short),
            'a joint has another name': joints(faults.misnamed_joint),
            'joints of another robot': joints(faults.other_joints),
            'stamps jump back by 10 s': stream(spoil=faults.shifted(-10.0)),
            'stamps jump forward by 10 s': stream(spoil=faults.shifted(10.0)),
            'publisher restarts': self.restart,
            'two busy processes': self.starve,
            'SIGSTOP, SIGCONT of the node': lambda s: self.stop_process(self.node, s),
            'SIGSTOP, SIGCONT of the simulation': lambda s: self.stop_process(
                self.simulation, s),
            'simulation begins anew, /clock jumps': self.reset_simulation,
            'reload of a corrupt file': self.reload,
            'e-stop': self.estop,
        }

    def restart(self, seconds):
        """Restart the publisher of a stream."""
        self.driver.connect(self.random.choice(['joints', 'base']))
        self.driver.run_for(seconds)

    def starve(self, seconds):
        """Take processor time away."""
        with faults.busy_processes(2):
            self.driver.run_for(seconds)

    def stop_process(self, process, seconds):
        """Stop a process, and let it go on."""
        time.sleep(self.random.uniform(0.0, 0.04))
        process.child.send_signal(signal.SIGSTOP)
        self.driver.run_for(seconds)
        process.child.send_signal(signal.SIGCONT)

    def reset_simulation(self, seconds):
        """Begin the next episode: simulated time goes on elsewhere."""
        self.driver.call(Trigger, '/sim_node/reset', Trigger.Request())
        self.driver.run_for(seconds)

    def reload(self, seconds):
        """Reload a file that is cut off."""
        self.driver.ask(Trigger, '/policy_node/reload', Trigger.Request())
        self.driver.run_for(seconds)

    def estop(self, seconds):
        """Engage the emergency stop, release it, resume."""
        def call(engaged):
            self.driver.call(SetBool, '/policy_node/estop', SetBool.Request(data=engaged))

        self.driver.at_once.append((time.time_ns(), 2**63))
        call(True)
        self.driver.run_for(seconds)
        call(False)
        self.driver.at_once[-1] = (self.driver.at_once[-1][0], time.time_ns())
        self.driver.call(Trigger, '/policy_node/resume', Trigger.Request())


def run(seconds, seed, folder, say=print, settling_s=SETTLING_S):
    """Run both nodes for some time; return the report."""
    report = Report(seconds=seconds, seed=seed)
    spec = injection.robot_spec('arrival')
    policy = harness.untrained(spec, folder / 'policy.onnx')
    broken = folder / 'broken.onnx'
    broken.write_bytes(policy.read_bytes()[:5000])
    # Others, that were killed, may have left some that are used again.
    before = set(SHARED_MEMORY.iterdir())
    driver = Driver(spec, simulated=True, relay=True)
    parameters = {
        'model': policy, 'autostart': True, 'enable_commands': True, 'seed': 3,
        'use_sim_time': True, 'clock_timeout': faults.CLOCK_TIMEOUT_S}
    try:
        with harness.running(
                'idql_ros.sim_node', {'spec': policy, 'environment': 'injection:Plant'},
                folder / 'sim_node.log',
                remap=[(s.topic, f'sim/{s.topic}') for s in spec.observations]) as simulation, \
            harness.running(
                faults.NODE, parameters, folder / 'policy_node.log') as node:
            try:
                driver.until_acting(limit_s=60.0)
            except TimeoutError as error:
                raise RuntimeError(f'{error}:\n{node.output()}{simulation.output()}') from error
            soak = Soak(driver, node, simulation, np.random.default_rng(seed))
            faults.set_model(driver, broken)
            mapped = _go_on(soak, report, say, settling_s)
            for name, process in (('policy_node', node), ('sim_node', simulation)):
                code = process.end()
                if code != 0 or 'Traceback' in process.output():
                    report.problems.append(
                        f'{name} ended with {code}: {process.output()[-2000:]}')
    finally:
        driver.close()
    # Other nodes of this process, of tests before, may have opened them too, and still live.
    in_use = before | injection.shared_memory(os.getpid())
    report.shared_memory_left = sorted(str(path) for path in mapped - in_use if path.exists())
    _judge(driver, report)
    return report


def _go_on(soak, report, say, settling_s):
    """Inject faults until the time is over; return the files of shared memory that were used."""
    driver, random, pid = soak.driver, soak.random, soak.node.child.pid
    known = soak.faults()
    report.faults = dict.fromkeys(known, 0)
    quiet, begun_s, told_s = [], time.monotonic(), 0.0
    begin_ns = time.time_ns()
    names = []
    while (passed_s := time.monotonic() - begun_s) < report.seconds:
        # Each comes once before any comes again.
        names = names or list(random.permutation(list(known)))
        name = names.pop()
        report.faults[name] += 1
        known[name](random.uniform(*LASTS_S))
        try:
            driver.until_acting()
        except TimeoutError as error:
            report.problems.append(
                f'after {passed_s:.0f} s, {name}: {error}: {driver.states[-1].text}')
            break
        quiet_ns = time.time_ns()
        driver.run_for(random.uniform(*QUIET_S))
        quiet.append((quiet_ns, time.time_ns()))
        private_mb, resident_mb = injection.memory_mb(pid)
        if passed_s >= settling_s or not report.memory_mb:
            report.memory_mb.append(private_mb)
            report.resident_mb.append(resident_mb)
            report.threads.append(injection.count(pid, 'task'))
        if passed_s - told_s > 20.0 or not told_s:
            told_s = passed_s or 1e-9
            say(f'{passed_s:.0f} of {report.seconds:.0f} s: {sum(report.faults.values())} '
                f'faults, {private_mb:.1f} MB')
    _count(driver, report, begin_ns, time.time_ns(), quiet)
    return injection.shared_memory(pid) | injection.shared_memory(soak.simulation.child.pid)


def _count(driver, report, begin_ns, end_ns, quiet):
    """Count ticks and what answered them, in all and in the quiet stretches."""
    period_ns = round(NS / driver.spec.rate)
    told = {}
    for published_ns, value in driver.clocks:
        told.setdefault(value, published_ns)

    def due(begin_ns, end_ns):
        values = [v for published_ns, v in driver.clocks if begin_ns < published_ns <= end_ns]
        # Another episode begins elsewhere.
        steps = [b - a for a, b in zip(values, values[1:], strict=False) if 0 < b - a < NS]
        return sum(steps) // period_ns

    def acted(begin_ns, end_ns):
        actions, others = driver.heard(begin_ns, end_ns)
        late = sum(a.sent_ns - told.get(a.stamp_ns, a.sent_ns) > period_ns for a in actions)
        return len(actions), late, len(others)

    report.ticks_due = due(begin_ns, end_ns)
    report.actions, report.late, others = acted(begin_ns, end_ns)
    report.commands = report.actions + others
    for stretch in quiet:
        report.quiet_ticks_due += due(*stretch)
        actions, late, _ = acted(*stretch)
        report.quiet_actions += actions
        report.quiet_late += late


def _judge(driver, report):
    """Say what is not as it has to be."""
    found = Verdict(driver).faults
    report.unsafe = len(found)
    report.unsafe_texts = [fault.text for fault in found[:20]]
    # The first reading is that of the beginning, the second the first one after settling.
    settled = report.memory_mb[1:], report.resident_mb[1:]
    report.memory_growth_mb, report.resident_growth_mb = (
        values[-1] - values[0] if values else 0.0 for values in settled)
    for wrong, text in (
            (report.unsafe, f'{report.unsafe} unsafe values: {report.unsafe_texts[:3]}'),
            (report.memory_growth_mb >= LARGEST_GROWTH_MB,
             f'memory grew by {report.memory_growth_mb:.1f} MB'),
            (len(set(report.threads)) > 1, f'threads: {report.threads}'),
            (report.shared_memory_left,
             f'shared memory was left: {report.shared_memory_left}'),
            (not report.actions, 'no action was sent')):
        if wrong:
            report.problems.append(text)


def table(report):
    """Return a report as Markdown."""
    rows = [
        ('time, faults, seed', f'{report.seconds:.0f} s, {sum(report.faults.values())}, '
                               f'{report.seed}'),
        ('ticks due, actions sent, late, all commands',
         f'{report.ticks_due}, {report.actions}, {report.late}, {report.commands}'),
        ('the same between the faults',
         f'{report.quiet_ticks_due}, {report.quiet_actions}, {report.quiet_late}'),
        ('unsafe values sent', report.unsafe),
        ('private memory at first, settled, at last, growth, MB', ', '.join(
            f'{value:.1f}' for value in (*report.memory_mb[:2], report.memory_mb[-1],
                                         report.memory_growth_mb))),
        ('growth of the resident set, MB', f'{report.resident_growth_mb:.1f}'),
        ('threads', ', '.join(map(str, sorted(set(report.threads))))),
        ('files in shared memory left', len(report.shared_memory_left)),
        ('not as it has to be', '; '.join(report.problems) or 'nothing')]
    return '\n'.join(['| | |', '|---|---|', *(f'| {what} | {found} |' for what, found in rows)])


def main(arguments=None):
    """Run the soak and write its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--minutes', type=float, default=10.0)
    parser.add_argument('--seed', type=int, default=0, help='of the faults')
    parser.add_argument('--output', type=Path, default=Path('faults_output'))
    chosen = parser.parse_args(arguments)
    chosen.output.mkdir(parents=True, exist_ok=True)
    print(f'seed {chosen.seed}')
    with tempfile.TemporaryDirectory() as folder:
        report = run(60.0 * chosen.minutes, chosen.seed, Path(folder))
    injected = '\n'.join(f'| {name} | {times} |' for name, times in report.faults.items())
    text = f'# Soak\n\n{table(report)}\n\n| fault | times |\n|---|---|\n{injected}\n'
    write_all({chosen.output / 'soak.md': text.encode(),
               chosen.output / 'soak.json': json.dumps(vars(report), indent=1).encode()})
    print(text)
    return 1 if report.problems else 0


if __name__ == '__main__':
    sys.exit(main())
