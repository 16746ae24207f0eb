"""Scores of a policy file: repeatable, alone on a robot's machine, and honest about chance."""

import json
from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest

hypothesis = pytest.importorskip('hypothesis', reason='hypothesis is not installed')
pytest.importorskip('ogbench', reason='ogbench is not installed')
pytest.importorskip('tyro', reason='tyro is not installed')
from hypothesis import strategies as st  # noqa: E402
from idql_ros import environments  # noqa: E402
from idql_ros import message as messages  # noqa: E402
from idql_ros import spec as specs  # noqa: E402
from idql_ros.policy import Decision, Policy  # noqa: E402
from training import evaluate  # noqa: E402

ROOT = Path(__file__).parents[1]
DEFAULT = ROOT / 'config' / 'policies' / 'pointmaze_medium.onnx'
MAZE = environments.ROBOTS['pointmaze_medium']
ROBOT = specs.load(ROOT / 'config' / 'robots' / 'pointmaze_medium.yaml')
BLOCKED = ('torch', 'minari', 'rosbags', 'h5py', 'onnx', 'rclpy', 'matplotlib')


def run(*arguments, code=None):
    """Run `python -m training.evaluate`, or other code in its place."""
    program = ['-m', 'training.evaluate'] if code is None else ['-c', code]
    return subprocess.run([sys.executable, *program, *map(str, arguments)], cwd=ROOT,
                          capture_output=True, text=True)


def short_maze(**kwargs):
    """Return the maze with an end that is near."""
    return environments.pointmaze_medium(max_episode_steps=30, **kwargs)


def constant(action, q=1.0):
    """Return a policy that always decides the same."""
    action = np.array(action, np.float32)
    return lambda observation, tick_ns: Decision(action, q, 0.0, action[None], np.array([q]))


@pytest.mark.parametrize(('successes', 'episodes', 'low', 'high'), [
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3.
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718), (29, 29, 0.8830, 1.0)])
def test_interval_is_wilsons(successes, episodes, low, high):
    assert evaluate.success_interval(successes, episodes) == pytest.approx((low, high), abs=5e-5)


@hypothesis.given(st.integers(1, 1000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@hypothesis.settings(max_examples=50, deadline=None)
def test_interval_holds_the_rate_lies_within_zero_and_one_and_is_symmetric(counts):
    successes, episodes = counts
    low, high = evaluate.success_interval(successes, episodes)
    rate = successes / episodes
    assert 0.0 <= low <= rate + 1e-12 and rate - 1e-12 <= high <= 1.0
    mirrored = evaluate.success_interval(episodes - successes, episodes)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_scoring_a_file_twice_gives_identical_episodes():
    first, second = (
        evaluate.evaluate(Policy(DEFAULT), MAZE, 2, 3, 4, 'test') for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert (one.total_reward, one.success, one.length) == (
            other.total_reward, other.success, other.length)
        assert one.observations.tobytes() == other.observations.tobytes()
        assert one.q.tobytes() == other.q.tobytes()
    # Episodes of one run differ, and so does another seed.
    assert first[0].observations.tobytes() != first[1].observations.tobytes()
    # Episode k of seed s starts as episode 0 of seed s + k.
    shifted, = evaluate.evaluate(Policy(DEFAULT), MAZE, 1, 4, 4, 'test')
    assert np.array_equal(shifted.observations[0], first[1].observations[0])


def test_extraction_and_temperatures_reach_the_decisions():
    opened, asked = Policy(DEFAULT), []
    decide = opened.decide

    def spy(*arguments, **keywords):
        asked.append(keywords)
        return decide(*arguments, **keywords)

    opened.decide = spy
    evaluate.evaluate(opened, MAZE, 1, 0, 2, 'test', extraction='implicit',
                      softmax_temperature=3.0, sampling_temperature=0.5)
    assert asked and all(keywords == {
        'extraction': 'implicit', 'temperature': 3.0, 'sampling_temperature': 0.5}
        for keywords in asked)


def test_policy_is_asked_once_a_tick_with_the_observation_and_time_of_the_tick():
    robot = environments.SimulatedRobot(short_maze(), ROBOT, seed=0)
    asked = []

    def decide(observation, tick_ns):
        asked.append((observation.copy(), tick_ns))
        return constant([0.5, 0.0])(observation, tick_ns)

    result = evaluate.run_episode(robot, 2, decide)
    assert (result.length, result.total_reward, result.success) == (30, -30.0, False)
    start_ns = ROBOT.start_of(ROBOT.period_of(asked[0][1]))
    assert [tick_ns for _, tick_ns in asked] == [start_ns + k * 500_000_000 for k in range(6)]
    assert np.array_equal(result.observations, np.stack([o for o, _ in asked]))
    # 0.5 m/s along x, held for half a second.
    assert np.diff(result.observations[:, 0]) == pytest.approx(np.full(5, 0.25), abs=1e-3)


@pytest.mark.parametrize('decision', [
    constant([np.nan, 0.0]), constant([np.inf, 0.0]), constant([1.0, 0.0], q=np.nan)])
def test_robot_stops_where_the_policy_gives_what_is_not_finite(decision):
    robot = environments.SimulatedRobot(short_maze(), ROBOT, seed=0)
    result = evaluate.run_episode(robot, 0, decision)
    assert np.isnan(result.q).all() and len(result.q) == 6
    assert np.ptp(result.observations, axis=0) == pytest.approx([0, 0], abs=1e-3)


def test_robot_stops_where_an_observation_is_not_finite():
    class Blind(environments.SimulatedRobot):
        def observe(self):
            found = super().observe()
            if 10 <= self.step < 15:
                found['odom'].pose.pose.position.x = np.nan
            return found

    result = evaluate.run_episode(
        Blind(short_maze(), ROBOT, seed=0), 0, constant([0.5, 0.0]))
    assert np.isnan(result.q).tolist() == np.isnan(result.observations[:, 0]).tolist() == [
        False, False, True, False, False, False]
    assert result.observations[3, 0] - result.observations[1, 0] == pytest.approx(0.25, abs=1e-3)


def test_actions_beyond_the_limits_are_held_within_them():
    def last(action):
        robot = environments.SimulatedRobot(short_maze(), ROBOT, seed=0)
        return evaluate.run_episode(robot, 0, constant(action)).observations[-1]

    assert np.array_equal(last([7.0, 0.0]), last([2.0, 0.0]))
    assert not np.array_equal(last([1.0, 0.0]), last([2.0, 0.0]))


def test_stop_that_is_not_known_ends_the_evaluation_with_its_reason():
    data = ROBOT.to_dict()
    for dimension in data['actions'][0]['dimensions']:
        dimension |= {'kind': 'position', 'stop': 'hold_last_sent'}
    robot = environments.SimulatedRobot(
        short_maze(), specs.parse(data, 'robot.yaml'), seed=0)
    with pytest.raises(environments.SimulationError, match='no known stop at .* not finite'):
        evaluate.run_episode(robot, 0, constant([np.nan, 0.0]))


@pytest.mark.parametrize('tick', ['timer', 'arrival'])
def test_both_kinds_of_tick_give_the_same_episode(tick):
    spec = specs.parse({**ROBOT.to_dict(), 'tick': tick}, 'robot.yaml')
    robot = environments.SimulatedRobot(short_maze(), spec, seed=0)
    result = evaluate.run_episode(robot, 0, constant([0.5, 0.5]))
    expected = evaluate.run_episode(
        environments.SimulatedRobot(short_maze(), ROBOT, seed=0), 0, constant([0.5, 0.5]))
    assert np.array_equal(result.observations, expected.observations)


def test_summary_counts_every_episode():
    def result(success, total_reward, length):
        return evaluate.EpisodeResult(total_reward, success, length, np.zeros((1, 2)), np.zeros(1))

    found = evaluate.summarise([result(True, -10.0, 11), result(False, -20.0, 20)])
    assert found == {'success': 0.5, 'interval': list(evaluate.success_interval(1, 2)),
                     'mean_return': -15.0, 'returns': [-10.0, -20.0], 'lengths': [11, 20]}


def test_text_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / 'summary.json'
    evaluate.write_text(path, 'first')
    assert [file.name for file in tmp_path.iterdir()] == ['summary.json']
    with pytest.raises(UnicodeEncodeError):
        evaluate.write_text(path, 'second \ud800')
    assert path.read_text() == 'first'


def test_program_scores_a_file_alone_where_torch_and_datasets_are_not_importable(tmp_path):
    file = tmp_path / 'alone' / 'policy.onnx'
    file.parent.mkdir()
    file.write_bytes(DEFAULT.read_bytes())
    scores = tmp_path / 'scores.json'
    code = ('import runpy, sys\n'
            'class Blocked:\n'
            '    def find_spec(name, *_):\n'
            f'        if name.split(".")[0] in {BLOCKED!r}:\n'
            '            raise ModuleNotFoundError(name)\n'
            'sys.meta_path.insert(0, Blocked)\n'
            'sys.argv[0] = "evaluate"\n'
            'runpy.run_module("training.evaluate", run_name="__main__")\n')
    found = run(file, '--episodes', '2', '--seed', '5', '--candidates', '3', '--extraction',
                'implicit', '--sampling-temperature', '0.5', '--json-file', scores, code=code)
    assert found.returncode == 0, found.stderr
    assert (f'{file} in {MAZE}, 2 episodes from seed 5, extraction implicit, softmax temperature '
            '1, sampling temperature 0.5') in found.stdout
    assert 'N =    3: success' in found.stdout
    written = json.loads(scores.read_text())
    assert written['sha256'] == Policy(file).digest
    # What the program reports is what the function gives.
    results = evaluate.evaluate(Policy(DEFAULT), MAZE, 2, 5, 3, 'test', 'implicit', 1.0, 0.5)
    assert written['extraction'] == 'implicit' and written['sampling_temperature'] == 0.5
    assert written['candidates']['3']['returns'] == [r.total_reward for r in results]


@pytest.mark.parametrize(('arguments', 'code', 'reason'), [
    (['none.onnx'], 1, 'none.onnx: cannot be read'),
    ([ROOT / 'setup.py'], 1, 'not an ONNX file'),
    ([DEFAULT, '--environment', 'NoSuch-v0'], 1, 'environment NoSuch-v0: expected module:factory'),
    ([DEFAULT, '--environment', 'Pendulum-v1'], 1, 'expected an environment with 2 observation'),
    ([DEFAULT, '--environment', 'os:getcwd'], 1, 'environment os:getcwd: expected a Gymnasium'),
    ([DEFAULT, '--episodes', '0'], 1, 'expected 1 episode or more'),
    ([DEFAULT, '--candidates', '0'], 1, '1 to 4096 candidates, found 50 and [0]'),
    ([DEFAULT, '--candidates', '1000000000'], 1, '1 to 4096 candidates'),
    ([DEFAULT, '--seed', '-1'], 1, 'expected a seed from 0 to 4294967246, found -1'),
    ([DEFAULT, '--softmax-temperature', '-1'], 1, 'softmax_temperature: expected a number from 0'),
    ([DEFAULT, '--sampling-temperature', 'nan'], 1, 'sampling_temperature: expected a number'),
    ([DEFAULT, '--extraction', 'best'], 2, None),
    ([DEFAULT, '--episodes', 'many'], 2, None),
    ([DEFAULT, '--no-such-option'], 2, None),
    ([], 2, None),
])
def test_program_says_in_one_line_what_is_wrong(arguments, code, reason):
    found = run(*arguments)
    assert found.returncode == code
    assert 'Traceback' not in found.stderr
    if reason is not None:
        line, = found.stderr.strip().split('\n')
        assert line.startswith('error: ') and reason in line


def test_messages_are_on_the_path_of_evaluation():
    """What a message cannot keep must not reach the environment, as it would not over ROS 2."""
    data = ROBOT.to_dict()
    data['observations'][0] |= {'type': 'std_msgs/msg/Float32MultiArray', 'fields': ['data[0:2]']}
    written = []

    def blank(message_type):
        written.append(message_type)
        return messages.blank(message_type)

    robot = environments.SimulatedRobot(
        short_maze(), specs.parse(data, 'robot.yaml'), seed=0, new=blank)
    written.clear()
    evaluate.run_episode(robot, 0, constant([0.5, 0.5]))
    assert written == ['std_msgs/msg/Float32MultiArray'] * 30
