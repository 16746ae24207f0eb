"""The benchmark of inference measures the file that users run, and counts what it needs."""

import json
import subprocess
import sys

import onnx
import pytest

pytest.importorskip('tyro', reason='tyro is not installed')
from training import inference_bench as bench  # noqa: E402
from training.idql import IDQLConfig  # noqa: E402

SMALL = IDQLConfig(actor_width=16, actor_blocks=1, time_features=(8, 16), critic_hidden=(16,),
                   value_hidden=(16,))


@pytest.mark.parametrize('config', [IDQLConfig(), SMALL, IDQLConfig(critics=3, diffusion_steps=2)])
def test_operations_are_those_of_the_products_in_the_file(tmp_path, config):
    graph = onnx.load(bench.write_files(tmp_path, config)['float32']).graph
    sizes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    rows = {'once': 0, 'each': 0}
    for node in graph.node:
        if node.op_type not in ('Gemm', 'MatMul'):
            continue
        # An observation's own products: its share of the first layer, and the last ones, of V.
        once = node.op_type == 'MatMul' or node in graph.node[-2 * len(config.value_hidden) - 2:]
        inputs, outputs = sizes[node.input[1]]
        rows['once' if once else 'each'] += 2 * inputs * outputs
    if config.actor_width == 256:  # whose blocks are padded
        rows['each'] -= config.diffusion_steps * config.actor_blocks * 2 * 2 * 256 * 16
    assert bench.inference_flops(config, 17, 6, 64) == 64 * rows['each'] + rows['once']


def test_papers_actor_needs_the_published_gigaflop():
    assert bench.inference_flops(IDQLConfig(), 17, 6, 64) == pytest.approx(1.03e9, rel=0.01)


def test_a_round_measures_products_files_and_decisions(monkeypatch):
    monkeypatch.setattr(bench, 'LARGE', (64, 128))
    monkeypatch.setattr(bench, 'SMALLER', 32)
    monkeypatch.setattr(bench, 'TURN', 0.01)
    result = bench.measure(2, 1, SMALL)
    named = {'float32', 'float32 decide', 'int8', 'int8 decide'}
    assert named | {f'product {library} {size}' for library in ('onnxruntime', 'torch')
                    for size in (32, 64, 128)} <= set(result['times'])
    for row in result['times'].values():
        assert 0 < row['best_ms'] <= row['p50_ms'] <= row['p99_ms']
    times = result['times']
    best = result['best']
    for name, sizes in (('matrix', (64, 128)), ('fastest', (32, 64, 128))):
        assert best[f'{name}_gflops'] == pytest.approx(max(
            2 * size**3 / times[f'product {library} {size}']['best_ms'] / 1e6
            for library in ('onnxruntime', 'torch') for size in sizes))
    assert best['share_of_fastest'] == pytest.approx(
        best['share_of_limit'] * best['matrix_gflops'] / best['fastest_gflops'])
    assert best['share_of_limit'] == pytest.approx(
        bench.inference_flops(SMALL, 17, 6, 64) / times['float32']['best_ms'] / 1e6
        / best['matrix_gflops'])
    text = bench.table(result)
    assert 'goal: share of limit at least 0.85: ' in text
    assert ('not on a GPU: ' in text) == bool(result['no_gpu'])


def test_goals_are_judged_by_the_medians():
    row = {'best_ms': 1.0, 'p50_ms': 1.1, 'p99_ms': 1.5}
    numbers = {'matrix_gflops': 100.0, 'share_of_limit': 0.84, 'int8_times_float32': 2.0,
               'fastest_gflops': 120.0, 'share_of_fastest': 0.7}
    text = bench.table({
        'onnxruntime': '1', 'threads': 1, 'rounds': 1, 'no_gpu': '', **numbers,
        'best': {**numbers, 'share_of_limit': 0.9},
        'times': {'torch N = 64': row, 'torch N = 1024': row}})
    assert 'any size, 512 rows among them: 120 GFLOP/s' in text and 'of it: 0.70' in text
    assert 'share of limit at least 0.85: 0.84 (best times: 0.90), missed' in text
    assert 'int8 times float32 at least 1.8: 2.00 (best times: 2.00), met' in text
    assert 'goal: torch N = 64, p99 at most 1.0 ms: 1.50, missed' in text
    assert 'goal: torch N = 1024, p99 at most 2.0 ms: 1.50, met' in text


def test_command_prints_what_it_measured_as_json():
    printed = subprocess.run(
        [sys.executable, '-m', 'training.bench', '--inference', '--json', '--rounds', '1'],
        capture_output=True, text=True, check=True).stdout
    result = json.loads(printed)
    assert result['threads'] == 1
    assert result['times']['float32']['p50_ms'] > 0
