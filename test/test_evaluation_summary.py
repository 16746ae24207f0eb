"""The numbers of an evaluation's page: what a critic predicted and what came; what is worst."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('gymnasium', reason='gymnasium is not installed')
pytest.importorskip('ogbench', reason='ogbench is not installed')
pytest.importorskip('tyro', reason='tyro is not installed')
from idql_ros import environments  # noqa: E402
from idql_ros.policy import Policy  # noqa: E402
from training import evaluate, page  # noqa: E402
from training import evaluation_summary as summary  # noqa: E402
from training.evaluation_summary import learned  # noqa: E402

ROOT = Path(__file__).parents[1]
DEFAULT = ROOT / 'config' / 'policies' / 'pointmaze_medium.onnx'
MAZE = environments.ROBOTS['pointmaze_medium']
GOAL = {'reward': {'sparse_goal': {'goal': [3.0], 'tolerance': 0.5}}, 'terminal': 'reward'}


def provenance(task=None, **config):
    """Return a provenance as training writes it."""
    metadata = {} if task is None else {'task': json.dumps(task)}
    return {'dataset_metadata': metadata, 'config': {
        'reward_scaling': 'none', 'reward_shift': 0.0, 'idql': {'discount': 0.5}, **config}}


def episode(rewards, q=None, *, places=None, terminated=True, success=True, between=None,
            told=True):
    """Return an episode of one observed and one commanded number."""
    n = len(rewards)
    with np.errstate(over='ignore', invalid='ignore'):
        total = float(np.sum(rewards))
    places = np.zeros(n + 1) if places is None else np.array(places, float)
    return evaluate.RecordedEpisode(
        total, success, n, places[:-1, None],
        np.zeros(n) if q is None else np.array(q, float), np.zeros((n, 1), np.float32),
        np.array(rewards, float), terminated, places[-1:], np.zeros((0, 1)) if between is None
        else np.array(between, float)[:, None],
        np.zeros(n, int) if between is None else np.array([len(between), *[0] * (n - 1)]), told)


def to_go(given, of):
    """Return the returns of an episode at 2 Hz, and whether it was cut off."""
    return summary.returns_to_go(given, learned(of), 2.0)


def test_returns_are_discounted_by_decision_and_scaled_and_shifted_as_in_training():
    returns, cut_off = to_go(episode([1.0, 2.0, 4.0]), provenance())
    assert returns.tolist() == [1 + 0.5 * 2 + 0.25 * 4, 2 + 0.5 * 4, 4] and not cut_off
    scaled = provenance(reward_scaling='return_range', reward_shift=-1.0) | {'reward_scale': 10.0}
    returns, cut_off = to_go(episode([1.0, 2.0], terminated=False), scaled)
    assert returns.tolist() == [9 + 0.5 * 19, 19] and cut_off
    nothing, _ = to_go(episode([1.0, 2.0]), scaled | {'reward_scale': 0.0})
    assert nothing.tolist() == [-1.5, -1.0]


def finetuned(*factors):
    """Return what a provenance tells of finetuning with these factors of the rewards."""
    return {'finetuned': [{'config': {'reward_factor': factor}} for factor in factors]}


def test_environments_reward_is_multiplied_as_in_finetuning():
    scaled = provenance(reward_scaling='return_range') | {'reward_scale': 10.0}
    for factors in ((0.5,), (0.5, 0.5)):
        of = scaled | finetuned(*factors)
        assert to_go(episode([1.0, 2.0]), of)[0].tolist() == [5 + 0.5 * 10, 10]
        assert 'finetuned with reward_factor 0.5' in learned(of).rewards
    # The task of the data is in the data's unit.
    assert learned(scaled | provenance(GOAL) | finetuned(0.5)).scale == 1
    # What was learned is a mixture.
    for factors, words in (((0.5, 2), '0.5, 2'), (('0.5',), '?')):
        of = learned(scaled | finetuned(*factors))
        assert of.scale is None and of.rewards.endswith(f'reward_factor {words}')
    unknown = provenance(reward_scaling='return_range') | finetuned(0.5)
    assert learned(unknown).scale is None


@pytest.mark.parametrize('broken', [3, [3], {'config': 1}, [{'config': 3}]])
def test_finetuning_that_a_file_does_not_tell_rightly_gives_no_scale_or_none_at_all(broken):
    expected = None if isinstance(broken, list) else 1.0
    assert learned(provenance() | {'finetuned': broken}).scale == expected


def test_episode_is_judged_by_the_task_of_the_data_and_not_by_the_environment():
    # The goal at 3 is reached within the third decision; the environment counts otherwise.
    reached, cut_off = to_go(episode([-5.0] * 4, places=[0, 1, 2, 3, 4]), provenance(GOAL))
    assert reached.tolist() == [-1.5, -1, 0] and not cut_off
    # Within the first, between its ticks.
    passed, cut_off = to_go(
        episode([-5.0] * 2, places=[0, 5, 6], between=[2.0, 3.2]), provenance(GOAL))
    assert passed.tolist() == [0] and not cut_off
    missed, cut_off = to_go(episode([-5.0] * 2, places=[0, 1, 2]), provenance(GOAL))
    assert missed.tolist() == [-1.5, -1] and cut_off


def test_reward_of_the_default_policys_episodes_is_one_a_decision_until_the_goal():
    policy = Policy(DEFAULT)
    recorded, = evaluate.evaluate(policy, MAZE, 1, 0, 8, 'test')
    assert recorded.success and recorded.counts.max() == 4  # five steps to a tick
    of = learned(policy.provenance)
    returns, cut_off = summary.returns_to_go(recorded, of, policy.spec.rate)
    n = len(recorded.actions)
    assert len(returns) == n and not cut_off
    assert returns[0] == pytest.approx(-(1 - of.discount**(n - 1)) / (1 - of.discount))
    # The environment's own: -1 a step, 0 with the end.
    assert recorded.rewards.sum() == recorded.total_reward == 1 - recorded.length


@pytest.mark.parametrize(('task', 'words'), [
    ({'reward': {'os:abort': {}}, 'terminal': 'reward'}, 'os:abort, and which code is run'),
    ({'reward': {'topic': {'topic': 'score', 'field': 'data'}}, 'terminal': 'reward'},
     'needs the topics score'),
    ({'reward': 3}, 'cannot be read: task: expected reward and terminal'),
    ('8300 characters', 'cannot be read')])
def test_task_that_cannot_judge_here_is_told_and_not_run(task, words):
    found = learned(provenance(task))
    assert found.task is None and words in found.rewards
    assert found.rewards.startswith("the environment's")


@pytest.mark.parametrize('broken', [
    {}, {'config': 3}, {'config': {'idql': []}}, {'config': {'idql': {'discount': True}}},
    {'config': {'idql': {'discount': 2}}}, {'config': {'idql': {'discount': '0.99'}}}])
def test_without_a_discount_nothing_is_compared(broken):
    found = summary.calibrate([episode([1.0])], learned(broken), 2.0)
    assert found['why_not'] == 'the provenance of the file tells no discount'


@pytest.mark.parametrize('task', [
    {'sparse_goal': {'goal': [1.0, 2.0], 'tolerance': 1}},
    {'reach_and_hold': {'goal': [0.0], 'tolerance': 1, 'seconds': 1e299}}])
def test_task_that_does_not_fit_is_told(task):
    found = summary.calibrate(
        [episode([1.0])], learned(provenance({'reward': task, 'terminal': 'reward'})), 2.0)
    assert found['why_not'].startswith('the task of the data does not fit')


def test_bias_and_correlation_are_those_of_the_first_decisions():
    given = [episode([float(k), 2.0], q=[k + 3.0, 2.0]) for k in range(5)]
    found = summary.calibrate(given, learned(provenance()), 2.0)
    assert found['first']['obtained'].tolist() == [k + 1.0 for k in range(5)]
    assert found['first']['predicted'].tolist() == [k + 3.0 for k in range(5)]
    assert found['first']['mean_bias'] == pytest.approx(2.0)
    assert found['first']['correlation'] == pytest.approx(1.0)
    assert found['every']['compared'] == 10
    assert found['every']['predicted'].tolist() == [v for k in range(5) for v in (k + 3.0, 2.0)]
    assert found['every']['obtained'].tolist() == [v for k in range(5) for v in (k + 1.0, 2.0)]
    assert found['every']['mean_bias'] == pytest.approx(1.0)


def test_bias_is_not_told_where_the_scale_of_the_rewards_is_not_known():
    given = [episode([float(k)], q=[10.0 * k]) for k in range(5)]
    found = summary.calibrate(given, learned(provenance(reward_scaling='return_range')), 2.0)
    assert found['scale'] is None and found['first']['mean_bias'] is None
    assert found['first']['correlation'] == pytest.approx(1.0)


@pytest.mark.filterwarnings('error')
def test_what_is_not_finite_is_left_out_and_the_rest_compared():
    given = [episode([1.0], q=[np.nan]), episode([np.inf], q=[1.0]),
             episode([1e308] * 3, q=[1] * 3), episode([-np.inf, np.inf], q=[1, 1]),
             episode([1.0], q=[2.0]), episode([2.0], q=[2.0])]
    found = summary.calibrate(given, learned(provenance()), 2.0)
    assert found['first']['compared'] == 2 and found['first']['mean_bias'] == pytest.approx(0.5)
    assert found['first']['correlation'] is None  # all that was predicted is equal
    json.dumps(page.plain(found), allow_nan=False)


def test_an_episode_that_was_cut_off_is_counted():
    given = [episode([1.0]), episode([1.0] * 3, terminated=False),
             episode([1.0] * 2, terminated=False)]
    found = summary.calibrate(given, learned(provenance()), 2.0)
    assert found['cut_off'] == [False, True, True] and found['longest_cut_off'] == 3


def test_returns_that_a_cut_left_half_are_not_compared():
    cut = episode([1.0] * 7, terminated=False)
    short = episode([1.0] * 4, terminated=False)
    found = summary.calibrate([cut, short, episode([1.0] * 2)], learned(provenance()), 2.0)
    # 0.5 to the power of 7, 6 and 5 is less than 0.05, and that of 4 is not.
    assert found['every']['compared'] == 3 + 2
    assert found['first']['compared'] == 2 and found['too_early'] == [False, True, False]
    assert len(found['first']['obtained']) == 3  # all are drawn


def test_a_critic_that_is_right_has_no_bias_where_episodes_were_cut_off():
    of = provenance() | {'config': {'idql': {'discount': 0.99}}}
    endless = -1 / (1 - 0.99)  # -1 a decision for ever
    ending = [-(1 - 0.99 ** k) / (1 - 0.99) for k in range(20, 0, -1)]
    given = [*[episode([-1.0] * 100, q=[endless] * 100, terminated=False)] * 5,
             *[episode([-1.0] * 20, q=ending)] * 3]
    found = summary.calibrate(given, learned(of), 2.0)
    for key, compared in (('first', 3), ('every', 60)):
        assert found[key]['compared'] == compared
        assert found[key]['mean_bias'] == pytest.approx(0, abs=1e-9)


def test_success_is_not_made_up_where_the_environment_tells_none():
    given = [episode([1.0], success=False, told=told) for told in (False, False)]
    assert summary.calibrate(given, learned(provenance()), 2.0)['success'] == [None, None]
    # It may tell only what succeeds.
    given.append(episode([1.0], success=True))
    assert summary.calibrate(
        given, learned(provenance()), 2.0)['success'] == [False, False, True]


def test_worst_are_those_that_failed_and_then_those_of_the_lowest_return():
    given = [episode([reward], success=success) for reward, success in [
        (-9.0, True), (5.0, False), (np.nan, False), (-1.0, False), (-10.0, True),
        *[(0.0, True)] * 10]]
    assert summary.worst(given)[:5] == [2, 3, 1, 4, 0]
    assert len(summary.worst(given)) == 10


def test_decisions_are_timed_one_at_a_time_where_there_is_an_observation(monkeypatch):
    policy = Policy(DEFAULT)
    asked = []

    def decide(observation, *arguments, **settings):
        asked.append(observation)
        return Policy.decide(policy, observation, *arguments, **settings)

    monkeypatch.setattr(policy, 'decide', decide)
    size = policy.spec.observation_size
    blind = evaluate.RecordedEpisode(0.0, False, 1, np.full((1, size), np.nan), *[np.zeros(1)] * 8)
    seeing = evaluate.RecordedEpisode(0.0, False, 30, np.ones((30, size)), *[np.zeros(1)] * 8)
    found = summary.time_decisions(
        policy, [blind, seeing, blind], 0, 4, {'extraction': 'greedy'})
    assert found['decisions'] == 30 and found['provider'] == policy.provider
    assert len(asked) == 30 + summary.UNTIMED
    assert all(observation.shape == (size,) and (observation == 1).all() for observation in asked)
    times = [found[key] for key in ('p50_ms', 'p95_ms', 'p99_ms', 'max_ms')]
    assert 0 < times[0] and times == sorted(times)
    nothing = summary.time_decisions(policy, [blind], 0, 4, {})
    assert nothing['decisions'] == 0 and nothing['p50_ms'] is None
