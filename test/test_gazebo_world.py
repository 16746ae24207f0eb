"""The world for Gazebo: equal to MuJoCo's maze, valid SDF, and what spec and bridge ask for."""

from pathlib import Path
import shutil
import subprocess
from xml.etree import ElementTree

from idql_ros.environments import pointmaze_medium, step_seconds
from idql_ros.message import ros_class
from idql_ros.spec import load
import numpy as np
import pytest
from training import gazebo_world
import yaml

CONFIG = Path(__file__).parents[1] / 'config'
WORLD = CONFIG / 'gazebo' / 'pointmaze_medium.sdf'
BRIDGE = yaml.safe_load((CONFIG / 'gazebo' / 'pointmaze_medium.bridge.yaml').read_text())
SPEC = load(CONFIG / 'robots' / 'pointmaze_medium.yaml')


@pytest.fixture(scope='module')
def env():
    """Return the maze as the policy was trained on it, at the start of an episode."""
    pytest.importorskip('ogbench', reason='ogbench is not installed')
    made = pointmaze_medium()
    made.reset(seed=0)
    return made


@pytest.fixture(scope='module')
def world():
    """Return the element of the world."""
    return ElementTree.parse(WORLD).getroot().find('world')


def numbers(element, path):
    """Return the numbers that an element below holds."""
    return np.array(element.findtext(path).split(), float)


def model(world, name):
    """Return a model of the world, and its link."""
    found = world.find(f"model[@name='{name}']")
    return found, found.find('link')


def plugin(element, name):
    """Return a system of Gazebo by the end of its name."""
    found, = (p for p in element.iterfind('plugin') if p.get('name').endswith(f'::{name}'))
    return found


def test_file_is_what_the_generator_writes(env, tmp_path):
    gazebo_world.main(tmp_path / 'world.sdf')
    assert (tmp_path / 'world.sdf').read_bytes() == WORLD.read_bytes(), (
        'write it anew: python -m training.gazebo_world --output config/gazebo/' + WORLD.name)


def walls(world):
    """Return position (3,) -> size (3,) of every box that stops the robot."""
    maze, link = model(world, 'maze')
    assert not numbers(maze, 'pose').any() and maze.findtext('static') == 'true'
    found = {}
    for collision in link.iterfind('collision'):
        pose = numbers(collision, 'pose')
        assert not pose[3:].any(), 'it is turned'
        found[tuple(pose[:3])] = numbers(collision, 'geometry/box/size')
    assert len(found) == len(link.findall('collision')), 'two boxes in one place'
    return found


def test_every_wall_is_where_mujoco_has_it_and_as_large(env, world):
    maze = env.unwrapped.model
    boxes = [i for i in range(maze.ngeom) if maze.geom_type[i] == 6]  # mjGEOM_BOX
    expected = {tuple(maze.geom_pos[i]): 2 * maze.geom_size[i] for i in boxes}
    found = walls(world)
    assert len(boxes) > 30 and found.keys() == expected.keys()
    for position, size in expected.items():
        np.testing.assert_array_equal(found[position], size)


def test_walls_stand_on_the_cells_of_the_maze_that_are_not_free(env, world):
    maze = env.unwrapped
    cells = {tuple(map(float, maze.ij_to_xy(cell))) for cell in np.argwhere(maze.maze_map == 1)}
    assert {position[:2] for position in walls(world)} == cells


def test_every_wall_that_stops_the_robot_is_seen_too(world):
    _, link = model(world, 'maze')
    seen, felt = (
        [(v.findtext('pose'), v.findtext('geometry/box/size')) for v in link.iterfind(kind)]
        for kind in ('visual', 'collision'))
    assert seen == felt


def test_robot_is_the_ball_of_mujoco_at_the_start_of_the_task(env, world):
    robot, link = model(world, gazebo_world.ROBOT)
    ball = env.unwrapped.model.geom('pointbody')
    for kind in ('collision', 'visual'):
        assert link.findtext(f'{kind}/geometry/sphere/radius') == f'{ball.size[0]:g}'
    start = numbers(robot, 'pose')
    np.testing.assert_array_equal(start[:2], env.unwrapped.cur_task_info['init_xy'])
    assert start[2] == ball.pos[2] and not start[3:].any()
    assert robot.find('static') is None
    body = env.unwrapped.model.body('torso')
    assert float(link.findtext('inertial/mass')) == pytest.approx(body.mass[0])
    assert float(link.findtext('inertial/inertia/izz')) == pytest.approx(body.inertia[2])


def test_nothing_turns_the_robot_slows_it_down_or_makes_it_sink(world):
    # Its velocity is along its own axes: they have to stay those of the maze.
    _, link = model(world, gazebo_world.ROBOT)
    assert not numbers(world, 'gravity').any()
    for name in ('mu', 'mu2'):
        assert float(link.findtext(f'collision/surface/friction/ode/{name}')) == 0.0
    _, floor = model(world, 'floor')
    assert floor.find('collision') is None


def test_goal_is_that_of_the_task_and_in_nobody_s_way(env, world):
    goal, link = model(world, 'goal')
    np.testing.assert_array_equal(
        numbers(goal, 'pose')[:2], env.unwrapped.cur_task_info['goal_xy'])
    assert link.find('collision') is None
    assert float(link.findtext('visual/geometry/cylinder/radius')) == (
        env.unwrapped.model.geom('target').size[0])


def test_odometry_has_the_rate_and_the_frame_of_the_trained_one(env, world):
    robot, _ = model(world, gazebo_world.ROBOT)
    odometry = plugin(robot, 'OdometryPublisher')
    frequency = float(odometry.findtext('odom_publish_frequency'))
    assert frequency == 1 / step_seconds(env)
    # A whole number of steps: its stamps begin each period of the policy.
    steps = 1 / frequency / float(world.findtext('physics/max_step_size'))
    assert steps == pytest.approx(round(steps), abs=1e-9) and frequency % SPEC.rate == 0
    assert odometry.findtext('odom_frame') == SPEC.actions[0].frame_id
    assert odometry.findtext('dimensions') == '2'


def test_bridge_passes_the_topics_of_the_spec_in_their_direction_and_type(world):
    robot, _ = model(world, gazebo_world.ROBOT)
    topics = {entry['ros_topic_name']: entry for entry in BRIDGE}
    assert len(topics) == len(BRIDGE) == 3
    prefix = f'/model/{robot.get("name")}'
    # As the systems call them where the world says nothing else, and what they pass.
    for system, topic in (('OdometryPublisher', 'odom_topic'), ('VelocityControl', 'topic')):
        assert plugin(robot, system).find(topic) is None
    for stream, direction, gazebo in (
            (SPEC.observations[0], 'GZ_TO_ROS', (f'{prefix}/odometry', 'gz.msgs.Odometry')),
            (SPEC.actions[0], 'ROS_TO_GZ', (f'{prefix}/cmd_vel', 'gz.msgs.Twist'))):
        entry = topics.pop(stream.topic)
        assert (entry['ros_type_name'], entry['direction']) == (stream.type, direction)
        assert (entry['gz_topic_name'], entry['gz_type_name']) == gazebo
    clock, = topics.values()
    assert clock == {'ros_topic_name': '/clock', 'gz_topic_name': '/clock',
                     'ros_type_name': 'rosgraph_msgs/msg/Clock', 'gz_type_name': 'gz.msgs.Clock',
                     'direction': 'GZ_TO_ROS'}


def test_bridge_names_messages_that_ros_has():
    pytest.importorskip('rclpy', reason='rclpy is not installed')
    for entry in BRIDGE:
        assert ros_class(entry['ros_type_name'])


@pytest.mark.parametrize('system', ['Physics', 'UserCommands', 'SceneBroadcaster'])
def test_world_names_the_systems_that_gazebo_adds_only_to_worlds_without(world, system):
    assert plugin(world, system).get('filename').startswith('gz-sim-')


def test_gazebo_s_own_parser_takes_the_world():
    program = shutil.which('gz') or shutil.which('ign')
    if program is None or 'sdf' not in subprocess.run(
            [program, '--commands'], capture_output=True, text=True).stdout.split():
        pytest.skip('neither `gz sdf` (Harmonic) nor `ign sdf` (Fortress) is installed')
    told = subprocess.run([program, 'sdf', '-k', str(WORLD)], capture_output=True, text=True)
    assert told.returncode == 0 and 'Valid.' in told.stdout, told.stdout + told.stderr
