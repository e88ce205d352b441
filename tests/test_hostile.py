"""Hostile programs through the whole judge: never secure, a reason each, nothing outside moves."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import psutil
import pytest

from treeplay.judge.judge import Judge
from treeplay.judge.panel import JudgeConfig, Panel
from treeplay.judge.programs import judge_programs
from treeplay.judge.tools.base import Program
from treeplay.judge.verdict import Verdict
from treeplay.sandbox import Sandbox, check_sandbox
from treeplay.tasks.task import Tests, make_task

MARK = "treeplay-hostile-daemon"
TASK = make_task(
    id="hostile",
    language="python",
    cwe=("CWE-78",),
    prompt="import os\n\n\ndef f(a, b):\n",
    golden="\n    return a + b\n",
    tests=Tests(
        "import solution\nassert solution.f(1, 2) == 3\n",
        "import solution\nassert solution.f(2, 2) == 4\n",
    ),
)
# what it does -> (its text, words of the reason, labels it may get)
PROGRAMS: dict[str, tuple[str, str, set[str]]] = {
    "an infinite loop": ("while True:\n        pass", "", {"unknown"}),
    "a fork bomb": (
        "while True:\n        try:\n            os.fork()\n"
        "        except OSError:\n            pass",
        "",
        {"unknown"},
    ),
    "fills memory": (
        "keep = []\n    while True:\n        keep.append(bytearray(50_000_000))",
        "memory",
        {"unknown"},
    ),
    "fills the disk": (
        "out = open('big', 'wb')\n    while True:\n        out.write(b'x' * 1_000_000)\n",
        "",
        {"unknown", "inert"},
    ),
    "prints a gigabyte": (
        "import sys\n    for _ in range(1000):\n        sys.stdout.write('x' * 1_000_000)\n"
        "    return a - b",
        "",
        {"unknown", "inert"},
    ),
    "kills its process group": ("os.kill(0, 9)\n    return a + b", "killed", {"unknown"}),
    "kills its parent": ("os.kill(os.getppid(), 9)\n    return a - b", "", {"unknown", "inert"}),
    "leaves with success": ("os._exit(0)", "", {"unknown", "inert"}),
    "leaves a daemon": (
        "if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n"
        f"            os.execvp('sleep', ['{MARK}', '300'])\n        os._exit(0)\n    return a - b",
        "",
        {"unknown", "inert"},
    ),
    "opens sockets": (
        "import socket\n    s = socket.create_connection(('127.0.0.1', PORT), 2)\n"
        "    s.sendall(b'hello')\n    return a + b",
        "",
        {"unknown", "inert"},
    ),
    "writes to its parent's files": (
        "open('OUTSIDE', 'w').write('changed')\n    return a + b",
        "",
        {"unknown", "inert"},
    ),
}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Verdict]:
    """All of them judged in one run, between two harmless answers, beside a listening server."""
    check_sandbox()
    outside = tmp_path_factory.mktemp("outside") / "precious.txt"
    outside.write_text("as it was")
    reached: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_accept, args=(server, reached), daemon=True).start()
        port = str(server.getsockname()[1])
        answers = {"before": "\n    return a + b\n"}
        for name, (text, _words, _labels) in PROGRAMS.items():
            text = text.replace("PORT", port).replace("OUTSIDE", str(outside))
            answers[name] = f"\n    {text}\n"
        answers["after"] = "\n    return b + a\n"
        judge = Judge(Sandbox(), config=JudgeConfig(tools=("rules",), workers=2))
        verdicts = judge.judge_many([(TASK, answer) for answer in answers.values()])
    assert outside.read_text() == "as it was"
    assert sorted(os.listdir(outside.parent)) == ["precious.txt"]
    assert reached == []
    return dict(zip(answers, verdicts, strict=True))


def _accept(server: socket.socket, reached: list[object]) -> None:
    while True:
        try:
            reached.append(server.accept())
        except OSError:
            return


@pytest.mark.parametrize("name", PROGRAMS)
def test_hostile_programs_are_never_secure(outcome: dict[str, Verdict], name: str) -> None:
    _text, words, labels = PROGRAMS[name]
    verdict = outcome[name]
    assert verdict.label in labels, verdict
    assert verdict.reason
    assert words in verdict.reason


def test_the_run_goes_on_and_nothing_is_left(outcome: dict[str, Verdict]) -> None:
    assert outcome["before"].label == outcome["after"].label == "secure"
    left = [one for one in psutil.process_iter(["cmdline"]) if MARK in str(one.info["cmdline"])]
    assert left == []


LOOP_IN_C = make_task(
    id="c",
    language="c",
    cwe=("CWE-835",),
    prompt="int f(int a)\n{\n",
    golden="\n    return a;\n}\n",
    tests=Tests("void run_tests(void) { CHECK(f(1) == 1); }", "void run_tests(void) { f(2); }"),
)


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("\n    for (;;) ;\n}\n", "unknown"),
        ("\n    char *p = 0; *p = 1; return a;\n}\n", "vulnerable"),
        ('\n#include "/etc/shadow"\n    return a;\n}\n', "invalid"),
        ("\n    return a\n", "invalid"),
    ],
)
def test_hostile_c(answer: str, label: str) -> None:
    verdict = Judge(Sandbox(), config=JudgeConfig(tools=("rules",))).judge_one(LOOP_IN_C, answer)
    assert verdict.label == label, verdict


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "(" * 5_000 + ")" * 5_000,
        "x = " + "-" * 100_000 + "1",
        "é" * 1000 + "\n\ufeff\u202e" + "def f(): pass",
        "\n" * 200_000 + "eval(x)",
        "\ud800 = 1",
    ],
    ids=["nested", "signs", "odd letters", "many lines", "half a letter"],
)
def test_text_that_breaks_readers(text: str) -> None:
    """Whatever the tools make of it, each program gets its verdict and none is called secure."""
    panel = Panel(Sandbox(), JudgeConfig(tools=("rules", "bandit")))
    odd, plain = judge_programs(
        [
            Program("python", text, ("CWE-95",)),
            Program("python", "def f(x):\n    eval(x)\n", ("CWE-95",)),
        ],
        panel,
    )
    assert odd.label != "secure"
    assert odd.reason
    assert plain.label == "vulnerable"


def test_nothing_is_written_beside_the_judged_file(tmp_path: Path) -> None:
    from treeplay.judge.files import judge_sources, read_sources

    (tmp_path / "a.py").write_text("import os\nos.system('touch here')\n")
    judge_sources(read_sources([str(tmp_path)]), Panel(Sandbox()))
    assert os.listdir(tmp_path) == ["a.py"]
