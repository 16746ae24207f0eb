"""A trained network and its spec as one policy file: `python -m training.export CHECKPOINT ...`.

The file is plain ONNX (opset 17, IR version 8: ONNX Runtime 1.16 and later) with everything else
a robot needs as one JSON text in its metadata, under the key 'idql_ros'. It is written only after
ONNX Runtime has given the trained network's answers from it.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
import json
from pathlib import Path
import tempfile
from typing import Any

from idql_ros.familiarity import UsualValues
from idql_ros.policy import FORMAT_VERSION, METADATA_KEY, Policy
from idql_ros.session import OUTPUTS
from idql_ros.simulated_robot import plain_spec
from idql_ros.spec import load
import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor
from training.checkpoint import load_checkpoint, read_checkpoint
from training.evaluate import environment_of
from training.files import write_whole
from training.idql import IDQL
from training.policy_graph import policy_graph
from training.quantise import compare_in, Comparison, int8_product
from training.statistics import propose_ranges

# Largest difference between policy file and trained network: of candidates in network units, of
# q and v as a share of their range.
TOLERANCE = 2e-4

# Candidates that are compared at a time: what the networks hold of them grows with it.
COMPARED_AT_ONCE = 4096


class ExportError(ValueError):
    """A policy file cannot be written."""


@dataclass(frozen=True)
class ExportReport:
    """How far a policy file is from its trained network, at worst."""

    path: Path
    candidates_error: float  # network units
    q_error: float  # share of the range of q
    v_error: float  # share of the range of v
    comparisons: int  # candidates compared
    usual: UsualValues | None = None  # where the training data's values lie; None: not known
    int8: Comparison | None = None  # where the file's weights are int8

    def __str__(self) -> str:
        """Return the worst of each in one line, the ranges as a table, and what int8 changes."""
        compared = (
            f'{self.path}: {self.comparisons} candidates compared with the trained network; '
            f'worst difference: candidates {self.candidates_error:.1e} network units, '
            f'q {self.q_error:.1e} and v {self.v_error:.1e} of their range, '
            f'at least a tenth of their magnitude (allowed {TOLERANCE:.0e})'
        )
        usual = [] if self.usual is None else [
            'usual on the training data, from and to (greedy):',
            *(f'  {name:9} {low:12.5g} {high:12.5g}   N = {n}'
              for n, ranges in self.usual.of_candidates.items()
              for name, (low, high) in ranges.items()),
            '  distance  {:12.5g} {:12.5g}'.format(*self.usual.distance)]
        int8 = [] if self.int8 is None else [str(self.int8)]
        return '\n'.join([compared, *usual, *int8])


def export(
    idql: IDQL, spec_json: str, provenance: dict[str, Any], path: Path | str, samples: int = 64,
    statistics: Mapping[str, Tensor] | None = None, int8: str | None = None,
) -> ExportReport:
    """Write a policy file.

    Args:
        idql: The trained network.
        spec_json: The robot's spec as JSON.
        provenance: Where the network comes from: data, configuration, code; anything JSON holds.
        path: The file, usually ending in .onnx.
        samples: Random observations to compare policy file and network on, at most.
        statistics: The checkpoint's, of the training observations; None: the file has none, and
            a value guard nothing to compare with.
        int8: The environment in which int8 weights have to do as well as float32; empty: that of
            the robot, or the one it is exported for; None: the file's weights are float32.

    Returns:
        The worst differences found, all within tolerance, and the ranges that the file proposes.

    Raises:
        ExportError: The file's answers differ from the network's, or int8 weights do worse;
            nothing was written.
        SimulationError, MessageError: Environment and spec disagree.
    """
    path = Path(path)
    idql = idql.eval()
    model = policy_graph(idql)
    content = {
        'format_version': FORMAT_VERSION,
        'spec': json.loads(spec_json),
        'model': {
            'observation_size': idql.observation_size,
            'action_size': idql.action_size,
            'diffusion_steps': idql.config.diffusion_steps,
            'critic_loss': idql.config.critic_loss,
            'critic_parameter': idql.config.critic_parameter,
            'candidates': idql.config.candidates,
            'action_center': idql.action_center.tolist(),
            'action_scale': idql.action_scale.tolist(),
        },
        'provenance': provenance,
    }
    written = _with_metadata(model, content)
    onnx.checker.check_model(model)
    report = compare(idql, written, path, samples)
    errors = report.candidates_error, report.q_error, report.v_error
    if not all(error <= TOLERANCE for error in errors):  # so that NaN counts as different
        raise ExportError(f'{report}; no file written')
    if int8 is not None:
        model = policy_graph(idql, int8_product)
        content['model']['weights'] = 'int8'
        files = {'float32': written, 'int8': _with_metadata(model, content)}
        comparison = _compare_int8(files, int8, idql)
        if comparison.worse:
            raise ExportError(f'{comparison}\nint8 weights are worse; no file written')
        content['provenance'] = provenance | {'int8': asdict(comparison)}
        report = replace(report, int8=comparison)
        written = _with_metadata(model, content)
    if statistics is not None:
        usual = _usual_values(written, path.name, statistics)
        report = replace(report, usual=usual)
        content['statistics'] = {
            'prototypes': statistics['prototypes'].tolist(),
            'scale': statistics['scale'].tolist(),
            'distance': usual.distance,
            'ranges': usual.of_candidates,
        }
        written = _with_metadata(model, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, written)
    return report


def _with_metadata(model: onnx.ModelProto, content: dict[str, Any]) -> bytes:
    """Return the file of a graph and what else a robot needs."""
    # Infinity and NaN are no JSON; better no file than one that other readers refuse.
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(content, allow_nan=False)})
    return model.SerializeToString()


def _compare_int8(files: Mapping[str, bytes], environment: str, idql: IDQL) -> Comparison:
    """Return how the file 'int8' does beside 'float32' in an environment; empty: their own."""
    with tempfile.TemporaryDirectory() as folder:
        policies = []
        for name, written in files.items():
            path = Path(folder, name).with_suffix('.onnx')
            path.write_bytes(written)
            policies.append(Policy(path))  # one thread, as the node by default
        return compare_in(
            environment or environment_of(policies[0]), *policies, idql.action_scale.numpy())


def _usual_values(written: bytes, name: str, statistics: Mapping[str, Tensor]) -> UsualValues:
    """Return the ranges that a policy file without statistics gives."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(written)
        return propose_ranges(Policy(path, torch.get_num_threads()), statistics)


def compare(idql: IDQL, model: bytes, path: Path, samples: int) -> ExportReport:
    """Return how far a model's answers are from the network's, on random observations and noise.

    Args:
        idql: The trained network.
        model: The serialised ONNX model.
        path: What the report calls it.
        samples: Observations for each number of candidates tried, drawn around the statistics of
            the training data; fewer, at least one, where their candidates would be too many.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=['CPUExecutionProvider'])
    generator = torch.Generator().manual_seed(0)
    steps, action_size = idql.config.diffusion_steps, idql.action_size
    expected, found = [], []
    for number in sorted({1, 7, idql.config.candidates}):
        batch = max(1, min(samples, COMPARED_AT_ONCE // number))
        noise = torch.randn((batch, steps, number, action_size), generator=generator)
        observations = torch.randn((batch, idql.observation_size), generator=generator)
        observations = idql.observation_mean + idql.observation_std * observations
        for part in noise.split(COMPARED_AT_ONCE, 2):
            with torch.no_grad():
                expected.append([x.numpy() for x in idql(observations, part)])
            feed = {'observations': observations.numpy(), 'noise': part.numpy()}
            found.append(session.run(list(OUTPUTS), feed))

    def join(answers: list[list[np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        candidates, q, v = zip(*answers, strict=True)
        return (
            np.concatenate([c.reshape(-1, action_size) for c in candidates]),
            np.concatenate([x.reshape(-1) for x in q]),
            np.concatenate(v),
        )

    (candidates, q, v), (their_candidates, their_q, their_v) = join(expected), join(found)
    difference = np.abs(their_candidates - candidates) / idql.action_scale.numpy()
    return ExportReport(
        path,
        float(difference.max()),
        _share_of_range(q, their_q),
        _share_of_range(v, their_v),
        len(candidates),
    )


def _share_of_range(expected: np.ndarray, found: np.ndarray) -> float:
    """Return the largest difference as a share of the expected numbers' range."""
    # Far from zero, rounding alone limits how finely a narrow range can be resolved.
    extent = max(np.ptp(expected), 0.1 * np.abs(expected).max(), np.finfo(np.float32).tiny)
    return float(np.abs(found - expected).max() / extent)


def _spec_json(
    checkpoint: Path, stored: str | None, path: Path | None, environment: str | None, idql: IDQL
) -> str:
    """Return the one spec there is for a checkpoint: stored, in a file, or an environment's."""
    given = path or environment
    if (stored is None) == (given is None):
        raise ExportError(
            f'{checkpoint}: expected one spec, found '
            + ('none: the dataset has none; give one with --spec, or its environment with '
               '--environment, or convert the bags with one' if given is None else
               f'one in it and {given}: the data was converted with the first')
        )
    if given is None:
        return stored
    spec = plain_spec(environment) if path is None else load(path)
    if (spec.observation_size, spec.action_size) != (idql.observation_size, idql.action_size):
        raise ExportError(
            f'{given}: expected {idql.observation_size} observations and {idql.action_size} '
            f'actions as {checkpoint} has, found {spec.observation_size} and {spec.action_size}'
        )
    return spec.to_json()


def main(arguments: Sequence[str] | None = None) -> None:
    """Export a checkpoint as the command line says.

    Args:
        arguments: Without the program's name; None: sys.argv.
    """
    parser = argparse.ArgumentParser(
        prog='python -m training.export',
        description='Write a checkpoint of training.train as a policy file for the robot.',
    )
    parser.add_argument('checkpoint', type=Path, help='checkpoint.pt in the output folder')
    parser.add_argument('--output', type=Path, required=True, help='policy file, such as p.onnx')
    described = parser.add_mutually_exclusive_group()
    described.add_argument(
        '--spec', type=Path, help='spec (.yaml), for a checkpoint of a dataset that has none')
    described.add_argument(
        '--environment', help='in its place: an environment of Gymnasium or OGBench that no robot '
        'stands behind, such as cube-single-singletask-task2-v0')
    parser.add_argument(
        '--int8', nargs='?', const='', metavar='ENVIRONMENT',
        help='int8 weights, faster on a CPU; written only if the policy does as well as with '
        "float32 in this environment (module:factory or an id; default: the robot's, or that of "
        '--environment)')
    options = parser.parse_args(arguments)
    try:
        content = read_checkpoint(options.checkpoint)
        idql = load_checkpoint(options.checkpoint)
        spec_json = _spec_json(options.checkpoint, content['spec_json'], options.spec,
                               options.environment, idql)
        provenance = content['provenance']
        if options.environment is not None:
            provenance = provenance | {'environment': options.environment}
        print(export(idql, spec_json, provenance, options.output,
                     statistics=content['statistics'], int8=options.int8))
    except (OSError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
    main()
