"""The spec: read from YAML, kept in JSON, exact in time, and precise about what is wrong."""

import copy
import json
import operator
from pathlib import Path
import re

from hypothesis import given
from hypothesis import strategies as st
from idql_ros import message as messages
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


def test_topics_of_other_namespaces_are_other_topics():
    data = changed(('observations', 1, 'topic'), '~/joint_states')
    data['actions'][1]['topic'] = '/base/arm/commands'
    assert specs.parse(data, 'arm.yaml').actions[1].topic == '/base/arm/commands'
    # The same topic may be observed and commanded.
    data['actions'][1]['topic'] = 'odom'
    assert specs.parse(data, 'arm.yaml').actions[1].topic == 'odom'


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


def test_spec_without_the_keys_of_safety_is_written_as_it_was_before_there_were_any():
    text = specs.parse(ARM, 'arm.yaml').to_json()
    for key in ('hold_time', 'max_rate', 'max_acceleration', 'max_jump', 'blend_time', 'space'):
        assert key not in text


def test_hold_of_the_spec_is_the_shortest_of_the_signals_that_are_not_latched():
    data = copy.deepcopy(ARM)
    for signal, hold_time in zip(data['observations'], (0.5, 0.3, 0.1), strict=True):
        signal['hold_time'] = hold_time
    assert specs.parse(data, 'a').hold_time == 0.1
    data['observations'][2] |= {'latched': True}
    del data['observations'][2]['max_age'], data['observations'][2]['qos']
    assert specs.parse(data, 'a').hold_time == 0.3
    assert specs.parse(ARM, 'a').hold_time == 0.0


def test_measured_may_be_stated_with_every_stop():
    spec = specs.parse(changed(('actions', 0, 'dimensions', 1, 'measured'), 1), 'arm.yaml')
    assert (spec.dimensions[1].stop, spec.dimensions[1].measured) == ('pose', 1)


DIMENSION = ('actions', 0, 'dimensions', 0)


@pytest.mark.parametrize(('path', 'value', 'key', 'expected', 'found'), [
    (('colour',), 1, 'colour', 'one of the keys actions, blend_time, clock', 'an unknown key'),
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
    (('actions', 1, 'topic'), '/arm/commands', 'actions[1].topic', 'used once', '/arm/commands'),
    (('observations', 1, 'topic'), '/joint_states', 'observations[1].topic',
     'joint_states, the same topic: write it as above', '/joint_states'),
    (('actions', 1, 'topic'), '/odom', 'actions[1].topic',
     'odom, the same topic: write it as above', '/odom'),
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
     'in the same unit', '0, of the signal joints in rad'),
    *[((*DIMENSION, key), value, f'actions[0].dimensions[0].{key}', f'above 0, in {unit}', found)
      for key, unit in (('max_rate', 'rad/s'), ('max_acceleration', 'rad/s^2'),
                        ('max_jump', 'rad'))
      for value, found in ((0, '0'), (-1, '-1'), (None, 'nothing'), (float('inf'), 'inf'))],
    *[(('actions', 0, 'dimensions', 1, key), 1.0, 'actions[0].dimensions[1].measured',
       'what max_rate, max_acceleration and max_jump begin from', 'nothing')
      for key in ('max_rate', 'max_acceleration', 'max_jump')],
    (('observations', 0, 'hold_time'), -0.1, 'observations[0].hold_time', 'from 0 to a million',
     '-0.1'),
    (('observations', 0, 'hold_time'), 1e7, 'observations[0].hold_time', 'from 0 to a million',
     '10000000'),
    (('blend_time',), '1 s', 'blend_time', 'from 0 to a million', '1 s'),
    (('blend_time',), float('inf'), 'blend_time', 'from 0 to a million', 'inf'),
    (('space',), None, 'space', 'a mapping', 'nothing'),
    (('space',), {'frame_id': 'map'}, 'space.action', 'two or three indices from 0 to 3',
     'nothing'),
    (('space',), {'frame_id': '', 'action': [0, 1]}, 'space.frame_id', 'a frame name', "''"),
    (('space',), {'frame_id': 'map', 'action': [0]}, 'space.action', 'two or three', '[0]'),
    (('space',), {'frame_id': 'map', 'action': [0, 4]}, 'space.action', 'from 0 to 3', '[0, 4]'),
    (('space',), {'frame_id': 'map', 'action': [0, True]}, 'space.action', 'from 0 to 3', 'True'),
    (('space',), {'frame_id': 'map', 'action': [0, 1], 'origin': [0, 5]}, 'space.origin',
     'from 0 to 4', '[0, 5]'),
    (('space',), {'frame_id': 'map', 'action': [0, 1], 'scale': 'm'}, 'space.scale',
     'a finite number', 'm'),
    (('space',), {'frame_id': 'map', 'action': [0, 1], 'size': 1}, 'space.size',
     'action, frame_id, origin, scale', 'unknown'),
    # Half of a surrogate pair, which no message holds; what a terminal obeys; more than a line.
    *[(where, text, named, 'printable and of 256 characters at most', found)
      for where, named in ((('actions', 0, 'frame_id'), 'actions[0].frame_id'),
                           (('observations', 0, 'frame_id'), 'observations[0].frame_id'),
                           (('observations', 0, 'unit'), 'observations[0].unit'),
                           ((*DIMENSION, 'unit'), 'actions[0].dimensions[0].unit'))
      for text, found in (('\ud800', r'\ud800'), ('a\x1b[31m', r'a\x1b[31m'), ('a' * 257, 'aaa'))],
    (('space',), {'frame_id': 'm\udfff', 'action': [0, 1]}, 'space.frame_id', 'printable',
     'udfff'),
    (('name',), 'a' * 257, 'name', '256 characters at most', 'aaa'),
    (('actions', 0, 'joints'), ['a' * 257], 'actions[0].joints[0]', 'the name of a joint', 'aaa'),
    (('actions', 0, 'dimensions', 2), DELETE, 'actions[0].dimensions', '3 entries', '2 entries'),
    (('clock',), 'wall', 'clock', 'one of received, header', 'wall'),
    (('observations', 1, 'max_age'), DELETE, 'observations[1].max_age', 'or latched: true',
     'nothing'),
    (('observations', 1, 'latched'), True, 'observations[1].max_age',
     'no age for a signal that is latched', '0.2'),
    (('observations', 1, 'latched'), 1, 'observations[1].latched', 'true, or max_age', '1'),
    (('observations', 1, 'history'), 0, 'observations[1].history', 'from 1 to 100', '0'),
    (('observations', 1, 'history'), 101, 'observations[1].history', 'from 1 to 100', '101'),
    (('observations', 1, 'history'), True, 'observations[1].history', 'a whole number', 'True'),
    (('observations', 1, 'time'), 'sent', 'observations[1].time', 'header, received', 'sent'),
    (('observations', 1, 'rule'), 'last', 'observations[1].rule', 'one of the keys', 'unknown'),
    (('observations', 1, 'qos'), {'durability': 'transient_local'},
     'observations[1].qos.reliability', 'reliable with durability transient_local', 'best_effort'),
    (('observations', 2, 'qos', 'durability'), 'sticky', 'observations[2].qos.durability',
     'volatile, transient_local', 'sticky'),
    (('observations', 2, 'qos'), None, 'observations[2].qos', 'a mapping', 'nothing'),
    (('observations', 0, 'joints'), ['shoulder', 'shoulder'], 'observations[0].joints[1]',
     'used once', 'shoulder'),
    (('observations', 0, 'joints'), ['shoulder', 'elbow '], 'observations[0].joints[1]',
     'the name of a joint', 'elbow '),
    (('observations', 0, 'joints'), ['shoulder'], 'observations[0].fields[1]',
     'one of the joints stated (shoulder)', 'position[elbow]'),
    (('observations', 0, 'fields'), ['position[:]'], 'observations[0].fields[0]',
     'the operation sectors for a whole list [:]', 'position[:]'),
    (('observations', 0, 'fields', 0), 'position[:]', 'observations[0].fields',
     'a whole list [:] to be the only field', 'position[elbow]'),
    (('observations', 0, 'fields', 1), 'points[0][1]', 'observations[0].fields[1]',
     'points[0].positions[0:6]', 'points[0][1]'),
    (('observations', 1, 'operations', 0), {'sectors': 12},
     'observations[1].operations[0].sectors', 'a mapping', '12'),
    (('observations', 1, 'operations', 0), {'sectors': {'count': 1, 'reduce': 'max', 'max': 3}},
     'observations[1].operations[0].sectors.reduce', 'min, mean', 'max'),
    (('observations', 1, 'operations', 0), {'sectors': {'count': 0, 'reduce': 'min', 'max': 3}},
     'observations[1].operations[0].sectors.count', 'a whole number', '0'),
    (('observations', 1, 'operations', 0), {'sectors': {'count': 1, 'reduce': 'min'}},
     'observations[1].operations[0].sectors.max', 'counted for everything farther', 'nothing'),
    (('observations', 1, 'operations', 0),
     {'sectors': {'count': 1, 'reduce': 'min', 'max': 3, 'min': 3}},
     'observations[1].operations[0].sectors.min', 'less than max (3.0)', '3'),
    (('observations', 1, 'operations', 0),
     {'sectors': {'count': 1, 'reduce': 'min', 'max': 3, 'far': 3}},
     'observations[1].operations[0].sectors.far', 'count, max, min, reduce', 'unknown'),
    (('observations', 1, 'operations', 0),
     {'sectors': {'count': 2, 'reduce': 'min', 'max': 3}}, 'observations[1].operations[0]',
     'each of its 2 sectors', '1'),
    (('observations', 0, 'operations'), ['rotation_6d'], 'observations[0].operations[0]',
     'rotation_6d takes the 4 numbers of a quaternion', '2'),
    (('observations', 1, 'operations', 0), {'yaw': -1}, 'observations[1].operations[0].yaw',
     'the x of the quaternion', '-1'),
    (('observations', 2, 'operations', 0), {'yaw': 1}, 'observations[2].operations[0]',
     'a quaternion from number 1 on', '4 in all'),
    (('actions', 1, 'rule'), 'first', 'actions[1].rule', 'one of last, mean', 'first'),
    (('actions', 1, 'max_age'), 0.03, 'actions[1].max_age', 'a period of the rate or more',
     '0.03'),
    (('actions', 1, 'max_age'), float('inf'), 'actions[1].max_age', 'a number of seconds', 'inf'),
    (('actions', 1, 'time_from_start'), 0.1, 'actions[1].time_from_start',
     'none for a type that is not trajectory_msgs/msg/JointTrajectory', '0.1'),
    (('actions', 1, 'frame_id'), 7, 'actions[1].frame_id', 'a frame name', '7'),
])
def test_error_names_file_key_expected_and_found(path, value, key, expected, found):
    text = refusal(changed(path, value))
    source, where, reason = text.split(': ', 2)
    assert (source, where) == ('arm.yaml', key)
    assert len(text) < 400
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
    ('rate: 2020-99-99', 'is not YAML: what cannot be read as timestamp in "<unicode string>", '
                         'line 1, column 7'),
    ('rate: !!int "abc"', 'is not YAML: what cannot be read as int'),
    ('rate: !!bool abc', 'is not YAML: what cannot be read as bool'),
    ('rate: !!int ""', 'is not YAML: what cannot be read as int'),
    ('rate: !!timestamp abc', 'is not YAML: what cannot be read as timestamp'),
    ('!!map [1]', 'is not YAML: expected a mapping'),
    ('rate: ' + 5000 * '9', 'is not YAML: what cannot be read as int'),
    ('spec_version: 0x' + 5000 * 'f', 'spec_version: expected 1 (the version this release reads), '
                                      'found int too long to be shown'),
    ('? 0x' + 5000 * 'f' + '\n: 1', 'spec_version: expected 1, found nothing'),
    (5000 * '[' + 5000 * ']', 'is not YAML: it is nested too deeply'),
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
    path.write_text(ROBOTS[0].read_text() + 'rate: 7.0\n')
    with pytest.raises(specs.SpecError, match='rate is there twice'):
        specs.load(path)


def test_history_counts_for_the_observation_and_not_for_the_message():
    data = changed(('observations', 1, 'history'), 3)
    spec = specs.parse(data, 'arm.yaml')
    assert [(s.size, s.width) for s in spec.observations] == [(2, 2), (1, 3), (2, 2)]
    assert (spec.frame_size, spec.observation_size) == (5, 7)


@pytest.mark.parametrize(('measured', 'refused'), [
    (0, 'the newest frame of the signal joints, which is its last (4 to 5), found 0'),
    (3, 'the newest frame'), (4, None), (5, None), (6, 'in the same unit'),
    (9, 'the index (0 to 8)')])
def test_what_measures_a_joint_is_in_the_newest_frame(measured, refused):
    data = changed((*DIMENSION, 'measured'), measured)
    data['observations'][0]['history'] = 3
    if refused is None:
        assert specs.parse(data, 'arm.yaml').dimensions[0].measured == measured
    else:
        assert refused in refusal(data)


def latched(data, i):
    """Return a spec with an observation that is sent once."""
    data = copy.deepcopy(data)
    del data['observations'][i]['max_age']
    data['observations'][i]['latched'] = True
    return data


def test_latched_signal_has_no_age_and_is_kept_for_who_comes_late():
    spec = specs.parse(latched(ARM, 2), 'arm.yaml')
    heading = spec.observations[2]
    assert (heading.latched, heading.max_age) == (True, float('inf'))
    assert (heading.reliability, heading.durability) == ('reliable', 'transient_local')
    assert [s.durability for s in spec.observations[:2]] == ['volatile', 'volatile']
    text = spec.to_json()
    assert 'Infinity' not in text
    assert specs.parse(json.loads(text), 'json') == spec
    data = latched(ARM, 2)
    data['observations'][2]['qos']['durability'] = 'volatile'
    assert specs.parse(data, 'arm.yaml').observations[2].durability == 'volatile'


def test_latched_signals_alone_are_refused():
    data = ARM
    for i in range(3):
        data = latched(data, i)
    assert 'observations: expected one signal or more that is not latched' in refusal(data)


def test_defaults_are_those_of_the_reference():
    spec = specs.parse(ARM, 'arm.yaml')
    assert spec.clock == 'received'
    for signal in spec.observations:
        assert (signal.history, signal.time, signal.latched) == (1, 'header', False)
        assert (signal.joints, signal.frame_id, signal.durability) == ((), '', 'volatile')
    for command in spec.actions:
        assert (command.rule, command.max_age, command.time_from_start) == ('last', 1 / 30, None)
        assert (command.joints, command.durability) == ((), 'volatile')


def test_spec_that_was_stored_before_the_newer_keys_is_read():
    new = specs.parse(ARM, 'arm.yaml')
    old = json.loads(new.to_json())
    for key in ('clock',):
        del old[key]
    for stream in [*old['observations'], *old['actions']]:
        for key in ('joints', 'history', 'time', 'rule'):
            stream.pop(key, None)
        del stream['qos']['durability']
    for signal in old['observations']:
        del signal['frame_id']
    for command in old['actions']:
        command.pop('max_age', None)
    assert specs.parse(old, 'old') == new


def trajectory(**keys):
    """Return ARM with its first command sent as a JointTrajectory."""
    data = copy.deepcopy(ARM)
    data['actions'][0] |= {'type': 'trajectory_msgs/msg/JointTrajectory',
                           'fields': ['points[0].positions[0:2]', 'points[0].effort[0]'],
                           'joints': ['a', 'b'], **keys}
    return data


def test_trajectory_states_when_its_point_is_reached():
    command = specs.parse(trajectory(), 'arm.yaml').actions[0]
    assert (command.time_from_start, command.joints) == (1 / 30, ('a', 'b'))
    spec = specs.parse(trajectory(time_from_start=0.25), 'arm.yaml')
    assert spec.actions[0].time_from_start == 0.25
    assert specs.parse(json.loads(spec.to_json()), 'json') == spec


@pytest.mark.parametrize(('keys', 'expected'), [
    ({'joints': []}, 'actions[0].joints: expected the names of the joints in the order of '
                     'points[0].positions[0:2], found nothing'),
    ({'fields': ['points[1].positions[0:3]']}, 'fields[0]: expected a field of points[0]'),
    ({'fields': ['header.stamp.sec']}, 'fields[0]: expected a field of points[0]'),
    ({'time_from_start': 0}, 'time_from_start: expected a number of seconds above 0'),
])
def test_trajectory_that_its_controller_would_refuse_is_refused(keys, expected):
    assert expected in refusal(trajectory(**keys))


@pytest.mark.parametrize(('message_type', 'advice'), [
    ('sensor_msgs/msg/Image', 'images are not read: let a detector'),
    ('sensor_msgs/msg/CompressedImage', 'images are not read: let a detector'),
    ('stereo_msgs/msg/DisparityImage', 'images are not read: let a detector'),
    ('sensor_msgs/msg/PointCloud', 'point clouds are not read: use a sensor_msgs/msg/LaserScan'),
    ('sensor_msgs/msg/PointCloud2', 'point clouds are not read: use a sensor_msgs/msg/LaserScan'),
    ('tf2_msgs/msg/TFMessage', 'transforms are not looked up: use a geometry_msgs/msg/PoseStamp'),
])
def test_type_that_is_never_read_is_refused_with_what_to_do_instead(message_type, advice):
    text = refusal(changed(('observations', 2, 'type'), message_type))
    assert text.startswith('arm.yaml: observations[2].type: expected ') and advice in text
    assert text.endswith(f'found {message_type}')


def test_operation_on_a_whole_list_says_what_to_do_instead():
    data = changed(('observations', 1, 'fields'), ['velocity[:]'])
    text = refusal(data)
    assert 'observations[1].operations[0]: scale takes a known count of numbers' in text
    assert 'put sectors first, or say which elements' in text


def test_signals_of_one_topic_agree_on_the_frame_that_they_state():
    data = changed(('observations', 1, 'frame_id'), 'base')
    spec = specs.parse(data, 'arm.yaml')
    assert [s.frame_id for s in spec.observations] == ['', 'base', '']
    data['observations'][0]['frame_id'] = 'map'
    text = refusal(data)
    assert 'observations[1].frame_id: expected map, as stated above for the topic joint' in text


@pytest.mark.parametrize(('text', 'steps', 'start', 'stop', 'joint'), [
    ('data', ('data',), None, None, None),
    ('twist.linear.x', ('twist', 'linear', 'x'), None, None, None),
    ('data[2]', ('data',), 2, 3, None),
    ('data[0:6]', ('data',), 0, 6, None),
    ('ranges[:]', ('ranges',), 0, None, None),
    ('position[base/pan-1.x]', ('position',), None, None, 'base/pan-1.x'),
    ('position[left wheel motor]', ('position',), None, None, 'left wheel motor'),
    ('position[robot::arm]', ('position',), None, None, 'robot::arm'),
    ('position[1_joint]', ('position',), None, None, '1_joint'),
    ('position[joint#1 (left), \u00fc]', ('position',), None, None, 'joint#1 (left), \u00fc'),
    ('Wrench.Force.X', ('Wrench', 'Force', 'X'), None, None, None),
    ('Motors[1].Speed[2]', ('Motors', 1, 'Speed'), 2, 3, None),
    ('points[0].positions[0:6]', ('points', 0, 'positions'), 0, 6, None),
    ('points[0].positions[elbow]', ('points', 0, 'positions'), None, None, 'elbow'),
    ('poses[2].position.x', ('poses', 2, 'position', 'x'), None, None, None),
    ('a1.b_2[3].c[10].d[4]', ('a1', 'b_2', 3, 'c', 10, 'd'), 4, 5, None),
])
def test_path_is_its_steps_and_what_it_takes_of_a_list(text, steps, start, stop, joint):
    assert specs.parse_path(text) == specs.FieldPath(text, steps, start, stop, joint)


@pytest.mark.parametrize('text', [
    'data[-1]', 'ranges[::2]', 'data[0:2:2]', 'data[1,2]', 'data[99999999999999999999]',
    'position[ arm]', 'position[arm ]', 'position[a\nb]', 'position[a[b]', 'position[]', '_x',
    '1x', 'x.__class__', 'Gr\u00f6\u00dfe'])
def test_what_is_neither_an_index_nor_the_name_of_a_joint_or_field_is_no_path(text):
    with pytest.raises(ValueError, match='expected a field path'):
        specs.parse_path(text)


@given(st.one_of(st.text(max_size=40), st.text('ab0:[].-/_ 19', max_size=40),
                 st.from_regex(r'[a-z]+(\[[0-9a-z:]*\])?(\.[a-z]+(\[[0-9a-z:]*\])?)*')))
def test_any_path_is_parsed_or_refused_as_a_value_error(text):
    try:
        path = specs.parse_path(text)
    except ValueError as error:
        assert str(error).startswith('expected ')
        return
    assert path.text == text
    joined = ''.join(f'[{step}]' if isinstance(step, int) else f'.{step}' for step in path.steps)
    assert text.startswith(joined[1:]) or '[0' in text  # 01 is the index 1


SECONDS = st.floats(1e-6, 1e6)
NUMBERS = st.floats(-1e30, 1e30)
NAMES = st.from_regex(r'[a-z][A-Za-z0-9_]{0,8}', fullmatch=True)
SECTORS = st.fixed_dictionaries(
    {'count': st.integers(1, 5), 'reduce': st.sampled_from(['min', 'mean']),
     'max': st.floats(1, 100)}, optional={'min': st.floats(0, 0.9)})
TAKEN = st.one_of(
    st.tuples(st.just(['x', 'a[2].b[0:3]']), st.lists(st.one_of(
        st.just('cos_sin'), st.builds(lambda n: {'offset': n}, NUMBERS),
        st.builds(lambda n: {'scale': n}, NUMBERS.filter(bool))), max_size=3)),
    st.tuples(st.just(['q[0:4]']),
              st.sampled_from([['yaw'], ['rotation_6d'], ['yaw', 'cos_sin']])),
    st.tuples(st.just(['p.x', 'q[0:4]', 'p.y']),
              st.sampled_from([[{'yaw': 1}], [{'rotation_6d': 0}, {'yaw': 4}]])),
    st.tuples(st.just(['ranges[:]']), SECTORS.map(lambda s: [{'sectors': s}])),
    st.tuples(st.lists(NAMES.map('position[{}]'.format), min_size=1, max_size=3), st.just([])))
CHANGES = st.fixed_dictionaries({}, optional=dict.fromkeys(
    ('max_rate', 'max_acceleration', 'max_jump'), st.floats(1e-6, 1e30)))
STREAMS = {'topic': NAMES, 'type': st.sampled_from(['a_msgs/msg/A', 'b_msgs/msg/B'])}
MAYBE = {'frame_id': st.text(st.characters().filter(str.isprintable), max_size=9),
         'qos': st.builds(
             operator.or_, st.fixed_dictionaries({}, optional={'depth': st.integers(1, 10000)}),
             # Whatever the defaults are, best effort does not meet transient local.
             st.sampled_from([{}, {'reliability': 'reliable'}, {'durability': 'volatile'},
                              {'reliability': 'best_effort', 'durability': 'volatile'},
                              {'reliability': 'reliable', 'durability': 'transient_local'}]))}


@st.composite
def random_specs(draw):
    """Return the data of a spec with any of the keys of the reference."""
    rate = draw(st.floats(0.001, 1000))
    observations, actions = [], []
    for i in range(draw(st.integers(1, 3))):
        fields, operations = draw(TAKEN)
        signal = draw(st.fixed_dictionaries(STREAMS, optional={
            **MAYBE, 'history': st.integers(1, 100), 'time': st.sampled_from(specs.TIMES),
            'hold_time': st.floats(0, 1e6)}))
        age = {'latched': True} if i and draw(st.booleans()) else {'max_age': draw(SECONDS)}
        observations.append({**signal, **age, 'name': f's{i}', 'topic': f'{signal["topic"]}_{i}',
                             'fields': fields, 'operations': operations, 'unit': draw(NAMES)})
    for i in range(draw(st.integers(1, 3))):
        dimensions = draw(st.lists(st.builds(
            lambda low, more, unit, limits: {'kind': 'effort', 'unit': unit, 'lower': low,
                                             'upper': low + more, 'stop': {'pose': low}, **limits},
            st.floats(-1e6, 1e6), st.floats(1, 1e6), NAMES, CHANGES), min_size=1, max_size=3))
        command = draw(st.fixed_dictionaries(STREAMS, optional={
            **MAYBE, 'rule': st.sampled_from(specs.RULES), 'max_age': st.floats(1 / rate, 1e6)}))
        fields = [f'data[0:{len(dimensions)}]']
        if draw(st.booleans()):
            command |= {'type': specs.JOINT_TRAJECTORY, 'joints': list('abc'),
                        'time_from_start': draw(SECONDS)}
            fields = [f'points[0].positions[0:{len(dimensions)}]']
        actions.append({**command, 'name': f'c{i}', 'topic': f'{command["topic"]}_{i}',
                        'fields': fields, 'dimensions': dimensions})
    more = draw(st.fixed_dictionaries({}, optional={
        'blend_time': st.floats(0, 1e6), 'space': st.fixed_dictionaries(
            {'frame_id': st.just('map'), 'action': st.sampled_from([[0, 0], [0, 0, 0]])},
            optional={'origin': st.just([0, 0]), 'scale': NUMBERS})}))
    return {'spec_version': 1, 'name': draw(NAMES), 'rate': rate, 'observations': observations,
            **more, 'tick': draw(st.sampled_from(specs.TICKS)),
            'clock': draw(st.sampled_from(specs.CLOCKS)), 'actions': actions}


@given(random_specs())
def test_any_spec_is_equal_after_json_and_yaml(data):
    spec = specs.parse(data, 'random')

    def refuse(constant):
        raise AssertionError(f'{constant} is no JSON')

    assert specs.parse(json.loads(spec.to_json(), parse_constant=refuse), 'json') == spec
    assert specs.parse(yaml.safe_load(yaml.safe_dump(data, allow_unicode=True)), 'yaml') == spec
    assert spec.observation_size == sum(s.size * s.history for s in spec.observations)


def examples():
    """Return the YAML examples of the reference: whole specs, or list items of one."""
    text = (Path(__file__).parents[1] / 'doc' / 'spec.md').read_text()
    return [pytest.param(block, id=f'{i}-{"".join(re.findall("name: (.*)", block)[:1])}')
            for i, block in enumerate(re.findall(r'```yaml\n(.*?)```', text, re.DOTALL))]


@pytest.mark.parametrize('block', examples())
def test_examples_of_the_reference_are_valid(block):
    data = yaml.safe_load(block)
    if isinstance(data, list):
        whole = copy.deepcopy(ARM)
        for item in (*whole['observations'], *whole['actions']):
            item['name'] = f'other_{item["name"]}'
            item['topic'] = f'other/{item["topic"]}'
        for item in data:
            assert set(item) & {'dimensions', 'max_age', 'latched'}
            key = 'actions' if 'dimensions' in item else 'observations'
            whole[key].append(item)
        data = whole
    spec = specs.parse(data, 'doc/spec.md')
    for stream in [*spec.observations, *spec.actions]:
        if stream.type in messages.DEFINITIONS:
            messages.check_fields(stream, messages.blank(stream.type))


def test_every_key_operation_and_choice_is_in_the_reference():
    text = (Path(__file__).parents[1] / 'doc' / 'spec.md').read_text()
    source = Path(specs.__file__).read_text()
    keys = set(re.findall(
        r"self\._(?:get|text|choice|number|seconds|duration|limit|indices|whole|list|readers?)"
        r"\(\s*'(\w+)'", source))
    keys |= {'urdf', 'joint'}
    assert {'history', 'joints', 'clock', 'count', 'qos', 'hold_time', 'max_jump', 'origin',
            'space'} <= keys
    for word in {*keys, *specs.KINDS, *specs.STOPS, *specs.TICKS, *specs.CLOCKS, *specs.TIMES,
                 *specs.RULES, *specs.DURABILITIES, *specs.RELIABILITIES, *specs.REDUCTIONS,
                 'cos_sin', 'yaw', 'rotation_6d', 'sectors', 'scale', 'offset'}:
        assert re.search(rf'(?<!\w){word}(?!\w)', text), word


def test_a_slice_longer_than_any_message_is_refused():
    with pytest.raises(ValueError, match='stop <='):
        specs.parse_path('data[0:100000000000]')
