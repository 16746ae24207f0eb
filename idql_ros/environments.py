"""The simulated robots: Gymnasium environments in physical quantities.

A factory returns an environment whose observations and actions are the numbers of a spec, in its
units. Gymnasium and the simulators are imported when a factory is called.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import importlib.util
import math
from typing import Any, NamedTuple
import warnings

import numpy as np


class SimulationError(ValueError):
    """An environment or action that cannot be used; says what was expected and found."""


def pointmaze_medium(**kwargs: Any) -> Any:
    """Return OGBench's pointmaze-medium, task 1, for `config/robots/pointmaze_medium.yaml`.

    Observations: position x, y (m). Actions: velocity x, y (m/s): a step of 0.1 s moves the point
    by 0.2 m x the environment's own action. Reward -1 a step, 0 with the end at the goal, checked
    after the step.

    Args:
        **kwargs: passed to the environment, such as render_mode.

    Raises:
        SimulationError: gymnasium or ogbench is not installed.
    """
    env = make('pointmaze-medium-singletask-task1-v0',
               **{'success_timing': 'post', 'render_mode': None, **kwargs})
    import gymnasium
    velocity = gymnasium.spaces.Box(-2.0, 2.0, (2,), np.float32)
    return gymnasium.wrappers.TransformAction(env, lambda v: 0.5 * v, velocity)


def ur5e_cube(**kwargs: Any) -> Any:
    """Return OGBench's cube-single, task 2, for `config/robots/ur5e_cube.yaml`.

    A UR5e with a Robotiq 2F-85 picks up a cube and puts it elsewhere, at 20 Hz. Observations, by
    signal: arm_position (rad) and arm_velocity (rad/s) of the six joints from the base on;
    tool_position (m) and tool_yaw, a quaternion, of the point between the fingers, in the world's
    frame; gripper (rad), 0: open, 0.8: closed; contact, 0 to 1, of the right finger;
    cube_position (m), cube_orientation and cube_yaw, quaternions. Quaternions are x, y, z, w, as
    in ROS; but cube_orientation is w, x, y, z, as in MuJoCo: the fields of the spec are.

    Actions: where the tool is to be a step of 0.05 s later, told as a velocity, x, y, z (m/s, to
    1) and about z (rad/s, to 6), and the same of the gripper (rad/s, to 16). It is a set-point:
    within the step the simulated arm makes 0.4 to 0.5 of the way, and 0.2 of the turn. OGBench
    counts from where the arm is, which sinks under its weight a little with each step; all zeros,
    the spec's stop, hold the pose of the first of them, and the gripper's last command. Reward -1
    a step, 0 with the end where the cube is within 0.04 m of its goal, checked after the step.

    Args:
        **kwargs: passed to the environment, such as mode='data_collection'.

    Raises:
        SimulationError: gymnasium or ogbench is not installed.
    """
    env = make('cube-single-singletask-task2-v0', **kwargs)
    import gymnasium
    import mujoco
    sizes = {'arm_position': 6, 'arm_velocity': 6, 'tool_position': 3, 'tool_yaw': 4,
             'gripper': 1, 'contact': 1, 'cube_position': 3, 'cube_orientation': 4, 'cube_yaw': 4}

    class Physical(gymnasium.Wrapper):
        """Observes what the environment's info tells, before OGBench scales and shifts it."""

        def __init__(self, env: Any) -> None:
            super().__init__(env)
            self._info: dict[str, Any] = {}
            # Where a stop holds tool and gripper: x, y, z, yaw, opening.
            self._held: np.ndarray | None = None
            self.observation_space = gymnasium.spaces.Dict({
                name: gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float64)
                for name, size in sizes.items()})

        def reset(self, **kwargs: Any) -> Any:
            _, self._info = self.env.reset(**kwargs)
            self._held = None
            return self._told(self._info), self._info

        def step(self, action: np.ndarray) -> Any:
            if action.any():
                self._held = None
            else:
                action = self._hold()
            _, *others, self._info = self.env.step(action)
            return self._told(self._info), *others, self._info

        def _hold(self) -> np.ndarray:
            """Return the environment's own action, (5,), that leads to where the stop began."""
            info = self._info
            measured = np.concatenate([
                info['proprio/effector_pos'], info['proprio/effector_yaw'],
                info['proprio/gripper_opening']])
            if self._held is None:
                # What is gripped was pressed together by a command beyond the measured opening.
                self._held = np.append(measured[:4], self.env.unwrapped.data.ctrl[-1] / 255.0)
            way = self._held - measured
            way[3] = (way[3] + math.pi) % (2.0 * math.pi) - math.pi
            return self.env.unwrapped.normalize_action(way)

        def _told(self, info: dict[str, Any]) -> dict[str, np.ndarray]:
            tool = np.empty(4)
            site = self.env.unwrapped.data.site('ur5e/robotiq/pinch')
            mujoco.mju_mat2Quat(tool, site.xmat)  # w, x, y, z
            cube = info['privileged/block_0_quat']  # w, x, y, z
            return {
                'arm_position': info['proprio/joint_pos'],
                'arm_velocity': info['proprio/joint_vel'],
                'tool_position': info['proprio/effector_pos'],
                'tool_yaw': tool[[1, 2, 3, 0]],
                'gripper': 0.8 * info['proprio/gripper_opening'],
                'contact': info['proprio/gripper_contact'],
                'cube_position': info['privileged/block_0_pos'],
                'cube_orientation': cube,
                'cube_yaw': cube[[1, 2, 3, 0]],
            }

    # By how much the environment's own action of 1 moves, over the step.
    limits = np.array([0.05, 0.05, 0.05, 0.3, 0.8], np.float32) / np.float32(0.05)
    velocity = gymnasium.spaces.Box(-limits, limits, dtype=np.float32)
    return gymnasium.wrappers.TransformAction(Physical(env), lambda v: v / limits, velocity)


# The environment of each robot in config/robots, for who names only the robot.
ROBOTS = {'pointmaze_medium': 'idql_ros.environments:pointmaze_medium',
          'ur5e_cube': 'idql_ros.environments:ur5e_cube'}


def make(name: str, **kwargs: Any) -> Any:
    """Return the environment of a `module:factory` or an id of Gymnasium or OGBench.

    Args:
        name: Such as `my_package:my_robot`, `Hopper-v5` or `cube-single-singletask-task2-v0`.
        **kwargs: passed to the environment.

    Raises:
        SimulationError: there is none of this name, or it cannot be made.
    """
    module_name, colon, factory_name = name.partition(':')
    try:
        # A Gymnasium id may hold a colon too (module:id); it has a version at its end.
        if colon and factory_name.isidentifier():
            env = getattr(importlib.import_module(module_name), factory_name)(**kwargs)
        else:
            env = _registered(name, **kwargs)
    except SimulationError:
        raise
    except Exception as error:  # whatever a foreign factory raises
        raise SimulationError(
            f'environment {name}: expected module:factory or a Gymnasium id, found '
            f'{type(error).__name__}: {" ".join(str(error).split())}'
            + ('' if importlib.util.find_spec('ogbench') else
               '; the environments of OGBench need ogbench: pip install ogbench')) from error
    if not hasattr(env, 'action_space'):
        raise SimulationError(
            f'environment {name}: expected a Gymnasium environment, found a {type(env).__name__}')
    return env


def _registered(name: str, **kwargs: Any) -> Any:
    """Return the environment of a registered id; `reset(seed=...)` fixes its start."""
    import gymnasium

    class SeededReset(gymnasium.Wrapper):
        """Seeds what OGBench draws from beside the environment's own generator."""

        def __init__(self, env: Any) -> None:
            super().__init__(env)
            # Its manipulation environments make a new space each time they are asked for one.
            self.action_space = env.action_space

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            if seed is not None:
                np.random.seed(seed)
                self.action_space.seed(seed)
            with _quiet():
                return self.env.reset(seed=seed, options=options)

    with _quiet():
        if name not in gymnasium.registry:
            with contextlib.suppress(ImportError):
                import ogbench  # noqa: F401 (registers its environments)
        env = gymnasium.make(name, **kwargs)
        if type(env.unwrapped).__module__.startswith('ogbench.'):
            env = SeededReset(env)
    return env


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what says nothing about a simulation.

    That there is a newer version (old data asks for the old one), that no window can be opened,
    that a space is rounded to float32.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        warnings.simplefilter('ignore', UserWarning)
        yield


class Goal(NamedTuple):
    """Where a task is done."""

    # (3,) m, in the frame of the simulated world.
    position: np.ndarray
    # m, how near is near enough.
    tolerance: float


def goal(env: Any) -> Goal | None:
    """Return where the task of the running episode is done; None where no place says so."""
    unwrapped = env.unwrapped
    if hasattr(unwrapped, 'cur_goal_xy'):  # OGBench's mazes
        return Goal(np.array([*unwrapped.cur_goal_xy, 0.0]), unwrapped._goal_tol)
    # OGBench's single cube. Where there are more things, all have a goal, and not all are cubes.
    if (hasattr(unwrapped, '_cube_target_mocap_ids')
            and getattr(unwrapped, '_env_type', '') == 'single'):
        return Goal(unwrapped.data.mocap_pos[unwrapped._cube_target_mocap_ids[0]].copy(), 0.04)
    return None


def identity(env: Any) -> str:
    """Return an environment's id with its version, or its class where it has no id."""
    return env.spec.id if env.spec else type(env.unwrapped).__qualname__


def step_seconds(env: Any) -> float:
    """Return the simulated time of one env.step in seconds.

    Raises:
        SimulationError: the environment does not state it.
    """
    step = getattr(env.unwrapped, 'dt', None)
    if step is None and hasattr(env.unwrapped, 'control_timestep'):  # OGBench's manipulation
        step = env.unwrapped.control_timestep()
    if step is None and env.metadata.get('render_fps'):
        step = 1.0 / env.metadata['render_fps']
    if step is None or not 0.0 < step < math.inf:
        raise SimulationError(
            f'environment {env}: expected the duration of a step as attribute dt or metadata '
            'render_fps, found neither')
    return float(step)
