"""A trained network and its spec as one policy file: `python -m training.export CHECKPOINT ...`.

The file is plain ONNX (opset 17, IR version 8: ONNX Runtime 1.16 and later) with everything else
a robot needs as one JSON text in its metadata, under the key 'idql_ros'. It is written only after
ONNX Runtime has given the trained network's answers from it.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
import io
import json
from pathlib import Path
from typing import Any
import warnings

from idql_ros.environments import plain_spec
from idql_ros.policy import FORMAT_VERSION, METADATA_KEY
from idql_ros.spec import load
import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn, Tensor
from training.checkpoint import load_checkpoint, read_checkpoint
from training.files import write_whole
from training.idql import IDQL

INPUTS = ['observations', 'noise']
OUTPUTS = ['candidates', 'q', 'v']

OPSET = 17
LARGEST_IR_VERSION = 9

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

    def __str__(self) -> str:
        """Return the worst of each in one line."""
        return (
            f'{self.path}: {self.comparisons} candidates compared with the trained network; '
            f'worst difference: candidates {self.candidates_error:.1e} network units, '
            f'q {self.q_error:.1e} and v {self.v_error:.1e} of their range, '
            f'at least a tenth of their magnitude (allowed {TOLERANCE:.0e})'
        )


class _PolicyGraph(nn.Module):
    """The network as it is exported: what only depends on the step is a constant."""

    def __init__(self, idql: IDQL) -> None:
        super().__init__()
        self.idql = idql
        self.register_buffer('time_shares', idql.sampling_time_shares().detach())

    def forward(self, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.idql.score_candidates(observations, noise, self.time_shares)


def export(
    idql: IDQL, spec_json: str, provenance: dict[str, Any], path: Path | str, samples: int = 64
) -> ExportReport:
    """Write a policy file.

    Args:
        idql: The trained network.
        spec_json: The robot's spec as JSON.
        provenance: Where the network comes from: data, configuration, code; anything JSON holds.
        path: The file, usually ending in .onnx.
        samples: Random observations to compare policy file and network on, at most.

    Returns:
        The worst differences found, all within tolerance.

    Raises:
        ExportError: The file's answers differ from the network's; nothing was written.
    """
    path = Path(path)
    idql = idql.eval()
    model = _graph(idql)
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
    # Infinity and NaN are no JSON; better no file than one that other readers refuse.
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(content, allow_nan=False)})
    onnx.checker.check_model(model)
    if model.ir_version > LARGEST_IR_VERSION:
        raise ExportError(
            f'{path}: expected IR version {LARGEST_IR_VERSION} or below so that ONNX Runtime 1.16 '
            f'loads it, found {model.ir_version}; look at the version of torch'
        )
    written = model.SerializeToString()
    report = compare(idql, written, path, samples)
    errors = report.candidates_error, report.q_error, report.v_error
    if not all(error <= TOLERANCE for error in errors):  # so that NaN counts as different
        raise ExportError(f'{report}; no file written')
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, written)
    return report


def _graph(idql: IDQL) -> onnx.ModelProto:
    """Return the network as an ONNX graph with free B and N."""
    graph = _PolicyGraph(idql).eval()
    noise = torch.zeros(2, idql.config.diffusion_steps, 3, idql.action_size)
    example = torch.zeros(2, idql.observation_size), noise
    buffer = io.BytesIO()
    # Without gradients the layers are what they compute, with nothing kept for a backward pass.
    with warnings.catch_warnings(), torch.no_grad():
        # The tracing exporter is the one that needs no further package; torch calls it legacy.
        warnings.simplefilter('ignore', DeprecationWarning)
        warnings.simplefilter('ignore', torch.jit.TracerWarning)
        torch.onnx.export(
            graph,
            example,
            buffer,
            dynamo=False,
            opset_version=OPSET,
            input_names=INPUTS,
            output_names=OUTPUTS,
            dynamic_axes={
                'observations': {0: 'B'},
                'noise': {0: 'B', 2: 'N'},
                'candidates': {0: 'B', 1: 'N'},
                'q': {0: 'B', 1: 'N'},
                'v': {0: 'B'},
            },
        )
    return onnx.load_from_string(buffer.getvalue())


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
            found.append(session.run(OUTPUTS, feed))

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
    options = parser.parse_args(arguments)
    try:
        content = read_checkpoint(options.checkpoint)
        idql = load_checkpoint(options.checkpoint)
        spec_json = _spec_json(options.checkpoint, content['spec_json'], options.spec,
                               options.environment, idql)
        provenance = content['provenance']
        if options.environment is not None:
            provenance = provenance | {'environment': options.environment}
        print(export(idql, spec_json, provenance, options.output))
    except (OSError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
    main()
