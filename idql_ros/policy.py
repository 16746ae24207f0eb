"""Policy file -> candidates, Q, V -> the chosen action and its value signals.

The file is ONNX with everything else as JSON in its metadata (key `idql_ros`): the spec, the sizes
and the training's provenance. Noise is an input of the graph and a pure function of (seed, tick),
so a seed fixes every action, in evaluation and on the robot alike.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

from idql_ros import spec as specs
import numpy as np

FORMAT_VERSION = 1
METADATA_KEY = 'idql_ros'
MAX_FILE_BYTES = 512 * 2**20
MAX_CANDIDATES = 4096


class PolicyError(ValueError):
    """A policy file that cannot be used; the text names the file, what was expected and found."""


@dataclasses.dataclass(frozen=True)
class Decision:
    """The chosen action and the values that led to it."""

    action: np.ndarray  # (A,) float32, physical units
    q: float  # Q of the action
    v: float  # V of the observation
    candidates: np.ndarray  # (N, A)
    candidate_q: np.ndarray  # (N,)


def default_path() -> pathlib.Path:
    """Return the policy that is installed with the package, or lies in the source tree."""
    name = pathlib.Path('config', 'policies', 'pointmaze_medium.onnx')
    source = pathlib.Path(__file__).resolve().parents[1] / name
    if source.is_file():
        return source
    try:
        from ament_index_python.packages import get_package_share_directory
        return pathlib.Path(get_package_share_directory('idql_ros')) / name
    except (ImportError, LookupError) as error:
        raise PolicyError(
            f'{source}: the default policy is neither here nor in an installed idql_ros '
            f'({error}); name a policy file') from error


def draw_noise(
        seed: int, tick_ns: int, steps: int, candidates: int, action_size: int) -> np.ndarray:
    """Return the noise (1, T, N, A) float32 of a tick: a pure function of its arguments.

    Drawn from Philox, a counter-based generator: the seed is its key, the tick its counter (Salmon
    et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011).
    """
    generator = np.random.Generator(np.random.Philox(
        key=np.array([seed, 0], np.uint64), counter=np.array([0, 0, tick_ns, 0], np.uint64)))
    return generator.standard_normal((1, steps, candidates, action_size), np.float32)


class Policy:
    """A policy file, opened for inference on the CPU.

    Attributes:
        spec: what the policy observes and does.
        candidates: N that the file proposes.
        digest: SHA-256 of the file, in hex.
        provenance: where the policy comes from, as its training wrote it.
    """

    def __init__(self, path: str | pathlib.Path, threads: int = 1) -> None:
        """Open and check a policy file.

        Args:
            path: the .onnx file.
            threads: threads for one inference.

        Raises:
            PolicyError: the file cannot be read, is no policy file, is of another version, or
                disagrees with the spec inside it.
        """
        self.path = pathlib.Path(path)
        try:
            if self.path.stat().st_size > MAX_FILE_BYTES:
                raise PolicyError(f'{path}: larger than {MAX_FILE_BYTES} bytes, no policy file')
            content = self.path.read_bytes()
        except OSError as error:
            raise PolicyError(f'{path}: cannot be read: {error.strerror}') from error
        self.digest = hashlib.sha256(content).hexdigest()
        self._session = _open(path, content, threads)
        metadata = self._read_metadata()
        self.spec = self._read_spec(metadata)
        self.provenance: dict[str, Any] = metadata.get('provenance', {})
        self._steps, self.candidates = self._check_sizes(metadata)

    def _read_metadata(self) -> dict[str, Any]:
        text = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None:
            raise PolicyError(
                f'{self.path}: an ONNX file, but no policy: expected the metadata {METADATA_KEY} '
                'that training.export writes, found none')
        try:
            metadata = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PolicyError(
                f'{self.path}: metadata {METADATA_KEY}: expected JSON, found {error}') from error
        version = metadata.get('format_version') if isinstance(metadata, dict) else None
        if version != FORMAT_VERSION:
            raise PolicyError(
                f'{self.path}: format_version: expected {FORMAT_VERSION}, which this release '
                f'reads, found {version}; export the policy again')
        return metadata

    def _read_spec(self, metadata: dict[str, Any]) -> specs.Spec:
        try:
            return specs.parse(metadata.get('spec'), f'{self.path}: spec')
        except specs.SpecError as error:
            raise PolicyError(str(error)) from error

    def _check_sizes(self, metadata: dict[str, Any]) -> tuple[int, int]:
        model = metadata.get('model')
        model = model if isinstance(model, dict) else {}
        whole = {key: model.get(key) for key in (
            'observation_size', 'action_size', 'diffusion_steps', 'candidates')}
        for key, value in whole.items():
            if not isinstance(value, int) or not 1 <= value <= 2**20:
                raise PolicyError(
                    f'{self.path}: model.{key}: expected a whole number above 0, found {value}')
        if whole['candidates'] > MAX_CANDIDATES:
            raise PolicyError(f'{self.path}: model.candidates: expected at most {MAX_CANDIDATES}, '
                              f'found {whole["candidates"]}')
        for key, expected in (('observation_size', self.spec.observation_size),
                              ('action_size', self.spec.action_size)):
            if whole[key] != expected:
                raise PolicyError(f'{self.path}: model.{key}: expected {expected} as the spec '
                                  f'inside gives, found {whole[key]}')
        steps, o, a = whole['diffusion_steps'], whole['observation_size'], whole['action_size']
        expected_shapes = {
            'observations': (None, o), 'noise': (None, steps, None, a),
            'candidates': (None, None, a), 'q': (None, None), 'v': (None,)}
        values = (*self._session.get_inputs(), *self._session.get_outputs())
        found_shapes = {value.name: tuple(
            size if isinstance(size, int) else None for size in value.shape) for value in values}
        if found_shapes != expected_shapes:
            raise PolicyError(f'{self.path}: graph: expected inputs and outputs {expected_shapes} '
                              f'(None: any size) as its metadata say, found {found_shapes}')
        found_types = {value.type for value in values}
        if found_types != {'tensor(float)'}:
            raise PolicyError(f'{self.path}: graph: expected inputs and outputs of float32, found '
                              f'{", ".join(sorted(found_types))}')
        return steps, whole['candidates']

    def decide(self, observation: np.ndarray, tick_ns: int, seed: int,
               candidates: int) -> Decision:
        """Choose the action for one observation.

        Args:
            observation: (O,) float32, finite.
            tick_ns: the tick's time, 0 or more.
            seed: 0 to 2^64 - 1.
            candidates: N, how many actions are drawn; 1 is a sample of the behaviour policy.

        Returns:
            The candidate with the largest Q (greedy extraction, IDQL section 4).
        """
        noise = draw_noise(seed, tick_ns, self._steps, candidates, self.spec.action_size)
        actions, q, v = self._session.run(
            ['candidates', 'q', 'v'], {'observations': observation[None], 'noise': noise})
        best = int(np.argmax(q[0]))
        return Decision(actions[0, best], float(q[0, best]), float(v[0]), actions[0], q[0])


def _open(path: str | pathlib.Path, content: bytes, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise PolicyError(
            'onnxruntime is not installed: pip install onnxruntime') from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads starve a simulator or driver on the same cores.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    options.log_severity_level = 4  # what goes wrong is raised
    try:
        return onnxruntime.InferenceSession(
            content, options, providers=['CPUExecutionProvider'])
    except Exception as error:  # its exception classes have no base of their own
        raise PolicyError(f'{path}: not an ONNX file that onnxruntime {onnxruntime.__version__} '
                          f'opens: {" ".join(str(error).split())[:300]}') from error
