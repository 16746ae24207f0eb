"""The commands in doc/ros2_control.md are specs, and make the messages that the page says."""

from pathlib import Path
import re

from idql_ros import message as messages
from idql_ros.spec import load
import numpy as np
import pytest

PAGE = (Path(__file__).parents[1] / 'doc' / 'ros2_control.md').read_text()
COMMANDS = re.findall(r'```yaml\n(- .*?)```', PAGE, re.S)
SPEC = """
spec_version: 1
name: arm
rate: 10.0
tick: timer
observations:
  - name: joints
    topic: joint_states
    type: sensor_msgs/msg/JointState
    fields: ["position[shoulder]", "position[elbow]"]
    unit: rad
    max_age: 0.1
actions:
"""


@pytest.fixture(params=COMMANDS, ids=lambda text: re.search('type: .*/(.*)', text)[1])
def command(request, tmp_path):
    """Return a command of the page."""
    path = tmp_path / 'spec.yaml'
    path.write_text(SPEC + request.param)
    return load(path).actions[0]


def test_page_shows_a_forward_command_and_a_trajectory():
    assert len(COMMANDS) == 2


def test_command_of_the_page_makes_the_message_that_the_controller_takes(command):
    message, = messages.write_topics(
        [command], np.array([0.5, -0.25], np.float32), 3 * messages.NS, messages.blank).values()
    if command.type.endswith('Float64MultiArray'):
        assert list(message.data) == [0.5, -0.25]
        return
    assert list(message.joint_names) == ['shoulder', 'elbow']
    point, = message.points
    assert list(point.positions) == [0.5, -0.25] and not len(point.velocities)
    # Its end lies ahead of the tick that it is stamped with: else it would be refused.
    assert messages.stamp_ns(message, 0) == 3 * messages.NS
    after = point.time_from_start
    assert after.sec + 1e-9 * after.nanosec == pytest.approx(command.time_from_start) == 0.2
