"""Processes that end with the one that started them."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mergemix_mm.utils import processes

# A data loader whose workers hang in reading a sample, and a pool whose workers hang: as on a disk that is gone.
SCRIPT = """
import multiprocessing, os, runpy, sys, time
from concurrent.futures import ProcessPoolExecutor
runpy.run_path(sys.argv[2])['end_children_with_parent']()
def hang(index):
    os.write(1, b'%d\\n' % os.getpid())  # In one piece, whatever the other worker writes.
    time.sleep(600)
class Data:
    def __len__(self):
        return 8
    def __getitem__(self, index):
        hang(index)
if sys.argv[1] == 'loader':
    from torch.utils.data import DataLoader
    next(iter(DataLoader(Data(), num_workers=2, persistent_workers=True)))
else:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context('fork')) as pool:
        list(pool.map(hang, range(2)))
"""


def is_alive(pid):
    try:
        with open(f'/proc/{pid}/stat') as file:
            return file.read().rsplit(')', 1)[1].split()[0] != 'Z'
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux tells a process of the end of its parent')
@pytest.mark.parametrize('kind', ['loader', 'pool'])
def test_workers_that_hang_end_with_a_killed_main_process(kind):
    process = subprocess.Popen(
        [sys.executable, '-c', SCRIPT, kind, processes.__file__], stdout=subprocess.PIPE, text=True
    )
    workers = []
    try:
        workers += [int(process.stdout.readline()) for _ in range(2)]
        assert all(is_alive(pid) for pid in workers)
        process.send_signal(signal.SIGKILL)
        process.wait()
        # The signal is sent when the process ends; this waits for the scheduler only.
        deadline = time.monotonic() + 60
        while any(is_alive(pid) for pid in workers) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not any(is_alive(pid) for pid in workers)
    finally:
        process.kill()
        process.stdout.close()
        for pid in workers:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
