"""The other side of policy_node for fault injection: a plant, its streams, and a record of all.

Everything that is published and heard is kept with its time, so that `verdict.py` can say
afterwards what each command was made from. Times are ns of this machine's clock (`time.time_ns`),
which stamps what DDS sends too, unless they are said to be the node's.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
import math
from pathlib import Path
import time

from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import TwistStamped
import gymnasium
from idql_ros import decision_record
from idql_ros import spec as specs
from nav_msgs.msg import Odometry
import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

NS = 10**9
STEP_S = 0.01
# Samples say their number, in an observation: how many of them have different numbers.
NUMBERS = 4096
SPEC = {
    'spec_version': 1, 'name': 'arm_on_wheels', 'rate': 50.0, 'tick': 'timer', 'blend_time': 0.2,
    'observations': [
        {'name': 'joints', 'topic': 'joint_states', 'type': 'sensor_msgs/msg/JointState',
         'fields': ['position[shoulder]', 'position[elbow]', 'position[number]'], 'unit': 'rad',
         'max_age': 0.1, 'hold_time': 0.1, 'qos': {'reliability': 'reliable'}},
        {'name': 'base', 'topic': 'odom', 'type': 'nav_msgs/msg/Odometry',
         'fields': ['twist.twist.linear.x', 'pose.pose.position.z'], 'unit': 'm/s',
         'max_age': 0.15, 'hold_time': 0.06}],
    'actions': [
        {'name': 'arm', 'topic': 'arm_command', 'type': 'sensor_msgs/msg/JointState',
         'fields': ['position[shoulder]', 'position[elbow]'], 'qos': {'depth': 10},
         'dimensions': [
             {'kind': 'position', 'unit': 'rad', 'lower': -0.9, 'upper': 0.9,
              'stop': 'hold_measured', 'measured': 0, 'max_rate': 2.0, 'max_acceleration': 20.0,
              'max_jump': 1.9},
             {'kind': 'position', 'unit': 'rad', 'lower': -0.7, 'upper': 1.1,
              'stop': {'pose': 0.3}, 'measured': 1, 'max_rate': 1.5, 'max_acceleration': 15.0,
              'max_jump': 1.9}]},
        {'name': 'drive', 'topic': 'base_command', 'type': 'geometry_msgs/msg/TwistStamped',
         'fields': ['twist.linear.x'], 'qos': {'depth': 10},
         'dimensions': [
             {'kind': 'velocity', 'unit': 'm/s', 'lower': -0.6, 'upper': 0.6, 'stop': 'zero',
              'measured': 3, 'max_rate': 3.0, 'max_acceleration': 60.0, 'max_jump': 1.3}]}]}
# Signal -> where its numbers stand in an observation, the sample's own the last.
PARTS = {'joints': slice(0, 3), 'base': slice(3, 5)}


def robot_spec(tick='timer'):
    """Return the spec of the robot that the faults happen to."""
    return specs.parse({**SPEC, 'tick': tick}, 'robot')


class Plant(gymnasium.Env):
    """A robot that follows its commands; its observation is that of the spec. For sim_node too."""

    dt = STEP_S
    observation_space = gymnasium.spaces.Box(-10.0, 10.0, (5,), np.float64)
    action_space = gymnasium.spaces.Box(-2.0, 2.0, (3,), np.float32)

    def reset(self, *, seed=None, options=None):
        """Begin at rest; return the observation (5,)."""
        super().reset(seed=seed)
        self._at = np.array([0.1, 0.2, 0.0])
        self._steps = 0
        return self.observation(), {}

    def step(self, action):
        """Move for a step."""
        self._at += 0.1 * (action - self._at)
        self._steps += 1
        return self.observation(), 0.0, False, False, {}

    def observation(self):
        """Return shoulder, elbow, number, velocity, number (5,)."""
        number = self._steps % NUMBERS / NUMBERS
        return np.array([*self._at[:2], number, self._at[2], number])


@dataclass(frozen=True)
class Sample:
    """What was published on a stream."""

    published_ns: int
    # In the node's time.
    stamp_ns: int
    number: float
    # Its content is as it should be.
    good: bool


@dataclass(frozen=True)
class Sent:
    """A command that came from the node."""

    # When the node published it.
    sent_ns: int
    # In the node's time.
    stamp_ns: int
    values: np.ndarray  # of its dimensions, float64
    topic: str


@dataclass(frozen=True)
class State:
    """A state of the ladder, from the time at which the node told it."""

    sent_ns: int
    state: str
    text: str


@dataclass
class Stream:
    """A topic that is observed, with what goes wrong on it."""

    topic: str
    type: type  # noqa: A003
    number: Callable
    publisher: object = None
    # Messages that are due -> those that are published instead.
    deliver: Callable | None = None
    # Makes a message wrong.
    spoil: Callable | None = None
    samples: list[Sample] = field(default_factory=list)

    def put(self, message):
        """Publish a message, or what a fault makes of it."""
        for due in [message] if self.deliver is None else self.deliver(message):
            if self.spoil is not None:
                self.spoil(due)
            values = self.number(due)
            self.samples.append(Sample(
                time.time_ns(), stamp_of(due), values, self.spoil is None))
            self.publisher.publish(due)

    def mend(self):
        """End its faults."""
        self.deliver = self.spoil = None


def stamp_of(message):
    """Return the stamp of a message in ns."""
    return message.header.stamp.sec * NS + message.header.stamp.nanosec


def split_ns(stamp, time_ns):
    """Write ns into a builtin_interfaces/Time."""
    stamp.sec, stamp.nanosec = divmod(time_ns, NS)


class Driver:
    """The robot and its operator, in one thread: what waits, publishes meanwhile.

    Attributes:
        spec: of the policy.
        streams: signal -> Stream.
        commands: topic -> what the node sent.
        decisions: time of the tick -> DecisionRecord.
        states: of the ladder, one after another.
        clocks: (published, node's time) of simulated time.
        at_once: (from, released): an operator's stop that needs no ramp, from its request until
            the first action after its release.
        late_s: how late this side was at most since it was set to 0.
    """

    def __init__(self, spec, *, simulated=False, relay=False):
        """Join the domain of the run.

        Args:
            spec: of the policy.
            simulated: the node's time is simulated.
            relay: a sim_node is the plant and publishes /clock; its streams, remapped to
                sim/joint_states and sim/odom, are passed on.
        """
        self.spec, self.simulated, self._relay = spec, simulated, relay
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node('driver', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.commands = {c.topic: [] for c in spec.actions}
        self._same, self._decided_ns = {}, {}
        sizes = np.cumsum([0, *(len(c.dimensions) for c in spec.actions)])
        self._parts = {c.topic: slice(*ends) for c, ends in zip(
            spec.actions, zip(sizes, sizes[1:], strict=False), strict=True)}
        self.decisions, self.states, self.clocks, self.at_once = {}, [], [], []
        self.late_s, self.load = 0.0, None
        self._clients = {}
        self._plant = Plant()
        self._plant.reset()
        self._action = np.array([0.1, 0.2, 0.0])
        self._due_s = time.monotonic()
        # Simulated time, of this side's own clock; no multiple of a step.
        self.now_ns, self.clock_runs = 1_000 * NS, True
        self.streams = {
            'joints': Stream('joint_states', JointState, lambda m: m.position[-1]),
            'base': Stream('odom', Odometry, lambda m: m.pose.pose.position.z)}
        for name in self.streams:
            self.connect(name)
        create = self.node.create_subscription
        create(JointState, 'arm_command', lambda m, i: self._hear('arm_command', m, i, [
            m.position[m.name.index(joint)] for joint in ('shoulder', 'elbow')]), 200)
        create(TwistStamped, 'base_command', lambda m, i: self._hear(
            'base_command', m, i, [m.twist.linear.x]), 200)
        create(Float64MultiArray, '/policy_node/decision', self._hear_decision, 200)
        create(DiagnosticStatus, '/policy_node/status', self._hear_state, QoSProfile(
            depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL))
        self._clock = None
        if relay:
            create(Clock, '/clock', lambda m, i: self.clocks.append((
                i['source_timestamp'], m.clock.sec * NS + m.clock.nanosec)), 200)
            for stream in self.streams.values():
                create(stream.type, f'sim/{stream.topic}', stream.put, QoSProfile(
                    depth=10, reliability=ReliabilityPolicy.BEST_EFFORT))
        elif simulated:
            self._clock = self.node.create_publisher(Clock, '/clock', 10)

    def close(self):
        """Leave."""
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def connect(self, name, reliability=ReliabilityPolicy.RELIABLE):
        """Start the publisher of a signal, or start it anew."""
        stream = self.streams[name]
        if stream.publisher is not None:
            self.node.destroy_publisher(stream.publisher)
        stream.publisher = self.node.create_publisher(
            stream.type, stream.topic, QoSProfile(depth=10, reliability=reliability))

    # What comes from the node.

    def _hear(self, topic, message, info, values):
        self.keep(Sent(info['source_timestamp'], stamp_of(message), np.array(values), topic))
        if np.isfinite(values).all():
            self._action[self._parts[topic]] = values

    def keep(self, sent):
        """Take a command into the record."""
        self.commands[sent.topic].append(sent)
        self._same.setdefault((sent.topic, sent.stamp_ns), []).append(sent)

    def _hear_decision(self, message, info):
        record = decision_record.unpack(
            [(d.label, d.size) for d in message.layout.dim], message.data)
        self.decide(record, info['source_timestamp'])

    def decide(self, record, published_ns):
        """Take a decision into the record."""
        self.decisions[record.tick_ns] = record
        self._decided_ns[record.tick_ns] = published_ns

    def _hear_state(self, message, info):
        values = {value.key: value.value for value in message.values}
        self.states.append(State(info['source_timestamp'], values['state'], message.message))

    def decision(self, sent):
        """Return the record of the decision that a command is the action of, or None.

        In simulated time a hold or a stop may have the stamp of a tick too. The node publishes a
        decision after its commands: of those before it, the last one is the action.
        """
        record = self.decisions.get(sent.stamp_ns)
        if record is None or not record.published:
            return None
        before = [s for s in self._same[sent.topic, sent.stamp_ns]
                  if s.sent_ns <= self._decided_ns[sent.stamp_ns]]
        return record if before and sent is before[-1] else None

    def heard(self, begin_ns, end_ns):
        """Return the commands of the last topic in an interval: the actions, and all others."""
        actions, others = [], []
        for sent in reversed(self.commands[self.spec.actions[-1].topic]):
            if sent.sent_ns <= begin_ns:
                break
            if sent.sent_ns <= end_ns:
                (others if self.decision(sent) is None else actions).append(sent)
        return actions[::-1], others[::-1]

    @property
    def state(self):
        """Return the state of the ladder that the node told last."""
        return self.states[-1].state if self.states else ''

    # What goes on on this side.

    def _advance(self):
        late_s = time.monotonic() - self._due_s
        self.late_s = max(self.late_s, late_s)
        self._due_s += STEP_S
        if late_s > 5 * STEP_S:
            self._due_s = time.monotonic() + STEP_S  # who is late does not hurry to catch up
        if self.load is not None:
            self.load.look()
        if self._relay:
            return
        if not self.simulated:
            self.now_ns = time.time_ns()
        elif self.clock_runs:
            self.now_ns += round(STEP_S * NS)
            self.publish_clock()
        else:
            return
        shoulder, elbow, number, velocity, _ = self._plant.step(self._action)[0].tolist()
        joints = JointState(name=['shoulder', 'elbow', 'number'],
                            position=[shoulder, elbow, number])
        odometry = Odometry()
        odometry.twist.twist.linear.x, odometry.pose.pose.position.z = velocity, number
        for name, message in (('joints', joints), ('base', odometry)):
            split_ns(message.header.stamp, self.now_ns)
            self.streams[name].put(message)

    def publish_clock(self):
        """Publish simulated time as it is."""
        message = Clock()
        split_ns(message.clock, self.now_ns)
        self.clocks.append((time.time_ns(), self.now_ns))
        self._clock.publish(message)

    def until(self, condition, what, limit_s=20.0):
        """Go on until `condition()`; raise TimeoutError when it stays away."""
        deadline_s = time.monotonic() + limit_s
        while not condition():
            now_s = time.monotonic()
            if now_s > deadline_s:
                raise TimeoutError(f'not seen within {limit_s} s: {what}')
            if now_s >= self._due_s:
                self._advance()
            self.executor.spin_once(timeout_sec=max(0.0, self._due_s - time.monotonic()))

    def run_for(self, seconds):
        """Go on for some time."""
        end_s = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end_s, 'the end', seconds + 60)

    def until_acting(self, steady_s=0.4, limit_s=20.0):
        """Go on until the node has acted for some time from now, without a break."""
        begun_ns = time.time_ns()

        def steady():
            return self.state == 'acting' and (
                time.time_ns() - max(begun_ns, self.states[-1].sent_ns) > steady_s * NS)
        self.until(steady, f'the node acts for {steady_s} s', limit_s)

    def node_time_ns(self, begin_ns, end_ns):
        """Return the earliest time that the node's clock may have shown in an interval."""
        if not self.simulated:
            return begin_ns
        shown = self._shown_ns(begin_ns, end_ns)
        # As the node does, time gets a grace when it leaps: what came before it was new.
        grace_ns = round(min(s.max_age for s in self.spec.observations) * NS)
        before = self._shown_ns(begin_ns - grace_ns, end_ns)
        return min(shown if max(before) - min(before) < NS else before)

    def _shown_ns(self, begin_ns, end_ns):
        first = max(bisect_right(self.clocks, (begin_ns, math.inf)) - 1, 0)
        last = bisect_right(self.clocks, (end_ns, math.inf))
        return [value for _, value in self.clocks[first:max(last, first + 1)]]

    # What an operator says.

    def ask(self, service_type, name, request):
        """Call a service of the node; return its future."""
        if name not in self._clients:
            client = self._clients[name] = self.node.create_client(service_type, name)
            self.until(client.service_is_ready, f'service {name}')
            # Nobody tells when the service knows the client too; before, its response gets lost.
            self.run_for(0.1)
        return self._clients[name].call_async(request)

    def call(self, service_type, name, request, limit_s=30.0):
        """Call a service of the node and return its response."""
        future = self.ask(service_type, name, request)
        self.until(future.done, f'response of {name}', limit_s)
        return future.result()


class Load:
    """How long the threads of a process were ready to run and did not.

    The kernel counts it (the second number of /proc/PID/task/TID/schedstat): it is the scheduling
    delay, whatever the process did. Of all threads together, for a reaction passes through
    several.
    """

    def __init__(self, pid):
        """Watch a process."""
        self._threads = Path(f'/proc/{pid}/task')
        self._before, self._sum_ns = {}, 0
        self._times, self._sums = [], []
        self.look()

    def look(self):
        """Take a reading."""
        for thread in self._threads.iterdir():
            try:
                waited_ns = int((thread / 'schedstat').read_text().split()[1])
            except (OSError, IndexError):
                continue  # it ended
            self._sum_ns += waited_ns - self._before.get(thread.name, waited_ns)
            self._before[thread.name] = waited_ns
        self._times.append(time.time_ns())
        self._sums.append(self._sum_ns)

    def delay_s(self, begin_ns, end_ns):
        """Return the delay from the reading before an interval to the one after it."""
        first = max(bisect_right(self._times, begin_ns) - 1, 0)
        last = min(bisect_right(self._times, end_ns), len(self._times) - 1)
        return (self._sums[last] - self._sums[first]) / NS


def memory_mb(pid):
    """Return the private memory of a process and its resident set, in MB."""
    values = {}
    for line in Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines()[1:]:
        key, number, _ = line.split()
        values[key] = int(number) / 1024
    return (values['Private_Clean:'] + values['Private_Dirty:'], values['Rss:'])


def count(pid, what):
    """Return how many entries /proc/PID/`what` has: 'task', 'fd'."""
    return len(list(Path(f'/proc/{pid}/{what}').iterdir()))


def shared_memory(pid):
    """Return the files of Fast DDS in shared memory that a process has mapped."""
    return {Path(word) for line in Path(f'/proc/{pid}/maps').read_text().splitlines()
            for word in line.split()[5:6] if word.startswith('/dev/shm/fastrtps_')}
