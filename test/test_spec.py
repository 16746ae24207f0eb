"""The spec: read from YAML, kept in JSON, exact in time, and precise about what is wrong."""

import copy
import json
from pathlib import Path

from idql_ros import spec as specs
import numpy as np
import pytest
import yaml

ROBOTS = sorted((Path(__file__).parents[1] / 'config' / 'robots').glob('*.yaml'))
DELETE = object()

ARM = yaml.safe_load("""
spec_version: 1
name: arm
rate: 30
tick: timer
observations:
  - name: joints
    topic: joint_states
    type: sensor_msgs/msg/JointState
    fields: ['position[shoulder]', 'position[elbow]']
    unit: rad
    max_age: 0.1
  - name: speed
    topic: joint_states
    type: sensor_msgs/msg/JointState
    fields: ['velocity[elbow]']
    operations: [{scale: 0.5}, {offset: [0.1]}]
    unit: rad/s
    max_age: 0.2
  - name: heading
    topic: odom
    type: nav_msgs/msg/Odometry
    fields: [pose.pose.orientation.x, pose.pose.orientation.y, pose.pose.orientation.z,
             pose.pose.orientation.w]
    operations: [yaw, cos_sin]
    unit: '1'
    max_age: 0.5
    qos: {reliability: reliable, depth: 5}
actions:
  - name: joints
    topic: arm/commands
    type: std_msgs/msg/Float64MultiArray
    fields: ['data[0:2]', 'data[2]']
    dimensions:
      - {kind: position, unit: rad, lower: -1.5, upper: 1.5, stop: hold_measured, measured: 1}
      - {kind: position, unit: rad, lower: -1.5, upper: 1.5, stop: {pose: 0.25}}
      - {kind: effort, unit: Nm, lower: -3, upper: 3, stop: hold_last_sent}
  - name: base
    topic: cmd_vel
    type: geometry_msgs/msg/TwistStamped
    fields: [twist.linear.x]
    frame_id: base_link
    dimensions:
      - {kind: velocity, unit: m/s, lower: -0.1, upper: 0.7, stop: zero}
""")


def changed(path, value):
    """Return ARM with the entry at a path (keys and indices) replaced, or deleted."""
    data = copy.deepcopy(ARM)
    place = data
    for key in path[:-1]:
        place = place[key]
    if value is DELETE:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


def places(data, path=()):
    """Yield the path of every entry of nested mappings and lists."""
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


def refusal(data):
    """Return the text that refuses a spec."""
    with pytest.raises(specs.SpecError) as refused:
        specs.parse(data, 'arm.yaml')
    text = str(refused.value)
    assert '\n' not in text
    return text


def test_sizes_follow_from_fields_and_operations():
    spec = specs.parse(ARM, 'arm.yaml')
    assert [signal.size for signal in spec.observations] == [2, 1, 2]
    assert (spec.observation_size, spec.action_size) == (5, 4)
    assert [d.stop for d in spec.dimensions] == ['hold_measured', 'pose', 'hold_last_sent', 'zero']
    parts = spec.split_action(np.arange(4.0))
    assert [part.tolist() for part in parts] == [[0.0, 1.0, 2.0], [3.0]]


def test_defaults_of_qos_are_those_of_sensors_and_of_commands():
    spec = specs.parse(ARM, 'arm.yaml')
    assert [s.reliability for s in spec.observations] == ['best_effort', 'best_effort', 'reliable']
    assert [s.depth for s in spec.observations] == [1, 1, 5]
    assert [c.reliability for c in spec.actions] == ['reliable', 'reliable']


@pytest.mark.parametrize('path', ROBOTS, ids=lambda path: path.stem)
def test_specs_of_the_package_load_and_keep_equal_through_json(path):
    spec = specs.load(path)
    assert spec.name == path.stem
    assert specs.parse(json.loads(spec.to_json()), 'json') == spec


def test_yaml_and_json_give_equal_specs(tmp_path):
    path = tmp_path / 'arm.yaml'
    path.write_text(yaml.safe_dump(ARM))
    spec = specs.load(path)
    assert spec == specs.parse(ARM, 'arm.yaml')
    assert specs.parse(json.loads(spec.to_json()), 'json') == spec
    # JSON is YAML: the text in a policy file can be saved and used as a spec.
    path.write_text(spec.to_json())
    assert specs.load(path) == spec


@pytest.mark.parametrize('seed', range(20))
def test_every_number_survives_json_exactly(seed):
    rng = np.random.default_rng(seed)
    rate, age, upper, scale = (10.0 ** rng.uniform([-3, -6, -3, -10], [3, 6, 30, 10])).tolist()
    data = copy.deepcopy(ARM)
    data['rate'] = rate
    data['observations'][1] |= {'max_age': age, 'operations': [{'scale': scale}]}
    data['actions'][1]['dimensions'][0]['upper'] = upper
    spec = specs.parse(data, 'a')
    again = specs.parse(json.loads(spec.to_json()), 'b')
    assert again == spec
    assert (again.rate, again.observations[1].max_age, again.dimensions[3].upper,
            again.observations[1].operations[0].numbers) == (rate, age, upper, (scale,))


DIMENSION = ('actions', 0, 'dimensions', 0)


@pytest.mark.parametrize(('path', 'value', 'key', 'expected', 'found'), [
    (('colour',), 1, 'colour', 'one of the keys actions, name', 'an unknown key'),
    (('observations', 0, 'units'), 'm', 'observations[0].units', 'one of the keys', 'unknown'),
    ((*DIMENSION, 'max'), 1, 'actions[0].dimensions[0].max', 'one of the keys kind', 'unknown'),
    (('observations', 2, 'qos', 'history'), 1, 'observations[2].qos.history', 'depth', 'unknown'),
    (('rate',), DELETE, 'rate', 'a number of Hz', 'nothing'),
    (('observations', 1, 'max_age'), DELETE, 'observations[1].max_age', 'seconds', 'nothing'),
    (('spec_version',), DELETE, 'spec_version', '1', 'nothing'),
    (('spec_version',), 2, 'spec_version', '1 (the version this release reads)', '2'),
    (('spec_version',), True, 'spec_version', '1', 'True'),
    (('name',), 'my arm', 'name', 'letters, digits', 'my arm'),
    (('rate',), '30', 'rate', 'a number of Hz', '30'),
    (('rate',), True, 'rate', 'a number of Hz', 'True'),
    (('rate',), 0, 'rate', 'from 0.001 to 1000', '0'),
    (('rate',), 1000.1, 'rate', 'from 0.001 to 1000', '1000.1'),
    (('rate',), float('nan'), 'rate', 'from 0.001 to 1000', 'nan'),
    (('tick',), 'always', 'tick', 'one of timer, arrival', 'always'),
    (('observations',), [], 'observations', 'a list of one signal or more', '[]'),
    (('actions',), {}, 'actions', 'a list of one command or more', '{}'),
    (('observations', 0), 'joints', 'observations[0]', 'a mapping', 'joints'),
    (('observations', 0, 'topic'), 'joint states', 'observations[0].topic', 'ROS topic',
     'joint states'),
    (('observations', 0, 'topic'), 'r\u00e4der', 'observations[0].topic', 'ROS topic',
     'r\u00e4der'),
    (('observations', 0, 'type'), 'JointState', 'observations[0].type', 'message type',
     'JointState'),
    (('observations', 0, 'fields'), [], 'observations[0].fields', 'a list of field paths', '[]'),
    (('observations', 0, 'fields', 1), 'position[', 'observations[0].fields[1]', 'a field path',
     'position['),
    (('observations', 0, 'fields', 1), 7, 'observations[0].fields[1]', 'a field path', '7'),
    (('observations', 0, 'fields', 1), 'position[3:2]', 'observations[0].fields[1]',
     'stop > start', 'position[3:2]'),
    (('observations', 0, 'max_age'), 0, 'observations[0].max_age', 'above 0', '0'),
    (('observations', 0, 'max_age'), float('inf'), 'observations[0].max_age', 'above 0', 'inf'),
    (('observations', 2, 'qos', 'depth'), 0, 'observations[2].qos.depth', '1 to 10000', '0'),
    (('observations', 2, 'qos', 'reliability'), 'any', 'observations[2].qos.reliability',
     'best_effort, reliable', 'any'),
    (('observations', 1, 'name'), 'joints', 'observations[1].name', 'used once', 'joints'),
    (('actions', 1, 'name'), 'joints', 'actions[1].name', 'used once', 'joints'),
    (('actions', 1, 'topic'), 'arm/commands', 'actions[1].topic', 'used once', 'arm/commands'),
    (('observations', 1, 'type'), 'nav_msgs/msg/Odometry', 'observations[1].type',
     'sensor_msgs/msg/JointState, as stated above', 'nav_msgs/msg/Odometry'),
    (('observations', 1, 'operations', 0), 'log', 'observations[1].operations[0]',
     'cos_sin, yaw, {scale: number(s)}', 'log'),
    (('observations', 1, 'operations', 0), {'scale': 0}, 'observations[1].operations[0].scale',
     'scale: not 0', '0'),
    (('observations', 1, 'operations', 0), {'scale': [1, 2]}, 'observations[1].operations[0]',
     '1 or 1 numbers', '2'),
    (('observations', 0, 'operations'), ['yaw'], 'observations[0].operations[0]',
     'the 4 numbers of a quaternion', '2'),
    ((*DIMENSION, 'kind'), 'speed', 'actions[0].dimensions[0].kind', 'one of position', 'speed'),
    ((*DIMENSION, 'upper'), -1.5, 'actions[0].dimensions[0].upper', 'above lower (-1.5)', '-1.5'),
    ((*DIMENSION, 'upper'), -2, 'actions[0].dimensions[0].upper', 'above lower (-1.5)', '-2'),
    # Between these two lies no float32, and an action is one.
    ((*DIMENSION, 'lower'), 1.5 - 1e-9, 'actions[0].dimensions[0].upper', 'float32', '1.5'),
    ((*DIMENSION, 'upper'), 1e39, 'actions[0].dimensions[0].upper', 'float32', '1e+39'),
    ((*DIMENSION, 'stop'), DELETE, 'actions[0].dimensions[0].stop', 'hold_measured', 'nothing'),
    ((*DIMENSION, 'stop'), 'zero', 'actions[0].dimensions[0].stop', 'is a motion for a position',
     'zero'),
    ((*DIMENSION, 'stop'), 'pose', 'actions[0].dimensions[0].stop', '{pose: number}', 'pose'),
    ((*DIMENSION, 'stop'), 'or', 'actions[0].dimensions[0].stop', 'hold_measured', 'or'),
    (('actions', 1, 'dimensions', 0, 'stop'), 'hold_last_sent', 'actions[1].dimensions[0].stop',
     'zero for a dimension of kind velocity', 'hold_last_sent'),
    (('actions', 1, 'dimensions', 0, 'lower'), 0.5, 'actions[1].dimensions[0].stop',
     'limits that hold 0', 'zero with 0.5 to 0.7'),
    (('actions', 0, 'dimensions', 1, 'stop', 'pose'), 1.6, 'actions[0].dimensions[1].stop.pose',
     'within the limits -1.5 to 1.5', '1.6'),
    (('actions', 0, 'dimensions', 1, 'stop', 'pose'), None, 'actions[0].dimensions[1].stop.pose',
     'within the limits', 'nothing'),
    ((*DIMENSION, 'measured'), DELETE, 'actions[0].dimensions[0].measured', 'index (0 to 4)',
     'nothing'),
    ((*DIMENSION, 'measured'), 5, 'actions[0].dimensions[0].measured', 'index (0 to 4)', '5'),
    ((*DIMENSION, 'measured'), -1, 'actions[0].dimensions[0].measured', 'index (0 to 4)', '-1'),
    ((*DIMENSION, 'measured'), 2, 'actions[0].dimensions[0].measured', 'in the same unit',
     '2, of the signal speed in rad/s'),
    (('actions', 0, 'dimensions', 2, 'measured'), 0, 'actions[0].dimensions[2].measured',
     'one of the keys', 'unknown'),
    (('actions', 0, 'dimensions', 2), DELETE, 'actions[0].dimensions', '3 entries', '2 entries'),
])
def test_error_names_file_key_expected_and_found(path, value, key, expected, found):
    text = refusal(changed(path, value))
    source, where, reason = text.split(': ', 2)
    assert (source, where) == ('arm.yaml', key)
    before, _, after = reason.rpartition('found ' if 'found' in reason else ', not ')
    assert expected in before
    assert found in after


def test_operation_that_does_not_fit_says_what_it_needs():
    text = refusal(changed(('observations', 2, 'fields', 3), DELETE))
    assert 'observations[2].operations[0]: yaw takes the 4 numbers' in text
    assert text.endswith('not 3')


@pytest.mark.parametrize('junk', [
    None, True, 0, -1, 3, 10**400, 1e-320, 1e300, float('nan'), float('-inf'), '', 'a\nb',
    99 * 'x', 'data[0:2]', 'a[b]', 'pose', 'zero', 'yaw', [], [1], ['yaw'], [[]], [{}], {},
    {'pose': 1}, {'scale': {}}, {'scale': [float('nan')]}, {1: 2}, {None: {}}, {'a\nb': 0},
    b'bytes', DELETE,
], ids=lambda junk: 'deleted' if junk is DELETE else repr(junk)[:20])
def test_whatever_stands_anywhere_is_read_or_refused_in_one_line(junk):
    for path in places(ARM):
        try:
            spec = specs.parse(changed(path, junk), 'arm.yaml')
        except specs.SpecError as error:
            assert str(error).startswith('arm.yaml: ') and '\n' not in str(error)
            assert len(str(error)) < 400
        else:
            assert specs.parse(json.loads(spec.to_json()), 'json') == spec


@pytest.mark.parametrize(('text', 'reason'), [
    ('a: [1, 2', 'is not YAML'),
    ('a: \x00', 'is not YAML'),
    ('!!python/object/apply:os.getcwd []', 'is not YAML'),
    ('name: !!python/name:os.system ', 'is not YAML'),
    ('', 'top level: expected a mapping, found nothing'),
    ('- 1', 'top level: expected a mapping, found [1]'),
])
def test_what_is_no_spec_is_refused_in_one_line_with_the_file(tmp_path, text, reason):
    path = tmp_path / 'robot.yaml'
    path.write_text(text)
    with pytest.raises(specs.SpecError) as refused:
        specs.load(path)
    assert str(refused.value).startswith(f'{path}: {reason}')
    assert '\n' not in str(refused.value)


def test_unreadable_file_is_named(tmp_path):
    for path in (tmp_path / 'none.yaml', tmp_path):
        with pytest.raises(specs.SpecError, match=f'{path}: cannot be read'):
            specs.load(path)
    path = tmp_path / 'latin.yaml'
    path.write_bytes(b'name: \xff')
    with pytest.raises(specs.SpecError, match='is not YAML'):
        specs.load(path)


@pytest.mark.parametrize('rate', [0.1, 2.0, 3.0, 29.97, 30.0, 1000.0])
def test_start_of_a_period_is_its_first_nanosecond(rate):
    spec = specs.parse(changed(('rate',), rate), 'a')
    rng = np.random.default_rng(0)
    for period in [*range(-10, 10), *rng.integers(-10**6, 4 * 10**12, 500).tolist()]:
        start_ns = spec.start_of(period)
        assert spec.period_of(start_ns) == period
        assert spec.period_of(start_ns - 1) == period - 1


@pytest.mark.parametrize(('rate', 'starts'), [
    (0.1, [0, 10_000_000_000, 20_000_000_000]),
    (2.0, [0, 500_000_000, 1_000_000_000]),
    (3.0, [0, 333_333_334, 666_666_667, 1_000_000_000]),
    (30.0, [0, 33_333_334, 66_666_667, 100_000_000]),
])
def test_periods_begin_at_exact_multiples_of_the_written_rate(rate, starts):
    spec = specs.parse(changed(('rate',), rate), 'a')
    assert [spec.start_of(period) for period in range(len(starts))] == starts
    # No error gathers: fifty years in, a second still holds whole periods.
    years_s = 1_577_880_000
    assert spec.start_of(round(years_s * rate)) == years_s * 10**9


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / 'robot.yaml'
    path.write_text(ROBOTS[0].read_text().replace('rate: 2.0', 'rate: 2.0\nrate: 20.0'))
    with pytest.raises(specs.SpecError, match='rate is there twice'):
        specs.load(path)


def test_a_slice_longer_than_any_message_is_refused():
    with pytest.raises(ValueError, match='stop <='):
        specs.parse_path('data[0:100000000000]')
