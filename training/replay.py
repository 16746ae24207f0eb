"""Recompute every decision of a recorded run: `python -m training.replay BAG [--policy FILE]...`.

The node tells each decision on ~/decision with all that it was made from; `record.launch.py`
records it. Here the policy file decides again from the same numbers, through the same code as in
the node. Further it is looked up whether the commands in the bag are those that the guard let
through, and how many observations can be made again from the messages of the sensors: the log
tells when the recorder took a message, not when the node did, so not all of them are.

Exit status: 0 all equal within the tolerances, 1 not, 2 the bag or a policy file cannot be used.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
import sys

import numpy as np
from tqdm import tqdm
from training.recorded_run import decision_topic, Policies, read_decisions, ReplayError
from training.replay_decisions import Decisions
from training.replay_messages import check_commands, observe, Sent
from training.replay_report import draw, Replay, text
from training.storage import Bag


def replay_bag(
        path: Path, policies: Sequence[Path] = (), node: str | None = None,
        threads: int = 1) -> Replay:
    """Compute every decision in a bag again.

    Args:
        path: The bag.
        policies: Policy files; those that are missing are taken from where the bag's diagnostics
            name them, if they still are the same there.
        node: Whose decisions, '/namespace/name'; None: the only one's.
        threads: For one inference.

    Raises:
        BagError, PolicyError: The bag or a policy file cannot be used.
    """
    with Bag(path) as bag:
        topic = decision_topic(bag, node)
        name = '/' + topic.rpartition('/')[0]
        files = Policies(policies, bag, name, threads)
        decisions, spec = Decisions(), None
        passed: list[Sent] = []
        ticks: dict[int, set[bytes]] = {}
        for log_ns, record in tqdm(
                read_decisions(bag, topic), total=bag.topics[topic].count, desc='replay',
                unit='decision', dynamic_ncols=True):
            opened = files.of(record.digest, record.candidates)
            spec = spec or opened.policy.spec
            if opened.policy.spec != spec:
                raise ReplayError(f'{path}: expected policies of one spec, found another one in '
                                  f'{opened.policy.path}')
            decisions.add(record, opened)
            ticks.setdefault(record.tick_ns, set()).add(record.observation.tobytes())
            if np.isfinite(record.sent).all():
                passed.append(Sent(record.tick_ns, log_ns, record.published, record.sent))
        return Replay(name, spec, files.used, decisions, check_commands(bag, spec, name, passed),
                      observe(bag, spec, name, ticks))


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay as the command line says; return the exit status.

    Args:
        arguments: Without the program's name; None: sys.argv.
    """
    parser = argparse.ArgumentParser(
        prog='python -m training.replay',
        description='Recompute every decision of a recorded run, and report what differs.')
    parser.add_argument('bag', type=Path, help='recorded with record.launch.py')
    parser.add_argument('--policy', type=Path, action='append', default=[],
                        help='policy file of the run; several times where it was reloaded '
                        '(default: where the diagnostics in the bag say)')
    parser.add_argument('--node', help='whose decisions, /namespace/name (default: the only one)')
    parser.add_argument('--threads', type=int, default=1,
                        help="of one inference, as the node's parameter (default: 1)")
    parser.add_argument('--figure', type=Path, help='picture of the values over time (.png)')
    options = parser.parse_args(arguments)
    try:
        replay = replay_bag(options.bag, options.policy, options.node, options.threads)
        print(text(replay))
        if options.figure is not None:
            draw(replay, options.figure)
            print(f'picture: {options.figure}')
    except (OSError, ValueError) as error:  # BagError, PolicyError, MessageError
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0 if replay.passed else 1


if __name__ == '__main__':
    sys.exit(main())
