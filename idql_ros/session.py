"""A policy's graph, opened for inference. The onnxruntime that runs it is imported lazily."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

INPUTS = ('observations', 'noise')
OUTPUTS = ('candidates', 'q', 'v')


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
    """

    def __init__(self, content: bytes, threads: int = 1) -> None:
        """Open a graph.

        Args:
            content: an ONNX file.
            threads: for one inference.

        Raises:
            SessionError: it cannot be opened.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise SessionError(
                'onnxruntime is not installed: pip install onnxruntime') from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Spinning threads starve a simulator or driver on the same cores.
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        options.log_severity_level = 4  # what goes wrong is raised
        try:
            self._session = onnxruntime.InferenceSession(
                content, options, providers=['CPUExecutionProvider'])
        except Exception as error:  # its exception classes have no base of their own
            raise SessionError(
                f'not an ONNX file that onnxruntime {onnxruntime.__version__} opens: '
                f'{" ".join(str(error).split())[:300]}') from error
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        self.tensors = _tensors((*self._session.get_inputs(), *self._session.get_outputs()))
        self.provider: str = self._session.get_providers()[0]

    def run(self, observations: np.ndarray, noise: np.ndarray) -> list[np.ndarray]:
        """Return candidates (B, N, A), q (B, N) and v (B,).

        Args:
            observations: (B, O) float32.
            noise: (B, T, N, A) float32.
        """
        return self._session.run(
            list(OUTPUTS), {'observations': observations, 'noise': noise})


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    return [Tensor(value.name, value.type, tuple(
        size if isinstance(size, int) else None for size in value.shape)) for value in values]
