"""What is said arrives; where nobody reads, nobody waits."""

import os
from pathlib import Path
import subprocess
import sys
import time

from idql_ros.relay import relayed

ROOT = Path(__file__).parents[1]


def test_what_is_said_arrives_in_order_and_whole():
    reading, writing = os.pipe()
    saved = os.dup(writing)
    os.dup2(saved, writing)
    with relayed(writing):
        for i in range(1000):
            os.write(writing, f'{i}\n'.encode())
    os.close(writing)
    os.close(saved)
    with open(reading) as file:
        # The relay's own copy of the pipe stays open with its process.
        assert [int(file.readline()) for _ in range(1000)] == list(range(1000))


def test_a_process_whose_log_nobody_reads_goes_on_and_ends():
    program = '\n'.join((
        'import os, time, rclpy.logging',
        'from idql_ros.relay import relayed',
        'log = rclpy.logging.get_logger("test")',
        'with relayed(1, 2):',
        '    for _ in range(5000): log.warning("x" * 1000)'))
    begun_s = time.monotonic()
    process = subprocess.Popen([sys.executable, '-c', program], cwd=ROOT,
                               stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        assert process.wait(20) == 0
        assert time.monotonic() - begun_s < 15
    finally:
        process.kill()
        process.stderr.close()
