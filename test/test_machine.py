"""What the machine gives: threads, memory that is kept, a GPU, bfloat16."""

import os
from pathlib import Path
import platform
import subprocess
import sys

import pytest
import torch
from training import machine

ROOT = Path(__file__).parents[1]
# Pages of 4 KiB that ten updates of the paper's sizes may ask the system for. With the memory kept
# they ask for a few hundred at most, without for more than twenty thousand.
PAGES = 4000
UPDATES = """
import resource, sys
import torch
from training import machine
from training.idql import Batch, IDQL, IDQLConfig
from training.train import Sampler, updater

if sys.argv[1] == 'prepared':
    machine.prepare(1)
else:
    torch.set_num_threads(1)
units = torch.zeros(17), torch.ones(17), torch.zeros(6), torch.ones(6)
columns = Batch(torch.randn(1000, 17), torch.rand(1000, 6), torch.randn(1000), torch.ones(1000),
                torch.randn(1000, 17))
update = updater([IDQL(IDQLConfig(), *units)], [Sampler(columns, 512, 0)])
for _ in range(5):
    update()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    update()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages_of_updates(tmp_path, preparation):
    """Return the page faults of ten updates, in a process of its own."""
    script = tmp_path / 'updates.py'
    script.write_text(UPDATES)
    # Without what the shell may say about memory.
    environment = {key: value for key, value in os.environ.items()
                   if not key.startswith(('MALLOC_', 'GLIBC_TUNABLES', 'LD_PRELOAD'))}
    done = subprocess.run(
        [sys.executable, script, preparation], cwd=ROOT, capture_output=True, text=True,
        env={**environment, 'PYTHONPATH': str(ROOT)}, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='it is glibc that is prepared')
def test_updates_on_a_prepared_machine_ask_for_next_to_no_memory(tmp_path):
    assert pages_of_updates(tmp_path, 'prepared') < PAGES
    # The bound tells something: unprepared, memory is given back and asked for again.
    assert pages_of_updates(tmp_path, 'unprepared') > PAGES


def test_threads_are_set_where_they_are_asked_for():
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            machine.prepare(threads)
            assert torch.get_num_threads() == threads
        machine.prepare()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_processor_multiplies_bfloat16_where_its_flags_say_so():
    found = machine.multiplies_bfloat16(torch.device('cpu'))
    assert type(found) is bool
    path = Path('/proc/cpuinfo')
    if not path.exists() or platform.machine() != 'x86_64':
        pytest.skip('no flags of the processor to compare with')
    line = next(line for line in path.read_text().splitlines() if line.startswith('flags'))
    assert found == bool({'avx512_bf16', 'amx_tile'} & set(line.split()))


def test_the_default_device_is_a_gpu_only_where_there_is_one():
    assert machine.default_device() == ('cuda' if torch.cuda.is_available() else 'cpu')
