"""The network as an ONNX graph, laid out for the runtime that runs it on a robot.

`IDQL.forward` says what is computed; here it is written so that ONNX Runtime spends its time in
matrix products. What is repeated is computed once: the observation's share of the first layer once
an observation, the step's share here. An export compares the two and refuses a graph that differs.
"""

from collections.abc import Callable, Sequence
from typing import Any

from idql_ros.session import INPUTS, OUTPUTS
from idql_ros.vetting import IR_VERSION, OPSET
import numpy as np
import onnx
from onnx import helper, numpy_helper, TensorProto
import torch
from training.idql import IDQL
from training.layers import ActivationName, LAYER_NORM_EPSILON
from training.networks import Dense, NoisePredictor, Norm, Perceptron

# Rows this many bytes apart lie in the same places of a processor's first cache, and drive each
# other out of it; features that are always 0 keep them apart, and cost less.
_PAGE_BYTES = 4096
_APART = 16

# Name of x (M, inputs), weight (inputs, outputs), bias (outputs,) -> name of (M, outputs).
Product = Callable[['Nodes', str, np.ndarray, np.ndarray], str]


class Nodes:
    """The nodes and constants of a graph under construction; values go by their names."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[Any, ...], onnx.TensorProto] = {}

    @property
    def constants(self) -> list[onnx.TensorProto]:
        """Return the constants, each once."""
        return list(self._constants.values())

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """Return the name of a constant; equal ones are one."""
        array = np.asarray(value, dtype)
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._constants:
            self._constants[key] = numpy_helper.from_array(array, f'c{len(self._constants)}')
        return self._constants[key].name

    def add(self, kind: str, *inputs: str, outputs: Sequence[str] = (), **attributes: Any) -> str:
        """Add a node, and return the name of its first output.

        Args:
            kind: Type of the operator, of the default domain.
            inputs: Names of its inputs.
            outputs: Names of its outputs; none: one, named for the node.
            attributes: Of the operator.
        """
        outputs = outputs or [f'{kind}_{len(self.nodes)}']
        self.nodes.append(
            helper.make_node(kind, inputs, outputs, outputs[0], **attributes))
        return outputs[0]


def float_product(nodes: Nodes, x: str, weight: np.ndarray, bias: np.ndarray) -> str:
    """Add x @ weight + bias in float32: a `Product`."""
    return nodes.add('Gemm', x, nodes.constant(weight), nodes.constant(bias))


def policy_graph(idql: IDQL, product: Product = float_product) -> onnx.ModelProto:
    """Return `IDQL.forward` as a graph with free B and N.

    Args:
        idql: The trained network.
        product: How the products of the residual blocks are written; they are nearly all of the
            work.
    """
    nodes = Nodes()
    steps, actions = idql.config.diffusion_steps, idql.action_size
    batch, number = (nodes.add('Shape', 'noise', start=axis, end=axis + 1) for axis in (0, 2))
    one = nodes.constant([1], np.int64)
    repeats = nodes.add('Concat', one, number, one, axis=0)

    def per_candidate(x: str, size: int) -> str:  # (B, X) -> (B * N, X)
        x = nodes.add('Expand', nodes.add('Unsqueeze', x, one), repeats)
        return nodes.add('Reshape', x, nodes.constant([-1, size], np.int64))

    observations = nodes.add('Sub', 'observations', nodes.constant(_array(idql.observation_mean)))
    observations = nodes.add('Div', observations, nodes.constant(_array(idql.observation_std)))
    noise = nodes.add('Transpose', 'noise', perm=[1, 0, 2, 3])
    noise = nodes.add('Reshape', noise, nodes.constant([steps, -1, actions], np.int64))
    x = _sample(nodes, idql, observations, noise, per_candidate, product)

    pairs = nodes.add('Concat', per_candidate(observations, idql.observation_size), x, axis=1)
    q = [_perceptron(nodes, idql.target_critics, pairs, member)
         for member in range(idql.config.critics)]
    sizes = nodes.add('Concat', batch, number, axis=0)
    nodes.add('Reshape', nodes.add('Min', *q), sizes, outputs=['q'])

    candidates = nodes.add('Mul', x, nodes.constant(_array(idql.action_scale)))
    candidates = nodes.add('Add', candidates, nodes.constant(_array(idql.action_center)))
    sizes = nodes.add('Concat', sizes, nodes.constant([actions], np.int64), axis=0)
    nodes.add('Reshape', candidates, sizes, outputs=['candidates'])

    if idql.value.input_norm is not None:
        observations = _norm(nodes, idql.value.input_norm, observations)
    v = _perceptron(nodes, idql.value, observations)
    nodes.add('Reshape', v, nodes.constant([-1], np.int64), outputs=['v'])

    shapes = {
        'observations': ['B', idql.observation_size], 'noise': ['B', steps, 'N', actions],
        'candidates': ['B', 'N', actions], 'q': ['B', 'N'], 'v': ['B']}
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in names]
        for names in (INPUTS, OUTPUTS))
    graph = helper.make_graph(nodes.nodes, 'policy', inputs, outputs, nodes.constants)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid('', OPSET)], ir_version=IR_VERSION,
        producer_name='idql_ros')


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _sample(
    nodes: Nodes, idql: IDQL, observations: str, noise: str,
    per_candidate: Callable[[str, int], str], product: Product,
) -> str:
    """Add `diffusion.sample` with the averaged actor; return the actions (B * N, A)."""
    actor, schedule = idql.averaged_actor, idql.schedule
    share = nodes.constant(_array(
        actor.input.weight[idql.action_size:idql.action_size + idql.observation_size]))
    share = per_candidate(nodes.add('MatMul', observations, share), actor.width)
    with torch.no_grad():
        time_shares = _array(idql.sampling_time_shares())
    betas, alphas, alpha_hats = (_array(x).astype(np.float64) for x in schedule)
    steps = len(betas)

    def noise_of(step: int) -> str:
        return nodes.add('Gather', noise, nodes.constant(step, np.int64), axis=0)

    x = noise_of(0)
    for i in range(1, steps + 1):
        t = steps - i
        shares = nodes.add('Add', share, nodes.constant(time_shares[t]))
        h = _residual_stream(nodes, actor, idql.config.actor_activation, x, shares, product)
        # x <- (x - k prediction) / sqrt(alpha) + sqrt(beta) noise, in one product: it is linear.
        x = nodes.add('Mul', x, nodes.constant(1 / np.sqrt(alphas[t])))
        if t > 0:
            added = nodes.add('Mul', noise_of(i), nodes.constant(np.sqrt(betas[t])))
            x = nodes.add('Add', x, added)
        k = (1 - alphas[t]) / np.sqrt(1 - alpha_hats[t]) / np.sqrt(alphas[t])
        x = nodes.add('Add', x, nodes.constant(-k * _array(actor.output.bias)))
        x = nodes.add('Gemm', h, nodes.constant(-k * _array(actor.output.weight)), x)
        x = nodes.add('Clip', x, nodes.constant(-1), nodes.constant(1))
    return x


def _residual_stream(
    nodes: Nodes, actor: NoisePredictor, activation: ActivationName, x: str, shares: str,
    product: Product,
) -> str:
    """Add all of the noise predictor but its last layer.

    Args:
        nodes: What is added to.
        actor: The noise predictor.
        activation: The one it uses.
        x: Noisy actions (M, A).
        shares: What observation and step add to the first layer, (M, width).
        product: How the blocks' products are written.

    Returns:
        (M, width).
    """
    weight = _array(actor.input.weight)[:actor.output.weight.shape[1]]  # that of the actions
    x = nodes.add('Gemm', x, nodes.constant(weight), shares)
    # The blocks' first layers give -x to Mish: it needs that more than x.
    sign = -1 if activation == 'mish' else 1
    for block in actor.blocks:
        h = _norm(nodes, block.norm, x)
        expand, bias, contract = (
            _array(p) for p in (block.expand.weight, block.expand.bias, block.contract.weight))
        if 4 * expand.shape[1] % _PAGE_BYTES == 0:
            expand, bias = np.pad(expand, ((0, 0), (0, _APART))), np.pad(bias, (0, _APART))
            contract = np.pad(contract, ((0, _APART), (0, 0)))
        h = _ACTIVATIONS[activation](nodes, product(nodes, h, sign * expand, sign * bias))
        x = nodes.add('Add', x, product(nodes, h, contract, _array(block.contract.bias)))
    return _ACTIVATIONS[activation](nodes, nodes.add('Neg', x) if sign < 0 else x)


def _mish_of_negative(nodes: Nodes, z: str) -> str:
    """Add x tanh(softplus(x)) of z = -x, in five passes over it.

    With p = sigmoid(-x) it is x (1 - p^2) / (1 + p^2) = x / h - x, h = (1 + p^2) / 2. ONNX Runtime
    has no kernel for Mish at this opset. HardSigmoid is max(0, min(1, alpha p^2 + beta)) in one
    pass, and h is within its bounds. Nothing overflows.
    """
    p = nodes.add('Sigmoid', z)
    h = nodes.add('HardSigmoid', nodes.add('Mul', p, p), alpha=0.5, beta=0.5)
    return nodes.add('Sub', z, nodes.add('Div', z, h))


def _silu(nodes: Nodes, x: str) -> str:
    return nodes.add('Mul', x, nodes.add('Sigmoid', x))


def _relu(nodes: Nodes, x: str) -> str:
    return nodes.add('Relu', x)


_ACTIVATIONS: dict[ActivationName, Callable[[Nodes, str], str]] = {
    'mish': _mish_of_negative, 'silu': _silu, 'relu': _relu}


def _norm(nodes: Nodes, norm: Norm, x: str, member: Any = ...) -> str:
    scale, shift = (nodes.constant(_array(p)[member]) for p in (norm.weight, norm.bias))
    return nodes.add(
        'LayerNormalization', x, scale, shift, axis=-1, epsilon=LAYER_NORM_EPSILON)


def _perceptron(nodes: Nodes, network: Perceptron, x: str, member: Any = ...) -> str:
    """Add one network of a `Perceptron`: (M, inputs) -> (M, 1).

    One at a time: products of several weights at once are half as fast in ONNX Runtime.
    """
    def dense(layer: Dense, x: str) -> str:
        return float_product(nodes, x, _array(layer.weight)[member], _array(layer.bias)[member])

    norms = network.norms or [None] * len(network.hidden)
    for layer, norm in zip(network.hidden, norms, strict=True):
        x = dense(layer, x)
        x = _relu(nodes, x if norm is None else _norm(nodes, norm, x, member))
    return dense(network.output, x)
