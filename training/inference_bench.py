"""How fast a policy file decides: `python -m training.bench --inference`.

Measures in one process, in turns: the machine's float32 matrix rate (large products, with ONNX
Runtime and with PyTorch; the faster counts), and the paper's actor as a policy file, with float32
and with int8 weights, as the node runs them. The share of the limit is what of the matrix rate the
products of the graph make up; beside it stands that of the fastest product of any size, for one
that fits into a nearer cache may be faster. Where there is a GPU, it is measured too.
"""

from collections.abc import Callable
import json
from pathlib import Path
import statistics
import tempfile
import time
from typing import Any

from idql_ros import spec as specs
from idql_ros.policy import draw_noise, Policy
from idql_ros.session import CUDA, open_session, Session
import numpy as np
import onnx
import onnxruntime
import torch
from tqdm import tqdm
from training.export import export
from training.idql import IDQL, IDQLConfig
from training.policy_graph import IR_VERSION, Nodes, OPSET, policy_graph
from training.quantise import int8_product

OBSERVATIONS, ACTIONS, CANDIDATES, MANY = 17, 6, 64, 1024
# Rows and columns of the large products; which is faster depends on the caches. And of one that
# stays in the second of them.
LARGE = (1024, 2048)
SMALLER = 512
# Seconds for which each of those measured runs in a round, at least.
TURN = 0.5
# What we aim at: number -> at least so much; on a GPU N -> p99 in ms, at most.
GOALS = {'share_of_limit': 0.85, 'int8_times_float32': 1.8}
GPU_GOALS = {CANDIDATES: 1.0, MANY: 2.0}

_ARRAY = 'std_msgs/msg/Float64MultiArray'
_LIMITED = {'kind': 'increment', 'unit': '1', 'lower': -1, 'upper': 1, 'stop': 'zero'}
_SPEC = {
    'spec_version': 1, 'name': 'bench', 'rate': 20, 'tick': 'timer',
    'observations': [{'name': 'observation', 'topic': 'observation', 'type': _ARRAY,
                      'fields': [f'data[0:{OBSERVATIONS}]'], 'unit': '1', 'max_age': 0.1}],
    'actions': [{'name': 'action', 'topic': 'action', 'type': _ARRAY,
                 'fields': [f'data[0:{ACTIONS}]'], 'dimensions': [_LIMITED] * ACTIONS}]}


def inference_flops(config: IDQLConfig, observations: int, actions: int, candidates: int) -> int:
    """Return the floating point operations of the matrix products that an inference needs.

    What depends on the observation alone is needed once, what depends on the step alone never.
    """
    width = config.actor_width
    actor = 2 * actions * width + config.actor_blocks * 8 * width**2

    def layers(inputs: int, hidden: tuple[int, ...]) -> int:
        sizes = [inputs, *hidden, 1]
        return sum(a * b for a, b in zip(sizes, sizes[1:], strict=False))

    critics = config.critics * layers(observations + actions, config.critic_hidden)
    once = observations * width + layers(observations, config.value_hidden)
    return 2 * (candidates * (config.diffusion_steps * actor + critics) + once)


def write_files(folder: Path, config: IDQLConfig) -> dict[str, Path]:
    """Write a policy of random weights as two files: 'float32' and 'int8'."""
    torch.manual_seed(0)
    idql = IDQL(config, torch.zeros(OBSERVATIONS), torch.ones(OBSERVATIONS),
                torch.zeros(ACTIONS), torch.ones(ACTIONS))
    paths = {name: folder / f'{name}.onnx' for name in ('float32', 'int8')}
    export(idql, specs.parse(_SPEC, 'bench').to_json(), {}, paths['float32'], samples=4)
    # Not through the export, which scores a policy first: how good it is is not measured here.
    metadata = {p.key: p.value for p in onnx.load(paths['float32']).metadata_props}
    model = policy_graph(idql, int8_product)
    onnx.helper.set_model_props(model, metadata)
    paths['int8'].write_bytes(model.SerializeToString())
    return paths


def products(size: int, threads: int) -> dict[str, Callable[[], Any]]:
    """Return the product of two (size, size) matrices, with each library."""
    generator = np.random.default_rng(0)
    left, right = (generator.standard_normal((size, size), np.float32) for _ in range(2))
    nodes = Nodes()
    nodes.add('MatMul', 'x', nodes.constant(right), outputs=['y'])
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [size, size])
            for name in 'xy')
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes.nodes, 'product', [x], [y], nodes.constants),
        opset_imports=[onnx.helper.make_opsetid('', OPSET)], ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=['CPUExecutionProvider'])
    a, b = torch.from_numpy(left), torch.from_numpy(right)
    out = torch.empty(size, size)
    return {f'product onnxruntime {size}': lambda: session.run(['y'], {'x': left}),
            f'product torch {size}': lambda: torch.mm(a, b, out=out)}


def deciding(path: Path, threads: int) -> dict[str, Callable[[], Any]]:
    """Return one inference of a policy file's graph, and one whole decision with it."""
    session, policy = Session(path.read_bytes(), threads), Policy(path, threads)
    observation = np.zeros(OBSERVATIONS, np.float32)
    noise = draw_noise(0, 0, session.tensors[1].shape[1], CANDIDATES, ACTIONS)
    return {path.stem: lambda: session.run(observation[None], noise),
            f'{path.stem} decide': lambda: policy.decide(observation, 0, 0, CANDIDATES)}


def on_gpu(path: Path) -> tuple[dict[str, Callable[[], Any]], str]:
    """Return inferences on a GPU, with what can use it; and why others cannot."""
    content = path.read_bytes()
    observation = np.zeros((1, OBSERVATIONS), np.float32)
    calls: dict[str, Callable[[], Any]] = {}
    why_not = []
    for backend in ('torch', 'onnxruntime'):
        session = open_session(content, backend=backend, device='cuda')
        if session.provider != CUDA and 'cuda' not in session.provider:
            why_not.append(f'{backend}: {session.notes[-1]}')
            continue
        steps = session.tensors[1].shape[1]
        for number in GPU_GOALS:
            noise = draw_noise(0, 0, steps, number, ACTIONS)
            calls[f'{backend} N = {number}'] = (
                lambda session=session, noise=noise: session.run(observation, noise))
    return calls, '; '.join(why_not)


def measure(rounds: int, threads: int, config: IDQLConfig | None = None) -> dict[str, Any]:
    """Measure in turns.

    Args:
        rounds: How often each has its turn.
        threads: Of each inference and each product.
        config: Of the policy; None: the paper's.

    Returns:
        What --json prints: times in ms over all rounds; shares are medians over the rounds of the
        ratios within a round, and, beside them, of the best times of all.
    """
    config = config or IDQLConfig()
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix='idql_ros_bench_') as folder:
        paths = write_files(Path(folder), config)
        calls = {name: call for size in (SMALLER, *LARGE)
                 for name, call in products(size, threads).items()}
        for path in paths.values():
            calls |= deciding(path, threads)
        gpu, why_not = on_gpu(paths['float32'])
    calls |= gpu
    for call in calls.values():
        call()
    times: dict[str, list[list[float]]] = {name: [] for name in calls}
    for _ in tqdm(range(rounds), desc='measure', unit='round', leave=False):
        for name, call in calls.items():
            times[name].append(_turn(call))
    flops = {name: 2 * int(name.split()[-1])**3 for name in calls if name.startswith('product')}

    def shares(of_round: Callable[[str], float]) -> dict[str, float]:
        rates = {name: count / of_round(name) for name, count in flops.items()}
        fastest = max(rates.values())
        limit = max(rate for name, rate in rates.items() if not name.endswith(f' {SMALLER}'))
        needed = inference_flops(config, OBSERVATIONS, ACTIONS, CANDIDATES)
        return {'matrix_gflops': limit / 1e9,
                'share_of_limit': needed / of_round('float32') / limit,
                'fastest_gflops': fastest / 1e9,
                'share_of_fastest': needed / of_round('float32') / fastest,
                'int8_times_float32': of_round('float32') / of_round('int8')}

    in_rounds = [shares(lambda name, k=k: statistics.median(times[name][k]))
                 for k in range(rounds)]
    best = shares(lambda name: min(min(turn) for turn in times[name]))
    return {
        'threads': threads, 'rounds': rounds, 'onnxruntime': onnxruntime.__version__,
        **{key: statistics.median(row[key] for row in in_rounds) for key in best},
        'best': best, 'no_gpu': why_not,
        'times': {name: _times([t for turn in turns for t in turn])
                  for name, turns in times.items()}}


def _turn(call: Callable[[], Any]) -> list[float]:
    """Return how long each call took (s), for TURN seconds, and three times at least."""
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < TURN:
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return taken


def _times(taken: list[float]) -> dict[str, float]:
    low, high = np.percentile(taken, [50, 99])
    return {'best_ms': 1e3 * min(taken), 'p50_ms': 1e3 * float(low), 'p99_ms': 1e3 * float(high)}


def table(result: dict[str, Any]) -> str:
    """Return what was measured, and whether the goals are met, as text."""
    best = result['best']
    lines = [f'onnxruntime {result["onnxruntime"]}, threads: {result["threads"]}; float32 matrix '
             f'products at {result["matrix_gflops"]:.0f} GFLOP/s (at best '
             f'{best["matrix_gflops"]:.0f}); {result["rounds"]} rounds',
             f'fastest product of any size, {SMALLER} rows among them: '
             f'{result["fastest_gflops"]:.0f} GFLOP/s (at best {best["fastest_gflops"]:.0f}); '
             f'share of it: {result["share_of_fastest"]:.2f} (best times: '
             f'{best["share_of_fastest"]:.2f})',
             f'{"ms":28s} {"best":>8s} {"p50":>8s} {"p99":>8s}']
    for name, row in result['times'].items():
        lines.append(f'{name:28s} {row["best_ms"]:8.2f} {row["p50_ms"]:8.2f} {row["p99_ms"]:8.2f}')
    for number, goal in GOALS.items():
        lines.append(
            f'goal: {number.replace("_", " ")} at least {goal}: {result[number]:.2f} (best times: '
            f'{best[number]:.2f}), {"met" if result[number] >= goal else "missed"}')
    for number, goal in GPU_GOALS.items():
        for name, row in result['times'].items():
            if name.endswith(f' N = {number}'):
                met = 'met' if row['p99_ms'] <= goal else 'missed'
                lines.append(f'goal: {name}, p99 at most {goal} ms: {row["p99_ms"]:.2f}, {met}')
    return '\n'.join([*lines, *([f'not on a GPU: {result["no_gpu"]}'] * bool(result['no_gpu']))])


def bench(json_: bool, rounds: int, threads: int) -> str:
    """Return the text of `python -m training.bench --inference`."""
    result = measure(rounds, threads)
    return json.dumps(result) if json_ else table(result)
