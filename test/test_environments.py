"""Environments: by name or factory, and those that there are not."""

import re

from idql_ros import environments
from idql_ros.environments import SimulationError
import pytest

gymnasium = pytest.importorskip('gymnasium', reason='gymnasium is not installed')


@pytest.mark.parametrize('name', [
    'NoSuchEnvironment-v0', 'no_such_module:factory', 'idql_ros.environments:no_such_factory',
    'no_such_module:Id-v0', '', ':', 'a b'])
def test_unknown_environment_is_refused_in_one_line(name):
    with pytest.raises(SimulationError, match='expected module:factory or a Gymn') as refused:
        environments.make(name)
    assert str(refused.value).startswith(f'environment {name}: ')
    assert '\n' not in str(refused.value)


def test_factory_of_something_else_is_refused():
    with pytest.raises(SimulationError, match='expected a Gymnasium environment, found a str'):
        environments.make('os:getcwd')


class Nameless(gymnasium.Env):
    """An environment that is not registered."""


def test_identity_says_the_version_or_the_class():
    # Without a version Gymnasium takes the newest.
    assert re.fullmatch(r'Pendulum-v\d+', environments.identity(environments.make('Pendulum')))
    assert environments.identity(Nameless()) == 'Nameless'


def test_environments_are_made_and_reset_without_warnings_that_say_nothing(recwarn):
    pytest.importorskip('ogbench', reason='ogbench is not installed')
    for name in ('Hopper-v4', 'cube-single-singletask-task2-v0'):
        environments.make(name).reset(seed=0)
    assert not [str(warning.message) for warning in recwarn]
