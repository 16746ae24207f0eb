"""Names of topics, and what is recorded of a run."""

from idql_ros import recorded
from idql_ros.policy import default_path, Policy
import pytest


@pytest.mark.parametrize(('topic', 'node', 'expected'), [
    ('odom', '/policy_node', '/odom'),
    ('odom', '/robots/one/policy_node', '/robots/one/odom'),
    ('/odom', '/robots/one/policy_node', '/odom'),
    ('~/value', '/policy_node', '/policy_node/value'),
    ('~/value', '/robots/one/policy_node', '/robots/one/policy_node/value'),
    # As a launch argument gives the namespace.
    ('arm/odom', 'robot/policy_node', '/robot/arm/odom'),
])
def test_names_are_expanded_as_ros_does(topic, node, expected):
    assert recorded.full_name(topic, node) == expected
    expand = pytest.importorskip('rclpy.expand_topic_name', reason='rclpy is not installed')
    namespace, _, name = f'/{node.strip("/")}'.rpartition('/')
    assert expand.expand_topic_name(topic, name, namespace or '/') == expected


def test_a_recording_holds_what_was_observed_sent_and_decided():
    topics = recorded.topics(Policy(default_path()).spec, '/one/policy_node')
    assert len(set(topics)) == len(topics)
    assert {'/one/odom', '/one/cmd_vel', '/one/policy_node/decision', '/one/policy_node/value',
            '/one/policy_node/status', '/diagnostics', '/clock'} <= set(topics)
