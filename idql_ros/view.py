"""What others see of a simulated robot: images on topics, a film, MuJoCo's window, the goal."""

from __future__ import annotations

import array
import contextlib
import time
from typing import Any

from idql_ros import camera
from idql_ros import message as messages
from idql_ros.environments import goal
from idql_ros.film import Film, jpeg_encoder
from idql_ros.simulated_robot import SimulatedRobot
from idql_ros.topics import LATCHED
from rclpy.exceptions import InvalidParameterValueException, NameValidationException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.time import Time
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

# There is no transform to it: markers are drawn into the picture, and not the picture among them.
_CAMERA_FRAME = 'camera_optical_frame'
# Pictures in a simulated second of a film that is made without images on topics.
_FILM_RATE = 10.0
# How long the candidates of a tick may come after its command.
_CANDIDATES_WAIT_S = 0.2


class View:
    """Shows a simulated robot, and the candidates of the policy that drives it.

    A picture is only made where somebody listens, or for the film.
    """

    def __init__(self, node: Node, robot: SimulatedRobot, parameters: dict[str, Any]) -> None:
        """Make what the parameters ask for.

        Args:
            node: whose topics they are.
            robot: what is seen.
            parameters: name -> value of those of sim_node.

        Raises:
            CameraError, FilmError: it cannot be had.
            InvalidParameterValueException: a topic cannot have the name.
            OSError: the film cannot be written there.
        """
        self._node, self._robot = node, robot
        self._window = self._camera = self._film = None
        self._publishers: dict[type, Any] = {}
        self._candidates = MarkerArray()
        self._goal = node.create_publisher(MarkerArray, '~/goal', LATCHED)
        self._reached = False
        rate, path = parameters['image_rate'], parameters['film']
        self._rate = min(rate or _FILM_RATE, 1.0 / robot.step_seconds)
        with contextlib.ExitStack() as stack:
            if rate or path:
                size = parameters['image_width'], parameters['image_height']
                self._camera = camera.Camera(robot.env, *size)
                stack.callback(self._camera.close)
                self._candidates_topic = parameters['candidates_topic']
                self._hear_candidates()
            if rate:  # named as image_transport has it
                self._jpeg = jpeg_encoder()
                for kind, name in ((Image, '~/image'), (CompressedImage, '~/image/compressed')):
                    self._publishers[kind] = node.create_publisher(kind, name, 1)
            if path:
                self._film = Film(path, self._rate * parameters['film_speed'], *size)
                stack.callback(self._film.discard)
            if parameters['window']:  # last: its thread must not be left behind
                self._window = camera.Window(robot.env)
                stack.callback(self._window.close)
            self._made = stack.pop_all()

    def _hear_candidates(self) -> None:
        topic = self._candidates_topic
        try:
            self._node.create_subscription(MarkerArray, topic, self._keep, 1)
        except NameValidationException as error:
            raise InvalidParameterValueException(
                'candidates_topic', topic, ' '.join(str(error).split())) from error

    def _keep(self, message: MarkerArray) -> None:
        self._candidates = message

    def begin(self) -> None:
        """Show where the task of the episode that begins is done."""
        self._reached = False
        self._publish_goal()

    def _note_success(self) -> None:
        if self._robot.success and not self._reached:
            self._reached = True
            self._publish_goal()

    def await_candidates(self, executor: SingleThreadedExecutor) -> None:
        """Wait, in lock-step, until the candidates of a tick are there to be drawn with it."""
        if not self._is_seen() or not self._node.count_publishers(self._candidates_topic):
            return
        deadline_s = time.monotonic() + _CANDIDATES_WAIT_S
        while self._candidates_age_ns() != 0 and (
                remaining_s := deadline_s - time.monotonic()) > 0:
            executor.spin_once(timeout_sec=remaining_s)

    def show(self) -> None:
        """Show the robot as it is, before it makes its next step."""
        if self._window is not None:
            self._window.show()
        self._note_success()
        # Whole numbers of pictures, whose times the steps pass.
        passed = [int(step * self._robot.step_seconds * self._rate + 1e-6)
                  for step in (self._robot.step - 1, self._robot.step)]
        if (passed[0] < passed[1] or self._robot.step == 0) and self._is_seen():
            self._take()

    def end(self) -> None:
        """Show how an episode ended that is whole; the first one becomes the film.

        Raises:
            FilmError: the film could not be written.
        """
        self._note_success()
        if self._film is not None:
            self._take()
            film, self._film = self._film, None
            film.finish()

    def close(self) -> None:
        """Leave nothing that is not whole."""
        self._made.close()

    def _is_seen(self) -> bool:
        return self._film is not None or any(
            publisher.get_subscription_count() for publisher in self._publishers.values())

    def _take(self) -> None:
        """Take a picture, and give it to everybody."""
        age_ns = self._candidates_age_ns()
        # Of a policy that fell silent nothing is drawn.
        fresh = age_ns is not None and 0 <= age_ns < 2.0 * messages.NS / self._robot.spec.rate
        picture = self._camera.render(_shapes(self._candidates) if fresh else ())
        if self._film is not None:
            self._film.add(picture)
        for kind, publisher in self._publishers.items():
            if publisher.get_subscription_count():
                message = _image(picture) if kind is Image else CompressedImage(
                    format='jpeg', data=array.array('B', self._jpeg(picture)))
                message.header.frame_id = _CAMERA_FRAME
                message.header.stamp = Time(nanoseconds=self._robot.time_ns).to_msg()
                publisher.publish(message)

    def _candidates_age_ns(self) -> int | None:
        """Return how old the last candidates are, in simulated time; None without any."""
        if not self._candidates.markers:
            return None
        return self._robot.time_ns - messages.time_message_ns(
            self._candidates.markers[0].header.stamp)

    def _publish_goal(self) -> None:
        found = goal(self._robot.env)
        if found is None:
            return
        space = self._robot.spec.space
        marker = Marker(ns='goal', type=Marker.SPHERE, action=Marker.ADD)
        marker.header.frame_id = space.frame_id if space is not None else 'world'
        marker.header.stamp = Time(nanoseconds=self._robot.time_ns).to_msg()
        place = marker.pose.position
        place.x, place.y, place.z = found.position.tolist()
        marker.pose.orientation.w = 1.0
        marker.scale.x = marker.scale.y = marker.scale.z = 2.0 * found.tolerance
        marker.color = (ColorRGBA(r=0.1, g=0.8, b=0.2, a=0.6) if self._reached
                        else ColorRGBA(r=0.9, g=0.2, b=0.2, a=0.6))
        self._goal.publish(MarkerArray(markers=[marker]))


def _image(picture: Any) -> Image:
    """Return a picture (height, width, 3) uint8 as a message."""
    height, width, _ = picture.shape
    return Image(height=height, width=width, encoding='rgb8', step=3 * width,
                 data=array.array('B', picture.tobytes()))


def _shapes(markers: MarkerArray) -> list[camera.Marker]:
    """Return what a camera draws of the markers of policy_node, or of whoever sends some."""
    shapes: list[camera.Marker] = []
    for marker in markers.markers:
        if marker.action != Marker.ADD:
            continue
        points = [(point.x, point.y, point.z) for point in marker.points]
        place, size = marker.pose.position, marker.scale.x
        if marker.type == Marker.SPHERE_LIST:
            # As RViz has it, where not every point has a colour of its own.
            colours = (marker.colors if len(marker.colors) == len(points)
                       else [marker.color] * len(points))
            shapes += [camera.Sphere(point, 0.5 * size, _colour(colour))
                       for point, colour in zip(points, colours, strict=True)]
        elif marker.type == Marker.LINE_STRIP:
            shapes.append(camera.Line(points, size, _colour(marker.color)))
        elif marker.type == Marker.TEXT_VIEW_FACING:
            shapes.append(camera.Label((place.x, place.y, place.z), marker.text))
    return shapes


def _colour(colour: ColorRGBA) -> tuple[float, float, float, float]:
    return colour.r, colour.g, colour.b, colour.a
