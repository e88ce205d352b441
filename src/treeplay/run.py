"""The run folder: one manifest, stage files that appear whole or not at all, and resuming.

    manifest.json   resolved configuration, versions, digests, players
    base/, round-1/, ...   what each stage made, in the order of the pipeline
    eval/PLAYER.jsonl      every evaluated sample
    report.json, report.html, timings.json

A stage writes its items to ``NAME.part`` as they come and renames it when the last is there. A
killed stage goes on behind the last whole group in its part file; since every item depends on
seeds and inputs alone, the file ends up the same.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import lru_cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any, TypeVar

import psutil

from treeplay.config import Config, differing_keys, to_dict, with_newer_keys, without_places
from treeplay.errors import RunError
from treeplay.grpo import require_trl
from treeplay.hold import Hold, hold

Item = TypeVar("Item")
LIBRARIES = ("treeplay", "torch", "transformers", "peft", "accelerate", "ast-grep-py", "bandit")
# A stage's group has so many times the rows that are sampled at once, which come in as others end.
# A group is what an interruption costs; with larger ones, fewer last rows are without company.
FLOW = 4
# What a run writes before its first result.
AT_THE_START = ("manifest.json", "tasks.jsonl", "timings.json")


@dataclass
class Run:
    """An open run folder. ``anew``: players may be asked otherwise than before; ``changed``: the
    settings of evaluation that are others than in the manifest (:mod:`treeplay.evaluations`);
    ``held``: keeps other processes out as long as it is there."""

    folder: Path
    config: Config
    manifest: dict[str, Any]
    timings: dict[str, float] = field(default_factory=dict)
    anew: bool = False
    changed: tuple[str, ...] = ()
    held: Hold | None = None

    def path(self, *parts: str) -> Path:
        path = self.folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def name(self, role: str, identity: str) -> None:
        """Record what ``role`` (base, judge, a player, an opponent) is, or check it on resume.

        Raises :class:`RunError` where the run began with something else.
        """
        names = self.manifest.setdefault("identities", {})
        if role in names and names[role] != identity:
            raise RunError(
                f"{self.folder}: {role} was {names[role]} when the run began and is {identity} "
                "now; put the old one back (a model of the hub: model.revision=COMMIT), or start a "
                "new run in another folder"
            )
        if role not in names:
            names[role] = identity
            write_json(self.folder / "manifest.json", self.manifest)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds spent to ``timings.json`` (also when interrupted)."""
        start = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - start
            self.timings[stage] = round(self.timings.get(stage, 0.0) + spent, 1)
            peak = peak_memory_mb()
            self.timings["peak_memory_mb"] = max(self.timings.get("peak_memory_mb", 0.0), peak)
            write_json(self.folder / "timings.json", self.timings)


def open_run(config: Config, *, resume: bool, anew: bool = False) -> Run:
    """Open ``config.out``: a new folder, or with ``resume`` one that was begun with the same
    configuration, wherever it, the model and the tasks lay then; with ``anew`` it may differ in
    how players are evaluated, unless that decides what they learn. Raises :class:`RunError`
    otherwise, naming the keys that differ, and :class:`treeplay.hold.BusyError` where another
    process is at work."""
    folder = Path(config.out)
    held = _made(folder)
    path = folder / "manifest.json"
    if not path.is_file() or _may_begin_again(path, config, resume):
        if not path.is_file() and any(name != "manifest.json.tmp" for name in _files(folder)):
            raise RunError(
                f"{folder} is not empty and holds no run; choose another folder with out=FOLDER"
            )
        for name in AT_THE_START[1:]:
            (folder / name).unlink(missing_ok=True)
        manifest: dict[str, Any] = {
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "config": to_dict(config),
            "versions": versions(config.method),
            "code": [code_digest()],
            "identities": {},
        }
        write_json(path, manifest)
        return Run(folder, config, manifest, held=held)
    if not resume:
        raise RunError(
            f"{folder} already holds a run; add --resume to go on with it, or choose another "
            "folder with out=FOLDER"
        )
    manifest = read_manifest(path)
    manifest["config"] = with_newer_keys(manifest["config"])
    keys = differing_keys(without_places(manifest["config"]), without_places(to_dict(config)))
    decides = bool(config.tasks.hold_out or config.play.watch)  # what is learnt, too
    asks = all(map(evaluates, keys)) and not decides
    if keys and not (anew and asks):
        raise RunError(
            f"{folder} was begun with other settings: {', '.join(keys)} differ; "
            "resume with the same ones, "
            + ("have all players asked anew (play --resume), " if asks else "")
            + "or choose another folder with out=FOLDER"
        )
    old, new = manifest["versions"], versions(config.method)
    changed = [name for name in old if old[name] != new.get(name)]
    if changed:
        raise RunError(
            f"{folder} was begun with other versions: "
            + ", ".join(f"{name} {old[name]} (now {new.get(name)})" for name in changed)
            + "; install those, or choose another folder with out=FOLDER"
        )
    if code_digest() not in manifest.setdefault("code", ["unknown"]):
        manifest["code"].append(code_digest())
        write_json(path, manifest)
    if not keys:  # where things lie now; written once they are known to be the same things
        manifest["config"] = to_dict(config)
    timings = folder / "timings.json"
    spent = read_json(timings) if timings.is_file() else {}
    return Run(folder, config, manifest, spent, anew and not decides, tuple(keys), held)


def _made(folder: Path) -> Hold | None:
    """The folder, made where it is not there, and held."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return hold(folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunError(
            f"cannot make the run folder {folder}: {error.strerror}; choose another one with "
            "out=FOLDER"
        ) from error


def evaluates(key: str) -> bool:
    """Whether a setting decides how players are evaluated, and nothing else."""
    return key == "tasks.eval" or key.startswith("eval.")


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a run. Raises :class:`RunError` for a file that is none."""
    data = read_json(path)
    if not isinstance(data, dict) or "config" not in data or "versions" not in data:
        raise RunError(f"{path} is no manifest of a run; choose another folder with out=FOLDER")
    manifest: dict[str, Any] = data
    return manifest


def _files(folder: Path) -> Iterator[str]:
    """Names of the files in a folder and below."""
    return (item.name for item in folder.rglob("*") if not item.is_dir())


def _may_begin_again(path: Path, config: Config, resume: bool) -> bool:
    """Whether a run ended before its first result (a wrong model name, say): then it holds
    nothing to protect, and the next attempt may have other settings."""
    manifest = read_manifest(path)
    now = versions(config.method)
    same = manifest["config"] == to_dict(config) and manifest["versions"] == now
    nothing = all(name.removesuffix(".tmp") in AT_THE_START for name in _files(path.parent))
    return nothing and not (resume and same)


def staged(
    path: Path,
    groups: Sequence[Sequence[Item]],
    work: Callable[[Sequence[Item]], list[dict[str, Any]]],
    progress: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Run ``work`` over groups and keep the rows it returns in the JSONL file ``path``.

    A group's rows are appended together, then a line that closes the group. Where ``path`` is
    there, it is read and nothing is done. ``progress`` gets the number of all items that are
    finished, group by group.
    """
    part = path.with_name(path.name + ".part")
    if path.is_file():
        part.unlink(missing_ok=True)  # killed between the two last steps below
        progress(sum(map(len, groups)))
        return read_jsonl(path)
    rows, finished = _read_part(part)
    _write_part(part, rows, finished)
    progress(sum(map(len, groups[:finished])))
    with part.open("a", encoding="utf-8") as handle:
        for number in range(finished, len(groups)):
            made = work(groups[number])
            lines = [json.dumps(row, ensure_ascii=False) for row in made]
            handle.write("".join(line + "\n" for line in [*lines, f'{{"group": {number}}}']))
            handle.flush()
            rows += made
            progress(sum(map(len, groups[: number + 1])))
    write_jsonl(path, rows)
    part.unlink()
    return rows


def batches(order: Sequence[int], rows: Sequence[int], rows_at_once: int) -> list[list[int]]:
    """Groups of indices, in order, for a stage that samples ``rows``: at most ``FLOW`` times
    ``rows_at_once`` together where possible."""
    groups: list[list[int]] = []
    used = 0
    for i in order:
        if not groups or used + rows[i] > FLOW * rows_at_once:
            groups.append([])
            used = 0
        groups[-1].append(i)
        used += rows[i]
    return groups


def _read_part(part: Path) -> tuple[list[dict[str, Any]], int]:
    """Rows of the whole groups in a part file, and how many groups they are."""
    rows: list[dict[str, Any]] = []
    pending: list[dict[str, Any]] = []
    finished = 0
    if not part.is_file():
        return rows, finished
    for line in part.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break  # the line the process died in
        if row.keys() == {"group"}:
            rows += pending
            pending, finished = [], finished + 1
        else:
            pending.append(row)
    return rows, finished


def _write_part(part: Path, rows: Sequence[dict[str, Any]], finished: int) -> None:
    """Rewrite a part file without what lies behind its last whole group."""
    if not part.is_file():
        return
    lines = part.read_text(encoding="utf-8", errors="replace").split("\n")
    kept, closed = [], 0
    for line in lines:
        if closed == finished:
            break
        kept.append(line)
        closed += line.startswith('{"group": ')
    write_text(part, "".join(line + "\n" for line in kept))


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".tmp")
    with part.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    part.replace(path)


def write_json(path: Path, data: Any) -> None:
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path: Path) -> Any:
    """Raises :class:`RunError` for a file that is not whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError) and path.name == "manifest.json":
            raise RunError(f"{path.parent} is no run folder: it has no manifest.json") from error
        raise RunError(f"cannot read {path}: {error}; remove it to have it made again") from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Raises :class:`RunError` naming the line that is broken."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise RunError(
                f"{path}:{number}: this line is broken ({error}); remove the file to have it "
                "made again"
            ) from error
    return rows


def versions(method: str = "") -> dict[str, str]:
    """Versions of Python and of the libraries that can change a result of ``method``.

    Raises :class:`RunError` where the method needs one that is not installed."""
    out = {"python": platform.python_version()}
    for name in LIBRARIES:
        out[name] = metadata.version(name)
    if method == "grpo":
        out["trl"] = require_trl()
    return out


@lru_cache(maxsize=1)
def code_digest() -> str:
    """A digest of this package's Python source: the same string means the same code."""
    root = Path(str(resources.files("treeplay")))
    found = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return found.hexdigest()[:16]


def peak_memory_mb() -> float:
    """Peak resident memory of this process, in MB (10^6 bytes)."""
    try:
        import resource

        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 0)
    except ImportError:  # not on Windows
        return round(psutil.Process().memory_info().rss / 1e6, 0)
