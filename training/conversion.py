"""Bags -> one Minari dataset: in parallel, in bounded memory, whole or not at all.

Each bag is aligned and judged in a process of its own (training.alignment, training.rewards) and
its episodes go to a file beside the dataset-to-be as they are finished. When all bags are done the
files become the dataset. What was done before an interruption waits there for `resume`. Processes
tell each other by files alone, so that one can be killed at any moment.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, ExitStack
from dataclasses import dataclass
import fcntl
from functools import partial
import hashlib
import io
import json
import multiprocessing
from multiprocessing import connection
import os
from pathlib import Path
import shutil
import sys
import tempfile
from typing import Any

from idql_ros import message as messages
from idql_ros import spec as specs
import numpy as np
from tqdm import tqdm
from training import alignment, workers
from training.account import BagAccount, Sample
from training.bag_summary import BagResult
from training.datasets import (
    check_dataset_id,
    DatasetError,
    Episode,
    episodes_of,
    read_shard,
    ShardWriter,
    write_minari,
)
from training.files import write_whole
from training.header_clock import CLOCK_TOPIC
from training.provenance import code_version, names_of
from training.rewards import RewardError, Task
from training.storage import Bag, BagError, Definitions, Topic

# Rows of each kind that a report draws: of all bags together about so many, of one at most.
_DRAWN, _DRAWN_OF_ONE = 40_000, 2000
# Messages between two signs of life.
_TOLD_EVERY = 2000
_POLL_S = 0.2


@dataclass(frozen=True)
class Conversion:
    """What is made of every bag."""

    spec: specs.Spec
    # None: rewards are not asked for, and nothing is written.
    task: Task | None
    definitions: Definitions | None = None

    def fingerprint(self, files: dict[str, str]) -> str:
        """Return a SHA-256 of all that decides what becomes of a bag with these hashes."""
        content = [self.spec.to_json(), self.task.to_json(), self.task.own_source(),
                   repr(self.definitions), code_version(), files]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def convert_bag(
    path: Path, conversion: Conversion, place: Path, write: bool, tell: Callable[[float], None],
    drawn_rows: int = _DRAWN_OF_ONE,
) -> BagResult:
    """Align one bag, judge its decisions and write its episodes.

    Args:
        path: The bag.
        conversion: What is made of it.
        place: What became of the bag is written to the files of this name, .json and .npz, and its
            episodes to .hdf5; from an earlier run that was the same they are read.
        write: Whether there are to be episodes.
        tell: Is told the share that is done.
        drawn_rows: Rows of each kind that are drawn for the report, at most.

    Returns:
        What became of the bag; where it cannot be used, why (account['refused']).
    """
    account = alignment.new_account(path.name, conversion.spec)
    drawn, episodes = Sample(), []
    fingerprint = ''
    try:
        with ExitStack() as stack:
            bag = stack.enter_context(Bag(path, conversion.definitions))
            account.files = bag.sha256()
            writer = None
            if write:
                fingerprint = conversion.fingerprint(account.files)
                done = _read_result(place, fingerprint)
                if done is not None:
                    return done
                writer = stack.enter_context(ShardWriter(place.with_suffix('.hdf5')))
            try:
                for episode in _episodes(bag, conversion, account, tell):
                    if writer is not None:
                        writer.add(episode)
                    episodes.append((len(episode.actions),
                                     float(np.sum(episode.rewards, dtype=np.float64)),
                                     bool(episode.terminated)))
                    drawn.add(np.column_stack(
                        [episode.observations[:-1], episode.actions, episode.rewards]))
            finally:
                account.notes = list(bag.notes)
    except (BagError, messages.MessageError, RewardError, DatasetError) as error:
        # As it would be printed: a name may hold anything.
        begin = str(BagError(f'{path}: '))
        account.refused = begin + str(error).removeprefix(begin)
        fingerprint = ''
    rows = {name: stream.values.rows() for name, stream in account.streams.items()}
    rows['decisions'] = drawn.rows()
    samples = {name: found[::max(1, -(-len(found) // drawn_rows))] for name, found in rows.items()}
    result = BagResult(account.to_dict(), samples, episodes)
    _write_result(place, fingerprint, result)
    return result


def _episodes(
    bag: Bag, conversion: Conversion, account: BagAccount, tell: Callable[[float], None]
) -> Iterator[Episode]:
    spec, task = conversion.spec, conversion.task
    for stream in (*spec.observations, *spec.actions):
        _check_topic(bag, stream.topic, stream.type)
    task_topics = [
        alignment.task_topic(
            need.kind, need.topic, _check_topic(bag, need.topic).type, need.field, need.reduce)
        for need in ([] if task is None else task.needs)]
    topics = alignment.topics_of(spec, task_topics)
    if spec.clock == 'header' and CLOCK_TOPIC in bag.topics:
        _check_topic(bag, CLOCK_TOPIC, 'rosgraph_msgs/msg/Clock')
        topics.add(CLOCK_TOPIC)
    total = max(1, sum(bag.topics[topic].count for topic in topics))

    def logged() -> Iterator[alignment.Logged]:
        for number, message in enumerate(bag.messages(topics)):
            if number % _TOLD_EVERY == 0:
                tell(number / total)
            yield message

    for stretch in alignment.align(logged(), spec, task_topics, account):
        steps = stretch.steps
        if task is None:
            yield Episode(steps.observations, steps.actions,
                          np.full(len(steps.actions), np.nan), False, True)
        else:
            yield from episodes_of(steps, task, stretch.continues)
    tell(1.0)


def _check_topic(bag: Bag, name: str, message_type: str | None = None) -> Topic:
    """Return a topic of the bag; raise BagError where it is not there, or of another type."""
    if name.startswith('~'):
        raise BagError(f'{bag.path}: topic {name}: expected its name as it was recorded; this one '
                       'is private to a node that no bag names')
    topic = bag.topics.get(alignment.key(name))
    if topic is None:
        raise BagError(f'{bag.path}: expected the topic {alignment.key(name)}, found '
                       f'{", ".join(sorted(bag.topics)) or "none"}')
    if message_type not in (None, topic.type):
        raise BagError(f'{bag.path}: topic {alignment.key(name)}: expected {message_type} as the '
                       f'spec states, found {topic.type}')
    return topic


def _write_result(place: Path, fingerprint: str, result: BagResult) -> None:
    """Write what became of a bag; without a fingerprint no other run takes it for its own."""
    content = io.BytesIO()
    np.savez(content, **result.samples)
    write_whole(place.with_suffix('.npz'), content.getbuffer())
    # Last: where it is, all is.
    write_whole(place.with_suffix('.json'), json.dumps({
        'fingerprint': fingerprint, 'account': result.account, 'episodes': result.episodes,
    }).encode())


def _read_result(place: Path, fingerprint: str | None = None) -> BagResult | None:
    """Return what became of a bag; None where it is not there, or of another fingerprint."""
    try:
        done = json.loads(place.with_suffix('.json').read_text())
        if fingerprint not in (None, done['fingerprint']):
            return None
        with np.load(place.with_suffix('.npz'), allow_pickle=False) as samples:
            return BagResult(done['account'], dict(samples),
                             [tuple(episode) for episode in done['episodes']])
    except FileNotFoundError:
        return None


def align_bags(paths: Sequence[Path], conversion: Conversion, jobs: int) -> list[BagResult]:
    """Return what would become of bags, in their order; nothing is written.

    Raises:
        BagError: A process was ended.
    """
    with tempfile.TemporaryDirectory(prefix='idql_ros_align_') as folder:
        places = [Path(folder, str(number)) for number in range(len(paths))]
        return _convert_bags(paths, conversion, places, False, jobs)


def _work(number: int, path: Path, conversion: Conversion, place: Path, write: bool,
          drawn_rows: int, shares: Any) -> None:
    """Convert a bag in a process of its own."""
    workers.begin()
    # What a process that is killed leaves, such as bags that it decompressed, goes with the rest.
    tempfile.tempdir = str(place.parent)

    def tell(share: float) -> None:
        shares[number] = share

    convert_bag(path, conversion, place, write, tell, drawn_rows)


def _convert_bags(
    paths: Sequence[Path], conversion: Conversion, places: Sequence[Path], write: bool, jobs: int
) -> list[BagResult]:
    """Convert bags, in processes of their own where `jobs` is more than 1."""
    sizes = [sum(file.stat().st_size for file in [path, *path.rglob('*')] if file.is_file())
             for path in paths]
    drawn_rows = max(100, min(_DRAWN_OF_ONE, _DRAWN // max(1, len(paths))))
    shares = multiprocessing.RawArray('d', len(paths))
    with tqdm(total=sum(sizes), desc='convert', unit='B', unit_scale=True,
              dynamic_ncols=True) as bar:
        def show() -> None:
            done = sum(share * size for share, size in zip(shares, sizes, strict=True))
            bar.update(int(done) - bar.n)

        def tell(share: float, number: int) -> None:
            shares[number] = share
            show()

        if min(jobs, len(paths)) <= 1:
            for number, (path, place) in enumerate(zip(paths, places, strict=True)):
                convert_bag(path, conversion, place, write, partial(tell, number=number),
                            drawn_rows)
                tell(1.0, number)
        else:
            tasks = [(number, path, conversion, place, write, drawn_rows, shares)
                     for number, (path, place) in enumerate(zip(paths, places, strict=True))]
            _run_processes(tasks, jobs, show)
            tell(1.0, len(paths) - 1)
    return [_read_result(place) for place in places]


def _run_processes(tasks: list[tuple], jobs: int, show: Callable[[], None]) -> None:
    """Run a process for each task, so many at a time; none outlives this."""
    context = multiprocessing.get_context('forkserver')
    # Imported once, and not by each process: this, and the program, which they import as well.
    program = getattr(sys.modules['__main__'], '__spec__', None)
    context.set_forkserver_preload(
        ['__main__', __name__, *([] if program is None else [program.name])])
    running: dict[int, tuple[Any, tuple]] = {}  # by what tells that a process has ended
    waiting = tasks[::-1]
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task = waiting.pop()
                process = context.Process(target=_work, args=task, daemon=True)
                with workers.deaf():
                    process.start()
                running[process.sentinel] = process, task
            for sentinel in connection.wait(running, _POLL_S):
                process, (number, path, *_, shares) = running.pop(sentinel)
                process.join()
                if process.exitcode:
                    raise BagError(
                        f'{path}: the process that converted it ended with {process.exitcode}; '
                        'where it printed no error, it was killed: for memory? Fewer --jobs take '
                        'less, and --resume goes on with the bags that are not done')
                shares[number] = 1.0
            show()
    finally:
        for process, _ in running.values():
            process.kill()
            process.join()


def staging_folder(dataset_id: str, root: Path) -> Path:
    """Return where the bags that are done wait for the others."""
    # Two ids differ by more than their slash.
    short = hashlib.sha256(dataset_id.encode()).hexdigest()[:8]
    return root / f'.converting-{dataset_id.replace("/", "-")}-{short}'


@contextmanager
def _staging(dataset_id: str, root: Path, resume: bool) -> Iterator[Path]:
    """Give the staging folder to one conversion alone, empty unless it resumes another."""
    folder = staging_folder(dataset_id, root)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / 'lock', 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BagError(f'{dataset_id}: expected one conversion to it at a time, found that '
                           'another is going on') from error
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)  # what was decompressed by a process that was killed
            elif not resume and path.name != 'lock':
                path.unlink()
        yield folder


def convert(
    paths: Sequence[Path], conversion: Conversion, dataset_id: str, root: Path, *,
    jobs: int = 1, resume: bool = False, overwrite: bool = False,
    reference_scores: tuple[float, float] | None = None,
    report: Callable[[list[BagResult]], None] = lambda results: None,
) -> Path:
    """Convert bags into one Minari dataset and return its folder.

    Args:
        paths: The bags (training.storage.find).
        conversion: What is made of them; with a task.
        dataset_id: '[namespace/]name-v0'.
        root: The folder of datasets.
        jobs: Processes.
        resume: Go on with the bags that an interrupted conversion did not finish.
        overwrite: Replace a dataset of this id.
        reference_scores: Returns of a random and of an expert policy (Minari's reference scores).
        report: Is given what became of the bags, before anything is refused or written.

    Raises:
        BagError: A bag cannot be used; the others wait for `resume`.
        DatasetError: The id is malformed or taken.
        RewardError: The task does not fit the spec.
    """
    check_dataset_id(dataset_id)
    conversion.task.check(conversion.spec.observation_size, conversion.spec.action_size)
    root = Path(root).expanduser().resolve()
    if (root / dataset_id).exists() and not overwrite:
        raise DatasetError(
            f'{root / dataset_id} exists; choose another id or allow overwriting')
    with _staging(dataset_id, root, resume) as staging:
        # Named for where a bag lies: others may be added before a run is resumed.
        places = [staging / hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
                  for path in paths]
        results = _convert_bags(paths, conversion, places, True, jobs)
        report(results)
        refuse(results)
        if not any(result.episodes for result in results):
            shutil.rmtree(staging)
            raise BagError('; '.join(['expected decisions in the bags, found none',
                                      *reasons(results)]))
        shards = [place.with_suffix('.hdf5') for place in places]
        folder = _merge(paths, conversion, dataset_id, root, overwrite, reference_scores, results,
                        shards)
        shutil.rmtree(staging)
    return folder


def _merge(
    paths: Sequence[Path], conversion: Conversion, dataset_id: str, root: Path, overwrite: bool,
    reference_scores: tuple[float, float] | None, results: list[BagResult],
    shards: Sequence[Path],
) -> Path:
    def episodes() -> Iterator[Episode]:
        total = sum(len(result.episodes) for result in results)
        with tqdm(total=total, desc='write', unit='episode', dynamic_ncols=True) as bar:
            for shard, result in zip(shards, results, strict=True):
                if result.episodes:
                    for episode in read_shard(shard):
                        yield episode
                        bar.update()

    scores = {} if reference_scores is None else {
        'ref_min_score': reference_scores[0], 'ref_max_score': reference_scores[1]}
    names = names_of(paths)
    metadata = {
        'bags': ', '.join(names),
        'sources': json.dumps({name: result.account['files']
                               for name, result in zip(names, results, strict=True)}),
        'task': conversion.task.to_json(),
        'code_version': code_version(),
    }
    return write_minari(episodes(), dataset_id, root, metadata, conversion.spec.to_json(),
                        overwrite, **scores)


def refuse(results: Sequence[BagResult]) -> None:
    """Raise BagError where bags were refused; names each."""
    refused = [result.account['refused'] for result in results if result.account['refused']]
    if refused:
        raise BagError('; '.join(refused))


def reasons(results: Sequence[BagResult]) -> list[str]:
    """Return a line for each of the commonest reasons why ticks were not used."""
    unused: dict[str, int] = {}
    for result in results:
        for reason, count in result.account['unused'].items():
            unused[reason] = unused.get(reason, 0) + count
    commonest = sorted(unused.items(), key=lambda item: -item[1])[:5]
    return [f'{count} ticks were not used: {reason}' for reason, count in commonest]


def interrupted(dataset_id: str, root: Path) -> str:
    """Return what to tell of an interrupted conversion: what is kept, and how to go on."""
    staging = staging_folder(dataset_id, Path(root).expanduser().resolve())
    done = len(list(staging.glob('*.hdf5')))
    return (f'interrupted; no dataset was written. Bags that are done: {done}; the same command '
            'with --resume goes on with the others')
