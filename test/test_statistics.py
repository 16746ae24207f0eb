"""What is kept of the training data: it covers what is rare, and finds what is not of it."""

from pathlib import Path

from idql_ros import environments
from idql_ros import spec as specs
from idql_ros.familiarity import Familiarity, MAX_PROTOTYPES
from idql_ros.policy import Policy
from idql_ros.simulated_robot import SimulatedRobot
import numpy as np
import pytest
import torch
from training.drivers import WanderingDriver
from training.export import export
from training.idql import IDQL, IDQLConfig
from training.statistics import summarise

ROBOT = specs.load(
    Path(__file__).parents[1] / 'config' / 'robots' / 'pointmaze_medium.yaml')
MAZE = environments.ROBOTS['pointmaze_medium']


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def familiarity(statistics):
    return Familiarity(statistics['prototypes'].numpy(), statistics['scale'].numpy())


def rows(array):
    return {row.tobytes() for row in np.ascontiguousarray(array)}


@pytest.mark.parametrize('size', [1, 2, 3, 100, 9_000, 50_000])
def test_what_is_kept_is_of_the_data_and_nothing_is_held_out_and_a_prototype(size):
    observations = normal(size, 3)
    kept = summarise(observations)
    calibration, prototypes = kept['calibration'].numpy(), kept['prototypes'].numpy()
    assert calibration.dtype == prototypes.dtype == np.float32
    assert len(calibration) == max(1, min(4096, size // 2))
    assert len(prototypes) == min(MAX_PROTOTYPES, max(1, size - size // 2))
    assert rows(calibration) | rows(prototypes) <= rows(observations)
    assert len(rows(prototypes)) == len(prototypes)
    assert size == 1 or not rows(calibration) & rows(prototypes)


def test_the_same_data_keeps_the_same():
    first, again = (summarise(normal(7_000, 4)) for _ in range(2))
    assert first.keys() == {'calibration', 'prototypes', 'scale'}
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_rare_regions_have_a_prototype():
    observations = normal(20_000, 2)
    observations[:10] += [40, -30]  # one in two thousand
    distance = familiarity(summarise(observations)).distance
    assert distance(np.float32([40, -30])) < 1
    assert distance(np.float32([-40, 30])) > 5


def test_a_gap_in_the_data_is_far_from_it_though_it_is_its_mean():
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, 5_000)
    ring = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    distance = familiarity(summarise(ring)).distance
    assert distance(np.float32([0, 0])) > 0.9  # a radius is 1.4 standard deviations, of one of two
    assert max(distance(observation) for observation in ring[::50]) < 0.05


def test_what_never_moved_is_far_when_it_moves_and_not_when_it_is_rounded():
    observations = normal(2_000, 3)
    observations[:, 1] = 0.1
    observations[:, 2] = 500 * (1 + 1e-7 * observations[:, 2])  # rounding
    kept = summarise(observations)
    assert kept['scale'].numpy()[1:] == pytest.approx([1e-3, 0.5])
    usual = familiarity(kept).distance(np.float32([0.2, 0.1, 500]))
    assert usual < 0.1
    assert familiarity(kept).distance(np.float32([0.2, 0.1 + 1e-6, 500.001])) < usual + 0.01
    assert familiarity(kept).distance(np.float32([0.2, 0.15, 500])) > 20
    assert familiarity(kept).distance(np.float32([0.2, 0.1, 510])) > 10


def test_one_sensor_far_astray_shows_among_many():
    mixing = normal(5, 17, seed=1)  # five causes of 17 observations, as with a robot's joints

    def observations(count, seed):
        return np.tanh(normal(count, 5, seed=seed)) @ mixing + 0.05 * normal(
            count, 17, seed=seed + 1)

    kept = summarise(observations(20_000, 10))
    distance = familiarity(kept).distance
    bound = np.percentile([distance(x) for x in kept['calibration'].numpy()], 99.9)
    fresh = observations(500, 20)
    assert np.mean([distance(x) > bound for x in fresh]) < 0.01
    fresh[np.arange(500), np.arange(500) % 17] += 5 * kept['scale'].numpy().astype(np.float32)[
        np.arange(500) % 17]
    assert np.mean([distance(x) > bound for x in fresh]) > 0.99


def test_each_part_has_its_share():
    offline, online = normal(90_000, 2), 1_000 + normal(90_000, 2)
    kept = summarise(offline, online)
    for name in ('calibration', 'prototypes'):
        assert (kept[name][:, 0] > 500).double().mean() == pytest.approx(0.5, abs=0.1)
    none_yet = summarise(offline, online[:0])
    assert (none_yet['prototypes'] < 500).all()


def test_large_observations_have_fewer_prototypes():
    assert summarise(normal(300, 5_000))['prototypes'].shape == (26, 5_000)


def drive(seed, steps):
    """Return where the maze's scripted driver is, tick by tick: (M, 2)."""
    pytest.importorskip('ogbench', reason='ogbench is not installed')
    robot = SimulatedRobot(
        environments.make(MAZE, terminate_at_goal=False, max_episode_steps=steps + 1), ROBOT, seed)
    driver = WanderingDriver(robot.env)
    robot.reset(0)
    driver.seed(seed)
    driver.begin(None, robot.info)
    positions, action = [], np.zeros(2, np.float32)
    for _ in range(steps):
        if robot.at_tick:
            positions.append(robot.env.unwrapped.get_xy())
            action = 2.0 * np.clip(driver.act(None, robot.info), -1, 1).astype(np.float32)
        robot.advance(action)
    return np.array(positions, np.float32)


@pytest.fixture(scope='module')
def policy(tmp_path_factory):
    """Return the policy file of an untrained network, with the statistics of driven data."""
    torch.manual_seed(0)
    data = np.concatenate([drive(seed, 3_000) for seed in range(6)])
    idql = IDQL(
        IDQLConfig(actor_width=16, actor_blocks=1, critic_hidden=(16,), value_hidden=(16,),
                   normalise_observations=True, candidates=16),
        torch.from_numpy(data.mean(0)), torch.from_numpy(data.std(0)), torch.zeros(2),
        2 * torch.ones(2))
    path = tmp_path_factory.mktemp('policy') / 'p.onnx'
    export(idql, ROBOT.to_json(), {}, path, statistics=summarise(data))
    return Policy(path)


def test_false_alarms_on_new_drives_are_about_what_the_percentiles_say(policy):
    positions = np.concatenate([drive(seed, 3_000) for seed in range(100, 104)])
    decisions = policy.decide_batch(positions, range(len(positions)), 1, policy.candidates)
    for name, (low, high) in policy.value_ranges_for(policy.candidates).items():
        values = np.array([decision.values[name] for decision in decisions])
        outside = np.mean((values < low) | (values > high))
        # Proposed: 0.01, of the distance 0.001. Ticks of a drive are alike, so that a few
        # stretches count; and no new drive is as near as the data is to itself.
        assert outside < (0.015 if name == 'distance' else 0.03), name
        # The ranges are no wider than they have to be.
        assert np.ptp(values) > 0.8 * (high - low) or name == 'distance', name
        assert np.median(values) > 0.2 * high or name != 'distance'


def test_ranges_fit_whatever_n_a_deadline_leaves_and_those_in_between(policy):
    # From 16 the ladder goes to 8; 1, 2 and 5 are a user's.
    positions = drive(100, 3_000)
    for candidates in (1, 2, 5, 8, 12, 16, 40):
        decisions = policy.decide_batch(positions, range(len(positions)), 1, candidates)
        for name, (low, high) in policy.value_ranges_for(candidates).items():
            values = np.array([decision.values[name] for decision in decisions])
            # Of one drive, whose ticks are alike; a range for another N leaves out nearly all.
            assert np.mean((values < low) | (values > high)) < 0.06, (candidates, name)
    spreads = [policy.value_ranges_for(n)['spread'] for n in (1, 8, 16)]
    assert spreads[0] == (0, 0) and 0 < spreads[1][0] < spreads[2][0]
    assert policy.value_ranges_for(4)['spread'] == (0, spreads[1][1])


def test_walls_and_what_is_outside_of_the_maze_are_far_from_the_data(policy):
    maze = environments.make(MAZE).unwrapped
    walls = np.argwhere(maze.maze_map == 1)
    places = [maze.ij_to_xy(cell) for cell in walls]
    places += [(-50, 0), (0, 200), (1e6, 1e6)]
    assert len(places) > 30
    decisions = policy.decide_batch(
        np.array(places, np.float32), range(len(places)), 0, 1)
    low, high = policy.value_ranges_for(policy.candidates)['distance']
    assert low == 0 and min(decision.distance for decision in decisions) > 1.5 * high
    inside = [maze.ij_to_xy(cell) for cell in np.argwhere(maze.maze_map == 0)]
    decisions = policy.decide_batch(np.array(inside, np.float32), range(len(inside)), 0, 1)
    assert max(decision.distance for decision in decisions) < high
