"""Replay a recorded run of another IDQL learner: `python -m training.parity FILE.npz [options]`.

The file (.npz) holds parameters before and after, the batches, times and noise of every update,
the losses, and a sampling; doc/algorithm.md lists its keys. The learner is built from the sizes in
the file, given the same inputs, and compared. What runs is `training.idql`, which also trains.

Exit status: 0 equal within the tolerances, 1 not, 2 the file is no such recording.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
import json
from pathlib import Path
import sys
from typing import get_args
import zipfile
import zlib

from idql_ros.policy import choose
import numpy as np
import torch
from torch import Tensor
from training.diffusion import ScheduleName
from training.idql import Batch, IDQL, IDQLConfig, LARGEST_ACTION

# Of the published variants what a file's shapes do not tell.
VARIANTS = {'simple': 'silu', 'full': 'mish'}
DEFAULT_PARAMETERS = {'expectile': 0.7, 'quantile': 0.6, 'exponential': 1.0}
# How the runs at hand were recorded, as far as nothing in a file tells.
RECORDED = {
    'actor_learning_rate': 3e-4,
    'actor_decay_steps': 1000,
    'actor_weight_decay': 1e-4,
    'actor_average_rate': 0.001,
    'critic_learning_rate': 3e-4,
    'critic_target_rate': 0.005,
}

LOSSES = ('actor_loss', 'value_loss', 'critic_loss', 'v', 'q')
# Largest error: of losses relative, of the others absolute.
LOSS_TOLERANCE = 1e-4
PARAMETER_TOLERANCE = 1e-5
SAMPLE_TOLERANCE = 2e-4
# Ours is rounded once. A schedule computed in float32 throughout has quotients of neighbouring
# numbers near 1: of the cosine's betas the rounding reaches 3e-6 at T = 100, 3e-5 at T = 1000.
SCHEDULE_TOLERANCE = 1e-4
# Relative errors are of the recorded number or of this, whichever is larger. Mean V and Q cross
# zero: there their error is that of the V and Q averaged (float32's epsilon of some units), and
# 1e-4 of 0.05 allows 5e-6, less than parameters within their tolerance can make of it. The losses
# are means of what is never negative; the floor is for one that is zero.
FLOORS = {'v': 0.05, 'q': 0.05, 'actor_loss': 1e-3, 'value_loss': 1e-3, 'critic_loss': 1e-3}

# Our networks and where the file keeps their parameters after the last update.
FINAL = {
    'actor': 'score_model',
    'averaged_actor': 'target_score_model',
    'critics': 'critic',
    'target_critics': 'target_critic',
    'value': 'value',
}
ENSEMBLE = 'VmapStateActionValue_0/'


class RecordingError(ValueError):
    """A file is not a recorded run; the text names the file, what was expected and found."""


class Recording:
    """A recorded run: its arrays and the sizes that follow from them.

    Attributes:
        arrays: the file's arrays by key; what is a fraction is float32.
        updates: the recorded updates.
        observation_size: O.
        action_size: A.
        diffusion_steps: T.
        candidates: N.
        blocks: residual blocks of the noise predictor.
        critic_layers: hidden layers of each critic.
        value_layers: hidden layers of the value network.
        value_input_layer_norm: whether the value network normalises its input.
    """

    def __init__(self, path: Path | str) -> None:
        """Read a file and its sizes; `replay` checks the shapes of the parameters.

        Args:
            path: The .npz file.

        Raises:
            RecordingError: It is not a recording.
            OSError: It cannot be read.
        """
        self.path = Path(path)
        self.arrays = self._load()
        self.diffusion_steps = len(self.get('schedule/betas', None))
        self.observation_size = len(self.get('sample/observation', None))
        self.candidates, self.action_size = self.get('sample/initial_noise', None, None).shape
        self.updates = self._count('batch/{}/observations')
        block, dense = 'MLPResNet_0/MLPResNetBlock_{}/Dense_0/kernel', 'MLP_0/Dense_{}/kernel'
        self.blocks = self._count(f'init/score_model/{block}')
        self.critic_layers = self._count(f'init/critic/{ENSEMBLE}{dense}')
        self.value_layers = self._count(f'init/value/{dense}')
        self.value_input_layer_norm = 'init/value/MLP_0/LayerNorm_0/scale' in self.arrays
        self._check()

    def _load(self) -> dict[str, np.ndarray]:
        try:
            # Of anything else NumPy says that it holds pickled objects.
            with open(self.path, 'rb') as content:
                if content.read(4) != b'PK\x03\x04':
                    raise ValueError('a file that is no zip archive')
            with np.load(self.path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
        except OSError as error:
            if error.strerror is None:  # not from the system: what is in the file
                raise self._refusal('a NumPy .npz file', ' '.join(str(error).split())) from error
            raise
        except (EOFError, MemoryError, NotImplementedError, RuntimeError, ValueError, zlib.error,
                zipfile.BadZipFile) as error:
            raise self._refusal(
                'a NumPy .npz file without pickled objects',
                ' '.join(str(error).split())[:200]) from error
        for key, array in arrays.items():
            if array.dtype.kind not in 'fiub':
                raise self._refusal(f'{key} of numbers', array.dtype)
            if array.dtype.kind == 'f':
                arrays[key] = array.astype(np.float32)
        return arrays

    def _refusal(self, expected: str, found: object) -> RecordingError:
        return RecordingError(f'{self.path}: expected {expected}, found {found}')

    def _count(self, pattern: str) -> int:
        """Return how many of the keys pattern.format(0), pattern.format(1), ... there are."""
        count = 0
        while pattern.format(count) in self.arrays:
            count += 1
        if not count:
            raise self._refusal(f'the key {pattern.format(0)}', 'none')
        return count

    def get(self, key: str, *shape: int | None) -> np.ndarray:
        """Return an array; None stands for any size but 0.

        Raises:
            RecordingError: It is absent or of another shape.
        """
        if key not in self.arrays:
            raise self._refusal(f'the key {key}', 'none')
        array = self.arrays[key]
        if array.ndim != len(shape) or not all(
            size > 0 if expected is None else size == expected
            for size, expected in zip(array.shape, shape, strict=True)
        ):
            raise self._refusal(
                f'{key} of shape {str(shape).replace("None", "any")}', array.shape)
        return array

    def _check(self) -> None:
        """Check everything but the parameters."""
        o, a, n, t = (
            self.observation_size, self.action_size, self.candidates, self.diffusion_steps)
        shapes: dict[str, tuple[int, ...]] = {
            'schedule/alphas': (t,), 'schedule/alpha_hats': (t,), 'sample/step_noise': (t, n, a),
            'sample/candidates': (n, a), 'sample/q': (n,), 'sample/greedy_action': (a,),
        }
        for k in range(self.updates):
            b = len(self.get(f'batch/{k}/observations', None, o))
            shapes |= {
                f'batch/{k}/actions': (b, a), f'batch/{k}/rewards': (b,),
                f'batch/{k}/masks': (b,), f'batch/{k}/next_observations': (b, o),
                f'batch/{k}/time': (b,), f'batch/{k}/noise': (b, a),
            } | {f'loss/{k}/{name}': () for name in LOSSES}
        for key, shape in shapes.items():
            self.get(key, *shape)
        # V of the one observation: once, or once for each candidate.
        v = self.get('sample/v', *self.arrays.get('sample/v', np.empty(0)).shape)
        if v.size not in (1, n):
            raise self._refusal(f'sample/v of 1 or {n} numbers', v.size)
        for k in range(self.updates):
            time = self.arrays[f'batch/{k}/time']
            if time.dtype.kind not in 'iu' or time.min() < 0 or time.max() >= t:
                raise self._refusal(
                    f'batch/{k}/time of whole numbers in [0, {t})',
                    f'{time.dtype} in [{time.min()}, {time.max()}]')
        beyond = [key for key in self.arrays
                  if key.startswith(('batch/', 'loss/')) and not self._is_replayed(key)]
        if beyond:
            raise self._refusal(f'updates 0 to {self.updates - 1} without a gap', beyond[0])

    def _is_replayed(self, key: str) -> bool:
        number = key.split('/')[1]
        return number.isdecimal() and int(number) < self.updates

    def config(self, variant: str, **settings: object) -> IDQLConfig:
        """Return the settings of the learner that the run was recorded with.

        Args:
            variant: 'simple' or 'full', as the authors' two learners are called.
            **settings: Fields of IDQLConfig that the shapes do not tell, where they are neither
                as in RECORDED nor IDQLConfig's defaults.

        Raises:
            RecordingError: A kernel that gives a width is absent or of another shape.
            ValueError: A setting is out of range.
        """
        def width(key: str, *others: None) -> int:
            return self.get(f'init/{key}/kernel', *others, None).shape[-1]

        critic = f'critic/{ENSEMBLE}MLP_0/Dense_'
        return IDQLConfig(**RECORDED | {
            'actor_width': width('score_model/MLPResNet_0/Dense_0', None),
            'actor_blocks': self.blocks,
            'actor_activation': VARIANTS[variant],
            'time_features': (
                2 * len(self.get('init/score_model/FourierFeatures_0/kernel', None, 1)),
                width('score_model/MLP_0/Dense_0', None)),
            'actor_dropout': 0.0,
            'diffusion_steps': self.diffusion_steps,
            'critics': len(self.get(f'init/{critic}0/kernel', None, None, None)),
            'critic_hidden': tuple(
                width(f'{critic}{i}', None, None) for i in range(self.critic_layers)),
            'value_hidden': tuple(
                width(f'value/MLP_0/Dense_{i}', None) for i in range(self.value_layers)),
            'value_input_layer_norm': self.value_input_layer_norm,
            'candidates': self.candidates,
        } | settings)

    def state(self, idql: IDQL, stage: str) -> dict[str, Tensor]:
        """Return the parameters of all five networks, by our names.

        Args:
            idql: Tells the shapes expected.
            stage: 'init' or 'final'.

        Raises:
            RecordingError: A parameter is absent, unknown or of another shape.
        """
        state, used = {}, set()
        for net, final in FINAL.items():
            theirs = final if stage == 'final' else final.removeprefix('target_')  # start equal
            for name, key in parameter_names(idql.config)[net].items():
                key = f'{stage}/{theirs}/{key}'
                used.add(key)
                array = self.get(key, *[None] * self.arrays.get(key, np.empty(0)).ndim)
                expected = their_shape(key, idql.get_parameter(f'{net}.{name}').shape)
                if array.shape != expected:
                    raise self._refusal(f'{key} of shape {expected}', array.shape)
                state[f'{net}.{name}'] = torch.tensor(our_layout(key, array), dtype=torch.float32)
        unknown = sorted(
            key for key in self.arrays if key.startswith(f'{stage}/') and key not in used)
        if unknown:
            raise self._refusal(
                f'no {stage} parameters but those this learner has', unknown[0])
        return state


def parameter_names(config: IDQLConfig) -> dict[str, dict[str, str]]:
    """Return for each of our networks its parameters' names: ours -> the file's.

    Args:
        config: Tells how many layers there are; LayerNorms in hidden layers have no name there.
    """
    def dense(ours: str, theirs: str) -> dict[str, str]:
        return {f'{ours}.weight': f'{theirs}/kernel', f'{ours}.bias': f'{theirs}/bias'}

    def norm(ours: str, theirs: str) -> dict[str, str]:
        return {f'{ours}.weight': f'{theirs}/scale', f'{ours}.bias': f'{theirs}/bias'}

    def multilayer(hidden: int, prefix: str, output: str) -> dict[str, str]:
        names = {}
        for i in range(hidden):
            names |= dense(f'hidden.{i}', f'{prefix}MLP_0/Dense_{i}')
        return names | dense('output', f'{prefix}{output}')

    actor = {'frequencies': 'FourierFeatures_0/kernel'}
    actor |= dense('time_hidden', 'MLP_0/Dense_0') | dense('time_output', 'MLP_0/Dense_1')
    actor |= dense('input', 'MLPResNet_0/Dense_0') | dense('output', 'MLPResNet_0/Dense_1')
    for i in range(config.actor_blocks):
        ours, theirs = f'blocks.{i}', f'MLPResNet_0/MLPResNetBlock_{i}'
        actor |= norm(f'{ours}.norm', f'{theirs}/LayerNorm_0')
        actor |= dense(f'{ours}.expand', f'{theirs}/Dense_0')
        actor |= dense(f'{ours}.contract', f'{theirs}/Dense_1')
    critics = multilayer(len(config.critic_hidden), ENSEMBLE, 'Dense_0')
    value = norm('input_norm', 'MLP_0/LayerNorm_0') if config.value_input_layer_norm else {}
    value |= multilayer(len(config.value_hidden), '', 'OutputVDense')
    return {'actor': actor, 'averaged_actor': actor, 'critics': critics,
            'target_critics': critics, 'value': value}


def their_shape(key: str, ours: Sequence[int]) -> tuple[int, ...]:
    """Return the shape that the file's array has for one of our parameters."""
    if key.endswith('FourierFeatures_0/kernel'):
        return (*ours, 1)
    return tuple(ours)  # (in, out), stacked critics (K, in, out), on both sides


def our_layout(key: str, array: np.ndarray) -> np.ndarray:
    """Return an array of the file as our parameter has it."""
    return array[:, 0] if key.endswith('FourierFeatures_0/kernel') else array


def replay(recording: Recording, config: IDQLConfig) -> tuple[IDQL, list[dict[str, float]]]:
    """Give a learner everything that a run recorded.

    Args:
        recording: The run.
        config: As `Recording.config` gives it.

    Returns:
        The learner after the last update, and the losses of every update.

    Raises:
        RecordingError: The parameters do not fit the learner.
    """
    observations, actions = recording.observation_size, recording.action_size
    idql = IDQL(  # in network units already
        config, torch.zeros(observations), torch.ones(observations),
        torch.zeros(actions), torch.ones(actions))
    idql.load_state_dict(idql.state_dict() | recording.state(idql, 'init'))
    losses = []
    for k in range(recording.updates):
        def tensor(field: str, k: int = k) -> Tensor:
            return torch.as_tensor(recording.arrays[f'batch/{k}/{field}'])

        batch = Batch(*(tensor(field).float() for field in Batch._fields))
        info = idql.update(batch, tensor('time').long(), tensor('noise').float())
        losses.append({name: float(info[name]) for name in LOSSES})
    return idql, losses


@dataclass(frozen=True)
class Row:
    """The worst error of one kind."""

    kind: str
    error: float
    allowed: float
    where: str

    @property
    def passed(self) -> bool:
        """Return whether the error is allowed; one that is no number is not."""
        return self.error <= self.allowed


def compare(recording: Recording, config: IDQLConfig) -> list[Row]:
    """Replay a run and return the worst error of each kind.

    Args:
        recording: The run.
        config: As `Recording.config` gives it.

    Raises:
        RecordingError: The parameters do not fit the learner.
    """
    idql, losses = replay(recording, config)
    final = recording.state(idql, 'final')
    arrays, found = recording.arrays, idql.state_dict()

    rows = [_worst('schedule', SCHEDULE_TOLERANCE, {
        name: np.abs(vector.numpy() - arrays[f'schedule/{name}'])
        for name, vector in idql.schedule._asdict().items()})]
    for name in LOSSES:
        expected = np.array([arrays[f'loss/{k}/{name}'] for k in range(len(losses))], np.float64)
        error = np.abs(np.array([row[name] for row in losses]) - expected)
        rows.append(_worst(f'{name} (relative)', LOSS_TOLERANCE, {
            'update': error / np.maximum(np.abs(expected), FLOORS[name])}))
    for net in FINAL:
        rows.append(_worst(f'{net} parameters', PARAMETER_TOLERANCE, {
            name: (found[name] - expected).abs().numpy()
            for name, expected in final.items() if name.startswith(f'{net}.')}))

    candidates, q, v = _sample(recording, idql)
    recorded_q, recorded_v = arrays['sample/q'], arrays['sample/v']
    rows.append(_worst('candidates', SAMPLE_TOLERANCE, {
        'candidate': np.abs(candidates - arrays['sample/candidates'])}))
    rows.append(_worst('q', SAMPLE_TOLERANCE, {'candidate': np.abs(q - recorded_q)}))
    rows.append(_worst('v', SAMPLE_TOLERANCE, {'candidate': np.abs(v - recorded_v).reshape(-1)}))
    # Where two candidates are equally good to within what Q may err, either is the greedy one.
    best = q >= q[choose(q, v)] - 2 * SAMPLE_TOLERANCE
    error = np.abs(candidates - arrays['sample/greedy_action']).max(1)
    nearest = int(np.where(best, error, np.inf).argmin())
    rows.append(Row('greedy action', float(error[nearest]), SAMPLE_TOLERANCE,
                    f'candidate [{nearest}]'))
    return rows


def _sample(recording: Recording, idql: IDQL) -> tuple[np.ndarray, np.ndarray, float]:
    """Return candidates (N, A), q (N,) and v, drawn with the recorded noise."""
    steps = recording.arrays['sample/step_noise'][:-1]  # the last is not used
    noise = np.concatenate([recording.arrays['sample/initial_noise'][None], steps])  # (T, N, A)
    with torch.no_grad():
        candidates, q, v = idql.eval()(
            torch.as_tensor(recording.arrays['sample/observation']).float()[None],
            torch.as_tensor(noise).float()[None])
    return candidates[0].numpy(), q[0].numpy(), float(v[0])


def _worst(kind: str, allowed: float, errors: dict[str, np.ndarray]) -> Row:
    """Return the largest of errors; one that is not a number counts as larger than any."""
    name, error = max(errors.items(), key=lambda item: np.nan_to_num(item[1], nan=np.inf).max())
    position = np.unravel_index(np.nan_to_num(error, nan=np.inf).argmax(), error.shape)
    return Row(kind, float(error[position]), allowed,
               f'{name} [{", ".join(str(int(i)) for i in position)}]')


def table(rows: Sequence[Row]) -> str:
    """Return rows as text."""
    lines = [f'{"what":28s} {"worst error":>11s} {"allowed":>8s}       where']
    for row in rows:
        lines.append(f'{row.kind:28s} {row.error:11.1e} {row.allowed:8.0e}  '
                     f'{"ok  " if row.passed else "FAIL"} {row.where}')
    return '\n'.join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare as the command line says; return the exit status.

    Args:
        arguments: Without the program's name; None: sys.argv.
    """
    parser = argparse.ArgumentParser(
        prog='python -m training.parity',
        description='Replay a recorded run of another IDQL learner and compare.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('file', type=Path, help='the recorded run (.npz)')
    parser.add_argument('--variant', choices=list(VARIANTS), default='full', help='simple: SiLU, '
                        'full: Mish; the rest of the difference shows in the shapes')
    parser.add_argument('--critic-loss', choices=list(DEFAULT_PARAMETERS), default='expectile',
                        help='f(u)')
    parser.add_argument('--critic-parameter', type=float, default=argparse.SUPPRESS, help='tau or '
                        f'alpha (default: {DEFAULT_PARAMETERS})')
    parser.add_argument('--schedule', choices=get_args(ScheduleName), default='vp',
                        help='noise schedule')
    parser.add_argument('--discount', type=float, default=0.99, help='gamma')
    for name, value in RECORDED.items():
        parser.add_argument(f'--{name.replace("_", "-")}', type=type(value), default=value,
                            help='as in IDQLConfig')
    options = vars(parser.parse_args(arguments))
    options.setdefault('critic_parameter', DEFAULT_PARAMETERS[options['critic_loss']])
    path, variant = options.pop('file'), options.pop('variant')
    torch.set_num_threads(1)  # the networks are small, and sums keep their order
    try:
        recording = Recording(path)
        config = recording.config(variant, **options)
        rows = compare(recording, config)
        largest = max(np.abs(recording.arrays[f'batch/{k}/actions']).max()
                      for k in range(recording.updates))
    except (OSError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    passed = all(row.passed for row in rows)
    failed = ', '.join(row.kind for row in rows if not row.passed)
    print(f'{path}: {recording.updates} updates, O = {recording.observation_size}, '
          f'A = {recording.action_size}, T = {recording.diffusion_steps}, '
          f'N = {recording.candidates}, {config.critics} critics; {variant}, {config.schedule}, '
          f'{config.critic_loss} {config.critic_parameter}, discount {config.discount}')
    if largest > LARGEST_ACTION:
        print(f'note: actions up to {largest:g} were recorded; this learner clips them to '
              f'{LARGEST_ACTION}')
    print(table(rows))
    print('equal within the tolerances' if passed else f'NOT equal: {failed}')
    # NaN and infinity are no JSON.
    errors = {row.kind: row.error if np.isfinite(row.error) else None for row in rows}
    print(json.dumps({
        'file': str(path), 'passed': passed, 'errors': errors,
        'allowed': {row.kind: row.allowed for row in rows}, 'variant': variant,
        'updates': recording.updates, 'config': asdict(config)}, allow_nan=False))
    return 0 if passed else 1


if __name__ == '__main__':
    sys.exit(main())
