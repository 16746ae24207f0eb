"""How a runner does, as levels, sentences and numbers: what /diagnostics says. Pure: no ROS."""

from __future__ import annotations

import dataclasses
from typing import Any

from idql_ros.latency import Window
from idql_ros.message import NS
from idql_ros.runner import Runner

# As in diagnostic_msgs/DiagnosticStatus.
OK, WARN, ERROR = range(3)

# The real control rate as a share of the trained one: outside, it is told.
RATE_SHARE = (0.8, 1.2)
_LEAST_INTERVALS = 10
_STATE_LEVELS = {'acting': OK, 'holding': WARN, 'ramping': ERROR, 'stopped': ERROR}


@dataclasses.dataclass(frozen=True)
class Status:
    """One part of the whole."""

    level: int
    name: str
    message: str
    values: dict[str, Any]


class Health:
    """Tells how a runner does, once in a while; rates count from one telling to the next."""

    def __init__(self, runner: Runner, steady_ns: int) -> None:
        """Begin with a runner that was just started."""
        self._runner = runner
        self._told_ns = steady_ns
        self._messages = dict.fromkeys(runner.received, 0)

    def ladder(self, enabled: bool) -> Status:
        """Return the state of the ladder and why, and what the last decision was told for."""
        status, output = self.state(enabled), self._runner.output
        if status.level != OK:
            return status
        told = [*(f'dimension {x.dimension}: {x.asked:.6g} held to {x.sent:.6g} ({x.limit})'
                  for x in output.limited), *output.warnings]
        return dataclasses.replace(status, level=WARN, message='; '.join(told)) if told else status

    def state(self, enabled: bool) -> Status:
        """Return the state of the ladder and why."""
        runner = self._runner
        output = runner.output
        policy = runner.policy
        values = {
            'state': 'waiting' if output is None else output.state,
            'enable_commands': enabled, 'blocked': '; '.join(runner.blocked),
            **runner.counts,
            'candidates': runner.budget.candidates, 'provider': policy.provider,
            'policy': policy.path, 'sha256': policy.digest,
            'provenance': policy.provenance_text}
        if output is None or (runner.waiting and not output.reasons):
            return Status(WARN, 'policy', 'waiting for the first tick', values)
        values |= {f'limit of dimension {limited.dimension}':
                   f'{limited.limit}: {limited.asked:.6g} held to {limited.sent:.6g}'
                   for limited in output.limited}
        if output.state != 'acting':
            return Status(_STATE_LEVELS[output.state], 'policy',
                          f'{output.state}: {"; ".join(output.reasons)}', values)
        return Status(OK, 'policy', 'acting' if enabled else
                      'acting, dry run: enable_commands is false', values)

    def streams(self, now_ns: int, steady_ns: int) -> list[Status]:
        """Return of each signal its rate, age and losses since the last telling."""
        runner = self._runner
        seconds = max((steady_ns - self._told_ns) / NS, 1e-9)
        self._told_ns = steady_ns
        statuses = []
        for signal, age_s, reason in zip(
                runner.policy.spec.observations, runner.observer.ages_s(now_ns),
                runner.observer.reasons(now_ns), strict=True):
            received = runner.received[signal.name]
            new = received.messages - self._messages[signal.name]
            self._messages[signal.name] = received.messages
            statuses.append(Status(
                ERROR if reason else OK, f'signal {signal.name}',
                reason or f'{new / seconds:.1f} Hz', {
                    'topic': signal.topic, 'rate': f'{new / seconds:.2f}',
                    'age': f'{age_s:.4f}', 'messages': received.messages,
                    'unusable': received.unusable,
                    'overtaken': runner.observer.overtaken[signal.name]}))
        return statuses

    def timing(self) -> Status:
        """Return the latency of each stage, and the real rate against the trained one."""
        runner = self._runner
        values: dict[str, Any] = {'trained rate': runner.policy.spec.rate}
        for stage, window in runner.latencies.items():
            values[stage] = _milliseconds(window)
        values |= {'missed ticks': runner.counts['missed'],
                   'dropped results': runner.counts['dropped'],
                   'pauses of the executor': runner.counts['pauses']}
        if len(runner.intervals) < _LEAST_INTERVALS:
            return Status(OK, 'timing', 'too few ticks to tell', values)
        # A simulation whose clock stands still gives none.
        rate = 1.0 / max(runner.intervals.mean(), 1e-9)
        share = rate / runner.policy.spec.rate
        values |= {'real rate': f'{rate:.3f}', 'share of the trained rate': f'{share:.3f}'}
        if RATE_SHARE[0] <= share <= RATE_SHARE[1]:
            return Status(OK, 'timing', f'{rate:.2f} Hz', values)
        return Status(
            WARN, 'timing', f'the real rate is {rate:.2f} Hz, {share:.2f} of the trained rate',
            values)


def _milliseconds(window: Window) -> str:
    found = window.percentiles()
    if found is None:
        return ''
    return ' '.join(f'{name} {1e3 * getattr(found, name):.2f}'
                    for name in ('p50', 'p95', 'p99', 'max')) + ' ms'
