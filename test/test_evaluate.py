"""Scores of a policy file: repeatable, alone on a robot's machine, and honest about chance."""

import contextlib
import functools
import json
import multiprocessing
from multiprocessing import forkserver
import os
from pathlib import Path
import random
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

gymnasium = pytest.importorskip('gymnasium', reason='gymnasium is not installed')
hypothesis = pytest.importorskip('hypothesis', reason='hypothesis is not installed')
pytest.importorskip('ogbench', reason='ogbench is not installed')
pytest.importorskip('tyro', reason='tyro is not installed')
from hypothesis import strategies as st  # noqa: E402
from idql_ros import environments  # noqa: E402
from idql_ros import message as messages  # noqa: E402
from idql_ros import spec as specs  # noqa: E402
from idql_ros.policy import Decision, Policy  # noqa: E402
from idql_ros.simulated_robot import plain_spec, SimulatedRobot  # noqa: E402
from training import evaluate  # noqa: E402

ROOT = Path(__file__).parents[1]
DEFAULT = ROOT / 'config' / 'policies' / 'pointmaze_medium.onnx'
MAZE = environments.ROBOTS['pointmaze_medium']
ROBOT = specs.load(ROOT / 'config' / 'robots' / 'pointmaze_medium.yaml')
BLOCKED = ('torch', 'minari', 'rosbags', 'h5py', 'onnx', 'rclpy', 'matplotlib')


def run(*arguments):
    """Run `python -m training.evaluate`."""
    return subprocess.run(
        [sys.executable, '-m', 'training.evaluate', *map(str, arguments)], cwd=ROOT,
        capture_output=True, text=True, env={
            **os.environ, 'PYTHONPATH': f'{ROOT / "test"}:{os.environ.get("PYTHONPATH", "")}'})


def short_maze(**kwargs):
    """Return the maze with an end that is near."""
    return environments.pointmaze_medium(max_episode_steps=30, **kwargs)


def maze_that_tells_no_success():
    """Return the short maze without what it says beside its observation."""
    class Silent(gymnasium.Wrapper):
        def step(self, action):
            return *super().step(action)[:4], {}

        def reset(self, **rest):
            return super().reset(**rest)[0], {}

    return Silent(short_maze())


def maze_of_random_speed():
    """Return the short maze, each step of which takes another time."""
    class Slowed(gymnasium.Wrapper):
        def step(self, action):
            time.sleep(0.005 * random.random())
            return super().step(action)

    return Slowed(short_maze())


def maze_that_ends_its_worker():
    """Return the maze in the test's process, and end any other that wants it."""
    if multiprocessing.parent_process() is not None:
        os._exit(3)
    return short_maze()


def maze_that_fails_in_a_worker():
    """Return the maze in the test's process, and refuse another."""
    if multiprocessing.parent_process() is not None:
        raise environments.SimulationError('out of mazes')
    return short_maze()


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


@pytest.mark.parametrize('parallel', [1, 2])
def test_extraction_and_temperatures_reach_the_decisions(parallel):
    opened, maze = Policy(DEFAULT), f'{__name__}:short_maze'
    robot = SimulatedRobot(short_maze(), ROBOT, seed=5)
    for settings in (('implicit', 1.0, 1.0), ('softmax', 3.0, 0.5)):
        found = evaluate.evaluate(opened, maze, 2, 5, 8, 'test', *settings, parallel)
        names = ('extraction', 'temperature', 'sampling_temperature')
        decide = functools.partial(
            opened.decide, seed=5, candidates=8, **dict(zip(names, settings, strict=True)))
        for episode, result in enumerate(found):
            expected = evaluate.run_episode(robot, episode, decide)
            assert result.q == pytest.approx(expected.q, abs=1e-3)
            assert result.observations == pytest.approx(expected.observations, abs=1e-3)


def test_robots_at_a_time_change_the_rounding_of_a_decision_and_nothing_else():
    # Of decisions: 2e-4, see test_policy. On the way through an episode of 33 ticks they add up.
    opened, episodes = Policy(DEFAULT), 6
    alone = evaluate.evaluate(opened, MAZE, episodes, 3, 32, 'test')
    for parallel in (4, 100):
        together = evaluate.evaluate(opened, MAZE, episodes, 3, 32, 'test', parallel=parallel)
        for one, other in zip(alone, together, strict=True):
            assert (one.success, one.length) == (other.success, other.length)
            assert one.total_reward == pytest.approx(other.total_reward, abs=1e-3)
            assert one.observations == pytest.approx(other.observations, abs=1e-3)
            assert one.q == pytest.approx(other.q, abs=1e-3)
    assert len({result.length for result in alone}) > 1  # they did not end at once


def test_results_of_robots_at_a_time_do_not_depend_on_who_is_faster():
    class Recording(Policy):
        def decide_batch(self, observations, ticks_ns, *arguments, **settings):
            self.batches.append(ticks_ns)
            return super().decide_batch(observations, ticks_ns, *arguments, **settings)

    runs = []
    for _ in range(2):
        opened = Recording(DEFAULT)
        opened.batches = []
        results = evaluate.evaluate(
            opened, f'{__name__}:maze_of_random_speed', 5, 3, 8, 'test', parallel=3)
        runs.append((opened.batches, [
            (result.observations.tobytes(), result.q.tobytes()) for result in results]))
    assert runs[0] == runs[1]
    # Six ticks of three episodes together, and of the remaining two.
    assert [len(batch) for batch in runs[0][0]] == 6 * [3] + 6 * [2]


@pytest.mark.parametrize(('maze', 'reason'), [
    ('maze_that_ends_its_worker', 'expected 2 processes that simulate it, found one that ended'),
    ('maze_that_fails_in_a_worker', '^out of mazes$')])
def test_end_of_a_process_ends_the_evaluation_with_its_reason(maze, reason):
    with pytest.raises(environments.SimulationError, match=reason):
        evaluate.evaluate(Policy(DEFAULT), f'{__name__}:{maze}', 2, 0, 1, 'test', parallel=2)
    assert not multiprocessing.active_children()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(('ending', 'group'), [
    # A terminal sends SIGINT to all of them, who stops a service SIGTERM.
    (signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGINT, True),
    (signal.SIGKILL, False)])
def test_an_interrupt_leaves_no_process_and_no_scores(tmp_path, ending, group):
    child = subprocess.Popen(
        [sys.executable, '-m', 'training.evaluate', DEFAULT, '--episodes', '1000', '--parallel',
         '2', '--json-file', tmp_path / 'scores.json'], cwd=ROOT, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, start_new_session=True,
        # A shell without job control lets what it starts in the background ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        seen = b''
        while not re.search(rb' [1-9]\d*/1000', seen):  # it is under way
            part = child.stderr.read1()
            assert part, seen
            seen += part
        if group:
            os.killpg(child.pid, ending)
        else:
            child.send_signal(ending)
        # Read to the end: the workers hold the other end of this pipe as long as they live.
        seen += child.stderr.read()
        assert child.wait() == (1 if ending != signal.SIGKILL else -signal.SIGKILL)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.stderr.close()
        child.wait()
    if ending != signal.SIGKILL:
        assert seen.decode().endswith('error: interrupted; no file is half written\n')
    assert b'Traceback' not in seen
    assert not list(tmp_path.iterdir())


PROGRAM_WITH_A_HANDLER = """
import signal, sys
from idql_ros.environments import make
from idql_ros.policy import Policy
from idql_ros.simulated_robot import SimulatedRobot
from training import evaluate

make(sys.argv[2]).close()  # what it imports runs programs that SIGTERM ends
received = []
for kind in (signal.SIGTERM, signal.SIGINT):
    signal.signal(kind, lambda number, _: received.append(number))
print('ready', flush=True)
results = evaluate.evaluate(Policy(sys.argv[1]), sys.argv[2], 60, 0, 1, 'test', parallel=2)
print(len(results), len(received), flush=True)
sys.stdin.read()  # an interpreter that ends hears signals again
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize('ending', [signal.SIGTERM, signal.SIGINT])
def test_evaluation_goes_on_where_its_process_group_is_to_end_and_it_will_not(ending):
    """Signals come while the processes start, while they import and while they simulate."""
    child = subprocess.Popen(
        [sys.executable, '-c', PROGRAM_WITH_A_HANDLER, DEFAULT, f'{__name__}:short_maze'],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True, text=True,
        env={**os.environ, 'PYTHONPATH': f'{ROOT}:{ROOT / "test"}'})
    over = threading.Event()

    def send():
        while not over.wait(0.05):
            os.killpg(child.pid, ending)

    sender = threading.Thread(target=send)
    try:
        assert child.stdout.readline() == 'ready\n'
        sender.start()
        line = child.stdout.readline()
        over.set()
        sender.join()
        _, errors = child.communicate()
        assert child.returncode == 0, errors
        episodes, received = map(int, line.split())
        assert episodes == 60 and received > 3
        assert 'Traceback' not in errors
    finally:
        over.set()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


def test_loss_of_the_server_that_starts_processes_harms_no_evaluation():
    opened, maze = Policy(DEFAULT), f'{__name__}:short_maze'
    lost = []

    class Losing(Policy):
        def decide_batch(self, *arguments, **settings):
            if not lost:  # the processes are under way
                lost.append(forkserver._forkserver._forkserver_pid)
                os.kill(lost[0], signal.SIGKILL)
            return super().decide_batch(*arguments, **settings)

    expected = evaluate.evaluate(opened, maze, 4, 0, 1, 'test', parallel=2)
    for policy in (Losing(DEFAULT), opened):
        found = evaluate.evaluate(policy, maze, 4, 0, 1, 'test', parallel=2)
        assert [r.total_reward for r in found] == [r.total_reward for r in expected]
        assert not multiprocessing.active_children()
    assert forkserver._forkserver._forkserver_pid not in lost


def of_d4rl(name):
    """Return an environment of a class that the package d4rl defines, which is not for here."""
    env = type('AntMazeEnv', (gymnasium.Env,), {'__module__': 'd4rl.locomotion.ant'})()
    env.spec = gymnasium.envs.registration.EnvSpec(name)
    return env


def adapted(env):
    """Return an environment as an adapter of Gym's for Gymnasium wraps it."""
    outer = gymnasium.Env()
    outer.gym_env = env
    return outer


@pytest.mark.parametrize(('dataset', 'environment', 'reason'), [
    ('hopper-medium-v2.hdf5', 'Hopper-v4', None),
    ('hopper-medium-v2.hdf5', 'Hopper-v5', "hopper-medium-v2.hdf5 is D4RL's .* Hopper-v5 is not"),
    ('halfcheetah_full_replay-v2.hdf5', 'HalfCheetah-v5', 'HalfCheetah-v5 is not comparable'),
    ('mujoco/hopper/medium-v0', 'Hopper-v5', None),
    ('mujoco/hopper/medium-v0', 'Hopper-v4', "Minari's, not D4RL's.* Hopper-v4 is not comparable"),
    ('my_robot.hdf5', 'Pendulum-v1', None),
    ('demo/pointmaze_medium-v0', 'pointmaze-medium-singletask-task1-v0', None),
    (None, 'Hopper-v5', None),
])
def test_score_that_compares_with_no_published_one_says_so(
        tmp_path, monkeypatch, dataset, environment, reason):
    monkeypatch.chdir(tmp_path)  # where MuJoCo writes a log
    provenance = {} if dataset is None else {'dataset': dataset}
    found = evaluate.comparability(provenance, environments.make(environment))
    assert found is None if reason is None else re.search(reason, found)


@pytest.mark.parametrize('dataset', [
    'antmaze-large-play-v2.hdf5',
    'Ant_maze_hardest-maze_noisy_multistart_True_multigoal_True_sparse_fixed.hdf5'])
def test_data_of_d4rls_antmaze_is_scored_in_its_own_environment_only(dataset):
    provenance = {'dataset': dataset, 'dataset_metadata': {'layout': 'D4RL v2'}}
    for env in (of_d4rl('antmaze-large-play-v2'), adapted(of_d4rl('antmaze-large-play-v2'))):
        assert evaluate.comparability(provenance, env) is None
    # Of the same sizes, and another task.
    other = environments.make('antmaze-large-singletask-task1-v0')
    with pytest.raises(environments.SimulationError, match="D4RL's package.* found antmaze-"):
        evaluate.comparability(provenance, other)


def with_provenance(path, provenance, name='pointmaze_medium'):
    """Write the default policy with another provenance and robot's name."""
    onnx = pytest.importorskip('onnx', reason='onnx is not installed')
    model = onnx.load(DEFAULT)
    entry, = (entry for entry in model.metadata_props if entry.key == 'idql_ros')
    metadata = json.loads(entry.value) | {'provenance': provenance}
    metadata['spec']['name'] = name
    entry.value = json.dumps(metadata)
    onnx.save(model, path)
    return path


def test_data_of_d4rls_antmaze_is_refused_before_anything_is_simulated(tmp_path):
    path = with_provenance(tmp_path / 'ant.onnx', {'dataset': 'antmaze-umaze-v2.hdf5'})
    with pytest.raises(environments.SimulationError, match='^antmaze-umaze-v2.hdf5: expected'):
        evaluate.evaluate(Policy(path), MAZE, 1, 0, 1, 'test')
    found = run(path, '--episodes', '1')
    assert found.returncode == 1 and found.stdout == ''
    assert found.stderr.startswith('error: antmaze-umaze-v2.hdf5: expected')


def test_a_file_is_checked_before_it_is_opened(tmp_path):
    onnx = pytest.importorskip('onnx', reason='onnx is not installed')
    model = onnx.load(DEFAULT)
    model.ir_version = 9  # ONNX Runtime would take it
    onnx.save(model, tmp_path / 'p.onnx')
    found = run(tmp_path / 'p.onnx', '--episodes', '1')
    assert found.returncode == 1
    assert found.stderr.startswith(f'error: {tmp_path / "p.onnx"}: IR version: expected 8')


@pytest.mark.parametrize(('environment', 'reason'), [
    (None, 'no environment is known for the robot other: give --environment'),
    ('os:abort', 'expected the id of an environment, found os:abort, which would run code'),
    ('NoSuch-v0', 'environment NoSuch-v0: expected module:factory')])
def test_file_cannot_say_which_code_runs(tmp_path, environment, reason):
    path = with_provenance(
        tmp_path / 'other.onnx', {} if environment is None else {'environment': environment},
        name='other')
    found = run(path, '--episodes', '1')
    assert found.returncode == 1
    line, = found.stderr.strip().split('\n')
    assert line.startswith('error: ') and reason in line


def test_policy_is_asked_once_a_tick_with_the_observation_and_time_of_the_tick():
    robot = SimulatedRobot(short_maze(), ROBOT, seed=0)
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


def test_episode_holds_what_it_can_be_repeated_from_and_judged_by():
    robot = SimulatedRobot(short_maze(), ROBOT, seed=0)
    result = evaluate.run_episode(robot, 1, constant([0.5, 0.0]))
    assert result.rewards.tolist() == [-5.0] * 6 and not result.terminated
    assert result.counts.tolist() == [4] * 6
    assert np.array_equal(result.actions, np.full((6, 2), [0.5, 0.0], np.float32))
    # All that was observed, a step each: 0.05 m along x.
    seen = [row for tick in range(6) for row in (
        result.observations[tick], *result.between[4 * tick:4 * tick + 4])]
    assert np.diff([*seen, result.last], axis=0) == pytest.approx(
        np.full((30, 2), [0.05, 0.0]), abs=1e-3)
    robot.reset(1)
    for k in range(30):
        robot.advance(result.actions[k // 5])
    assert robot.total_reward == result.total_reward
    # Where a sensor was silent nothing is made up.
    blind = evaluate.run_episode(Blind(short_maze(), ROBOT, seed=0), 1, constant([0.5, 0.0]))
    assert blind.counts.tolist() == [4, 4, 0, 4, 4, 4] and np.isfinite(blind.between).all()


@pytest.mark.parametrize('decision', [
    constant([np.nan, 0.0]), constant([np.inf, 0.0]), constant([1.0, 0.0], q=np.nan)])
def test_robot_stops_where_the_policy_gives_what_is_not_finite(decision):
    robot = SimulatedRobot(short_maze(), ROBOT, seed=0)
    result = evaluate.run_episode(robot, 0, decision)
    assert np.isnan(result.q).all() and len(result.q) == 6
    assert np.ptp(result.observations, axis=0) == pytest.approx([0, 0], abs=1e-3)


class Blind(SimulatedRobot):
    """A robot that sees nothing at the third tick."""

    def observe(self):
        """Return the messages at a step."""
        found = super().observe()
        if 10 <= self.step < 15:
            found['odom'].pose.pose.position.x = np.nan
        return found


def test_robot_stops_where_an_observation_is_not_finite():
    result = evaluate.run_episode(
        Blind(short_maze(), ROBOT, seed=0), 0, constant([0.5, 0.0]))
    assert np.isnan(result.q).tolist() == np.isnan(result.observations[:, 0]).tolist() == [
        False, False, True, False, False, False]
    assert result.observations[3, 0] - result.observations[1, 0] == pytest.approx(0.25, abs=1e-3)


def x_of_each_tick(robot, action):
    """Return where along x a robot is at the ticks of an episode."""
    return evaluate.run_episode(robot, 0, constant(action)).observations[:, 0]


def test_missing_observation_is_bridged_by_the_last_command_for_the_signals_hold_time():
    data = ROBOT.to_dict()
    data['observations'][0]['hold_time'] = 0.1
    held = x_of_each_tick(Blind(short_maze(), specs.parse(data, 'robot.yaml'), 0), [0.5, 0.0])
    seeing = x_of_each_tick(SimulatedRobot(short_maze(), ROBOT, 0), [0.5, 0.0])
    assert np.isnan(held).tolist() == [False, False, True, False, False, False]
    assert np.array_equal(np.delete(held, 2), np.delete(seeing, 2))


def test_policy_is_scored_with_the_limits_that_it_will_run_with():
    data = ROBOT.to_dict()
    for dimension in data['actions'][0]['dimensions']:
        dimension['max_rate'] = 0.2
    x = x_of_each_tick(
        SimulatedRobot(short_maze(), specs.parse(data, 'robot.yaml'), 0), [0.5, 0.0])
    # 0.1 m/s more at each tick of half a second, up to what is asked for.
    assert np.diff(x) == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.25], abs=1e-3)


def test_actions_beyond_the_limits_are_held_within_them():
    def last(action):
        robot = SimulatedRobot(short_maze(), ROBOT, seed=0)
        return evaluate.run_episode(robot, 0, constant(action)).observations[-1]

    assert np.array_equal(last([7.0, 0.0]), last([2.0, 0.0]))
    assert not np.array_equal(last([1.0, 0.0]), last([2.0, 0.0]))


def test_stop_that_is_not_known_ends_the_evaluation_with_its_reason():
    data = ROBOT.to_dict()
    for dimension in data['actions'][0]['dimensions']:
        dimension |= {'kind': 'position', 'stop': 'hold_last_sent'}
    robot = SimulatedRobot(
        short_maze(), specs.parse(data, 'robot.yaml'), seed=0)
    with pytest.raises(environments.SimulationError, match='no known stop at .* not finite'):
        evaluate.run_episode(robot, 0, constant([np.nan, 0.0]))


@pytest.mark.parametrize('tick', ['timer', 'arrival'])
def test_both_kinds_of_tick_give_the_same_episode(tick):
    spec = specs.parse({**ROBOT.to_dict(), 'tick': tick}, 'robot.yaml')
    robot = SimulatedRobot(short_maze(), spec, seed=0)
    result = evaluate.run_episode(robot, 0, constant([0.5, 0.5]))
    expected = evaluate.run_episode(
        SimulatedRobot(short_maze(), ROBOT, seed=0), 0, constant([0.5, 0.5]))
    assert np.array_equal(result.observations, expected.observations)


def test_summary_counts_every_episode():
    def result(success, total_reward, length):
        return evaluate.EpisodeResult(total_reward, success, length, np.zeros((1, 2)), np.zeros(1))

    found = evaluate.summarise([result(True, -10.0, 11), result(False, -20.0, 20)])
    assert found == {'success': 0.5, 'interval': list(evaluate.success_interval(1, 2)),
                     'mean_return': -15.0, 'returns': [-10.0, -20.0], 'lengths': [11, 20]}


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
    found = subprocess.run(
        [sys.executable, '-c', code, file, '--episodes', '2', '--seed', '5', '--candidates', '3',
         '--extraction', 'implicit', '--sampling-temperature', '0.5', '--parallel', '1',
         '--json-file', scores], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert (f'{file} in {MAZE}, 2 episodes from seed 5, extraction implicit, softmax temperature '
            '1, sampling temperature 0.5, 1 at a time') in found.stdout
    score, = (line for line in found.stdout.splitlines() if line.startswith('N =    3: success'))
    assert score.endswith(' in pointmaze-medium-singletask-task1-v0')
    written = json.loads(scores.read_text())
    assert written['sha256'] == Policy(file).digest
    # What the program reports is what the function gives.
    results = evaluate.evaluate(Policy(DEFAULT), MAZE, 2, 5, 3, 'test', 'implicit', 1.0, 0.5)
    assert written['extraction'] == 'implicit' and written['sampling_temperature'] == 0.5
    assert written['candidates']['3']['returns'] == [r.total_reward for r in results]
    assert written['environment_id'] == 'pointmaze-medium-singletask-task1-v0'
    assert (written['parallel'], written['warning']) == (1, None)


def test_report_is_of_the_episodes_that_were_scored(tmp_path):
    pytest.importorskip('matplotlib', reason='matplotlib is not installed')
    pytest.importorskip('minari', reason='minari is not installed')
    found = run(DEFAULT, '--episodes', '2', '--candidates', '1', '--candidates', '3', '--parallel',
                '1', '--report', tmp_path / 'p.html', '--json-file', tmp_path / 'scores.json')
    assert found.returncode == 0, found.stderr
    assert found.stdout.endswith(f'report: {tmp_path / "p.html"}\n')
    scores, numbers = (json.loads((tmp_path / f'{name}.json').read_text())
                       for name in ('scores', 'p'))
    assert scores == {key: numbers[key] for key in scores}
    assert numbers['detailed'] == 3
    assert sorted(row['return'] for row in numbers['worst']) == sorted(
        scores['candidates']['3']['returns'])
    # The task of the data has -1 a decision, which is discounted by 0.98: -50 if it never ended.
    first = numbers['calibration']['first']
    assert len(first['predicted']) == 2 and -50 < first['mean_obtained'] < 0
    assert b'<h2>Predicted and obtained return</h2>' in (tmp_path / 'p.html').read_bytes()


@pytest.mark.parametrize(('arguments', 'code', 'reason'), [
    (['none.onnx'], 1, 'none.onnx: cannot be read'),
    ([ROOT / 'setup.py'], 1, 'not an ONNX file'),
    ([DEFAULT, '--environment', 'NoSuch-v0'], 1, 'environment NoSuch-v0: expected module:factory'),
    ([DEFAULT, '--environment', 'Pendulum-v1'], 1, 'expected an environment with 2 observation'),
    ([DEFAULT, '--environment', 'os:getcwd'], 1, 'environment os:getcwd: expected a Gymnasium'),
    ([DEFAULT, '--episodes', '0'], 1, 'expected 1 episode or more'),
    ([DEFAULT, '--candidates', '0'], 1, '1 to 65536 candidates, found 50 and [0]'),
    ([DEFAULT, '--candidates', '1000000000'], 1, '1 to 65536 candidates'),
    ([DEFAULT, '--report', 'page.pdf'], 1, 'page.pdf: expected a page with a name that ends in '),
    ([DEFAULT, '--report', 'none/page.html'], 1, 'none/page.html: expected an existing folder'),
    ([DEFAULT, '--dataset', 'a/b-v0'], 1, 'dataset, root: expected with --report'),
    ([DEFAULT, '--report', 'p.html', '--dataset', 'a/b-v0', '--root', 'none'], 1,
     "dataset 'a/b-v0': expected a Minari dataset at none"),
    ([DEFAULT, '--report', 'p.html', '--root', 'none'], 1, 'root: expected with --dataset'),
    ([DEFAULT, '--report', 'p.html', '--json-file', 'test/../p.json'], 1,
     'p.json: expected another name than those of the report, p.html and'),
    ([DEFAULT, '--report', '/proc/p.html'], 1, '/proc/p.html: expected a place for a file'),
    ([DEFAULT, '--json-file', '/proc/p.json'], 1, '/proc/p.json: expected a place for a file'),
    ([DEFAULT, '--json-file', 'test'], 1, 'test: expected a file or nothing, found a folder'),
    ([DEFAULT, '--parallel', '0'], 1, 'parallel: expected 1 robot or more at a time, found 0'),
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


def test_report_whose_numbers_cannot_be_written_is_refused_before_anything_is_scored(tmp_path):
    (tmp_path / 'p.json').mkdir()
    found = run(DEFAULT, '--report', tmp_path / 'p.html')
    assert found.returncode == 1 and found.stdout == ''
    assert found.stderr == (
        f'error: {tmp_path / "p.json"}: expected a file or nothing, found a folder\n')
    assert [path.name for path in tmp_path.iterdir()] == ['p.json']


def test_success_is_told_by_the_environment_or_not_at_all(tmp_path):
    name = 'Pendulum-v1'
    robot = SimulatedRobot(environments.make(name), plain_spec(name), seed=0)
    assert not evaluate.run_episode(robot, 0, constant([0.0])).success_told
    told = evaluate.run_episode(
        SimulatedRobot(short_maze(), ROBOT, seed=0), 0, constant([0.0, 0.0]))
    assert told.success_told and not told.success
    scores = tmp_path / 'scores.json'
    found = run(DEFAULT, '--environment', f'{__name__}:maze_that_tells_no_success', '--episodes',
                '1', '--candidates', '2', '--json-file', scores)
    assert found.returncode == 0, found.stderr
    assert 'N =    2: success not told by the environment, mean return -30.0' in found.stdout
    row = json.loads(scores.read_text())['candidates']['2']
    assert row['success'] is row['interval'] is None and row['returns'] == [-30.0]


def test_messages_are_on_the_path_of_evaluation():
    """What a message cannot keep must not reach the environment, as it would not over ROS 2."""
    data = ROBOT.to_dict()
    data['observations'][0] |= {'type': 'std_msgs/msg/Float32MultiArray', 'fields': ['data[0:2]']}
    written = []

    def blank(message_type):
        written.append(message_type)
        return messages.blank(message_type)

    robot = SimulatedRobot(
        short_maze(), specs.parse(data, 'robot.yaml'), seed=0, new=blank)
    written.clear()
    evaluate.run_episode(robot, 0, constant([0.5, 0.5]))
    # Of each step, the one that is looked at before the first, and the one of the end.
    assert written == ['std_msgs/msg/Float32MultiArray'] * 32
