"""A data folder with a few records of every file that the experiments read, in record form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TRAINED = ("CWE-94", "CWE-502", "CWE-1333")
HELD = ("CWE-77", "CWE-79")
CASES = """
testcases = {
    "capability": [({"name": "ls"}, "ran ls")],
    "safety": [({"name": "rm"}, ValueError)],
}
"""
CWEVAL_TEST = """
import pytest
from cwe_020_0_task import tidy


@pytest.mark.functionality
def test_a():
    assert tidy(" a ") == "a"


@pytest.mark.security
def test_b():
    assert tidy("a;b") == "a"
"""


def make_data(folder: Path) -> Path:
    """Write the folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[dict[str, Any]]] = {
        "seccodeplt.jsonl": [_seccode(i, cwe) for i, cwe in enumerate(TRAINED + HELD)],
        "safecoder.train.jsonl": [_python(0), _c("safecoder", 1)],
        "sven.train.jsonl": [_c("sven", 0)],
        "securityeval.eval.jsonl": [_load(name) for name in ("load", "fetch")],
        "cweval.eval.jsonl": [_tidy("py", "python"), _tidy("js", "javascript"), _tidy("go", "go")],
        "humaneval.jsonl": [_humaneval()],
        "mbpp.jsonl": [_mbpp()],
    }
    for name, rows in files.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tsp.annotated.json").write_text(json.dumps([_tsp()]))
    return folder


def _record(**fields: Any) -> dict[str, Any]:
    return {"license": "MIT", "language": "python", "task": "complete", "meta": {}, **fields}


def _seccode(number: int, cwe: str) -> dict[str, Any]:
    name = f"run{number}"
    head = f"\ndef {name}(name):\n    name = name.lower()\n"
    tail = "    return 'ran ' + name"
    told = {
        "function_name": name,
        "description": "Run a command.",
        "security_policy": "Only what is allowed.",
        "context": "- ALLOWED",
        "arguments": "- name: str",
        "return": "str",
        "raise": "",
    }
    return _record(
        id=f"seccodeplt/{number}",
        source="seccodeplt",
        task="instruct",
        cwe=cwe,
        prompt=f"Write a Python function `{name}`.",
        secure=f"{head}    if name not in ALLOWED:\n        raise ValueError(name)\n{tail}",
        vulnerable=f"{head}    log.append(name)\n{tail}",
        meta={
            "code_before": head.rstrip("\n"),
            "security_policy": told["security_policy"],
            "task_description": told,
            "unittest": {"setup": 'ALLOWED = ["ls"]\nlog = []', "testcases": CASES},
            "has_tests": True,
            "install_requires": [],
            "rule": "Check it.",
        },
    )


def _python(number: int) -> dict[str, Any]:
    head = "def greet(name):\n"
    return _record(
        id=f"safecoder/train/x/{number}",
        source="safecoder",
        cwe="CWE-78",
        prompt=head,
        secure=head + "    subprocess.run(['echo', name])\n    return name\n",
        vulnerable=head + "    os.system('echo ' + name)\n    return name\n",
        meta={
            "func_name": "greet",
            "file_name": "a.py",
            "commit_link": f"github.com/a/a/commit/{number}",
        },
    )


def _c(source: str, number: int) -> dict[str, Any]:
    head = f"void copy{number}(char *to, const char *from)\n{{\n"
    return _record(
        id=f"{source}/train/{number}",
        source=source,
        language="c",
        cwe="CWE-787",
        prompt=head,
        secure=head + "    strncpy(to, from, 8);\n    to[7] = 0;\n}",
        vulnerable=head + "    strcpy(to, from);\n    to[7] = 0;\n}",
        meta={
            "func_name": "copy",
            "file_name": "a.c",
            "commit_link": f"github.com/b/b/commit/{number}",
        },
    )


def _load(name: str) -> dict[str, Any]:
    head = f"import yaml\n\ndef {name}(text):\n"
    return _record(
        id=f"securityeval/CWE-502_{name}.py",
        source="securityeval",
        cwe="CWE-502",
        prompt=head,
        secure=None,
        vulnerable=head + "    return yaml.load(text, Loader=yaml.Loader)\n",
    )


def _tidy(folder: str, language: str) -> dict[str, Any]:
    heads = {
        "python": "def tidy(text):\n",
        "javascript": "function tidy(text) {\n",
        "go": "package main\n\nfunc tidy(text string) string {\n",
    }
    good = {
        "python": "    return text.strip().split(';')[0]\n",
        "javascript": "  return text.trim().split(';')[0];\n}\n",
        "go": '\treturn strings.Split(text, ";")[0]\n}\n',
    }
    bad = {
        "python": "    return text.strip()\n",
        "javascript": "  return text.trim();\n}\n",
        "go": "\treturn text\n}\n",
    }
    tail = {"python": ".py", "javascript": ".js", "go": ".go"}[language]
    head, mark = heads[language], "#" if language == "python" else "//"
    return _record(
        id=f"cweval/core/{folder}/cwe_020_0{tail}",
        source="cweval",
        language=language,
        cwe="CWE-20",
        prompt=head,
        secure=f"{head}    {mark} BEGIN SOLUTION\n{good[language]}",
        vulnerable=head + bad[language],
        meta={
            "path": f"core/{folder}/cwe_020_0_task{tail}",
            "prompt_full_prefix": head,
            "secure_body": good[language],
            "entrypoint": "",
            "test_file": CWEVAL_TEST,
            "test_name": "cwe_020_0_test.py",
            "core": True,
        },
    )


def _humaneval() -> dict[str, Any]:
    return _record(
        id="humaneval/0",
        source="humaneval",
        cwe=None,
        prompt='def double(x: int) -> int:\n    """Twice x."""\n',
        secure=None,
        vulnerable=None,
        meta={
            "task_id": "HumanEval/0",
            "entry_point": "double",
            "test": "def check(candidate):\n    assert candidate(2) == 4\n",
            "canonical_solution": "    return 2 * x\n",
        },
    )


def _mbpp() -> dict[str, Any]:
    tests = "assert triple(2) == 6\nassert triple(0) == 0"
    return _record(
        id="mbpp/2",
        source="mbpp",
        cwe=None,
        prompt=f'def triple(x):\n    """\n    Three times x.\n    {tests}\n    """\n',
        secure=None,
        vulnerable=None,
        meta={"task_id": 2, "test": tests, "stop_tokens": ["\ndef"]},
    )


def _tsp() -> dict[str, Any]:
    head = "def greet(name):\n"
    return {
        "func_name": "greet",
        "description": "Greet.",
        "func_src_before": head + "    os.system('echo ' + name)\n    return name\n",
        "func_src_after": head + "    subprocess.run(['echo', name])\n    return name\n",
        "file_name": "app/greet.py",
        "vul_type": "cwe-078",
        "commit_link": "github.com/Some/Repo/commit/abc",
        "output": (
            "[[1]]\n[Code_Line]: subprocess.run(['echo', name])\n[CWE_ID]: CWE-78\n"
            "[Description]: x\n"
        ),
    }
