"""Recorded decisions -> rewards and terminals: one plain function for each kind of task.

A reward is a function `(steps, **parameters) -> (rewards (n,) float32, terminals (n,) bool)`. A
Task names one with its parameters, as plain data, and says when an episode ends. A function of
one's own is named `module:function`, is imported from the current folder or Python's path, and
has the same signature.

What happens between two ticks counts too: a decision lasts from its tick to the next one, and
all that was observed in it is judged, not only its last observation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
import functools
import hashlib
import importlib
import inspect
import json
import math
import os
from pathlib import Path
import re
import sys
import sysconfig
import traceback
from types import ModuleType
from typing import Any, Literal, NamedTuple

from idql_ros import spec as specs
import numpy as np
import yaml

Scaling = Literal['none', 'return_range']

# The range of returns that rewards are scaled to.
RETURN_RANGE = 1000.0


class RewardError(ValueError):
    """A task or a reward that cannot be used; names what was expected and found."""


@dataclass(frozen=True)
class Steps:
    """n decisions of an uninterrupted stretch, in physical units."""

    observations: np.ndarray  # (n + 1, O) float32, at the ticks
    actions: np.ndarray  # (n, A) float32
    between: np.ndarray  # (M, O) float32, observed strictly between two ticks, oldest first
    counts: np.ndarray  # (n,) int64, how many rows of `between` belong to each decision; sum = M
    rate: float  # Hz
    # From the bag, for each decision: 'reward' (n,) float, 'terminal' (n,) bool, where the task
    # names topics for them.
    topics: dict[str, np.ndarray] = field(default_factory=dict)

    def within(self, between: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Return (n,) bool: whether something holds anywhere within each decision.

        Args:
            between: (M,) bool, whether it holds for each row of `between`.
            after: (n,) bool, whether it holds at the tick that ends each decision.
        """
        # Sums, because a decision with no row of its own has none to reduce.
        total = np.concatenate([[0], np.cumsum(between)])
        ends = np.cumsum(self.counts)
        return (total[ends] > total[ends - self.counts]) | after


Judgement = tuple[np.ndarray, np.ndarray]


def goal_distance(
    steps: Steps, goal: Sequence[float], indices: Sequence[int] | None = None
) -> Judgement:
    """Return minus the distance to a goal after each decision, and no terminal.

    Args:
        steps: n decisions.
        goal: G values of observations, in their unit.
        indices: Of which observations, G of them; None: of the first G.

    Returns:
        rewards (n,) float32 and terminals (n,) bool.

    Raises:
        RewardError: The goal and the observations do not fit.
    """
    distances = _distances(steps.observations[1:], goal, indices)
    return -distances.astype(np.float32), np.zeros(len(distances), bool)


def sparse_goal(
    steps: Steps, goal: Sequence[float], tolerance: float, indices: Sequence[int] | None = None
) -> Judgement:
    """Return -1 for each decision, and 0 with a terminal where the goal is reached within it.

    The goal is reached at the distance `tolerance` or nearer, at the next tick or between the two
    (OGBench's singletask maze reward, `ogbench/relabel_utils.py`).

    Args:
        steps: n decisions.
        goal: G values of observations, in their unit.
        tolerance: Euclidean distance.
        indices: Of which observations, G of them; None: of the first G.

    Returns:
        rewards (n,) float32 and terminals (n,) bool.

    Raises:
        RewardError: The goal and the observations do not fit.
    """
    reached = steps.within(
        _distances(steps.between, goal, indices) <= tolerance,
        _distances(steps.observations[1:], goal, indices) <= tolerance)
    return reached.astype(np.float32) - 1, reached


def reach_and_hold(
    steps: Steps, goal: Sequence[float], tolerance: float, seconds: float,
    indices: Sequence[int] | None = None,
) -> Judgement:
    """Return -1 for each decision, and 0 with a terminal where the goal was held long enough.

    It is held as long as no observation, at a tick or between two, is farther than `tolerance`
    away. What was observed between two ticks has no time of its own: the time counts from the
    first tick at the goal, and after a terminal it counts anew, so that an episode judged alone
    is judged as it was among others. Where a stretch was cut because it grew too long, the time
    held before the cut does not count.

    Args:
        steps: n decisions.
        goal: G values of observations, in their unit.
        tolerance: Euclidean distance.
        seconds: How long, rounded up to whole decisions.
        indices: Of which observations, G of them; None: of the first G.

    Returns:
        rewards (n,) float32 and terminals (n,) bool.

    Raises:
        RewardError: The goal and the observations do not fit.
    """
    # The product may lie a rounding above a whole number.
    needed = max(1, math.ceil(seconds * steps.rate * (1 - 1e-12)))
    away = _distances(steps.observations, goal, indices) > tolerance
    left = steps.within(_distances(steps.between, goal, indices) > tolerance, away[1:]) | away[:-1]
    numbers = np.arange(len(left))
    held = numbers - np.maximum.accumulate(np.where(left, numbers, -1))  # decisions, in a row
    done = ~left & (held % needed == 0)
    return done.astype(np.float32) - 1, done


def action_cost(steps: Steps, indices: Sequence[int] | None = None) -> Judgement:
    """Return minus the sum of the squares of each action, and no terminal.

    Args:
        steps: n decisions.
        indices: Of which dimensions, for those of one unit; None: of all.

    Returns:
        rewards (n,) float32, in the square of the actions' unit, and terminals (n,) bool.

    Raises:
        RewardError: There are no such dimensions.
    """
    chosen = _columns(indices, steps.actions.shape[1], 'action_cost: indices')
    cost = np.square(steps.actions[:, chosen], dtype=np.float64).sum(axis=1)
    return -cost.astype(np.float32), np.zeros(len(cost), bool)


def topic(
    steps: Steps, topic: str, field: str, reduce: Literal['sum', 'last'] = 'sum'
) -> Judgement:
    """Return the rewards that the bag holds for each decision, and no terminal.

    Args:
        steps: n decisions.
        topic: Where they were published.
        field: The path of the number in its messages, as in a spec.
        reduce: What was made of the messages of a decision: their sum, or the last of them.

    Returns:
        rewards (n,) float32 and terminals (n,) bool.

    Raises:
        RewardError: The values of the topic are not there.
    """
    values = _topic_values(steps, 'reward', topic)
    return values.astype(np.float32), np.zeros(len(values), bool)


REWARDS: dict[str, Callable[..., Judgement]] = {
    function.__name__: function
    for function in (goal_distance, sparse_goal, reach_and_hold, action_cost, topic)
}
# Not a function: a list of parts, each {weight: number, NAME: parameters}; their sum, with a
# terminal where any of them has one.
WEIGHTED_SUM = 'weighted_sum'


def _distances(
    observations: np.ndarray, goal: Sequence[float], indices: Sequence[int] | None
) -> np.ndarray:
    """Return the distances (m,) float64 of observations (m, O) from a goal."""
    chosen = _goal_columns(observations.shape[1], goal, indices)
    return np.linalg.norm(observations[:, chosen] - np.asarray(goal, np.float64), axis=1)


def _goal_columns(
    size: int, goal: Sequence[float], indices: Sequence[int] | None
) -> slice | list[int]:
    """Return which of O observations the numbers of a goal belong to."""
    if indices is None:
        if not 1 <= len(goal) <= size:
            raise RewardError(
                f'expected a goal of 1 to {size} numbers, values of the first observations, '
                f'found {len(goal)}')
        return slice(len(goal))
    if len(indices) != len(goal):
        raise RewardError(
            f'expected as many indices as numbers in the goal, {len(goal)}, found {len(indices)}')
    return _columns(indices, size, 'goal: indices')


def _columns(indices: Sequence[int] | None, size: int, where: str) -> slice | list[int]:
    """Return which of `size` columns are chosen."""
    if indices is None:
        return slice(None)
    if not all(0 <= index < size for index in indices):
        raise RewardError(f'{where}: expected 0 to {size - 1}, found {list(indices)}')
    return list(indices)


def _topic_values(steps: Steps, kind: str, topic: str) -> np.ndarray:
    """Return what a topic holds for each decision, (n,)."""
    if kind not in steps.topics:
        raise RewardError(
            f'expected the values of the topic {topic} for the {kind}, found none; convert the '
            'bags with this task')
    return steps.topics[kind]


def _is_number(value: Any) -> bool:
    # A bool is an int to Python, and no number to who writes it.
    return (isinstance(value, (int, float)) and not isinstance(value, bool)
            and abs(value) < 1e300)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_field(value: Any) -> bool:
    try:
        return isinstance(value, str) and specs.parse_path(value).size == 1
    except ValueError:
        return False


# What the parameters of the functions above may be, each wherever it occurs.
_PARAMETERS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    'goal': ('a list of numbers', lambda value: (
        isinstance(value, list) and len(value) > 0 and all(map(_is_number, value)))),
    'tolerance': ('a number of 0 or more', lambda value: _is_number(value) and value >= 0),
    'seconds': ('a number above 0', lambda value: _is_number(value) and value > 0),
    'indices': ('a list of different whole numbers of 0 or more', lambda value: (
        isinstance(value, list) and len(value) > 0 and all(map(_is_index, value))
        and len(set(value)) == len(value))),
    'topic': ('the name of a topic', lambda value: isinstance(value, str) and value != ''),
    'field': ('a field path of one number, such as data', _is_field),
    'reduce': ('sum or last', lambda value: value in ('sum', 'last')),
}


def _check_parameters(
    where: str, parameters: Any, known: list[str], required: list[str]
) -> None:
    """Raise RewardError unless parameters are those of a function, each of its kind."""
    if not isinstance(parameters, dict):
        raise RewardError(
            f'{where}: expected a mapping of parameters ({", ".join(known)}), found '
            f'{_show(parameters)}')
    for name in parameters:
        if name not in known:
            raise RewardError(
                f'{where}: expected parameters of {", ".join(known)}, found {_show(name)}')
    for name in required:
        if name not in parameters:
            raise RewardError(f'{where}: expected the parameter {name}, found none')
    for name, value in parameters.items():
        expected, fits = _PARAMETERS[name]
        if not fits(value):
            raise RewardError(f'{where}: {name}: expected {expected}, found {_show(value)}')


def _show(found: Any) -> str:
    text = repr(found)
    return text if len(text) <= 80 else f'{text[:77]}...'


class TopicValue(NamedTuple):
    """What a task takes from a topic of the bag, a number for each decision."""

    kind: Literal['reward', 'terminal']
    topic: str
    field: str
    # Of the messages of a decision: their sum, the last of them, or whether any is not 0.
    reduce: Literal['sum', 'last', 'any']


class _Part(NamedTuple):
    weight: float
    name: str
    parameters: dict[str, Any]


_OWN = re.compile(r'[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*', re.ASCII)


@dataclass(frozen=True)
class Task:
    """What is judged and when an episode ends, as plain data.

    Raises:
        RewardError: A name or a parameter is unknown, absent or of another kind; those of a
            function of one's own are looked at when it is imported, in `check` and `judge`.
    """

    # {NAME: parameters}, such as {'sparse_goal': {'goal': [16, 20], 'tolerance': 0.5}}; NAME is
    # of REWARDS, weighted_sum or module:function.
    reward: Mapping[str, Any]
    # 'reward': where the reward says; 'never'; or {'topic': {'topic': 'done', 'field': 'data'}}.
    terminal: str | Mapping[str, Any] = 'reward'

    def __post_init__(self) -> None:
        """Refuse what is no task; keep plain data only."""
        try:
            plain = json.loads(json.dumps([self.reward, self.terminal], allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise RewardError(
                f'task: expected finite numbers, text, lists and mappings, found others: {error}'
            ) from error
        object.__setattr__(self, 'reward', plain[0])
        object.__setattr__(self, 'terminal', plain[1])
        for part in self._parts:
            if part.name in REWARDS:
                takes = list(inspect.signature(REWARDS[part.name]).parameters.values())[1:]
                _check_parameters(
                    f'reward: {part.name}', part.parameters, [p.name for p in takes],
                    [p.name for p in takes if p.default is p.empty])
            elif not isinstance(part.parameters, dict):
                raise RewardError(f'reward: {part.name}: expected a mapping of parameters, found '
                                  f'{_show(part.parameters)}')
        if self.terminal not in ('reward', 'never'):
            if not isinstance(self.terminal, dict) or list(self.terminal) != ['topic']:
                raise RewardError(
                    'terminal: expected reward, never or topic: {topic: NAME, field: PATH}, found '
                    f'{_show(self.terminal)}')
            names = ['topic', 'field']
            _check_parameters('terminal: topic', self.terminal['topic'], names, names)
        rewards = {need for need in self.needs if need.kind == 'reward'}
        if len(rewards) > 1:
            raise RewardError(
                'reward: expected one topic with rewards, found '
                f'{", ".join(sorted(need.topic for need in rewards))}')

    def __getstate__(self) -> dict[str, Any]:
        """Return the plain data: another process imports functions of one's own anew."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @functools.cached_property
    def _parts(self) -> list[_Part]:
        """Return what the reward is the weighted sum of."""
        name, parameters = _single(self.reward, 'reward')
        if name != WEIGHTED_SUM:
            return [_Part(1.0, name, parameters)]
        if not isinstance(parameters, list) or not parameters:
            raise RewardError(f'reward: {WEIGHTED_SUM}: expected a list of '
                              f'{{weight: NUMBER, NAME: PARAMETERS}}, found {_show(parameters)}')
        parts = []
        for number, item in enumerate(parameters):
            where = f'reward: {WEIGHTED_SUM}[{number}]'
            if not isinstance(item, dict) or not _is_number(item.get('weight')):
                raise RewardError(f'{where}: expected {{weight: NUMBER, NAME: PARAMETERS}}, found '
                                  f'{_show(item)}')
            rest = {key: value for key, value in item.items() if key != 'weight'}
            name, parameters = _single(rest, where)
            if name == WEIGHTED_SUM:
                raise RewardError(f'{where}: expected no {WEIGHTED_SUM} within another, found one')
            parts.append(_Part(float(item['weight']), name, parameters))
        return parts

    @functools.cached_property
    def _functions(self) -> list[Callable[..., Any]]:
        """Return the function of each part; those of one's own are imported."""
        return [REWARDS[part.name] if part.name in REWARDS else _own_function(part)
                for part in self._parts]

    @property
    def own(self) -> list[str]:
        """Return the names of the functions of one's own; nothing is imported."""
        return [part.name for part in self._parts if part.name not in REWARDS]

    @property
    def needs(self) -> list[TopicValue]:
        """Return what has to be read from the bag's topics for this task, each once."""
        found = [
            TopicValue('reward', part.parameters['topic'], part.parameters['field'],
                       part.parameters.get('reduce', 'sum'))
            for part in self._parts if part.name == 'topic'
        ]
        if isinstance(self.terminal, dict):
            named = self.terminal['topic']
            found.append(TopicValue('terminal', named['topic'], named['field'], 'any'))
        return list(dict.fromkeys(found))

    def check(self, observation_size: int, action_size: int) -> None:
        """Find before the work what would fail in `judge`.

        Args:
            observation_size: O.
            action_size: A.

        Raises:
            RewardError: A goal is of more numbers than are observed, indices are out of range, a
                function of one's own cannot be imported or does not take these parameters.
        """
        self.import_own()
        for part in self._parts:
            parameters = part.parameters
            if part.name not in REWARDS:
                continue  # what it takes was looked at
            if 'goal' in parameters:
                _goal_columns(observation_size, parameters['goal'], parameters.get('indices'))
            elif part.name == 'action_cost':
                _columns(parameters.get('indices'), action_size, 'action_cost: indices')

    def import_own(self) -> None:
        """Import the functions of one's own, once for this task.

        Raises:
            RewardError: One cannot be imported, or does not take these parameters.
        """
        _ = self._functions

    def own_source(self) -> str:
        """Return what decides what the functions of one's own do; '' without any.

        The sources of their modules, and of all else that was imported from the same folder, as
        they are when this process asks first. What a function imports only when it is called is
        not among them.

        Raises:
            RewardError: One cannot be imported, or does not take these parameters.
        """
        own = [(part, function) for part, function in zip(
            self._parts, self._functions, strict=True) if part.name not in REWARDS]
        # The one that it is named by, and the one that it is defined in where that tells.
        names = {name for part, function in own
                 for name in (part.name.partition(':')[0], getattr(function, '__module__', None))}
        modules = [sys.modules[name] for name in sorted(filter(None, names))
                   if name in sys.modules]
        return '\n'.join(dict.fromkeys(source for module in modules
                                       for source in _sources(module)))

    def judge(self, steps: Steps) -> Judgement:
        """Return the rewards (n,) float32 and terminals (n,) bool of n decisions.

        Raises:
            RewardError: They do not fit, or a function of one's own fails or returns others.
        """
        total = np.zeros(len(steps.actions))
        terminals = np.zeros(len(steps.actions), bool)
        for part, function in zip(self._parts, self._functions, strict=True):
            rewards, ends = (
                function(steps, **part.parameters) if part.name in REWARDS
                else _judge_own(part, function, steps))
            total += part.weight * rewards.astype(np.float64)
            terminals |= ends
        with np.errstate(over='ignore'):  # too large for float32: infinite, and refused
            judged = total.astype(np.float32)
        if not np.isfinite(judged).all():
            row = int(np.flatnonzero(~np.isfinite(judged))[0])
            raise RewardError(f'reward: expected finite numbers, found {total[row]} at step {row}')
        if self.terminal == 'never':
            terminals = np.zeros(len(terminals), bool)
        elif self.terminal != 'reward':
            named = self.terminal['topic']['topic']
            terminals = _topic_values(steps, 'terminal', named).astype(bool)
        return judged, terminals

    def to_json(self) -> str:
        """Return the task as JSON; equal tasks give equal text."""
        return json.dumps({'reward': self.reward, 'terminal': self.terminal}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> 'Task':
        """Return the task that `to_json` gave; nothing is imported.

        Raises:
            RewardError: It is none.
        """
        try:
            data = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise RewardError(f'task: expected JSON, found {_show(text)}') from error
        if not isinstance(data, dict) or set(data) != {'reward', 'terminal'}:
            raise RewardError(f'task: expected reward and terminal, found {_show(data)}')
        return cls(**data)


def _single(data: Any, where: str) -> tuple[str, Any]:
    """Return the name and the parameters of {NAME: parameters}; without any: {}."""
    if not isinstance(data, dict) or len(data) != 1:
        raise RewardError(f'{where}: expected one mapping NAME: PARAMETERS, found {_show(data)}')
    (name, parameters), = data.items()
    if name not in REWARDS and name != WEIGHTED_SUM and not _OWN.fullmatch(name):
        raise RewardError(
            f'{where}: expected one of {", ".join([*REWARDS, WEIGHTED_SUM])}, or '
            f'module:function, found {_show(name)}')
    return name, {} if parameters is None else parameters


def _own_function(part: _Part) -> Callable[..., Any]:
    """Import a function of the user's own, and see that it takes the parameters."""
    module_name, _, attribute = part.name.partition(':')
    where = f'reward: {part.name}'
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (Exception, SystemExit) as error:  # a module may raise any
        raise RewardError(
            f'{where}: cannot be imported from {folder} or the path: {_told(error)}') from error
    finally:
        sys.path.remove(folder)
    if not callable(function):
        raise RewardError(f'{where}: expected a function, found {_show(function)}')
    try:
        signature = inspect.signature(function)
    except ValueError:  # a compiled one may tell none
        return function
    try:
        signature.bind(None, **part.parameters)
    except TypeError as error:
        raise RewardError(
            f'{where}: expected the parameters of (steps, **parameters), found '
            f'{_show(part.parameters)}: {error}') from error
    return function


@functools.cache
def _sources(module: ModuleType) -> list[str]:
    """Return the sources of a module and of all imported ones from the folder it was found in.

    Read once: a function that imports only when it is called would otherwise be another one for
    the next bag.
    """
    found = {module.__name__: _source(module)}
    top = sys.modules.get(module.__name__.partition('.')[0], module)
    place = next(iter(getattr(top, '__path__', [])), None) or getattr(top, '__file__', None)
    if place is None:  # built in
        return list(found.values())
    folder = _located(place).parent
    for name, other in list(sys.modules.items()):
        file = getattr(other, '__file__', None)
        # Our own are told by the code's version, and the main one is another in each process.
        if (isinstance(file, str) and name.partition('.')[0] not in (
                'idql_ros', 'training', '__main__', '__mp_main__')
                and _located(file).is_relative_to(folder)
                and (name.partition('.')[0] == top.__name__
                     or not _is_installed(_located(file)))):
            found[name] = _source(other)
    return [found[name] for name in sorted(found)]


def _located(file: str) -> Path:
    """Return a file's path without links, but for one that is a link itself: where it is found."""
    return Path(file).parent.resolve() / Path(file).name


def _is_installed(file: Path) -> bool:
    """Return whether a module's file is of Python or of an installed package."""
    return (file.is_relative_to(Path(sysconfig.get_path('stdlib')).resolve())
            or not {'site-packages', 'dist-packages'}.isdisjoint(file.parts))


def _source(module: ModuleType) -> str:
    """Return a module's name and source; of a compiled one the file's hash, or what tells it."""
    file = getattr(module, '__file__', None)
    try:
        content = Path(file).read_bytes() if file else repr(module).encode()
    except OSError:  # within a zip file, or gone
        content = repr(module).encode()
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = f'sha256:{hashlib.sha256(content).hexdigest()}'
    return f'# {module.__name__}\n{text}'


def _judge_own(part: _Part, function: Callable[..., Any], steps: Steps) -> Judgement:
    """Call a function of the user's own, and see that it returns rewards and terminals."""
    where = f'reward: {part.name}'
    # What it judges is stored afterwards: it may look, not write.
    looked_at = replace(
        steps, observations=_read_only(steps.observations), actions=_read_only(steps.actions),
        between=_read_only(steps.between), counts=_read_only(steps.counts),
        topics={kind: _read_only(values) for kind, values in steps.topics.items()})
    try:
        found = function(looked_at, **part.parameters)
        arrays = [np.asarray(values) for values in found] if isinstance(found, tuple) else []
    except (Exception, SystemExit) as error:  # it may raise any
        raise RewardError(f'{where}: failed: {_told(error)}') from error
    if len(arrays) != 2:
        raise RewardError(f'{where}: expected (rewards, terminals), found {_show(found)}')
    rewards, terminals = arrays
    shape = (len(steps.actions),)
    for name, array, kinds, expected in (
        ('rewards', rewards, 'biuf', 'numbers'), ('terminals', terminals, 'b', 'bool'),
    ):
        if array.shape != shape or array.dtype.kind not in kinds:
            raise RewardError(
                f'{where}: expected {name} of shape {shape} and {expected}, found shape '
                f'{array.shape} and {array.dtype}')
    if not np.isfinite(rewards).all():
        row = int(np.flatnonzero(~np.isfinite(rewards))[0])
        raise RewardError(f'{where}: expected finite rewards, found {rewards[row]} at step {row}')
    return rewards, terminals


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


def _told(error: BaseException) -> str:
    """Return an error of somebody else's code in a line, with its place there."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    said = ': '.join(filter(None, [type(error).__name__, ' '.join(str(error).split())]))
    return f'{said} ({Path(last.filename).name}:{last.lineno})'


def parse_task(reward: str, terminal: str = 'reward') -> Task:
    """Build a task from what a command line says.

    Args:
        reward: 'NAME: {PARAMETERS}' as YAML, such as
            'sparse_goal: {goal: [16, 20], tolerance: 0.5}', the name alone where it needs none,
            or a file (.yaml) with it. NAME is of REWARDS, weighted_sum, or module:function.
        terminal: reward, never or 'topic: {topic: NAME, field: PATH}'.

    Raises:
        RewardError: It is no task; a module that it names is imported.
    """
    task = Task(_read_yaml(reward, 'reward'), _read_yaml(terminal, 'terminal', alone=True))
    task.import_own()
    return task


def _read_yaml(text: str, where: str, alone: bool = False) -> Any:
    """Return plain data; a name alone is {name: {}} unless it may stand alone."""
    if text.endswith(('.yaml', '.yml')):
        where = f'{where}: {text}'
        try:
            text = Path(text).expanduser().read_text(encoding='utf-8')
        except (OSError, UnicodeDecodeError) as error:
            raise RewardError(f'{where}: cannot be read: {error}') from error
    try:
        data = specs.UniqueKeyLoader(text).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RewardError(f'{where}: is not YAML: {" ".join(str(error).split())}') from error
    return {data: {}} if isinstance(data, str) and not alone else data


def scale(scaling: Scaling, rewards: np.ndarray, episodes: np.ndarray) -> float:
    """Return what to multiply rewards by.

    Args:
        scaling: 'none': 1. 'return_range': the episodes' returns are to span 1000 (IQL and IDQL
            do so for locomotion).
        rewards: (M,).
        episodes: (M,), the episode of each.

    Raises:
        ValueError: All returns are equal, so that nothing makes them span anything.
    """
    if scaling == 'none':
        return 1.0
    _, numbers = np.unique(episodes, return_inverse=True)
    returns = np.bincount(numbers, rewards)
    extent = float(returns.max() - returns.min())
    if extent == 0:
        raise ValueError(
            f'reward_scaling: return_range expects episodes of different returns, found '
            f'{returns[0]:.4g} for each of {len(returns)}'
        )
    return RETURN_RANGE / extent
