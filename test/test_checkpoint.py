"""Checkpoints: whole or not there, read without running code, gone on from by their own run."""

import errno
from pathlib import Path
import resource
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from training.checkpoint import (
    check_same_run,
    CheckpointError,
    read_checkpoint,
    save_checkpoint,
)
from training.train import main

ROOT = Path(__file__).parents[1]
CONFIG = {'seed': 0, 'output': 'a', 'idql': {'discount': 0.9, 'critic_hidden': (8, 8)}}
PROVENANCE = {'dataset': 'demo/a-v0', 'dataset_hash': '1234', 'validation_hash': None}


def test_what_is_written_is_read(tmp_path):
    save_checkpoint(tmp_path / 'c.pt', {'model': {'w': torch.arange(3)}, 'sizes': (1, 2)})
    content = read_checkpoint(tmp_path / 'c.pt')
    assert content['model']['w'].tolist() == [0, 1, 2]
    assert content['sizes'] == (1, 2)
    assert [path.name for path in tmp_path.iterdir()] == ['c.pt']


def test_file_that_is_no_checkpoint_is_refused(tmp_path):
    torch.save({'weights': torch.zeros(1)}, tmp_path / 'other.pt')
    with pytest.raises(CheckpointError, match='other.pt: expected a checkpoint of format 4'):
        read_checkpoint(tmp_path / 'other.pt')


def test_checkpoint_that_would_run_code_is_refused(tmp_path):
    torch.save({'format_version': 2, 'model': tmp_path}, tmp_path / 'code.pt')  # a Path object
    with pytest.raises(CheckpointError, match='code.pt: expected a checkpoint .*running code'):
        read_checkpoint(tmp_path / 'code.pt')


def test_damaged_checkpoint_is_refused_in_one_line(tmp_path):
    save_checkpoint(tmp_path / 'c.pt', {'model': {'w': torch.arange(999)}})
    whole = (tmp_path / 'c.pt').read_bytes()
    (tmp_path / 'c.pt').write_bytes(whole[:len(whole) // 2])
    with pytest.raises(CheckpointError, match='c.pt: expected a checkpoint') as refused:
        read_checkpoint(tmp_path / 'c.pt')
    assert '\n' not in str(refused.value)


def test_a_disk_that_takes_no_more_leaves_the_checkpoint_before(tmp_path):
    path = tmp_path / 'c.pt'
    save_checkpoint(path, {'step': 1})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match='the checkpoint before this one stays') as failed:
            save_checkpoint(path, {'step': 2, 'w': torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert failed.value.errno == errno.EFBIG
    assert failed.value.filename == str(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_ends_a_run_in_one_line_and_it_goes_on_when_there_is_room(tmp_path):
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / 'data.hdf5', 'w') as file:
        for name, size in (('observations', (40, 2)), ('actions', (40, 1)), ('rewards', 40)):
            file[name] = rng.uniform(-1, 1, size)
        file['terminals'] = np.zeros(40, bool)
        file['timeouts'] = np.arange(40) % 8 == 7
    arguments = [
        '--dataset', 'data.hdf5', '--root', str(tmp_path), '--output', str(tmp_path / 'run'),
        '--checkpoint-every', '2', '--threads', '1', '--batch-size', '8', '--idql.actor-width',
        '16', '--idql.actor-blocks', '1', '--idql.critic-hidden', '16', '--idql.value-hidden',
        '16', '--idql.actor-decay-steps', '9']
    main([*arguments, '--steps', '2'])
    path = tmp_path / 'run' / 'checkpoint.pt'
    before = path.read_bytes()
    # The limit is for each file that the process writes; the metrics stay below it.
    limit = len(before) // 2
    run = subprocess.run(
        [sys.executable, '-m', 'training.train', *arguments, '--steps', '9', '--resume'],
        cwd=ROOT, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == (
        'error: [Errno 27] File too large; the checkpoint before this one stays: '
        f"'{tmp_path}/run/checkpoint.pt'")
    assert 'Traceback' not in run.stderr
    assert path.read_bytes() == before
    assert not list(path.parent.glob('.*'))
    main([*arguments, '--steps', '9', '--resume'])
    assert read_checkpoint(path)['step'] == 9


def test_a_process_killed_while_it_writes_leaves_a_whole_checkpoint(tmp_path):
    path = tmp_path / 'c.pt'
    child = subprocess.Popen(
        [sys.executable, '-c',
         'import pathlib, sys, torch\n'
         'from training.checkpoint import save_checkpoint\n'
         'torch.set_num_threads(1)\n'
         'for step in range(10**6):\n'
         '    save_checkpoint(pathlib.Path(sys.argv[1]), {"w": torch.full((2**20,), step)})\n'
         '    print(step, flush=True)\n', str(path)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == '0\n'
        # It is seen while it writes: the unfinished file is there before and after the kill.
        unfinished = tmp_path / '.c.pt.unfinished'
        while not unfinished.exists():
            assert child.poll() is None
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    weights = read_checkpoint(path)['w']
    assert (weights == weights[0]).all()
    save_checkpoint(path, {'w': 1})
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('change, message', [
    ({'seed': 1}, r'^seed: expected 0 as in c.pt, found 1'),
    ({'threads': 2}, r'^threads: expected None as in c.pt, found 2'),
    ({'idql': {'discount': 0.99, 'critic_hidden': (8, 8)}},
     r'^idql.discount: expected 0.9 as in c.pt, found 0.99'),
])
def test_run_with_another_configuration_is_refused_naming_the_key(change, message):
    content = {'config': CONFIG, 'provenance': PROVENANCE}
    with pytest.raises(CheckpointError, match=message):
        check_same_run(content, CONFIG | change, PROVENANCE, Path('c.pt'))


@pytest.mark.parametrize('key', ['dataset_hash', 'validation_hash'])
def test_run_with_other_data_is_refused_by_its_hash(key):
    content = {'config': CONFIG, 'provenance': PROVENANCE}
    with pytest.raises(CheckpointError, match=f'^{key}: .*demo/a-v0, found 5678'):
        check_same_run(content, CONFIG, PROVENANCE | {key: '5678'}, Path('c.pt'))


def test_files_may_have_been_moved_and_the_run_prolonged():
    content = {'config': CONFIG, 'provenance': PROVENANCE}
    now = CONFIG | {'output': 'b', 'root': 'c', 'dataset': 'd', 'steps': 9, 'resume': True}
    check_same_run(content, now, PROVENANCE | {'dataset': 'd'}, Path('c.pt'))
