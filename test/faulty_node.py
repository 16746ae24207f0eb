"""policy_node with a fault that no policy file can have; for tests of what follows.

The fault is the variable IDQL_ROS_FAULT: 'fail', 'hang' or 'slow' (0.2 s) is what an inference
does while the first number of the observation is above 5; 'raise' raises where odometry with an x
above 5 is received; 'stall' blocks the executor for a
second, every third second; 'tenfold:PATH' makes an inference ten times while the file PATH exists.
"""

import os
import time

from idql_ros import policy_node
from idql_ros.policy import Policy

FAULT, _, PATH = os.environ['IDQL_ROS_FAULT'].partition(':')
_decide, _subscribe = Policy.decide, policy_node.PolicyNode._subscribe
_receive = policy_node.PolicyNode._receive


def decide(self, observation, *arguments, **more):
    if observation[0] > 5:
        if FAULT == 'fail':
            raise RuntimeError('a fault for the test')
        if FAULT in ('hang', 'slow'):
            time.sleep(1e6 if FAULT == 'hang' else 0.2)
    if FAULT == 'tenfold' and os.path.exists(PATH):
        for _ in range(9):
            _decide(self, observation, *arguments, **more)
    return _decide(self, observation, *arguments, **more)


def receive(self, topic, delay, message, info):
    if FAULT == 'raise' and message.pose.pose.position.x > 5:
        raise RuntimeError('a fault for the test')
    _receive(self, topic, delay, message, info)


def subscribe(self, runner):
    _subscribe(self, runner)
    if FAULT == 'stall':
        self._ticking.append(self.create_timer(3.0, lambda: time.sleep(1.0)))


if __name__ == '__main__':
    Policy.decide, policy_node.PolicyNode._subscribe = decide, subscribe
    policy_node.PolicyNode._receive = receive
    policy_node.main()
