"""The simulated robots: Gymnasium environments in physical quantities.

A factory returns an environment whose observations and actions are the numbers of a spec, in its
units. Gymnasium and the simulators are imported when a factory is called.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import importlib.util
import math
from typing import Any
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


# The environment of each robot in config/robots, for who names only the robot.
ROBOTS = {'pointmaze_medium': 'idql_ros.environments:pointmaze_medium'}


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
