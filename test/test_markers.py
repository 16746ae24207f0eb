"""Candidates are drawn where the spec says that actions lead."""

from idql_ros.markers import colours, origin, points
from idql_ros.spec import Space
import numpy as np

OBSERVATION = np.array([5.0, 1.0, 2.0], np.float32)
ACTIONS = np.array([[0.5, -1.0], [0.0, 2.0]], np.float32)


def test_offsets_are_drawn_from_where_the_robot_is():
    space = Space('odom', (0, 1), (1, 2), 2.0)
    assert origin(space, OBSERVATION).tolist() == [1.0, 2.0, 0.0]
    assert points(space, OBSERVATION, ACTIONS).tolist() == [[2.0, 0.0, 0.0], [1.0, 6.0, 0.0]]


def test_positions_are_drawn_in_the_frame():
    space = Space('map', (1, 0, 1))
    assert points(space, OBSERVATION, ACTIONS).tolist() == [[-1.0, 0.5, -1.0], [2.0, 0.0, 2.0]]


def test_the_better_a_candidate_the_warmer_and_denser_its_colour():
    found = colours(np.array([-3.0, -1.0, -2.0]))
    assert found.shape == (3, 4) and ((found >= 0) & (found <= 1)).all()
    assert found[0, 0] < found[2, 0] < found[1, 0] and found[0, 3] < found[1, 3]


def test_candidates_of_one_q_are_all_the_best():
    assert np.array_equal(*colours(np.zeros(2)))
