"""The policy file: noise and decisions that a seed fixes, and files that are refused."""

import hashlib
import json
from pathlib import Path
import re
import subprocess
import sys

from idql_ros import policy as policies
from idql_ros import spec as specs
from idql_ros.policy import (
    choose,
    Decision,
    draw_noise,
    draw_uniform,
    implicit_weights,
    Policy,
    PolicyError,
    softmax_weights,
)
from idql_ros.value_guard import VALUE_NAMES
import numpy as np
import pytest

pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')

ROOT = Path(__file__).parents[1]
DEFAULT = ROOT / 'config' / 'policies' / 'pointmaze_medium.onnx'
OBSERVATION = np.array([2.0, 3.0], np.float32)
SHAPE = {'steps': 5, 'candidates': 32, 'action_size': 2}
LOSSES = [('expectile', 0.7), ('expectile', 0.95), ('quantile', 0.75), ('exponential', 1.0),
          ('exponential', 3.0)]


@pytest.fixture(scope='module')
def policy():
    return Policy(DEFAULT)


def refusal(path):
    """Return the text that refuses a file, without the file's name before it."""
    with pytest.raises(PolicyError) as refused:
        Policy(path)
    text = str(refused.value)
    assert text.startswith(f'{path}: ') and '\n' not in text
    return text.removeprefix(f'{path}: ')


def changed(path, change):
    """Write the default policy with its metadata, a dictionary, changed by a function."""
    onnx = pytest.importorskip('onnx', reason='onnx is not installed')
    model = onnx.load(DEFAULT)
    entry, = (entry for entry in model.metadata_props if entry.key == policies.METADATA_KEY)
    metadata = json.loads(entry.value)
    result = change(metadata)
    entry.value = result if isinstance(result, str) else json.dumps(metadata)
    onnx.save(model, path)
    return path


def with_output(path, output, operator, first, second, **attributes):
    """Write the default policy with an output of its graph replaced.

    Args:
        path: Where to write it.
        output: Which.
        operator: What makes it instead, of two inputs.
        first: Name of the first, 'inner' for the output as it was.
        second: The second, a constant.
        **attributes: Of the operator.
    """
    onnx = pytest.importorskip('onnx', reason='onnx is not installed')
    model = onnx.load(DEFAULT)
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ['inner' if name == output else name for name in names]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(second), 'second'))
    model.graph.node.append(
        onnx.helper.make_node(operator, [first, 'second'], [output], **attributes))
    onnx.save(model, path)
    return path


def test_noise_is_a_pure_function_of_seed_and_tick():
    noise = draw_noise(3, 5 * 10**17, **SHAPE)
    assert noise.shape == (1, 5, 32, 2) and noise.dtype == np.float32
    draw_noise(4, 1, **SHAPE)
    np.random.default_rng(0).normal(size=7)
    assert np.array_equal(draw_noise(3, 5 * 10**17, **SHAPE), noise)


def test_noise_is_the_same_in_another_process():
    code = ('from idql_ros.policy import draw_noise; import sys; '
            'sys.stdout.buffer.write(draw_noise(7, 101 * 10**9, 5, 32, 2).tobytes())')
    found = subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, capture_output=True)
    assert np.array_equal(
        np.frombuffer(found.stdout, np.float32), draw_noise(7, 101 * 10**9, **SHAPE).ravel())


def test_noise_is_the_noise_that_earlier_releases_drew():
    # Another generator or layout would change every action of every policy file.
    assert draw_noise(1, 2, 1, 2, 2).ravel().tolist() == pytest.approx(
        [0.0196245, -0.6034775, 0.3588537, 1.8450409], abs=1e-6)


def test_noise_differs_across_ticks_and_seeds_and_repeats_in_neither():
    numbers = np.concatenate([
        draw_noise(seed, tick_ns, **SHAPE).ravel()
        for seed in (0, 1, 2**64 - 1) for tick_ns in (0, 1, 2, 10**9, 2**63 - 1)])
    # 320 numbers each; shifted copies of one stream would share most of theirs.
    assert len(np.unique(numbers)) > 0.99 * len(numbers)
    assert abs(numbers.mean()) < 0.05 and abs(numbers.std() - 1) < 0.05


def test_decision_is_fixed_by_observation_tick_and_seed(policy):
    other = Policy(DEFAULT)
    for tick_ns in (0, 101 * 10**9):
        first = policy.decide(OBSERVATION, tick_ns, 0, 32)
        for opened in (policy, other):
            again = opened.decide(OBSERVATION, tick_ns, 0, 32)
            assert np.array_equal(again.candidates, first.candidates)
            assert np.array_equal(again.action, first.action)
            assert (again.q, again.v) == (first.q, first.v)
    different = [policy.decide(OBSERVATION, 1, 0, 32), policy.decide(OBSERVATION, 0, 1, 32),
                 policy.decide(OBSERVATION + 1, 0, 0, 32)]
    first = policy.decide(OBSERVATION, 0, 0, 32)
    assert not any(np.array_equal(d.candidates, first.candidates) for d in different)


def test_action_is_the_candidate_with_the_largest_q(policy):
    for tick_ns in range(20):
        decision = policy.decide(OBSERVATION, tick_ns, 0, 32)
        best = int(np.argmax(decision.candidate_q))
        assert decision.q == decision.candidate_q.max() > decision.candidate_q.min()
        assert np.array_equal(decision.action, decision.candidates[best])


@pytest.mark.parametrize('candidates', [1, 2, 100])
def test_number_of_candidates_is_free(policy, candidates):
    decision = policy.decide(OBSERVATION, 0, 0, candidates)
    assert decision.candidates.shape == (candidates, 2)
    assert decision.candidate_q.shape == (candidates,)
    assert decision.action.shape == (2,) and decision.action.dtype == np.float32


def test_actions_are_within_the_limits_of_the_spec(policy):
    rng = np.random.default_rng(0)
    lower = [d.lower for d in policy.spec.dimensions]
    upper = [d.upper for d in policy.spec.dimensions]
    for tick_ns in range(20):
        decision = policy.decide(rng.normal(10, 20, 2).astype(np.float32), tick_ns, 0, 32)
        assert np.all(decision.candidates >= lower) and np.all(decision.candidates <= upper)


def test_default_policy_is_that_of_its_robot_and_says_where_it_comes_from(policy):
    assert policies.default_path() == DEFAULT
    assert policy.spec == specs.load(ROOT / 'config' / 'robots' / 'pointmaze_medium.yaml')
    assert policy.candidates >= 1
    assert policy.provenance
    assert DEFAULT.stat().st_size < 2 * 2**20


@pytest.mark.parametrize('path', sorted(DEFAULT.parent.glob('*.onnx')), ids=lambda p: p.stem)
def test_installed_policies_are_those_of_their_robots_and_small(path):
    opened = Policy(path)
    assert opened.spec == specs.load(ROOT / 'config' / 'robots' / f'{path.stem}.yaml')
    assert opened.provenance['dataset'] and opened.provenance['updates'] > 0
    assert path.stat().st_size <= 8 * 10**6


def test_default_policy_is_loadable_by_older_onnx_runtimes():
    onnx = pytest.importorskip('onnx', reason='onnx is not installed')
    model = onnx.load(DEFAULT)
    assert model.ir_version <= 9
    (opset,) = model.opset_import
    assert opset.domain in ('', 'ai.onnx') and opset.version <= 17


def test_file_that_cannot_be_read_is_refused(tmp_path):
    assert refusal(tmp_path / 'none.onnx').startswith('cannot be read: No such file')
    assert refusal(tmp_path).startswith('cannot be read: Is a directory')


@pytest.mark.parametrize('share', [0.0, 0.0001, 0.1, 0.5, 0.9, 0.999])
def test_truncated_file_is_refused(tmp_path, share):
    content = DEFAULT.read_bytes()
    path = tmp_path / 'cut.onnx'
    path.write_bytes(content[:int(share * len(content))])
    refusal(path)


@pytest.mark.parametrize('content', [
    b'\n', b'name: robot', b'PK\x03\x04' + bytes(1000), bytes(4096)])
def test_file_that_is_not_onnx_is_refused(tmp_path, content):
    path = tmp_path / 'robot.onnx'
    path.write_bytes(content)
    refusal(path)


def test_onnx_file_without_metadata_is_refused(tmp_path):
    onnx = pytest.importorskip('onnx', reason='onnx is not installed')
    model = onnx.load(DEFAULT)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / 'bare.onnx')
    assert 'but no policy: expected the metadata idql_ros' in refusal(tmp_path / 'bare.onnx')


def nested(levels):
    """Return lists within each other."""
    return [] if levels == 1 else [nested(levels - 1)]


@pytest.mark.parametrize(('change', 'reason'), [
    (lambda m: 'no JSON', 'metadata idql_ros: expected JSON'),
    (lambda m: '[' * 10**5, 'metadata idql_ros: expected JSON'),
    (lambda m: '[]', 'format_version: expected 1'),
    (lambda m: m.pop('format_version') and None, 'found None'),
    (lambda m: m.update(format_version=2), 'format_version: expected 1, .* found 2'),
    (lambda m: m['spec'].update(spec_version=2), 'spec: spec_version: expected 1 .* found 2'),
    (lambda m: m.pop('spec') and None, 'spec: top level: expected a mapping, found nothing'),
    (lambda m: m['spec']['actions'][0]['dimensions'][0].update(stop='hold'), 'spec: .*stop'),
    (lambda m: m.pop('model') and None, 'model.observation_size: expected a whole number'),
    (lambda m: m['model'].update(observation_size=3), 'model.observation_size: expected 2 .* 3'),
    (lambda m: m['model'].update(action_size=1), 'model.action_size: expected 2 .* found 1'),
    (lambda m: m['model'].update(diffusion_steps=7), 'graph: expected inputs and outputs'),
    (lambda m: m['model'].pop('critic_loss') and None,
     'model.critic_loss: expected expectile, quantile, exponential, found None'),
    (lambda m: m['model'].update(critic_loss='huber'), "model.critic_loss: .* found 'huber'"),
    (lambda m: m['model'].update(critic_loss=['expectile']), 'model.critic_loss: .* found '),
    (lambda m: m['model'].update(critic_parameter=1.0),
     'model.critic_parameter: expected a number above 0 and below 1 for expectile, found 1.0'),
    (lambda m: m['model'].update(critic_parameter=True), 'model.critic_parameter: .* found True'),
    (lambda m: m['model'].update(critic_parameter=float('nan')), 'found NaN, which is no JSON'),
    (lambda m: m['model'].update(candidates=True), 'model.candidates: .* found True'),
    (lambda m: m['model'].update(critic_loss='exponential', critic_parameter=10**400),
     'model.critic_parameter: .* for exponential'),
    (lambda m: m['model'].update(candidates=0), 'model.candidates: expected a whole number'),
    (lambda m: m['model'].update(candidates=10**6), 'model.candidates: expected at most 65536'),
    (lambda m: m.update(provenance=['a']), 'provenance: expected a mapping, found a list'),
    (lambda m: m.update(provenance={'a': 'b' * 2**16}),
     'provenance: expected at most 32 levels and 65536 characters as JSON, found 65545 char'),
    (lambda m: m.update(provenance={'a': nested(32)}), 'at most 32 levels .* found more levels'),
    (lambda m: m.update(provenance={'a': nested(900)}), 'at most 32 levels .* found more levels'),
    (lambda m: m['model'].update(candidates='32'), 'model.candidates: expected a whole number'),
    # The whole spec asks for three numbers where the graph takes two.
    (lambda m: (m['spec']['observations'][0]['fields'].append('pose.pose.position.z'),
                m['model'].update(observation_size=3)), 'graph: expected inputs and outputs'),
])
def test_file_that_disagrees_with_itself_or_with_this_release_is_refused(tmp_path, change, reason):
    text = refusal(changed(tmp_path / 'changed.onnx', change))
    assert re.search(reason, text), text


@pytest.mark.parametrize('kind', ['int64', 'float64'])
def test_graph_of_other_inputs_is_refused_when_opened_not_when_asked(tmp_path, kind):
    onnx = pytest.importorskip('onnx', reason='onnx is not installed')
    model = onnx.load(DEFAULT)
    names = [value.name for value in model.graph.input]
    element = {'int64': onnx.TensorProto.INT64, 'float64': onnx.TensorProto.DOUBLE}[kind]
    # A cast before the graph: valid ONNX, of the right sizes, that takes what nobody sends.
    value = model.graph.input[names.index('observations')]
    for node in model.graph.node:
        node.input[:] = ['cast' if name == 'observations' else name for name in node.input]
    value.type.tensor_type.elem_type = element
    model.graph.node.insert(0, onnx.helper.make_node(
        'Cast', ['observations'], ['cast'], to=onnx.TensorProto.FLOAT))
    onnx.save(model, tmp_path / 'cast.onnx')
    assert 'graph: expected' in refusal(tmp_path / 'cast.onnx')


STATISTICS = {
    'prototypes': [[2.0, 3.0], [5.0, 7.0]], 'scale': [0.5, 2.0], 'distance': [0, 0.3],
    'ranges': {'1': {'q': [-60.5, -0.1], 'advantage': [-1, 1], 'spread': [0, 0]},
               '8': {'q': [-50, 0.5], 'advantage': [-0.5, 2], 'spread': [0.25, 1]}}}


def test_distance_and_ranges_are_those_of_the_files_statistics(tmp_path, policy):
    path = changed(tmp_path / 'told.onnx', lambda m: m.update(statistics=STATISTICS))
    told = Policy(path)
    of_8 = {'q': (-50, 0.5), 'advantage': (-0.5, 2), 'spread': (0.25, 1), 'distance': (0, 0.3)}
    assert told.value_ranges_for(8) == told.value_ranges_for(64) == of_8
    # Of what lies between, nothing is left out that is usual for more or for fewer.
    assert told.value_ranges_for(4) == {
        'q': (-60.5, 0.5), 'advantage': (-1, 2), 'spread': (0, 1), 'distance': (0, 0.3)}
    for other in (('implicit', 1.0), ('softmax', 1.0), ('greedy', 0.5)):
        assert told.value_ranges_for(8, *other) == {'distance': (0, 0.3)}
    decisions = told.decide_batch(
        np.float32([[2, 3], [2.5, 3], [5, 9], [4.5, 6]]), range(4), 0, 8)
    assert [decision.distance for decision in decisions] == pytest.approx(
        [0, 0.5**0.5, 0.5**0.5, (0.5 * (1 + 0.5**2))**0.5], abs=1e-9)
    # Statistics decide nothing.
    assert np.array_equal(told.decide(OBSERVATION, 3, 0, 8).candidates,
                          policy.decide(OBSERVATION, 3, 0, 8).candidates)


def test_file_without_statistics_knows_no_distance_and_no_ranges(tmp_path):
    silent = Policy(changed(
        tmp_path / 'silent.onnx', lambda m: m.pop('statistics', None) and None))
    assert silent.value_ranges_for(32) == {}
    assert np.isnan(silent.decide(OBSERVATION, 0, 0, 2).values['distance'])


@pytest.mark.parametrize(('broken', 'reason'), [
    ({'scale': [1.0, 0.0]}, 'statistics.scale: expected numbers from'),
    ({'prototypes': [[1.0]]}, 'statistics.prototypes: expected 1 to 512 observations of 2'),
    ({'ranges': {}}, 'statistics.ranges: expected those of'),
])
def test_broken_statistics_are_refused(tmp_path, broken, reason):
    text = refusal(changed(
        tmp_path / 'broken.onnx', lambda m: m.update(statistics=STATISTICS | broken)))
    assert text.startswith(reason)


@pytest.mark.filterwarnings('error')
def test_values_are_those_of_the_chosen_candidate_and_of_all():
    q = np.float32([1, 3, 5])
    decision = Decision(np.zeros(2, np.float32), 5.0, 4.5, np.zeros((3, 2)), q, 0.25)
    assert decision.values == {
        'q': 5.0, 'advantage': 0.5, 'spread': pytest.approx((8 / 3)**0.5), 'distance': 0.25}
    assert tuple(decision.values) == VALUE_NAMES
    assert decision.q_mean == 3.0
    broken = Decision(np.zeros(2), np.inf, np.inf, np.zeros((3, 2)), np.float32([1, np.inf, 2]))
    assert np.isnan([broken.advantage, broken.q_spread, broken.distance]).all()
    largest = np.float32([-3e38, 3e38])
    assert Decision(q[:0], 0.0, 0.0, q[:0], largest).q_spread == pytest.approx(3e38)


def test_digest_is_that_of_the_file(policy):
    assert policy.digest == hashlib.sha256(DEFAULT.read_bytes()).hexdigest()


def f(u, loss, parameter):
    """Return the critic's loss as the paper writes it, the exponential's cut slope included."""
    if loss == 'expectile':
        return np.abs(parameter - (u < 0)) * u**2
    if loss == 'quantile':
        return np.abs(parameter - (u < 0)) * np.abs(u)
    end = np.log(6) / parameter  # beyond it the slope stays 5 alpha
    inside = np.minimum(u, end)
    return (np.exp(parameter * inside) - parameter * inside
            + 5 * parameter * np.maximum(u - end, 0))


@pytest.mark.parametrize(('loss', 'parameter'), LOSSES)
def test_implicit_weight_is_the_derivative_of_the_loss_over_the_advantage(loss, parameter):
    u = np.concatenate([-np.geomspace(1e-2, 20, 50), np.geomspace(1e-2, 20, 50)])
    step = 1e-6
    slope = (f(u + step, loss, parameter) - f(u - step, loss, parameter)) / (2 * step)
    expected = np.abs(slope) / np.abs(u)
    if loss == 'expectile':
        expected /= 2  # a factor for all candidates, which w leaves out
    assert implicit_weights(u, loss, parameter) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(('loss', 'parameter', 'expected'), [
    ('expectile', 0.7, [0.3, 0.3, 0.7, 0.3, 0.7, 0.3, 0.7]),
    ('quantile', 0.8, [0.2e6, 0.2e6, 0.8e6, 0.2, 0.8, 2e-11, 8e-11]),
    ('exponential', 2.0, [4, 4, 4, 2 * (1 - np.exp(-2)), 10, 2e-10, 1e-9]),
])
def test_implicit_weight_has_its_known_values(loss, parameter, expected):
    u = np.array([0.0, -1e-14, 1e-14, -1.0, 1.0, -1e10, 1e10])
    assert implicit_weights(u, loss, parameter) == pytest.approx(np.array(expected), rel=1e-9)


@pytest.mark.parametrize(('loss', 'parameter'), LOSSES)
@pytest.mark.filterwarnings('error')
def test_implicit_weight_is_finite_and_float64_everywhere(loss, parameter):
    u = np.concatenate([[0.0], *(
        sign * np.array([5e-324, 1e-300, 1e-9, 1.0, 700.0, 1e38, 1e308]) for sign in (1, -1))])
    for given in (u, u.astype(np.longdouble).astype(np.float64), np.float32([0, 1e-40, -3e38])):
        weights = implicit_weights(given, loss, parameter)
        assert weights.dtype == np.float64 and weights.shape == given.shape
        assert np.isfinite(weights).all() and (weights >= 0).all()


@pytest.mark.parametrize('alpha', [0.1, 1.0, 30.0])
def test_exponential_weight_is_smooth_through_zero(alpha):
    u = np.concatenate([[0.0], np.geomspace(1e-18, 1e-3, 2000)]) / alpha
    for sign in (1, -1):
        x = alpha * sign * u
        expected = alpha**2 * (1 + x / 2 + x**2 / 6 + x**3 / 24)
        assert implicit_weights(sign * u, 'exponential', alpha) == pytest.approx(
            expected, rel=1e-12)


def value_of(q, mu, loss, parameter):
    """Return V that minimises E_mu[f(Q - V)]; in the middle where several do."""
    def slope(v):
        step = 1e-7
        return mu @ (f(q - v - step, loss, parameter) - f(q - v + step, loss, parameter))

    ends = []
    for beyond in (lambda s: s > -1e-12, lambda s: s > 1e-12):  # where it stops to fall, and rises
        low, high = q.min(), q.max()
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if beyond(slope(middle)) else (middle, high)
        ends.append((low + high) / 2)
    return sum(ends) / 2


# Shares that add up to exactly 0.75 below the best two: the quantile lies between two actions, not
# on one that would then outweigh all others.
MU = np.array([4, 2, 3, 3, 1, 3]) / 16
Q = np.array([0.4, -2.0, 1.0, 0.1, 3.0, 1.7])


@pytest.mark.parametrize(('loss', 'parameter'), LOSSES)
def test_value_is_what_the_implicit_policy_attains(loss, parameter):
    v = value_of(Q, MU, loss, parameter)
    weights = MU * implicit_weights(Q - v, loss, parameter)
    assert weights @ Q / weights.sum() == pytest.approx(v, abs=1e-5)
    assert v > MU @ Q  # better than the behaviour


@pytest.mark.parametrize(('loss', 'parameter'), LOSSES)
def test_implicit_actions_are_those_of_the_implicit_policy_as_candidates_grow(loss, parameter):
    v = value_of(Q, MU, loss, parameter)
    expected = MU * implicit_weights(Q - v, loss, parameter)
    expected /= expected.sum()
    rng = np.random.default_rng(0)
    distances = []
    draws = 6000
    for candidates in (1, 8, 64, 512):
        actions = rng.choice(len(MU), (draws, candidates), p=MU)
        taken = np.array([
            row[choose(Q[row], v, 'implicit', uniform=uniform, critic_loss=loss,
                       critic_parameter=parameter)]
            for row, uniform in zip(actions, rng.random(draws), strict=True)])
        found = np.bincount(taken, minlength=len(MU)) / draws
        distances.append(0.5 * np.abs(found - expected).sum())  # total variation
    # 6000 draws of 6 actions: chance alone gives about 0.01, and 0.025 practically never.
    assert distances[0] == pytest.approx(0.5 * np.abs(MU - expected).sum(), abs=0.025)
    assert distances[0] > distances[1] > distances[2] > distances[3] - 0.01
    # The bias of few candidates falls as 1 / N.
    assert distances[2] < 0.05 and distances[3] < 0.025


def test_softmax_weights_are_stable_and_leave_v_out():
    q = np.float32([1.0, 3.0, 2.0])
    expected = np.exp([-1.0, 0.0, -0.5])
    assert softmax_weights(q, 0.5) == pytest.approx(expected, rel=1e-12)
    assert softmax_weights(q + 1000, 0.5) == pytest.approx(expected, rel=1e-12)
    assert softmax_weights(q, 0.0).tolist() == [1, 1, 1]
    with np.errstate(all='raise', under='ignore'):
        assert softmax_weights(np.float32([-3e38, 3e38]), 1e6).tolist() == [0, 1]
        assert softmax_weights(np.float32([-3e38, 3e38]), 0.0).tolist() == [1, 1]


def test_softmax_actions_have_the_frequencies_of_their_weights():
    uniforms = (np.arange(4000) + 0.5) / 4000
    taken = [choose(Q, 5.0, 'softmax', uniform=x, temperature=1.5) for x in uniforms]
    expected = np.exp(1.5 * Q) / np.exp(1.5 * Q).sum()
    assert np.bincount(taken, minlength=len(Q)) / 4000 == pytest.approx(expected, abs=1 / 2000)


def test_drawn_candidate_is_never_one_of_no_weight_nor_beyond_the_last():
    q = np.array([-1e5, 0.0, -1e5, 0.0, -1e5])
    for uniform in (0.0, 0.499, 0.5, 0.501, 1 - 2.0**-53):
        chosen = choose(q, 0.0, 'softmax', uniform=uniform, temperature=1.0)
        assert chosen == (1 if uniform < 0.5 else 3)
    assert choose(q[:1], 0.0, 'implicit', uniform=1 - 2.0**-53) == 0


def test_greedy_takes_the_first_largest_q_whatever_the_draw():
    for uniform in (0.0, 0.9):
        assert choose(np.float32([1, 3, 3, 2]), 0.0, uniform=uniform) == 1


@pytest.mark.parametrize('extraction', ['greedy', 'implicit', 'softmax'])
@pytest.mark.parametrize('broken', [np.nan, np.inf])
def test_a_q_that_is_not_finite_is_not_hidden_by_a_draw(extraction, broken):
    q = np.float32([1, 2, broken, 0])
    assert choose(q, 0.0, extraction, uniform=0.1) == 2


@pytest.mark.parametrize('broken', [np.nan, np.inf, -np.inf])
def test_a_v_that_is_not_finite_lets_no_implicit_decision_pass(tmp_path, broken):
    path = with_output(tmp_path / 'broken.onnx', 'v', 'Add', 'inner', np.float32(broken))
    opened = Policy(path)
    decision = opened.decide(OBSERVATION, 0, 0, 3, extraction='implicit')
    assert np.isnan(decision.q) and not np.isfinite(decision.v)
    for extraction in ('softmax', 'greedy'):
        decision = opened.decide(OBSERVATION, 0, 0, 3, extraction=extraction)
        assert decision.q in decision.candidate_q and np.isfinite(decision.q)


def test_draw_is_a_pure_function_of_seed_and_tick_and_spread_evenly():
    numbers = np.array([draw_uniform(seed, tick_ns)
                        for seed in (0, 2**64 - 1) for tick_ns in range(0, 2000 * 10**8, 10**8)])
    assert draw_uniform(0, 10**8) == numbers[1]
    assert ((numbers >= 0) & (numbers < 1)).all() and len(np.unique(numbers)) == len(numbers)
    assert np.histogram(numbers, 10, (0, 1))[0] == pytest.approx(np.full(10, 400), abs=80)


def test_draw_shares_nothing_with_the_noise_of_its_tick():
    key = np.array([3, 0], np.uint64)
    of_noise = np.random.Philox(key=key, counter=np.array([0, 0, 77, 0], np.uint64)).random_raw(
        10**5)
    of_draw = np.random.Philox(key=key, counter=np.array([0, 0, 77, 1], np.uint64)).random_raw(4)
    assert draw_uniform(3, 77) == (int(of_draw[0]) >> 11) / 2**53
    assert not np.isin(of_draw, of_noise).any()


def test_extraction_changes_the_choice_and_not_the_candidates(policy):
    ticks = range(0, 40 * 10**8, 10**8)
    taken = {}
    for extraction in ('greedy', 'implicit', 'softmax'):
        decisions = [policy.decide(OBSERVATION, tick_ns, 0, 32, extraction=extraction)
                     for tick_ns in ticks]
        for decision, tick_ns in zip(decisions, ticks, strict=True):
            assert np.array_equal(
                decision.candidates, policy.decide(OBSERVATION, tick_ns, 0, 32).candidates)
            index = choose(
                decision.candidate_q, decision.v, extraction, uniform=draw_uniform(0, tick_ns),
                critic_loss=policy.critic_loss, critic_parameter=policy.critic_parameter)
            assert np.array_equal(decision.action, decision.candidates[index])
            assert decision.q == decision.candidate_q[index]
        taken[extraction] = np.mean([decision.q for decision in decisions])
    assert taken['greedy'] > taken['implicit'] and taken['greedy'] > taken['softmax']
    again = policy.decide(OBSERVATION, ticks[3], 0, 32, extraction='softmax', temperature=1e6)
    assert again.q == pytest.approx(again.candidate_q.max(), abs=1e-4)


def test_weights_are_those_of_the_loss_in_the_file(tmp_path, policy):
    assert (policy.critic_loss, policy.critic_parameter) == ('expectile', 0.9)
    path = changed(tmp_path / 'other.onnx', lambda m: m['model'].update(
        critic_loss='exponential', critic_parameter=40))
    other = Policy(path)
    assert (other.critic_loss, other.critic_parameter) == ('exponential', 40.0)
    decisions = [[p.decide(OBSERVATION, tick_ns, 0, 32, extraction='implicit')
                  for tick_ns in range(0, 30 * 10**8, 10**8)] for p in (policy, other)]
    assert any(not np.array_equal(a.action, b.action) for a, b in zip(*decisions, strict=True))


@pytest.mark.parametrize('step', range(SHAPE['steps']))
def test_sampling_temperature_scales_the_noise_of_the_steps_and_not_the_first(tmp_path, step):
    # Its candidates are the noise of one step, as the graph is given it.
    path = with_output(
        tmp_path / 'noise.onnx', 'candidates', 'Gather', 'noise', np.int64(step), axis=1)
    opened, (noise,) = Policy(path), draw_noise(3, 7, **SHAPE)
    for temperature in (1.0, 0.5, 0.0):
        found = opened.decide(OBSERVATION, 7, 3, 32, sampling_temperature=temperature).candidates
        assert np.array_equal(found, noise[step] * np.float32(temperature if step else 1.0))


@pytest.mark.parametrize('candidates', [1, 2, 33, 4096])
def test_decision_is_one_run_of_the_graph_with_the_noise_of_its_tick(policy, candidates):
    # To the bit: what is batched or split elsewhere leaves the robot's decisions as they were.
    noise = draw_noise(3, 7, 5, candidates, 2)
    (actions,), (q,), (v,) = policy._session.run(OBSERVATION[None], noise)
    found = policy.decide(OBSERVATION, 7, 3, candidates)
    assert np.array_equal(found.candidates, actions) and np.array_equal(found.candidate_q, q)
    assert np.array_equal(found.action, actions[np.argmax(q)])
    assert (found.q, found.v) == (q.max(), v)


@pytest.mark.parametrize('extraction', ['greedy', 'implicit', 'softmax'])
@pytest.mark.parametrize(('batch', 'candidates'), [(1, 8), (7, 1), (9, 32), (300, 32), (2, 5000)])
def test_batch_gives_each_observation_the_decision_that_it_has_alone(
        policy, extraction, batch, candidates):
    rng = np.random.default_rng(0)
    observations = rng.uniform(0, 20, (batch, 2)).astype(np.float32)
    ticks_ns = [int(tick) for tick in rng.integers(2**62, size=batch)]
    settings = {'extraction': extraction, 'temperature': 2.0, 'sampling_temperature': 0.8}
    decisions = policy.decide_batch(observations, ticks_ns, 3, candidates, **settings)
    assert len(decisions) == batch
    for k in {0, 1 % batch, batch // 2, batch - 1}:
        found = decisions[k]
        alone = policy.decide(observations[k], ticks_ns[k], 3, candidates, **settings)
        assert found.candidates.shape == (candidates, 2)
        assert found.candidates == pytest.approx(alone.candidates, abs=2e-4)
        assert found.candidate_q == pytest.approx(alone.candidate_q, abs=2e-4)
        assert (found.q, found.v) == pytest.approx((alone.q, alone.v), abs=2e-4)
        index = choose(
            found.candidate_q, found.v, extraction, uniform=draw_uniform(3, ticks_ns[k]),
            critic_loss=policy.critic_loss, critic_parameter=policy.critic_parameter,
            temperature=2.0)
        assert np.array_equal(found.action, found.candidates[index])
        assert found.q == found.candidate_q[index]


def test_empty_batch_has_no_decisions(policy):
    assert policy.decide_batch(np.zeros((0, 2), np.float32), [], 0, 8) == []


@pytest.mark.parametrize(('settings', 'reason'), [
    ({'extraction': 'best'}, "extraction: expected greedy, implicit, softmax, found 'best'"),
    ({'temperature': -1.0}, 'softmax_temperature: expected a number from 0 to 1e+06, found -1.0'),
    ({'temperature': np.nan}, 'softmax_temperature: expected .* found nan'),
    ({'sampling_temperature': 2.5}, 'sampling_temperature: expected a number from 0 to 2'),
])
def test_extraction_out_of_range_is_refused_by_name(policy, settings, reason):
    with pytest.raises(PolicyError, match=reason.replace('+', '[+]')):
        policy.decide(OBSERVATION, 0, 0, 1, **settings)


def test_provenance_within_its_limits_is_read_and_its_beginning_kept_as_text(tmp_path):
    provenance = {'a': nested(31), 'b': 'c' * 60_000}
    opened = Policy(changed(tmp_path / 'p.onnx', lambda m: m.update(provenance=provenance)))
    assert opened.provenance == provenance
    assert opened.provenance_text == json.dumps(provenance)[:1000]
