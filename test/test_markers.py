"""Candidates are drawn where the spec says that actions lead."""

import copy
from pathlib import Path

from idql_ros.markers import colours, origin, points, reach, why_nowhere
from idql_ros.spec import load, parse
import numpy as np
import pytest
import yaml

ROBOTS = Path(__file__).parents[1] / 'config' / 'robots'
MAZE = yaml.safe_load((ROBOTS / 'pointmaze_medium.yaml').read_text())
ARRAY = 'std_msgs/msg/Float64MultiArray'
ACTIONS = np.array([[0.5, -1.0], [0.0, 2.0]], np.float32)


def spec_with(space, operations=(), history=1, action_operations=()):
    """Return the maze's spec with a speed before its position, and what is asked for."""
    data = copy.deepcopy(MAZE)
    data['observations'].insert(0, {
        'name': 'speed', 'topic': 'speed', 'type': ARRAY, 'fields': ['data[0:1]'], 'unit': 'm/s',
        'max_age': 1.0})
    data['observations'][1].update(operations=list(operations), history=history)
    data['actions'][0]['operations'] = list(action_operations)
    data['space'] = space
    return parse(data, 'test')


def test_offsets_are_drawn_from_where_the_robot_is():
    spec = spec_with({'frame_id': 'odom', 'action': [0, 1], 'origin': [1, 2], 'scale': 2.0})
    observation = np.array([5.0, 1.0, 2.0], np.float32)
    assert origin(spec, observation).tolist() == [1.0, 2.0, 0.0]
    assert points(spec, observation, ACTIONS).tolist() == [[2.0, 0.0, 0.0], [1.0, 6.0, 0.0]]


def test_positions_are_drawn_in_the_frame():
    spec = spec_with({'frame_id': 'map', 'action': [1, 0, 1]})
    assert points(spec, np.zeros(3), ACTIONS).tolist() == [[-1.0, 0.5, -1.0], [2.0, 0.0, 2.0]]


def test_what_the_policy_scales_and_shifts_is_drawn_as_the_messages_have_it():
    # Observed (x - 1) * 10 of two frames, the newest last; the action is half the command.
    spec = spec_with({'frame_id': 'map', 'action': [0, 1], 'origin': [3, 4]},
                     operations=[{'offset': -1.0}, {'scale': 10.0}], history=2,
                     action_operations=[{'scale': 0.5}])
    observation = np.array([5.0, 0.0, 0.0, 20.0, -10.0], np.float32)
    assert origin(spec, observation).tolist() == [3.0, 0.0, 0.0]
    assert points(spec, observation, ACTIONS).tolist() == [[4.0, -2.0, 0.0], [3.0, 4.0, 0.0]]
    assert reach(spec) == 4.0


@pytest.mark.parametrize('name', [
    path.stem for path in ROBOTS.glob('*.yaml') if 'space:' in path.read_text()])
def test_every_robot_that_says_where_its_actions_lead_can_be_drawn(name):
    assert why_nowhere(load(ROBOTS / f'{name}.yaml')) == ''


def test_candidates_of_the_arm_begin_at_its_tool():
    from idql_ros import message
    spec = load(ROBOTS / 'ur5e_cube.yaml')
    tool = np.array([0.4, -0.1, 0.2])
    observation = np.zeros(spec.observation_size, np.float32)
    pose = message.blank('geometry_msgs/msg/PoseStamped')
    pose.header.frame_id = 'world'
    pose.pose.position.x, pose.pose.position.y, pose.pose.position.z = tool.tolist()
    observation[list(spec.space.origin)] = message.read(spec.observations[2], pose)
    assert origin(spec, observation) == pytest.approx(tool, abs=1e-7)
    action = np.zeros((1, spec.action_size), np.float32)
    action[0, 2] = 1.0  # m/s
    assert points(spec, observation, action)[0] - tool == pytest.approx(
        [0.0, 0.0, spec.space.scale], abs=1e-7)


def test_an_angle_is_no_coordinate():
    spec = spec_with({'frame_id': 'map', 'action': [0, 1], 'origin': [1, 2]}, ['cos_sin'])
    assert 'space.origin' in why_nowhere(spec) and 'number 0 of position' in why_nowhere(spec)
    data = copy.deepcopy(MAZE) | {'space': {'frame_id': 'map', 'action': [0, 1]}}
    data['actions'][0].update(fields=['twist.angular.z'], operations=['cos_sin'])
    spec = parse(data, 'test')
    assert 'space.action' in why_nowhere(spec) and 'number 0 of velocity' in why_nowhere(spec)


def test_a_position_beside_a_quaternion_is_one():
    data = copy.deepcopy(MAZE)
    data['observations'][0]['fields'] = [
        f'pose.pose.{part}.{axis}' for part, axes in (('position', 'xyz'), ('orientation', 'xyzw'))
        for axis in axes]
    data['observations'][0]['operations'] = [{'scale': 2.0}, {'yaw': 3}]
    data['space'] = {'frame_id': 'map', 'action': [0, 1], 'origin': [0, 1, 2]}
    spec = parse(data, 'test')
    assert why_nowhere(spec) == ''
    assert origin(spec, np.array([2.0, 4.0, 6.0, 0.3])).tolist() == [1.0, 2.0, 3.0]
    spec = parse(data | {'space': data['space'] | {'origin': [0, 1, 3]}}, 'test')
    assert 'found 3, number 3 of position' in why_nowhere(spec)


def test_a_spec_that_does_not_say_where_its_actions_lead_is_told():
    data = {key: value for key, value in MAZE.items() if key != 'space'}
    assert 'expected the key space' in why_nowhere(parse(data, 'test'))


def test_the_better_a_candidate_the_warmer_and_denser_its_colour():
    found = colours(np.array([-3.0, -1.0, -2.0]))
    assert found.shape == (3, 4) and ((found >= 0) & (found <= 1)).all()
    assert found[0, 0] < found[2, 0] < found[1, 0] and found[0, 3] < found[1, 3]


def test_candidates_of_one_q_are_all_the_best():
    assert np.array_equal(*colours(np.zeros(2)))
