"""Freed memory is kept between steps and given back at the end."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")

# In a process of its own: settings of the C library are the whole process's.
FAULTS = """
import resource
from treeplay.policy.heap import keep_freed
kept = keep_freed()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    return len(b"1" * (96 << 20)) + len(b"2" * (64 << 20))
work()
before = faults()
for _ in range(3):
    work()
print(kept, faults() - before)
"""
ROOM = """
from pathlib import Path
from treeplay.policy.heap import give_back, keep_freed
keep_freed()
def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024
some = [b"1" * (1 << 20) for _ in range(128)]
del some
kept = resident()
give_back()
print(kept - resident())
"""


def said(code: str, **env: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@glibc
def test_the_same_memory_is_used_again_without_new_pages() -> None:
    pages = 3 * (160 << 20) // 4096
    kept, faults = said(FAULTS)
    assert kept == "True"
    assert int(faults) < pages / 20


@glibc
def test_an_environment_that_tunes_the_allocator_is_left_alone() -> None:
    kept, _ = said(FAULTS, MALLOC_MMAP_THRESHOLD_="1048576")
    assert kept == "False"


@glibc
def test_kept_memory_is_given_back_when_asked() -> None:
    (freed,) = said(ROOM)
    assert int(freed) > 100
