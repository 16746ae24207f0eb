"""What an evaluation of a policy file found, as numbers: what its page says, in plain data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import math
import time
from typing import Any

from idql_ros.latency import Window
from idql_ros.policy import Policy
from idql_ros.spec import Spec
import numpy as np
from tqdm import tqdm
from training.bag_summary import evenly
from training.distribution import LARGEST, spread
from training.evaluate import RecordedEpisode, success_told
from training.rewards import RewardError, Steps, Task
from training.wording import cut

# Episodes that are shown one by one.
WORST = 10
# Decisions that are timed, at most, and for how long; before them some that are not, since the
# first ones take the memory that all others use.
TIMED = 1000
TIMED_S = 30.0
UNTIMED = 10
# Of an episode that was cut off only those decisions are compared at which a reward after the cut
# would weigh less.
CUT_WEIGHT = 0.05
# Decisions in the second picture of the calibration.
_DRAWN = 2000


@dataclass(frozen=True)
class Learned:
    """What return a policy's critic was trained to predict, as far as its provenance tells."""

    discount: float | None  # of a decision; None: not told
    task: Task | None  # what judged the data; None: the environment's own reward stands for it
    scale: float | None  # factor of the rewards in training; None: not told
    shift: float  # added to each of them
    rewards: str  # where those of an episode come from, in words


def learned(provenance: Mapping[str, Any]) -> Learned:
    """Return what a policy's provenance tells of the return that its critic predicts.

    Code that it names is not run.
    """
    config = _mapping(provenance.get('config'))
    discount = _number(_mapping(config.get('idql')).get('discount'))
    task, rewards = _task(_mapping(provenance.get('dataset_metadata')).get('task'))
    scale = (1.0 if config.get('reward_scaling', 'none') == 'none'
             else _number(provenance.get('reward_scale')))
    factors = _factors(provenance)
    if task is None and factors:
        named = ', '.join('?' if factor is None else f'{factor:g}' for factor in factors)
        rewards += f'; finetuned with reward_factor {cut(named, 100)}'
        known = len(factors) == 1 and factors[0] is not None and scale is not None
        scale = scale * factors[0] if known else None
    return Learned(
        discount if discount is not None and 0 <= discount <= 1 else None, task, scale,
        _number(config.get('reward_shift')) or 0.0, rewards)


def _factors(provenance: Mapping[str, Any]) -> list[float | None]:
    """Return by what finetuning multiplied an environment's rewards: each once, None: not told."""
    finetuned = provenance.get('finetuned')
    return list(dict.fromkeys(
        _number(_mapping(_mapping(run).get('config')).get('reward_factor'))
        for run in (finetuned if isinstance(finetuned, list) else ())))


def _task(text: Any) -> tuple[Task | None, str]:
    """Return the task that judged the data where it can judge here, and words about it."""
    own = "the environment's, summed over the steps of a decision"
    if text is None:
        return None, own
    try:
        task = Task.from_json(text)
    except RewardError as error:
        return None, f'{own} (the task of the data cannot be read: {error})'
    if task.own:
        return None, (f'{own}, in place of the task of the data: that runs '
                      f'{cut(", ".join(task.own), 100)}, and which code is run is not for a file '
                      'to say')
    if task.needs:
        return None, (f'{own}, in place of the task of the data: that needs the topics '
                      f'{cut(", ".join(need.topic for need in task.needs), 100)}')
    return task, f'the task of the data, {cut(task.to_json(), 300)}, on what was observed'


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if known and abs(value) <= LARGEST else None


def returns_to_go(
    episode: RecordedEpisode, of: Learned, rate: float
) -> tuple[np.ndarray, bool]:
    """Return the discounted return from each decision on, and whether the episode was cut off.

    Args:
        episode: n decisions.
        of: What counts; it has a discount.
        rate: Of decisions, Hz.

    Returns:
        (m,) for the decisions up to the terminal, m <= n; and whether there was none: then what
        would have come later counts as nothing.

    Raises:
        RewardError: The task and the episode do not fit.
    """
    rewards, ended = episode.rewards, episode.terminated
    if of.task is not None:
        rewards, terminals = of.task.judge(Steps(
            np.vstack([episode.observations, episode.last]), episode.actions, episode.between,
            episode.counts, rate))
        ended = bool(terminals.any())
        if ended:
            rewards = rewards[:terminals.argmax() + 1]
    to_go = np.empty(len(rewards))
    scale = 1.0 if of.scale is None else of.scale
    later = 0.0
    with np.errstate(over='ignore', invalid='ignore'):  # what is not finite is left out later
        for k in reversed(range(len(rewards))):
            later = scale * rewards[k] + of.shift + of.discount * later
            to_go[k] = later
    return to_go, not ended


def calibrate(
    episodes: Sequence[RecordedEpisode], of: Learned, rate: float
) -> dict[str, Any]:
    """Return how Q of the chosen actions compares with the discounted returns obtained.

    Args:
        episodes: Of one N.
        of: What the critic was trained to predict.
        rate: Of decisions, Hz.

    Returns:
        Plain data; 'why_not' is not empty where nothing can be compared.
    """
    found: dict[str, Any] = {
        'why_not': '', 'discount': of.discount, 'scale': of.scale, 'shift': of.shift,
        'rewards': of.rewards}
    if of.discount is None:
        return found | {'why_not': 'the provenance of the file tells no discount'}
    try:
        pairs = [(episode.q, *returns_to_go(episode, of, rate)) for episode in episodes]
    # A number of a file's task may be larger than what counts decisions.
    except (RewardError, OverflowError) as error:
        return found | {'why_not': f'the task of the data does not fit: {error}'}
    cut_off = [cut for _, _, cut in pairs]
    whole = [_whole(len(to_go), cut, of.discount) for _, to_go, cut in pairs]
    first = np.array([[q[0], to_go[0]] for q, to_go, _ in pairs])
    every = np.concatenate([
        np.column_stack([q[:count], to_go[:count]])
        for (q, to_go, _), count in zip(pairs, whole, strict=True)])
    drawn = every[evenly(len(every), _DRAWN)]
    told = success_told(episodes)
    return found | {
        'cut_off': cut_off, 'too_early': [count == 0 for count in whole],
        'success': [episode.success if told else None for episode in episodes],
        'longest_cut_off': max(
            (len(to_go) for _, to_go, cut in pairs if cut), default=None),
        # All are drawn; compared are those whose return is known.
        'first': _compared(first[np.array(whole) > 0], of) | {
            'predicted': first[:, 0], 'obtained': first[:, 1]},
        'every': _compared(every, of) | {
            'predicted': drawn[:, 0], 'obtained': drawn[:, 1]}}


def _whole(count: int, cut_off: bool, discount: float) -> int:
    """Return of how many of an episode's decisions the return is known, all but a little."""
    if not cut_off:
        return count
    return int(np.sum(discount ** np.arange(count, 0, -1.0) < CUT_WEIGHT))


def _compared(pairs: np.ndarray, of: Learned) -> dict[str, Any]:
    """Return what two columns (n, 2), predicted and obtained, have to do with each other."""
    known = pairs[(np.abs(pairs) <= LARGEST).all(1)]
    varied = len(known) > 1 and (np.ptp(known, axis=0) > 1e-9 * np.abs(known).max(0)).all()
    return {
        'compared': len(known),
        'correlation': float(np.corrcoef(known.T)[0, 1]) if varied else None,
        'mean_predicted': known[:, 0].mean() if len(known) else None,
        'mean_obtained': known[:, 1].mean() if len(known) else None,
        # Of different units a difference says nothing.
        'mean_bias': ((known[:, 0] - known[:, 1]).mean()
                      if len(known) and of.scale is not None else None)}


def worst(episodes: Sequence[RecordedEpisode]) -> list[int]:
    """Return the numbers of the worst episodes: those that failed first, then by their return."""
    def key(number: int) -> tuple[bool, float]:
        reward = episodes[number].total_reward
        return episodes[number].success, -math.inf if math.isnan(reward) else reward

    return sorted(range(len(episodes)), key=key)[:WORST]


def time_decisions(
    policy: Policy, episodes: Sequence[RecordedEpisode], seed: int, candidates: int,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return how long a decision takes, one observation at a time as in the node.

    Args:
        policy: The file, opened with the threads that count.
        episodes: What it observed is decided again.
        seed: Of the noise.
        candidates: N.
        settings: How a candidate is chosen: keywords of `Policy.decide`.

    Returns:
        decisions, provider, and p50_ms, p95_ms, p99_ms, max_ms (None without any decision).
    """
    observations = np.concatenate([episode.observations for episode in episodes])
    observations = observations[np.isfinite(observations).all(1)].astype(np.float32)
    rows = evenly(len(observations), TIMED) if len(observations) else []
    window, begun = Window(TIMED), time.perf_counter()
    for count, row in enumerate(tqdm(
            rows[:UNTIMED] + rows, desc='latency', unit='decision', dynamic_ncols=True)):
        before = time.perf_counter()
        policy.decide(observations[row], row, seed, candidates, **settings)
        after = time.perf_counter()
        if count >= UNTIMED:
            window.add(after - before)
        if after - begun > TIMED_S:
            break
    found = window.percentiles()
    return {'decisions': len(window), 'provider': policy.provider, **{
        f'{name}_ms': None if found is None else 1e3 * getattr(found, name)
        for name in ('p50', 'p95', 'p99', 'max')}}


def summarise(
    scores: dict[str, Any], policy: Policy, results: Mapping[int, Sequence[RecordedEpisode]],
    latency: dict[str, Any], agreement: dict[str, Any] | None,
) -> dict[str, Any]:
    """Return everything that a page says, as data that `page.plain` makes strict JSON of.

    Args:
        scores: What `training.evaluate` writes as JSON.
        policy: The file.
        results: N -> its episodes.
        latency: Of `time_decisions`.
        agreement: Of `training.evaluation_agreement.compare`; None: no dataset was given.
    """
    detailed = max(results)
    episodes = results[detailed]
    told = success_told(episodes)
    spec: Spec = policy.spec
    return scores | {
        'robot': spec.name, 'rate_hz': spec.rate, 'proposed_candidates': policy.candidates,
        # What follows is about this N.
        'detailed': detailed,
        'distributions': {n: {
            'return': spread(np.array([episode.total_reward for episode in rows])),
            'length': spread(np.array([episode.length for episode in rows], float)),
        } for n, rows in results.items()},
        'calibration': calibrate(episodes, learned(policy.provenance), spec.rate),
        'agreement': agreement,
        'latency': latency,
        'worst': [{
            'episode': number, 'seed': scores['seed'] + number,
            'success': episodes[number].success if told else None,
            'return': episodes[number].total_reward,
            'length': episodes[number].length, 'terminated': episodes[number].terminated,
            'first_q': episodes[number].q[0]} for number in worst(episodes)],
        'provenance': policy.provenance,
    }
