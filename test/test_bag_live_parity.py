"""A bag replayed through the live path gives the observations of the converted dataset."""

import itertools

import numpy as np
import pytest

hypothesis = pytest.importorskip('hypothesis', reason='hypothesis is not installed')
rosbags_highlevel = pytest.importorskip('rosbags.highlevel', reason='rosbags is not installed')
pytest.importorskip('minari', reason='minari is not installed')
from hypothesis import strategies as st  # noqa: E402
from idql_ros import message as messages  # noqa: E402
from idql_ros.observer import Observer  # noqa: E402
import recording as rec  # noqa: E402
from recording import MS, Recording, robot, T  # noqa: E402
from training import alignment  # noqa: E402
from training.storage import Bag  # noqa: E402

YAW = {'name': 'heading', 'topic': 'odom', 'type': 'nav_msgs/msg/Odometry',
       'fields': [f'pose.pose.orientation.{axis}' for axis in 'xyzw'], 'operations': ['yaw'],
       'unit': 'rad', 'max_age': 0.25}
SPECS = {
    'one': ([rec.ODOMETRY], [rec.VELOCITY]),
    'several': ([rec.JOINTS, rec.ODOMETRY, rec.LEVEL, YAW], [rec.VELOCITY, rec.GRIPPER]),
}


def decoder_of_rosbags(reader):
    """Return (bytes, type) -> message as rosbags decodes it."""
    return reader.deserialize


def decoder_of_ros(_):
    """Return (bytes, type) -> message as rclpy decodes it: what the node is given."""
    serialization = pytest.importorskip('rclpy.serialization', reason='rclpy is not installed')
    return lambda raw, message_type: serialization.deserialize_message(
        bytes(raw), messages.ros_class(message_type))


def replay(path, spec, decoder):
    """Return tick -> observation, as the node sees the messages of a bag one by one."""
    observer, seen, next_period = Observer(spec), {}, None
    observed = {signal.topic for signal in spec.observations}
    with rosbags_highlevel.AnyReader([path]) as reader:
        decode = decoder(reader)
        for connection, received_ns, raw in reader.messages():
            # A timer fires between messages, at the first nanosecond of each period.
            while spec.tick == 'timer' and next_period is not None and (
                    spec.start_of(next_period) < received_ns):
                seen[next_period], _ = observer.observe(spec.start_of(next_period))
                next_period += 1
            if next_period is None:
                next_period = spec.period_of(received_ns - 1) + 1
            topic = connection.topic.lstrip('/')
            if topic not in observed:
                continue
            observer.add(topic, decode(raw, connection.msgtype), received_ns)
            if spec.tick == 'arrival':
                tick_ns = observer.take_tick(received_ns)
                if tick_ns is not None:
                    seen[spec.period_of(tick_ns)], _ = observer.observe(tick_ns)
    return seen


def aligned(path, spec):
    """Return the stretches of decisions that a bag is converted to."""
    with Bag(path) as bag:
        return [stretch.steps for stretch in alignment.align(
            bag.messages(alignment.topics_of(spec, [])), spec, [],
            alignment.new_account('bag', spec))]


def record(spec, seed, ticks):
    """Return a recording with jitter, a hole, a late and a broken message."""
    rng = np.random.default_rng(seed)
    recording = Recording(spec)
    lost = set(rng.integers(0, 5 * ticks, ticks // 2).tolist())
    for step in range(5 * ticks):
        for signal in spec.observations:
            if step in lost:
                continue
            stamp_ns = T + 100 * MS * step + int(rng.integers(0, 3 * MS))
            values = rng.normal(size=signal.size)
            if rng.random() < 0.02:
                values[0] = np.nan
            if signal.name == 'heading':  # it shares the odometry's messages
                continue
            # Some messages are overtaken on their way to the recorder.
            delay_ms = 150 if rng.random() < 0.1 else 9
            recording.add(signal.name, values, stamp_ns,
                          stamp_ns + int(rng.integers(MS, delay_ms * MS)))
        if step % 5 == 0 and rng.random() < 0.95:
            for command in spec.actions:
                stamp_ns = T + 100 * MS * step
                recording.add(command.name, rng.normal(size=command.size), stamp_ns,
                              stamp_ns + int(rng.integers(20 * MS, 80 * MS)))
    return recording


@pytest.mark.parametrize('decoder', [decoder_of_rosbags, decoder_of_ros])
@pytest.mark.parametrize('tick', ['arrival', 'timer'])
@pytest.mark.parametrize('name', sorted(SPECS))
@hypothesis.given(seed=st.integers(0, 2**32 - 1))
@hypothesis.settings(max_examples=3, deadline=None, derandomize=True)
def test_replayed_bag_gives_bit_identical_observations(
        tmp_path_factory, seed, name, tick, decoder):
    folder = tmp_path_factory.mktemp('parity')
    spec = robot(*SPECS[name], tick=tick)
    path = record(spec, seed, 24).save(folder / 'bag')
    live = [o.tobytes() for o in replay(path, spec, decoder).values() if o is not None]
    transitions = [pair for steps in aligned(path, spec)
                   for pair in itertools.pairwise(steps.observations)]
    # Each transition of the dataset is two ticks of the live path, one right after the other.
    assert len(transitions) >= 3
    position = 0
    for before, after in transitions:
        position = live.index(before.tobytes(), position)
        assert live[position + 1] == after.tobytes()
    # And what the live path saw besides is what a hole or a missing command cut off.
    assert len(live) >= len(transitions) + 1


def test_clean_recording_gives_every_tick_of_the_live_path(tmp_path):
    spec = robot(*SPECS['several'])
    recording = Recording(spec)
    rng = np.random.default_rng(0)
    for step in range(50):
        stamp_ns = T + 100 * MS * step
        for name, size in (('joints', 2), ('position', 2), ('level', 1)):
            recording.add(name, rng.normal(size=size), stamp_ns)
        if step % 5 == 0:
            recording.add('velocity', [1], stamp_ns, stamp_ns + 20 * MS)
            recording.add('gripper', [1], stamp_ns, stamp_ns + 20 * MS)
    path = recording.save(tmp_path / 'bag')
    live = np.stack(list(replay(path, spec, decoder_of_rosbags).values()))
    steps, = aligned(path, spec)
    assert live.shape == (10, spec.observation_size)
    assert steps.observations.tobytes() == live.tobytes()
