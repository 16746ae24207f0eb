"""The distance from the training data, and statistics that a policy file may not hold."""

import re
import tracemalloc

from idql_ros.familiarity import Familiarity, MAX_PROTOTYPES, read, StatisticsError
import numpy as np
import pytest

OF_N = {'q': [-2.0, -1], 'advantage': [-0.1, 0.1], 'spread': [0, 0]}


def statistics(**changed):
    """Return statistics of two dimensions, with changes."""
    return {'prototypes': [[0.0, 1], [2, 3], [0.1, -7.0]], 'scale': [1.0, 0.3],
            'distance': [0.0, 0.5], 'ranges': {'1': OF_N, '64': OF_N}} | changed


@pytest.mark.parametrize('offset', [0.0, 5e6])
def test_distance_is_the_root_mean_square_to_the_nearest_prototype_in_units_of_the_scale(offset):
    rng = np.random.default_rng(0)
    # Offset as eastings of a map are: near each other, far from 0.
    prototypes = offset + rng.normal(size=(50, 7))
    scale = rng.uniform(0.1, 10, 7)
    familiarity = Familiarity(prototypes, scale)
    for observation in (offset + rng.normal(size=(40, 7))).astype(np.float32):
        differences = (prototypes - observation) / scale
        expected = np.sqrt(np.square(differences).mean(1)).min()
        assert familiarity.distance(observation) == pytest.approx(expected, rel=1e-9)
    for prototype in prototypes:
        assert familiarity.distance(prototype) == pytest.approx(0, abs=1e-6)


@pytest.mark.filterwarnings('error')
def test_distance_of_any_float32_is_finite():
    least = read(statistics(scale=[1e-30, 3e38]), 2)[0]
    largest = np.finfo(np.float32).max
    for observation in ([largest, -largest], [-largest, 0], [1e-45, largest]):
        assert 0 <= least.distance(np.float32(observation)) < np.inf


def test_a_tick_allocates_no_large_array():
    rng = np.random.default_rng(0)
    familiarity = Familiarity(rng.normal(size=(MAX_PROTOTYPES, 30)), np.ones(30))
    observation = rng.normal(size=30).astype(np.float32)
    familiarity.distance(observation)
    tracemalloc.start()
    try:
        familiarity.distance(observation)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The prototypes are 120 kB; one number for each is 4 kB, and three such may live at a time.
    assert 4_000 < peak < 20_000


def test_statistics_are_read_to_the_last_digit():
    familiarity, usual = read(statistics(), 2)
    assert usual.of_candidates == {n: {name: tuple(bounds) for name, bounds in OF_N.items()}
                                   for n in (1, 64)}
    assert usual.distance == (0.0, 0.5)
    assert familiarity.distance(np.float32([2, 3.3])) == pytest.approx(
        np.sqrt(np.square((np.float32(3.3) - 3) / 0.3) / 2), rel=1e-12)


@pytest.mark.parametrize(('changed', 'reason'), [
    ({'prototypes': None}, 'statistics.prototypes: expected lists of numbers'),
    ({'prototypes': [[1, 2], [3]]}, 'statistics.prototypes: expected lists of numbers'),
    ({'prototypes': [['1', '2']]}, 'statistics.prototypes: expected lists of numbers'),
    ({'prototypes': [[1, None]]}, 'statistics.prototypes: expected lists of numbers'),
    ({'prototypes': [[1, 10**400]]}, 'statistics.prototypes: expected lists of numbers'),
    ({'prototypes': {'a': 1}}, 'statistics.prototypes: expected lists of numbers'),
    ({'prototypes': []}, 'statistics.prototypes: expected 1 to 512 observations of 2 numbers'),
    ({'prototypes': [[1, 2, 3]]}, r'statistics.prototypes: .* found the shape \(1, 3\)'),
    ({'prototypes': [[1, 2]] * 513}, r'statistics.prototypes: .* found the shape \(513, 2\)'),
    ({'prototypes': [[1, float('inf')]]}, 'statistics.prototypes: .* float32 holds, found inf'),
    ({'prototypes': [[1e39, 0]]}, r'statistics.prototypes: .* float32 holds, found 1e\+39'),
    ({'scale': [1.0]}, r'statistics.scale: expected 2 numbers .* found the shape \(1,\)'),
    ({'scale': [1, 0]}, r'statistics.scale: expected numbers from 1e-30 .* found 0.0'),
    ({'scale': [-1, 1]}, 'statistics.scale: expected numbers from 1e-30 .* found -1.0'),
    ({'scale': [1, float('nan')]}, 'statistics.scale: expected numbers from .* found nan'),
    ({'distance': None}, 'statistics.distance: expected lists of numbers'),
    ({'distance': [1, 0]}, 'statistics.distance: expected two finite .* the smaller first'),
    ({'ranges': None}, 'statistics.ranges: expected those of each number .* found a NoneType'),
    ({'ranges': {}}, 'statistics.ranges: expected those of each number .* found none'),
    # As they once were, of one N.
    ({'ranges': OF_N}, 'statistics.ranges: expected numbers of candidates, .* found q, adv'),
    ({'ranges': {'08': OF_N}}, 'statistics.ranges: expected numbers of candidates, .* found 08'),
    ({'ranges': {'0': OF_N}}, 'statistics.ranges: expected numbers of candidates, .* found 0'),
    ({'ranges': {'8': [0, 1]}}, 'statistics.ranges.8: expected those of q, .* found a list'),
    ({'ranges': {'8': {'q': [0, 1]}}}, 'statistics.ranges.8: expected those of q, .* found q'),
    ({'ranges': {'8': OF_N | {'r': [0, 1]}}}, 'statistics.ranges.8: .* found q, .* spread, r'),
    ({'ranges': {'8': OF_N | {'q': [1, 0]}}}, r'statistics.ranges.8.q: .* smaller first, found'),
    ({'ranges': {'8': OF_N | {'q': [0, float('nan')]}}}, 'statistics.ranges.8.q: expected two'),
    ({'ranges': {'8': OF_N | {'q': [0, 1, 2]}}}, 'statistics.ranges.8.q: expected two finite'),
    ({'ranges': {'8': OF_N | {'q': 'low'}}}, 'statistics.ranges.8.q: expected lists of numbers'),
])
def test_statistics_that_cannot_be_used_are_refused_by_name(changed, reason):
    with pytest.raises(StatisticsError) as refused:
        read(statistics(**changed), 2)
    text = str(refused.value)
    assert re.match(reason, text) and '\n' not in text and len(text) < 300, text


@pytest.mark.parametrize('found', [None, [], 'text', 3])
def test_statistics_that_are_no_mapping_are_refused(found):
    with pytest.raises(StatisticsError, match='^statistics: expected a mapping, found a '):
        read(found, 2)
