"""Bags -> one Minari dataset: in parallel, in bounded memory, whole or not at all.

Each bag is aligned and judged in a process of its own (training.alignment, training.rewards) and
its episodes go to a file beside the dataset-to-be as they are finished. When all bags are done the
files become the dataset. What was done before an interruption waits there for `resume`.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
import hashlib
import io
import json
import multiprocessing
from multiprocessing.sharedctypes import SynchronizedArray
from pathlib import Path
import shutil
import tempfile

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
from training.provenance import code_version
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
    path: Path, conversion: Conversion, shard: Path | None, tell: Callable[[float], None],
    drawn_rows: int = _DRAWN_OF_ONE,
) -> BagResult:
    """Align one bag, judge its decisions and write its episodes.

    Args:
        path: The bag.
        conversion: What is made of it.
        shard: The file for its episodes; None: they are only counted.
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
            if shard is not None:
                fingerprint = conversion.fingerprint(account.files)
                done = _read_done(shard, fingerprint)
                if done is not None:
                    return done
            writer = None if shard is None else stack.enter_context(ShardWriter(shard))
            try:
                for episode in _episodes(bag, conversion, account, tell):
                    if writer is not None:
                        writer.add(episode)
                    episodes.append((len(episode.actions), float(np.sum(episode.rewards)),
                                     bool(episode.terminated)))
                    drawn.add(np.column_stack(
                        [episode.observations[:-1], episode.actions, episode.rewards]))
            finally:
                account.notes = list(bag.notes)
    except (BagError, messages.MessageError, RewardError, DatasetError) as error:
        reason = str(error)
        account.refused = reason if reason.startswith(f'{path}: ') else f'{path}: {reason}'
    rows = {name: stream.values.rows() for name, stream in account.streams.items()}
    rows['decisions'] = drawn.rows()
    samples = {name: found[::max(1, -(-len(found) // drawn_rows))] for name, found in rows.items()}
    result = BagResult(account.to_dict(), samples, episodes)
    if shard is not None and not account.refused:
        _write_done(shard, fingerprint, result)
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
    topic = bag.topics.get(alignment.key(name))
    if topic is None:
        raise BagError(f'{bag.path}: expected the topic {alignment.key(name)}, found '
                       f'{", ".join(sorted(bag.topics)) or "none"}')
    if message_type not in (None, topic.type):
        raise BagError(f'{bag.path}: topic {alignment.key(name)}: expected {message_type} as the '
                       f'spec states, found {topic.type}')
    return topic


def _write_done(shard: Path, fingerprint: str, result: BagResult) -> None:
    """Write beside a complete shard what a resumed conversion has to know of its bag."""
    content = io.BytesIO()
    np.savez(content, **result.samples)
    write_whole(shard.with_suffix('.npz'), content.getbuffer())
    # Last: where it is, all is.
    write_whole(shard.with_suffix('.json'), json.dumps({
        'fingerprint': fingerprint, 'account': result.account, 'episodes': result.episodes,
    }).encode())


def _read_done(shard: Path, fingerprint: str) -> BagResult | None:
    """Return what became of a bag in an earlier run, where that was the same."""
    try:
        done = json.loads(shard.with_suffix('.json').read_text())
        if done['fingerprint'] != fingerprint:
            return None
        with np.load(shard.with_suffix('.npz'), allow_pickle=False) as samples:
            return BagResult(done['account'], dict(samples),
                             [tuple(episode) for episode in done['episodes']])
    except FileNotFoundError:
        return None


# In a process that converts: bag -> share that is done, shared with the one that shows it.
_shares: list[SynchronizedArray] = []


def _begin_worker(shares: SynchronizedArray) -> None:
    workers.begin()
    _shares.append(shares)


def _work(number: int, path: Path, conversion: Conversion, shard: Path | None,
          drawn_rows: int) -> BagResult:
    def tell(share: float) -> None:
        _shares[0][number] = share

    if shard is not None:
        # What a process that is ended leaves, bags that it decompressed, goes with the others.
        tempfile.tempdir = str(shard.parent)
    return convert_bag(path, conversion, shard, tell, drawn_rows)


def convert_bags(
    paths: Sequence[Path], conversion: Conversion, shards: Sequence[Path | None], jobs: int
) -> list[BagResult]:
    """Convert bags, in processes of their own where `jobs` is more than 1.

    Returns:
        What became of each, in their order.

    Raises:
        BrokenProcessPool: A process ended early.
    """
    sizes = [sum(file.stat().st_size for file in [path, *path.rglob('*')] if file.is_file())
             for path in paths]
    drawn_rows = max(100, min(_DRAWN_OF_ONE, _DRAWN // max(1, len(paths))))
    with tqdm(total=sum(sizes), desc='convert', unit='B', unit_scale=True,
              dynamic_ncols=True) as bar:
        def show(shares: Sequence[float]) -> None:
            done = sum(share * size for share, size in zip(shares, sizes, strict=True))
            bar.update(int(done) - bar.n)

        if min(jobs, len(paths)) <= 1:
            shares = [0.0] * len(paths)
            results = []
            for number, (path, shard) in enumerate(zip(paths, shards, strict=True)):
                def tell(share: float, number: int = number) -> None:
                    shares[number] = share
                    show(shares)

                results.append(convert_bag(path, conversion, shard, tell, drawn_rows))
                tell(1.0)
            return results
        context = multiprocessing.get_context('forkserver')
        context.set_forkserver_preload([__name__])  # once, and not in each
        shared = context.Array('d', len(paths))
        with ProcessPoolExecutor(
                min(jobs, len(paths)), context, _begin_worker, (shared,)) as pool:
            try:
                futures = [pool.submit(_work, number, path, conversion, shard, drawn_rows)
                           for number, (path, shard) in enumerate(
                               zip(paths, shards, strict=True))]
                while wait(futures, _POLL_S, FIRST_EXCEPTION).not_done:
                    _raise_failure(futures)
                    show([1.0 if future.done() else share
                          for future, share in zip(futures, shared, strict=True)])
                bar.update(sum(sizes) - bar.n)
                return [future.result() for future in futures]
            except BaseException:
                # Nobody waits for what an interrupted run has begun.
                for process in list(pool._processes.values()):
                    process.terminate()
                pool.shutdown(cancel_futures=True)
                raise


def _raise_failure(futures: Sequence[Future]) -> None:
    for future in futures:
        if future.done() and future.exception() is not None:
            raise future.exception()


def staging_folder(dataset_id: str, root: Path) -> Path:
    """Return where the bags that are done wait for the others."""
    return root / f'.converting-{dataset_id.replace("/", "-")}'


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
    staging = staging_folder(dataset_id, root)
    if staging.exists() and not resume:
        shutil.rmtree(staging)
    staging.mkdir(parents=True, exist_ok=True)
    # Named for the bag and where it lies: other bags may be added before a run is resumed.
    shards = [staging / f'{hashlib.sha256(str(p.resolve()).encode()).hexdigest()[:16]}.hdf5'
              for p in paths]
    results = convert_bags(paths, conversion, shards, jobs)
    report(results)
    refuse(results)
    if not any(result.episodes for result in results):
        shutil.rmtree(staging)
        raise BagError('; '.join(['expected decisions in the bags, found none',
                                  *reasons(results)]))
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
    metadata = {
        'bags': ', '.join(path.name for path in paths),
        'sources': json.dumps({str(path): result.account['files']
                               for path, result in zip(paths, results, strict=True)}),
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
    done = len(list(staging.glob('*.json')))
    return (f'interrupted; no dataset was written. Bags that are done: {done}; the same command '
            'with --resume goes on with the others')
