"""Values of decisions against their ranges: what is told, and when it is acted upon."""

import math

from idql_ros.value_guard import VALUE_ACTIONS, VALUE_NAMES, ValueGuard
import pytest

RANGES = {'q': (-60.0, 0.0), 'distance': (0.0, 0.5)}
INSIDE = {'q': -1.0, 'advantage': 99.0, 'spread': 99.0, 'distance': 0.5}


def watching(*arguments):
    """Return a guard of values that watches RANGES."""
    made = ValueGuard(*arguments)
    made.ranges = RANGES
    return made


def test_what_is_inside_or_has_no_range_is_not_told():
    assert tuple(INSIDE) == VALUE_NAMES
    assert watching('stop', 1).check(INSIDE) == ([], False)


def test_each_value_outside_is_told_with_its_range():
    texts, due = watching().check({**INSIDE, 'q': 1.25, 'distance': math.inf})
    assert texts == ['q 1.25 is outside -60 to 0, what it was in training',
                     'distance inf is outside 0 to 0.5, what it was in training']
    assert not due


def test_what_is_no_number_is_outside():
    texts, due = watching('stop', 1).check({**INSIDE, 'distance': math.nan})
    assert texts and due


def test_without_ranges_nothing_is_watched():
    assert ValueGuard('stop', 1).check({**INSIDE, 'q': math.nan}) == ([], False)


@pytest.mark.parametrize('action', VALUE_ACTIONS)
def test_only_what_is_outside_so_many_times_in_a_row_is_acted_upon(action):
    made = watching(action, 3)
    outside = {**INSIDE, 'q': 7.0}
    # Whichever value it is.
    told = [made.check(values)[1] for values in (
        outside, {**INSIDE, 'distance': 1.0}, INSIDE, outside, outside, outside, outside)]
    acts = action != 'report'
    assert told == [False, False, False, False, False, acts, acts]
    made.reset()
    assert not made.check(outside)[1]
