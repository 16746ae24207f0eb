"""Hopper, Walker2d and HalfCheetah, versions 4 and 5: specs, messages, episodes over ROS."""

import json
from pathlib import Path

from idql_ros import environments
from idql_ros import message as messages
from idql_ros import spec as specs
from idql_ros.environments import SimulationError
from idql_ros.policy import Policy
from idql_ros.simulated_robot import SimulatedRobot
import numpy as np
import pytest
import torch
from training import evaluate, export
from training.checkpoint import save_checkpoint
from training.idql import IDQL, IDQLConfig
from training.statistics import summarise

pytest.importorskip('gymnasium', reason='gymnasium is not installed')
mujoco = pytest.importorskip('mujoco', reason='mujoco is not installed')

FOLDER = Path(__file__).parents[1] / 'config' / 'robots'
NAMES = {'hopper': 'Hopper', 'walker2d': 'Walker2d', 'halfcheetah': 'HalfCheetah'}
SPECS = {robot: specs.load(FOLDER / f'{robot}.yaml') for robot in NAMES}
# A policy that was never trained falls soon; a HalfCheetah never does, and runs for 1000 steps.
EPISODES = {'hopper': 20, 'walker2d': 20, 'halfcheetah': 1}
EACH = pytest.mark.parametrize(
    ('robot', 'environment'),
    [(robot, f'{name}-v{version}') for robot, name in NAMES.items() for version in (4, 5)])


def joints_of(model):
    """Return the names of a model's joints, each of one number."""
    assert model.njnt == model.nq == model.nv
    return [model.joint(i).name for i in range(model.njnt)]


@EACH
def test_spec_has_the_joints_the_gears_and_the_rate_of_the_model(robot, environment):
    spec, env = SPECS[robot], environments.make(environment).unwrapped
    model, joints = env.model, joints_of(env.model)
    units = {joint: 'm' if model.joint(joint).type == mujoco.mjtJoint.mjJNT_SLIDE else 'rad'
             for joint in joints}
    observed = [(path.text, signal.unit) for signal in spec.observations for path in signal.fields]
    assert observed == [
        *((f'position[{joint}]', units[joint]) for joint in joints[1:]),
        *((f'velocity[{joint}]', f'{units[joint]}/s') for joint in joints)]
    assert list(spec.observations[0].joints) == joints
    assert spec.rate * env.dt == pytest.approx(1, abs=1e-12)
    assert {signal.max_age for signal in spec.observations} == {2 / spec.rate}
    command, = spec.actions
    driven = [joints[joint] for joint, _ in model.actuator_trnid]
    assert [path.text for path in command.fields] == [f'effort[{joint}]' for joint in driven]
    scale, = (operation.numbers for operation in command.operations)
    assert np.broadcast_to(scale, command.size) == pytest.approx(
        1 / model.actuator_gear[:, 0], rel=1e-15)
    assert [(d.lower, d.upper) for d in spec.dimensions] == list(
        zip(env.action_space.low, env.action_space.high, strict=True))


@EACH
def test_message_tells_the_observation_of_the_environment(robot, environment):
    env = environments.make(environment)
    simulated = SimulatedRobot(env, SPECS[robot], seed=0)
    simulated.reset(0)
    data, joints = env.unwrapped.data, joints_of(env.unwrapped.model)
    rng = np.random.default_rng(0)
    for _ in range(50):
        message = simulated.observe()['joint_states']
        found = np.concatenate([
            messages.read(signal, message) for signal in simulated.spec.observations])
        assert np.array_equal(found, env.unwrapped._get_obs().astype(np.float32))
        assert list(message.name) == joints
        assert np.array_equal(
            message.position, [np.nan, *data.qpos[1:].astype(np.float32)], equal_nan=True)
        limit = np.inf if robot == 'halfcheetah' else 10
        assert np.array_equal(
            message.velocity, np.clip(data.qvel, -limit, limit).astype(np.float32))
        simulated.advance(rng.uniform(-1, 1, simulated.spec.action_size).astype(np.float32))
        if simulated.over:
            simulated.reset(simulated.episode + 1)


@pytest.mark.parametrize(('robot', 'limit'), [
    ('hopper', 10), ('walker2d', 10), ('halfcheetah', 20)])
@pytest.mark.parametrize('version', [4, 5])
def test_velocities_are_limited_where_the_environment_limits_them(robot, version, limit):
    env = environments.make(f'{NAMES[robot]}-v{version}')
    simulated = SimulatedRobot(env, SPECS[robot], seed=0)
    simulated.reset(0)
    qpos, qvel = env.unwrapped.data.qpos.copy(), env.unwrapped.data.qvel.copy()
    qvel[0] = 30  # m/s
    env.unwrapped.set_state(qpos, qvel)
    simulated.advance(np.zeros(simulated.spec.action_size, np.float32))
    message = simulated.observe()['joint_states']
    assert message.velocity[list(message.name).index('rootx')] >= limit
    assert (max(message.velocity) == 10) == (limit == 10)


@EACH
def test_commanded_torques_are_those_that_the_model_applies(robot, environment):
    env = environments.make(environment)
    simulated = SimulatedRobot(env, SPECS[robot], seed=0)
    simulated.reset(0)
    command, = simulated.spec.actions
    driven = [path.joint for path in command.fields]
    torques = 10.0 * np.linspace(-1, 1, len(driven))  # N m
    message = messages.blank(command.type)
    # In another order than the spec's: a joint is found by its name.
    message.name, message.effort = driven[::-1], torques[::-1].tolist()
    simulated.advance(simulated.read_action({command.topic: message}))
    applied = [env.unwrapped.data.joint(joint).qfrc_actuator[0] for joint in driven]
    assert applied == pytest.approx(torques, abs=1e-5)


@pytest.fixture(scope='module')
def policy_of(tmp_path_factory):
    """Return a function from a robot to a policy file, exported with the robot's spec.

    The checkpoint is as training.train writes it for D4RL's data, which has no spec.
    """
    made = {}

    def export_for(robot):
        if robot not in made:
            folder, sizes = tmp_path_factory.mktemp(robot), (
                SPECS[robot].observation_size, SPECS[robot].action_size)
            torch.manual_seed(0)
            config = IDQLConfig(
                actor_width=16, actor_blocks=1, time_features=(8, 16), critic_hidden=(16,),
                value_hidden=(16,), candidates=2)
            idql = IDQL(config, torch.zeros(sizes[0]), torch.ones(sizes[0]),
                        torch.zeros(sizes[1]), torch.ones(sizes[1]))
            save_checkpoint(folder / 'checkpoint.pt', {
                'config': {'idql': vars(config)}, 'spec_json': None,
                'provenance': {'dataset': f'{robot}_medium-v2.hdf5'}, 'step': 0,
                'model': idql.state_dict(),
                'optimisers': {k: o.state_dict() for k, o in idql.optimisers.items()},
                'statistics': summarise(np.random.default_rng(0).normal(
                    size=(300, sizes[0])).astype(np.float32)),
            })
            made[robot] = folder / 'policy.onnx'
            export.main([str(folder / 'checkpoint.pt'), '--spec', str(FOLDER / f'{robot}.yaml'),
                         '--output', str(made[robot])])
        return made[robot]

    return export_for


def test_the_version_that_scores_a_policy_has_to_be_said(policy_of):
    with pytest.raises(SimulationError, match='the robot hopper: give --environment'):
        evaluate.environment_of(Policy(policy_of('hopper')))


def scored(path, environment, episodes):
    """Return the episodes of a policy in evaluation, and its actions in each."""
    policy = Policy(path)
    simulated = SimulatedRobot(environments.make(environment), policy.spec, seed=0)
    results, actions = [], []

    def decide(observation, tick_ns):
        decision = policy.decide(observation, tick_ns, 0, policy.candidates)
        actions[-1].append(decision.action)
        return decision

    for episode in range(episodes):
        actions.append([])
        results.append(evaluate.run_episode(simulated, episode, decide))
    return results, actions


@EACH
def test_episodes_over_ros_are_those_of_the_environment_alone(
        policy_of, tmp_path, robot, environment):
    import harness
    path, episodes, rows = policy_of(robot), EPISODES[robot], tmp_path / 'episodes.jsonl'
    with harness.running(harness.NODE, {
        'model': path, 'autostart': True, 'enable_commands': True, 'use_sim_time': True,
    }, tmp_path / 'policy_node.log'), harness.running('idql_ros.sim_node', {
        'spec': path, 'environment': environment, 'lock_step': True, 'real_time_factor': 0.0,
        'command_timeout': 10.0, 'episodes': episodes, 'results_file': rows,
    }, tmp_path / 'sim_node.log') as sim:
        assert sim.child.wait(240) == 0, sim.output()
    over_ros = [json.loads(row) for row in rows.read_text().splitlines()]

    results, actions = scored(path, environment, episodes)
    assert sum(result.length for result in results) > 200
    assert [(row['return'], row['length'], row['command_timeouts']) for row in over_ros] == [
        (result.total_reward, result.length, 0) for result in results]

    env = environments.make(environment)
    for episode, (result, taken) in enumerate(zip(results, actions, strict=True)):
        observation, _ = env.reset(seed=episode)
        total, over = 0.0, False
        for observed, action in zip(result.observations, taken, strict=True):
            assert not over
            assert np.array_equal(observed, observation.astype(np.float32))
            observation, reward, terminated, truncated, _ = env.step(np.clip(action, -1, 1))
            total, over = total + float(reward), terminated or truncated
        assert over
        assert total == result.total_reward


# What differs between the versions.


def foot_friction(environment):
    """Return the sliding friction of a Walker2d's right and left foot."""
    model = environments.make(environment).unwrapped.model
    return [model.geom(foot).friction[0] for foot in ('foot_geom', 'foot_left_geom')]


def test_the_feet_of_walker2d_are_alike_in_version_5_only():
    assert foot_friction('Walker2d-v4') == [0.9, 1.9]
    assert foot_friction('Walker2d-v5') == [1.9, 1.9]


def walked(environment):
    """Return the observations of up to 200 steps with random actions."""
    env = environments.make(environment)
    observations, terminated = [env.reset(seed=0)[0]], False
    rng = np.random.default_rng(0)
    while not terminated and len(observations) <= 200:
        observation, _, terminated, _, _ = env.step(rng.uniform(-1, 1, env.action_space.shape))
        observations.append(observation)
    return np.array(observations)


@pytest.mark.parametrize(('robot', 'alike'), [
    ('Hopper', True), ('Walker2d', False), ('HalfCheetah', True)])
def test_only_walker2d_moves_otherwise_in_version_5(robot, alike):
    old, new = walked(f'{robot}-v4'), walked(f'{robot}-v5')
    assert np.array_equal(old[0], new[0])
    assert np.array_equal(old, new) == alike


@pytest.mark.parametrize('robot', ['Hopper', 'Walker2d'])
@pytest.mark.parametrize(('version', 'reward'), [(4, 1), (5, 0)])
def test_the_step_of_a_fall_is_rewarded_as_healthy_in_version_4_only(robot, version, reward):
    env = environments.make(f'{robot}-v{version}')
    env.reset(seed=0)
    healthy, terminated = [], False
    while not terminated:
        _, found, terminated, truncated, info = env.step(np.zeros(env.action_space.shape))
        assert not truncated
        healthy.append(found - info['x_velocity'])
    assert healthy == pytest.approx([1] * (len(healthy) - 1) + [reward])
