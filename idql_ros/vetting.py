"""A policy file is checked in a process of its own before a node opens it.

Whoever made the file may have meant harm or had a bad disk: reading it may crash, hang or fill
the memory. So `vet` reads the bytes once and hands them to a child process with limits on time and
memory (`python -m idql_ros.vetting`), which checks the graph, runs it, and returns the graph as
ONNX Runtime optimised it: that opens in less time than the file.

The runs that were tried speak for later ones with the same N, and for no others: the operators are
those of `OPERATORS`, and no size, no index and no division of whole numbers in the graph depends
on an observation or on noise, so that neither a run's memory does, nor whether it ends. (Its time
does a little: the smallest float32 take a processor longer.) Sizes depend on N: every one that may
come up is tried. The child is no sandbox: it has its parent's rights, and a file that takes over
ONNX Runtime itself would have them too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import ctypes
import hashlib
import json
import math
import os
import pathlib
import resource
import select
import signal
import subprocess
import sys
from typing import Any

from idql_ros.budget import rungs
from idql_ros.policy import (
    draw_noise,
    MAX_CANDIDATES,
    Policy,
    PolicyError,
    read_file,
    runs_for,
    Vetted,
)
from idql_ros.session import INPUTS, OUTPUTS, Session, SessionError
from idql_ros.spec import Spec
import numpy as np

# What training.export writes: ONNX Runtime 1.16, the oldest that is supported, loads both.
OPSET = 17
IR_VERSION = 8

MAX_NODES = 20_000
MAX_TENSOR_BYTES = 512 * 2**20
# Reading it as JSON holds up all threads of the process, a fifth of a second at worst. The export
# writes 2.6 million characters at most.
MAX_METADATA = 3 * 2**20

# The operators that training.export writes, or once wrote -> positions of their inputs that decide
# sizes or are indices. One that runs a graph of its own, draws noise or has sizes that its data
# decides has no place here.
OPERATORS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys((
        'Add', 'Cast', 'Clip', 'Concat', 'Constant', 'Div', 'DynamicQuantizeLinear', 'Equal',
        'Exp', 'Gemm', 'HardSigmoid', 'Identity', 'LayerNormalization', 'MatMul', 'MatMulInteger',
        'Min', 'Mul', 'Neg', 'ReduceMin', 'Relu', 'Shape', 'Sigmoid', 'Sub', 'Transpose',
        'Where'), ()),
    'ConstantOfShape': (0,), 'Expand': (1,), 'Gather': (1,), 'Reshape': (1,), 'Squeeze': (1,),
    'Unsqueeze': (1,),
}
# What may read whole numbers that are made of data. Not a division: that by zero, or of -2^63 by
# -1, ends the process.
_READING_WHOLE = ('MatMulInteger', 'Cast')
# What a file's numbers may be -> bytes of one; by name, as onnx is not imported yet.
_TYPES = {'FLOAT': 4, 'INT64': 8, 'INT32': 4, 'INT8': 1, 'UINT8': 1, 'BOOL': 1}

_REPORT_BYTES = 2**14
# Address space, not memory in use: the interpreter and its libraries take 0.2 GB of it.
_ADDRESS_SPACE = 2 * 2**30
_ADDRESS_SPACE_A_BYTE = 8  # of the file, which several parts of the check hold a copy of


def vet(path: str | pathlib.Path, *, threads: int = 1, candidates: Sequence[int] = (0,),
        deadline_s: float = 0.0, timeout_s: float = 30.0) -> Vetted:
    """Return a policy file that was checked and run in a child process.

    Called from any thread: it installs no handler and does not fork the caller. The child dies
    with the thread that called.

    Args:
        path: the .onnx file.
        threads: threads for one inference.
        candidates: every N that the file will be run with; 0: its own.
        deadline_s: for one inference, as `budget.Budget` takes it: where there is one, the rungs
            below each N are tried too.
        timeout_s: within which the child has to be done.

    Raises:
        PolicyError: the file was refused, or its check crashed, took too long or too much memory.
    """
    path = pathlib.Path(path)
    content = read_file(path)
    # Without a name: nobody else can change what is checked, and nothing is left behind.
    with _memory_file() as given, _memory_file() as report, _memory_file() as graph, \
            _memory_file() as printed:
        given.write(content)
        given.seek(0)
        order = {
            'path': str(path), 'threads': threads, 'candidates': [*candidates],
            'deadline_s': deadline_s, 'timeout_s': timeout_s, 'parent': os.getpid(),
            'report': report.fileno(), 'graph': graph.fileno(),
        }
        code = _run_child(order, given, printed)
        if code is None:
            raise PolicyError(f'{path}: refused: its check was not done within {timeout_s:g} s')
        found = _read_report(report)
        if 'error' in found:
            raise PolicyError(found['error'])
        if code != 0 or not found:
            raise PolicyError(f'{path}: refused: its check '
                              f'{_how_it_ended(code, timeout_s)}{_last(printed)}')
        optimised = _content(graph, _largest_graph(len(content)))
    return Vetted(path, content, hashlib.sha256(content).hexdigest(), optimised,
                  tuple(found['candidates']))


def read_spec(path: str | pathlib.Path) -> Spec:
    """Return the spec of a policy file that was checked as `vet` does.

    Raises:
        PolicyError: as `vet` does.
    """
    return Policy(path, vetted=vet(path)).spec


def _memory_file() -> Any:
    return open(os.memfd_create('policy'), 'r+b')


def _run_child(order: Mapping[str, Any], given: Any, printed: Any) -> int | None:
    """Run a child that reads one file and prints into another; return its exit code.

    None: it was not done in time, and was killed.
    """
    try:
        process = subprocess.Popen(
            [sys.executable, '-m', 'idql_ros.vetting', json.dumps(order)],
            # The first place where the child looks for this package.
            cwd=pathlib.Path(__file__).resolve().parents[1],
            # Neither pools of memory nor threads that nobody uses: they are address space.
            env={**os.environ, 'MALLOC_ARENA_MAX': '1', 'OPENBLAS_NUM_THREADS': '1'},
            stdin=given, stdout=subprocess.DEVNULL, stderr=printed,
            pass_fds=(order['report'], order['graph']),
            start_new_session=True)  # an interrupt is the parent's to answer
    except OSError as error:
        raise PolicyError(
            f'{order["path"]}: cannot be checked: no process for it: {error}') from error
    with process:
        try:
            in_time = _ended(process, order['timeout_s'])
        finally:
            process.kill()
    return process.returncode if in_time else None


def _content(file: Any, most: int) -> bytes:
    """Return what was written to a memory file, up to so many bytes."""
    return os.pread(file.fileno(), min(most, os.fstat(file.fileno()).st_size), 0)


def _largest_graph(size: int) -> int:
    """Return how large the optimised graph of a file of so many bytes may be."""
    # What is computed beforehand takes the place of what computed it, and may be a little larger.
    return 2 * size + 2**20


def _ended(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Wait until a process ends; return whether it did in time."""
    # Popen.wait with a time-out looks up to 50 ms late.
    descriptor = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(1000 * timeout_s))
    finally:
        os.close(descriptor)


def _read_report(file: Any) -> dict[str, Any]:
    """Return the child's report: an error, or every N tried; {} where it is no such thing."""
    try:
        report = json.loads(_content(file, _REPORT_BYTES))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(report, dict):
        return {}
    if isinstance(report.get('error'), str):
        return {'error': _line(report['error'])}
    tried = report.get('candidates')
    whole = isinstance(tried, list) and all(type(n) is int for n in tried)
    return {'candidates': tried} if whole else {}


def _line(text: object) -> str:
    """Return a text, or what protobuf gives for one that is none, as one printable line."""
    words = ' '.join(str(text).split())
    return ''.join(c if c.isprintable() else '?' for c in words)[:1000]


def _how_it_ended(code: int, timeout_s: float) -> str:
    if code == -signal.SIGXCPU:
        return f'took more than {timeout_s:g} s of processor time for each thread'
    if code == -signal.SIGKILL:
        return 'was killed, probably because the machine ran out of memory'
    if code < 0:
        return f'crashed ({signal.strsignal(-code)})'
    return f'ended with exit code {code} and no result'


def _last(printed: Any) -> str:
    """Return the last line that the child printed, as the end of a sentence."""
    lines = _content(printed, 2**16).decode(errors='replace').strip().splitlines()
    return f': {_line(lines[-1])[:300]}' if lines else ''


def check(content: bytes, path: pathlib.Path, threads: int, candidates: Sequence[int],
          deadline_s: float, graph: int) -> list[int]:
    """Check and run a policy file in this process, which it may crash.

    Args:
        content: the file.
        path: what errors call it.
        threads: threads for one inference.
        candidates: as `vet` takes them.
        deadline_s: likewise.
        graph: descriptor of an empty file that takes the optimised graph.

    Returns:
        Every N that it was run with, the largest first.

    Raises:
        PolicyError: the file is refused.
    """
    _check_model(content, path)
    plain = _optimise(content, path, threads, graph)
    optimised = os.pread(graph, os.fstat(graph).st_size, 0)
    try:
        session = Session(optimised, threads, optimised=True)
    except SessionError as error:
        raise PolicyError(f'{path}: its optimised graph: {error}') from error
    # All that Policy checks, on what will be opened.
    policy = Policy(path, threads, vetted=Vetted(path, content, '', optimised, ()))
    numbers = sorted({n for first in candidates
                      for n in rungs(first or policy.candidates, deadline_s)}, reverse=True)
    if not 1 <= numbers[-1] <= numbers[0] <= MAX_CANDIDATES:
        raise PolicyError(f'{path}: candidates: expected 1 to {MAX_CANDIDATES}, found {numbers}')
    known = policy.example is not None
    observation = policy.example if known else np.zeros(policy.spec.observation_size, np.float32)
    (_, steps, _, action_size), = (t.shape for t in session.tensors if t.name == 'noise')
    # Observations come one by one, and of many candidates so many in a run.
    for number in sorted({len(part) for n in numbers
                          for part in np.array_split(np.arange(n), runs_for(n))}, reverse=True):
        feed = observation[None], draw_noise(0, 0, steps, number, action_size)
        try:
            found = session.run(*feed)
        except Exception as error:  # its exception classes have no base of their own
            raise PolicyError(
                f'{path}: graph: fails with {number} candidates: {_line(error)[:300]}'
            ) from error
        _check_answers(path, found, number, action_size, known)
        expected = plain.run(list(OUTPUTS), dict(zip(INPUTS, feed, strict=True)))
        if not all(np.array_equal(x, y, equal_nan=True)
                   for x, y in zip(expected, found, strict=True)):
            raise PolicyError(f'{path}: graph: its answers differ after optimisation')
    policy.decide(observation, 0, 0, numbers[0])
    return numbers


def _check_model(content: bytes, path: pathlib.Path) -> None:
    """Check a model's text before anything of it is run."""
    try:
        import onnx
    except ImportError as error:
        raise PolicyError(f'{path}: cannot be checked: onnx is not installed: '
                          'pip install onnx') from error
    try:
        model = onnx.ModelProto.FromString(content)
    except Exception as error:  # protobuf's, a package that only onnx knows of
        raise PolicyError(f'{path}: not an ONNX file: {_line(error)[:300]}') from error
    size = model.ByteSize()
    model.DiscardUnknownFields()
    for wrong, text in _objections(model, onnx):
        if wrong:
            raise PolicyError(f'{path}: {text}')
    if model.ByteSize() != size:
        # ONNX Runtime may know what this onnx does not, and would run what nobody checked.
        raise PolicyError(f'{path}: holds fields that onnx {onnx.__version__} does not know')
    _check_nodes(path, model.graph, onnx)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise PolicyError(f'{path}: no valid ONNX: {_line(error)[:300]}') from error


def _objections(model: Any, onnx: Any) -> Iterator[tuple[bool, str]]:
    """Yield what is asked of a model: whether it fails, and the text that then refuses it."""
    graph = model.graph
    versions = [(opset.domain, opset.version) for opset in model.opset_import]
    yield model.ir_version > IR_VERSION, (
        f'IR version: expected {IR_VERSION} at most, found {model.ir_version}; '
        'export the policy again')
    yield len(versions) != 1 or versions[0][0] not in ('', 'ai.onnx'), (
        'operators: expected those of ONNX alone, found the domains '
        f'{_line(", ".join(repr(domain) for domain, _ in versions))[:300]}')
    yield any(version > OPSET for _, version in versions), (
        f'opset: expected {OPSET} at most, found {versions[0][1] if versions else None}; '
        'export the policy again')
    yield bool(model.functions or model.training_info), (
        'expected a graph alone, found functions or training information')
    yield bool(graph.sparse_initializer), 'expected dense tensors, found sparse ones'
    yield len(graph.node) > MAX_NODES, (
        f'graph: expected at most {MAX_NODES} nodes, found {len(graph.node)}')
    keys = [entry.key for entry in model.metadata_props]
    yield len(keys) != len(set(keys)), 'metadata: expected each key once, found one again'
    size = sum(len(entry.key) + len(entry.value) for entry in model.metadata_props)
    yield size > MAX_METADATA, (
        f'metadata: expected at most {MAX_METADATA} characters, found {size}')
    tensors = [*graph.initializer, *(
        attribute.t for node in graph.node for attribute in node.attribute
        if attribute.type == onnx.AttributeProto.TENSOR)]
    yield any(t.external_data or t.data_location == onnx.TensorProto.EXTERNAL for t in tensors), (
        'expected all numbers inside the file, found a reference to another file')
    kinds = {getattr(onnx.TensorProto, name): size for name, size in _TYPES.items()}
    unfit = sorted({t.data_type for t in tensors} - kinds.keys())
    yield bool(unfit), f'expected tensors of float32 or whole numbers, found data type {unfit}'
    yield any(size < 0 for t in tensors for size in t.dims), 'a tensor has a negative size'
    size = sum(math.prod(t.dims) * kinds.get(t.data_type, 1) for t in tensors)
    yield size > MAX_TENSOR_BYTES, (
        f'expected tensors of {MAX_TENSOR_BYTES} bytes together at most, found {size:.3g}')


def _check_nodes(path: pathlib.Path, graph: Any, onnx: Any) -> None:
    """Check that each node is a known operator, with sizes that no data decides."""
    types = {getattr(onnx.TensorProto, name) for name in _TYPES}
    plain = {getattr(onnx.AttributeProto, name) for name in (
        'FLOAT', 'INT', 'TENSOR', 'FLOATS', 'INTS')}
    data = {value.name for value in graph.input} - {t.name for t in graph.initializer}
    defined = data | {t.name for t in graph.initializer}
    whole: set[str] = set()
    for node in graph.node:
        named = f'{path}: graph: node {_line(node.name)[:100]!r}: '
        operator = node.op_type
        if node.domain not in ('', 'ai.onnx') or operator not in OPERATORS:
            raise PolicyError(f'{named}expected an operator of a policy (OPERATORS in '
                              f'idql_ros/vetting.py), found {_line(operator)[:100]!r}'
                              + (f' of {_line(node.domain)[:100]!r}' if node.domain else ''))
        if any(a.type not in plain or a.ref_attr_name for a in node.attribute):
            raise PolicyError(f'{named}expected numbers and tensors as attributes, found '
                              'another graph or reference')
        inputs = [name for name in node.input if name]
        if not defined.issuperset(inputs):
            raise PolicyError(f'{named}expected inputs that nodes before it make, found '
                              f'{_line(", ".join(map(str, set(inputs) - defined)))[:100]!r}')
        if any(node.input[at] in data for at in OPERATORS[operator] if at < len(node.input)):
            raise PolicyError(f'{named}expected sizes and indices that no data decides')
        if whole.intersection(inputs) and operator not in _READING_WHOLE:
            raise PolicyError(f'{named}expected float32, found whole numbers made of data')
        if operator == 'Div' and not data.intersection(inputs):
            # Of whole numbers, then, for all that is known; and another N is another divisor.
            raise PolicyError(f'{named}expected a division of float32 made of data, found another')
        if operator == 'Cast' and any(a.i not in types for a in node.attribute if a.name == 'to'):
            # To text, for one: whether that is a number again, data would decide.
            raise PolicyError(f'{named}expected a cast to {", ".join(_TYPES)}, found another type')
        defined.update(node.output)
        if operator != 'Shape' and data.intersection(inputs):
            data.update(node.output)
            whole.update(_whole(node, data, onnx))


def _whole(node: Any, data: set[str], onnx: Any) -> list[str]:
    """Return the outputs of a node with data that may be whole numbers, where no input was."""
    if node.op_type == 'DynamicQuantizeLinear':
        return [node.output[0], *node.output[2:]]
    if (node.op_type == 'MatMulInteger'
            # Cast, but for one to float32; Where, if it chooses between constants.
            or node.op_type == 'Cast' and any(
                a.name == 'to' and a.i != onnx.TensorProto.FLOAT for a in node.attribute)
            or node.op_type == 'Where' and not data.intersection(node.input[1:])):
        return list(node.output)
    return []


def _optimise(content: bytes, path: pathlib.Path, threads: int, graph: int) -> Any:
    """Open a file as Session does, and write the graph as it is run."""
    try:
        import onnxruntime
    except ImportError as error:
        raise PolicyError(
            f'{path}: onnxruntime is not installed: pip install onnxruntime') from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised
    options.optimized_model_filepath = f'/proc/self/fd/{graph}'
    try:
        return onnxruntime.InferenceSession(
            content, options, providers=['CPUExecutionProvider'])
    except Exception as error:  # its exception classes have no base of their own
        raise PolicyError(
            f'{path}: not an ONNX file that onnxruntime {onnxruntime.__version__} opens: '
            f'{_line(error)[:300]}') from error


def _check_answers(path: pathlib.Path, found: list[np.ndarray], candidates: int, size: int,
                   known: bool) -> None:
    """Check the shapes of a run's answers, and where they have to be finite that they are.

    Zeros may be no observation at all (a quaternion, a log): what is not finite there says
    nothing, and the guard sees to it. An observation of the training data is one, and who has no
    answer to it has none. Other observations and other noise stay the guard's.
    """
    expected = [(1, candidates, size), (1, candidates), (1,)]
    shapes = [answer.shape for answer in found]
    if shapes != expected:
        raise PolicyError(
            f'{path}: graph: expected answers of the shapes {expected}, found {shapes}')
    if known and not all(np.isfinite(answer).all() for answer in found):
        raise PolicyError(f'{path}: graph: its answers to an observation of its own training data '
                          'are not finite')


def _confine(order: Mapping[str, Any]) -> None:
    """Bind this process: it ends with its parent, and takes so much and no more."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != order['parent']:
        os._exit(1)  # it ended before the line above
    os.nice(10)
    # Where memory runs out, it goes first, never the node; where /proc is closed, by chance.
    with contextlib.suppress(OSError), open('/proc/self/oom_score_adj', 'w') as file:
        file.write('1000')
    size = os.fstat(sys.stdin.fileno()).st_size
    for limit, most in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_CPU, math.ceil(order['timeout_s'] * order['threads'])),
            (resource.RLIMIT_AS, _ADDRESS_SPACE + _ADDRESS_SPACE_A_BYTE * size),
            (resource.RLIMIT_FSIZE, _largest_graph(size))):
        _, hard = resource.getrlimit(limit)
        # The hard limit stays: of processor time it kills without saying why.
        resource.setrlimit(
            limit, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def main() -> None:
    """Check the file on standard input as the order on the command line says."""
    order = json.loads(sys.argv[1])
    _confine(order)
    path = order['path']
    try:
        report: dict[str, Any] = {'candidates': check(
            sys.stdin.buffer.read(), pathlib.Path(path), order['threads'], order['candidates'],
            order['deadline_s'], order['graph'])}
    except PolicyError as error:
        report = {'error': str(error)}
    except MemoryError:
        report = {'error': f'{path}: refused: its check takes more memory than it may'}
    except Exception as error:
        # Of packages that read a file made to break them (a name that is no text, for one):
        # whatever it is, the file is refused.
        report = {'error': f'{path}: refused: its check failed, and the file may be damaged: '
                           f'{type(error).__name__}: {error}'}
    text = {key: _line(value) if isinstance(value, str) else value
            for key, value in report.items()}
    os.write(order['report'], json.dumps(text, ensure_ascii=False).encode())
    os._exit(0)  # what the libraries tear down at the end takes time, and is of no use


if __name__ == '__main__':
    main()
