"""The policy file: noise and decisions that a seed fixes, and files that are refused."""

import hashlib
import json
from pathlib import Path
import re
import subprocess
import sys

from idql_ros import policy as policies
from idql_ros import spec as specs
from idql_ros.policy import draw_noise, Policy, PolicyError
import numpy as np
import pytest

pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')

ROOT = Path(__file__).parents[1]
DEFAULT = ROOT / 'config' / 'policies' / 'pointmaze_medium.onnx'
OBSERVATION = np.array([2.0, 3.0], np.float32)
SHAPE = {'steps': 5, 'candidates': 32, 'action_size': 2}


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
    (lambda m: m['model'].update(candidates=0), 'model.candidates: expected a whole number'),
    (lambda m: m['model'].update(candidates=10**6), 'model.candidates: expected at most 4096'),
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


def test_digest_is_that_of_the_file(policy):
    assert policy.digest == hashlib.sha256(DEFAULT.read_bytes()).hexdigest()
