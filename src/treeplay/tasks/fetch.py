"""Fetch the public data sets that the importers read: git checkouts at the revisions that were
used, side by side in one folder. Nothing of them is in the package.

    treeplay tasks fetch DIR      ->      DIR/SafeCoder, DIR/CWEval, ...
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from treeplay.errors import TaskError


@dataclass(frozen=True)
class Source:
    """A data set in a public git repository. ``revision``: the commit; ``path``: the file or the
    folder of it that the importer reads; ``license``: as the repository states it."""

    repository: str
    revision: str
    path: str
    license: str

    @property
    def folder(self) -> str:
        return self.repository.rstrip("/").rpartition("/")[2].removesuffix(".git")


def _github(name: str, revision: str, path: str, license: str) -> Source:
    return Source(f"https://github.com/{name}", revision, path, license)


_SAFECODER = ("eth-sri/SafeCoder", "1bf9d57b42b785ca1bf5454c040cc9d2d27c4ab5")
# By the kind that the importers know a set as.
SOURCES: dict[str, Source] = {
    "seccodeplt": _github(
        "ucsb-mlsec/SecCodePLT",
        "d8e74e2b705c2882d2f9b25b7345f86e5de6857c",
        "virtue_code_eval/data/safety/ours_old/data_one.json",
        "none stated",
    ),
    "safecoder": _github(*_SAFECODER, "data_train_val/train/sec-new-desc.jsonl", "MIT"),
    "sven": _github(
        "eth-sri/sven", "e8449a0d54a5ae0bbdc6bb236330b8c7ec71df57", "data_train_val/train", "MIT"
    ),
    "tsp": _github(
        "Easonnoway/TSP",
        "ab7485d5b5428f0671e36691efb32b487aad450d",
        "data/annotated_datasets/sec-new-desc_annotated.json",
        "MIT",
    ),
    "securityeval": _github(
        "s2e-lab/SecurityEval",
        "6f4fb70f782c6d47b02ea24341e8ef8c1eb04a6a",
        "dataset.jsonl",
        "none stated",
    ),
    "cweval": _github(
        "Co1lin/CWEval", "e9a2a124c8c53679b6d8d27adfd2f6c40e7576d7", "benchmark", "Apache-2.0"
    ),
    "humaneval": _github(
        "openai/human-eval",
        "6d43fb980f9fee3c892a914eda09951f772ad10d",
        "data/HumanEval.jsonl.gz",
        "MIT",
    ),
    "mbpp": _github(*_SAFECODER, "data_eval/mbpp", "CC-BY-4.0"),
}


def fetch(folder: Path, sources: Mapping[str, Source], say: Callable[[str], None]) -> None:
    """Check every source out in ``folder``; what is there at its revision stays. Raises
    :class:`TaskError` where git is missing or fails, and where a folder is something else."""
    if shutil.which("git") is None:
        raise TaskError("fetching data sets needs git, which is not installed; install it")
    for source in dict.fromkeys(_checkout(source) for source in sources.values()):
        target = folder / source.folder
        if target.is_dir() and _revision(target) == source.revision:
            say(f"{target}: there")
            continue
        if target.exists():
            raise TaskError(
                f"{target} is there and is not {source.repository} at {source.revision[:12]}; "
                "move it away or choose another folder"
            )
        part = target.with_name(f"{target.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for args in (
            ("init", "--quiet"),
            ("fetch", "--quiet", "--depth", "1", source.repository, source.revision),
            ("checkout", "--quiet", "FETCH_HEAD"),
        ):
            _git(part, *args)
        part.rename(target)
        say(f"{target}: {source.repository} at {source.revision[:12]}")


def _checkout(source: Source) -> Source:
    """What two sets of one repository have in common."""
    return Source(source.repository, source.revision, "", "")


def _git(folder: Path, *args: str) -> str:
    # Not the repository of a hook that runs this, no question for a password, bytes as they are.
    env = {
        key: value for key, value in os.environ.items() if key not in ("GIT_DIR", "GIT_WORK_TREE")
    }
    done = subprocess.run(
        ["git", "-c", "core.autocrlf=false", "-C", str(folder), *args],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**env, "GIT_TERMINAL_PROMPT": "0"},
    )
    if done.returncode:
        last = (done.stderr.strip() or f"status {done.returncode}").splitlines()[-1]
        raise TaskError(f"git {args[0]} failed in {folder}: {last}; try again")
    return done.stdout.strip()


def _revision(folder: Path) -> str:
    """The commit that ``folder`` is a checkout of; nothing where it is none."""
    if not (folder / ".git").exists():  # else git would tell of a repository around it
        return ""
    return _git(folder, "rev-parse", "HEAD")
