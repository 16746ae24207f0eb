"""What is shown of a simulation is what there is, and costs nothing where nobody looks."""

import io
from pathlib import Path
import sys

import numpy as np
import pytest

harness = pytest.importorskip('harness', reason='rclpy is not installed')
pytest.importorskip('ogbench', reason='ogbench is not installed')
PIL = pytest.importorskip('PIL.Image', reason='pillow is not installed')

from geometry_msgs.msg import Point  # noqa: E402
from idql_ros.camera import Camera, CameraError  # noqa: E402
from idql_ros.environments import goal, make, ROBOTS  # noqa: E402
from idql_ros.film import FilmError  # noqa: E402
from idql_ros.simulated_robot import SimulatedRobot  # noqa: E402
from idql_ros.spec import load  # noqa: E402
from idql_ros.topics import LATCHED  # noqa: E402
from idql_ros.view import View  # noqa: E402
from rclpy.exceptions import InvalidParameterValueException  # noqa: E402
from sensor_msgs.msg import CompressedImage, Image  # noqa: E402
from std_msgs.msg import ColorRGBA  # noqa: E402
from visualization_msgs.msg import Marker, MarkerArray  # noqa: E402

SPEC = load(Path(__file__).parents[1] / 'config' / 'robots' / 'pointmaze_medium.yaml')
DEFAULTS = {'image_rate': 0.0, 'image_width': 64, 'image_height': 64, 'film': '',
            'film_speed': 1.0, 'candidates_topic': 'policy_node/candidates', 'window': False}
# Right of where the robot starts, above the walls.
BESIDE = (6.0, 1.0, 3.0)


@pytest.fixture(scope='module')
def simulated():
    """Give the maze's robot, of which pictures can be taken."""
    made = SimulatedRobot(make(ROBOTS['pointmaze_medium']), SPEC, seed=0)
    made.reset(0)
    try:
        Camera(made.env).close()
    except CameraError as error:
        pytest.skip(str(error))
    yield made
    made.env.close()


@pytest.fixture
def shown(robot, simulated):
    """Return a function that shows the robot, at its start."""
    views = []

    def show(**parameters):
        simulated.reset(0)
        views.append(View(robot.node, simulated, DEFAULTS | parameters))
        views[-1].begin()
        return views[-1]

    yield show
    for view in views:
        view.close()


def play(view, simulated, steps, action=(1.0, 0.0)):
    """Make steps as sim_node does."""
    for _ in range(steps):
        view.show()
        simulated.advance(np.array(action, np.float32))


def candidates(stamp_ns):
    """Return markers as policy_node has them: green points, a line and a text."""
    points = Marker(type=Marker.SPHERE_LIST)
    points.points, points.colors = [Point(x=BESIDE[0], y=BESIDE[1], z=BESIDE[2])] * 2, [
        ColorRGBA(g=1.0, a=1.0)] * 2
    line = Marker(type=Marker.LINE_STRIP, color=ColorRGBA(r=1.0, a=1.0))
    line.points = [Point(x=10.0, y=10.0, z=3.0), Point(x=12.0, y=10.0, z=3.0)]
    text = Marker(type=Marker.TEXT_VIEW_FACING, text='Q -1.00')
    for marker in (points, line, text):
        marker.scale.x = 2.0
        marker.header.stamp.sec, marker.header.stamp.nanosec = divmod(stamp_ns, 10**9)
    return MarkerArray(markers=[points, line, text])


def is_green(picture):
    """Return whether the point of `candidates` is in a picture."""
    red, green, blue = picture.astype(int).transpose(2, 0, 1)
    return np.count_nonzero((green > 100) & (green > 2 * red) & (green > 2 * blue)) > 3


def pixels(message):
    return np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)


def test_images_are_of_the_asked_rate_and_size_and_carry_their_time(robot, simulated, shown):
    plain = robot.listen(Image, '/robot/image')
    compressed = robot.listen(CompressedImage, '/robot/image/compressed')
    view = shown(image_rate=2.5, image_width=80)
    robot.spin_until(lambda: all(
        p.get_subscription_count() for p in view._publishers.values()), 'who listens')
    start_ns = simulated.time_ns
    play(view, simulated, 20)
    robot.spin_until(lambda: len(plain) >= 5 and len(compressed) >= 5, 'pictures')
    stamps = [harness.stamp_ns(message) - start_ns for message in plain]
    assert stamps == [0, 400_000_000, 800_000_000, 1_200_000_000, 1_600_000_000]
    for raw, jpeg in zip(plain, compressed, strict=True):
        assert (raw.height, raw.width, raw.step, raw.encoding) == (64, 80, 240, 'rgb8')
        assert jpeg.format == 'jpeg' and jpeg.header == raw.header
        assert raw.header.frame_id == 'camera_optical_frame'
        decoded = np.asarray(PIL.open(io.BytesIO(jpeg.data.tobytes())))
        assert np.mean(np.abs(decoded.astype(float) - pixels(raw))) < 6.0
    assert np.any(pixels(plain[0]) != pixels(plain[-1]))


def test_a_rate_above_that_of_the_steps_gives_a_picture_a_step(robot, simulated, shown):
    plain = robot.listen(Image, '/robot/image')
    view = shown(image_rate=1000.0)
    robot.spin_until(view._is_seen, 'who listens')
    play(view, simulated, 3)
    robot.spin_until(lambda: len(plain) == 3, 'pictures')


def test_no_picture_is_taken_where_nobody_looks(simulated, shown, monkeypatch):
    view = shown(image_rate=10.0)
    with monkeypatch.context() as changed:
        changed.setattr(view, '_camera', None)  # taking one would fail
        play(view, simulated, 3)
        view.end()
    assert shown()._camera is None  # nor is it made ready where none is asked for
    play(shown(), simulated, 3)


def test_a_film_shows_the_whole_first_episode_and_no_other(simulated, shown, tmp_path):
    path = tmp_path / 'film.gif'
    view = shown(film=path, film_speed=4.0)
    play(view, simulated, 12)
    assert not path.exists()
    view.end()
    with PIL.open(path) as film:
        # One a step, and the end. What moves 0.1 m is not seen in every picture, which then lasts.
        seconds = 0.0
        for number in range(film.n_frames):
            film.seek(number)
            seconds += film.info['duration'] / 1000.0
        assert seconds == pytest.approx(1.0 + 13 / 40.0, abs=0.1)  # hundredths of a second each
    written = path.read_bytes()
    play(view, simulated, 3)
    view.end()
    assert path.read_bytes() == written and list(tmp_path.iterdir()) == [path]


def test_of_an_episode_that_was_cut_off_there_is_no_film(simulated, shown, tmp_path):
    view = shown(film=tmp_path / 'film.mp4')
    play(view, simulated, 3)
    view.close()
    assert list(tmp_path.iterdir()) == []


def test_candidates_are_drawn_while_they_are_of_now(robot, simulated, shown):
    plain = robot.listen(Image, '/robot/image')
    publisher = robot.node.create_publisher(MarkerArray, 'policy_node/candidates', 1)
    view = shown(image_rate=10.0)
    robot.spin_until(lambda: view._is_seen() and publisher.get_subscription_count(), 'all sides')

    def picture():
        plain.clear()
        play(view, simulated, 1)
        robot.spin_until(lambda: plain, 'a picture')
        return pixels(plain[0])

    assert not is_green(picture())
    publisher.publish(candidates(simulated.time_ns))
    robot.spin_until(lambda: view._candidates.markers, 'candidates')
    assert is_green(picture())
    # RViz draws in the marker's colour what has none of its own; what is deleted is not drawn.
    for action, colours, drawn in ((Marker.ADD, 0, True), (Marker.ADD, 1, True),
                                   (Marker.DELETE, 0, False)):
        foreign = candidates(simulated.time_ns)
        points = foreign.markers[0]
        points.color, points.action = ColorRGBA(g=1.0, a=1.0), action
        points.colors = [ColorRGBA(r=1.0, a=1.0)] * colours
        view._keep(foreign)
        assert is_green(picture()) == drawn
    view._keep(candidates(simulated.time_ns))
    assert is_green(picture())
    for _ in range(9):  # two decisions later
        simulated.advance(np.zeros(2, np.float32))
    assert not is_green(picture())


def test_candidates_of_a_tick_are_waited_for_but_not_for_ever(robot, simulated, shown, tmp_path):
    view = shown(film=tmp_path / 'film.gif')
    view.await_candidates(robot.executor)  # nobody will send any
    publisher = robot.node.create_publisher(MarkerArray, 'policy_node/candidates', 1)
    robot.spin_until(publisher.get_subscription_count, 'its subscription')
    publisher.publish(candidates(simulated.time_ns - 1))
    publisher.publish(candidates(simulated.time_ns))
    view.await_candidates(robot.executor)
    assert view._candidates_age_ns() == 0
    simulated.advance(np.zeros(2, np.float32))
    view.await_candidates(robot.executor)
    assert view._candidates_age_ns() > 0


def test_the_goal_is_there_for_who_comes_late_and_shows_that_it_is_reached(
        robot, simulated, shown):
    view = shown()
    found = []
    robot.node.create_subscription(MarkerArray, '/robot/goal', found.append, LATCHED)
    robot.spin_until(lambda: found, 'the goal')
    marker, = found[-1].markers
    expected = goal(simulated.env)
    place = marker.pose.position
    assert [place.x, place.y, place.z] == expected.position.tolist()
    assert marker.scale.x == 2.0 * expected.tolerance
    assert marker.header.frame_id == 'odom' and marker.color.r > marker.color.g
    simulated.env.unwrapped.set_xy(expected.position[:2])
    simulated.advance(np.zeros(2, np.float32))
    assert simulated.over
    view.end()
    robot.spin_until(lambda: len(found) == 2, 'the goal, reached')
    assert found[-1].markers[0].color.g > found[-1].markers[0].color.r


def test_the_goal_of_the_arm_is_where_the_cube_shall_be():
    env = make(ROBOTS['ur5e_cube'])
    env.reset(seed=0)
    expected = env.unwrapped.cur_task_info['goal_xyzs'][0]
    assert goal(env).position == pytest.approx(expected)
    env.close()


@pytest.mark.parametrize('name', [
    'Hopper-v5', 'cube-double-singletask-task1-v0', 'scene-singletask-task1-v0'])
def test_where_no_one_place_says_that_a_task_is_done_there_is_no_goal(name):
    env = make(name)
    env.reset(seed=0)
    assert goal(env) is None
    env.close()


@pytest.mark.parametrize(('parameters', 'error', 'expected'), [
    ({'film': 'film.avi'}, FilmError, 'ends in'),
    ({'film': '/no/such/folder/film.mp4'}, OSError, 'No such file'),
    ({'film': 'film.gif', 'image_rate': 10.0, 'film_speed': 10.0}, FilmError, 'found 100'),
    ({'film': 'film.mp4', 'candidates_topic': 'a b'}, InvalidParameterValueException,
     r'\(a b\).*must not contain'),
    ({'film': 'film.mp4', 'window': True}, CameraError, 'expected a display'),
])
def test_what_cannot_be_shown_is_refused_at_the_start_and_leaves_nothing(
        robot, simulated, tmp_path, monkeypatch, parameters, error, expected):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('DISPLAY', '')
    monkeypatch.setenv('WAYLAND_DISPLAY', '')
    with pytest.raises(error, match=expected):
        View(robot.node, simulated, DEFAULTS | parameters)
    assert list(tmp_path.iterdir()) == []


def test_images_without_pillow_are_refused_at_the_start(robot, simulated, monkeypatch):
    monkeypatch.setitem(sys.modules, 'PIL', None)
    with pytest.raises(FilmError, match='pip install pillow'):
        View(robot.node, simulated, DEFAULTS | {'image_rate': 1.0})
