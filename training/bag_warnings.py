"""What is amiss in bags and what to do about it, the gravest first."""

from collections.abc import Iterator, Sequence
from typing import Any

from idql_ros import spec as specs
from training import alignment
from training.wording import counted, listed, number, percent, seconds

# More unused ticks than used ones: the spec does not fit the recording.
MOSTLY_UNUSED = 0.5
# Clipped commands are one value where the driver wanted several; beyond a fifth of them the
# limits, and not the driver, shape what is learned.
OFTEN_AT_LIMIT = 0.2
# Beyond the delay of a network and below the age at which most signals are stale.
CLOCKS_DISAGREE_S = 0.1
# A drift this large within one bag moves an observation by more than half a tick at 10 Hz.
CLOCK_DRIFT_S = 0.05
# Of messages that carry NaN or infinity; single ones cost single ticks.
MANY_NOT_FINITE = 0.001
# Fewer decisions than a single batch or two of training.
FEW_DECISIONS = 1000
# Too short for what an action does to show up within its episode.
SHORT_EPISODE = 10
# Samples of a topic that a node would not have had in time: of fewer training makes little.
OFTEN_LATE = 0.05
# A rate is slower, or as fast, within the jitter of its measurement.
SLOWER = 0.9
# Of more commands than this within a tick the one that is taken says little about the others.
MANY_COMMANDS = 3

# Bags told one by one; of hundreds the table tells.
_LISTED = 20
# Dimensions named in a warning, ...
_NAMED = 5
# ... topics with their counts, and bags.
_NAMED_TOPICS = _NAMED_BAGS = 4
_NEVER_END = {'goal_distance', 'action_cost', 'topic'}
_LEVELS = ('error', 'warning', 'note')

# Level, what it is about, text.
_Warning = tuple[str, str, str]
# A stream of the spec and what the summary says of it.
_Signals = list[tuple[specs.Signal, dict[str, Any]]]
_Commands = list[tuple[specs.Command, dict[str, Any]]]


def find(summary: dict[str, Any], spec: specs.Spec) -> list[dict[str, str]]:
    """Return what is amiss: {'level': error, warning or note, 'about': ..., 'text': ...}.

    Args:
        summary: All else of training.bag_summary.summarise.
        spec: What the bags were read with.
    """
    signals = list(zip(spec.observations, summary['signals'], strict=True))
    commands = list(zip(spec.actions, summary['commands'], strict=True))
    found = [*_about_bags(summary, spec), *_about_learning(summary, commands),
             *_about_limits(summary, commands), *_about_clocks(summary, spec, signals),
             *_about_values(signals, commands), *_about_times(summary, spec, signals, commands)]
    # The signals of a topic often have the same flaw, that of their messages.
    topics = {stream.name: stream.topic for stream, _ in (*signals, *commands)}
    merged: dict[tuple[str, str, str], list[str]] = {}
    for level, about, text in found:
        merged.setdefault((level, topics.get(about, about), text), []).append(about)
    warnings = [{'level': level, 'about': ', '.join(dict.fromkeys(names)), 'text': text}
                for (level, _, text), names in merged.items()]
    # Sorting keeps the order of importance within a level.
    return sorted(warnings, key=lambda warning: _LEVELS.index(warning['level']))


def _about_bags(summary: dict[str, Any], spec: specs.Spec) -> Iterator[_Warning]:
    totals, unused = summary['totals'], summary['unused']
    none_timed = summary['clock']['none_timed'] if summary['clock'] else []
    if none_timed:
        where = ('' if len(none_timed) == totals['bags']
                 else f' of {listed(none_timed, _NAMED_BAGS, "bag")}')
        yield ('error', 'clock', 'There is neither /clock nor a header stamp in what is observed'
               f'{where}, or none of them is filled in: no message has a time. Use '
               '`clock: received`.')
    refused = [bag for bag in summary['bags'] if bag['refused']]
    for bag in refused[:_LISTED]:
        yield ('error', bag['bag'],
               f'The bag was refused: {bag["refused"]}. Mend the bag or leave it out.')
    if len(refused) > _LISTED:
        yield ('error', 'bags', f'Refused too: {counted(len(refused) - _LISTED, "more bag")}; the '
               'table of the bags says why.')
    if not totals['bags']:
        yield 'error', 'bags', 'There is no bag.'
        return
    for bags in summary['copies'][:_LISTED]:
        yield ('warning', 'bags', f'{listed(bags, _NAMED_BAGS, "bag")} are copies of one '
               'recording: in a dataset it counts several times, in the estimate of the behaviour '
               'once. Leave out all but one.')
    if len(summary['copies']) > _LISTED:
        yield ('warning', 'bags', 'Recordings of which there are copies too: '
               f'{len(summary["copies"]) - _LISTED:,}; see `copies` in report.json.')
    # A bag that was refused may not have been read at all, and one without a clock has no message.
    untold = len(refused) + len(none_timed) == totals['bags']
    silent = () if untold else (*summary['signals'], *summary['commands'])
    for stream in silent:
        if not stream['count']:
            yield ('error', stream['name'], f'No message came on the topic {stream["topic"]}: '
                   'without it there is no decision. Check `topic` against what was recorded.')
    reason = next(iter(unused), '')
    because = f' Most often: {reason} ({counted(unused[reason], "time")}).' if reason else ''
    because += _advice(reason, summary, spec)
    if totals['decisions']:
        share = 1 - totals['decisions'] / totals['ticks'] if totals['ticks'] else 0.0
        if share > MOSTLY_UNUSED:
            yield ('warning', 'ticks', f'{percent(share)} of {counted(totals["ticks"], "tick")} '
                   f'became no decision: most of the recording is not used.{because}')
    elif totals['ticks'] or not untold:
        yield ('error', 'ticks', f'No decision came of {counted(totals["ticks"], "tick")}: there '
               f'is nothing to learn from.{because}')
    # What the reader decided, most often the same for all bags.
    noted: dict[str, list[str]] = {}
    for bag in summary['bags']:
        for note in dict.fromkeys(bag['notes']):
            noted.setdefault(note, []).append(bag['bag'])
    for note, bags in list(noted.items())[:_LISTED]:
        yield 'note', bags[0] if len(bags) == 1 else counted(len(bags), 'bag'), note
    if len(noted) > _LISTED:
        yield ('note', 'bags', f'{counted(len(noted) - _LISTED, "more note")} of the reader: see '
               '`notes` of the bags in report.json.')


def _advice(reason: str, summary: dict[str, Any], spec: specs.Spec) -> str:
    """Return what to do about a reason why ticks were not used."""
    # 'NAME (topic TOPIC): WHY', and neither a name nor a topic says why.
    stream, separator, rest = reason.partition('): ')
    reason = rest if separator else reason
    for signal, found in zip(spec.observations, summary['signals'], strict=True):
        if (separator and stream.startswith(f'{signal.name} (') and 'stale' in reason
                and spec.clock == 'received' and _wrong_by(signal, found)):
            return ' Its header stamps are of another clock; what to do is said below.'
    for known in (*spec.observations, *spec.actions) if 'not finite' in reason else ():
        if stream.startswith(f'{known.name} ('):
            return f' {_finite_advice(known)}'
    for part, advice in (
            ('too old between', ' Raise `max_age` of the signal to more than the interval between '
                                'its messages, if what is older is still true.'),
            ('stale', ' Raise `max_age` of the signal if older samples are still true, or lower '
                      '`rate`.'),
            ('in the future', ' The clocks disagree: `time: received` for the signal.'),
            ('missing', ' Check `topic` and `type` of the signal; one sent only once is '
                        '`latched: true`.'),
            ('no command', ' Where a command stays in force, raise `max_age` of the command; '
                           'where the robot was not driven, nothing is to be done.'),
            ('history', ' Lower `history`, or mend what cuts the recording.'),
            ('next period', ' Signals come less often than ticks: lower `rate`, or `tick: '
                            'timer`.')):
        if part in reason:
            return advice
    return ''


def _finite_advice(stream: specs.Stream) -> str:
    """Return what to do about numbers of a stream that are NaN or infinite."""
    names = {operation.name for operation in stream.operations}
    if 'sectors' in names:
        return ('Check `fields` and `operations`: a sector without any reading is NaN; check the '
                '`min` and `max` of `sectors` against the ranges that the scan has, and its '
                '`count`.')
    if names:
        return ('Check `fields` and `operations`: use numbers that the robot fills in, and whose '
                'result is defined (a quaternion of zeros has none).')
    return 'Check `fields`: use numbers that the robot fills in.'


def _about_learning(summary: dict[str, Any], commands: _Commands) -> Iterator[_Warning]:
    for command, found in commands:
        constant = [d['name'] for d in found['dimensions'] if d['constant']]
        if constant and len(constant) == command.size:
            yield ('warning', command.name, 'The command never changes: there is nothing to '
                   'learn. Check `topic` and `fields`, or remove it from `actions`.')
        elif constant:
            yield ('warning', command.name, f'{_never_change(constant)}: there is nothing to '
                   'learn for that. Check `fields`, or leave it out.')
    share, threshold = summary['behaviour']['open_share'], summary['behaviour']['threshold']
    if share is not None and share < threshold:
        yield ('warning', 'behaviour', 'The actions are almost a function of the observation: it '
               f'leaves open {percent(share)} of their variance (threshold {percent(threshold)}). '
               'The critic has little to choose between, and learning can hardly improve on the '
               'driver. Record more varied behaviour: other drivers, or noise added to the '
               'commands.')
    task = summary['task']
    if task is None or not summary['totals']['decisions']:
        return
    if summary['episodes']['one_reward']:
        yield ('warning', 'reward', f'All rewards are '
               f'{number(summary["episodes"]["reward"]["low"])}: no decision is better than '
               'another. Check the goal, its unit and its `tolerance`.')
    if _can_end(task) and summary['episodes']['terminal_share'] == 0:
        yield ('warning', 'reward', 'No episode ended at a true terminal, though the task has '
               'one: success was not recorded, or not seen. Check the goal, its unit and its '
               '`tolerance`, or the topic of `terminal`.')


def _never_change(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    text = ', '.join(names[:_NAMED]) + (f' and {more:,} more' if more > 0 else '')
    return f'{text} never {"changes" if len(names) == 1 else "change"}'


def _can_end(task: dict[str, Any]) -> bool:
    """Return whether a task is known to have terminals."""
    terminal, reward = task['terminal'], task['reward']
    if terminal != 'reward' or not isinstance(reward, dict):
        return terminal not in ('reward', 'never')
    parts = reward.get('weighted_sum', [reward])
    names = {name for part in parts for name in part} - {'weight'}
    # Functions of the user's own (module:function) may or may not have one.
    return any(':' not in name for name in names - _NEVER_END)


def _about_limits(summary: dict[str, Any], commands: _Commands) -> Iterator[_Warning]:
    for command, found in commands:
        share, worst, others = _worst(found, 'outside_limits', 0.0)
        if share:
            yield ('warning', command.name, f'{percent(share)} of the commands of '
                   f'{worst["name"]} lie outside its limits {number(worst["lower"])} to '
                   f'{number(worst["upper"])} {worst["unit"]}: from {number(worst["low"])} to '
                   f'{number(worst["high"])}{others}. Training takes them as at the limit, which '
                   'the robot did not do. Check `lower` and `upper`, the unit and `operations`.')
    for command, found in commands:
        share, worst, others = _worst(found, 'at_limits', OFTEN_AT_LIMIT)
        if share:
            causes = ['the driver was clipped', 'switches between extremes']
            if _only_seen(worst):
                bags = 'this bag' if summary['totals']['bags'] == 1 else 'these bags'
                causes.append(f'the limits are only what was seen in {bags}')
            yield ('warning', command.name, f'{percent(share)} of the commands of '
                   f'{worst["name"]} lie at a limit{others}: {", or ".join(causes)}. Where the '
                   'robot can do more, widen `lower` and `upper`.')


def _only_seen(dimension: dict[str, Any]) -> bool:
    """Return whether limits are the smallest and the largest command, as in a starter spec."""
    lower, upper = dimension['lower'], dimension['upper']
    # A recorded float32 may lie a rounding beside the limit.
    slack = 1e-6 * (upper - lower)
    return all(seen is not None and abs(seen - limit) <= slack for seen, limit in (
        (dimension['low'], lower), (dimension['high'], upper)))


def _worst(found: dict[str, Any], key: str, above: float) -> tuple[float, dict[str, Any], str]:
    """Return the largest share above a threshold, its dimension, and how many others there are."""
    bad = [d for d in found['dimensions'] if (d[key] or 0.0) > above]
    if not bad:
        return 0.0, {}, ''
    worst = max(bad, key=lambda dimension: dimension[key])
    return worst[key], worst, f' (and {len(bad) - 1} more of its dimensions)' if bad[1:] else ''


def _about_clocks(
    summary: dict[str, Any], spec: specs.Spec, signals: _Signals
) -> Iterator[_Warning]:
    stamped = [(signal, found) for signal, found in signals
               if signal.time == 'header' and found['stamps']]
    simulated = {signal.topic for signal, found in stamped if found['stamps']['simulated']}
    for signal, found in stamped if spec.clock == 'received' else ():
        skew = _wrong_by(signal, found)
        if not skew:
            continue
        if signal.topic not in simulated:
            advice = 'The clocks are not the same: `time: received`.'
        elif len(simulated) > 1:
            advice = ('The stamps are in simulated time, those of other topics too: '
                      '`clock: header`.')
        else:
            advice = ('The stamps look like simulated time: `clock: header` if the robot was '
                      'simulated, else `time: received`.')
        yield ('warning', signal.name, f'Header stamps lie {seconds(abs(skew))} '
               f'{"before" if skew > 0 else "after"} the log (median): ages at the ticks are '
               f'wrong by that. {advice}')
    for signal, found in stamped:
        if found['stamps']['zero']:
            yield ('warning', signal.name, f'Header stamps that are zero: '
                   f'{found["stamps"]["zero"]:,} of {found["count"]:,}. The driver does not fill '
                   'them in, and the samples count as too old. `time: received`.')
    for signal, found in stamped:
        drift = found['stamps']['most_drift']
        if drift is None or spec.clock == 'header' or signal.topic in simulated:
            continue
        apart_s = abs(drift['end_s'] - drift['begin_s'])
        if apart_s > CLOCK_DRIFT_S:
            yield ('warning', signal.name, f'Between begin and end of the bag {drift["bag"]} '
                   f'header stamps and log drift apart by {seconds(apart_s)}: late in it ages are '
                   'wrong by that. `time: received`, or synchronise the clocks before recording.')
    clock = summary['clock']
    if clock:
        yield from _about_late(clock['too_late'], signals)
    if clock and clock['set_back']:
        yield ('warning', 'clock', f'The clock was set back {counted(clock["set_back"], "time")} '
               'within a bag: the recording is cut there. Record each run on its own.')


def _about_late(too_late: dict[str, int], signals: _Signals) -> Iterator[_Warning]:
    """Tell of samples that a node would not have had in time: all topics in one warning."""
    counts = {alignment.key(signal.topic): found['count'] for signal, found in signals}
    # The topic that it matters most to first.
    late = sorted(((count / max(1, counts.get(topic, 0)), topic, count)
                   for topic, count in too_late.items() if count), reverse=True)
    if not late:
        return
    parts = [f'{topic} {count:,} of {counts.get(topic, 0):,}' for _, topic, count in late]
    yield ('note' if late[0][0] < OFTEN_LATE else 'warning', 'late samples',
           # A node may or may not have by the tick what is stamped exactly on it.
           'Samples that were logged after the tick that their stamp belongs to (or is): '
           f'{listed(parts, _NAMED_TOPICS, "topic")}. Here they are used; a node on the robot '
           'would not have had them in time. Use `tick: arrival`, which waits for the last '
           'signal of each period, or lower `rate`.')


def _wrong_by(signal: specs.Signal, found: dict[str, Any]) -> float:
    """Return by how many s the stamps of a signal differ from the log; 0.0 where it is little."""
    if signal.time == 'received' or not found['stamps'] or not found['stamps']['skew_s']:
        return 0.0
    skew_s = found['stamps']['skew_s']['p50']
    return skew_s if abs(skew_s) > CLOCKS_DISAGREE_S else 0.0


def _about_values(signals: _Signals, commands: _Commands) -> Iterator[_Warning]:
    for stream, found in (*signals, *commands):
        if found['unreadable']:
            because = f' ({"; ".join(found["unreadable_because"])})'
            yield ('warning', stream.name, 'Messages that could not be read: '
                   f'{found["unreadable"]:,} of {found["count"]:,}'
                   f'{because if found["unreadable_because"] else ""}. Check `fields`.')
    for stream, found in (*signals, *commands):
        share, worst, others = _worst(found, 'not_finite', MANY_NOT_FINITE)
        if share:
            yield ('warning', stream.name, f'{percent(share)} of the values of {worst["name"]} '
                   f'are NaN or infinite{others}: such ticks are not used. '
                   f'{_finite_advice(stream)}')
    for signal, found in signals:
        constant = [d['name'] for d in found['dimensions'] if d['constant']]
        if constant and not signal.latched:
            yield ('note', signal.name, f'{_never_change(constant)}: that is no input to learn '
                   'from. Check `fields`, or leave it out.')


def _about_times(
    summary: dict[str, Any], spec: specs.Spec, signals: _Signals, commands: _Commands
) -> Iterator[_Warning]:
    for stream, found in (*signals, *commands):
        gap = found['longest_gap']
        if gap:
            yield ('note', stream.name, f'{counted(found["gaps"], "gap")} longer than '
                   f'{seconds(found["gap_s"])}, the longest {seconds(gap["length_s"])} in '
                   f'{gap["bag"]} {seconds(gap["at_s"])} after its first message: the recording '
                   'is cut where a tick falls into one. Raise `max_age` only if what is older is '
                   'still true.')
    for stream, found in (*signals, *commands):
        stamps = found['stamps']
        if stamps is None or 2 * stamps['zero'] > found['count'] or (
                isinstance(stream, specs.Signal) and stream.time == 'received'):
            continue
        if stamps['repeated'] or stamps['backward']:
            yield ('note', stream.name, f'Header stamps repeated: {stamps["repeated"]:,}, going '
                   f'backward: {stamps["backward"]:,}, dropped as overtaken: '
                   f'{stamps["overtaken"]:,}. Look for two publishers, or a sensor read twice.')
    totals = summary['totals']
    if totals['ties']:
        yield ('note', 'ticks', f'Commands logged in the very nanosecond of a tick: '
               f'{totals["ties"]:,}. They count as given before it: the log is in simulated time. '
               'Record without `--use-sim-time` and convert with `clock: header`.')
    if 0 < totals['decisions'] < FEW_DECISIONS or totals['episodes'] == 1:
        yield ('note', 'episodes', f'{counted(totals["decisions"], "decision")} in '
               f'{counted(totals["episodes"], "episode")}: little to learn from. Record more.')
    for signal, found in signals:
        rate = found['rate_hz']
        if rate is not None and rate < SLOWER * spec.rate and not signal.latched:
            effect = ('ticks come only when it comes' if spec.tick == 'arrival'
                      else 'several ticks see the same sample')
            yield ('note', signal.name, f'It comes at {number(rate)} Hz, ticks at '
                   f'{number(spec.rate)} Hz: {effect}. Lower `rate`.')
    for command, found in commands:
        rate = found['rate_hz']
        if rate is None:
            continue
        rates = f'It comes at {number(rate)} Hz, ticks at {number(spec.rate)} Hz'
        if rate > MANY_COMMANDS * spec.rate and command.rule != 'mean':
            yield ('note', command.name, f'{rates}: of {number(rate / spec.rate)} commands the '
                   'last one stands for all. `rule: mean` for a velocity or an effort, or raise '
                   '`rate`.')
        usual_s = found['interval_s']['p95'] if found['interval_s'] else 0.0
        if rate < SLOWER * spec.rate and usual_s > command.max_age:
            yield ('note', command.name, f'{rates}: ticks without one are not used. Raise '
                   f'`max_age` above {seconds(usual_s)} if a command stays in force until the '
                   'next one, or lower `rate`.')
    lengths = summary['episodes']['length']
    if lengths and lengths['median'] < SHORT_EPISODE:
        yield ('note', 'episodes', f'Half of the episodes are shorter than {SHORT_EPISODE} '
               f'decisions (median {number(lengths["median"])}): what an action leads to is cut '
               'off. See why ticks are not used.')
