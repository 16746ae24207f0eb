"""gazebo_reset_node for a world that is controlled with std_srvs/SetBool: true resets, false runs.

Stands for ros_gz_interfaces/srv/ControlWorld, whose package is not on PyPI. All else is the node.
"""

from idql_ros import gazebo_reset_node
from std_srvs.srv import SetBool

gazebo_reset_node.run(SetBool, lambda pause, reset: SetBool.Request(data=reset))
