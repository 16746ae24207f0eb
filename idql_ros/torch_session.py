"""A policy's graph, run by torch: for GPUs where ONNX Runtime has no build for them.

The same file: weights and operators are read from it. torch and onnx are imported lazily. Numbers
are float32 throughout, without TF32; they are ONNX Runtime's up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from idql_ros.session import INPUTS, OUTPUTS, SessionError, Tensor
import numpy as np

# Runs before one is recorded: the first ones allocate what the recording must not.
_WARM_UP = 3

Values = dict[str, Any]


class _Step(NamedTuple):
    """One operator on named values."""

    operator: Callable[..., Any]
    inputs: list[str]
    output: str
    attributes: dict[str, Any]


class TorchSession:
    """A graph, opened with torch; the attributes are those of `session.Session`.

    On a GPU one observation at a time, as a robot has it, is one CUDA graph for each N, recorded
    at the first run with it.
    """

    def __init__(self, content: bytes, threads: int = 1, device: str = 'auto') -> None:
        """Open a graph.

        Args:
            content: an ONNX file.
            threads: for one inference on the CPU; for all of torch in this process.
            device: 'cpu', or else a GPU where there is one.

        Raises:
            SessionError: torch or onnx is not installed, or the file is no graph that an export
                writes with float32 weights.
        """
        try:
            import onnx
            import torch
        except ImportError as error:
            raise SessionError(f'backend torch: {error.name} is not installed: pip install '
                               f'{error.name}') from error
        try:
            model = onnx.load_model_from_string(content)
        except Exception as error:  # protobuf's exception, which has no base that is public
            raise SessionError(
                f'not an ONNX file that onnx {onnx.__version__} reads: {_line(error)}') from error
        self._torch = torch
        torch.backends.cuda.matmul.allow_tf32 = False
        self.metadata = {entry.key: entry.value for entry in model.metadata_props}
        self.tensors = [_tensor(value) for value in (*model.graph.input, *model.graph.output)]
        operators = _operators(torch)
        nodes = _with_mish(list(model.graph.node))
        unknown = {node.op_type for node in nodes} - operators.keys()
        if unknown:
            raise SessionError(
                f'backend torch: expected a file with float32 weights, as training.export writes '
                f'it, found the operators {", ".join(sorted(unknown))}; use backend onnxruntime')
        constants = {tensor.name: onnx.numpy_helper.to_array(tensor)
                     for tensor in model.graph.initializer}
        self._steps: list[_Step] = []
        for node in nodes:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            self._steps.append(_Step(
                operators[node.op_type], node.input[:], node.output[0], attributes))
        why_not = []
        if device != 'cpu':
            try:
                if not torch.cuda.is_available():
                    raise SessionError('this build of torch has none'
                                       if torch.version.cuda is None else 'torch finds no GPU')
                self._try('cuda', constants)
            except Exception as error:  # a GPU can fail in many ways; the CPU still works
                why_not.append(f'not CUDA: {_line(error)}')
        if device == 'cpu' or why_not:
            torch.set_num_threads(threads)
            try:
                self._try('cpu', constants)
            except Exception as error:  # whatever torch says of a graph that no export wrote
                raise SessionError(f'backend torch cannot run it: {_line(error)}') from error
        self.provider = f'torch {torch.__version__} on {self._device}'
        self.notes: list[str] = [self.provider, *why_not]

    def run(self, observations: np.ndarray, noise: np.ndarray) -> list[np.ndarray]:
        """Return candidates (B, N, A), q (B, N) and v (B,).

        Args:
            observations: (B, O) float32.
            noise: (B, T, N, A) float32.
        """
        given = [self._torch.from_numpy(np.ascontiguousarray(array))
                 for array in (observations, noise)]
        with self._torch.inference_mode():
            if self._device == 'cuda' and len(observations) == 1:
                if noise.shape not in self._recorded:
                    self._recorded[noise.shape] = _Recording(
                        self._torch, self._compute, [x.to(self._device) for x in given])
                found = self._recorded[noise.shape].replay(given)
            else:
                found = self._compute([x.to(self._device) for x in given])
            return [x.cpu().numpy() for x in found]

    def _try(self, device: str, constants: Mapping[str, np.ndarray]) -> None:
        """Move to a device, and run once."""
        self._device = device
        self._recorded: dict[tuple[int, ...], _Recording] = {}
        self._constants: Values = {}
        for name, array in constants.items():
            tensor = self._torch.from_numpy(array.copy())
            # Sizes and indices stay where Python reads them.
            self._constants[name] = tensor.to(device) if tensor.is_floating_point() else tensor
        self.run(*(np.zeros([size or 1 for size in tensor.shape], np.float32)
                   for tensor in self.tensors[:len(INPUTS)]))

    def _compute(self, given: list[Any]) -> list[Any]:
        values = dict(zip(INPUTS, given, strict=True)) | self._constants
        for step in self._steps:
            values[step.output] = step.operator(
                *(values[name] for name in step.inputs), **step.attributes)
        return [values[name] for name in OUTPUTS]


class _Recording:
    """A CUDA graph of one shape: the tensors that it reads and writes, and the recording."""

    def __init__(
            self, torch: Any, compute: Callable[[list[Any]], list[Any]], given: list[Any]) -> None:
        self._torch = torch
        self._given = given
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                compute(given)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._found = compute(given)

    def replay(self, given: list[Any]) -> list[Any]:
        for ours, theirs in zip(self._given, given, strict=True):
            ours.copy_(theirs)
        self._graph.replay()
        return self._found


def _line(error: Exception) -> str:
    return ' '.join(str(error).split())[:300]


def _tensor(value: Any) -> Tensor:
    """Return what `session.Session` says of an input or output."""
    kind = value.type.tensor_type
    types = {1: 'tensor(float)', 11: 'tensor(double)'}
    return Tensor(value.name, types.get(kind.elem_type, f'type {kind.elem_type}'), tuple(
        size.dim_value if size.HasField('dim_value') else None for size in kind.shape.dim))


def _with_mish(nodes: list[Any]) -> list[Any]:
    """Return the nodes with Mish as one of them: on a GPU each node costs, however small.

    An export writes Mish of x as five nodes one after another that read z = -x.
    """
    from onnx import helper
    found: list[Any] = []
    while nodes:
        five = nodes[:5]
        if [node.op_type for node in five] == ['Sigmoid', 'Mul', 'HardSigmoid', 'Div', 'Sub']:
            z, = five[0].input
            p, square, h, quotient = (node.output[0] for node in five[:4])
            inputs = [list(node.input) for node in five[1:]]
            halves = sorted((a.name, a.f) for a in five[2].attribute)
            if (inputs == [[p, p], [square], [z, h], [z, quotient]]
                    and halves == [('alpha', 0.5), ('beta', 0.5)]):
                found.append(helper.make_node('MishOfNegative', [z], five[4].output))
                del nodes[:5]
                continue
        found.append(nodes.pop(0))
    return found


def _operators(torch: Any) -> Mapping[str, Callable[..., Any]]:
    """Return the operators that an export writes, by ONNX's names; attributes are keywords."""
    def sizes(x: Any) -> list[int]:
        return x.tolist()

    def only(fits: bool, expected: str) -> None:
        if not fits:
            raise SessionError(f'expected {expected}, as training.export writes it')

    def divide(x: Any, y: Any) -> Any:
        only(x.is_floating_point() and y.is_floating_point(), 'Div of float32')
        return torch.div(x, y)

    def gather(x: Any, index: Any, axis: int) -> Any:
        only(index.dim() == 0, 'Gather with one index')
        return x.select(axis, index.item())

    def reshape(x: Any, shape: Any) -> Any:
        only(0 not in sizes(shape), 'Reshape to sizes that are not 0')
        return x.reshape(sizes(shape))

    def layer_norm(x: Any, scale: Any, shift: Any, axis: int, epsilon: float) -> Any:
        only(axis in (-1, x.dim() - 1) and scale.shape == shift.shape == x.shape[-1:],
             'LayerNormalization over the last axis')
        return torch.nn.functional.layer_norm(x, scale.shape, scale, shift, epsilon)

    def minimum(*values: Any) -> Any:
        return values[0] if len(values) == 1 else torch.stack(values).amin(0)

    return {
        'Add': torch.add,
        'Clip': torch.clamp,
        'Concat': lambda *values, axis: torch.cat(values, axis),
        'Div': divide,
        'Expand': lambda x, y: x.expand(torch.broadcast_shapes(x.shape, sizes(y))),
        'Gather': gather,
        'Gemm': lambda a, b, c: torch.addmm(c, a, b),
        'LayerNormalization': layer_norm,
        'MatMul': torch.matmul,
        'Min': minimum,
        'MishOfNegative': lambda z: torch.nn.functional.mish(-z),
        'Mul': torch.mul,
        'Neg': torch.neg,
        'Relu': torch.relu,
        'Reshape': reshape,
        'Shape': lambda x, start, end: torch.tensor(x.shape[start:end]),
        'Sigmoid': torch.sigmoid,
        'Sub': torch.sub,
        'Transpose': lambda x, perm: x.permute(perm),
        'Unsqueeze': lambda x, axes: x.unsqueeze(*sizes(axes)),
    }
