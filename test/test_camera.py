"""Pictures show the environment as it is, and change nothing in it."""

import os
from pathlib import Path
import shutil
import subprocess
import sys

from idql_ros.camera import Camera, CameraError, Label, Line, Sphere
from idql_ros.environments import make
import numpy as np
import pytest

mujoco = pytest.importorskip('mujoco', reason='mujoco is not installed')
pytest.importorskip('ogbench', reason='ogbench is not installed')

SOURCE = Path(__file__).parents[1]
MAZE, TABLE = (f'idql_ros.environments:{name}' for name in ('pointmaze_medium', 'ur5e_cube'))
GREEN = (0.0, 1.0, 0.0, 1.0)


@pytest.fixture
def seen():
    """Return a function that gives an environment after its reset, and a camera on it."""
    made = []

    def look(name, **size):
        env = make(name)
        env.reset(seed=0)
        try:
            made.append((env, Camera(env, **size)))
        except CameraError as error:
            pytest.skip(str(error))
        return made[-1]

    yield look
    for env, camera in made:
        camera.close()
        env.close()


def where_green(picture):
    """Return row and column of the middle of what is green in a picture; None without it."""
    red, green, blue = picture.astype(int).transpose(2, 0, 1)
    found = np.argwhere((green > 100) & (green > 2 * red) & (green > 2 * blue))
    return found.mean(axis=0) if len(found) else None


def run_without(code, **environment):
    """Run code in a process with another environment; return what it printed."""
    return subprocess.run(
        [sys.executable, '-c', code], cwd=SOURCE, capture_output=True, text=True, check=True,
        timeout=60, env=os.environ | environment).stdout


@pytest.mark.parametrize('name', [MAZE, TABLE, 'HalfCheetah-v5', 'InvertedPendulum-v5'])
def test_a_picture_has_the_asked_size_and_shows_something(seen, name):
    _, camera = seen(name, width=200, height=120)
    picture = camera.render()
    assert picture.shape == (120, 200, 3) and picture.dtype == np.uint8
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10


@pytest.mark.parametrize('name', [MAZE, 'antmaze-large-singletask-task1-v0'])
@pytest.mark.parametrize('size', [{'width': 240, 'height': 160}, {'width': 120, 'height': 200}])
def test_a_maze_is_seen_whole_from_above_with_x_to_the_right_and_y_up(seen, name, size):
    env, camera = seen(name, **size)
    rows, columns = env.unwrapped.maze_map.shape
    row_middle, column_middle = (size['height'] - 1) / 2, (size['width'] - 1) / 2
    # The outer corners of the cells that are no wall: they end half a cell from their middle.
    for x in (-2.0, 4.0 * columns - 10.0):
        for y in (-2.0, 4.0 * rows - 10.0):
            found = where_green(camera.render([Sphere((x, y, 2.0), 0.5, GREEN)]))
            assert found is not None
            assert (found[0] > row_middle) == (y < 0.0)
            assert (found[1] > column_middle) == (x > 0.0)


def test_markers_lie_where_they_are_said_to_be(seen):
    _, camera = seen(MAZE, width=200, height=200)
    middle = np.array([10.0, 10.0, 2.5])
    assert where_green(camera.render()) is None
    assert where_green(camera.render([Sphere(middle, 1.0, GREEN)])) == pytest.approx(
        [99.5, 99.5], abs=1.0)
    right, up = (
        where_green(camera.render([Sphere(middle + offset, 1.0, GREEN)])) - 99.5
        for offset in ([5.0, 0.0, 0.0], [0.0, 5.0, 0.0]))
    assert right == pytest.approx([0.0, -up[0]], abs=1.0) and right[1] > 20.0
    # A line covers what lies between its points, all of them.
    line = camera.render([Line([middle, middle + [5, 0, 0], middle + [5, 5, 0]], 1.0, GREEN)])
    assert where_green(line) == pytest.approx(
        99.5 + (0.5 * right + (right + 0.5 * up)) / 2, abs=2.0)
    assert np.any(camera.render([Label(middle, 'Q -1')]) != camera.render([Label(middle, '')]))


def test_more_markers_than_there_is_room_for_leave_the_rest_out(seen):
    _, camera = seen(MAZE, width=64, height=64)
    other, green = Sphere((0.0, 0.0, 2.0), 0.1, (1.0, 0.0, 0.0, 1.0)), Sphere(
        (10.0, 10.0, 2.0), 2.0, GREEN)
    assert where_green(camera.render([other] * 3_000 + [green])) is not None
    assert where_green(camera.render([other] * 10_000 + [green])) is None


@pytest.mark.parametrize(('name', 'place', 'radius'), [
    (MAZE, (10.0, 10.0, 2.5), 3.0), (TABLE, (0.3, 0.0, 0.3), 0.1),
    ('Hopper-v5', (0.8, 0, 1), 0.2)])
@pytest.mark.parametrize('colour', [(0.2, 0.3, 0.9), (1.0, 0.6, 0.1)])
def test_markers_have_their_colours_whatever_the_light(seen, name, place, radius, colour):
    _, camera = seen(name, width=120, height=90)
    found = camera.render([Sphere(place, radius, (*colour, 1.0))]).reshape(-1, 3).astype(float)
    near = np.all(np.abs(found - 255.0 * np.array(colour)) < 8.0, axis=1)
    assert np.count_nonzero(near) > 30


def test_what_moves_is_transparent_where_there_are_markers(seen):
    env, camera = seen(MAZE, width=200, height=200)
    geom = env.unwrapped.data.geom('pointbody')
    inside = Sphere(geom.xpos, 0.5 * env.unwrapped.model.geom('pointbody').size[0], GREEN)
    assert np.any(camera.render([inside]) != camera.render([Label(geom.xpos, '')]))


@pytest.mark.parametrize('text', ['x' * 120, 'é' * 99])
def test_a_label_that_is_too_long_is_cut(seen, text):
    _, camera = seen(MAZE, width=64, height=64)
    place = (10.0, 10.0, 2.5)
    assert np.any(camera.render([Label(place, text)]) != camera.render([Label(place, '')]))


@pytest.mark.parametrize('name', [MAZE, TABLE, 'Hopper-v5'])
def test_looking_changes_nothing(seen, name):
    def state():
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        found = np.empty(mujoco.mj_stateSize(env.unwrapped.model, kind))
        mujoco.mj_getState(env.unwrapped.model, env.unwrapped.data, found, kind)
        visual = env.unwrapped.model.vis
        return [*found, visual.global_.offwidth, visual.quality.offsamples,
                visual.quality.shadowsize]

    env, camera = seen(name, width=64, height=64)
    env.step(env.action_space.low)
    before = state()
    camera.render([Sphere(np.zeros(3), 0.1, GREEN)])
    assert state() == before


def test_a_robot_that_runs_away_stays_in_the_picture(seen):
    env, camera = seen('HalfCheetah-v5', width=100, height=80)
    data = env.unwrapped.data

    def brown():
        red, _, blue = camera.render().astype(int)[20:60, 20:80].transpose(2, 0, 1)
        return np.count_nonzero(red > blue + 30)

    assert brown() > 50
    data.qpos[0] += 30.0
    mujoco.mj_forward(env.unwrapped.model, data)
    assert brown() > 50


def test_a_model_that_is_compiled_anew_is_drawn(seen):
    env, camera = seen(TABLE, width=64, height=48)
    before = camera.render()
    old = env.unwrapped.model
    env.unwrapped.mark_dirty()
    env.reset(seed=0)
    assert env.unwrapped.model is not old
    assert np.array_equal(camera.render(), before)


def test_two_cameras_do_not_disturb_each_other(seen):
    _, maze = seen(MAZE, width=64, height=64)
    before = maze.render()
    _, hopper = seen('Hopper-v5', width=96, height=32)
    hopper.render()
    assert np.array_equal(maze.render(), before)


def test_an_environment_without_mujoco_is_refused():
    with pytest.raises(CameraError, match='CartPole-v1: expected one that MuJoCo simulates'):
        Camera(make('CartPole-v1'))


def test_without_opengl_it_is_said_what_to_install():
    told = run_without(
        'from idql_ros.camera import Camera, CameraError\n'
        'from idql_ros.environments import make\n'
        "env = make('Hopper-v5')\n"
        'try:\n    Camera(env)\nexcept CameraError as error:\n    print(error)\n',
        __EGL_VENDOR_LIBRARY_FILENAMES='/nowhere')
    assert 'apt install libegl1 libegl-mesa0 libgl1-mesa-dri' in told
    assert len(told.splitlines()) == 1


def test_another_kind_of_opengl_that_was_asked_for_is_named():
    told = run_without(
        'from idql_ros.camera import Camera, CameraError\n'
        'from idql_ros.environments import make\n'
        "env = make('Hopper-v5')\n"
        'try:\n    Camera(env)\nexcept CameraError as error:\n    print(error)\n',
        PYOPENGL_PLATFORM='osmesa')
    assert 'PYOPENGL_PLATFORM' in told and told.endswith('unset or egl, found osmesa\n')


SHOW = """
from idql_ros.camera import CameraError, Window
from idql_ros.environments import make
env = make('idql_ros.environments:pointmaze_medium')
try:
    window = Window(env)
except CameraError as error:
    raise SystemExit(print(error))
env.reset(seed=0)
for _ in range(5):
    env.step(env.action_space.high)
    window.show()
window.close()
print('shown')
"""


@pytest.mark.parametrize('display', ['', ':4095'])
def test_without_a_display_a_window_is_refused_in_one_line(display):
    told = run_without(SHOW, DISPLAY=display, WAYLAND_DISPLAY='')
    assert f'expected a display, found none at DISPLAY={display!r}' in told
    assert len(told.splitlines()) == 1


def test_the_window_opens_where_there_is_a_display():
    if shutil.which('xvfb-run') is None:
        pytest.skip('no display to try it on: xvfb is not installed')
    done = subprocess.run(
        ['xvfb-run', '--auto-servernum', sys.executable, '-c', SHOW], cwd=SOURCE,
        capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1:] == ['shown'], done.stderr
