"""Which topics a recording of a run needs, so that the run can be replayed. Pure: no ROS."""

from __future__ import annotations

from idql_ros.spec import Spec


def full_name(topic: str, node: str) -> str:
    """Return a topic's name as others see it.

    Args:
        topic: as a node names it: '/absolute', 'relative' to its namespace or '~/private'.
        node: its name with its namespace, '/namespace/name'.
    """
    node = '/' + node.strip('/')
    if topic.startswith('~/'):
        return f'{node}/{topic[2:]}'
    return topic if topic.startswith('/') else f'{node.rpartition("/")[0]}/{topic}'


def topics(spec: Spec, node: str) -> list[str]:
    """Return the full names of the topics that tell what a policy's node did, and why.

    Those it observes and sends, what makes it stop, each decision with all that it was made from,
    what became of it, and the clock.
    """
    streams = [stream.topic for stream in (*spec.observations, *spec.actions)]
    return list(dict.fromkeys(full_name(topic, node) for topic in (
        *streams, 'estop', 'deadman', '~/decision', '~/command_preview', '~/value', '~/status',
        '/diagnostics', '/clock')))
