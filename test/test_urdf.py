"""Limits of a URDF become numbers of a spec, and what does not fit is refused in words."""

import copy
import json

from idql_ros import spec as specs
import pytest
import yaml

URDF = """<?xml version="1.0"?>
<robot name="arm">
  <joint name="shoulder" type="revolute">
    <limit lower="-1.5" upper="2.0" effort="40" velocity="3.5"/>
  </joint>
  <joint name="wrist" type="continuous"><limit effort="5" velocity="6"/></joint>
  <joint name="slide" type="prismatic"><limit upper="0.4" effort="100" velocity="0"/></joint>
  <joint name="mount" type="fixed"/>
  <joint name="odd" type="revolute"><limit lower="${-pi}" upper="nan" effort="1"/></joint>
</robot>
"""
SPEC = yaml.safe_load("""
spec_version: 1
name: arm
rate: 30
tick: timer
urdf: arm.urdf
observations:
  - name: joints
    topic: joint_states
    type: sensor_msgs/msg/JointState
    fields: ['position[shoulder]', 'position[slide]']
    unit: rad
    max_age: 0.1
actions:
  - name: joints
    topic: arm/commands
    type: std_msgs/msg/Float64MultiArray
    fields: ['data[0:3]']
    dimensions:
      - {kind: position, unit: rad, joint: shoulder, stop: hold_measured, measured: 0}
      - {kind: velocity, unit: rad/s, joint: wrist, upper: 2, stop: zero}
      - {kind: effort, unit: N, joint: slide, stop: zero}
""")


def load(folder, urdf=URDF, dimension=0, **keys):
    """Load SPEC with a URDF beside it, and other keys of one dimension."""
    data = copy.deepcopy(SPEC)
    changed = data['actions'][0]['dimensions'][dimension]
    for key, value in keys.items():
        changed[key] = value
    if urdf is not None:
        (folder / 'arm.urdf').write_text(urdf)
    (folder / 'arm.yaml').write_text(yaml.safe_dump(data))
    return specs.load(folder / 'arm.yaml')


def test_limits_that_are_not_stated_are_those_of_the_joint(tmp_path):
    shoulder, wrist, slide = load(tmp_path).dimensions
    assert (shoulder.lower, shoulder.upper, shoulder.max_rate) == (-1.5, 2.0, 3.5)
    assert (wrist.lower, wrist.upper, wrist.max_rate) == (-6.0, 2.0, None)
    assert (slide.lower, slide.upper, slide.max_rate) == (-100.0, 100.0, None)


def test_what_travels_along_is_numbers_only(tmp_path):
    spec = load(tmp_path)
    text = spec.to_json()
    assert 'urdf' not in text and '"joint"' not in text
    assert specs.parse(json.loads(text), 'policy file') == spec


def test_stated_limits_within_those_of_the_joint_stay(tmp_path):
    shoulder = load(tmp_path, lower=-1.5, upper=1.0, max_rate=2).dimensions[0]
    assert (shoulder.lower, shoulder.upper, shoulder.max_rate) == (-1.5, 1.0, 2.0)


def test_position_of_a_joint_without_an_end_has_the_stated_limits_and_its_rate(tmp_path):
    wrist = load(tmp_path, joint='wrist', lower=-9, upper=9).dimensions[0]
    assert (wrist.lower, wrist.upper, wrist.max_rate) == (-9.0, 9.0, 6.0)


D0 = 'actions[0].dimensions[0]'
LIST = 'expected a joint of the URDF (shoulder, wrist, slide, mount, odd), found '


@pytest.mark.parametrize(('keys', 'expected'), [
    ({'lower': -1.6}, f'{D0}.lower: expected at least -1.5, as the URDF states, found -1.6'),
    ({'upper': 2.1}, f'{D0}.upper: expected at most 2.0, as the URDF states, found 2.1'),
    ({'max_rate': 4}, f'{D0}.max_rate: expected at most 3.5, as the URDF states, found 4'),
    ({'joint': 'elbow'}, f'{D0}.joint: {LIST}elbow'),
    ({'joint': ['elbow']}, f"{D0}.joint: {LIST}['elbow']"),
    ({'joint': 'mount'}, f'{D0}.joint: mount: expected a joint of type revolute, continuous, '
                         'prismatic, found fixed'),
    ({'joint': 'odd'}, f'{D0}.joint: odd: expected the finite number lower in its element limit '
                       '(of a URDF, not of a xacro file), found ${-pi}'),
    ({'joint': 'odd', 'kind': 'velocity', 'unit': 'rad/s'},
     f'{D0}.joint: odd: expected the finite number velocity in its element limit (of a URDF, not '
     'of a xacro file), found nothing'),
    ({'joint': 'slide', 'unit': 'm'},
     f'{D0}.joint: slide: expected the number velocity above 0 in its element limit, found 0.0; '
     'leave the key joint out where the URDF does not tell it'),
    ({'unit': 'deg'}, f'{D0}.unit: expected rad, the unit of the joint shoulder in a URDF, found '
                      'deg'),
    ({'kind': 'increment'}, f'{D0}.joint: shoulder: expected none for a dimension of kind '
                            'increment, which a URDF does not limit'),
    ({'joint': 'wrist'}, f'{D0}.lower: expected a finite number, found nothing'),
])
def test_error_names_file_key_expected_and_found(tmp_path, keys, expected):
    with pytest.raises(specs.SpecError) as refused:
        load(tmp_path, **keys)
    assert str(refused.value) == f'{tmp_path}/arm.yaml: {expected}'


@pytest.mark.parametrize(('urdf', 'expected'), [
    (None, 'cannot be read: No such file'), ('<robot', 'is not XML: unclosed token'),
    ('', 'is not XML'), ('<?xml version="1.0" encoding="none"?><robot/>', 'is not XML'),
    ('<sdf/>', 'expected the element robot, found sdf'),
])
def test_file_that_is_no_urdf_is_refused(tmp_path, urdf, expected):
    with pytest.raises(specs.SpecError, match=expected) as refused:
        load(tmp_path, urdf)
    assert f'urdf: {tmp_path}/arm.urdf: ' in str(refused.value)
    assert '\n' not in str(refused.value)


@pytest.mark.parametrize(('key', 'value'), [
    ('urdf', 7), ('urdf', None), ('actions', 7), ('actions', [7]), ('actions', [{}]),
    ('actions', [{'dimensions': 7}]), ('actions', [{'dimensions': [7]}])])
def test_what_is_no_spec_is_refused_in_one_line(tmp_path, key, value):
    (tmp_path / 'arm.urdf').write_text(URDF)
    (tmp_path / 'arm.yaml').write_text(yaml.safe_dump({**SPEC, key: value}))
    with pytest.raises(specs.SpecError) as refused:
        specs.load(tmp_path / 'arm.yaml')
    assert '\n' not in str(refused.value)


def test_urdf_is_for_a_spec_that_lies_beside_it_only(tmp_path):
    data = {**load(tmp_path).to_dict(), 'urdf': str(tmp_path / 'arm.urdf')}
    with pytest.raises(specs.SpecError, match='urdf: expected one of the keys'):
        specs.parse(data, 'policy file')
