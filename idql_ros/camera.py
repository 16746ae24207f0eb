"""Pictures of an environment of MuJoCo, without a window; and its window.

The pictures are plain: no shadows, no reflections, no smoothed edges, which together would take
ten times as long. MuJoCo is imported when a camera is made.
"""

from __future__ import annotations

from collections.abc import Iterable
import math
import os
from typing import Any, NamedTuple
import warnings

from idql_ros.environments import identity
import numpy as np

# From the models themselves: OGBench's table, and what follows a robot of Gymnasium.
_CAMERAS = ('front', 'track')
# Room in a scene for what is drawn into it, beside what the model has.
_MARKERS = 4096
_NO_GL = (
    'expected OpenGL that draws without a screen (EGL); on Debian and Ubuntu: apt install libegl1 '
    'libegl-mesa0 libgl1-mesa-dri')
# What a label may have: MuJoCo keeps 100 bytes for it, with one at the end.
_LABEL_BYTES = 99
# Markers shine by themselves, so much that the lights of a model do not change their colours.
_EMISSION = 64.0


class CameraError(ValueError):
    """No picture can be taken; says what was expected and found."""


class Sphere(NamedTuple):
    """A sphere that is drawn into a picture."""

    # (3,) m, in the frame of the simulated world.
    position: Any
    # m
    radius: float
    # Red, green, blue, alpha, each 0 to 1.
    colour: Any


class Line(NamedTuple):
    """A line through points."""

    # (P, 3) m
    points: Any
    # m
    width: float
    colour: Any


class Label(NamedTuple):
    """Words at a place."""

    position: Any
    text: str


Marker = Sphere | Line | Label


class Camera:
    """Takes pictures of an environment as it is, and changes nothing in it.

    A maze is seen from above, all of it; a table by its front camera; a robot that runs by the
    camera that runs with it; all else as MuJoCo's own viewer begins.
    """

    def __init__(self, env: Any, width: int = 320, height: int = 240) -> None:
        """Prepare for pictures of an environment.

        Args:
            env: a Gymnasium environment that MuJoCo simulates.
            width: of a picture, in pixels.
            height: of a picture, in pixels.

        Raises:
            CameraError: it is another environment, or there is no OpenGL for it.
        """
        self._env, self._width, self._height = env, width, height
        self._gl = self._renderer = None
        model, _ = _simulation(env)
        self._gl = _new_gl(width, height)
        self._prepare(model)

    def _prepare(self, model: Any) -> None:
        """Make what is needed to draw a model."""
        import mujoco
        self._free_renderer()
        self._gl.make_current()
        # These are read when the renderer is made, and belong to the environment.
        screen, quality = model.vis.global_, model.vis.quality
        kept = screen.offwidth, screen.offheight, quality.offsamples, quality.shadowsize
        screen.offwidth, screen.offheight = self._width, self._height
        quality.offsamples = quality.shadowsize = 0
        try:
            self._renderer = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        finally:
            (screen.offwidth, screen.offheight, quality.offsamples, quality.shadowsize) = kept
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._renderer)
        self._model = model
        self._viewport = mujoco.MjrRect(0, 0, self._width, self._height)
        self._options = mujoco.MjvOption()
        self._scene = mujoco.MjvScene(model, maxgeom=model.ngeom + model.nsite + _MARKERS)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = False
        self._view = _view(self._env, model, self._width / self._height)

    def render(self, markers: Iterable[Marker] = ()) -> np.ndarray:
        """Return a picture of the environment, (height, width, 3) uint8.

        Args:
            markers: what is drawn into it, in its own colours; what moves is transparent then.
        """
        import mujoco
        model, data = _simulation(self._env)
        if model is not self._model:  # compiled anew, as OGBench's tables may be at a reset
            self._prepare(model)
        self._gl.make_current()
        markers = list(markers)
        self._options.flags[mujoco.mjtVisFlag.mjVIS_TRANSPARENT] = bool(markers)
        mujoco.mjv_updateScene(
            model, data, self._options, None, self._view, mujoco.mjtCatBit.mjCAT_ALL, self._scene)
        for marker in markers:
            self._draw(marker)
        mujoco.mjr_render(self._viewport, self._scene, self._renderer)
        picture = np.empty((self._height, self._width, 3), np.uint8)
        mujoco.mjr_readPixels(picture, None, self._viewport, self._renderer)
        return picture[::-1].copy()  # OpenGL begins at the bottom

    def _draw(self, marker: Marker) -> None:
        import mujoco
        if isinstance(marker, Sphere):
            self._add(mujoco.mjtGeom.mjGEOM_SPHERE, marker.colour, marker.position, marker.radius)
        elif isinstance(marker, Label):
            geom = self._add(mujoco.mjtGeom.mjGEOM_LABEL, np.ones(4), marker.position, 0.1)
            if geom is not None:
                # Its font knows no other letters.
                geom.label = marker.text.encode('ascii', 'replace')[:_LABEL_BYTES].decode()
        else:
            points = np.asarray(marker.points, np.float64)
            for begin, end in zip(points[:-1], points[1:], strict=True):
                geom = self._add(mujoco.mjtGeom.mjGEOM_CAPSULE, marker.colour, begin, 0.1)
                if geom is not None:
                    mujoco.mjv_connector(
                        geom, mujoco.mjtGeom.mjGEOM_CAPSULE, 0.5 * marker.width, begin, end)

    def _add(self, kind: Any, colour: Any, position: Any, size: float) -> Any | None:
        """Return a new piece of the scene; None where it is full."""
        import mujoco
        if self._scene.ngeom >= self._scene.maxgeom:
            return None
        geom = self._scene.geoms[self._scene.ngeom]
        red, green, blue, alpha = colour
        mujoco.mjv_initGeom(
            geom, kind, np.full(3, size), np.asarray(position, np.float64), np.eye(3).ravel(),
            np.array([*(np.array([red, green, blue]) / _EMISSION), alpha], np.float32))
        geom.emission, geom.specular = _EMISSION, 0.0
        self._scene.ngeom += 1
        return geom

    def _free_renderer(self) -> None:
        if self._renderer is not None:
            self._gl.make_current()
            self._renderer.free()
            self._renderer = None

    def close(self) -> None:
        """Free what the pictures took; the camera is of no use afterwards."""
        self._free_renderer()
        if self._gl is not None:
            self._gl.free()
            self._gl = None


class Window:
    """MuJoCo's own window onto an environment, to be looked at while it runs."""

    def __init__(self, env: Any) -> None:
        """Open it.

        Args:
            env: a Gymnasium environment that MuJoCo simulates.

        Raises:
            CameraError: it is another environment, or there is no display.
        """
        self._env = env
        _simulation(env)
        import glfw
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            there = glfw.init()
        if not there:  # MuJoCo would wait for the window for ever
            raise CameraError(
                'window: expected a display, found none at '
                f'DISPLAY={os.environ.get("DISPLAY", "")!r}; pictures and films need none')
        self._open()

    def _open(self) -> None:
        import mujoco
        import mujoco.viewer
        model, data = _simulation(self._env)
        self._handle = mujoco.viewer.launch_passive(
            model, data, show_left_ui=False, show_right_ui=False)
        with self._handle.lock():
            view = _view(self._env, model, 4 / 3)
            for name in ('type', 'fixedcamid', 'distance', 'azimuth', 'elevation'):
                setattr(self._handle.cam, name, getattr(view, name))
            self._handle.cam.lookat[:] = view.lookat
        self._model = model

    def show(self) -> None:
        """Show the environment as it is."""
        if self._handle.is_running():  # or somebody closed it
            if _simulation(self._env)[0] is not self._model:
                self.close()
                self._open()
            self._handle.sync()

    def close(self) -> None:
        """Close it."""
        self._handle.close()


def _simulation(env: Any) -> tuple[Any, Any]:
    """Return the model and the data of an environment of MuJoCo."""
    unwrapped = env.unwrapped
    try:
        import mujoco
        model, data = unwrapped.model, unwrapped.data
    except (ImportError, AttributeError):
        model = data = None
    except ValueError as error:  # of OGBench's tables, before their first reset
        raise CameraError(f'environment {identity(env)}: {error}') from None
    if model is None or not isinstance(model, mujoco.MjModel):
        raise CameraError(
            f'environment {identity(env)}: expected one that MuJoCo simulates, with model and '
            f'data, found {type(unwrapped).__name__}')
    return model, data


def _new_gl(width: int, height: int) -> Any:
    """Return an OpenGL context that needs no display.

    MuJoCo's own renderer takes the kind that MUJOCO_GL named when mujoco was first imported, and
    without a display that must have been this one.
    """
    try:
        from mujoco.egl import GLContext
        gl = GLContext(width, height)
        gl.make_current()
    except Exception as error:  # PyOpenGL raises anything where a library is missing
        chosen = os.environ.get('PYOPENGL_PLATFORM', 'egl')
        if chosen.lower() != 'egl':
            raise CameraError(
                'expected PYOPENGL_PLATFORM, and MUJOCO_GL, which sets it, to be unset or egl, '
                f'found {chosen}') from error
        raise CameraError(
            f'{_NO_GL}; found {type(error).__name__}: {" ".join(str(error).split())}') from error
    return gl


def _view(env: Any, model: Any, aspect: float) -> Any:
    """Return where a picture is taken from; `aspect` is its width over its height."""
    import mujoco
    view = mujoco.MjvCamera()
    names = [model.camera(i).name for i in range(model.ncam)]
    if hasattr(env.unwrapped, 'maze_map'):
        floor = model.geom('floor')
        # Of the outer walls, which are as thick as a way is wide, a quarter will do.
        half_width, half_height = floor.size[:2] - 0.75 * env.unwrapped._maze_unit
        angle = 0.5 * math.radians(model.vis.global_.fovy)
        view.type = mujoco.mjtCamera.mjCAMERA_FREE
        view.lookat[:] = floor.pos
        view.azimuth, view.elevation = 90.0, -90.0  # x to the right, y up
        # The tops of the walls are nearer than the floor, and look larger.
        view.distance = max(half_height, half_width / aspect) / math.tan(angle) + 2.0 * max(
            model.geom(i).size[2] for i in range(model.ngeom))
        return view
    for name in _CAMERAS:
        if name in names:
            view.type = mujoco.mjtCamera.mjCAMERA_FIXED
            view.fixedcamid = names.index(name)
            return view
    mujoco.mjv_defaultFreeCamera(model, view)
    return view
