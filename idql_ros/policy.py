"""Policy file -> candidates, Q, V -> the chosen action and its value signals.

The file is ONNX with everything else as JSON in its metadata (key `idql_ros`): the spec, the sizes
and the training's provenance. Noise is an input of the graph and a pure function of (seed, tick),
so a seed fixes every action, in evaluation and on the robot alike.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import stat
from typing import Any, get_args, Literal

from idql_ros import familiarity
from idql_ros import spec as specs
from idql_ros.session import CPU, open_session, Session, SessionError
import numpy as np

FORMAT_VERSION = 1
METADATA_KEY = 'idql_ros'
MAX_FILE_BYTES = 512 * 2**20
MAX_CANDIDATES = 65536
MAX_PROVENANCE = 2**16  # characters as JSON; training.export writes about 4000
MAX_PROVENANCE_DEPTH = 32
PROVENANCE_SHOWN = 1000
MAX_SOFTMAX_TEMPERATURE = 1e6
MAX_SAMPLING_TEMPERATURE = 2.0

Extraction = Literal['greedy', 'implicit', 'softmax']
CriticLoss = Literal['expectile', 'quantile', 'exponential']

# Candidates in one run of the graph: bounds the memory that they take on their way through it.
CANDIDATES_A_RUN = 4096

# What is not the CPU's ONNX Runtime may differ from it by so much: in actions of the range of
# their dimension; in Q and V of the largest of them, where that is above 1.
TOLERANCE = 2e-4

# The exponential loss cuts its factor exp(alpha u) here, in training and in the weight.
LARGEST_EXPONENTIAL = 6.0
# |u| in the quantile loss's weight counts as this at least: there it is singular at 0.
LEAST_ADVANTAGE = 1e-6


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
    distance: float = math.nan  # of the observation from the training data; NaN: not known

    @property
    def advantage(self) -> float:
        """Return by how much Q of the action exceeds V."""
        return self.q - self.v

    @property
    def q_mean(self) -> float:
        """Return the mean of Q over the candidates."""
        with np.errstate(invalid='ignore'):  # what is not finite, the guard refuses
            return float(np.mean(self.candidate_q, dtype=np.float64))

    @property
    def q_spread(self) -> float:
        """Return the standard deviation of Q over the candidates."""
        with np.errstate(invalid='ignore'):
            return float(np.std(self.candidate_q, dtype=np.float64))

    @property
    def values(self) -> dict[str, float]:
        """Return what the value guard watches, by the names of VALUE_NAMES."""
        return {'q': self.q, 'advantage': self.advantage, 'spread': self.q_spread,
                'distance': self.distance}


@dataclasses.dataclass(frozen=True)
class Vetted:
    """A policy file that passed `vetting.vet`, and what the check left behind."""

    path: pathlib.Path
    content: bytes  # the file, as it was read: what was checked
    digest: str  # SHA-256 of content, in hex
    optimised: bytes  # content's graph as ONNX Runtime runs it on this machine, with its metadata
    candidates: tuple[int, ...]  # every N that it was run with, the largest first


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


def read_file(path: pathlib.Path) -> bytes:
    """Return a policy file's content.

    Raises:
        PolicyError: it cannot be read, is no regular file, empty or too large.
    """
    try:
        # Another kind of file could make the reader wait for ever, or never end.
        with open(path, 'rb', opener=lambda name, flags: os.open(
                name, flags | os.O_NONBLOCK)) as file:
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            content = file.read(MAX_FILE_BYTES + 1) if regular else b''
    except OSError as error:
        raise PolicyError(f'{path}: cannot be read: {error.strerror}') from error
    except ValueError as error:  # no name that a file can have
        raise PolicyError(f'{str(path)!r}: cannot be read: {error}') from error
    if not regular:
        raise PolicyError(f'{path}: expected a regular file')
    if not content:  # None, of files that the system makes up and that have nothing to say yet
        raise PolicyError(f'{path}: cannot be read: nothing in it')
    if len(content) > MAX_FILE_BYTES:
        raise PolicyError(f'{path}: larger than {MAX_FILE_BYTES} bytes, no policy file')
    return content


def _generator(seed: int, tick_ns: int, purpose: int) -> np.random.Generator:
    # The counter runs up from its first word: neither ticks nor purposes ever meet.
    return np.random.Generator(np.random.Philox(
        key=np.array([seed, 0], np.uint64),
        counter=np.array([0, 0, tick_ns, purpose], np.uint64)))


def draw_noise(
        seed: int, tick_ns: int, steps: int, candidates: int, action_size: int,
        out: np.ndarray | None = None) -> np.ndarray:
    """Return the noise (1, T, N, A) float32 of a tick: a pure function of its arguments.

    Drawn from Philox, a counter-based generator: the seed is its key, the tick its counter (Salmon
    et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011). `out`, of that shape, is filled
    and returned instead of a new array.
    """
    generator = _generator(seed, tick_ns, 0)
    shape = (1, steps, candidates, action_size)
    return generator.standard_normal(shape, np.float32, out)


def draw_uniform(seed: int, tick_ns: int) -> float:
    """Return the number in [0, 1) that resampling uses at a tick: a pure function of both.

    The counter's last word keeps it apart from the tick's diffusion noise.
    """
    return float(_generator(seed, tick_ns, 1).random())


def implicit_weights(u: np.ndarray, critic_loss: str, parameter: float) -> np.ndarray:
    """Return w = |f'(u)| / |u| >= 0, by which the implicit policy differs from the behaviour's.

    With V fitted to Q by the loss f, V is the value of mu(a|s) w(s, a) / sum (IDQL, theorem 4.1).

    Args:
        u: Q - V, any shape.
        critic_loss: f; 'expectile' (without its factor 2), 'quantile' or 'exponential'.
        parameter: tau, or alpha of 'exponential'.

    Returns:
        w in float64, finite, of u's shape. At u = 0, expectile and quantile count as u < 0, as
        they do in training; exponential tends to alpha^2.
    """
    u = np.asarray(u, np.float64)
    if critic_loss == 'exponential':
        with np.errstate(over='ignore'):  # infinity has the right limit: a weight of 0
            x = parameter * u
        # Beyond log 6 the cut decides; 2 is beyond, and keeps expm1 from overflowing.
        slope = np.minimum(np.expm1(np.minimum(x, 2.0)), LARGEST_EXPONENTIAL - 1)
        near = np.abs(x) < 1e-8  # expm1(x) = x (1 + x / 2 + ...)
        return parameter**2 * np.where(near, 1 + x / 2, slope / np.where(near, 1.0, x))
    share = np.where(u > 0, parameter, 1 - parameter)
    if critic_loss == 'expectile':
        return share
    return share / np.maximum(np.abs(u), LEAST_ADVANTAGE)


def softmax_weights(q: np.ndarray, temperature: float) -> np.ndarray:
    """Return exp(temperature * (q - max q)): V cancels, and the best weighs 1.

    Args:
        q: (N,).
        temperature: 0: all alike; the higher, the closer to greedy. In units of 1 / Q.
    """
    q = np.asarray(q, np.float64)
    with np.errstate(over='ignore'):
        behind = np.maximum(q - q.max(), -np.finfo(np.float64).max)
        return np.exp(temperature * behind)


def choose(
        q: np.ndarray, v: float, extraction: Extraction = 'greedy', *, uniform: float = 0.0,
        critic_loss: str = 'expectile', critic_parameter: float = 0.7,
        temperature: float = 1.0) -> int:
    """Return the index of the candidate to act on.

    Args:
        q: (N,) Q of the candidates, which are samples of the behaviour policy.
        v: V of the observation.
        extraction: 'greedy': the largest Q; 'implicit': one candidate with a probability
            proportional to `implicit_weights`; 'softmax': to `softmax_weights`.
        uniform: in [0, 1), decides which candidate is drawn.
        critic_loss: the loss that fitted V, for 'implicit'.
        critic_parameter: its tau or alpha, likewise.
        temperature: of 'softmax'.
    """
    q = np.asarray(q, np.float64)
    rated_by = q - v if extraction == 'implicit' else q
    if extraction == 'greedy' or not np.isfinite(rated_by).all():
        return int(np.argmax(q))  # NaN, where there is one
    if extraction == 'implicit':
        weights = implicit_weights(rated_by, critic_loss, critic_parameter)
    else:
        weights = softmax_weights(q, temperature)
    bounds = np.cumsum(weights / weights.max())
    # Candidate i owns [bounds[i - 1], bounds[i]): one of weight 0 owns nothing.
    return int(np.searchsorted(bounds, uniform * bounds[-1], side='right'))


def check_extraction(extraction: str, temperature: float, sampling_temperature: float) -> None:
    """Check what `Policy.decide` takes.

    Raises:
        PolicyError: A value is out of its range; the text names it.
    """
    if extraction not in get_args(Extraction):
        raise PolicyError(
            f'extraction: expected {", ".join(get_args(Extraction))}, found {extraction!r}')
    for name, value, most in (
            ('softmax_temperature', temperature, MAX_SOFTMAX_TEMPERATURE),
            ('sampling_temperature', sampling_temperature, MAX_SAMPLING_TEMPERATURE)):
        if not 0 <= value <= most:
            raise PolicyError(f'{name}: expected a number from 0 to {most:g}, found {value}')


def _deeper_than(value: Any, levels: int) -> bool:
    """Return whether JSON data holds containers within each other on more levels."""
    layer = [value]
    for _ in range(levels):
        layer = [inner for outer in layer if isinstance(outer, (dict, list))
                 for inner in (outer.values() if isinstance(outer, dict) else outer)]
    return any(isinstance(each, (dict, list)) for each in layer)


def _refuse_constant(text: str) -> None:
    raise ValueError(f'{text}, which is no JSON')


class Policy:
    """A policy file, opened for inference by one thread at a time.

    Attributes:
        spec: what the policy observes and does.
        candidates: N that the file proposes.
        example: (O,) float32, an observation of the training data; None where the file has none.
        digest: SHA-256 of the file, in hex.
        provider: what runs it.
        notes: what was chosen to run it, and why nothing faster was.
        provenance: where the policy comes from, as its training wrote it.
        provenance_text: its beginning as JSON, PROVENANCE_SHOWN characters at most.
        critic_loss: the loss that fitted V to Q; decides the weights of implicit extraction.
        critic_parameter: its tau or alpha.
    """

    def __init__(self, path: str | pathlib.Path, threads: int = 1, *,
                 vetted: Vetted | None = None, backend: str = 'onnxruntime',
                 device: str = 'cpu') -> None:
        """Open and check a policy file.

        Args:
            path: the .onnx file.
            threads: threads for one inference.
            vetted: the file as `vetting.vet` returned it; it is not read again.
            backend: what runs it, see `session.open_session`.
            device: on what, likewise.

        Raises:
            PolicyError: the file cannot be read, is no policy file, is of another version,
                disagrees with the spec inside it, or is run by something that gives other answers
                than ONNX Runtime on the CPU.
        """
        self.path = pathlib.Path(path)
        content = read_file(self.path) if vetted is None else vetted.content
        self.digest = hashlib.sha256(content).hexdigest() if vetted is None else vetted.digest
        try:
            self._session = open_session(
                content, threads, optimised=None if vetted is None else vetted.optimised,
                backend=backend, device=device)
        except SessionError as error:
            raise PolicyError(f'{path}: {error}') from error
        self.provider: str = self._session.provider
        self.notes: list[str] = self._session.notes
        metadata = self._read_metadata()
        self.spec = self._read_spec(metadata)
        self.provenance, self.provenance_text = self._read_provenance(metadata)
        self._steps, self.candidates = self._check_sizes(metadata)
        self.critic_loss, self.critic_parameter = self._check_critic(metadata['model'])
        self._familiarity, self._usual = self._read_statistics(metadata)
        self.example = None if self._familiarity is None else np.array(
            metadata['statistics']['prototypes'][0], np.float32)
        self._noise = np.empty(0, np.float32)
        if self.provider != CPU:
            self._compare_with_cpu(
                content if vetted is None else vetted.optimised, threads, vetted)

    def _compare_with_cpu(self, content: bytes, threads: int, vetted: Vetted | None) -> None:
        """Check the answers of another backend or device with every N that may come up.

        What was checked of the file was checked on the CPU: its answers are those that count.
        """
        try:
            reference = Session(content, threads, optimised=vetted is not None)
        except SessionError as error:
            raise PolicyError(f'{self.path}: {error}') from error
        dimensions = [d for command in self.spec.actions for d in command.dimensions]
        ranges = np.array([d.upper - d.lower for d in dimensions])
        observation = (np.zeros(self.spec.observation_size, np.float32)
                       if self.example is None else self.example)
        for number in (self.candidates,) if vetted is None else vetted.candidates:
            noise = draw_noise(0, 0, self._steps, number, len(ranges))
            expected = _run(reference, observation[None], noise)
            try:
                found = _run(self._session, observation[None], noise)
            except Exception as error:  # a GPU can fail in many ways
                raise PolicyError(f'{self.path}: {self.provider} fails with {number} candidates: '
                                  f'{" ".join(str(error).split())[:300]}') from error
            values = np.abs(np.concatenate([x.ravel() for x in expected[1:]]))
            of_q = max(1.0, values[np.isfinite(values)].max(initial=0.0))
            for one, other, unit in zip(found, expected, (ranges, of_q, of_q), strict=True):
                if not np.allclose(one / unit, other / unit, 0, TOLERANCE, equal_nan=True):
                    raise PolicyError(
                        f'{self.path}: {self.provider}: expected the answers of ONNX Runtime on '
                        f'the CPU within {TOLERANCE:g} of their range, found others with {number} '
                        'candidates; use backend onnxruntime and device cpu')

    def _read_metadata(self) -> dict[str, Any]:
        text = self._session.metadata.get(METADATA_KEY)
        if text is None:
            raise PolicyError(
                f'{self.path}: an ONNX file, but no policy: expected the metadata {METADATA_KEY} '
                'that training.export writes, found none')
        try:
            metadata = json.loads(text, parse_constant=_refuse_constant)
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

    def _read_provenance(self, metadata: dict[str, Any]) -> tuple[dict[str, Any], str]:
        provenance = metadata.get('provenance', {})
        if not isinstance(provenance, dict):
            raise PolicyError(f'{self.path}: provenance: expected a mapping, found a '
                              f'{type(provenance).__name__}')
        # The node shows it and evaluation compares it: neither bounds what it walks through.
        deep = _deeper_than(provenance, MAX_PROVENANCE_DEPTH)
        text = '' if deep else json.dumps(provenance)
        if deep or len(text) > MAX_PROVENANCE:
            found = 'more levels' if deep else f'{len(text)} characters'
            raise PolicyError(
                f'{self.path}: provenance: expected at most {MAX_PROVENANCE_DEPTH} levels and '
                f'{MAX_PROVENANCE} characters as JSON, found {found}')
        return provenance, text[:PROVENANCE_SHOWN]

    def _check_sizes(self, metadata: dict[str, Any]) -> tuple[int, int]:
        model = metadata.get('model')
        model = model if isinstance(model, dict) else {}
        whole = {key: model.get(key) for key in (
            'observation_size', 'action_size', 'diffusion_steps', 'candidates')}
        for key, value in whole.items():
            if type(value) is not int or not 1 <= value <= 2**20:
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
        found_shapes = {tensor.name: tensor.shape for tensor in self._session.tensors}
        if found_shapes != expected_shapes:
            raise PolicyError(f'{self.path}: graph: expected inputs and outputs {expected_shapes} '
                              f'(None: any size) as its metadata say, found {found_shapes}')
        found_types = {tensor.type for tensor in self._session.tensors}
        if found_types != {'tensor(float)'}:
            raise PolicyError(f'{self.path}: graph: expected inputs and outputs of float32, found '
                              f'{", ".join(sorted(found_types))}')
        return steps, whole['candidates']

    def _check_critic(self, model: dict[str, Any]) -> tuple[str, float]:
        loss, parameter = model.get('critic_loss'), model.get('critic_parameter')
        losses = get_args(CriticLoss)
        if loss not in losses:
            raise PolicyError(
                f'{self.path}: model.critic_loss: expected {", ".join(losses)}, found {loss!r}')
        most = float(np.finfo(np.float64).max) if loss == 'exponential' else 1.0
        if type(parameter) not in (int, float) or not 0 < parameter < most:
            raise PolicyError(
                f'{self.path}: model.critic_parameter: expected a number above 0 and below '
                f'{most:g} for {loss}, found {parameter!r}')
        return loss, float(parameter)

    def _read_statistics(
            self, metadata: dict[str, Any],
    ) -> tuple[familiarity.Familiarity | None, familiarity.UsualValues | None]:
        if 'statistics' not in metadata:
            return None, None
        try:
            return familiarity.read(metadata['statistics'], self.spec.observation_size)
        except familiarity.StatisticsError as error:
            raise PolicyError(f'{self.path}: {error}') from error

    def value_ranges_for(
            self, candidates: int, extraction: str = 'greedy',
            sampling_temperature: float = 1.0) -> familiarity.Ranges:
        """Return name of a value -> its range in the training data, for decisions made so.

        Empty where the file has no statistics; the observation's distance alone where something
        else than the best of the actor's own samples is chosen, of which nothing is known.

        Args:
            candidates: N.
            extraction: as in `decide_batch`.
            sampling_temperature: likewise.
        """
        if self._usual is None:
            return {}
        if extraction != 'greedy' or sampling_temperature != 1:
            return {'distance': self._usual.distance}
        return self._usual.ranges(candidates)

    def decide(self, observation: np.ndarray, tick_ns: int, seed: int,
               candidates: int, *, extraction: Extraction = 'greedy', temperature: float = 1.0,
               sampling_temperature: float = 1.0) -> Decision:
        """Choose the action for one observation: `decide_batch` of one."""
        decision, = self.decide_batch(
            observation[None], [tick_ns], seed, candidates, extraction=extraction,
            temperature=temperature, sampling_temperature=sampling_temperature)
        return decision

    def decide_batch(
            self, observations: np.ndarray, ticks_ns: Sequence[int], seed: int,
            candidates: int, *, extraction: Extraction = 'greedy', temperature: float = 1.0,
            sampling_temperature: float = 1.0) -> list[Decision]:
        """Choose the action for each of several observations.

        The noise of each is that of its own tick. What stands beside it in a batch may change
        the last bits of its candidates, Q and V, as the order of sums does.

        Args:
            observations: (B, O) float32, finite.
            ticks_ns: B times of ticks, 0 or more.
            seed: 0 to 2^64 - 1.
            candidates: N, how many actions are drawn; 1 is a sample of the behaviour policy.
            extraction: how one of them is chosen, see `choose`; 'greedy' and 'implicit' are those
                of IDQL, section 4.
            temperature: of 'softmax', 0 or more, in units of 1 / Q; the higher, the greedier.
            sampling_temperature: scales the noise that the denoising steps add; 0: they add none,
                and only where sampling starts is random.

        Raises:
            PolicyError: The extraction is unknown or a temperature out of its range.
        """
        check_extraction(extraction, temperature, sampling_temperature)
        rows = max(1, CANDIDATES_A_RUN // candidates)
        decisions = []
        for first in range(0, len(ticks_ns), rows):
            ticks = ticks_ns[first:first + rows]
            noise = self._noise_for(len(ticks), candidates)
            for i, tick_ns in enumerate(ticks):
                draw_noise(seed, tick_ns, *noise.shape[1:], noise[i:i + 1])
            noise[:, 1:] *= np.float32(sampling_temperature)
            batch = observations[first:first + rows]
            for observation, tick_ns, actions, q, v in zip(
                    batch, ticks, *_run(self._session, batch, noise), strict=True):
                uniform = 0.0 if extraction == 'greedy' else draw_uniform(seed, tick_ns)
                chosen = choose(
                    q, float(v), extraction, uniform=uniform, critic_loss=self.critic_loss,
                    critic_parameter=self.critic_parameter, temperature=temperature)
                # The guard refuses an action whose Q is not finite; here the choice rests on V
                # as well.
                rated = extraction != 'implicit' or np.isfinite(v)
                known = self._familiarity
                decisions.append(Decision(
                    actions[chosen], float(q[chosen]) if rated else math.nan, float(v), actions,
                    q, math.nan if known is None else known.distance(observation)))
        return decisions

    def _noise_for(self, batch: int, candidates: int) -> np.ndarray:
        """Return memory for the noise (b, T, N, A): a robot's ticks ask for the same each time."""
        shape = (batch, self._steps, candidates, self.spec.action_size)
        if self._noise.shape != shape:
            self._noise = np.empty(shape, np.float32)
        return self._noise


def runs_for(candidates: int) -> int:
    """Return how many runs of the graph draw so many candidates, divided as evenly as it goes."""
    return -(-candidates // CANDIDATES_A_RUN)


def _run(
        session: Any, observations: np.ndarray, noise: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return candidates (B, N, A), q (B, N) and v (B,) for noise (B, T, N, A)."""
    actions, q, v = zip(*(
        session.run(observations, part)
        for part in np.array_split(noise, runs_for(noise.shape[2]), axis=2)), strict=True)
    return np.concatenate(actions, axis=1), np.concatenate(q, axis=1), v[0]
