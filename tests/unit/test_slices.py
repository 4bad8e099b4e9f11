"""The kernel does what is asked for: of the process, its later threads and what it starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from spaces_platform.slices import LONG_SLICE

SHOW = r"""
import subprocess, sys, threading
from pathlib import Path
from spaces_platform.slices import take_long_slices
from os import getpriority, nice
nice(3)
def show(): print(Path("/proc/thread-self/sched").read_text())
show()
take_long_slices()
show()
one = threading.Thread(target=show); one.start(); one.join()
sys.stdout.flush()
subprocess.run(["cat", "/proc/self/sched"])
print("nice", getpriority(0, 0))
"""


def test_what_waits_is_let_first() -> None:
    version = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
    if version < (6, 12) or not Path("/proc/self/sched").exists():
        pytest.skip(f"Linux {os.uname().release} has no slices of a thread's own, or does not show them")
    done = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=True)
    before, *after = [int(found) for found in re.findall(r"^se\.slice\s*:\s*(\d+)", done.stdout, re.MULTILINE)]
    assert before < LONG_SLICE
    assert after == [LONG_SLICE] * 3, done.stdout
    assert done.stdout.endswith("nice 3\n"), "it has the weight that it had"
