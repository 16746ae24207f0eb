"""The policy file: the trained network's answers, everything inside, and runnable anywhere."""

import json
from pathlib import Path
import re
import subprocess
import sys

from idql_ros.policy import MAX_CANDIDATES, Policy
from idql_ros.simulated_robot import plain_spec
from idql_ros.spec import load, parse
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from training import export as exporting
from training.checkpoint import save_checkpoint
from training.export import export, ExportError, main
from training.idql import IDQL, IDQLConfig
from training.statistics import summarise

ROOT = Path(__file__).parents[1]
POINTMAZE = ROOT / 'config' / 'robots' / 'pointmaze_medium.yaml'
SPEC = json.dumps({'name': 'robot', 'third': 1 / 3, 'actions': []})
ROBOT = parse({
    'spec_version': 1, 'name': 'robot', 'rate': 5.0, 'tick': 'timer',
    'observations': [{'name': 'state', 'topic': 'state', 'type': 'std_msgs/msg/Float64MultiArray',
                      'fields': ['data[0:3]'], 'unit': 'm', 'max_age': 1.0}],
    'actions': [{'name': 'command', 'topic': 'command', 'type': 'std_msgs/msg/Float64MultiArray',
                 'fields': ['data[0:2]'],
                 'dimensions': 2 * [{'kind': 'velocity', 'unit': 'm/s', 'lower': -1.0,
                                     'upper': 3.0, 'stop': 'zero'}]}],
}, 'robot').to_json()


def learner(**settings):
    """Return a small learner whose averaged actor differs from its actor."""
    torch.manual_seed(0)
    idql = IDQL(
        IDQLConfig(**{
            'actor_width': 32, 'actor_blocks': 2, 'time_features': (8, 16),
            'critic_hidden': (32, 32), 'value_hidden': (32, 32), 'normalise_observations': True,
            'candidates': 5,
        } | settings),
        observation_mean=torch.tensor([10.0, 0.0, -3.0]),
        observation_std=torch.tensor([0.1, 1.0, 5.0]),
        action_center=torch.tensor([2.0, -0.5]),
        action_scale=torch.tensor([1 / 3, 0.1]),
    )
    with torch.no_grad():
        for parameter in idql.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return idql.eval()


def statistics(size=3, rows=300):
    """Return the statistics of random observations."""
    return summarise(np.random.default_rng(0).normal(size=(rows, size)).astype(np.float32))


def run(path, observations, noise):
    """Return candidates, q and v of a policy file."""
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return session.run(
        ['candidates', 'q', 'v'], {'observations': observations, 'noise': noise})


@pytest.mark.parametrize('settings', [
    {},
    {'actor_activation': 'silu', 'value_input_layer_norm': True},
    {'critic_layer_norm': True, 'value_layer_norm': True, 'critics': 4, 'schedule': 'cosine'},
    {'actor_activation': 'relu', 'diffusion_steps': 1, 'schedule': 'linear'},
    {'normalise_observations': False, 'actor_dropout': 0.5, 'diffusion_steps': 8},
])
@pytest.mark.parametrize('batch, number', [(1, 1), (1, 64), (3, 2)])
def test_policy_file_gives_the_trained_networks_answers(tmp_path, settings, batch, number):
    idql = learner(**settings)
    export(idql, SPEC, {}, tmp_path / 'policy.onnx', samples=4)
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(batch, 3)).astype(np.float32)
    shape = (batch, idql.config.diffusion_steps, number, 2)
    noise = rng.normal(size=shape).astype(np.float32)
    found = run(tmp_path / 'policy.onnx', observations, noise)
    with torch.no_grad():
        expected = idql(torch.from_numpy(observations), torch.from_numpy(noise))
    assert found[0].shape == (batch, number, 2)
    for theirs, ours in zip(found, expected, strict=True):
        assert np.abs(theirs - ours.numpy()).max() < 2e-4


def test_report_tells_the_worst_difference_found(tmp_path):
    report = export(learner(), SPEC, {}, tmp_path / 'policy.onnx', samples=8)
    assert report.comparisons == 8 * (1 + 5 + 7)
    assert 0 < report.candidates_error < 1e-4
    assert str(tmp_path / 'policy.onnx') in str(report)


@pytest.mark.parametrize(('candidates', 'compared'), [
    (64, 64 * 64), (128, 32 * 128), (4096, 4096), (4097, 4097), (MAX_CANDIDATES, MAX_CANDIDATES)])
def test_comparison_takes_no_more_candidates_at_a_time_than_fit_into_memory(
        tmp_path, candidates, compared):
    idql = learner(candidates=candidates)
    sizes = []
    idql.register_forward_hook(
        lambda _, inputs, outputs: sizes.append(outputs[1].numel()))
    report = export(idql, SPEC, {}, tmp_path / 'policy.onnx')
    assert max(sizes) <= 4096
    assert report.comparisons == sum(sizes) == 64 * (1 + 7) + compared


@pytest.mark.parametrize('net', ['averaged_actor', 'target_critics', 'value'])
def test_file_that_differs_from_the_network_is_not_written(tmp_path, monkeypatch, net):
    graph = exporting.policy_graph

    def other_network(idql):
        other = learner()
        with torch.no_grad():
            for parameter in getattr(other, net).parameters():
                parameter.mul_(1.01)
        return graph(other)

    monkeypatch.setattr(exporting, 'policy_graph', other_network)
    (tmp_path / 'policy.onnx').write_text('the one before')
    with pytest.raises(ExportError, match='no file written'):
        export(learner(), SPEC, {}, tmp_path / 'policy.onnx')
    assert [p.name for p in tmp_path.iterdir()] == ['policy.onnx']
    assert (tmp_path / 'policy.onnx').read_text() == 'the one before'


def test_network_with_nan_is_not_written(tmp_path):
    idql = learner()
    with torch.no_grad():
        idql.value.output.bias[0] = float('nan')
    with pytest.raises(ExportError, match='no file written'):
        export(idql, SPEC, {}, tmp_path / 'policy.onnx')
    assert not list(tmp_path.iterdir())


def test_metadata_hold_spec_model_and_provenance_with_exact_numbers(tmp_path):
    idql = learner()
    provenance = {'dataset': 'demo/test-v0', 'tenth': 0.1}
    export(idql, SPEC, provenance, tmp_path / 'policy.onnx', samples=4)
    model = onnx.load(tmp_path / 'policy.onnx')
    content = json.loads({p.key: p.value for p in model.metadata_props}['idql_ros'])
    assert content['format_version'] == 1
    assert content['spec'] == json.loads(SPEC)
    assert content['provenance'] == provenance
    scale = content['model'].pop('action_scale')
    assert np.array_equal(np.float32(scale), idql.action_scale.numpy())
    assert content['model'] == {
        'observation_size': 3, 'action_size': 2, 'diffusion_steps': 5,
        'critic_loss': 'expectile', 'critic_parameter': 0.7, 'candidates': 5,
        'action_center': [2.0, -0.5],
    }


def test_statistics_and_the_ranges_of_the_files_own_answers_are_in_the_file(tmp_path):
    # Around the data that the learner normalises by: elsewhere every candidate is at a limit.
    drawn = np.random.default_rng(0).normal([10, 0, -3], [0.1, 1, 5], (300, 3))
    of_data = summarise(drawn.astype(np.float32))
    report = export(learner(), ROBOT, {}, tmp_path / 'p.onnx', samples=4, statistics=of_data)
    model = onnx.load(tmp_path / 'p.onnx')
    content, = (json.loads(p.value) for p in model.metadata_props if p.key == 'idql_ros')
    found = content['statistics']
    assert found.keys() == {'prototypes', 'scale', 'distance', 'ranges'}
    assert found['ranges'].keys() == {'1', '5'}  # of the ladder none is below 5
    for name, kind in (('prototypes', np.float32), ('scale', np.float64)):
        assert np.array_equal(np.array(found[name]), of_data[name].numpy().astype(np.float64))
        assert of_data[name].numpy().dtype == kind
    policy = Policy(tmp_path / 'p.onnx')
    usual = policy.value_ranges_for(policy.candidates)
    assert usual == report.usual.of_candidates[5] | {'distance': report.usual.distance}
    observations = of_data['calibration'].numpy()
    decisions = policy.decide_batch(observations, range(150), 0, policy.candidates)
    for name, (low, high) in usual.items():
        values = np.array([decision.values[name] for decision in decisions])
        assert values.min() <= low < high <= values.max() or name == 'distance'
        assert 0 < np.mean((values < low) | (values > high)) < 0.03


def test_file_with_statistics_gives_the_same_answers_as_one_without(tmp_path):
    export(learner(), ROBOT, {}, tmp_path / 'with.onnx', samples=4, statistics=statistics())
    report = export(learner(), ROBOT, {}, tmp_path / 'without.onnx', samples=4)
    assert report.usual is None and '\n' not in str(report)
    told, silent = Policy(tmp_path / 'with.onnx'), Policy(tmp_path / 'without.onnx')
    assert silent.value_ranges_for(5) == {}
    for tick_ns, observation in enumerate(np.eye(3, dtype=np.float32)):
        ours, theirs = (p.decide(observation, tick_ns, 0, 8) for p in (told, silent))
        assert np.array_equal(ours.candidates, theirs.candidates)
        assert (ours.q, ours.v) == (theirs.q, theirs.v)
        assert ours.distance > 0 and np.isnan(theirs.distance)


def test_old_runtimes_can_load_the_file(tmp_path):
    export(learner(), SPEC, {}, tmp_path / 'policy.onnx', samples=4)
    model = onnx.load(tmp_path / 'policy.onnx', load_external_data=False)
    assert model.ir_version <= 9
    assert [(o.domain, o.version) for o in model.opset_import] == [('', 17)]
    assert all(node.domain == '' for node in model.graph.node)
    assert not any(t.data_location for t in model.graph.initializer)
    assert len(list(tmp_path.iterdir())) == 1


def test_graph_states_its_shapes(tmp_path):
    export(learner(), SPEC, {}, tmp_path / 'policy.onnx', samples=4)
    graph = onnx.load(tmp_path / 'policy.onnx').graph
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {
        'observations': ['B', 3], 'noise': ['B', 5, 'N', 2],
        'candidates': ['B', 'N', 2], 'q': ['B', 'N'], 'v': ['B'],
    }


def test_time_features_are_constants_and_observations_enter_the_actor_once(tmp_path):
    export(learner(), SPEC, {}, tmp_path / 'policy.onnx', samples=4)
    graph = onnx.load(tmp_path / 'policy.onnx').graph
    operators = [node.op_type for node in graph.node]
    assert not {'Sin', 'Cos'} & set(operators)
    # Per step one product for the action, then two a block and one at the end; once for the
    # observation's share; three layers each of two critics and value.
    products = operators.count('MatMul') + operators.count('Gemm')
    assert products == 5 * (1 + 2 * 2 + 1) + 1 + 2 * 3 + 3


def test_command_line_exports_a_checkpoint_and_refuses_one_without_a_spec(tmp_path, capsys):
    idql = learner()
    content = {
        'config': {'idql': vars(idql.config)}, 'spec_json': ROBOT, 'provenance': {'a': 1},
        'step': 0, 'model': idql.state_dict(),
        'optimisers': {k: o.state_dict() for k, o in idql.optimisers.items()},
        'statistics': statistics(),
    }
    save_checkpoint(tmp_path / 'checkpoint.pt', content)
    main([str(tmp_path / 'checkpoint.pt'), '--output', str(tmp_path / 'out' / 'p.onnx')])
    printed = capsys.readouterr().out
    assert 'worst difference' in printed
    for n in (1, 5):
        for name, (low, high) in Policy(tmp_path / 'out' / 'p.onnx').value_ranges_for(n).items():
            of_n = '' if name == 'distance' else f'   N = {n}'
            assert re.search(rf'^  {name} +{low:.5g} +{high:.5g}{of_n}$', printed, re.MULTILINE)
    arguments = [str(tmp_path / 'checkpoint.pt'), '--output', str(tmp_path / 'p.onnx')]
    with pytest.raises(SystemExit, match='error: .*expected one spec, found one in it and'):
        main([*arguments, '--spec', str(POINTMAZE)])
    save_checkpoint(tmp_path / 'checkpoint.pt', content | {'spec_json': None})
    with pytest.raises(SystemExit, match='error: .*expected one spec, found none'):
        main(arguments)
    with pytest.raises(SystemExit, match='error: .*found 2 and 2'):
        main([*arguments, '--spec', str(POINTMAZE)])
    assert not (tmp_path / 'p.onnx').exists()


def checkpoint_without_a_spec(path, observation_size, action_size, scale):
    """Write the checkpoint of a small learner of a dataset without a spec; return its path."""
    torch.manual_seed(0)
    config = IDQLConfig(
        actor_width=16, actor_blocks=1, critic_hidden=(16,), value_hidden=(16,))
    idql = IDQL(config, torch.zeros(observation_size), torch.ones(observation_size),
                torch.zeros(action_size), scale * torch.ones(action_size))
    save_checkpoint(path, {
        'config': {'idql': vars(idql.config)}, 'spec_json': None,
        'provenance': {'dataset': 'a-v0'}, 'step': 0, 'model': idql.state_dict(),
        'optimisers': {k: o.state_dict() for k, o in idql.optimisers.items()},
        'statistics': statistics(observation_size),
    })
    return str(path)


def test_spec_can_be_given_for_a_dataset_that_has_none(tmp_path):
    checkpoint = checkpoint_without_a_spec(tmp_path / 'checkpoint.pt', 2, 2, 2.0)
    main([checkpoint, '--spec', str(POINTMAZE), '--output', str(tmp_path / 'p.onnx')])
    assert Policy(tmp_path / 'p.onnx').spec == load(POINTMAZE)


def test_environment_in_place_of_a_spec_goes_into_the_file_and_scores_it(tmp_path):
    pytest.importorskip('ogbench', reason='ogbench is not installed')
    name = 'cube-single-singletask-task2-v0'
    checkpoint = checkpoint_without_a_spec(tmp_path / 'checkpoint.pt', 28, 5, 1.0)
    main([checkpoint, '--environment', name, '--output', str(tmp_path / 'p.onnx')])
    policy = Policy(tmp_path / 'p.onnx')
    assert policy.spec == plain_spec(name)
    assert policy.provenance == {'dataset': 'a-v0', 'environment': name}
    scored = subprocess.run(
        [sys.executable, '-m', 'training.evaluate', tmp_path / 'p.onnx', '--episodes', '1',
         '--candidates', '1'], cwd=ROOT, capture_output=True, text=True)
    assert scored.returncode == 0, scored.stderr
    assert re.search(rf'^N =    1: success .* in {name}$', scored.stdout, re.MULTILINE)


@pytest.mark.parametrize(('arguments', 'reason'), [
    (['--environment', 'Hopper-v5'], 'error: Hopper-v5: expected 2 observations and 2 actions as'),
    (['--environment', 'NoSuch-v0'], 'error: environment NoSuch-v0: expected module:factory'),
    (['--environment', 'CartPole-v1'], 'error: environment CartPole-v1: expected flat spaces'),
])
def test_environment_that_does_not_fit_is_refused(tmp_path, arguments, reason):
    checkpoint = checkpoint_without_a_spec(tmp_path / 'checkpoint.pt', 2, 2, 2.0)
    with pytest.raises(SystemExit, match=f'^{reason}'):
        main([checkpoint, *arguments, '--output', str(tmp_path / 'p.onnx')])
    assert not (tmp_path / 'p.onnx').exists()


MEASURE = """
import sys
from idql_ros.policy import MAX_CANDIDATES, Policy
from idql_ros.simulated_robot import plain_spec
import numpy as np

def kilobytes(key):
    # Not getrusage: its peak includes that of the process that started this one.
    with open('/proc/self/status') as file:
        line, = (line for line in file if line.startswith(key))
    return int(line.split()[1])

policy, batch, candidates = Policy(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
observations = np.zeros((batch, policy.spec.observation_size), np.float32)
before = kilobytes('VmRSS:')
decisions = policy.decide_batch(observations, range(batch), 0, candidates)
assert len(decisions) == batch and decisions[-1].candidates.shape[0] == candidates
print(kilobytes('VmHWM:') - before)
"""


@pytest.fixture(scope='module')
def file_of_the_papers_size(tmp_path_factory):
    torch.manual_seed(0)
    # Two denoising steps for the paper's five: each uses the memory of the one before.
    config = IDQLConfig(diffusion_steps=2)
    assert (config.actor_width, config.actor_blocks) == (256, 3)
    assert (config.critics, config.critic_hidden) == (2, (256, 256))
    assert config.actor_activation == 'mish'
    idql = IDQL(config, torch.zeros(17), torch.ones(17), torch.zeros(6), torch.ones(6))
    path = tmp_path_factory.mktemp('paper') / 'p.onnx'
    export(idql, plain_spec('Walker2d-v5').to_json(), {}, path, samples=1)
    return path


@pytest.mark.parametrize(('batch', 'candidates'), [(512, 128), (1, 65536)])
def test_65536_candidates_of_the_papers_network_take_less_than_a_gigabyte(
        file_of_the_papers_size, batch, candidates):
    found = subprocess.run(
        [sys.executable, '-c', MEASURE, file_of_the_papers_size, str(batch), str(candidates)],
        cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert 1_000 < int(found.stdout) < 1_000_000
