"""int8 weights compute what they should, and are written only where a policy is as good."""

import json

import numpy as np
import onnx
from onnx import helper, TensorProto
import onnxruntime
import pytest
import torch

gymnasium = pytest.importorskip('gymnasium', reason='gymnasium is not installed')
pytest.importorskip('tyro', reason='tyro is not installed')
from idql_ros.policy import METADATA_KEY, Policy  # noqa: E402
from idql_ros.simulated_robot import plain_spec  # noqa: E402
from training import export as exporting  # noqa: E402
from training import quantise  # noqa: E402
from training.export import export, ExportError  # noqa: E402
from training.idql import IDQL, IDQLConfig  # noqa: E402
from training.policy_graph import (  # noqa: E402
    float_product,
    IR_VERSION,
    Nodes,
    OPSET,
    policy_graph,
)
from training.quantise import difference, int8_product  # noqa: E402


class Push(gymnasium.Env):
    """Three steps, each rewarded by its action: the more the better."""

    metadata = {'render_fps': 10}
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        """Begin anew."""
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.uniform(-1, 1, 2), {}

    def step(self, action):
        """Take an action."""
        self.steps += 1
        end = self.steps == 3
        return self.np_random.uniform(-1, 1, 2), float(action[0]), False, end, {'success': end}


ENVIRONMENT = f'{__name__}:Push'


def learner():
    """Return a learner whose actions come from the blocks: all at the upper limit."""
    torch.manual_seed(0)
    idql = IDQL(IDQLConfig(actor_width=16, actor_blocks=1, time_features=(8, 16), candidates=4,
                           critic_hidden=(16,), value_hidden=(16,), diffusion_steps=3),
                torch.zeros(2), torch.ones(2), torch.zeros(1), torch.ones(1))
    with torch.no_grad():
        idql.averaged_actor.blocks[0].contract.bias.fill_(5.0)
        idql.averaged_actor.output.weight.fill_(-0.2)
    return idql.eval()


def run(product, x, weight, bias):
    """Return what a product gives."""
    nodes = Nodes()
    y = product(nodes, 'x', weight, bias)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ['M', None])
              for name in ('x', y)]
    model = helper.make_model(
        helper.make_graph(nodes.nodes, 'product', values[:1], values[1:], nodes.constants),
        opset_imports=[helper.make_opsetid('', OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=['CPUExecutionProvider'])
    return session.run(None, {'x': x})[0]


def test_int8_product_differs_by_no_more_than_its_roundings():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 256)).astype(np.float32)
    weight, bias = (rng.normal(size=size).astype(np.float32) for size in ((256, 48), (48,)))
    weight[:, 3] = 0  # no scale
    weight[:, 5] *= 1000  # a scale of its own
    found, exact = (run(product, x, weight, bias) for product in (int8_product, float_product))
    # Half a step of each factor, times the other factor, summed over the inputs.
    half_x, half_weight = np.ptp(x) / 255 / 2, np.abs(weight).max(0) / 63 / 2
    bound = (half_x * np.abs(weight).sum(0)
             + half_weight * (np.abs(x).sum(1)[:, None] + 256 * half_x))
    assert (np.abs(found - exact) <= bound + 1e-3).all()
    assert np.abs(found - exact)[:, 5].max() > 0
    assert np.array_equal(found[:, 3], exact[:, 3])


def test_whole_numbers_do_not_overflow_sixteen_bits_anywhere():
    # The worst pair of products: processors without VNNI add two of them in 16 bits.
    assert 2 * 255 * quantise._LARGEST <= 2**15 - 1
    x = np.full((4, 64), 1.0, np.float32)
    x[:, 0] = 0
    weight, bias = np.full((64, 16), 0.5, np.float32), np.zeros(16, np.float32)
    assert run(int8_product, x, weight, bias) == pytest.approx(63 * 0.5, abs=1e-4)


def test_difference_is_that_of_pairs():
    rng = np.random.default_rng(0)
    base = rng.normal(0, 100, 200)
    score = difference('return', base, base - 0.1 + rng.normal(0, 0.1, 200))
    # Between the episodes are differences 1000 times as large.
    assert score.worse and -0.15 < score.low < -0.1 < score.high < -0.05
    assert score.high - score.low == pytest.approx(2 * 1.972 * 0.1 / np.sqrt(200), rel=0.2)


@pytest.mark.parametrize(('change', 'worse'), [
    ([0.0] * 200, False), ([-1.0] * 200, True), ([1.0] * 200, False),
    ([-1.0] * 2 + [0.0] * 198, False), ([-1.0] * 10 + [0.0] * 190, True),
    ([-1.0] * 10 + [1.0] * 10 + [0.0] * 180, False), ([float('nan')] * 200, True)])
def test_worse_is_what_chance_does_not_explain(change, worse):
    assert difference('success', np.zeros(200), np.array(change)).worse is worse


def test_file_with_int8_weights_is_written_with_the_comparison_in_it(tmp_path, monkeypatch):
    monkeypatch.setattr(quantise, 'EPISODES', 6)
    spec = plain_spec(ENVIRONMENT).to_json()
    report = export(learner(), spec, {'dataset': 'a-v0'}, tmp_path / 'p.onnx', samples=4,
                    int8=ENVIRONMENT)
    assert 'return 3 in float32, 3 in int8: difference 0 [0, 0]' in str(report)
    policy = Policy(tmp_path / 'p.onnx')
    assert policy.provenance['dataset'] == 'a-v0'
    assert policy.provenance['int8']['environment'] == ENVIRONMENT
    model = onnx.load(tmp_path / 'p.onnx')
    content = json.loads({p.key: p.value for p in model.metadata_props}[METADATA_KEY])
    assert content['model']['weights'] == 'int8'
    integers = [node for node in model.graph.node if node.op_type == 'MatMulInteger']
    assert len(integers) == 3 * 2  # steps, products of the block


def test_int8_weights_that_are_worse_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(quantise, 'EPISODES', 6)

    def the_other_way(nodes, x, weight, bias):
        return int8_product(nodes, x, -weight, -bias)

    monkeypatch.setattr(exporting, 'int8_product', the_other_way)
    with pytest.raises(ExportError, match=r'(?s)return 3 in float32.*worse; no file written'):
        export(learner(), plain_spec(ENVIRONMENT).to_json(), {}, tmp_path / 'p.onnx', samples=4,
               int8=ENVIRONMENT)
    assert not list(tmp_path.iterdir())


def test_verdict_does_not_depend_on_how_many_robots_are_simulated_at_a_time(
        tmp_path, monkeypatch):
    monkeypatch.setattr(quantise, 'EPISODES', 6)
    idql = learner()
    with torch.no_grad():
        # What the block's products make decides where within its limits an action is.
        idql.averaged_actor.blocks[0].contract.weight.normal_(0, 0.5)
        idql.averaged_actor.output.weight.normal_(0, 0.05)
    export(idql, plain_spec(ENVIRONMENT).to_json(), {}, tmp_path / 'float32.onnx', samples=4)
    model = policy_graph(idql, int8_product)
    entry, = onnx.load(tmp_path / 'float32.onnx').metadata_props
    helper.set_model_props(model, {entry.key: entry.value})
    onnx.save(model, tmp_path / 'int8.onnx')
    found = []
    for cores in (1, 3):
        monkeypatch.setattr(quantise.os, 'cpu_count', lambda cores=cores: cores)
        found.append(quantise.compare_in(
            ENVIRONMENT, Policy(tmp_path / 'float32.onnx'), Policy(tmp_path / 'int8.onnx'),
            np.ones(1)))
    assert found[0] == found[1]
    assert found[0].candidates_difference > 0


def test_distance_of_a_policy_from_itself_is_none_and_from_another_draw_is_what_n_can_tell(
        tmp_path):
    idql = learner()
    with torch.no_grad():
        idql.averaged_actor.blocks[0].contract.bias.fill_(0.0)
        idql.averaged_actor.output.weight.fill_(0.0)  # candidates are noise, not at a limit
    export(idql, plain_spec(ENVIRONMENT).to_json(), {}, tmp_path / 'p.onnx', samples=4)
    policy = Policy(tmp_path / 'p.onnx')
    observations = np.random.default_rng(0).uniform(-1, 1, (20, 2)).astype(np.float32)
    apart, distance, of_draws, same = quantise._actions(
        policy, policy, observations, np.ones(1), 0)
    assert (apart, distance, same) == (0.0, (0.0,), 1.0)
    assert 0.1 < of_draws[0] < 1
