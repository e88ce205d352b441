"""Python's two groups share a sandbox: neither may see or spoil the other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from treeplay.judge import execute as module
from treeplay.judge.execute import execute
from treeplay.judge.outcome import Execution
from treeplay.sandbox import Completed, Limits, Sandbox
from treeplay.tasks.task import Task, make_task
from treeplay.tasks.task import Tests as Groups

LIMITS = Limits(wall_s=4, address_mb=1024)
SECURITY = "import solution\nif solution.value() != 1: exploited('not 1')\n"


def task(functional: str, security: str = SECURITY, **more: tuple[str, ...]) -> Task:
    tests = Groups(functional, security, **more)  # type: ignore[arg-type]
    return make_task(id="t", language="python", cwe=("CWE-22",), prompt="def value():", tests=tests)


def run(functional: str, security: str = SECURITY, answer: str = "\n    return 1\n") -> Execution:
    return execute(task(functional, security), answer, Sandbox(), LIMITS)


def outcomes(done: Execution) -> tuple[str, str]:
    return done.functional.outcome, done.security.outcome


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    runs: list[int] = []
    real = Sandbox.run

    def counted(self: Sandbox, *given: object, **named: object) -> Completed:
        runs.append(1)
        return real(self, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Sandbox, "run", counted)
    return runs


def test_one_start_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = count_runs(monkeypatch)
    done = run("import solution\nassert solution.value() == 1")
    assert outcomes(done) == ("pass", "pass")
    assert len(runs) == 1
    assert 0 < done.functional.seconds < 4


SPOILERS = {
    "the program": "open('solution.py', 'w')",
    "the program, by another": "import os; os.unlink('solution.py'); os.mkdir('solution.py')",
    "the tests": (
        "import os\nfor name in os.listdir('.treeplay'):\n    os.unlink('.treeplay/' + name)\n"
        "    open('.treeplay/' + name, 'w').write('pass')"
    ),
    "modules": "open('os.py', 'w').write('x'); open('/tmp/work/json.py', 'w').write('x')",
    "a shut folder": "import os\nos.makedirs('a/b'); os.chmod('a', 0)",
    "the shared memory": "open('/dev/shm/mark', 'w')",
    "a daemon": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        for _ in range(3000):\n            open('/tmp/work/solution.py', 'w').write('x')\n"
        "            time.sleep(0.001)\n    os._exit(0)\nos.wait()"
    ),
    "the parent": "import os; os.kill(os.getppid(), 9)",
    "the parent, stopped": "import os; os.kill(os.getppid(), 19); os._exit(0)",
    "everything": "import os; os.kill(-1, 9)",
    "the next secret": "import os; os.read(os.open(f'/proc/{os.getppid()}/fd/0', 0), 100)",
    "the output": "import os\nfor _ in range(3000): os.write(3, b'x' * 1000 + b'\\n')",
    "the errors": "import os\nfor _ in range(3000): os.write(2, b'x' * 1000 + b'\\n')",
}


@pytest.mark.parametrize("name", list(SPOILERS))
def test_the_first_group_cannot_spoil_the_second(name: str) -> None:
    look = "import os\nassert not os.path.exists('/dev/shm/mark') and not os.path.exists('a')\n"
    assert run(SPOILERS[name], look + SECURITY).security.outcome == "pass"
    bad = run(SPOILERS[name], look + SECURITY, "\n    return 2\n")
    assert bad.security.outcome == "exploited", bad


def test_a_slow_first_group_leaves_the_second_its_time() -> None:
    done = run("while True: pass", "import time; time.sleep(2)")
    assert outcomes(done) == ("unknown", "pass")
    assert done.functional.detail == "time-out"
    done = run("pass", "while True: pass")
    assert outcomes(done) == ("pass", "unknown")
    assert done.security.detail == "time-out"


def test_a_greedy_first_group_leaves_the_second_its_memory() -> None:
    hoard = "kept = []\nwhile True: kept.append(bytearray(b'x' * (4 << 20)))\n"
    limits = replace(LIMITS, memory_mb=150)
    done = execute(task(hoard), "\n    return 1\n", Sandbox(), limits)
    assert outcomes(done) == ("unknown", "pass")
    assert "memory" in done.functional.detail


def test_without_a_sandbox_nothing_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = count_runs(monkeypatch)
    done = execute(task("import solution"), "\n    return 1\n", Sandbox(unsafe=True), LIMITS)
    assert outcomes(done) == ("pass", "pass")
    assert len(runs) == 2


def test_third_party_modules_only_where_asked_for() -> None:
    text = "import yaml\nassert yaml.safe_load('a: 1') == {'a': 1}"
    assert outcomes(run(text)) == ("fail", "pass")
    allowed = task(text, requires=("yaml",))
    assert outcomes(execute(allowed, "\n    return 1\n", Sandbox())) == ("pass", "pass")
    absent = task(text, requires=("no_such_module_at_all",))
    done = execute(absent, "\n    return 1\n", Sandbox())
    assert outcomes(done) == ("unknown", "unknown")
    assert "pip install no_such_module_at_all" in done.functional.detail


def test_numbers_fit_into_the_limits() -> None:
    text = "import numpy\nassert numpy.ones((50, 50)).sum() == 2500"
    done = execute(task(text, requires=("numpy",)), "\n    return 1\n", Sandbox())
    assert outcomes(done) == ("pass", "pass"), done


def test_apart_and_together_say_the_same() -> None:
    for answer in ("\n    return 1\n", "\n    return 2\n", "\n    return nothing\n"):
        one = task("import solution\nassert solution.value() == 1\n")
        plan = module._python_plan(
            replace(module._plan("python"), limits=LIMITS), one.tests or Groups("", "")
        )
        program = one.program(answer)
        apart = module._one_by_one(plan, program, one.tests or Groups("", ""), Sandbox())
        together = module._both(plan, program, one.tests or Groups("", ""), Sandbox())
        assert outcomes(apart) == outcomes(together)
        assert apart.functional.detail == together.functional.detail
