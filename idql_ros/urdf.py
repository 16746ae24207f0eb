"""The limits that a robot's URDF states for its joints, filled into the data of a spec.

A spec that is written by hand may name a URDF beside it and, for a dimension of an action, a
joint; what is stored and sent along is numbers only.
"""

from __future__ import annotations

import math
import pathlib
from typing import Any
from xml.etree import ElementTree

_UNITS = {'revolute': 'rad', 'continuous': 'rad', 'prismatic': 'm'}


class UrdfError(ValueError):
    """What cannot be had of a URDF; says where, what was expected and what was found."""


def fill_in(data: dict[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """Return the data of a spec with the limits of its joints as numbers.

    Of a dimension with the key `joint`, what it does not state itself is taken from the joint: of
    kind position lower, upper and max_rate, of velocity and effort lower and upper. What is not
    the shape of a spec is left as it is, for `spec.parse` to refuse.

    Args:
        data: of a spec, with the key `urdf`.
        folder: the one that `urdf` is relative to.

    Raises:
        UrdfError: the file cannot be read, has no such joint or limit, or the dimension states
            another unit or a wider limit.
    """
    data = dict(data)
    name = data.pop('urdf')
    if not isinstance(name, str):
        raise UrdfError(f'urdf: expected the name of a file beside the spec, found {name!r}')
    joints = _read(folder / name)
    actions = data.get('actions')
    if isinstance(actions, list):
        data['actions'] = [
            {**command, 'dimensions': [
                _dimension(dimension, joints, f'actions[{i}].dimensions[{k}]')
                for k, dimension in enumerate(command['dimensions'])]}
            if isinstance(command, dict) and isinstance(command.get('dimensions'), list)
            else command for i, command in enumerate(actions)]
    return data


def _read(path: pathlib.Path) -> dict[str, ElementTree.Element]:
    """Return the joints of a URDF by their names."""
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except OSError as error:
        raise UrdfError(f'urdf: {path}: cannot be read: {error.strerror}') from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise UrdfError(f'urdf: {path}: is not XML: {error}') from error
    if root.tag != 'robot':
        raise UrdfError(f'urdf: {path}: expected the element robot, found {root.tag}')
    return {joint.get('name', ''): joint for joint in root.iterfind('joint')}


def _dimension(stated: Any, joints: dict[str, ElementTree.Element], where: str) -> Any:
    """Return a dimension with what its joint states."""
    if not isinstance(stated, dict) or 'joint' not in stated:
        return stated
    result = dict(stated)
    name, kind, unit = result.pop('joint'), stated.get('kind'), stated.get('unit')
    joint = joints.get(name) if isinstance(name, str) else None
    if joint is None:
        raise UrdfError(f'{where}.joint: expected a joint of the URDF ({", ".join(joints)}), '
                        f'found {name}')
    where_joint = f'{where}.joint: {name}'
    length = _UNITS.get(joint.get('type', ''))
    if length is None:
        raise UrdfError(f'{where_joint}: expected a joint of type {", ".join(_UNITS)}, found '
                        f'{joint.get("type")}')
    if kind not in ('position', 'velocity', 'effort'):
        raise UrdfError(f'{where_joint}: expected none for a dimension of kind {kind}, which a '
                        'URDF does not limit')
    # Forces and torques are written in many ways.
    expected = {'position': length, 'velocity': f'{length}/s', 'effort': unit}[kind]
    if unit != expected:
        raise UrdfError(f'{where}.unit: expected {expected}, the unit of the joint {name} in a '
                        f'URDF, found {unit}')
    if kind == 'position':
        if joint.get('type') != 'continuous':
            _take(result, 'lower', _limit(joint, 'lower', where_joint), where)
            _take(result, 'upper', _limit(joint, 'upper', where_joint), where)
        _take(result, 'max_rate', _positive(joint, 'velocity', where_joint), where)
    else:
        largest = _positive(joint, kind, where_joint)
        _take(result, 'lower', -largest, where)
        _take(result, 'upper', largest, where)
    return result


def _take(dimension: dict[str, Any], key: str, limit: float, where: str) -> None:
    """Take a limit where none is stated; one that is must not be wider."""
    found = dimension.setdefault(key, limit)
    if isinstance(found, (int, float)) and (found < limit if key == 'lower' else found > limit):
        raise UrdfError(f'{where}.{key}: expected at {"least" if key == "lower" else "most"} '
                        f'{limit}, as the URDF states, found {found}')


def _limit(joint: ElementTree.Element, key: str, where: str) -> float:
    """Return a number of a joint's element limit."""
    limit = joint.find('limit')
    # Only these two may be left out.
    text = None if limit is None else limit.get(key, '0' if key in ('lower', 'upper') else None)
    try:
        value = math.nan if text is None else float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UrdfError(f'{where}: expected the finite number {key} in its element limit (of a '
                        f'URDF, not of a xacro file), found {"nothing" if text is None else text}')
    return value


def _positive(joint: ElementTree.Element, key: str, where: str) -> float:
    value = _limit(joint, key, where)
    if value <= 0.0:
        raise UrdfError(f'{where}: expected the number {key} above 0 in its element limit, found '
                        f'{value}; leave the key joint out where the URDF does not tell it')
    return value
