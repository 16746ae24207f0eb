"""The parameters that policy_node declares are those of the documents, to the range."""

from pathlib import Path
import re

from idql_ros.parameters import ALWAYS, PARAMETERS, START, UNCONFIGURED
import pytest

ROOT = Path(__file__).parents[1]
NAMES = [parameter.name for parameter in PARAMETERS]


def documented():
    """Return name -> cells of the table of parameters in doc/nodes.md."""
    rows = re.findall(r'^\| `(\w+)` \| ([^|]*) \| ([^|]*) \| ([^|]*) \| [^|]* \|$', (
        ROOT / 'doc' / 'nodes.md').read_text(), re.M)
    return {name: cells for name, *cells in rows}


def shown(value):
    """Return a default as the documents write it."""
    if isinstance(value, list):
        return f'[{", ".join(f"{x:g}" for x in value)}]'
    return str(value).lower() if isinstance(value, bool) else str(value) or "''"


@pytest.mark.parametrize('parameter', PARAMETERS, ids=NAMES)
def test_documents_state_default_range_and_when_it_may_change(parameter):
    default, allowed, changes = documented()[parameter.name]
    assert default.strip('`') == shown(parameter.default)
    if parameter.choices:
        assert [c.strip('` ') for c in allowed.split(',')] == list(parameter.choices)
    elif parameter.high is not None:
        low, high = re.fullmatch(r'(\S+) to (\S+)', allowed).groups()
        assert (float(low), eval_power(high)) == (parameter.low, parameter.high)
    assert changes == parameter.changes


def eval_power(text):
    """Return the number that is written as 12, 1e6 or 2^63-1."""
    power = re.fullmatch(r'2\^(\d+)-1', text)
    return 2 ** int(power[1]) - 1 if power else float(text)


def test_documents_name_no_parameter_that_is_not_declared():
    assert set(documented()) == set(NAMES)


def test_every_parameter_is_described_and_used_in_the_node():
    node = (ROOT / 'idql_ros' / 'policy_node.py').read_text()
    for parameter in PARAMETERS:
        assert parameter.description.endswith('.') and parameter.changes in (
            ALWAYS, UNCONFIGURED, START)
        stem = 'value_range_' if parameter.name.startswith('value_range_') else parameter.name
        assert stem in node


@pytest.mark.parametrize(('name', 'value'), [
    ('extraction', 'best'), ('device', 'gpu'), ('value_guard', 'act'),
    ('value_range_q', [1.0]), ('value_range_q', [2.0, 1.0]), ('value_range_q', [1.0, 2.0, 3.0])])
def test_a_wrong_value_is_refused_with_what_is_expected(name, value):
    parameter = next(p for p in PARAMETERS if p.name == name)
    assert parameter.why_refused(value).startswith(f'{name}: expected ')
    assert parameter.why_refused(parameter.default) == ''
