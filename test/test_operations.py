"""The operations: what each makes of numbers, that it is undone, and what has no result."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from idql_ros import operations
from idql_ros.spec import Operation, Sectors
import numpy as np
import pytest

ANGLES = st.floats(-math.pi + 1e-6, math.pi - 1e-6)
NUMBERS = st.floats(-1e6, 1e6)


def quaternions():
    """Return a strategy of unit quaternions, as x, y, z, w."""
    return arrays.arrays(np.float64, 4, elements=st.floats(-1, 1)).filter(
        lambda q: q @ q > 0.01).map(lambda q: q / math.sqrt(q @ q))


def rotated(quaternion, vector):
    """Return a vector turned by a unit quaternion (Rodrigues' formula)."""
    axis, w = quaternion[:3], quaternion[3]
    return vector + 2 * np.cross(axis, np.cross(axis, vector) + w * vector)


def sectors(ranges, count, reduce='min', maximum=3.5, minimum=0.0):
    """Return what the operation makes of a scan."""
    operation = Operation('sectors', sectors=Sectors(count, reduce, maximum, minimum))
    return operations.apply(operation, np.array(ranges, np.float64)).tolist()


@pytest.mark.parametrize(('operation', 'x', 'y'), [
    (Operation('scale', (2.0,)), [1.0, -3.0], [2.0, -6.0]),
    (Operation('scale', (2.0, -1.0)), [1.0, -3.0], [2.0, 3.0]),
    (Operation('offset', (0.5,)), [1.0, -3.0], [1.5, -2.5]),
    (Operation('offset', (0.5, 1.0)), [1.0, -3.0], [1.5, -2.0]),
    (Operation('cos_sin'), [0.0, math.pi / 2], [1.0, 0.0, 0.0, 1.0]),
    (Operation('yaw'), [0.0, 0.0, math.sin(0.2), math.cos(0.2)], [0.4]),
    # A quarter turn about z: x becomes y, y becomes -x.
    (Operation('rotation_6d'), [0.0, 0.0, math.sqrt(0.5), math.sqrt(0.5)], [0, 1, 0, -1, 0, 0]),
    (Operation('rotation_6d'), [0.0, 0.0, 0.0, 1.0], [1, 0, 0, 0, 1, 0]),
    # A position beside the quaternion.
    (Operation('rotation_6d', first=3), [7, 8, 9, 0.0, 0.0, 0.0, 1.0],
     [7, 8, 9, 1, 0, 0, 0, 1, 0]),
    (Operation('yaw', first=1), [7, 0.0, 0.0, math.sin(0.2), math.cos(0.2), 8], [7, 0.4, 8]),
    (Operation('yaw', first=0), [0.0, 0.0, math.sin(0.2), math.cos(0.2), 8], [0.4, 8]),
])
def test_operation_gives_what_it_says_and_is_undone(operation, x, y):
    x, y = np.array(x), np.array(y, np.float64)
    assert operation.output_size(len(x)) == len(y)
    assert operations.apply(operation, x) == pytest.approx(y, abs=1e-12)
    assert operations.invert(operation, y, len(x)) == pytest.approx(x, abs=1e-12)


@given(st.lists(NUMBERS, min_size=1, max_size=8), st.floats(0.001, 1000), NUMBERS)
def test_scale_and_offset_are_undone(x, scale, offset):
    x = np.array(x)
    for operation in (Operation('scale', (scale,)), Operation('offset', (offset,)),
                      Operation('scale', (-scale,) * len(x))):
        found = operations.invert(operation, operations.apply(operation, x), len(x))
        assert found == pytest.approx(x, rel=1e-12, abs=1e-9)


@given(st.lists(ANGLES, min_size=1, max_size=8))
def test_cos_sin_is_undone_and_lies_on_the_circle(angles):
    angles = np.array(angles)
    pairs = operations.apply(Operation('cos_sin'), angles)
    assert np.hypot(pairs[::2], pairs[1::2]) == pytest.approx(1.0)
    assert operations.invert(Operation('cos_sin'), pairs, len(angles)) == pytest.approx(angles)


@given(quaternions(), st.floats(0.96, 1.04))
def test_orientation_is_that_of_a_quaternion_which_is_not_quite_of_length_one(quaternion, length):
    columns = operations.apply(Operation('rotation_6d'), quaternion)
    assert operations.apply(Operation('rotation_6d'), length * quaternion) == pytest.approx(
        columns, abs=1e-9)
    if math.hypot(*columns[:2]) < 1e-3:  # the x axis is vertical: there is no yaw to speak of
        return
    yaw = operations.apply(Operation('yaw'), length * quaternion)
    ahead = rotated(quaternion, np.array([1.0, 0.0, 0.0]))
    assert np.hypot(*ahead[:2]) * np.array([math.cos(yaw[0]), math.sin(yaw[0])]) == pytest.approx(
        ahead[:2], abs=1e-9)


@given(ANGLES)
def test_yaw_is_undone_by_the_level_unit_quaternion(angle):
    quaternion = operations.invert(Operation('yaw'), np.array([angle]), 4)
    assert quaternion @ quaternion == pytest.approx(1.0)
    assert quaternion[:2].tolist() == [0.0, 0.0]
    assert operations.apply(Operation('yaw'), quaternion) == pytest.approx([angle])


@given(quaternions())
def test_rotation_6d_is_where_the_x_and_y_axes_point_and_is_undone(quaternion):
    columns = operations.apply(Operation('rotation_6d'), quaternion)
    assert columns[:3] == pytest.approx(rotated(quaternion, np.array([1.0, 0, 0])), abs=1e-9)
    assert columns[3:] == pytest.approx(rotated(quaternion, np.array([0, 1.0, 0])), abs=1e-9)
    found = operations.invert(Operation('rotation_6d'), columns, 4)
    assert found @ found == pytest.approx(1.0) and found[3] >= 0.0
    # q and -q are one rotation.
    assert abs(found @ quaternion) == pytest.approx(1.0)


@given(arrays.arrays(np.float64, 6, elements=st.floats(-10, 10)))
def test_six_numbers_give_a_unit_quaternion_that_keeps_the_first_direction_or_nan(columns):
    found = operations.invert(Operation('rotation_6d'), columns, 4)
    if np.isnan(found).any():
        area = np.linalg.norm(np.cross(columns[:3], columns[3:]))
        assert area <= 1e-5 * max(1.0, np.abs(columns).max() ** 2)
    else:
        assert found @ found == pytest.approx(1.0)
        length = np.linalg.norm(columns[:3])
        again = operations.apply(Operation('rotation_6d'), found)
        assert again[:3] == pytest.approx(columns[:3] / length, abs=1e-9)
        # The second column leans to the side that was asked for.
        assert again[3:] @ columns[3:] > 0.0


@pytest.mark.parametrize('columns', [
    [0, 0, 0, 0, 1, 0], [1, 0, 0, 2, 0, 0], [1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1],
    [math.nan, 0, 0, 0, 1, 0]])
def test_columns_that_span_no_rotation_have_no_quaternion(columns):
    found = operations.invert(Operation('rotation_6d'), np.array(columns, np.float64), 4)
    assert np.isnan(found).all()


@pytest.mark.parametrize('name', ['yaw', 'rotation_6d'])
@pytest.mark.parametrize('quaternion', [
    (0, 0, 0, 0), (0, 0, 0.1, 0.1), (1, 1, 1, 1), (math.nan, 0, 0, 1)])
def test_what_is_no_rotation_has_no_result(name, quaternion):
    assert np.isnan(operations.apply(Operation(name), np.array(quaternion, float))).all()


@pytest.mark.parametrize(('ranges', 'count', 'kwargs', 'expected'), [
    ([1, 2, 3, 4], 2, {}, [1, 3]),
    ([1, 2, 3, 4], 2, {'reduce': 'mean', 'maximum': 9}, [1.5, 3.5]),
    # Ray i of n belongs to sector floor(i * count / n): here 0 0 0 1 1 2 2.
    ([1, 2, 3, 1.5, 2, 3, 2.5], 3, {}, [1, 1.5, 2.5]),
    ([1, 2, 3, 1.5, 2, 3, 2.5], 3, {'reduce': 'mean'}, [2, 1.75, 2.75]),
    # Farther than max, and nothing seen, count as max.
    ([math.inf, 9], 1, {}, [3.5]),
    ([math.inf, 1], 1, {'reduce': 'mean'}, [2.25]),
    # Too close counts as min, or 0.
    ([-math.inf, 3], 1, {}, [0]),
    ([-math.inf, 3], 1, {'minimum': 0.12}, [0.12]),
    ([-math.inf, 3], 1, {'minimum': 1, 'reduce': 'mean'}, [2]),
    # No reading.
    ([math.nan, 3, 0.1, 2], 1, {'minimum': 0.12}, [2]),
    ([math.nan, 3, 0.1, 2], 1, {'minimum': 0.12, 'reduce': 'mean'}, [2.5]),
    ([-0.5, 3], 1, {}, [3]),
    ([math.nan, math.nan, 2, 3], 2, {}, [math.nan, 2]),
    ([math.nan, 0.1, 2, 3], 2, {'reduce': 'mean', 'minimum': 0.12}, [math.nan, 2.5]),
    # A float32 reading of the minimum itself.
    ([np.float32(0.12), 3], 1, {'minimum': 0.12}, [float(np.float32(0.12))]),
])
def test_sectors_count_readings_by_their_rule(ranges, count, kwargs, expected):
    assert sectors(ranges, count, **kwargs) == pytest.approx(expected, nan_ok=True)


@settings(max_examples=200)
@given(st.data(), st.integers(1, 20), st.sampled_from(['min', 'mean']))
def test_sectors_are_those_of_a_plain_loop(data, count, reduce):
    ranges = data.draw(st.lists(
        st.one_of(st.floats(-1, 6), st.sampled_from([math.nan, math.inf, -math.inf])),
        min_size=count, max_size=60))
    found = sectors(ranges, count, reduce, 3.5, 0.5)
    readings = [[] for _ in range(count)]
    for i, value in enumerate(ranges):
        value = 0.5 if value == -math.inf else min(value, 3.5)
        if value >= 0.5:
            readings[i * count // len(ranges)].append(value)
    expected = [math.nan if not r else min(r) if reduce == 'min' else sum(r) / len(r)
                for r in readings]
    assert found == pytest.approx(expected, nan_ok=True)


@given(st.integers(1, 12), st.integers(0, 30), st.sampled_from(['min', 'mean']), st.data())
def test_sectors_are_undone_by_a_scan_of_as_many_rays_or_more(count, more, reduce, data):
    operation = Operation('sectors', sectors=Sectors(count, reduce, 3.5, 0.12))
    y = np.array(data.draw(st.lists(st.floats(0.12, 3.5), min_size=count, max_size=count)))
    for size in (None, count + more):
        scan = operations.invert(operation, y, size)
        assert len(scan) == (size or count)
        assert operations.apply(operation, scan) == pytest.approx(y)


def test_ranges_out_of_the_limits_are_simulated_at_the_limits():
    operation = Operation('sectors', sectors=Sectors(3, 'min', 3.5, 0.12))
    scan = operations.invert(operation, np.array([0.0, 1.0, 7.0]), None)
    assert scan.tolist() == [0.12, 1.0, 3.5]


def test_fewer_rays_than_sectors_are_refused():
    with pytest.raises(ValueError, match='has 2 rays, expected 3 or more'):
        sectors([1, 2], 3)
