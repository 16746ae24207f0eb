"""A policy's graph, opened for inference: on the CPU, or on a GPU where there is one.

The onnxruntime that runs it is imported lazily; so is torch, which can take its place.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

import numpy as np

INPUTS = ('observations', 'noise')
OUTPUTS = ('candidates', 'q', 'v')

BACKENDS = ('onnxruntime', 'torch')
DEVICES = ('auto', 'cpu', 'cuda', 'tensorrt')

# Beside TensorRT's engines: every N that they were built for.
_BUILT = 'candidates.json'

CPU, CUDA, TENSORRT = (f'{name}ExecutionProvider' for name in ('CPU', 'CUDA', 'Tensorrt'))


class SessionError(ValueError):
    """A graph that cannot be opened; the text says why."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An input or output of a graph; a size is None where it may be any."""

    name: str
    type: str
    shape: tuple[int | None, ...]


class Session:
    """A graph, opened with ONNX Runtime.

    Attributes:
        metadata: the file's texts.
        tensors: inputs and outputs of the graph.
        provider: what runs it, for example 'CPUExecutionProvider'.
        notes: what was chosen, and why nothing faster was.
    """

    def __init__(self, content: bytes, threads: int = 1, *, optimised: bool = False,
                 provider: str = CPU, options: Mapping[str, str] | None = None,
                 candidates: Collection[int] | None = None) -> None:
        """Open a graph.

        Args:
            content: an ONNX file.
            threads: for one inference.
            optimised: the graph was optimised before and is run as it is.
            provider: what is to run it; what it cannot run goes to the CPU.
            options: of the provider.
            candidates: every N that it may be run with, for one observation; None: any.

        Raises:
            SessionError: it cannot be opened, or not with this provider.
        """
        self._candidates = candidates
        onnxruntime = _onnxruntime()
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        # Spinning threads starve a simulator or driver on the same cores.
        settings.add_session_config_entry('session.intra_op.allow_spinning', '0')
        settings.log_severity_level = 4  # what goes wrong is raised
        if optimised:
            settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session = onnxruntime.InferenceSession(
                content, settings, providers=[(provider, dict(options or {}))],
                enable_fallback=0)  # another provider is our choice, and noted
        except Exception as error:  # its exception classes have no base of their own
            raise SessionError(
                f'not an ONNX file that onnxruntime {onnxruntime.__version__} opens: '
                f'{" ".join(str(error).split())[:300]}') from error
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        self.tensors = _tensors((*self._session.get_inputs(), *self._session.get_outputs()))
        self.provider: str = self._session.get_providers()[0]
        if self.provider != provider:  # onnxruntime takes the CPU, and only warns
            raise SessionError(f'{provider} could not be loaded; are its libraries installed?')
        self.notes = [f'{self.provider} of onnxruntime {onnxruntime.__version__}']
        self._bound: dict[tuple[int, ...], _Bound] = {}

    def run(self, observations: np.ndarray, noise: np.ndarray) -> list[np.ndarray]:
        """Return candidates (B, N, A), q (B, N) and v (B,).

        Args:
            observations: (B, O) float32.
            noise: (B, T, N, A) float32.

        Raises:
            SessionError: N is none that it may be run with.
        """
        batch, _, number, _ = noise.shape
        if self._candidates is not None and (batch > 1 or number not in self._candidates):
            raise SessionError(
                f'{self.provider}: expected one observation and as many candidates as engines '
                f'were built for ({", ".join(map(str, self._candidates))}), found {batch} and '
                f'{number}: run python -m idql_ros.session FILE {number}, which takes minutes')
        if self.provider == CPU:
            return self._session.run(
                list(OUTPUTS), {'observations': observations, 'noise': noise})
        shape = noise.shape
        if shape not in self._bound:
            self._bound[shape] = _Bound(self._session, observations, noise, len(self._bound) + 1)
        return self._bound[shape].run(observations, noise)


class _Bound:
    """Inputs and outputs of one shape, which stay on the GPU, and the CUDA graph between them.

    For one observation at a time, as on a robot, the first run records and later ones replay;
    batches, as in evaluation, have too many shapes for that.
    """

    def __init__(
            self, session: Any, observations: np.ndarray, noise: np.ndarray, number: int) -> None:
        onnxruntime = _onnxruntime()
        batch, _, candidates, actions = noise.shape
        shapes = ((batch, candidates, actions), (batch, candidates), (batch,))
        self._session = session
        self._inputs = [onnxruntime.OrtValue.ortvalue_from_numpy(array, 'cuda', 0)
                        for array in (observations, noise)]
        self._outputs = [onnxruntime.OrtValue.ortvalue_from_shape_and_type(
            shape, np.float32, 'cuda', 0) for shape in shapes]
        self._binding = session.io_binding()
        for name, value in zip(INPUTS, self._inputs, strict=True):
            self._binding.bind_ortvalue_input(name, value)
        for name, value in zip(OUTPUTS, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(name, value)
        # A recording belongs to one shape; -1: none is made. 0 is the runtime's own.
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry('gpu_graph_id', str(number if batch == 1 else -1))

    def run(self, observations: np.ndarray, noise: np.ndarray) -> list[np.ndarray]:
        for value, array in zip(self._inputs, (observations, noise), strict=True):
            value.update_inplace(np.ascontiguousarray(array))
        self._session.run_with_iobinding(self._binding, self._options)
        return [value.numpy() for value in self._outputs]


def open_session(
        content: bytes, threads: int = 1, *, optimised: bytes | None = None,
        backend: str = 'onnxruntime', device: str = 'auto') -> Any:
    """Open a graph, and note what runs it and why nothing faster does.

    Args:
        content: an ONNX file.
        threads: for one inference on the CPU.
        optimised: the same graph, as ONNX Runtime optimised it for this CPU; None: there is none.
        backend: one of BACKENDS.
        device: one of DEVICES; 'auto': a GPU where there is one. What a GPU cannot run, the CPU
            does.

    Returns:
        A `Session`, or what has its attributes.

    Raises:
        SessionError: it cannot be opened on the CPU either, or backend or device are unknown.
    """
    for name, value, known in (('backend', backend, BACKENDS), ('device', device, DEVICES)):
        if value not in known:
            raise SessionError(f'{name}: expected {", ".join(known)}, found {value!r}')
    if backend == 'torch':
        from idql_ros.torch_session import TorchSession
        return TorchSession(content, threads, device)
    notes = []
    for provider in {'cpu': [], 'tensorrt': [TENSORRT, CUDA]}.get(device, [CUDA]):
        try:
            session = _open_on_gpu(content, provider)
        except SessionError as error:
            notes.append(f'not {provider}: {error}')
        else:
            break
    else:
        session = Session(content if optimised is None else optimised, threads,
                          optimised=optimised is not None)
    session.notes += notes
    return session


def _open_on_gpu(content: bytes, provider: str) -> Session:
    """Open a graph with a provider that has shown that it runs it; SessionError says why not."""
    onnxruntime = _onnxruntime()
    if provider not in onnxruntime.get_available_providers():
        raise SessionError(
            f'this build of onnxruntime {onnxruntime.__version__} has none '
            '(onnxruntime-gpu has; or use the backend torch)')
    if provider == TENSORRT:
        folder = engine_folder(content)
        built = _built(folder)
        if not built:
            raise SessionError('no engine was built for this file on this machine: run '
                               'python -m idql_ros.session FILE, which takes minutes')
        # With another N it would build one, while a robot waits.
        return _tried(content, provider, _tensorrt_options(folder), built)
    options = {'use_tf32': '0'}  # TF32 keeps 10 bits of each factor
    try:
        return _tried(content, provider, options | {'enable_cuda_graph': '1'})
    except SessionError as error:
        session = _tried(content, provider, options)
        session.notes.append(f'without a CUDA graph: {error}')
        return session


def _tensorrt_options(folder: pathlib.Path) -> dict[str, str]:
    return {'trt_engine_cache_enable': '1', 'trt_engine_cache_path': str(folder)}


def _built(folder: pathlib.Path) -> list[int]:
    """Return every N that engines in a folder were built for."""
    try:
        return json.loads((folder / _BUILT).read_text())
    except (OSError, ValueError):
        return []


def _tried(content: bytes, provider: str, options: Mapping[str, str],
           candidates: Collection[int] | None = None) -> Session:
    """Open a graph and run it once, with one candidate; SessionError says what went wrong."""
    session = Session(content, provider=provider, options=options, candidates=candidates)
    try:
        session.run(*(np.zeros([size or 1 for size in tensor.shape], np.float32)
                      for tensor in session.tensors[:len(INPUTS)]))
    except Exception as error:  # its exception classes have no base of their own
        raise SessionError(f'it failed: {" ".join(str(error).split())[:300]}') from error
    return session


def engine_folder(content: bytes) -> pathlib.Path:
    """Return where TensorRT's engines for a file lie."""
    cache = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    return pathlib.Path(cache, 'idql_ros', 'tensorrt', hashlib.sha256(content).hexdigest())


def build_engines(content: bytes, candidates: Sequence[int]) -> None:
    """Build TensorRT's engines for a file, so that a node only has to load them.

    Args:
        content: an ONNX file.
        candidates: every N that it will be run with.

    Raises:
        SessionError: TensorRT is not to be had, or does not run the graph.
    """
    if TENSORRT not in _onnxruntime().get_available_providers():
        raise SessionError('expected an onnxruntime with TensorRT (onnxruntime-gpu), found '
                           f'{", ".join(_onnxruntime().get_available_providers())}')
    folder = engine_folder(content)
    folder.mkdir(parents=True, exist_ok=True)
    session = _tried(content, TENSORRT, _tensorrt_options(folder))
    observations, noise = (tensor.shape for tensor in session.tensors[:len(INPUTS)])
    for number in candidates:
        session.run(np.zeros((1, observations[1]), np.float32),
                    np.zeros((1, noise[1], number, noise[3]), np.float32))
    (folder / _BUILT).write_text(json.dumps(sorted({1, *_built(folder), *candidates})))


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise SessionError(
            'onnxruntime is not installed: pip install onnxruntime') from error
    return onnxruntime


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    return [Tensor(value.name, value.type, tuple(
        size if isinstance(size, int) else None for size in value.shape)) for value in values]


def main(arguments: Sequence[str] | None = None) -> None:
    """Build TensorRT's engines, as the command line says."""
    parser = argparse.ArgumentParser(
        prog='python -m idql_ros.session',
        description="Build TensorRT's engines for a policy file on this machine, for device: "
        'tensorrt.')
    parser.add_argument('policy', type=pathlib.Path, help='policy file (.onnx)')
    parser.add_argument('candidates', type=int, nargs='*', default=[64, 32, 16, 8],
                        help='every N that it will be run with')
    options = parser.parse_args(arguments)
    try:
        build_engines(options.policy.read_bytes(), options.candidates)
    except (OSError, SessionError) as error:
        raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
    main()
