"""What a conversion of bags found: a page with pictures, the same numbers as JSON, and a text."""

import base64
from collections.abc import Iterable, Sequence
import html
import json
from pathlib import Path
import textwrap
from typing import Any

from idql_ros import spec as specs
from training import bag_pictures
from training.bag_summary import BagResult, evenly, PANELS
from training.files import write_all
from training.wording import counted, cut, listed, number, percent, rate, seconds

_TEXT_WIDTH = 99
_TEXT_WARNING_LINES = 18
_TEXT_CLOCK_LINES = 4
_TEXT_NAME = 40
# Topics with late samples that are told of; all are in report.json.
_LATE_TOPICS = 4

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 1rem auto;
  padding: 0 .8rem; color: #222; background: #fff; overflow-wrap: break-word }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid #ccc }
h3 { font-size: 1rem; margin-bottom: .3rem }
.wide { overflow-x: auto } img { max-width: 100%; height: auto }
table { border-collapse: collapse; font-size: .87rem; margin: .5rem 0 }
th, td { border: 1px solid #ccc; padding: .15rem .5rem; text-align: left; vertical-align: top }
th { background: #f2f2f2 } td { font-variant-numeric: tabular-nums }
.error, .warning, .note { border-left: .35rem solid; padding: .3rem .7rem; margin: .4rem 0 }
.error { border-color: #c0272d; background: #fbe9e9 }
.warning { border-color: #d98e04; background: #fdf3dd }
.note { border-color: #7a8ba3; background: #eff2f6 }
.files td:last-child { font: .75rem monospace; overflow-wrap: anywhere }
@media print { body { font-size: 10pt; max-width: none } .wide { overflow: visible }
  table { font-size: 7.5pt } th, td { padding: .1rem .25rem } tr, img { break-inside: avoid }
  .error, .warning, .note { print-color-adjust: exact; -webkit-print-color-adjust: exact } }
"""


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
    page = _page(summary, results, spec, title)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / 'report.html'
    write_all({
        # Names of files may hold what is no text.
        target: page.encode('utf-8', 'replace'),
        folder / 'report.json': json.dumps(
            {'title': title, **summary}, indent=1, allow_nan=False).encode()})
    return target


def _page(
    summary: dict[str, Any], results: Sequence[BagResult], spec: specs.Spec, title: str
) -> str:
    parts = [f'<h1>{html.escape(title)}</h1>', _paragraph(_headline(summary))]
    parts += [f'<div class="{warning["level"]}"><b>{warning["level"]}: '
              f'{html.escape(warning["about"])}</b>: '
              f'{html.escape(warning["text"])}</div>' for warning in summary['warnings']]
    if summary['totals']['refused']:
        parts.append(_paragraph('Of a refused bag everything is counted up to the refusal.'))
    parts += [*_tick_parts(summary), *_episode_parts(summary)]
    drawn = bag_pictures.chosen_bags(results)
    parts += ['<h2>What came when</h2>', _paragraph(
        'A mark is a message, a bar many (at most 2000 of each stream are drawn, evenly chosen); '
        'red is a gap, of the longest of each stream.')]
    for result in drawn:
        parts += [f'<h3>{html.escape(result.account["bag"])}</h3>',
                  _picture(bag_pictures.draw_times(result, spec), 'streams over time')]
    for key in ('signals', 'commands'):
        parts += _stream_parts(key.capitalize(), summary[key])
    for key in ('observation', 'action'):
        parts += _histogram_parts(
            summary[f'{key}_histograms'], f'{key.capitalize()}s of the decisions')
    parts += _behaviour_parts(summary['behaviour'])
    if drawn:
        parts += [f'<h2>The numbers of {html.escape(drawn[0].account["bag"])}</h2>',
                  _picture(bag_pictures.draw_traces(drawn[0], spec), 'numbers over time')]
    parts += _bag_parts(summary['bags'])
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n'
            + '\n'.join(parts) + '\n</body></html>\n')


def _headline(summary: dict[str, Any]) -> str:
    totals, spec = summary['totals'], summary['spec']
    refused = f' ({totals["refused"]:,} refused)' if totals['refused'] else ''
    return (f'{counted(totals["bags"], "bag")}{refused}, {seconds(totals["duration_s"])}, '
            f'{counted(totals["messages"], "message")}: '
            f'{counted(totals["decisions"], "decision")} of {counted(totals["ticks"], "tick")} in '
            f'{counted(totals["episodes"], "episode")}. Spec {spec["name"]}: '
            f'{number(spec["rate_hz"])} Hz, tick {spec["tick"]}, clock {spec["clock"]}.')


def _paragraph(text: str) -> str:
    return f'<p>{html.escape(text)}</p>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = '') -> str:
    """Return a table of plain text."""
    lines = ''.join(f'<tr>{"".join(f"<td>{html.escape(cell)}</td>" for cell in row)}</tr>\n'
                    for row in rows)
    heads = ''.join(f'<th>{html.escape(cell)}</th>' for cell in head)
    return f'<div class="wide {kind}"><table><tr>{heads}</tr>\n{lines}</table></div>'


def _picture(png: bytes, description: str) -> str:
    encoded = base64.b64encode(png).decode()
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{encoded}">'


def _tick_parts(summary: dict[str, Any]) -> list[str]:
    totals, unused, clock = summary['totals'], summary['unused'], summary['clock']
    share = totals['decisions'] / totals['ticks'] if totals['ticks'] else None
    parts = ['<h2>Ticks</h2>', _paragraph(
        f'{counted(totals["ticks"], "tick")}, {totals["decisions"]:,} used as decisions '
        f'({percent(share)}). Commands logged in the nanosecond of a tick: {totals["ties"]:,}.')]
    if unused:
        parts += [_paragraph('Why others were not used (# stands for a number; a tick may have '
                             'several reasons):'),
                  _table(('times', 'reason'),
                         [(f'{count:,}', reason) for reason, count in unused.items()])]
    if clock:
        parts += ['<h3>Clock of the headers</h3>', _table(('', ''), _clock_rows(clock))]
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
    parts = ['<h2>Episodes</h2>', _paragraph(
        f'{counted(summary["totals"]["episodes"], "episode")}{_end_text(summary)}.')]
    if known:
        keys = ('low', 'p5', 'median', 'mean', 'p95', 'high')
        parts += [_table(('', *keys), [(spread['name'], *(number(spread[key]) for key in keys))
                                       for spread in known]),
                  _picture(bag_pictures.draw_histograms(known),
                           'histograms of lengths, returns and rewards')]
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
    parts = [f'<h2>{title}</h2>', _table(
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
        parts += ['<h3>Age at the ticks</h3>', _table(
            ('name', 'p5 / p50 / p95 / p99', 'max_age'),
            # A signal's gaps are intervals longer than its max_age.
            [(s['name'], _spans(s['age_at_ticks_s']),
              seconds(s['gap_s']) if s['gap_s'] else 'latched') for s in aged])]
    stamped = [(s, s['stamps']) for s in found if s['stamps']]
    if stamped:
        parts += ['<h3>Header stamps</h3>', _table(
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
    parts += ['<h3>Numbers</h3>', _table(
        ('number', 'unit', 'lowest', 'highest', 'NaN or infinite',
         *(('limits', 'at a limit', 'outside') if limited else ()), ''),
        [(d['name'], d['unit'], number(d['low']), number(d['high']), percent(d['not_finite']),
          *((f'{number(d["lower"])} to {number(d["upper"])}', percent(d['at_limits']),
             percent(d['outside_limits'])) if limited else ()),
          'constant' if d['constant'] else '') for d in shown])]
    if len(shown) < len(dimensions):
        parts.append(_paragraph(f'{len(shown)} of {len(dimensions)} numbers, evenly chosen, and '
                                'those that are constant or not finite; all are in report.json.'))
    return parts


def _gap_text(gap: dict[str, Any] | None) -> str:
    return '-' if gap is None else (f'{seconds(gap["length_s"])} in {gap["bag"]}, '
                                    f'{seconds(gap["at_s"])} after its first message')


def _drift_text(drift: dict[str, Any] | None) -> str:
    return '-' if drift is None else (
        f'{seconds(drift["begin_s"])} to {seconds(drift["end_s"])} in {drift["bag"]}')


def _histogram_parts(histograms: dict[str, Any], title: str) -> list[str]:
    parts, shown = [f'<h2>{title}</h2>'], histograms['shown']
    if len(shown) < histograms['dimensions']:
        parts.append(_paragraph(
            f'{len(shown)} of {histograms["dimensions"]} dimensions, evenly chosen.'))
    if not any(histogram['counts'] for histogram in shown):
        return [*parts, _paragraph('No decisions.')]
    return [*parts, _picture(bag_pictures.draw_histograms(shown), title)]


def _behaviour_parts(behaviour: dict[str, Any]) -> list[str]:
    if behaviour['open_share'] is None:
        found = ('No estimate: the decisions are too few, the actions are of a single value, or '
                 'the estimate is worse than the mean of the actions')
    else:
        found = (f'{percent(behaviour["open_share"])} of the variance of the actions (warned of '
                 f'below {percent(behaviour["threshold"])})')
    return ['<h3>What the observation leaves open</h3>', _paragraph(
        f'{found}. Estimated from {counted(behaviour["decisions"], "decision")} as the smaller of '
        'two mean squared errors: of linear maps, each fitted to the nearest observations at '
        f'least {seconds(behaviour["apart_s"])} away or in another bag, and of one linear map '
        'fitted to the rest of the data; of the dimension where it is largest. With many '
        'dimensions and few data it is too high.')]


def _bag_parts(bags: list[dict[str, Any]]) -> list[str]:
    return [
        '<h2>Bags</h2>', _table(
            ('bag', 'messages', 'duration', 'ticks', 'decisions', 'episodes', 'refused because'),
            [(bag['bag'], f'{bag["messages"]:,}', seconds(bag['duration_s']),
              f'{bag["ticks"]:,}', f'{bag["decisions"]:,}', f'{bag["episodes"]:,}',
              bag['refused']) for bag in bags]),
        '<h2>Files</h2>', _table(
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
