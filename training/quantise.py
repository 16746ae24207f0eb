"""int8 weights, and whether a policy with them is as good: `python -m training.export --int8`.

The products of the residual blocks are done in whole numbers: weights of 7 bits with a scale for
each output, what they multiply of 8 bits with a scale for each product of each inference (ONNX's
dynamic quantisation). All else stays in float32: the first and the last layer, which place an
action, and critics and value, which choose one.
"""

from dataclasses import dataclass
import os

from idql_ros.policy import Policy
import numpy as np
from onnx import TensorProto
from training.evaluate import EpisodeResult, evaluate
from training.policy_graph import Nodes

# Episodes in which both files are scored, from the same starts and with the same noise.
EPISODES = 200
# Observations of these episodes on which the distributions of actions are compared.
COMPARED = 256
# 7 bits: processors without VNNI sum two products in 16 bits, which 2 x 255 x 127 exceeds.
_LARGEST = 63
# Standard errors to the ends of a 95 % interval: Student's t, of 199 degrees of freedom.
_HALF_WIDTH = 1.972


def int8_product(nodes: Nodes, x: str, weight: np.ndarray, bias: np.ndarray) -> str:
    """Add x @ weight + bias in whole numbers: a `policy_graph.Product`.

    Written as ONNX Runtime recognises it and does it in one pass.
    """
    scale = np.abs(weight).max(0) / _LARGEST  # (outputs,)
    scale[scale == 0] = 1
    name = f'quantised_{len(nodes.nodes)}'
    outputs = name, f'{name}_scale', f'{name}_zero'
    nodes.add('DynamicQuantizeLinear', x, outputs=outputs)
    whole = nodes.add(
        'MatMulInteger', name, nodes.constant(np.rint(weight / scale), np.int8), outputs[2],
        nodes.constant(np.zeros(len(scale)), np.int8))
    scales = nodes.add('Mul', outputs[1], nodes.constant(scale))
    y = nodes.add('Mul', nodes.add('Cast', whole, to=TensorProto.FLOAT), scales)
    return nodes.add('Add', y, nodes.constant(bias))


@dataclass(frozen=True)
class Difference:
    """What of a score changes from float32 to int8, over pairs of episodes."""

    name: str
    float32: float  # mean
    int8: float
    low: float  # the 95 % interval of the mean of int8 - float32
    high: float

    @property
    def worse(self) -> bool:
        """Return whether int8 is worse by more than chance explains."""
        return not self.high >= 0  # so that NaN is worse

    def __str__(self) -> str:
        """Return the numbers in one line."""
        return (f'{self.name} {self.float32:.4g} in float32, {self.int8:.4g} in int8: difference '
                f'{self.int8 - self.float32:.3g} [{self.low:.3g}, {self.high:.3g}]')


@dataclass(frozen=True)
class Comparison:
    """How a policy with int8 weights does beside the same one in float32."""

    environment: str
    scores: tuple[Difference, ...]
    # Over observations of the episodes, in network units: of candidates for the same noise the
    # mean absolute difference; of the distributions of N candidates the Wasserstein-1 distance in
    # each dimension, and that of two draws in float32, which is what N candidates can tell.
    candidates_difference: float
    distance: tuple[float, ...]
    distance_of_draws: tuple[float, ...]
    same_choice: float  # share of the observations for which both choose the same candidate

    @property
    def worse(self) -> bool:
        """Return whether int8 is worse in any score."""
        return any(score.worse for score in self.scores)

    def __str__(self) -> str:
        """Return the numbers as text."""
        def listed(values: tuple[float, ...]) -> str:
            return ', '.join(f'{value:.3g}' for value in values)

        return '\n'.join([
            f'int8 weights beside float32 in {self.environment}, {EPISODES} pairs of episodes '
            '(brackets: 95 % interval of the mean difference):',
            *(f'  {score}' for score in self.scores),
            f'  candidates for the same noise differ by {self.candidates_difference:.3g} network '
            f'units in the mean; the same one is chosen for {self.same_choice:.1%}',
            f'  Wasserstein distance of the distributions in each dimension: '
            f'{listed(self.distance)}; of two draws in float32: {listed(self.distance_of_draws)}'])


def compare_in(
    environment: str, float32: Policy, int8: Policy, action_scale: np.ndarray, seed: int = 0
) -> Comparison:
    """Score both policies in the same episodes, and compare the actions that they propose.

    Each decision is an inference of its own, as on the robot: the scales of int8 products are
    those of all that an inference holds, and on another machine as many robots would not ask.

    Args:
        environment: module:factory, or an id of Gymnasium or OGBench.
        float32: The policy.
        int8: The same with int8 weights.
        action_scale: (A,) physical units per network unit.
        seed: Of the first start and of the noise.

    Raises:
        SimulationError, MessageError: Environment and spec disagree.
    """
    plain, quantised = (
        evaluate(policy, environment, EPISODES, seed, policy.candidates, label,
                 parallel=os.cpu_count() or 1, alone=True)
        for policy, label in ((float32, 'float32'), (int8, 'int8')))
    scores = (
        difference('success', *(np.array([float(r.success) for r in results])
                                for results in (plain, quantised))),
        difference('return', *(np.array([r.total_reward for r in results])
                               for results in (plain, quantised))))
    return Comparison(
        environment, scores, *_actions(float32, int8, _visited(plain), action_scale, seed))


def difference(name: str, float32: np.ndarray, int8: np.ndarray) -> Difference:
    """Return the mean of int8 - float32 over pairs (episodes,), with its 95 % interval."""
    change = int8 - float32
    half = _HALF_WIDTH * change.std(ddof=1) / np.sqrt(len(change))
    return Difference(name, float(float32.mean()), float(int8.mean()),
                      float(change.mean() - half), float(change.mean() + half))


def _visited(results: list[EpisodeResult]) -> np.ndarray:
    """Return up to COMPARED observations (B, O), spread over all episodes."""
    observations = np.concatenate([result.observations for result in results])
    observations = observations[np.isfinite(observations).all(1)].astype(np.float32)
    chosen = np.linspace(0, len(observations) - 1, min(COMPARED, len(observations)))
    return observations[chosen.astype(int)]


def _actions(
    float32: Policy, int8: Policy, observations: np.ndarray, action_scale: np.ndarray, seed: int
) -> tuple[float, tuple[float, ...], tuple[float, ...], float]:
    """Return the last four of `Comparison`."""
    ours, theirs, again = (
        [policy.decide(observation, first + i, seed, policy.candidates)
         for i, observation in enumerate(observations)]
        for policy, first in ((float32, 0), (int8, 0), (float32, len(observations))))
    a, b, c = (np.stack([decision.candidates for decision in decisions]) / action_scale
               for decisions in (ours, theirs, again))  # (B, N, A)

    def distance(x: np.ndarray, y: np.ndarray) -> tuple[float, ...]:
        apart = np.abs(np.sort(x, 1) - np.sort(y, 1))
        return tuple(float(value) for value in apart.mean((0, 1)))

    same = [np.argmax(x.candidate_q) == np.argmax(y.candidate_q)
            for x, y in zip(ours, theirs, strict=True)]
    return float(np.abs(a - b).mean()), distance(a, b), distance(a, c), float(np.mean(same))
