"""One team of OpenMP threads in a process, counted in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from workers.engine.openmp import openmp

PROGRAM = """
import os, threading
import torch
from workers.engine.openmp import release_team, without_team

def threads():
    return len(os.listdir("/proc/self/task"))

def work():
    torch.zeros(400, 400).neg_()

def alone():
    without_team()
    work()
    print(torch.get_num_threads(), threads() - before - 1)

torch.set_num_threads(2)
before = threads()
work()
print(torch.get_num_threads(), threads() - before)
release_team()
print(threads() - before)
thread = threading.Thread(target=alone)
thread.start()
thread.join()
work()
print(torch.get_num_threads(), threads() - before)
"""


def test_idle_threads_go_and_helpers_have_none() -> None:
    if openmp() is None:
        pytest.skip("torch's OpenMP library is not GNU's here")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["2 1", "0", "1 0", "2 1"]
