"""The graph computes what the network does, in few passes, and is of operators that are vetted."""

from idql_ros.session import Session
from idql_ros.vetting import OPERATORS
import numpy as np
import onnx
from onnx import helper, TensorProto
import onnxruntime
import pytest
import torch
from torch.nn import functional as F
from training import policy_graph as graphs
from training.idql import IDQL, IDQLConfig
from training.policy_graph import IR_VERSION, Nodes, OPSET, policy_graph
from training.quantise import int8_product


def network(**settings):
    """Return a small network for 3 observations and 2 actions."""
    torch.manual_seed(0)
    sizes = {'actor_width': 16, 'actor_blocks': 2, 'time_features': (8, 16),
             'critic_hidden': (16, 16), 'value_hidden': (16, 16)}
    return IDQL(IDQLConfig(**(sizes | settings)), torch.zeros(3), torch.ones(3), torch.zeros(2),
                torch.ones(2)).eval()


def run(model, batch=2, number=5):
    """Return what a graph gives, with the inputs."""
    generator = np.random.default_rng(0)
    observations = generator.standard_normal((batch, 3), np.float32)
    noise = generator.standard_normal((batch, 5, number, 2), np.float32)
    return Session(model.SerializeToString()).run(observations, noise), observations, noise


def test_mish_is_exact_to_rounding_and_finite_for_every_number():
    nodes = Nodes()
    z = nodes.add('Neg', 'x')
    y = graphs._mish_of_negative(nodes, z)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ['M']) for name in ('x', y)]
    session = onnxruntime.InferenceSession(helper.make_model(
        helper.make_graph(nodes.nodes, 'mish', values[:1], values[1:], nodes.constants),
        opset_imports=[helper.make_opsetid('', OPSET)], ir_version=IR_VERSION).SerializeToString())
    x = np.concatenate([np.linspace(-30, 30, 20001), [-1e30, -1e4, -100, 100, 1e4, 1e30]])
    found, = session.run(None, {'x': x.astype(np.float32)})
    expected = F.mish(torch.from_numpy(x)).numpy()
    assert np.isfinite(found).all()
    # x / h - x cancels where Mish is near 0: what is left is rounding of x.
    assert (np.abs(found - expected) <= 5e-7 * np.maximum(np.abs(x), 1)).all()


@pytest.mark.parametrize(('width', 'inside'), [(256, 1024 + 16), (320, 1280), (16, 64)])
def test_rows_of_the_blocks_are_not_a_page_apart(width, inside):
    model = policy_graph(network(actor_width=width, actor_blocks=1, diffusion_steps=1))
    shapes = {tuple(tensor.dims) for tensor in model.graph.initializer}
    assert {(width, inside), (inside, width)} <= shapes


@pytest.mark.parametrize('activation', ['mish', 'silu', 'relu'])
def test_features_that_are_always_zero_change_nothing(monkeypatch, activation):
    idql = network(actor_activation=activation)
    plain, observations, noise = run(policy_graph(idql))
    monkeypatch.setattr(graphs, '_PAGE_BYTES', 4 * 4 * 16)
    model = policy_graph(idql)
    assert (16, 64 + 16) in {tuple(tensor.dims) for tensor in model.graph.initializer}
    with torch.no_grad():
        expected = idql(torch.from_numpy(observations), torch.from_numpy(noise))
    for padded, ours, network_s in zip(run(model)[0], plain, expected, strict=True):
        assert np.abs(padded - ours).max() < 1e-5
        assert np.abs(padded - network_s.numpy()).max() < 1e-4


@pytest.mark.parametrize('product', [graphs.float_product, int8_product])
@pytest.mark.parametrize('activation', ['mish', 'silu', 'relu'])
def test_operators_are_those_that_a_node_accepts(product, activation):
    model = policy_graph(network(actor_activation=activation), product)
    onnx.checker.check_model(model, full_check=True)
    assert {node.op_type for node in model.graph.node} <= OPERATORS.keys()
    assert {node.domain for node in model.graph.node} == {''}


def test_weights_that_every_step_uses_are_in_the_file_once():
    short, long = (policy_graph(network(diffusion_steps=steps)) for steps in (2, 20))
    counts = [sum(len(tensor.raw_data) > 1000 for tensor in model.graph.initializer)
              for model in (short, long)]
    assert counts[0] == counts[1] > 0
