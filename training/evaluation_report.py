"""The page of an evaluation: `python -m training.evaluate POLICY --report PAGE.html`."""

from collections.abc import Iterator, Mapping, Sequence
import json
from pathlib import Path
from typing import Any

from idql_ros.policy import Policy
from training import evaluation_agreement, evaluation_pictures, evaluation_summary, page
from training.evaluate import RecordedEpisode, success_words
from training.evaluation_agreement import Recorded
from training.evaluation_pictures import Strip
from training.figures import draw_histograms
from training.wording import counted, cut, number, percent, seconds

# Of the provenance, rows and characters of a value; all of it is in the JSON.
_ROWS = 200
_CHARACTERS = 240
_PROVENANCE = 'Where the policy comes from'


def write(
    target: Path, scores: dict[str, Any], policy: Policy,
    results: Mapping[int, Sequence[RecordedEpisode]], settings: Mapping[str, Any],
    recorded: Recorded | None,
) -> None:
    """Find out what else there is to say of an evaluation, and write the page and its JSON.

    Args:
        target: The page.
        scores: What `training.evaluate` writes as JSON.
        policy: The file, opened with one thread, as the node does.
        results: N -> its episodes. Of the largest N everything is told.
        settings: How a candidate is chosen: keywords of `Policy.decide`.
        recorded: Decisions to compare with; None: no dataset was given.

    Raises:
        OSError: The page cannot be written.
    """
    candidates = max(results)
    episodes, seed = results[candidates], scores['seed']
    latency = evaluation_summary.time_decisions(policy, episodes, seed, candidates, settings)
    agreement = None if recorded is None else evaluation_agreement.compare(
        policy, recorded, seed, candidates, settings)
    strips, why_not = evaluation_pictures.film(
        scores['environment'], policy.spec, seed,
        {k: episodes[k] for k in evaluation_summary.worst(episodes)})
    summary = evaluation_summary.summarise(scores, policy, results, latency, agreement)
    # What is drawn is what the JSON holds.
    numbers = page.plain(summary)
    page.write(target, f'{policy.path.name} in {scores["environment_id"]}',
               _parts(numbers, strips, why_not), numbers)


def _parts(summary: dict[str, Any], strips: Mapping[int, Strip], why_not: str) -> list[str]:
    parts = [page.paragraph(_headline(summary))]
    if summary['warning'] is not None:
        parts.append(page.remark('warning', 'comparability', summary['warning']))
    return [*parts, *_score_parts(summary), *_calibration_parts(summary),
            *_agreement_parts(summary), *_latency_parts(summary),
            *_worst_parts(summary, strips, why_not), *_provenance_parts(summary)]


def _headline(summary: dict[str, Any]) -> str:
    score = summary['candidates'][str(summary['detailed'])]
    return (f'N = {summary["detailed"]}: {success_words(score)}, '
            f'mean return {number(score["mean_return"])}, in '
            f'{counted(summary["episodes"], "episode")}.')


def _score_parts(summary: dict[str, Any]) -> list[str]:
    rows, histograms, widths = [], [], ('low', 'p5', 'median', 'mean', 'p95', 'high')
    spreads = []
    for n, score in summary['candidates'].items():
        success = (('not told', '') if score['success'] is None else
                   (f'{score["success"]:.3f}', '{:.3f} to {:.3f}'.format(*score['interval'])))
        rows.append((n, *success, str(summary['episodes']), number(score['mean_return'])))
        for key, unit in (('return', '1'), ('length', 'steps')):
            spread = summary['distributions'][n][key]
            if spread is not None:
                name = f'{key}, N = {n}'
                spreads.append((name, *(number(spread[width]) for width in widths)))
                histograms.append({'name': name, 'unit': unit, 'limits': None, **spread})
    parts = [page.heading(2, 'Score'), page.table(
        ('N', 'success', '95 % interval (Wilson)', 'episodes', 'mean return'), rows)]
    if any(score['success'] is None for score in summary['candidates'].values()):
        parts.append(page.paragraph(
            'The environment does not tell success (info["success"]): its return alone counts.'))
    settings = (f'{summary["extraction"]}, softmax temperature '
                f'{summary["softmax_temperature"]:g}, sampling temperature '
                f'{summary["sampling_temperature"]:g}')
    return [
        *parts,
        page.table(('', *widths), spreads),
        page.picture(draw_histograms(histograms), 'histograms of returns and lengths'),
        page.table(('', ''), [
            ('policy', Path(summary['policy']).name), ('sha256', summary['sha256']),
            ('robot', f'{summary["robot"]}, {number(summary["rate_hz"])} Hz'),
            ('environment', f'{summary["environment_id"]} ({summary["environment"]})'),
            ('episodes', f'{summary["episodes"]}, from seed {summary["seed"]}'),
            ('extraction', settings),
            ('N that the file proposes', str(summary['proposed_candidates'])),
            ('robots at a time', str(summary['parallel']))])]


def _calibration_parts(summary: dict[str, Any]) -> list[str]:
    found = summary['calibration']
    parts = [page.heading(2, 'Predicted and obtained return')]
    if found['why_not']:
        return [*parts, page.paragraph(f'Not compared: {found["why_not"]}.')]
    first, every = found['first'], found['every']
    scale = 'an unknown factor' if found['scale'] is None else number(found['scale'])
    parts.append(page.paragraph(
        f'Q of the chosen action, N = {summary["detailed"]}, beside the discounted return that '
        f'followed: discount {found["discount"]:g} a decision, rewards times {scale} plus '
        f'{number(found["shift"])}, as in training. Rewards: {found["rewards"]}.'))
    parts.append(page.table(
        ('', 'compared', 'mean Q', 'mean return', 'mean bias (Q - return)', 'correlation'),
        [(name, f'{row["compared"]:,}', number(row['mean_predicted']),
          number(row['mean_obtained']), number(row['mean_bias']), number(row['correlation']))
         for name, row in (('first decisions', first), ('all decisions', every))]))
    parts += [page.paragraph(sentence) for sentence in _calibration_remarks(found)]
    if first['compared'] or every['compared'] or any(found['too_early']):
        parts.append(page.picture(
            evaluation_pictures.draw_calibration(found), 'Q over the return obtained'))
    return parts


def _calibration_remarks(found: dict[str, Any]) -> Iterator[str]:
    """Yield what has to be known to read the numbers."""
    if found['scale'] is None:
        yield ('By which one factor rewards were scaled in training the file does not tell: Q and '
               'returns have different units, and only their correlation counts.')
    too_early = sum(found['too_early'])
    left_out = len(found['too_early']) - too_early - found['first']['compared']
    if left_out:
        yield (f'{counted(left_out, "episode")} left out at the first decision: Q or the return '
               'is not a finite number, or the guard let no action pass.')
    if any(found['cut_off']):
        weight = found['discount'] ** found['longest_cut_off']
        yield (f'{counted(sum(found["cut_off"]), "episode")} cut off before an end that the '
               'critic knows: what would have followed counts as nothing, though Q includes it. '
               f'In the longest of them, {counted(found["longest_cut_off"], "decision")}, a '
               f'reward after the cut would weigh {percent(weight)} at the first decision. Of '
               'them only those decisions are compared at which it would weigh less than '
               f'{percent(evaluation_summary.CUT_WEIGHT)}; the first decision of '
               f'{counted(too_early, "episode")} is not, and is a cross in the picture.')


def _agreement_parts(summary: dict[str, Any]) -> list[str]:
    found = summary['agreement']
    parts = [page.heading(2, 'Agreement with the data')]
    if found is None:
        named = summary['provenance'].get('dataset')
        trained = '' if named is None else f' The file was trained on {cut(str(named), 80)}.'
        return [*parts, page.paragraph(
            'No dataset was given: --dataset ID, with --root FOLDER where Minari or ogbench would '
            f'not find it, compares the actions with those recorded.{trained}')]
    same = {True: 'the data that the file was trained on',
            False: 'other data than the file was trained on',
            None: 'whether the file was trained on it is not known'}[found['same']]
    medians = len(found['shares']) // 2
    keys = ('chosen', 'sample', 'mean')
    return [
        *parts,
        page.paragraph(
            f'{found["dataset"]}, {same}: {found["compared"]:,} of its '
            f'{counted(found["decisions"], "decision")}. How far an action is from the one that '
            'was recorded at the same observation, median and mean of the distances in each '
            'dimension: the action chosen of N = '
            f'{summary["detailed"]}, one sample of the diffusion model, and the mean of all '
            'recorded actions, whatever is observed. A sample imitates the data; where they vary '
            'at random, even a perfect imitation is farther from them than their mean. What the '
            'critic changes is the difference between the chosen action and a sample: a policy '
            'that does better than the data need not agree with them.'),
        page.table(
            ('dimension', 'unit', *(f'{name}: median, mean' for name in (
                'chosen action', 'one sample', 'mean action'))),
            [(d['name'], d['unit'], *(
                f'{number(d[key]["quantiles"][medians])}, {number(d[key]["mean"])}'
                for key in keys)) for d in found['dimensions']]),
        page.paragraph('Share of the decisions within a distance:'),
        page.picture(evaluation_pictures.draw_agreement(found), 'distances in each dimension')]


def _latency_parts(summary: dict[str, Any]) -> list[str]:
    found = summary['latency']
    keys = ('p50_ms', 'p95_ms', 'p99_ms', 'max_ms')
    return [
        page.heading(2, 'Time for a decision'),
        page.table(
            ('N', 'provider', 'threads', 'decisions', 'p50', 'p95', 'p99', 'longest'),
            [(str(summary['detailed']), found['provider'], '1', f'{found["decisions"]:,}', *(
                seconds(None if found[key] is None else found[key] / 1e3) for key in keys))]),
        page.paragraph(
            'One observation at a time, as the node decides by default, after the episodes and '
            f'on this machine. A tick of the robot lasts {seconds(1 / summary["rate_hz"])}.')]


def _worst_parts(
    summary: dict[str, Any], strips: Mapping[int, Strip], why_not: str
) -> list[str]:
    worst = summary['worst']
    parts = [
        page.heading(2, f'The worst {counted(len(worst), "episode")}'),
        page.paragraph(f'N = {summary["detailed"]}; those that failed first, then by return.'),
        page.table(
            ('episode', 'seed of its start', 'success', 'return', 'steps', 'ended by',
             'Q of the first action'),
            [(str(row['episode']), str(row['seed']),
              {True: 'yes', False: 'no', None: 'not told'}[row['success']],
              number(row['return']), str(row['length']),
              'the environment' if row['terminated'] else 'its limit of steps',
              number(row['first_q'])) for row in worst])]
    if why_not:
        parts.append(page.paragraph(f'No {"other " if strips else ""}pictures: {why_not}.'))
    for row in worst:
        strip = strips.get(row['episode'])
        if strip is None:
            continue
        parts.append(page.heading(3, f'Episode {row["episode"]}, return {number(row["return"])}'))
        if strip.why_not:
            parts.append(page.paragraph(f'No pictures: {strip.why_not}.'))
            continue
        times = ', '.join(number(value) for value in strip.times_s)
        parts += [page.picture(strip.content, f'episode {row["episode"]}', 'jpeg'),
                  page.paragraph(f'After {times} s.')]
    return parts


def _provenance_parts(summary: dict[str, Any]) -> list[str]:
    if not summary['provenance']:
        return [page.heading(2, _PROVENANCE), page.paragraph('The file does not tell.')]
    rows = list(_flat(summary['provenance'], ''))
    more = len(rows) - _ROWS
    return [
        page.heading(2, _PROVENANCE),
        page.table(('', ''), rows[:_ROWS]),
        *([page.paragraph(f'{counted(more, "more row")} in the JSON beside this page.')]
          if more > 0 else [])]


def _flat(data: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield names and values of a provenance, each mapping within it as name.key."""
    if isinstance(data, dict) and data:
        for key, value in data.items():
            yield from _flat(value, f'{name}.{key}' if name else key)
    else:
        text = data if isinstance(data, str) else json.dumps(data)
        yield cut(name, _CHARACTERS), cut(text, _CHARACTERS)
