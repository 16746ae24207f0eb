"""Processes that work for a program: gone with it, however it ends, and silent on an interrupt."""

import contextlib
import multiprocessing
import os
from pathlib import Path
import signal
import subprocess
import sys

import pytest
from training import workers

ROOT = Path(__file__).parents[1]
PROGRAM = """
import multiprocessing, sys, time
from training import workers

def work(pipe):
    workers.begin()
    pipe.send('working')
    time.sleep(600)

if __name__ == '__main__':
    context = multiprocessing.get_context(sys.argv[1])
    ours, theirs = context.Pipe()
    context.Process(target=work, args=(theirs,), daemon=True).start()
    theirs.close()
    try:
        print(ours.recv(), flush=True)
        ours.recv()
    except KeyboardInterrupt:
        sys.exit('interrupted')
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize('method', ['spawn', 'forkserver'])
@pytest.mark.parametrize('ending', [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_worker_ends_with_its_parent_and_leaves_the_interrupt_to_it(tmp_path, method, ending):
    (tmp_path / 'program.py').write_text(PROGRAM)
    child = subprocess.Popen(
        [sys.executable, tmp_path / 'program.py', method], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        # A shell without job control lets what it starts in the background ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        assert child.stdout.readline() == b'working\n'
        if ending == signal.SIGINT:  # a terminal sends it to all of them
            os.killpg(child.pid, ending)
        else:
            child.send_signal(ending)
        # Read to the end: the worker holds the other end of this pipe as long as it lives.
        rest = child.stdout.read()
        assert child.wait() == (1 if ending == signal.SIGINT else -ending)
        assert rest == (b'interrupted\n' if ending == signal.SIGINT else b'')
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.stdout.close()
        child.wait()


def wait_for_the_end(pipe):
    """Say that it is there, and end when nobody listens any more."""
    with contextlib.suppress(EOFError):
        while True:
            pipe.send('there')
            pipe.recv()


@pytest.mark.timeout(60)
@pytest.mark.parametrize('method', ['spawn', 'forkserver'])
def test_deaf_process_is_ended_by_its_pipe_and_no_signal_and_its_parent_hears_again(method):
    context = multiprocessing.get_context(method)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    ours, theirs = context.Pipe()
    process = context.Process(target=wait_for_the_end, args=(theirs,), daemon=True)
    try:
        with workers.deaf():
            process.start()
        theirs.close()
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
        for ending in (signal.SIGTERM, signal.SIGINT):
            os.kill(process.pid, ending)
            assert ours.recv() == 'there'
            ours.send('stay')
        assert ours.recv() == 'there'
        ours.close()
        process.join(30)
        assert process.exitcode == 0
    finally:
        process.kill()
