"""What a replay found, as text and as a picture."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idql_ros import decision_record
from idql_ros.policy import Policy
from idql_ros.spec import Spec
import matplotlib
from matplotlib.figure import Figure
import numpy as np
from training.replay_decisions import Decisions, TOLERANCE, VALUES
from training.replay_messages import Commands, Observations
from training.wording import counted, listed, seconds

# Pictures go to files; no screen is needed.
matplotlib.use('Agg')


@dataclass(frozen=True)
class Replay:
    """What a replay found."""

    node: str
    spec: Spec
    policies: list[Policy]
    decisions: Decisions
    commands: list[Commands]
    observations: Observations

    @property
    def passed(self) -> bool:
        """Return whether everything is equal within the tolerances."""
        return self.decisions.first_beyond is None and not any(
            command.differing for command in self.commands)


def text(replay: Replay) -> str:
    """Return what was found as text."""
    decisions, observations = replay.decisions, replay.observations
    span_s = decisions.rows[-1][0] - decisions.rows[0][0]
    lines = [f'{counted(decisions.count, "decision")} of {replay.node} in {seconds(span_s)}; '
             f'N {_counts(decisions.candidates)}; {_counts(decisions.extractions)}; '
             f'seed {_counts(decisions.seeds)}']
    lines += [f'policy {policy.path}, sha256 {decision_record.short_digest(policy.digest)}, '
              f'{policy.provider}' for policy in replay.policies]
    lines += ['', f'{"what":22} {"bit for bit":>12} {"worst error":>12} {"allowed":>8}']
    lines += [f'{name:22} {kind.equal:12,} {kind.worst:12.1e} {TOLERANCE:8.0e}  '
              f'{"FAIL, " + format(kind.beyond, ",") + " beyond" if kind.beyond else "ok"}'
              for name, kind in decisions.kinds.items()]
    lines += ['errors of the action in network units, of the others as a share of the magnitude '
              'of Q (distance: of its own), or of 1', '']
    if decisions.ties:
        lines.append(f'{counted(decisions.ties, "tie")}: another candidate is as good to within '
                     'the tolerance, and was chosen')
    for command in replay.commands:
        lines.append(_command_text(command))
    lines.append(
        f'observations: not made again, {observations.why_not}' if observations.why_not
        else f'observations: {observations.made_again:,} of {decisions.count:,} are made again '
        "from the bag's messages")
    if decisions.first_unequal is not None:
        lines.append(f'first difference: {decisions.first_unequal}')
    if decisions.first_beyond not in (None, decisions.first_unequal):
        lines.append(f'first beyond the tolerance: {decisions.first_beyond}')
    lines.append(_verdict(replay))
    return '\n'.join(lines)


def _verdict(replay: Replay) -> str:
    if not replay.passed:
        return 'NOT equal'
    decisions = replay.decisions
    if decisions.equal == decisions.count:
        return f'all {decisions.count:,} equal bit for bit'
    return f'equal within the tolerances, {decisions.equal:,} of {decisions.count:,} bit for bit'


def _command_text(command: Commands) -> str:
    if not command.there:
        return f'commands on {command.topic}: not compared, the topic is not in the bag'
    told = f'commands on {command.topic}: {command.found:,} found as the guard let them through'
    if command.outside:
        told += f', {command.outside:,} before the first or after the last in the bag'
    if command.differing:
        told += (f', {len(command.differing):,} NOT as recorded, the first of tick '
                 f'{command.differing[0]} ns')
    return told


def _counts(counter: Counter[Any]) -> str:
    if len(counter) == 1:
        return str(*counter)
    return listed([f'{key} ({count:,})' for key, count in counter.most_common()], 5, 'other')


def draw(replay: Replay, target: Path) -> None:
    """Write a picture of the recorded values over time; grey is where the guard let none pass."""
    rows = np.array(replay.decisions.rows, np.float64)
    time_s = rows[:, 0] - rows[0, 0]
    columns = {name: rows[:, 1 + i] for i, name in enumerate((*VALUES, 'N'))}
    panels = [(('q', 'v', 'q_mean'), 'Q, V'), (('q_spread',), 'spread of Q'),
              (('distance',), 'distance from the data'), (('N',), 'N')]
    panels = [(names, label) for names, label in panels
              if label == 'Q, V'  # also where nothing of it is finite: it says when
              or np.isfinite(columns[names[0]]).any() and (
                  label != 'N' or len(replay.decisions.candidates) > 1)]
    figure = Figure(figsize=(9, 0.8 + 1.7 * len(panels)), layout='constrained')
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    # The ticks of two periods may be almost two periods apart.
    apart_s = 2.0 / replay.spec.rate
    # No line through a time without decisions.
    breaks = np.flatnonzero(np.diff(time_s) > apart_s) + 1
    stops = [(time_s[i - 1], time_s[i]) for i in breaks]
    refused = time_s[rows[:, -1] == 0]
    labels = {'q': 'Q of the action', 'v': 'V', 'q_mean': 'mean Q of the candidates'}
    for axis, (names, label) in zip(axes, panels, strict=True):
        for name in names:
            axis.plot(np.insert(time_s, breaks, np.nan), np.insert(columns[name], breaks, np.nan),
                      lw=0.9, label=labels.get(name),
                      drawstyle='steps-post' if name == 'N' else 'default')
        for begin_s, end_s in stops:
            axis.axvspan(begin_s, end_s, color='0.85', lw=0)
        for moment_s in refused:
            axis.axvline(moment_s, color='tab:red', lw=0.8, alpha=0.5)
        axis.set_ylabel(label)
        axis.spines[['top', 'right']].set_visible(False)
    axes[0].legend(fontsize=8, loc='center left', bbox_to_anchor=(1, 0.5), frameon=False)
    told = ['grey: no decision'] * bool(stops) + ['red: the guard refused it'] * bool(len(refused))
    axes[0].set_title(', '.join([f'{replay.node}, {replay.spec.name}', *told]).replace('$', r'\$'),
                      fontsize=9, loc='left')
    axes[-1].set_xlabel('time (s)')
    figure.savefig(target, dpi=100)
