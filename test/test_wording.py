"""Numbers, times and counts read as people write them."""

import math

import pytest
from training.wording import counted, cut, listed, number, percent, rate, seconds


@pytest.mark.parametrize(('value', 'said'), [
    (None, '-'), (math.nan, '-'), (math.inf, '-'), (0.0, '0'), (-3, '-3'), (1234.0, '1,234'),
    (0.12345, '0.123'), (1234.5, '1,234'), (1e6, '1e+06'), (-1e308, '-1e+308')])
def test_number_has_three_digits_or_is_whole(value, said):
    assert number(value) == said


@pytest.mark.parametrize(('value', 'said'), [
    (None, '-'), (0, '0 s'), (2e-6, '2 us'), (-0.0125, '-12.5 ms'), (1, '1 s'), (179, '179 s'),
    (180, '3 min'), (7200, '2 h'), (172800, '2 days')])
def test_time_is_in_the_unit_that_suits_it(value, said):
    assert seconds(value) == said


@pytest.mark.parametrize(('share', 'said'), [
    (None, '-'), (math.nan, '-'), (0, '0 %'), (1e-6, '< 0.1 %'), (0.05, '5 %'),
    (0.99999, '> 99.9 %'), (1, '100 %')])
def test_share_that_is_not_all_or_nothing_does_not_look_like_it(share, said):
    assert percent(share) == said


def test_one_is_no_plural():
    assert [counted(count, 'bag') for count in (0, 1, 2, 1234)] == [
        '0 bags', '1 bag', '2 bags', '1,234 bags']


@pytest.mark.parametrize(('items', 'said'), [
    ('a', 'a'), ('ab', 'a and b'), ('abc', 'a, b and c'), ('abcd', 'a, b, c and 1 more topic'),
    ('abcde', 'a, b, c and 2 more topics')])
def test_long_list_says_how_many_more_there_are(items, said):
    assert listed(list(items), 3, 'topic') == said


def test_name_is_cut_to_its_beginning():
    assert cut('x' * 40, 40) == 'x' * 40
    assert cut('abc' * 14, 40) == ('abc' * 14)[:37] + '...'
    assert cut('a\nb', 40) == 'a b'


def test_unknown_rate_has_no_unit():
    assert rate(None) == '-' and rate(12.5) == '12.5 Hz'
