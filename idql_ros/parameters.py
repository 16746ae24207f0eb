"""The parameters of policy_node: types, ranges, and when they may be changed. Pure: no ROS."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_args

from idql_ros.policy import (
    Extraction,
    MAX_CANDIDATES,
    MAX_SAMPLING_TEMPERATURE,
    MAX_SOFTMAX_TEMPERATURE,
)
from idql_ros.value_guard import VALUE_NAMES

# When a parameter may be changed.
ALWAYS, UNCONFIGURED, START = 'always', 'while unconfigured', 'at start only'

_AS_FILE = [math.nan, math.nan]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """What is declared of a parameter."""

    name: str
    default: Any
    description: str
    # ALWAYS, UNCONFIGURED or START.
    changes: str = UNCONFIGURED
    # The range of a number, both ends included; or what a text may be.
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    def why_refused(self, value: Any) -> str:
        """Return why the parameter cannot have a value of its type; '' where it can.

        Ranges of single numbers are checked by rclpy, from the descriptor.
        """
        if self.choices and value not in self.choices:
            return f'{self.name}: expected {", ".join(self.choices)}, found {value!r}'
        if isinstance(self.default, list):
            low, high = value if len(value) == 2 else (0.0, -1.0)
            if low > high:
                return (f'{self.name}: expected [lowest, highest], nan where the policy file '
                        f'says, found {list(value)}')
        return ''


PARAMETERS: tuple[Parameter, ...] = (
    Parameter('model', '', 'Policy file (.onnx); empty: the policy installed with the package. '
              'Read when the node is configured, and by ~/reload.', ALWAYS),
    Parameter('enable_commands', False, 'Whether commands are sent. False: nothing is sent on '
              'the action topics, the would-be command goes to ~/command_preview.', ALWAYS),
    Parameter('autostart', False, 'Whether the node configures and activates itself on start.',
              START),
    Parameter('seed', 0, 'Seed of the diffusion noise.', low=0, high=2**63 - 1),
    Parameter('candidates', 0, 'Actions drawn for each decision (N); 0: as many as the policy '
              'file says.', low=0, high=MAX_CANDIDATES),
    Parameter('deadline_ms', 0.0, 'Time for one inference. Where its p99 exceeds it, N falls to '
              '64, 32, 16, 8 and recovers when there is room; 0: N stays.', low=0.0, high=1e5),
    Parameter('extraction', 'greedy', 'How one of the drawn actions is chosen.',
              choices=get_args(Extraction)),
    Parameter('softmax_temperature', 1.0, 'Of the extraction softmax, in units of 1 / Q; the '
              'higher, the greedier.', low=0.0, high=MAX_SOFTMAX_TEMPERATURE),
    Parameter('sampling_temperature', 1.0, 'Scales the noise that the denoising steps add; 0: '
              'none.', low=0.0, high=MAX_SAMPLING_TEMPERATURE),
    Parameter('threads', 1, 'Threads for one inference on the CPU.', low=1, high=64),
    Parameter('backend', 'onnxruntime', 'What runs the policy file.',
              choices=('onnxruntime', 'torch')),
    Parameter('device', 'auto', 'Where it runs; auto: on CUDA where there is one, else on the '
              'CPU. tensorrt is never chosen by itself.',
              choices=('auto', 'cpu', 'cuda', 'tensorrt')),
    Parameter('latch_stop', False, 'Whether the node, once it stopped after acting, stays stopped '
              'until ~/resume.'),
    Parameter('value_guard', 'report', 'What follows when a value is out of its range for '
              'value_guard_ticks ticks: nothing but a report, holding the last command for the '
              "spec's hold_time and then stopping, or stopping.",
              choices=('report', 'hold', 'stop')),
    Parameter('value_guard_ticks', 3, 'Consecutive ticks out of range before value_guard acts.',
              low=1, high=100_000),
    *(Parameter(f'value_range_{name}', _AS_FILE, f'Lowest and highest {name} that is no warning; '
                'nan: as the policy file says.') for name in VALUE_NAMES),
    Parameter('deadman_timeout', 0.0, 'Seconds for which a true on the topic deadman allows '
              'motion; 0: none is needed.', low=0.0, high=60.0),
    Parameter('clock_timeout', 2.0, 'Seconds of real time after which simulated time that does '
              'not go on counts as standing still.', low=0.1, high=60.0),
    Parameter('publish_candidates', False, 'Whether the candidates are published as markers on '
              "~/candidates; needs the spec's key space."),
)
