"""Write the maze as a world for Gazebo: `python -m training.gazebo_world --output FILE.sdf`.

Every number of a wall, the robot and the goal is read from MuJoCo's compiled model of the same
maze, and the frames and rates from the spec and the environment, so that a policy meets in Gazebo
what it was trained on. The file is in the form of SDFormat 1.9, which Fortress and Harmonic read.
"""

from collections.abc import Iterable
from pathlib import Path
import sys
from typing import Any
from xml.etree import ElementTree

from idql_ros.environments import pointmaze_medium, SimulationError, step_seconds
from idql_ros.spec import load, Spec, SpecError
from training.files import write_whole
import tyro

_SPEC = Path(__file__).parents[1] / 'config' / 'robots' / 'pointmaze_medium.yaml'
# What the model is called here, and by the topics that follow from it.
ROBOT = 'robot'
_NOTE = ' Written by `python -m training.gazebo_world`: change that, not this file. '
_SYSTEMS = {
    'gz-sim-physics-system': 'gz::sim::systems::Physics',
    'gz-sim-user-commands-system': 'gz::sim::systems::UserCommands',
    'gz-sim-scene-broadcaster-system': 'gz::sim::systems::SceneBroadcaster',
}


def world(env: Any, spec: Spec) -> str:
    """Return the SDF of an OGBench maze with a point robot, at the start of its task.

    Args:
        env: The environment; its walls are the boxes of its model, all named `block_...`.
        spec: Names the world, and the frame that the robot's velocity is stated in.
    """
    env.reset(seed=0)
    maze = env.unwrapped
    model = maze.model
    root = ElementTree.Element('sdf', version='1.9')
    root.append(ElementTree.Comment(_NOTE))
    element = ElementTree.SubElement(root, 'world', name=spec.name)
    # Of the world, as not every engine knows a link without weight: the ball would sink.
    _text(element, 'gravity', 0, 0, 0)
    physics = ElementTree.SubElement(element, 'physics', name='as_mujoco', type='ignored')
    # It is also the period of /clock, which every node hears.
    _text(physics, 'max_step_size', model.opt.timestep)
    _text(physics, 'real_time_factor', 1)
    for file, name in _SYSTEMS.items():
        ElementTree.SubElement(element, 'plugin', filename=file, name=name)
    light = ElementTree.SubElement(element, 'light', name='sun', type='directional')
    _text(light, 'cast_shadows', 'false')
    _text(light, 'direction', -0.3, 0.2, -1)
    element.append(_floor(model))
    element.append(_walls(model))
    element.append(_goal(model, maze.cur_task_info['goal_xy']))
    element.append(_robot(env, spec, maze.cur_task_info['init_xy']))
    ElementTree.indent(root)
    return '<?xml version="1.0"?>\n' + ElementTree.tostring(root, encoding='unicode') + '\n'


def _text(parent: ElementTree.Element, name: str, *values: Any) -> ElementTree.Element:
    """Add an element that holds numbers or a word."""
    element = ElementTree.SubElement(parent, name)
    element.text = ' '.join(v if isinstance(v, str) else f'{v:.9g}' for v in values)
    return element


def _model(name: str, position: Iterable[float] = (0, 0, 0), link: str = 'link',
           static: bool = True) -> tuple[ElementTree.Element, ElementTree.Element]:
    """Return a model, and its only link."""
    model = ElementTree.Element('model', name=name)
    _text(model, 'pose', *position, 0, 0, 0)
    if static:
        _text(model, 'static', 'true')
    return model, ElementTree.SubElement(model, 'link', name=link)


def _shape(link: ElementTree.Element, kind: str, name: str, shape: str,
           **sizes: tuple[float, ...]) -> ElementTree.Element:
    """Add a collision or a visual of a shape to a link."""
    # Nothing beside it may have its name, of whatever kind it is.
    element = ElementTree.SubElement(link, kind, name=f'{name}_{kind}')
    geometry = ElementTree.SubElement(ElementTree.SubElement(element, 'geometry'), shape)
    for size, values in sizes.items():
        _text(geometry, size, *values)
    return element


def _paint(visual: ElementTree.Element, model: Any, geom: Any) -> None:
    """Give a visual the colour that a geom has in MuJoCo."""
    material = ElementTree.SubElement(visual, 'material')
    for light in ('ambient', 'diffuse'):
        _text(material, light, *model.mat(geom.matid[0]).rgba)


def _floor(model: Any) -> ElementTree.Element:
    """Return the floor, for the eye only: nothing weighs on it."""
    geom = model.geom('floor')
    floor, link = _model('floor', geom.pos)
    visual = _shape(link, 'visual', 'plane', 'plane', normal=(0, 0, 1), size=2 * geom.size[:2])
    material = ElementTree.SubElement(visual, 'material')
    for light in ('ambient', 'diffuse'):
        _text(material, light, 0.15, 0.18, 0.25, 1)
    return floor


def _walls(model: Any) -> ElementTree.Element:
    """Return all walls as one model: a box for each of MuJoCo's."""
    walls, link = _model('maze')
    for geom in map(model.geom, range(model.ngeom)):
        if not geom.name.startswith('block_'):
            continue
        for kind in ('collision', 'visual'):
            # MuJoCo's sizes are half of what they are in SDF.
            box = _shape(link, kind, geom.name, 'box', size=2 * geom.size)
            box.insert(0, _pose(geom.pos))
        _paint(box, model, geom)
    return walls


def _pose(position: Iterable[float]) -> ElementTree.Element:
    """Return a pose that is not turned."""
    return _text(ElementTree.Element('_'), 'pose', *position, 0, 0, 0)


def _goal(model: Any, xy: Iterable[float]) -> ElementTree.Element:
    """Return the mark of the goal, for the eye only."""
    geom = model.geom('target')
    radius, half_height, _ = geom.size
    goal, link = _model('goal', (*xy, geom.pos[2]))
    _paint(_shape(link, 'visual', 'target', 'cylinder', radius=(radius,),
                  length=(2 * half_height,)), model, geom)
    return goal


def _robot(env: Any, spec: Spec, xy: Iterable[float]) -> ElementTree.Element:
    """Return the robot: a ball that glides and never turns.

    The velocity that Gazebo's VelocityControl takes is along the axes of the body. Without
    friction nothing turns the ball, so these stay the axes of the world, which are those of the
    maze.
    """
    model = env.unwrapped.model
    geom, body = model.geom('pointbody'), model.body('torso')
    radius = (geom.size[0],)
    robot, link = _model(ROBOT, (*xy, geom.pos[2]), link='base_link', static=False)
    inertial = ElementTree.SubElement(link, 'inertial')
    _text(inertial, 'mass', *body.mass)
    inertia = ElementTree.SubElement(inertial, 'inertia')
    for axis, value in zip('xyz', body.inertia, strict=True):
        _text(inertia, f'i{axis}{axis}', value)
    for product in ('ixy', 'ixz', 'iyz'):
        _text(inertia, product, 0)
    collision = _shape(link, 'collision', 'ball', 'sphere', radius=radius)
    friction = ElementTree.SubElement(
        ElementTree.SubElement(ElementTree.SubElement(collision, 'surface'), 'friction'), 'ode')
    for name in ('mu', 'mu2'):
        _text(friction, name, 0)
    _paint(_shape(link, 'visual', 'ball', 'sphere', radius=radius), model, geom)
    ElementTree.SubElement(robot, 'plugin', filename='gz-sim-velocity-control-system',
                           name='gz::sim::systems::VelocityControl')
    odometry = ElementTree.SubElement(robot, 'plugin', filename='gz-sim-odometry-publisher-system',
                                      name='gz::sim::systems::OdometryPublisher')
    _text(odometry, 'odom_frame', spec.actions[0].frame_id)
    _text(odometry, 'robot_base_frame', link.get('name'))
    _text(odometry, 'odom_publish_frequency', 1 / step_seconds(env))
    _text(odometry, 'dimensions', 2)
    return robot


def main(output: Path) -> None:
    """Write the maze of pointmaze-medium as a world for Gazebo.

    Args:
        output: The world (.sdf).
    """
    write_whole(output, world(pointmaze_medium(), load(_SPEC)).encode())
    print(f'wrote {output}')


if __name__ == '__main__':
    try:
        tyro.cli(main)
    except (SimulationError, SpecError, OSError) as error:
        sys.exit(f'error: {error}')
