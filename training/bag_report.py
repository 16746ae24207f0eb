"""What a conversion of bags found: a page with pictures, the same numbers as JSON, and a text."""

from collections.abc import Sequence
from pathlib import Path
import textwrap
from typing import Any

from idql_ros import spec as specs
from training import bag_pictures, page
from training.bag_summary import BagResult, evenly, PANELS
from training.figures import draw_histograms
from training.wording import counted, cut, listed, number, percent, rate, seconds

_TEXT_WIDTH = 99
_TEXT_WARNING_LINES = 18
_TEXT_CLOCK_LINES = 4
_TEXT_NAME = 40
# Topics with late samples that are told of; all are in report.json.
_LATE_TOPICS = 4


def write(
    folder: Path, summary: dict[str, Any], results: Sequence[BagResult], spec: specs.Spec,
    title: str,
) -> Path:
    """Write report.html and report.json, both or neither, and return the page.

    Args:
        folder: Where they go; it is made where it is not there.
        summary: Of training.bag_summary.summarise.
        results: What it is the summary of, for the pictures.
        spec: What they were read with.
        title: Of the page.

    Raises:
        OSError: They cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / 'report.html'
    page.write(target, title, _parts(summary, results, spec), {'title': title, **summary})
    return target


def _parts(
    summary: dict[str, Any], results: Sequence[BagResult], spec: specs.Spec
) -> list[str]:
    parts = [page.paragraph(_headline(summary))]
    parts += [page.remark(**warning) for warning in summary['warnings']]
    if summary['totals']['refused']:
        parts.append(page.paragraph('Of a refused bag everything is counted up to the refusal.'))
    parts += [*_tick_parts(summary), *_episode_parts(summary)]
    drawn = bag_pictures.chosen_bags(results)
    parts += [page.heading(2, 'What came when'), page.paragraph(
        'A mark is a message, a bar many (at most 2000 of each stream are drawn, evenly chosen); '
        'red is a gap, of the longest of each stream.')]
    for result in drawn:
        parts += [page.heading(3, result.account['bag']),
                  page.picture(bag_pictures.draw_times(result, spec), 'streams over time')]
    for key in ('signals', 'commands'):
        parts += _stream_parts(key.capitalize(), summary[key])
    for key in ('observation', 'action'):
        parts += _histogram_parts(
            summary[f'{key}_histograms'], f'{key.capitalize()}s of the decisions')
    parts += _behaviour_parts(summary['behaviour'])
    if drawn:
        parts += [page.heading(2, f'The numbers of {drawn[0].account["bag"]}'),
                  page.picture(bag_pictures.draw_traces(drawn[0], spec), 'numbers over time')]
    return [*parts, *_bag_parts(summary['bags'])]


def _headline(summary: dict[str, Any]) -> str:
    totals, spec = summary['totals'], summary['spec']
    refused = f' ({totals["refused"]:,} refused)' if totals['refused'] else ''
    return (f'{counted(totals["bags"], "bag")}{refused}, {seconds(totals["duration_s"])}, '
            f'{counted(totals["messages"], "message")}: '
            f'{counted(totals["decisions"], "decision")} of {counted(totals["ticks"], "tick")} in '
            f'{counted(totals["episodes"], "episode")}. Spec {spec["name"]}: '
            f'{number(spec["rate_hz"])} Hz, tick {spec["tick"]}, clock {spec["clock"]}.')


def _tick_parts(summary: dict[str, Any]) -> list[str]:
    totals, unused, clock = summary['totals'], summary['unused'], summary['clock']
    share = totals['decisions'] / totals['ticks'] if totals['ticks'] else None
    parts = [page.heading(2, 'Ticks'), page.paragraph(
        f'{counted(totals["ticks"], "tick")}, {totals["decisions"]:,} used as decisions '
        f'({percent(share)}). Commands logged in the nanosecond of a tick: {totals["ties"]:,}.')]
    if unused:
        parts += [
            page.paragraph('Why others were not used (# stands for a number; a tick may have '
                           'several reasons):'),
            page.table(('times', 'reason'),
                       [(f'{count:,}', reason) for reason, count in unused.items()])]
    if clock:
        parts += [page.heading(3, 'Clock of the headers'),
                  page.table(('', ''), _clock_rows(clock))]
    return parts


def _clock_rows(clock: dict[str, Any]) -> list[tuple[str, str]]:
    late = [f'{topic}: {count:,}' for topic, count in clock['too_late'].items()]
    return [
        ('source', ', '.join(f'{source} ({counted(count, "bag")})'
                             for source, count in clock['sources'].items())),
        ('speed against the wall', f'{number(clock["speed_median"])} '
         f'({number(clock["speed_lowest"])} to {number(clock["speed_highest"])})'),
        ('set back', counted(clock['set_back'], 'time')),
        ('messages out of order', f'{clock["out_of_order"]:,}'),
        ('messages without a time', f'{clock["without_time"]:,}'),
        ('samples too late for a node',
         listed(late, _LATE_TOPICS, 'topic') if late else 'none')]


def _episode_parts(summary: dict[str, Any]) -> list[str]:
    episodes = summary['episodes']
    known = [{'name': f'{key} of {of}', 'unit': unit, 'limits': None, **episodes[key]}
             for key, of, unit in (('length', 'episodes', 'decisions'),
                                   ('return', 'episodes', '1'), ('reward', 'decisions', '1'))
             if episodes[key]]
    parts = [page.heading(2, 'Episodes'), page.paragraph(
        f'{counted(summary["totals"]["episodes"], "episode")}{_end_text(summary)}.')]
    if known:
        keys = ('low', 'p5', 'median', 'mean', 'p95', 'high')
        parts += [
            page.table(('', *keys), [
                (spread['name'], *(number(spread[key]) for key in keys)) for spread in known]),
            page.picture(draw_histograms(known), 'histograms of lengths, returns and rewards')]
    return parts


def _end_text(summary: dict[str, Any]) -> str:
    if summary['task'] is None:
        return ''
    return f', {percent(summary["episodes"]["terminal_share"])} end at a true terminal'


def _spans(percentiles: dict[str, float] | None) -> str:
    """Return percentiles of times, one after another."""
    return ' / '.join(seconds(value) for value in percentiles.values()) if percentiles else '-'


def _stream_parts(title: str, found: list[dict[str, Any]]) -> list[str]:
    """Return the tables of signals or commands."""
    parts = [page.heading(2, title), page.table(
        ('name', 'topic', 'messages', 'rate', 'interval p5 / p50 / p95 / p99', 'gaps',
         'longest gap', 'unreadable'),
        [(s['name'], s['topic'], f'{s["count"]:,}', rate(s['rate_hz']),
          _spans(s['interval_s']),
          f'{s["gaps"]:,}' + (f' > {seconds(s["gap_s"])}' if s['gap_s'] else ''),
          _gap_text(s['longest_gap']),
          f'{s["unreadable"]:,} {"; ".join(s["unreadable_because"])}'.strip()) for s in found])]
    # Commands have none: the rule of the spec decides.
    aged = [s for s in found if s['age_at_ticks_s']]
    if aged:
        parts += [page.heading(3, 'Age at the ticks'), page.table(
            ('name', 'p5 / p50 / p95 / p99', 'max_age'),
            # A signal's gaps are intervals longer than its max_age.
            [(s['name'], _spans(s['age_at_ticks_s']),
              seconds(s['gap_s']) if s['gap_s'] else 'latched') for s in aged])]
    stamped = [(s, s['stamps']) for s in found if s['stamps']]
    if stamped:
        parts += [page.heading(3, 'Header stamps'), page.table(
            ('name', 'log - stamp p5 / p50 / p95 / p99', 'most drift, begin to end of a bag',
             'zero', 'repeated', 'backward', 'overtaken'),
            [(s['name'], _spans(stamps['skew_s']), _drift_text(stamps['most_drift']),
              *(f'{stamps[key]:,}' for key in ('zero', 'repeated', 'backward', 'overtaken')))
             for s, stamps in stamped])]
    dimensions = [d for s in found for d in s['dimensions']]
    shown = [dimensions[i] for i in evenly(len(dimensions), PANELS)]
    # What is amiss is not left out.
    shown += [d for d in dimensions if d not in shown and (d['constant'] or d['not_finite'])][
        :PANELS]
    limited = any('lower' in d for d in shown)
    parts += [page.heading(3, 'Numbers'), page.table(
        ('number', 'unit', 'lowest', 'highest', 'NaN or infinite',
         *(('limits', 'at a limit', 'outside') if limited else ()), ''),
        [(d['name'], d['unit'], number(d['low']), number(d['high']), percent(d['not_finite']),
          *((f'{number(d["lower"])} to {number(d["upper"])}', percent(d['at_limits']),
             percent(d['outside_limits'])) if limited else ()),
          'constant' if d['constant'] else '') for d in shown])]
    if len(shown) < len(dimensions):
        parts.append(page.paragraph(
            f'{len(shown)} of {len(dimensions)} numbers, evenly chosen, and those that are '
            'constant or not finite; all are in report.json.'))
    return parts


def _gap_text(gap: dict[str, Any] | None) -> str:
    return '-' if gap is None else (f'{seconds(gap["length_s"])} in {gap["bag"]}, '
                                    f'{seconds(gap["at_s"])} after its first message')


def _drift_text(drift: dict[str, Any] | None) -> str:
    return '-' if drift is None else (
        f'{seconds(drift["begin_s"])} to {seconds(drift["end_s"])} in {drift["bag"]}')


def _histogram_parts(histograms: dict[str, Any], title: str) -> list[str]:
    parts, shown = [page.heading(2, title)], histograms['shown']
    if len(shown) < histograms['dimensions']:
        parts.append(page.paragraph(
            f'{len(shown)} of {histograms["dimensions"]} dimensions, evenly chosen.'))
    if not any(histogram['counts'] for histogram in shown):
        return [*parts, page.paragraph('No decisions.')]
    return [*parts, page.picture(draw_histograms(shown), title)]


def _behaviour_parts(behaviour: dict[str, Any]) -> list[str]:
    if behaviour['open_share'] is None:
        found = ('No estimate: the decisions are too few, the actions are of a single value, or '
                 'the estimate is worse than the mean of the actions')
    else:
        found = (f'{percent(behaviour["open_share"])} of the variance of the actions (warned of '
                 f'below {percent(behaviour["threshold"])})')
    return [page.heading(3, 'What the observation leaves open'), page.paragraph(
        f'{found}. Estimated from {counted(behaviour["decisions"], "decision")} as the smaller of '
        'two mean squared errors: of linear maps, each fitted to the nearest observations at '
        f'least {seconds(behaviour["apart_s"])} away or in another bag, and of one linear map '
        'fitted to the rest of the data; of the dimension where it is largest. With many '
        'dimensions and few data it is too high.')]


def _bag_parts(bags: list[dict[str, Any]]) -> list[str]:
    return [
        page.heading(2, 'Bags'), page.table(
            ('bag', 'messages', 'duration', 'ticks', 'decisions', 'episodes', 'refused because'),
            [(bag['bag'], f'{bag["messages"]:,}', seconds(bag['duration_s']),
              f'{bag["ticks"]:,}', f'{bag["decisions"]:,}', f'{bag["episodes"]:,}',
              bag['refused']) for bag in bags]),
        page.heading(2, 'Files'), page.table(
            ('bag', 'file', 'SHA-256'), [(bag['bag'], name, digest) for bag in bags
                                         for name, digest in bag['files'].items()], 'files')]


def text(summary: dict[str, Any]) -> str:
    """Return what each rule did, for the terminal: warnings first, some 40 lines at most."""
    lines = [_headline(summary), '']
    shown = 0
    for warning in summary['warnings']:
        about = cut(warning['about'], _TEXT_NAME)
        wrapped = textwrap.wrap(f'{warning["level"]}: {about}: {warning["text"]}',
                                _TEXT_WIDTH, subsequent_indent='    ', max_lines=4)
        if len(lines) - 2 + len(wrapped) > _TEXT_WARNING_LINES:
            break
        lines += wrapped
        shown += 1
    left_out = len(summary['warnings']) - shown
    if left_out:
        lines.append(f'... and {left_out:,} more in the report')
    unused = list(summary['unused'].items())
    lines += [f'{count:,} x not used: {reason}' for reason, count in unused[:4]]
    if len(unused) > 4:
        lines.append(f'... and for {counted(len(unused) - 4, "more reason")}')
    streams = [*summary['signals'], *summary['commands']] if summary['totals']['messages'] else []
    for stream in streams[:8]:
        age = stream['age_at_ticks_s']
        lines.append(
            f'{cut(stream["name"], _TEXT_NAME)}: {counted(stream["count"], "message")}, '
            f'{rate(stream["rate_hz"])}, {counted(stream["gaps"], "gap")}' + (
                f', age at ticks {seconds(age["p50"])} (p95 {seconds(age["p95"])})'
                if age else ''))
    if len(streams) > 8:
        lines.append(f'... and {counted(len(streams) - 8, "more stream")}')
    if summary['clock']:
        lines += textwrap.wrap(
            'clock: ' + '; '.join(f'{name} {value}' for name, value in _clock_rows(
                summary['clock'])),
            _TEXT_WIDTH, subsequent_indent='    ', max_lines=_TEXT_CLOCK_LINES,
            placeholder=' ...', break_on_hyphens=False)
    length = summary['episodes']['length']
    if length:
        lines.append(
            f'episodes: length {number(length["low"])} to {number(length["high"])}, median '
            f'{number(length["median"])}{_end_text(summary)}')
    # Texts of a bag are somebody else's: no control characters reach the terminal, and no line
    # is longer than it says much.
    return '\n'.join(
        ''.join(c if c.isprintable() else '?' for c in line)[:2 * _TEXT_WIDTH] for line in lines)
