"""Rewards and terminals of recorded decisions, and the tasks that name them."""

from dataclasses import replace
import importlib
import pickle
import sys

import numpy as np
import pytest

hypothesis = pytest.importorskip('hypothesis', reason='hypothesis is not installed')
from hypothesis import strategies as st  # noqa: E402
from training import rewards as rewards_module  # noqa: E402
from training.datasets import episodes_of  # noqa: E402
from training.rewards import (  # noqa: E402
    action_cost,
    goal_distance,
    parse_task,
    reach_and_hold,
    RewardError,
    scale,
    sparse_goal,
    Steps,
    Task,
)

GOAL = [3.0, 4.0]
AWAY = (9.0, 9.0)


def stretch(*within, first=AWAY, rate=2.0, actions=None, **topics):
    """Return decisions, each given by the points seen within it: the last one is at its end."""
    points = [np.array(seen, np.float32) for seen in within]
    size = len(first)
    between = [seen[:-1] for seen in points]
    return Steps(
        observations=np.array([first, *(seen[-1] for seen in points)], np.float32),
        actions=np.zeros((len(within), 1), np.float32) if actions is None else actions,
        between=np.concatenate([np.zeros((0, size), np.float32), *between]),
        counts=np.array([len(seen) for seen in between], np.int64),
        rate=rate,
        topics=topics,
    )


def line(*numbers, rate=2.0):
    """Return decisions that end at numbers on a line, the first number being before them."""
    return stretch(*([(x,)] for x in numbers[1:]), first=(numbers[0],), rate=rate)


# The functions


def test_reward_is_minus_one_until_the_goal_is_reached():
    rewards, terminals = sparse_goal(stretch([(0, 0)], [(1, 1)], [(3, 4)]), GOAL, 0.5)
    assert rewards.tolist() == [-1, -1, 0] and rewards.dtype == np.float32
    assert terminals.tolist() == [False, False, True] and terminals.dtype == bool


def test_goal_counts_wherever_it_is_reached_within_the_decision_and_in_no_other():
    steps = stretch([(0, 0), (3, 4), AWAY], [AWAY], [(3, 4), AWAY], [AWAY, AWAY], [AWAY, (3, 4)])
    assert sparse_goal(steps, GOAL, 0.5)[1].tolist() == [True, False, True, False, True]


def test_where_a_decision_begins_is_not_within_it():
    assert sparse_goal(stretch([AWAY], first=GOAL), GOAL, 0.5)[1].tolist() == [False]


def test_distance_of_the_tolerance_reaches_and_the_next_number_does_not():
    edge = np.nextafter(np.float32(3.5), np.float32(9))
    assert sparse_goal(stretch([(3.5, 4)]), GOAL, 0.5)[1].tolist() == [True]
    assert sparse_goal(stretch([(edge, 4)]), GOAL, 0.5)[1].tolist() == [False]


def test_distance_is_euclidean():
    # Each coordinate is nearer than the tolerance, the point is not.
    assert sparse_goal(stretch([(3.4, 4.4)]), GOAL, 0.5)[1].tolist() == [False]


def test_observations_that_the_goal_does_not_name_do_not_count():
    steps = stretch([(3, 4, 100)], first=(0, 0, 0))
    assert sparse_goal(steps, GOAL, 0.5)[1].tolist() == [True]
    assert sparse_goal(steps, [100.0, 3.0], 0.5, indices=[2, 0])[1].tolist() == [True]
    assert goal_distance(steps, [97.0, 3.0], indices=[2, 0])[0].tolist() == [-3]


def test_goal_distance_is_that_after_the_decision_and_ends_nothing():
    rewards, terminals = goal_distance(stretch([GOAL, (0, 0)], [(3, 4)]), GOAL)
    assert rewards.tolist() == [-5, 0] and rewards.dtype == np.float32
    assert not terminals.any()


def test_action_cost_is_the_sum_of_squares_of_the_chosen_dimensions():
    steps = stretch([AWAY], [AWAY], actions=np.array([[1, 2, 3], [0, 0, -4]], np.float32))
    assert action_cost(steps)[0].tolist() == [-14, -16]
    assert action_cost(steps, indices=[0, 1])[0].tolist() == [-5, 0]


def test_hold_ends_after_its_time_and_counts_anew():
    # 1 s at 2 Hz: two decisions that begin and end at the goal.
    _, terminals = reach_and_hold(line(9, 0, 0, 0, 0, 0, 0), [0.0], 0.5, 1.0)
    assert terminals.tolist() == [False, False, True, False, True, False]


def test_hold_begins_anew_where_the_goal_was_left_at_a_tick_or_between_two():
    assert reach_and_hold(line(0, 0, 9, 0, 0, 0), [0.0], 0.5, 1.0)[1].tolist() == [
        False, False, False, False, True]
    steps = stretch([(0,)], [(9,), (0,)], [(0,), (0,)], [(0,)], first=(0,))
    rewards, terminals = reach_and_hold(steps, [0.0], 0.5, 1.0)
    assert terminals.tolist() == [False, False, False, True]
    assert rewards.tolist() == [-1, -1, -1, 0]


@pytest.mark.parametrize('seconds, decisions', [(0.01, 1), (0.1, 1), (0.3, 3), (0.31, 4)])
def test_hold_is_rounded_up_to_whole_decisions(seconds, decisions):
    _, terminals = reach_and_hold(line(*[0] * 9, rate=10.0), [0.0], 0.5, seconds)
    assert np.flatnonzero(terminals)[0] + 1 == decisions


@pytest.mark.parametrize('reward', [
    {'sparse_goal': {'goal': GOAL, 'tolerance': 0.5}}, {'goal_distance': {'goal': GOAL}},
    {'reach_and_hold': {'goal': GOAL, 'tolerance': 0.5, 'seconds': 1}}, {'action_cost': {}},
    {'topic': {'topic': 'score', 'field': 'data'}},
])
def test_no_decision_gives_no_reward(reward):
    rewards, terminals = Task(reward).judge(stretch(reward=np.zeros(0)))
    assert rewards.shape == terminals.shape == (0,)


points = st.tuples(*[st.sampled_from([0.0, 1.0, 2.0, 3.0])] * 2)
stretches = st.lists(st.lists(points, min_size=1, max_size=4), max_size=12).map(
    lambda within: stretch(*within, first=(0, 0)))


@hypothesis.given(stretches)
@hypothesis.settings(max_examples=100, deadline=None)
def test_reward_is_zero_exactly_where_a_point_of_the_decision_is_near(steps):
    rewards, terminals = sparse_goal(steps, [1.0, 1.0], 1.0)
    ends = np.cumsum(steps.counts)
    for k, end in enumerate(ends):
        seen = [*steps.between[end - steps.counts[k]:end], steps.observations[k + 1]]
        assert terminals[k] == any(np.hypot(x - 1, y - 1) <= 1.0 for x, y in seen)
    assert rewards.tolist() == [0.0 if reached else -1.0 for reached in terminals]


@hypothesis.given(stretches, st.sampled_from([0.5, 1.0, 1.5]))
@hypothesis.settings(max_examples=100, deadline=None)
def test_hold_is_that_of_a_stopwatch(steps, seconds):
    def near(point):
        return np.hypot(point[0] - 1, point[1] - 1) <= 1.0

    held, expected, row = 0, [], 0
    for k, count in enumerate(steps.counts):
        seen = [steps.observations[k], *steps.between[row:row + count], steps.observations[k + 1]]
        row += count
        held = held + 1 if all(map(near, seen)) else 0
        expected.append(held == seconds * steps.rate)
        held = 0 if expected[-1] else held
    assert reach_and_hold(steps, [1.0, 1.0], 1.0, seconds)[1].tolist() == expected


@hypothesis.given(stretches)
@hypothesis.settings(max_examples=50, deadline=None)
def test_an_episode_judged_alone_is_judged_as_among_others(steps):
    for reward in ({'sparse_goal': {'goal': [1, 1], 'tolerance': 1}},
                   {'reach_and_hold': {'goal': [1, 1], 'tolerance': 1.5, 'seconds': 1}}):
        task = Task(reward)
        for episode in episodes_of(steps, task):
            rewards, terminals = task.judge(Steps(
                episode.observations, episode.actions, episode.between, episode.counts,
                steps.rate))
            assert rewards.tolist() == episode.rewards.tolist()
            assert terminals.tolist() == [False] * (len(rewards) - 1) + [episode.terminated]


def test_a_million_decisions_are_judged_in_seconds():
    rng = np.random.default_rng(0)
    rows = 10 ** 6
    steps = Steps(
        rng.normal(size=(rows + 1, 2)).astype(np.float32), np.zeros((rows, 1), np.float32),
        rng.normal(size=(2 * rows, 2)).astype(np.float32), np.full(rows, 2), 10.0)
    reference = sum(
        (np.hypot(*(seen.T.astype(float) - 1)) <= 0.1).astype(int)
        for seen in (steps.between[::2], steps.between[1::2], steps.observations[1:])) > 0
    assert np.array_equal(sparse_goal(steps, [1.0, 1.0], 0.1)[1], reference)
    reach_and_hold(steps, [1.0, 1.0], 2.0, 0.5)


# Tasks


def test_weighted_sum_is_that_of_its_parts_with_a_terminal_where_any_has_one():
    actions = np.array([[1], [2]], np.float32)
    steps = stretch([(0, 0)], [(3, 4)], actions=actions)
    task = Task({'weighted_sum': [
        {'weight': 10, 'sparse_goal': {'goal': GOAL, 'tolerance': 0.5}},
        {'weight': 0.5, 'action_cost': {}}, {'weight': -1, 'goal_distance': {'goal': GOAL}}]})
    rewards, terminals = task.judge(steps)
    assert rewards.tolist() == [-10 - 0.5 + 5, -2] and rewards.dtype == np.float32
    assert terminals.tolist() == [False, True]


def test_terminal_is_the_rewards_or_never_or_the_topics():
    reward = {'sparse_goal': {'goal': GOAL, 'tolerance': 0.5}}
    steps = stretch([(3, 4)], [AWAY], terminal=np.array([False, True]))
    named = {'topic': {'topic': 'done', 'field': 'data'}}
    for terminal, expected in (
        ('reward', [True, False]), ('never', [False, False]), (named, [False, True]),
    ):
        rewards, terminals = Task(reward, terminal).judge(steps)
        assert terminals.tolist() == expected and terminals.dtype == bool
        assert rewards.tolist() == [0, -1]


def test_topics_are_named_once_each_with_what_is_made_of_their_messages():
    score = {'topic': {'topic': 'score', 'field': 'data'}}
    task = Task(score, {'topic': {'topic': 'done', 'field': 'flags[2]'}})
    assert task.needs == [('reward', 'score', 'data', 'sum'),
                          ('terminal', 'done', 'flags[2]', 'any')]
    assert Task({'topic': {**score['topic'], 'reduce': 'last'}}).needs[0].reduce == 'last'
    twice = {'weighted_sum': [{'weight': 1, **score}, {'weight': 2, **score}]}
    assert len(Task(twice).needs) == 1
    assert Task({'action_cost': {}}).needs == []
    with pytest.raises(RewardError, match='one topic with rewards, found score, speed'):
        Task({'weighted_sum': [
            {'weight': 1, **score},
            {'weight': 1, 'topic': {'topic': 'speed', 'field': 'data'}}]})


def test_rewards_of_a_topic_are_those_of_the_bag_and_refused_without():
    task = Task({'topic': {'topic': 'score', 'field': 'data'}}, {
        'topic': {'topic': 'done', 'field': 'data'}})
    steps = stretch([AWAY], [AWAY], reward=np.array([0.5, 2]), terminal=np.array([False, True]))
    assert [array.tolist() for array in task.judge(steps)] == [[0.5, 2], [False, True]]
    for kind, topic in (('reward', 'score'), ('terminal', 'done')):
        rest = {name: values for name, values in steps.topics.items() if name != kind}
        with pytest.raises(RewardError, match=f'topic {topic} for the {kind}, found none'):
            task.judge(replace(steps, topics=rest))


@pytest.mark.parametrize('text, reward', [
    ('sparse_goal: {goal: [16, 20], tolerance: 0.5}',
     {'sparse_goal': {'goal': [16, 20], 'tolerance': 0.5}}),
    ('action_cost', {'action_cost': {}}),
    ('{action_cost: }', {'action_cost': None}),
    ('weighted_sum: [{weight: 2, action_cost: {}}]',
     {'weighted_sum': [{'weight': 2, 'action_cost': {}}]}),
])
def test_task_is_read_from_a_line_a_file_and_its_own_json(tmp_path, text, reward):
    path = tmp_path / 'task.yaml'
    path.write_text(text)
    for given in (text, str(path)):
        task = parse_task(given, '{topic: {topic: done, field: data}}')
        assert task == Task(reward, {'topic': {'topic': 'done', 'field': 'data'}})
        assert Task.from_json(task.to_json()) == pickle.loads(pickle.dumps(task)) == task
    assert parse_task(text).terminal == 'reward'
    assert parse_task(text, 'never').terminal == 'never'


@pytest.mark.parametrize('reward, message', [
    ('reach: {goal: [1]}', 'one of goal_distance, .*weighted_sum, or module:function, .*reach'),
    ('sparse_goal: {goal: [1], tolerance: 1, radius: 2}',
     'sparse_goal: expected parameters of goal, tolerance, indices, found .radius'),
    ('sparse_goal: {goal: [1]}', 'sparse_goal: expected the parameter tolerance, found none'),
    ('sparse_goal', 'sparse_goal: expected the parameter goal, found none'),
    ('sparse_goal: [1]', 'sparse_goal: expected a mapping of parameters .goal'),
    ('sparse_goal: {goal: 3, tolerance: 1}', 'goal: expected a list of numbers, found 3'),
    ('sparse_goal: {goal: [true], tolerance: 1}', 'goal: expected a list of numbers'),
    ('sparse_goal: {goal: [1], tolerance: near}', "tolerance: expected a number .* 'near'"),
    ('sparse_goal: {goal: [.nan], tolerance: 1}', 'task: expected finite numbers'),
    ('sparse_goal: {goal: [2020-01-01], tolerance: 1}', 'task: expected finite numbers'),
    ('reach_and_hold: {goal: [1], tolerance: 1, seconds: 0}', 'seconds: expected a number above'),
    ('goal_distance: {goal: [1], indices: [-1]}', 'indices: expected a list of different whole'),
    ('goal_distance: {goal: [1, 1], indices: [1, 1]}', 'indices: expected a list of different'),
    ('topic: {topic: score, field: "data[0:2]"}', 'field: expected a field path of one number'),
    ('topic: {topic: score, field: data, reduce: mean}', 'reduce: expected sum or last'),
    ('weighted_sum: []', 'weighted_sum: expected a list of'),
    ('weighted_sum: [{action_cost: {}}]', r'weighted_sum\[0\]: expected {weight: NUMBER'),
    ('weighted_sum: [{weight: 1, weighted_sum: []}]', 'no weighted_sum within another'),
    ('{action_cost: {}, topic: {}}', 'expected one mapping NAME: PARAMETERS'),
    ('action_cost: {indices: [0], indices: [1]}', 'reward: is not YAML: the key indices is there'),
    ('!!python/object/apply:os.getcwd []', 'reward: is not YAML: could not determine'),
    ('{', 'reward: is not YAML'),
    ('none.yaml', 'reward: none.yaml: cannot be read'),
])
def test_unfit_tasks_are_refused_in_a_line_that_says_what_exists(reward, message):
    with pytest.raises(RewardError, match=message) as refused:
        parse_task(reward)
    assert '\n' not in str(refused.value)


@pytest.mark.parametrize('terminal', [
    'sometimes', '{topic: {topic: done}}', 'topic: done', '[reward]',
    'topic: {topic: done, field: data, reduce: last}',
])
def test_unfit_terminals_are_refused(terminal):
    with pytest.raises(RewardError, match='^terminal: .*expected'):
        parse_task('action_cost', terminal)


@pytest.mark.parametrize('text', ['', '[]', '{"reward": {}}', 'reach', None])
def test_text_that_is_no_task_is_refused(text):
    with pytest.raises(RewardError, match='task: expected'):
        Task.from_json(text)


@pytest.mark.parametrize('reward, message', [
    ('sparse_goal: {goal: [1, 2, 3], tolerance: 1}', 'a goal of 1 to 2 numbers, .* found 3'),
    ('goal_distance: {goal: [1], indices: [2]}', 'indices: expected 0 to 1, found .2'),
    ('goal_distance: {goal: [1], indices: [0, 1]}', 'as many indices as numbers in the goal, 1'),
    ('action_cost: {indices: [3]}', 'action_cost: indices: expected 0 to 2, found .3'),
])
def test_what_does_not_fit_the_robot_is_found_before_the_work(reward, message):
    with pytest.raises(RewardError, match=message):
        parse_task(reward).check(2, 3)
    with pytest.raises(RewardError, match=message):
        parse_task(reward).judge(stretch([(0, 0)], actions=np.zeros((1, 3))))


# A function of one's own


OWN = """
import numpy as np

def score(steps, gain=1.0):
    return gain * steps.actions[:, 0], steps.actions[:, 0] > 1

def wrong(steps, what):
    n = len(steps.actions)
    return {'shape': (np.zeros(n + 1), np.zeros(n, bool)),
            'finite': (np.full(n, np.nan), np.zeros(n, bool)),
            'bool': (np.zeros(n), np.zeros(n)),
            'pair': np.zeros(n)}[what]

def write(steps):
    steps.observations[:] = 0

number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Put a module of rewards into the current folder; give a stretch to judge."""
    (tmp_path / 'own_rewards.py').write_text(OWN)
    (tmp_path / 'broken_rewards.py').write_text('1 / 0')
    monkeypatch.chdir(tmp_path)
    yield stretch([AWAY], [AWAY], actions=np.array([[1], [2]], np.float32))
    sys.modules.pop('own_rewards', None)


def test_own_function_of_the_current_folder_judges_with_its_parameters(own):
    path = list(sys.path)
    assert parse_task('own_rewards:score').judge(own)[0].tolist() == [1, 2]
    task = parse_task('{"own_rewards:score": {gain: -2}}')
    rewards, terminals = task.judge(own)
    assert rewards.tolist() == [-2, -4] and rewards.dtype == np.float32
    assert terminals.tolist() == [False, True]
    assert sys.path == path
    both = Task({'weighted_sum': [
        {'weight': 2, 'own_rewards:score': {}}, {'weight': 0, 'action_cost': {}}]})
    assert both.judge(own)[0].tolist() == [2, 4] and both.own == ['own_rewards:score']


@pytest.mark.parametrize('reward, message', [
    ('own_rewards:other', r'own_rewards:other: cannot be imported from .*no attribute .other'),
    ('no_such_module:score', "cannot be imported .*No module named 'no_such_module'"),
    ('broken_rewards:score', r'cannot be imported .*ZeroDivisionError: .*broken_rewards.py:1'),
    ('own_rewards:number', 'own_rewards:number: expected a function, found 3'),
    ('{"own_rewards:score": {gian: 2}}', "own_rewards:score: expected the parameters .*'gian'"),
    ('{"own_rewards:score": 2}', 'own_rewards:score: expected a mapping of parameters, found 2'),
])
def test_own_function_that_cannot_be_called_is_refused_at_once(own, reward, message):
    with pytest.raises(RewardError, match=message):
        parse_task(reward)


def test_own_function_of_a_task_made_otherwise_is_looked_at_in_check(own):
    task = Task({'own_rewards:score': {'gian': 2}})
    with pytest.raises(RewardError, match="own_rewards:score: expected the parameters .*'gian'"):
        task.check(2, 1)


@pytest.mark.parametrize('what, message', [
    ('shape', r'expected rewards of shape \(2,\) and numbers, found shape \(3,\)'),
    ('finite', 'expected finite rewards, found nan at step 0'),
    ('bool', r'expected terminals of shape \(2,\) and bool, found .* float64'),
    ('pair', r'expected \(rewards, terminals\), found array'),
    ('other', r"failed: KeyError: 'other' \(own_rewards.py:\d+\)"),
])
def test_what_an_own_function_returns_is_checked(own, what, message):
    with pytest.raises(RewardError, match=f'own_rewards:wrong: .*{message}'):
        parse_task(f'{{"own_rewards:wrong": {{what: {what}}}}}').judge(own)


def test_own_function_cannot_change_what_it_judges(own):
    with pytest.raises(RewardError, match='own_rewards:write: failed: .*read-only'):
        parse_task('own_rewards:write').judge(own)
    assert own.observations.any()


def test_task_from_json_imports_nothing(own):
    task = Task.from_json('{"reward": {"own_rewards:score": {}}, "terminal": "reward"}')
    assert 'own_rewards' not in sys.modules
    assert task.needs == []


def test_functions_are_imported_once_for_a_task_and_not_taken_to_another_process(
    own, monkeypatch
):
    task = parse_task('own_rewards:score')
    monkeypatch.setattr(rewards_module.importlib, 'import_module', None)
    for _ in range(2):
        assert task.judge(own)[0].tolist() == [1, 2]
    task.check(2, 1)
    assert 'gain' in task.own_source()
    assert sorted(task.__getstate__()) == ['reward', 'terminal']
    assert pickle.loads(pickle.dumps(task)) == task


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Return a function that writes modules into the current folder and tells a task's source."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'dont_write_bytecode', True)
    before = set(sys.modules)

    def forget():
        for name in set(sys.modules) - before:
            del sys.modules[name]
        importlib.invalidate_caches()

    def source(task, **files):
        for name, text in files.items():
            path = tmp_path / f'{name.replace("__", "/")}.py'
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        forget()
        return parse_task(task).own_source()

    yield source
    forget()


PLAIN = ('def score(steps):\n'
         '    none = np.zeros(len(steps.actions), bool)\n'
         '    return none + GAIN, none\n')


@pytest.mark.parametrize('names', [
    ('plain', 'helper', 'from helper import GAIN'),
    ('ours__goals', 'ours__deep', 'from .deep import GAIN'),
    ('ours__goals', 'beside', 'from beside import GAIN'),
])
def test_source_is_another_when_a_module_that_it_imports_is(modules, names):
    name, helper, line = names
    task = f'{name.replace("__", ".")}:score'
    files = {name: f'import numpy as np\n{line}\n' + PLAIN, 'unused': 'GAIN = 9\n'}
    first = modules(task, **files, **{helper: 'GAIN = 1\n'})
    assert 'def score' in first and 'GAIN = 1' in first
    assert 'GAIN = 9' not in first and 'numpy/__init__' not in first
    assert modules(task, **files, **{helper: 'GAIN = 1\n'}) == first
    assert modules(task, **files, **{helper: 'GAIN = 2\n'}) != first


def test_source_stays_when_judging_imports_more(modules, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    late = PLAIN.replace('(steps):\n', '(steps):\n    from late import GAIN\n')
    first = modules('plain:score', plain='import numpy as np\n' + late, late='GAIN = 3\n')
    parse_task('plain:score').judge(stretch([AWAY]))
    assert 'late' in sys.modules
    assert Task({'plain:score': {}}).own_source() == first


def test_source_is_told_for_functions_of_no_module_and_for_compiled_ones(modules):
    lost = 'import numpy as np\nGAIN = 4\n' + PLAIN + 'score.__module__ = None\n'
    assert 'GAIN = 4' in modules('lost:score', lost=lost)
    assert parse_task('lost:score').judge(stretch([AWAY]))[0].tolist() == [4]
    for name in ('math:sqrt', 'time:sleep'):  # in a file of its own, and built in
        task = parse_task(name)
        task.check(2, 1)
        assert task.own_source().startswith(f'# {name.partition(":")[0]}\n')
        assert task.own_source().count('# ') == 1
        with pytest.raises(RewardError, match=f'{name}: failed: TypeError'):
            task.judge(stretch([AWAY]))


@pytest.mark.parametrize('text, message', [
    ('import sys\nsys.exit(3)', r'quits:score: cannot be imported .*SystemExit: 3 \(quits.py:2\)'),
    ('import sys\ndef score(steps):\n    sys.exit()', r'failed: SystemExit \(quits.py:3\)'),
])
def test_own_module_that_would_end_the_tool_is_an_error(modules, text, message):
    with pytest.raises(RewardError, match=message):
        modules('quits:score', quits=text)
        parse_task('quits:score').judge(stretch([AWAY]))


# The rewards' scale


def test_scaled_rewards_give_returns_that_span_a_thousand():
    rewards = np.array([1, 2, 3, -4, 0.5], np.float32)
    episodes = np.array([0, 0, 7, 7, 9])
    scaled = scale('return_range', rewards, episodes) * rewards
    returns = [scaled[episodes == number].sum() for number in (0, 7, 9)]
    assert max(returns) - min(returns) == pytest.approx(1000)
    assert scale('none', rewards, episodes) == 1


def test_equal_returns_cannot_be_scaled():
    with pytest.raises(ValueError, match='reward_scaling: .*different returns, found -2 for each'):
        scale('return_range', np.full(4, -1.0), np.array([0, 0, 1, 1]))
