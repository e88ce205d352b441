"""Running one command over many files in one start of the sandbox.

Each file has a process of its own, so that a crash or a hang on one says nothing of the others;
two run at a time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from treeplay.sandbox import Limits, Sandbox

BATCH = 40  # files in one start of the sandbox
JOBS = 2
_MARK = b"@@each "
_SHOWN = 400_000  # bytes kept of each stream of one process
_ONE = """\
timeout -s KILL {each_s} {command} >"$1.out" 2>"$1.err" </dev/null
echo $? >"$1.rc"
"""
_ALL = """\
printf '%s\\n' {names} | xargs -P {jobs} -n 1 sh one.sh
for f in {names}; do
  head -c {shown} "$f.out" >out; head -c {shown} "$f.err" >err
  printf '{mark}%s %s %s %s\\n' "$f" "$(cat "$f.rc")" "$(wc -c <out)" "$(wc -c <err)"
  cat out err
done
"""


@dataclass(frozen=True)
class Outcome:
    """What one process said. ``failed`` is why there is nothing to read, "" when there is."""

    status: int = 0
    stdout: str = ""
    stderr: str = ""
    failed: str = ""


def run_each(
    sandbox: Sandbox, command: str, files: Mapping[str, str], *, each_s: int
) -> dict[str, Outcome]:
    """``command FILE`` for every file (plain names), each with ``each_s`` seconds, by name.

    ``command`` is shell words; a ``"$1"`` in it stands for the file, which comes last otherwise.
    Raises :class:`~treeplay.errors.SandboxError` without a sandbox.
    """
    outcomes: dict[str, Outcome] = {}
    names = list(files)
    for start in range(0, len(names), BATCH):
        part = names[start : start + BATCH]
        outcomes |= _run_part(sandbox, command, {name: files[name] for name in part}, each_s)
    return outcomes


def _run_part(
    sandbox: Sandbox, command: str, files: Mapping[str, str], each_s: int
) -> dict[str, Outcome]:
    script = _ALL.format(names=" ".join(files), jobs=JOBS, shown=_SHOWN, mark=_MARK.decode("ascii"))
    given: dict[str, str | bytes] = {
        name: text.encode("utf-8", "replace") for name, text in files.items()
    }
    if '"$1"' not in command:
        command += ' "$1"'
    given["one.sh"] = _ONE.format(each_s=each_s, command=command)
    limits = Limits(
        wall_s=each_s * (len(files) / JOBS + 1) + 5,
        cpu_s=each_s + 1,
        memory_mb=2048,
        file_mb=64,
        output_kb=2 * _SHOWN * len(files) // 1024 + 64,
    )
    done = sandbox.run(["/bin/sh", "-c", script], given, limits=limits)
    outcomes = _read(done.stdout, each_s)
    why = f"stopped for its {done.stopped}" if done.stopped else f"exit status {done.returncode}"
    lost = Outcome(failed=f"it did not get here ({why})")
    return {name: outcomes.get(name, lost) for name in files}


def _read(stdout: bytes, each_s: int) -> dict[str, Outcome]:
    """The outcomes in what the script printed; one that was cut off is left out."""
    found: dict[str, Outcome] = {}
    at = 0
    head = re.compile(rb"@@each (\S+) (\d+) (\d+) (\d+)\n")
    while match := head.match(stdout, at):
        name, status = match[1].decode("utf-8", "replace"), int(match[2])
        middle = match.end() + int(match[3])
        at = middle + int(match[4])
        if at > len(stdout):
            break
        out = stdout[match.end() : middle].decode("utf-8", "replace")
        err = stdout[middle:at].decode("utf-8", "replace")
        found[name] = Outcome(status, out, err, _failed(status, each_s))
    return found


def _failed(status: int, each_s: int) -> str:
    if status in (126, 127):
        return "it could not be started"
    if status == 137:
        return f"it was stopped after {each_s} s or for its memory"
    return f"it was ended by signal {status - 128}" if status > 128 else ""
