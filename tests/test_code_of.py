"""The commit of a code digest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from treeplay.run import code_digest

ROOT = Path(__file__).parents[1]
SCRIPT = [sys.executable, str(ROOT / "scripts" / "code_of.py")]


def git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "no repository"


def test_the_code_that_is_here_is_found_in_the_history() -> None:
    if git("status", "--porcelain", "--", "src"):
        pytest.skip("the code is not that of a commit")
    done = subprocess.run([*SCRIPT, code_digest(), "--last", "2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    commit = done.stdout.split()[1]
    assert git("diff", "--stat", commit, "HEAD", "--", "src/treeplay/*.py") == ""


def test_a_digest_of_other_code_is_told() -> None:
    if git("rev-parse", "HEAD") == "no repository":
        pytest.skip("not a repository")
    done = subprocess.run([*SCRIPT, "0" * 16, "--last", "2"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "not in this history: 0000000000000000" in done.stderr
