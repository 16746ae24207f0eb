"""What policy_node publishes: commands, and all that tells how they came about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
import math
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from idql_ros import decision_record, markers
from idql_ros import message as messages
from idql_ros.guard import Output
from idql_ros.health import OK, Status, WARN
from idql_ros.policy import Policy, PolicyError
from idql_ros.runner import Made, Settings, TooLate
from idql_ros.spec import Signal, Stream
import numpy as np
from rclpy.duration import Duration
from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    qos_policy_name_from_kind,
    QoSProfile,
    ReliabilityPolicy,
)
from rclpy.time import Time
from std_msgs.msg import ColorRGBA, Float64MultiArray, MultiArrayDimension

# What is sent once and is there for whoever comes later.
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
VALUE_LABELS = ('q', 'v', 'advantage', 'q_mean', 'q_spread', 'distance')
# Of what is drawn, by how far an action leads at most.
_POINT, _LINE, _TEXT = 0.2, 0.1, 0.3
_LOG_PERIOD_S = 5.0


def qos_profile(stream: Stream) -> QoSProfile:
    """Return the QoS that the spec states for a stream."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=stream.depth,
        reliability=ReliabilityPolicy.RELIABLE if stream.reliability == 'reliable'
        else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if stream.durability == 'transient_local'
        else DurabilityPolicy.VOLATILE,
        deadline=Duration(seconds=stream.deadline or 0.0))  # 0: none


class Topics:
    """The publishers of a configured node.

    Attributes:
        qos_problems: topic -> why nothing passes between it and somebody; observed ones too.
    """

    def __init__(self, node: LifecycleNode, policy: Policy, candidates: bool) -> None:
        """Create the publishers, silent until the node is active.

        Args:
            node: whose they are.
            policy: what it runs.
            candidates: whether the candidates are published as markers.

        Raises:
            PolicyError: they shall be, and the spec does not tell where they are.
        """
        self._node, self._spec = node, policy.spec
        if candidates and (why := markers.why_nowhere(policy.spec)):
            raise PolicyError(f'{policy.path}: publish_candidates: {why}')
        self.qos_problems: dict[str, str] = {}
        self._commands = [
            node.create_lifecycle_publisher(
                messages.ros_class(command.type), command.topic, qos_profile(command),
                event_callbacks=PublisherEventCallbacks(
                    incompatible_qos=functools.partial(
                        self._note_incompatible, command.topic, 'subscriber'),
                    deadline=_if_agreed(command, self._note_deadline)))
            for command in policy.spec.actions]
        create = node.create_lifecycle_publisher
        self._preview = create(Float64MultiArray, '~/command_preview', 1)
        self._value = create(Float64MultiArray, '~/value', 1)
        self._decision = create(Float64MultiArray, '~/decision', 100)
        self._status = create(DiagnosticStatus, '~/status', LATCHED)
        self._diagnostics = create(DiagnosticArray, '/diagnostics', 1)
        self._candidates = None
        if candidates:
            from visualization_msgs.msg import MarkerArray
            self._candidates = create(MarkerArray, '~/candidates', 1)
        self._value_message = labelled([(label, 1) for label in VALUE_LABELS])
        self._decision_message: Float64MultiArray | None = None

    def destroy(self) -> None:
        """Destroy the publishers."""
        for publisher in (*self._commands, self._preview, self._value, self._decision,
                          self._status, self._diagnostics):
            self._node.destroy_lifecycle_publisher(publisher)
        if self._candidates is not None:
            self._node.destroy_lifecycle_publisher(self._candidates)

    def unheard(self) -> list[str]:
        """Return the topics of commands that nobody listens to."""
        return [command.topic for command, publisher in zip(
            self._spec.actions, self._commands, strict=True)
            if publisher.get_subscription_count() == 0]

    def wait_until_heard(self, seconds: float) -> None:
        """Wait until the commands have left, at most so long each."""
        for publisher in self._commands:
            publisher.wait_for_all_acked(Duration(seconds=seconds))

    def events_of(self, signal: Signal) -> SubscriptionEventCallbacks:
        """Return what notes the QoS events of a subscription."""
        return SubscriptionEventCallbacks(
            incompatible_qos=functools.partial(
                self._note_incompatible, signal.topic, 'publisher'),
            deadline=_if_agreed(signal, self._note_deadline))

    def _note_deadline(self, stream: Stream, event: Any) -> None:
        self.qos_problems[stream.topic] = (
            f'{stream.topic}: no message for longer than its deadline of {stream.deadline} s, '
            f'{event.total_count} times so far')
        self._node.get_logger().warning(
            self.qos_problems[stream.topic], throttle_duration_sec=_LOG_PERIOD_S)

    def _note_incompatible(self, topic: str, who: str, event: Any) -> None:
        policy = qos_policy_name_from_kind(event.last_policy_kind).lower()
        self.qos_problems[topic] = (
            f'a {who} of {topic} has another {policy}, and nothing passes between it and this '
            f'node: change its QoS, or qos.{policy} in the spec')
        self._node.get_logger().warning(self.qos_problems[topic])

    def command(self, output: Output, stamp_ns: int, in_time: Callable[[], bool]) -> bool:
        """Send an output on the topics of the commands; return whether anything was sent.

        Args:
            output: what to send.
            stamp_ns: for the headers.
            in_time: returns whether it may still be sent; asked just before each message leaves,
                for the process may have stood still since it was decided.

        Raises:
            MessageError: no message can be made of it; nothing was sent.
            TooLate: it may no longer be sent.
        """
        # Those of one tick are all written before the first of them is sent.
        written = [
            (publisher, len(part), messages.write(
                command, part, messages.ros_class(command.type)(), stamp_ns))
            for command, publisher, part in zip(
                self._spec.actions, self._commands, output.parts, strict=True)
            if part is not None]
        sent = 0
        for publisher, size, message in written:
            if not in_time():
                raise TooLate(sent)
            publisher.publish(message)
            sent += size
        return bool(written)

    def preview(self, output: Output) -> None:
        """Show an output that is not sent."""
        if all(part is not None for part in output.parts):
            self._preview.publish(Float64MultiArray(
                data=np.concatenate(output.parts).astype(float).tolist()))

    def made(self, output: Output, made: Made, settings: Settings, published: bool) -> None:
        """Show the values of a decision, the decision itself, and its candidates."""
        decision = made.decision
        if self._value.get_subscription_count():
            self._value_message.data = [
                decision.q, decision.v, decision.advantage, decision.q_mean, decision.q_spread,
                decision.distance]
            self._value.publish(self._value_message)
        if self._decision.get_subscription_count():
            self._publish_decision(output, made, settings, published)
        if self._candidates is not None and self._candidates.get_subscription_count():
            self._publish_candidates(made)

    def _publish_decision(
            self, output: Output, made: Made, settings: Settings, published: bool) -> None:
        decision = made.decision
        acting = output.state == 'acting'
        labels, data = decision_record.pack(decision_record.DecisionRecord(
            tick_ns=made.tick_ns, seed=settings.seed, candidates=made.candidates,
            digest=decision_record.short_digest(made.policy.digest),
            extraction=settings.extraction, softmax_temperature=settings.softmax_temperature,
            sampling_temperature=settings.sampling_temperature, q=decision.q, v=decision.v,
            q_mean=decision.q_mean, q_spread=decision.q_spread, distance=decision.distance,
            published=published and acting, observation=made.observation,
            action=decision.action,
            sent=np.concatenate(output.parts) if acting
            else np.full_like(decision.action, math.nan)))
        if self._decision_message is None:
            self._decision_message = labelled(labels)
        self._decision_message.data = data.tolist()
        self._decision.publish(self._decision_message)

    def _publish_candidates(self, made: Made) -> None:
        from geometry_msgs.msg import Point
        from visualization_msgs.msg import Marker, MarkerArray
        spec, decision = self._spec, made.decision
        begin = markers.origin(spec, made.observation)
        reach = markers.reach(spec)

        def marker(namespace: str, kind: int, size: float) -> Marker:
            result = Marker(ns=namespace, type=kind, action=Marker.ADD)
            result.header.frame_id = spec.space.frame_id
            result.header.stamp = Time(nanoseconds=made.tick_ns).to_msg()
            result.scale.x = result.scale.y = result.scale.z = size * reach
            result.pose.orientation.w = 1.0
            return result

        drawn = marker('candidates', Marker.SPHERE_LIST, _POINT)
        drawn.points = [Point(x=x, y=y, z=z) for x, y, z in markers.points(
            spec, made.observation, decision.candidates).tolist()]
        drawn.colors = [ColorRGBA(r=r, g=g, b=b, a=a) for r, g, b, a in markers.colours(
            decision.candidate_q).tolist()]
        chosen = marker('chosen', Marker.LINE_STRIP, _LINE)
        chosen.points = [Point(x=x, y=y, z=z) for x, y, z in (
            begin.tolist(),
            *markers.points(spec, made.observation, decision.action[None]).tolist())]
        chosen.color = ColorRGBA(r=0.1, g=0.8, b=0.2, a=1.0)
        value = marker('value', Marker.TEXT_VIEW_FACING, _TEXT)
        # Beside the candidates, from above as from the side.
        place = value.pose.position
        place.x, place.y, place.z = (begin + [0.0, reach, reach]).tolist()
        value.text = f'Q {decision.q:.2f}  V {decision.v:.2f}'
        value.color = ColorRGBA(r=1.0, g=1.0, b=1.0, a=1.0)
        self._candidates.publish(MarkerArray(markers=[drawn, chosen, value]))

    def status(self, status: Status) -> None:
        """Publish the state, for those who are there and those who come."""
        self._status.publish(self._message(status))

    def diagnostics(self, statuses: Sequence[Status], now_ns: int) -> None:
        """Publish how the node does."""
        array = DiagnosticArray(status=[self._message(status) for status in statuses])
        array.header.stamp = Time(nanoseconds=now_ns).to_msg()
        self._diagnostics.publish(array)

    def _message(self, status: Status) -> DiagnosticStatus:
        return DiagnosticStatus(
            level=bytes([status.level]),
            name=f'{self._node.get_fully_qualified_name()}: {status.name}',
            message=status.message, hardware_id=self._spec.name,
            values=[KeyValue(key=key, value=str(value)) for key, value in status.values.items()])

    def connections(self, enabled: bool) -> Status:
        """Return who else sends commands, who listens, and whose QoS does not fit."""
        told = list(self.qos_problems.values())
        values = {}
        own = self._node.get_fully_qualified_name()
        for command, publisher in zip(self._spec.actions, self._commands, strict=True):
            listening = publisher.get_subscription_count()
            values[f'{command.topic}: subscribers'] = listening
            others = [f'{info.node_namespace.rstrip("/")}/{info.node_name}'
                      for info in self._node.get_publishers_info_by_topic(publisher.topic_name)]
            if own in others:
                others.remove(own)
            if others:
                told.append(f'{", ".join(sorted(others))} also publishes on {command.topic}')
            if not listening and enabled:
                told.append(f'nobody listens on {command.topic}')
        for topic in {signal.topic for signal in self._spec.observations}:
            values[f'{topic}: publishers'] = self._node.count_publishers(
                self._node.resolve_topic_name(topic))
        return Status(
            WARN if told else OK, 'connections', '; '.join(told) or 'as expected', values)


def _if_agreed(stream: Stream, note: Callable[[Stream, Any], None]) -> Any:
    """Return what takes the event of a missed deadline; None where no deadline is agreed on."""
    return None if stream.deadline is None else functools.partial(note, stream)


def labelled(labels: list[tuple[str, int]]) -> Float64MultiArray:
    """Return a message whose layout names its numbers: (label, count), one after another."""
    rest = sum(size for _, size in labels)
    message = Float64MultiArray()
    for label, size in labels:
        message.layout.dim.append(MultiArrayDimension(label=label, size=size, stride=rest))
        rest -= size
    return message
