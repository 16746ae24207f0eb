"""Simulated robots: seeded starts, stamps of their own, and environments that do not fit."""

import copy
import json
from pathlib import Path

from idql_ros import environments
from idql_ros import message as messages
from idql_ros import spec as specs
from idql_ros.environments import SimulationError
from idql_ros.simulated_robot import plain_spec, SimulatedRobot
import numpy as np
import pytest

gymnasium = pytest.importorskip('gymnasium', reason='gymnasium is not installed')

MAZE = environments.ROBOTS['pointmaze_medium']
ROBOTS = Path(__file__).parents[1] / 'config' / 'robots'
ROBOT = specs.load(ROBOTS / 'pointmaze_medium.yaml')


class Slider(gymnasium.Env):
    """Joints that move by their velocity; small enough to choose its step and spaces."""

    def __init__(self, dt=0.1, size=2, kind=np.float32, limit=1.0):
        """Make it; `dt` None states no duration of a step."""
        self.dt = dt
        self.observation_space = gymnasium.spaces.Box(-10, 10, (size,), kind)
        self.action_space = gymnasium.spaces.Box(-limit, limit, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        """Begin at random places."""
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1, 1, self.observation_space.shape)
        return self.state.astype(np.float32), {}

    def step(self, action):
        """Move; sag a little, as an arm does."""
        self.taken = action
        self.state = self.state + 0.1 * action - 0.01
        return self.state.astype(np.float32), 0.0, False, False, {}


def slider_spec(rate=10, stop='zero', lower=-1.0):
    """Return the spec of a Slider."""
    stops = {'zero': {'kind': 'velocity', 'stop': 'zero'},
             'hold_last_sent': {'kind': 'position', 'stop': 'hold_last_sent'},
             'pose': {'kind': 'position', 'stop': {'pose': 0.5}}}
    array = 'std_msgs/msg/Float64MultiArray'

    def dimension(i):
        holds = {'kind': 'position', 'stop': 'hold_measured', 'measured': i}
        return {**stops.get(stop, holds), 'unit': 'm', 'lower': lower, 'upper': 1.0}

    return specs.parse({
        'spec_version': 1, 'name': 'slider', 'rate': rate, 'tick': 'arrival',
        'observations': [{'name': 'state', 'topic': 'state', 'type': array,
                          'fields': ['data[0:2]'], 'unit': 'm', 'max_age': 1}],
        'actions': [{'name': 'command', 'topic': 'command', 'type': array,
                     'fields': ['data[0:2]'], 'dimensions': [dimension(0), dimension(1)]}],
    }, 'slider.yaml')


def started(env=None, spec=None, seed=0):
    """Return a robot in its first episode."""
    robot = SimulatedRobot(env or Slider(), spec or slider_spec(), seed)
    robot.reset(0)
    return robot


@pytest.fixture
def maze():
    pytest.importorskip('ogbench', reason='ogbench is not installed')
    return environments.make(MAZE)


def test_maze_moves_by_the_commanded_velocity(maze):
    robot = SimulatedRobot(maze, ROBOT, seed=0)
    robot.reset(0)
    before = maze.unwrapped.get_xy().copy()
    for _ in range(5):
        robot.advance(np.array([0.5, -0.25], np.float32))
    # 0.5 s of the command; no wall is that near.
    assert maze.unwrapped.get_xy() - before == pytest.approx([0.25, -0.125], abs=1e-3)
    assert (robot.step_seconds, robot.steps_per_tick) == (0.1, 5)


def test_maze_ends_with_success_at_the_goal_and_not_before(maze):
    robot = SimulatedRobot(maze, ROBOT, seed=0)
    robot.reset(0)
    robot.advance(np.zeros(2, np.float32))
    assert (robot.over, robot.success, robot.total_reward) == (False, False, -1.0)
    maze.unwrapped.set_xy(np.array(maze.unwrapped.cur_goal_xy))
    robot.advance(np.zeros(2, np.float32))
    assert (robot.over, robot.success, robot.total_reward, robot.length) == (True, True, -1.0, 2)
    assert robot.terminated
    robot.reset(1)
    assert not robot.terminated
    assert (robot.over, robot.success, robot.total_reward, robot.length) == (False, False, 0.0, 0)


def test_seed_and_episode_fix_the_start_in_any_instance_and_order(maze):
    def start(robot, episode):
        robot.reset(episode)
        return messages.read(ROBOT.observations[0], robot.observe()['odom']).tolist()

    first = SimulatedRobot(maze, ROBOT, seed=3)
    starts = [start(first, episode) for episode in range(4)]
    assert len(set(map(tuple, starts))) == 4
    np.random.seed(99)
    second = SimulatedRobot(environments.make(MAZE), ROBOT, seed=3)
    assert [start(second, episode) for episode in (3, 2, 1, 0)] == starts[::-1]
    # Episode k of a seed is episode 0 of seed + k.
    assert start(SimulatedRobot(maze, ROBOT, seed=5), 0) == starts[2]


def test_observation_reads_back_as_the_numbers_of_the_environment():
    robot = started()
    state = robot.env.state.astype(np.float32)
    message = robot.observe()['state']
    assert np.array_equal(messages.read(robot.spec.observations[0], message), state)


@pytest.mark.parametrize(('rate', 'dt', 'steps_per_tick'), [
    (2, 0.1, 5), (10, 0.1, 1), (30, 1 / 30, 1), (3, 1 / 30, 10), (0.1, 0.1, 100), (100, 0.002, 5),
    (60, 1 / 240, 4)])
def test_every_tick_begins_a_period_of_its_own(rate, dt, steps_per_tick):
    robot = started(Slider(dt), slider_spec(rate))
    assert robot.steps_per_tick == steps_per_tick
    spec, first = robot.spec, robot.spec.period_of(robot.time_ns)
    for step in range(10 * steps_per_tick):
        assert robot.at_tick == (step % steps_per_tick == 0)
        tick = first + step // steps_per_tick
        assert spec.period_of(robot.time_ns) == tick
        if robot.at_tick:
            assert robot.time_ns == spec.start_of(tick)
        robot.advance(np.zeros(2, np.float32))


def test_stamps_are_a_function_of_episode_and_step_and_belong_to_one_episode():
    limit = 23  # ends within a tick

    def stamps(episodes):
        slider = Slider()
        slider.spec = gymnasium.envs.registration.EnvSpec('Slider-v0')
        robot = SimulatedRobot(
            gymnasium.wrappers.TimeLimit(slider, limit), slider_spec(2), seed=0)
        found = {}
        for episode in episodes:
            robot.reset(episode)
            found[episode] = [robot.time_ns]
            while not robot.over:
                robot.advance(np.zeros(2, np.float32))
                found[episode].append(robot.time_ns)
        return found

    forward = stamps(range(6))
    assert stamps([4, 1, 5, 0, 2, 3]) == forward
    periods = [{slider_spec(2).period_of(t) for t in times} for times in forward.values()]
    for k in range(5):
        assert forward[k] == sorted(set(forward[k])) and len(forward[k]) == limit + 1
        assert forward[k][-1] < forward[k + 1][0]
        # Not even a period, of which a node would take one tick only.
        assert max(periods[k]) < min(periods[k + 1])
    assert forward[0][0] > 0


def test_action_is_held_within_the_limits_of_the_spec():
    robot = started(spec=slider_spec(lower=-0.5))
    robot.advance(np.array([-3.0, 0.25], np.float32))
    assert robot.env.taken.tolist() == [-0.5, 0.25]


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_action_that_is_not_finite_is_refused_and_makes_no_step(value):
    robot = started()
    with pytest.raises(SimulationError, match='expected a finite action, found'):
        robot.advance(np.array([0.0, value], np.float32))
    assert (robot.step, robot.length) == (0, 0)


def test_commands_come_back_through_their_messages():
    robot = started()
    action = np.array([0.1, -0.7], np.float32)
    commands = messages.write_topics(robot.spec.actions, action, 0, messages.blank)
    assert np.array_equal(robot.read_action(commands), action)


@pytest.mark.parametrize(('stop', 'expected'), [('zero', [0, 0]), ('pose', [0.5, 0.5])])
def test_stop_that_the_spec_states_is_known_at_once(stop, expected):
    assert started(spec=slider_spec(stop=stop)).stop_action().tolist() == expected


def test_stop_that_holds_the_last_command_is_unknown_before_the_first():
    robot = started(spec=slider_spec(stop='hold_last_sent'))
    assert robot.stop_action() is None
    robot.advance(np.array([0.25, 0.5], np.float32))
    assert robot.stop_action().tolist() == [0.25, 0.5]
    robot.reset(1)
    assert robot.stop_action() is None


def test_stop_that_holds_what_is_measured_does_not_follow_a_sagging_arm():
    robot = started(spec=slider_spec(stop='hold_measured'))
    began = robot.env.state.astype(np.float32)
    for _ in range(3):
        stop = robot.stop_action()
        assert np.array_equal(stop, began)
        robot.advance(stop)
    assert not np.array_equal(robot.env.state.astype(np.float32), began)
    robot.advance(np.array([0.25, 0.5], np.float32))
    # Moved since: the next stop holds where the arm is then.
    assert np.array_equal(robot.stop_action(), robot.env.state.astype(np.float32))


def test_episode_that_is_cut_is_over_and_not_terminated():
    slider = Slider()
    slider.spec = gymnasium.envs.registration.EnvSpec('Slider-v0')
    robot = started(gymnasium.wrappers.TimeLimit(slider, 3))
    found = []
    while not robot.over:
        assert not robot.terminated
        robot.advance(np.zeros(2, np.float32))
        found.append(robot.over)
    assert found == [False, False, True]
    assert not robot.terminated


@pytest.mark.parametrize(('env', 'spec', 'reason'), [
    (Slider(size=3), slider_spec(), 'with 2 observation numbers, .*found the space'),
    (Slider(kind=np.int64), slider_spec(), 'with 2 observation numbers'),
    (Slider(dt=None), slider_spec(), 'attribute dt or metadata render_fps, found neither'),
    (Slider(dt=-0.1), slider_spec(), 'attribute dt'),
    (Slider(dt=0.03), slider_spec(), 'rate: expected a whole number of steps of 0.03 s'),
    (Slider(), slider_spec(rate=20), 'found 0.5 at 20.0 Hz'),
    (Slider(limit=0.5), slider_spec(), 'limits within those of the environment'),
])
def test_environment_that_does_not_fit_the_spec_is_refused(env, spec, reason):
    with pytest.raises(SimulationError, match=reason):
        SimulatedRobot(env, spec, 0)


def test_spec_of_other_sizes_is_refused(maze):
    with pytest.raises(SimulationError, match='spec slider.*limits|expected'):
        SimulatedRobot(environments.make('CartPole-v1'), slider_spec(), 0)
    data = copy.deepcopy(ROBOT.to_dict())
    del data['space']
    data['actions'][0]['fields'].pop()
    data['actions'][0]['dimensions'].pop()
    with pytest.raises(SimulationError, match='with 1 action numbers'):
        SimulatedRobot(maze, specs.parse(data, 'robot.yaml'), 0)


def test_operation_without_an_exact_inverse_is_named():
    data = slider_spec().to_dict()
    data['observations'][0] |= {'type': 'std_msgs/msg/Float32MultiArray',
                                'operations': [{'offset': 1e6}]}
    with pytest.raises(messages.MessageError, match='topic state .* operation offset has no exac'):
        SimulatedRobot(Slider(), specs.parse(data, 'slider.yaml'), 0)


class Compass(Slider):
    """A Slider that observes its heading as cosine and sine, before its two positions."""

    def __init__(self):
        """Make it; spaces without limits, as most environments state them."""
        super().__init__()
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)

    def reset(self, *, seed=None, options=None):
        """Begin at random places."""
        gymnasium.Env.reset(self, seed=seed)
        self.state = self.np_random.uniform(-1, 1, 2)
        return self.observed(), {}

    def step(self, action):
        """Move."""
        super().step(action)
        return self.observed(), 0.0, False, False, {}

    def observed(self):
        """Return heading and positions."""
        angle = 5.0 * self.state.sum()
        return np.array([np.cos(angle), np.sin(angle), *self.state], np.float32)


def compass_spec(history):
    """Return the spec of a Compass, its stop holding the positions of the newest frame."""
    data = slider_spec().to_dict()
    heading = {'name': 'heading', 'topic': 'odom', 'type': 'nav_msgs/msg/Odometry',
               'fields': [f'pose.pose.orientation.{axis}' for axis in 'xyzw'], 'unit': '1',
               'operations': ['yaw', 'cos_sin'], 'max_age': 1, 'history': 2, 'frame_id': 'odom'}
    data['observations'][0]['history'] = history
    data['observations'].insert(0, heading)
    for i, dimension in enumerate(data['actions'][0]['dimensions']):
        dimension |= {'kind': 'position', 'stop': 'hold_measured',
                      'measured': 4 + 2 * (history - 1) + i}
    return specs.parse(data, 'compass.yaml')


def test_operations_that_compute_are_simulated():
    robot = started(Compass(), compass_spec(1))
    for _ in range(5):
        sent = robot.observe()
        heading, state = (messages.read(s, sent[s.topic]) for s in robot.spec.observations)
        assert np.array_equal(state, robot.env.observed()[2:])
        assert heading == pytest.approx(robot.env.observed()[:2], abs=1e-6)
        robot.advance(np.array([0.5, 1.0], np.float32))


@pytest.mark.parametrize('history', [1, 2, 5])
def test_environment_gives_one_frame_and_the_stop_holds_what_it_measures(history):
    robot = started(Compass(), compass_spec(history))
    assert (robot.spec.frame_size, robot.spec.observation_size) == (4, 4 + 2 * history)
    for _ in range(3):
        stop = robot.stop_action()
        assert np.array_equal(stop, robot.env.observed()[2:])
        robot.advance(np.array([0.5, 1.0], np.float32))


def slow_box():
    """Return an environment whose rate no spec can state: a step of 3 / 100 s."""
    return Slider(dt=0.03)


def unbounded():
    """Return an environment whose actions have no limits."""
    return Slider(limit=np.inf)


@pytest.mark.parametrize(('name', 'rate', 'sizes'), [
    ('Pendulum-v1', 20.0, (3, 1)), ('Hopper-v4', 125.0, (11, 3)), ('Hopper-v5', 125.0, (11, 3)),
    ('Walker2d-v4', 125.0, (17, 6)), ('HalfCheetah-v4', 20.0, (17, 6)),
    ('cube-single-singletask-task2-v0', 20.0, (28, 5)),
    ('scene-singletask-task2-v0', 20.0, (40, 5)),
    ('puzzle-3x3-singletask-task4-v0', 20.0, (55, 5)),
    ('antmaze-large-singletask-task1-v0', 10.0, (29, 8)),
    ('pointmaze-medium-singletask-task1-v0', 10.0, (2, 2))])
def test_environment_without_a_robot_has_a_spec_a_known_rate_and_starts_that_a_seed_fixes(
        tmp_path, monkeypatch, name, rate, sizes):
    if '-singletask-' in name:
        pytest.importorskip('ogbench', reason='ogbench is not installed')
    monkeypatch.chdir(tmp_path)  # where MuJoCo writes a log
    spec = plain_spec(name)
    assert specs.parse(json.loads(spec.to_json()), 'written') == spec
    assert (spec.rate, spec.tick, spec.name) == (rate, 'timer', name.replace('-', '_'))
    assert (spec.observation_size, spec.action_size) == sizes

    def episodes(order):
        env = environments.make(name)
        assert environments.identity(env) == name
        for dimension, low, high in zip(
                spec.dimensions, env.action_space.low, env.action_space.high, strict=True):
            assert (dimension.lower, dimension.upper, dimension.stop) == (low, high, 'zero')
        robot = SimulatedRobot(env, spec, seed=0)
        assert robot.steps_per_tick == 1
        found = {}
        for episode in order:
            robot.reset(episode)
            rng = np.random.default_rng(episode)
            rows = []
            while not robot.over and len(rows) < 5:
                rows.append(messages.read(
                    spec.observations[0], robot.observe()['observation']).tobytes())
                robot.advance(rng.uniform(-0.5, 0.5, spec.action_size).astype(np.float32))
            found[episode] = rows
        return found

    np.random.seed(1)
    forward = episodes([0, 1, 2])
    np.random.seed(2)
    assert episodes([2, 0, 1]) == forward
    assert len({rows[0] for rows in forward.values()}) == 3


@pytest.mark.parametrize(('name', 'error', 'reason'), [
    ('CartPole-v1', SimulationError, 'flat spaces of floating-point numbers, found Discrete'),
    ('NoSuchEnvironment-v0', SimulationError, 'expected module:factory or a Gymnasium id'),
    (f'{__name__}:slow_box', SimulationError, 'rate: expected a whole number of steps'),
    (f'{__name__}:unbounded', specs.SpecError, 'dimensions.0..lower: expected a finite number'),
])
def test_environment_that_a_plain_spec_cannot_describe_is_refused(name, error, reason):
    with pytest.raises(error, match=reason) as refused:
        plain_spec(name)
    assert '\n' not in str(refused.value)


def arm(**keys):
    """Return the UR5e, simulated."""
    pytest.importorskip('ogbench', reason='ogbench is not installed')
    spec = specs.load(ROBOTS / 'ur5e_cube.yaml')
    return SimulatedRobot(
        environments.make(environments.ROBOTS['ur5e_cube'], **keys), spec, seed=0)


def test_messages_of_the_arm_tell_the_environments_own_observation():
    # While the gripper holds a cube and turns it, too: the oracle drives.
    from training.drivers import ManipulationDriver, RECIPES
    robot = arm(mode='data_collection', terminate_at_goal=False, max_episode_steps=200)
    driver = ManipulationDriver(RECIPES['cube-single-play-v0'], robot.env)
    robot.reset(0)
    driver.begin(None, robot.info)
    seen = []
    while not robot.over:
        sent = robot.observe()
        found = np.concatenate([
            messages.read(signal, sent[signal.topic]) for signal in robot.spec.observations])
        own = robot.env.unwrapped.compute_observation().astype(np.float32)
        np.testing.assert_array_max_ulp(found, own, maxulp=1)
        seen.append(found)
        robot.advance(robot.env.action_space.high * np.clip(
            driver.act(None, robot.info), -1, 1).astype(np.float32))
        driver.watch(robot.info)
    seen = np.array(seen)
    assert seen[:, 18].max() > 0 and seen[:, 21].max() > 1  # contact; the cube is lifted by 10 cm


def test_messages_of_the_arm_hold_metres_radians_and_quaternions_of_ros():
    robot = arm()
    robot.reset(0)
    sent = robot.observe()
    joints = sent['joint_states']
    assert joints.name == [
        'shoulder_pan_joint', 'shoulder_lift_joint', 'elbow_joint', 'wrist_1_joint',
        'wrist_2_joint', 'wrist_3_joint', 'robotiq_85_left_knuckle_joint']
    assert len(joints.position) == len(joints.velocity) == 7
    assert np.isnan(joints.velocity[6]) and np.isfinite(joints.position).all()
    data = robot.env.unwrapped.data
    cube, pose = data.joint('object_joint_0').qpos, sent['cube_pose'].pose
    assert sent['cube_pose'].header.frame_id == 'world'
    assert [pose.position.x, pose.position.y, pose.position.z] == cube[:3].tolist()
    assert [pose.orientation.w, pose.orientation.x, pose.orientation.y,
            pose.orientation.z] == cube[3:].tolist()
    # The tool points down: half a turn about a horizontal axis.
    tool = sent['tool_pose'].pose.orientation
    assert np.hypot(tool.x, tool.y) == pytest.approx(1.0, abs=1e-2)


def test_an_action_of_the_arm_is_the_environments_own_over_a_step():
    # 0.05 m, 0.3 rad and 0.8 rad (the gripper's whole way) in 0.05 s are OGBench's 1.
    robot = arm()
    func = robot.env.func
    assert func(np.array([0.5, -1.0, 0.25, 3.0, 8.0], np.float32)).tolist() == [
        0.5, -1.0, 0.25, 0.5, 0.5]
    assert np.allclose(robot.env.unwrapped.unnormalize_action(np.ones(5)),
                       [0.05, 0.05, 0.05, 0.3, 1.0])
    assert robot.env.action_space.high.tolist() == [1.0, 1.0, 1.0, 6.0, 16.0]


@pytest.mark.parametrize(('dimension', 'velocity', 'share'), [
    (0, 0.5, (0.35, 0.6)), (1, -0.5, (0.35, 0.6)), (3, 2.0, (0.15, 0.3))])
def test_the_arm_makes_a_part_of_the_way_that_its_velocity_says(dimension, velocity, share):
    robot = arm(terminate_at_goal=False)
    robot.reset(1)
    action = np.zeros(5, np.float32)
    action[dimension] = velocity

    def pose():
        return np.concatenate([robot.info['proprio/effector_pos'],
                               robot.info['proprio/effector_yaw']])
    before = pose()
    for _ in range(8):
        robot.advance(action)
    moved = (pose() - before)[dimension]
    assert share[0] <= moved / (8 * 0.05 * velocity) <= share[1]


def test_the_stop_of_the_arm_holds_it_and_what_it_holds():
    from training.drivers import ManipulationDriver, RECIPES
    robot = arm(mode='data_collection', terminate_at_goal=False, max_episode_steps=1000)
    driver = ManipulationDriver(RECIPES['cube-single-play-v0'], robot.env)
    robot.reset(0)
    driver.begin(None, robot.info)
    while robot.info['privileged/block_0_pos'][2] < 0.1:  # lifted
        robot.advance(robot.env.action_space.high * np.clip(
            driver.act(None, robot.info), -1, 1).astype(np.float32))
    began = robot.info
    for _ in range(100):
        robot.advance(robot.stop_action())
    assert np.linalg.norm(
        robot.info['proprio/effector_pos'] - began['proprio/effector_pos']) < 0.03
    assert robot.info['privileged/block_0_pos'][2] > 0.08
    assert robot.info['proprio/gripper_contact'][0] > 0.5


def test_signals_of_other_sizes_than_the_spec_are_refused():
    spec = specs.load(ROBOTS / 'ur5e_cube.yaml')
    env = environments.make(environments.ROBOTS['ur5e_cube'])
    env.observation_space = gymnasium.spaces.Dict({
        **env.observation_space.spaces, 'tool_yaw': gymnasium.spaces.Box(-1, 1, (2,))})
    with pytest.raises(SimulationError, match="expected .*'tool_yaw': \\(4,\\)"):
        SimulatedRobot(env, spec, seed=0)


def test_time_begins_where_it_is_told_and_ticks_begin_periods():
    robot = SimulatedRobot(Slider(), slider_spec(), 0, epoch_ns=1_750_000_000_050_000_000)
    robot.reset(0)
    assert 0 < robot.time_ns - 1_750_000_000_050_000_000
    assert robot.time_ns == robot.spec.start_of(robot.spec.period_of(robot.time_ns))
