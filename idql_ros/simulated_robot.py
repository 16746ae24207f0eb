"""A simulated robot: an environment that is observed and driven through the messages of a spec.

What a spec says is read the other way round: observations are written, commands are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import fractions
import re
from typing import Any

from idql_ros import message as messages
from idql_ros import spec as specs
from idql_ros.environments import make, SimulationError, step_seconds
from idql_ros.guard import Stop
from idql_ros.limits import Limits
from idql_ros.spec import Spec
import numpy as np


class SimulatedRobot:
    """An environment that is observed and driven through the messages of a spec.

    Evaluation and sim_node share it: what one passes in memory the other passes over DDS. Its
    stamps are a function of (episode, step), its starts of (seed, episode).

    Attributes:
        steps_per_tick: env.steps for which one command is held.
        step_seconds: simulated time of an env.step.
        episode, step: where the simulation is.
        total_reward, success, length: of the running episode; length in env.steps.
        success_told: whether the environment said of the episode if it is a success.
        over: whether the episode is over.
        terminated: whether the environment ended it, and not a limit of its length.
        info: what the environment says beside its observation.
    """

    def __init__(self, env: Any, spec: Spec, seed: int,
                 new: Callable[[str], Any] = messages.blank, epoch_ns: int = 0) -> None:
        """Check that environment and spec agree.

        Args:
            env: a Gymnasium environment with flat actions. Its observations are one frame, either
                flat: the numbers of one message of each signal, after the spec's operations; or
                a Dict, name of a signal -> the numbers of its fields, before them.
            spec: read the other way round: observations are written, actions are read.
            seed: of the first episode; episode k starts with seed + k.
            new: returns a message with its defaults for a type.
            epoch_ns: about where the simulated time begins.

        Raises:
            SimulationError: sizes, rates or limits disagree.
            MessageError: the fields or operations of the spec do not keep the numbers.
        """
        self.env, self.spec, self._seed, self._new = env, spec, seed, new
        space = env.observation_space
        # Of a Dict what stands in the messages; else what the operations make of it.
        self._by_signal = hasattr(space, 'spaces')
        self._written = [
            dataclasses.replace(signal, operations=()) if self._by_signal else signal
            for signal in spec.observations]
        if self._by_signal:
            self._check_signals(space)
        else:
            self._check_size('observation', space, spec.frame_size)
        self._check_size('action', env.action_space, spec.action_size)
        step = fractions.Fraction(step_seconds(env)).limit_denominator(10**6)
        steps = 1 / (fractions.Fraction(str(spec.rate)) * step)
        if steps.denominator != 1:
            raise SimulationError(
                f'spec {spec.name}: rate: expected a whole number of steps of {float(step)} s in '
                f'a tick, found {float(steps):.4g} at {spec.rate} Hz')
        self.steps_per_tick = steps.numerator
        self._first_tick = spec.period_of(epoch_ns)
        self.step_seconds = float(step)
        self._step_ns = step * messages.NS
        self._limits = Limits(spec)
        self._stop = Stop(spec, self._limits)
        # The numbers of the environment are one frame; the observer makes the history. An
        # observation of the same frames over and over measures the same.
        self._parts = np.split(
            np.arange(spec.frame_size), np.cumsum([s.size for s in spec.observations])[:-1])
        self._frames = np.concatenate([
            np.tile(part, signal.history)
            for part, signal in zip(self._parts, spec.observations, strict=True)])
        self._check_messages()
        # A limit by TimeLimit, or so many steps that stamps of two episodes do not meet.
        limit = getattr(env.spec, 'max_episode_steps', None) or 10**6
        self._ticks_per_episode = limit // self.steps_per_tick + 2
        self.episode, self.step = -1, 0
        self.over, self.terminated = True, False
        self.total_reward, self.success, self.length = 0.0, False, 0
        self.success_told = False

    def _check_size(self, what: str, space: Any, size: int) -> None:
        if getattr(space, 'shape', None) != (size,) or np.dtype(space.dtype).kind != 'f':
            raise SimulationError(
                f'spec {self.spec.name}: expected an environment with {size} {what} numbers, as '
                f'the spec states, found the space {space}')

    def _check_signals(self, space: Any) -> None:
        """Check a space of one flat part for each signal."""
        sizes = {name: getattr(part, 'shape', None) for name, part in space.spaces.items()}
        expected = {signal.name: (signal.size,) for signal in self._written}
        if sizes != expected:
            raise SimulationError(
                f'spec {self.spec.name}: expected an environment with the numbers of each '
                f"signal's fields, {expected}, found {sizes}")

    def _numbers(self, observation: Any) -> np.ndarray:
        """Return the numbers that are written into the messages, one signal after another."""
        if self._by_signal:
            return np.concatenate([observation[signal.name] for signal in self._written])
        return np.asarray(observation, np.float32)

    def _check_messages(self) -> None:
        space = self.env.observation_space
        low, high = (
            self._numbers({name: getattr(part, end) for name, part in space.spaces.items()})
            if self._by_signal else getattr(space, end) for end in ('low', 'high'))
        position = 0
        for signal in self._written:
            part = slice(position, position + signal.size)
            position += signal.size
            messages.check_inverse(
                signal, lambda s=signal: self._new(s.type), low[part], high[part])
        lower = np.array([d.lower for d in self.spec.dimensions])
        upper = np.array([d.upper for d in self.spec.dimensions])
        space = self.env.action_space
        if np.any(lower < space.low - 1e-6) or np.any(upper > space.high + 1e-6):
            raise SimulationError(
                f'spec {self.spec.name}: expected action limits within those of the environment, '
                f'{space.low.tolist()} to {space.high.tolist()}, found {lower.tolist()} to '
                f'{upper.tolist()}')
        for command, low, high in zip(
                self.spec.actions, self.spec.split_action(lower), self.spec.split_action(upper),
                strict=True):
            messages.check_inverse(command, lambda c=command: self._new(c.type), low, high)

    @property
    def time_ns(self) -> int:
        """Return the simulated time: tick-aligned at a reset, never that of another episode."""
        ticks, steps = divmod(self.step, self.steps_per_tick)
        # Each tick begins its period exactly: 1/30 s has no whole number of nanoseconds.
        start = self.spec.start_of(
            self._first_tick + (self.episode + 1) * self._ticks_per_episode + ticks)
        return start + round(steps * self._step_ns)

    @property
    def at_tick(self) -> bool:
        """Return whether the next env.step begins with a new command."""
        return self.step % self.steps_per_tick == 0

    def reset(self, episode: int) -> None:
        """Start an episode (0, 1, ...).

        Raises:
            SimulationError: the spec's messages do not tell the environment's numbers, such as the
                cosine and sine of what is no angle.
        """
        self.episode, self.step = episode, 0
        self.over = self.terminated = False
        self.total_reward, self.success, self.length = 0.0, False, 0
        self.success_told = False
        self._observation, self.info = self.env.reset(seed=self._seed + episode)
        self._stop.reset()
        self._stopped: np.ndarray | None = None
        self._measure()
        if not self._by_signal:
            self._check_told()

    def _check_told(self) -> None:
        """Check that the messages tell what the environment observes."""
        frame, found = self._numbers(self._observation), self._read()
        for signal, part in zip(self.spec.observations, self._parts, strict=True):
            if not np.allclose(found[part], frame[part], rtol=1e-5, atol=1e-6):
                raise SimulationError(
                    f'spec {self.spec.name}: signal {signal.name}: expected operations and fields '
                    f'that tell what the environment observes, {frame[part].tolist()}, found that '
                    f'they tell {found[part].tolist()}')

    def _read(self) -> np.ndarray:
        """Return what the messages tell, (F,) float32."""
        sent = self.observe()
        return np.concatenate([
            messages.read(signal, sent[signal.topic]) for signal in self.spec.observations])

    def observe(self) -> dict[str, Any]:
        """Return topic -> message for the present observation."""
        return messages.write_topics(
            self._written, self._numbers(self._observation), self.time_ns, self._new)

    def read_action(self, commands: Mapping[str, Any]) -> np.ndarray:
        """Return the action (A,) float32 in a message for each action topic."""
        return np.concatenate([
            messages.read(command, commands[command.topic]) for command in self.spec.actions])

    def advance(self, action: np.ndarray) -> None:
        """Make one env.step with an action (A,) in the spec's units; held within its limits.

        Raises:
            SimulationError: the action is not finite.
        """
        if not np.isfinite(action).all():
            raise SimulationError(f'expected a finite action, found {action.tolist()}')
        # While the robot stops, it goes on to hold what it held when the stop began.
        held = self._stopped
        if held is None or not np.array_equal(action, held):
            held = self._limits.clip(action)
            self._stop.send(held)
            self._stopped = None
        self._observation, reward, terminated, truncated, self.info = self.env.step(held)
        self._measure()
        self.step += 1
        self.length += 1
        self.total_reward += float(reward)
        self.success_told = self.success_told or 'success' in self.info
        self.success = self.success or bool(self.info.get('success', False))
        self.terminated = bool(terminated)
        self.over = self.terminated or bool(truncated)

    def _measure(self) -> None:
        if any(dimension.measured is not None for dimension in self.spec.dimensions):
            frame = self._read() if self._by_signal else self._numbers(self._observation)
            self._stop.measure(frame[self._frames])

    def stop_action(self) -> np.ndarray | None:
        """Return what the robot does by itself when commands stay away: the spec's stop (A,).

        None where the spec's stop is not known yet (it holds what was never measured or sent).
        """
        held = self._stop.hold()
        self._stopped = None if np.isnan(held).any() else held
        return self._stopped


def plain_spec(name: str) -> Spec:
    """Return the spec for an environment that no robot stands behind.

    Observation and action are one Float64MultiArray each, in the environment's own numbers; a
    tick is one env.step.

    Args:
        name: of the environment, see `make`; what is no letter or digit becomes an underscore in
            the spec's name.

    Raises:
        SimulationError: there is none of this name, or it cannot be described so.
        SpecError: a spec cannot hold its rate or its limits.
    """
    env = make(name)
    try:
        size, action_size = (_flat_size(space, name) for space in (
            env.observation_space, env.action_space))
        rate = 1.0 / step_seconds(env)
        array = 'std_msgs/msg/Float64MultiArray'
        lower, upper = env.action_space.low.tolist(), env.action_space.high.tolist()
        spec = specs.parse({
            'spec_version': specs.SPEC_VERSION, 'name': re.sub(r'\W', '_', name, flags=re.ASCII),
            'rate': float(f'{rate:.12g}'), 'tick': 'timer',
            'observations': [{
                'name': 'observation', 'topic': 'observation', 'type': array,
                'fields': [f'data[0:{size}]'], 'unit': '1', 'max_age': 2.0 / rate}],
            'actions': [{
                'name': 'action', 'topic': 'action', 'type': array,
                'fields': [f'data[0:{action_size}]'],
                'dimensions': [
                    {'kind': 'increment', 'unit': '1', 'lower': low, 'upper': high, 'stop': 'zero'}
                    for low, high in zip(lower, upper, strict=True)]}],
        }, f'environment {name}')
        SimulatedRobot(env, spec, seed=0)
    finally:
        env.close()
    return spec


def _flat_size(space: Any, name: str) -> int:
    """Return how many numbers a flat Box of floats has; raise SimulationError for another."""
    shape = getattr(space, 'shape', None) or ()
    if len(shape) != 1 or np.dtype(space.dtype).kind != 'f' or not hasattr(space, 'low'):
        raise SimulationError(
            f'environment {name}: expected flat spaces of floating-point numbers, found {space}')
    return shape[0]
