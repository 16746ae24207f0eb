"""What a run writes down on its way: metrics.csv, evaluations.csv and TensorBoard events."""

from collections.abc import Mapping, Sequence
import csv
from pathlib import Path
from types import TracebackType

from torch.utils.tensorboard import SummaryWriter
from training.evaluate import EpisodeResult, summarise
from training.files import write_whole

METRICS = 'metrics.csv'
EVALUATIONS = 'evaluations.csv'


class Log:
    """The rows of a run, in its folder."""

    def __init__(self, folder: Path, step: int) -> None:
        """Go on after a step: what was written after it is written again.

        Args:
            folder: It exists.
            step: 0 begins anew.
        """
        self._folder = folder
        for path in (folder / METRICS, folder / EVALUATIONS):
            if path.exists():
                write_whole(path, rows_until(path, step).encode())
        self._tensorboard = SummaryWriter(folder, purge_step=step + 1)

    def __enter__(self) -> 'Log':
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write what TensorBoard still holds."""
        self._tensorboard.close()

    def metrics(self, step: int, row: Mapping[str, float | None]) -> None:
        """Add a row to metrics.csv; None is an empty cell."""
        self._append(METRICS, {'step': step, **row})
        for key, value in row.items():
            if value is not None:
                self._tensorboard.add_scalar(key, value, step)

    def evaluation(self, step: int, candidates: int, results: Sequence[EpisodeResult]) -> None:
        """Add a row to evaluations.csv.

        Args:
            step: After how many steps of training.
            candidates: N.
            results: The episodes.
        """
        summary = summarise(list(results))
        low, high = summary['interval']
        self._append(EVALUATIONS, {
            'step': step, 'candidates': candidates, 'episodes': len(results),
            'success': summary['success'], 'success_low': low, 'success_high': high,
            'mean_return': summary['mean_return']})
        for key in ('success', 'mean_return'):
            self._tensorboard.add_scalar(f'evaluation_{key}/N={candidates}', summary[key], step)

    def has_evaluation(self, step: int, candidates: int) -> bool:
        """Return whether evaluations.csv has the row of a step and N."""
        path = self._folder / EVALUATIONS
        if not path.exists():
            return False
        with open(path, newline='') as file:
            return any((row['step'], row['candidates']) == (str(step), str(candidates))
                       for row in csv.DictReader(file))

    def _append(self, name: str, row: Mapping[str, float | None]) -> None:
        with open(self._folder / name, 'a', newline='') as file:
            writer = csv.writer(file)
            if file.tell() == 0:
                writer.writerow(row)
            writer.writerow(row.values())


def rows_until(path: Path, step: int) -> str:
    """Return the header and rows of a CSV file up to a step; what is half a row is none."""
    if step == 0:
        return ''
    with open(path, newline='') as file:
        lines = file.read().splitlines(keepends=True)
    columns = lines[0].count(',') if lines else 0
    whole = [line for line in lines if line.endswith('\n') and line.count(',') == columns]
    return ''.join(
        line for i, line in enumerate(whole) if i == 0 or int(line.split(',')[0]) <= step)
