"""torch runs the same file as ONNX Runtime, to rounding, and refuses in words what it cannot."""

from pathlib import Path

from idql_ros.policy import Policy, PolicyError
from idql_ros.session import open_session, SessionError
from idql_ros.vetting import vet
import numpy as np
import onnx
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed')
from idql_ros import torch_session  # noqa: E402
from idql_ros.torch_session import TorchSession  # noqa: E402
from training.idql import IDQL, IDQLConfig  # noqa: E402
from training.policy_graph import float_product, policy_graph  # noqa: E402
from training.quantise import int8_product  # noqa: E402

DEFAULT_POLICY = Path(__file__).parents[1] / 'config' / 'policies' / 'pointmaze_medium.onnx'
TOLERANCE = 2e-4
DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason='torch finds no GPU'))]


def graph(product=float_product, **settings):
    """Return a file of a small network for 3 observations and 2 actions."""
    torch.manual_seed(0)
    config = IDQLConfig(**({'actor_width': 32, 'actor_blocks': 2, 'time_features': (8, 16),
                            'critic_hidden': (32, 32), 'value_hidden': (32, 32)} | settings))
    idql = IDQL(config, torch.ones(3), 2 * torch.ones(3), torch.ones(2), 3 * torch.ones(2))
    return policy_graph(idql.eval(), product).SerializeToString()


def inputs(session, batch, number):
    """Return random observations and noise for a session."""
    generator = np.random.default_rng(number)
    observations, noise = (tensor.shape for tensor in session.tensors[:2])
    return (generator.standard_normal((batch, observations[1]), np.float32),
            generator.standard_normal((batch, noise[1], number, noise[3]), np.float32))


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('settings', [
    {}, {'actor_activation': 'silu', 'critics': 1}, {'actor_activation': 'relu', 'critics': 3},
    {'normalise_observations': True, 'value_input_layer_norm': True, 'critic_layer_norm': True},
    {'actor_width': 256, 'diffusion_steps': 1}, {'actor_blocks': 0}])
def test_answers_are_those_of_onnxruntime_for_the_same_noise(device, settings):
    content = graph(**settings)
    ours, theirs = TorchSession(content, device=device), open_session(content, device='cpu')
    assert device in ours.provider
    assert ours.tensors == theirs.tensors
    # On a GPU the second run with an N is a replay, of other numbers.
    for batch, number in ((1, 1), (1, 64), (3, 5), (1, 64)):
        given = inputs(theirs, batch, number)
        given = (given[0] + number, given[1])
        for one, other in zip(ours.run(*given), theirs.run(*given), strict=True):
            assert one.dtype == other.dtype == np.float32
            assert one.shape == other.shape
            assert np.abs(one - other).max() < TOLERANCE


@pytest.mark.parametrize('device', DEVICES)
def test_policy_chooses_the_same_action_except_at_ties(device):
    ours = Policy(DEFAULT_POLICY, backend='torch', device=device)
    theirs = Policy(DEFAULT_POLICY)
    assert ours.provider.startswith('torch') and ours.notes[0] == ours.provider
    assert (ours.spec, ours.provenance, ours.digest) == (
        theirs.spec, theirs.provenance, theirs.digest)
    generator = np.random.default_rng(0)
    for tick_ns in range(50):
        observation = generator.uniform(0, 20, theirs.spec.observation_size).astype(np.float32)
        one, other = (policy.decide(observation, tick_ns, 0, 64) for policy in (ours, theirs))
        assert np.abs(one.candidates - other.candidates).max() < TOLERANCE
        largest = np.sort(other.candidate_q)[-2:]
        if np.ptp(largest) > TOLERANCE * np.abs(largest).max():
            assert one.candidate_q.argmax() == other.candidate_q.argmax()
            assert np.abs(one.action - other.action).max() < TOLERANCE


def test_mish_is_one_operator_where_the_five_nodes_are_its_own():
    nodes = list(onnx.load_model_from_string(graph()).graph.node)
    kinds = [node.op_type for node in torch_session._with_mish(list(nodes))]
    assert kinds.count('MishOfNegative') == 5 * (2 + 1)  # steps, blocks and the last layer
    assert 'HardSigmoid' not in kinds
    for node in nodes:
        if node.op_type == 'HardSigmoid':
            node.attribute[0].f = 0.4
    others = torch_session._with_mish(list(nodes))
    assert [node.op_type for node in others] == [node.op_type for node in nodes]


def test_operator_that_no_float32_file_has_is_named():
    with pytest.raises(SessionError, match='found the operators Cast, DynamicQuantizeLinear, '
                                           'MatMulInteger; use backend onnxruntime'):
        TorchSession(graph(int8_product))


def with_node(kind, inputs, constants, **attributes):
    """Return a file whose q is first changed by a node that reads it and constants."""
    model = onnx.load_model_from_string(graph())
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ['inner' if name == 'q' else name for name in names]
    for name, value in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), name))
    model.graph.node.append(onnx.helper.make_node(kind, inputs, ['q'], **attributes))
    return model.SerializeToString()


@pytest.mark.parametrize(('content', 'reason'), [
    # ONNX keeps the dimension of a list of indices; select does not.
    (with_node('Gather', ['inner', 'i'], {'i': [0]}, axis=1), 'expected Gather with one index'),
    # In ONNX a size of 0 is the size that was there before.
    (with_node('Reshape', ['inner', 's'], {'s': [0, -1]}), 'Reshape to sizes that are not 0'),
    # In ONNX whole numbers are divided into whole numbers.
    (with_node('Div', ['a', 'b'], {'a': [[7]], 'b': [[2]]}), 'expected Div of float32'),
    (with_node('LayerNormalization', ['inner', 's', 'b'],
               {'s': np.ones((1, 1), np.float32), 'b': np.zeros((1, 1), np.float32)}, axis=0,
               epsilon=1e-5), 'LayerNormalization over the last axis'),
])
def test_operator_as_no_export_writes_it_is_refused_not_computed_otherwise(content, reason):
    with pytest.raises(SessionError, match=f'backend torch cannot run it: .*{reason}'):
        TorchSession(content)


@pytest.mark.parametrize('at', [64, 32, 16, 8])
@pytest.mark.parametrize('which', range(3))
def test_answers_that_are_not_the_cpus_with_one_n_are_refused(monkeypatch, at, which):
    vetted = vet(DEFAULT_POLICY, candidates=[64], deadline_s=0.1)
    assert Policy(DEFAULT_POLICY, vetted=vetted, backend='torch').provider.startswith('torch')
    right = TorchSession.run

    def wrong(self, observations, noise):
        found = right(self, observations, noise)
        if noise.shape[2] == at:
            # Actions have a range of 2; Q and V are above 1.
            found[which] = found[which] * (1 + 1e-3) + 1e-3
        return found

    monkeypatch.setattr(TorchSession, 'run', wrong)
    with pytest.raises(PolicyError, match=f'torch .*: expected the answers of ONNX Runtime on the '
                                          f'CPU within 0.0002 .* with {at} candidates; use'):
        Policy(DEFAULT_POLICY, vetted=vetted, backend='torch')


@pytest.mark.parametrize('content', [b'no graph', graph()[:2000]])
def test_what_is_no_graph_is_refused_in_one_line(content):
    with pytest.raises(SessionError, match='not an ONNX file that onnx') as refusal:
        TorchSession(content)
    assert '\n' not in str(refusal.value)


def test_graph_that_fails_is_refused_before_a_robot_needs_it():
    model = onnx.load_model_from_string(graph())
    bias = next(t for t in model.graph.initializer if list(t.dims) == [128])
    bias.CopyFrom(onnx.numpy_helper.from_array(np.zeros(127, np.float32), bias.name))
    with pytest.raises(SessionError, match='backend torch cannot run it: ') as refusal:
        TorchSession(model.SerializeToString())
    assert '\n' not in str(refusal.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_gpu_that_is_not_there_is_noted_and_the_cpu_used():
    session = open_session(graph(), backend='torch', device='cuda')
    assert session.provider == f'torch {torch.__version__} on cpu' == session.notes[0]
    assert session.notes[1].startswith('not CUDA: ')
    assert open_session(graph(), backend='torch', device='cpu').notes == session.notes[:1]
