"""What a conversion of bags found, as numbers: the content of the report, in plain data.

Where several bags have a stream, its percentiles are the medians of the bags', each with the
weight of its messages; counts are sums, and what is longest is that of the worst bag.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from idql_ros import spec as specs
import numpy as np
from training import bag_warnings, behaviour
from training.distribution import histogram, LARGEST, spread
from training.page import plain

# Numbers of an observation or an action that are shown.
PANELS = 24
# Texts about unreadable messages, of hundreds of bags.
_LISTED = 20
# Rewards that differ by less, relatively, differ by what rounding to float32 makes of one reward.
_SAME_REWARD = 1e-5
# The behaviour is estimated from at most so many decisions.
_ESTIMATE_ROWS = 4000
# Seconds: no clock set to the date stamps a time in the first months of 1970; simulators do.
SIMULATED_BEFORE_S = 1e7
# Two clocks of the same time differ in speed by parts in a million; simulators by parts in a
# hundred and more.
SIMULATED_SPEED = 0.02

# (bag's account, a stream's account) of a bag that has messages of the stream.
_Found = list[tuple[dict[str, Any], dict[str, Any]]]


@dataclass
class BagResult:
    """What became of one bag, and what is drawn of it."""

    # BagAccount.to_dict()
    account: dict[str, Any]
    # Stream -> (k, 1 + size), time in s and numbers; 'decisions' -> (k, O + A + 1), observation,
    # action and reward; all evenly chosen.
    samples: dict[str, np.ndarray]
    # Length in decisions, return, whether it ended at a true terminal.
    episodes: list[tuple[int, float, bool]]

    def rows(self, name: str, width: int) -> np.ndarray:
        """Return samples (k, width) float64; what cannot be drawn is NaN."""
        rows = np.asarray(self.samples.get(name, ()), np.float64).reshape(-1, width)
        return np.where(np.abs(rows) <= LARGEST, rows, np.nan)


def summarise(
    results: Sequence[BagResult], spec: specs.Spec, task: dict[str, Any] | None
) -> dict[str, Any]:
    """Return everything that a report says, as strict JSON's plain data; times in s.

    Args:
        results: One for each bag.
        spec: What they were read with.
        task: What rewards and ends are, {'reward': ..., 'terminal': ...}; None: not asked for.
    """
    accounts = [result.account for result in results]
    episodes = [episode for result in results for episode in result.episodes]
    unused: Counter[str] = Counter()
    for account in accounts:
        unused.update(account['unused'])
    width = spec.observation_size + spec.action_size + 1
    drawn = [result.rows('decisions', width) for result in results]
    decisions = np.concatenate([np.zeros((0, width)), *drawn])
    reward = spread(decisions[:, -1])
    first_of = _first_of_copies(accounts)
    signals = [_stream(stream, accounts) for stream in spec.observations]
    commands = [_stream(stream, accounts) for stream in spec.actions]
    summary: dict[str, Any] = {
        'spec': {'name': spec.name, 'rate_hz': spec.rate, 'tick': spec.tick, 'clock': spec.clock},
        'task': task,
        'totals': {
            'bags': len(results),
            'refused': sum(bool(account['refused']) for account in accounts),
            **{key: sum(account[key] for account in accounts)
               for key in ('duration_s', 'messages', 'ticks', 'decisions', 'ties')},
            'episodes': len(episodes)},
        'unused': dict(unused.most_common()),
        'clock': _clock(accounts),
        # The names of bags that are one recording.
        'copies': [[accounts[k]['bag'] for k in range(len(accounts)) if first_of[k] == first]
                   for first in sorted({first for k, first in enumerate(first_of) if k != first})],
        'episodes': {
            'terminal_share': _share(sum(end for _, _, end in episodes), len(episodes)),
            'length': spread(np.array([length for length, _, _ in episodes], float)),
            'return': spread(np.array([value for _, value, _ in episodes], float)),
            'reward': reward,
            'one_reward': _one_reward(reward, episodes)},
        'signals': signals,
        'commands': commands,
        'observation_histograms': _histograms(spec.observations, signals, 0, decisions),
        'action_histograms': _histograms(
            spec.actions, commands, spec.observation_size, decisions),
        # A copy is no second opinion: at its observations the actions are the same.
        'behaviour': _behaviour(
            accounts, [rows if first == k else rows[:0]
                       for k, (first, rows) in enumerate(zip(first_of, drawn, strict=True))],
            spec),
        'bags': [{**result.account, 'episodes': len(result.episodes)} for result in results],
    }
    return plain(summary | {'warnings': bag_warnings.find(summary, spec)})


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _first_of_copies(accounts: Sequence[dict[str, Any]]) -> list[int]:
    """Return for each bag the first one that has the same files; most often itself."""
    firsts: dict[tuple[str, ...], int] = {}
    return [
        # A bag whose files were not read is nobody's copy. Their names tell nothing.
        firsts.setdefault(tuple(sorted(account['files'].values())), k) if account['files'] else k
        for k, account in enumerate(accounts)]


def _one_reward(
    reward: dict[str, Any] | None, episodes: Sequence[tuple[int, float, bool]]
) -> bool:
    """Return whether all rewards are equal, beside rounding."""
    if reward is None:
        return False
    low, high = float(reward['low']), float(reward['high'])
    slack = _SAME_REWARD * max(abs(low), abs(high))
    if high - low > slack:
        return False
    # One that is not among those drawn, such as that of the only goal, shows in the return of its
    # episode.
    return all(abs(value - low * length) <= slack * length for length, value, _ in episodes)


def _weighted_median(values: Iterable[tuple[float | None, float]]) -> float | None:
    """Return the median of (value, weight); None without any value."""
    known = sorted((value, weight) for value, weight in values
                   if value is not None and weight > 0)
    if not known:
        return None
    passed = np.cumsum([float(weight) for _, weight in known])
    return known[min(int(np.searchsorted(passed, passed[-1] / 2)), len(known) - 1)][0]


def _percentiles(parts: Sequence[tuple[dict[str, float] | None, float]]) -> dict | None:
    """Return the percentiles of all bags from those of each and their weights."""
    known = [(percentiles, weight) for percentiles, weight in parts if percentiles]
    return {key: _weighted_median([(percentiles[key], weight) for percentiles, weight in known])
            for key in known[0][0]} if known else None


def _clock(accounts: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return what is known of the headers' clock; None where ticks do not go by it."""
    told = [account['clock'] for account in accounts if account['clock']]
    if not told:
        return None
    too_late: Counter[str] = Counter()
    for clock in told:
        too_late.update(clock['too_late'])
    speeds = [clock['speed'] for clock in told if 'speed' in clock]
    return {
        'sources': dict(Counter(clock['source'] for clock in told)),
        'speed_median': float(np.median(speeds)) if speeds else None,
        'speed_lowest': min(speeds, default=None), 'speed_highest': max(speeds, default=None),
        **{key: sum(clock[key] for clock in told)
           for key in ('set_back', 'out_of_order', 'without_time')},
        # Bags without any moment of that clock, and therefore without messages.
        'none_timed': [
            account['bag'] for account in accounts if account['clock'].get('without_time')
            and not (account['refused'] or account['messages'])],
        'too_late': dict(too_late)}


def _stream(stream: specs.Stream, accounts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what is known of a stream in all bags."""
    found = [(bag, account) for bag in accounts for account in bag['streams']
             if account['name'] == stream.name and account['count']]
    gaps = [{**gap, 'bag': bag['bag']} for bag, a in found for gap in a['gaps_listed']]
    return {
        'name': stream.name, 'topic': stream.topic, 'type': stream.type, 'bags': len(found),
        **{key: sum(a[key] for _, a in found) for key in ('count', 'unreadable', 'gaps')},
        'unreadable_because': sorted({a['unreadable_because'] for _, a in found
                                      if a['unreadable_because']})[:_LISTED],
        'rate_hz': _weighted_median([(a['rate_hz'], a['count']) for _, a in found]),
        'interval_s': _percentiles([(a['interval_s'], a['count']) for _, a in found]),
        # None: it may be silent.
        'gap_s': next((a['gap_s'] for _, a in found), None),
        'longest_gap': max(gaps, key=lambda gap: gap['length_s'], default=None),
        'age_at_ticks_s': _percentiles([(a['age_at_ticks_s'], a['count']) for _, a in found]),
        'stamps': _stamps(found),
        'dimensions': [_dimension(stream, i, found) for i in range(stream.size)]}


def _stamps(found: _Found) -> dict[str, Any] | None:
    stamped = [(bag, a['stamps'], a['count']) for bag, a in found if a['stamps']]
    if not stamped:
        return None
    known = [(bag, stamps) for bag, stamps, _ in stamped if stamps['skew_s']]
    drifts = [{'bag': bag['bag'], 'begin_s': stamps['skew_begin_s'], 'end_s': stamps['skew_end_s']}
              for bag, stamps in known]
    votes = [_is_simulated(bag, stamps) for bag, stamps in known if bag['begin_s'] is not None]
    return {
        **{key: sum(stamps[key] for _, stamps, _ in stamped)
           for key in ('zero', 'repeated', 'backward', 'overtaken')},
        'skew_s': _percentiles([(stamps['skew_s'], count) for _, stamps, count in stamped]),
        'most_drift': max(drifts, key=lambda drift: abs(drift['end_s'] - drift['begin_s']),
                          default=None),
        # In most bags.
        'simulated': 2 * sum(votes) > len(votes)}


def _is_simulated(bag: dict[str, Any], stamps: dict[str, Any]) -> bool:
    """Return whether stamps are small, or of another speed than the log."""
    small = bag['begin_s'] - stamps['skew_s']['p50'] < SIMULATED_BEFORE_S < bag['begin_s']
    change = stamps['skew_end_s'] - stamps['skew_begin_s']
    return small or abs(change) > SIMULATED_SPEED * max(1.0, bag['duration_s'])


def _dimension(stream: specs.Stream, i: int, found: _Found) -> dict[str, Any]:
    """Return what is known of one number of a stream."""
    command = isinstance(stream, specs.Command)
    read = [(a, a['count'] - a['unreadable']) for _, a in found]
    total = sum(count for _, count in read)

    def share(key: str) -> float | None:
        return _share(sum(account[key][i] * count for account, count in read), total)

    low = min((a['low'][i] for a, _ in read if a['low'][i] is not None), default=None)
    high = max((a['high'][i] for a, _ in read if a['high'][i] is not None), default=None)
    result = {
        'name': label(stream, i), 'unit': stream.dimensions[i].unit if command else stream.unit,
        'low': low, 'high': high, 'not_finite': share('not_finite'),
        'constant': low is not None and low == high and total > 1}
    if command:
        limits = stream.dimensions[i]
        result.update(lower=limits.lower, upper=limits.upper, at_limits=share('at_limits'),
                      outside_limits=share('outside_limits'))
    return result


def label(stream: specs.Stream, i: int) -> str:
    """Return the name of a number of a stream."""
    if stream.size == 1:
        return stream.name
    part = part_name(stream, i)
    return f'{stream.name}[{i}]' if part == str(i) else f'{stream.name} {part}'


def part_name(stream: specs.Stream, i: int) -> str:
    """Return the end of the path of the field that gives a number, or else its index."""
    if len(stream.fields) != stream.size or any(size != stream.size for size in stream.sizes):
        return str(i)
    return '.'.join(stream.fields[i].text.split('.')[-2:])


def evenly(count: int, most: int) -> list[int]:
    """Return at most so many of the numbers from 0 to count - 1."""
    return sorted({round(k) for k in np.linspace(0, count - 1, min(count, most))})


def _histograms(
    streams: Sequence[specs.Stream], found: list[dict[str, Any]], begin: int,
    decisions: np.ndarray,
) -> dict[str, Any]:
    """Return histograms of at most so many of the streams' numbers as are shown.

    Args:
        streams: Signals or commands.
        found: What is known of them, see `_stream`.
        begin: The column of decisions where they begin.
        decisions: (n, O + A + 1).
    """
    columns: list[tuple[int, dict[str, Any]]] = []
    for stream, known in zip(streams, found, strict=True):
        # Of a history the newest frame, the last: older ones hold the same numbers.
        begin += stream.width if isinstance(stream, specs.Signal) else stream.size
        columns += zip(range(begin - stream.size, begin), known['dimensions'], strict=True)
    chosen = [columns[k] for k in evenly(len(columns), PANELS)]
    return {'dimensions': len(columns), 'shown': [
        {'name': d['name'], 'unit': d['unit'],
         'limits': [d['lower'], d['upper']] if 'lower' in d else None,
         **histogram(decisions[:, column])} for column, d in chosen]}


def _behaviour(
    accounts: Sequence[dict[str, Any]], drawn: Sequence[np.ndarray], spec: specs.Spec
) -> dict[str, Any]:
    """Return how far the observations decide the actions, from decisions evenly chosen."""
    # The number of the bag and the time within it, before each decision.
    placed = [np.zeros((0, 3 + spec.observation_size + spec.action_size))]
    for number, (account, rows) in enumerate(zip(accounts, drawn, strict=True)):
        spacing_s = account['decisions'] / spec.rate / max(1, len(rows))
        placed.append(np.column_stack(
            [np.full(len(rows), number), np.arange(len(rows)) * spacing_s, rows]))
    rows = np.concatenate(placed)
    rows = rows[np.isfinite(rows[:, :-1]).all(1)]
    rows = rows[evenly(len(rows), _ESTIMATE_ROWS)]
    split = 2 + spec.observation_size
    return {
        'open_share': behaviour.open_share(
            rows[:, 2:split], rows[:, split:-1], rows[:, 1], rows[:, 0]),
        'threshold': behaviour.NEAR_DETERMINISTIC, 'decisions': len(rows),
        'apart_s': behaviour.APART_S}
