"""How fast executed Python tests are: both groups in one sandbox against a sandbox for each.

    python benchmarks/execute_speed.py [--programs N] [--workers N] [--json OUT]

The two ways take turns, so that other load on the machine meets both. Besides the wall clock, the
processor time of everything that was started is counted: it says what an idle machine would do.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from treeplay.judge import execute as module
from treeplay.judge.outcome import Execution
from treeplay.sandbox import Sandbox
from treeplay.tasks.task import Tests

PROGRAM = """\
import os.path


def read(folder, name):
    path = os.path.realpath(os.path.join(folder, name))
    if not path.startswith(os.path.realpath(folder) + "/"):
        raise ValueError("outside")
    with open(path) as file:
        return file.read() + "{number}"
"""
FUNCTIONAL = """\
import os
from solution import read
os.mkdir("d")
with open("d/a", "w") as file:
    file.write("text")
assert read("d", "a").startswith("text")
"""
SECURITY = """\
import os
from solution import read
os.mkdir("d")
with open("secret", "w") as file:
    file.write("secret")
try:
    got = read("d", "../secret")
except ValueError:
    got = ""
if "secret" in got:
    exploited("left the folder")
"""
_PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    # What bubblewrap leaves behind comes to this process, and its time with it.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    tests = Tests(FUNCTIONAL, SECURITY)
    plan = module._python_plan(module._plan("python"), tests)
    ways: dict[str, Callable[[str], Execution]] = {
        "shared": lambda text: module._both(plan, text, tests, Sandbox()),
        "apart": lambda text: module._one_by_one(plan, text, tests, Sandbox()),
    }
    for way in ways.values():
        way(PROGRAM)
    wall = dict.fromkeys(ways, 0.0)
    cpu = dict.fromkeys(ways, 0.0)
    rounds = 6
    with ThreadPoolExecutor(given.workers) as pool:
        for turn in range(rounds):
            for name, way in ways.items():
                size = given.programs // rounds
                texts = [PROGRAM.replace("{number}", f"{turn}.{i}") for i in range(size)]
                start, before = time.perf_counter(), used()
                for done in pool.map(way, texts):
                    outcomes = (done.functional.outcome, done.security.outcome)
                    assert outcomes == ("pass", "pass"), done
                wall[name] += time.perf_counter() - start
                cpu[name] += used() - before
    number = given.programs // rounds * rounds
    data = {
        name: {
            "programs": number,
            "per_second": round(number / wall[name], 1),
            "cpu_ms_per_program": round(1000 * cpu[name] / number, 1),
            "per_second_if_idle": round(given.workers * number / cpu[name], 1),
        }
        for name in ways
    }
    for name, row in data.items():
        print(
            f"{name:<8}{row['per_second']:>7} programs/s on {given.workers} workers, "
            f"{row['cpu_ms_per_program']} ms of processor time each "
            f"(alone on as many cores: {row['per_second_if_idle']}/s)"
        )
    print(
        f"shared is {wall['apart'] / wall['shared']:.2f} times as fast, "
        f"with {cpu['shared'] / cpu['apart']:.2f} of the processor time"
    )
    if given.json is not None:
        given.json.write_text(json.dumps(data, indent=1) + "\n", "utf-8")


def used() -> float:
    """Processor seconds of this process and of all it started, gathered in."""
    time.sleep(0.05)
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)


if __name__ == "__main__":
    main()
