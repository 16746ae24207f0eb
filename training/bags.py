"""The command line from bags to a dataset: look into bags, try a spec on them, convert them.

    python -m training.bags --inspect BAG                what is in it, and a spec to start with
    python -m training.bags BAG... --spec ROBOT.yaml --align report     what each rule would do
    python -m training.bags BAG... --spec ROBOT.yaml --reward TASK --dataset-id ID --root FOLDER

Bags are rosbag2 folders, storage files alone (.mcap, .db3, either with .zstd), ROS 1 .bag files,
folders that hold such, and globs of them.
"""

from collections.abc import Sequence
import os
from pathlib import Path
import signal
import sys
from typing import Annotated, Literal

from idql_ros import spec as specs
from training import bag_report, bag_summary, conversion, storage, survey
from training.datasets import DatasetError
from training.rewards import parse_task, RewardError, Task
from training.storage import BagError
from training.wording import counted
import tyro

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


def main(
    bags: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    spec: Path | None = None,
    reward: str | None = None,
    terminal: str = 'reward',
    dataset_id: str | None = None,
    root: Path | None = None,
    definitions: tuple[Path, ...] = (),
    jobs: int | None = None,
    resume: Flag = False,
    overwrite: Flag = False,
    align: Literal['write', 'report'] = 'write',
    report: Path | None = None,
    reference_scores: tuple[float, float] | None = None,
    inspect: Path | None = None,
    spec_out: Path | None = None,
) -> None:
    """Convert robots' bags into a Minari dataset, or look into one with --inspect.

    Args:
        bags: rosbag2 folders, storage files, ROS 1 .bag files, folders of bags, globs.
        spec: The robot's spec (.yaml), see doc/spec.md.
        reward: What is judged: a .yaml file, or YAML such as 'sparse_goal: {goal: [16, 20],
            tolerance: 0.5}', or module:function; see doc/datasets.md.
        terminal: When an episode ends: reward (as it says), never, or
            'topic: {topic: NAME, field: PATH}'.
        dataset_id: '[namespace/]name-v0'.
        root: The folder of datasets (MINARI_DATASETS_PATH).
        definitions: .msg files, or folders of packages with them, for types of your own.
        jobs: Processes; default: one for each core.
        resume: Go on with the bags that an interrupted conversion did not finish.
        overwrite: Replace a dataset of this id.
        align: 'report': write the report only and no dataset.
        report: Folder for report.html and report.json; default: NAME-report in the current
            folder.
        reference_scores: Returns of a random and an expert policy, stored with the dataset.
        inspect: List what is in a bag.
        spec_out: For --inspect: where a spec to start with is written.
    """
    known = storage.definitions(definitions) if definitions else None
    if inspect is not None:
        print(survey.inspect(inspect, known, spec_out))
        return
    if not bags or spec is None:
        raise BagError('expected bags and --spec ROBOT.yaml, or --inspect BAG, found neither; see '
                       '--help')
    robot = specs.load(spec)
    paths = storage.find(bags)
    task = None if reward is None else parse_task(reward, terminal)
    jobs = (os.cpu_count() or 1) if jobs is None else jobs
    if jobs < 1:
        raise BagError(f'jobs: expected 1 process or more, found {jobs}')
    if task is not None:
        task.check(robot.observation_size, robot.action_size)
    if reference_scores is not None and not reference_scores[0] < reference_scores[1]:
        raise DatasetError(f'reference scores: expected the lower and the higher one, found '
                           f'{reference_scores[0]} and {reference_scores[1]}')
    made = conversion.Conversion(robot, task, known)
    folder = report or Path(f'{(dataset_id or robot.name).replace("/", "-")}-report')

    if folder.exists() and not folder.is_dir():
        raise BagError(f'report: expected a folder, found the file {folder}')

    def write_report(results: list[bag_summary.BagResult]) -> None:
        title = f'{counted(len(paths), "bag")}, {spec}'
        summary = bag_summary.summarise(results, robot, _plain(task))
        page = bag_report.write(folder, summary, results, robot, title)
        print(bag_report.text(summary))
        print(f'report: {page}')

    if align == 'report':
        results = conversion.align_bags(paths, made, jobs)
        write_report(results)
        conversion.refuse(results)
        return
    if task is None or dataset_id is None or root is None:
        raise BagError('expected --reward, --dataset-id and --root to write a dataset; without '
                       'them: --align report')
    try:
        written = conversion.convert(
            paths, made, dataset_id, root, jobs=jobs, resume=resume, overwrite=overwrite,
            reference_scores=reference_scores, report=write_report)
    except KeyboardInterrupt:
        sys.exit(f'error: {conversion.interrupted(dataset_id, root)}')
    print(f'wrote {written}')


def _plain(task: Task | None) -> dict | None:
    return None if task is None else {'reward': task.reward, 'terminal': task.terminal}


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a user's mistake ends it with one line and exit code 1."""
    # To be ended is to be interrupted: the processes are ended too. A shell lets what it starts in
    # the background ignore SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        tyro.cli(main, args=arguments)
    except KeyboardInterrupt:
        sys.exit('error: interrupted; nothing was written')
    except (BagError, specs.SpecError, DatasetError, RewardError, OSError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    run()
