"""Replays a bag over DDS, one message or moment of the clock for each line on stdin.

Arguments: the bag and the spec (JSON) whose observed topics are replayed. /clock is the clock of
the spec's ticks. Each step answers with a line of JSON: 'clock' (ns), 'messages' (published so
far), 'due' (ticks of a timer that the clock has reached so far), 'topic'; the last one is {}.
"""

import json
from pathlib import Path
import sys
import time

from idql_ros import message as messages
from idql_ros import spec as specs
from idql_ros.topics import qos_profile
import rclpy
from rosgraph_msgs.msg import Clock
from training import alignment
from training.storage import Bag


def steps(path, spec):
    """Yield (clock in ns or None: as it is, topic or None, message) in the order of the ticks."""
    topics = alignment.topics_of(spec, [])
    with Bag(path) as bag:
        if spec.clock == 'header' and 'clock' in bag.topics:
            topics.add('clock')
        logged = list(bag.messages(topics))
    observed = {alignment.key(s.topic): s.topic for s in spec.observations}
    tick = None
    for time_ns, topic, _, message in alignment.in_tick_clock(
            logged, spec, alignment.new_account('bag', spec)):
        if message is None:
            raise SystemExit('a clock that is set back cannot be replayed')
        if tick is None:
            # Some ticks before anything is observed, but no clock is negative.
            tick = max(0, spec.period_of(time_ns - 1) - 2)
            yield spec.start_of(tick), None, None
        while spec.tick == 'timer' and spec.start_of(tick + 1) < time_ns:
            tick += 1
            yield spec.start_of(tick), None, None
        if topic in observed:
            # What lies on a tick is there before the clock makes it.
            on_tick = spec.tick == 'timer' and spec.start_of(tick + 1) == time_ns
            yield None if on_tick else time_ns, observed[topic], message


def as_ros(message, ros):
    """Return a message of rclpy with what one of another distribution holds."""
    for name in ros.get_fields_and_field_types():
        value, blank = getattr(message, name, None), getattr(ros, name)
        if hasattr(blank, 'get_fields_and_field_types'):
            as_ros(value, blank)
        elif value is not None:  # what only this distribution has stays as it is
            setattr(ros, name, value.tolist() if hasattr(value, 'tolist') else value)
    return ros


def publish(publisher, message):
    """Publish when somebody listens."""
    while publisher.get_subscription_count() == 0:
        time.sleep(0.005)
    publisher.publish(message)


def main():
    """Answer each line on stdin with the next step."""
    path, spec = Path(sys.argv[1]), specs.parse(json.loads(sys.argv[2]), 'spec')
    rclpy.init()
    node = rclpy.create_node('replay')
    clock = node.create_publisher(Clock, '/clock', 10)
    classes = {s.topic: messages.ros_class(s.type) for s in spec.observations}
    publishers = {s.topic: node.create_publisher(classes[s.topic], s.topic, qos_profile(s))
                  for s in spec.observations}
    print(json.dumps({'topics': sorted(publishers)}), flush=True)
    published = due = now_ns = 0
    for (time_ns, topic, message), _ in zip(steps(path, spec), sys.stdin, strict=False):
        if time_ns is not None:
            now_ns = time_ns
            moment = Clock()
            moment.clock.sec, moment.clock.nanosec = divmod(time_ns, messages.NS)
            publish(clock, moment)
        if topic is None:
            due += 1
        else:
            publish(publishers[topic], as_ros(message, classes[topic]()))
            published += 1
        print(json.dumps({'clock': now_ns, 'messages': published, 'due': due, 'topic': topic}),
              flush=True)
    sys.stdin.readline()
    print('{}', flush=True)
    sys.stdin.readline()  # until everything was received
    rclpy.shutdown()


if __name__ == '__main__':
    main()
