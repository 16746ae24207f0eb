"""The command line from bags to a dataset."""

import os
from pathlib import Path
import subprocess
import sys

import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')
pytest.importorskip('minari', reason='minari is not installed')
from idql_ros import spec as specs  # noqa: E402
from recording import drive, MS, robot, T  # noqa: E402
from training.datasets import load_minari  # noqa: E402

ROOT = Path(__file__).parents[1]


def run(folder, *arguments):
    """Run the program in a folder; return its exit code, what it printed, and its last error."""
    found = subprocess.run(
        [sys.executable, '-m', 'training.bags', *map(str, arguments)], cwd=folder,
        capture_output=True, text=True, env=os.environ | {'PYTHONPATH': str(ROOT)})
    assert 'Traceback' not in found.stderr
    last = found.stderr.rstrip().replace('\r', '\n').split('\n')[-1]
    return found.returncode, found.stdout, last


@pytest.fixture
def made(tmp_path):
    """Give a folder with the bag `bag` and its spec `robot.yaml`."""
    (tmp_path / 'robot.yaml').write_text(robot().to_json())
    recording = drive(16)
    recording.entries = [entry for entry in recording.entries
                         if entry[:2] != (T + 3 * 500 * MS + 10 * MS, 'cmd_vel')]
    recording.save(tmp_path / 'bag')
    return tmp_path


REWARD = 'sparse_goal: {goal: [2, -2], tolerance: 0.1}'
OPTIONS = ['--spec', 'robot.yaml', '--dataset-id', 'test/drive-v0', '--root', 'datasets']


def test_conversion_writes_the_dataset_and_the_report_and_says_what_was_not_used(made):
    code, printed, error = run(made, 'bag', *OPTIONS, '--reward', REWARD)
    assert code == 0, error
    dataset, _ = load_minari('test/drive-v0', made / 'datasets')
    assert dataset.masks.tolist() == [1, 0, *[1] * 12]
    assert 'no command within a period of its tick' in printed
    assert (made / 'test-drive-v0-report' / 'report.html').is_file()
    assert (made / 'test-drive-v0-report' / 'report.json').is_file()


def test_align_report_writes_the_report_and_no_dataset(made):
    code, printed, error = run(
        made, 'bag', '--spec', 'robot.yaml', '--align', 'report', '--report', 'page')
    assert code == 0, error
    assert 'no command within a period of its tick' in printed
    assert sorted(path.name for path in made.iterdir()) == ['bag', 'page', 'robot.yaml']


def test_inspection_writes_a_spec_that_the_conversion_takes(made):
    code, printed, error = run(made, '--inspect', 'bag', '--spec-out', 'guess.yaml')
    assert code == 0, error
    assert 'cmd_vel' in printed and 'pose.pose.position.x' in printed
    guess = specs.load(made / 'guess.yaml')
    assert [s.topic.lstrip('/') for s in guess.actions] == ['cmd_vel']
    code, _, error = run(made, 'bag', '--spec', 'guess.yaml', '--align', 'report')
    assert code == 0, error


@pytest.mark.parametrize(('arguments', 'reason'), [
    (['bag', *OPTIONS, '--reward', 'sparse_goal: {goal: [1, 2, 3], tolerance: 1}'], 'goal'),
    (['bag', *OPTIONS, '--reward', 'nonsense'], 'nonsense'),
    (['none', *OPTIONS, '--reward', REWARD], 'none'),
    (['bag', 'bag', *OPTIONS, '--reward', REWARD], 'bag'),
    (['bag', '--spec', 'none.yaml', '--align', 'report'], 'none.yaml: cannot be read'),
    (['bag', '--spec', 'robot.yaml'], 'expected --reward, --dataset-id and --root'),
    ([], 'expected bags and --spec'),
    (['bag', *OPTIONS, '--reward', REWARD, '--jobs', '0'], 'jobs: expected 1'),
    (['--inspect', 'robot.yaml'], 'robot.yaml'),
])
def test_mistake_is_one_line_and_leaves_nothing(made, arguments, reason):
    code, _, error = run(made, *arguments)
    assert code == 1 and error.startswith('error: ') and reason in error
    assert sorted(path.name for path in made.iterdir()) == ['bag', 'robot.yaml']


def test_refused_bag_is_explained_by_the_report(made):
    (made / 'bag' / 'bag.mcap').write_bytes(b'version https://git-lfs.github.com/spec/v1\n')
    code, printed, error = run(made, 'bag', *OPTIONS, '--reward', REWARD)
    assert code == 1 and 'git lfs' in error
    page = (made / 'test-drive-v0-report' / 'report.html').read_text()
    assert 'git lfs' in page and 'git lfs' in printed
    assert not (made / 'datasets' / 'test').exists()
