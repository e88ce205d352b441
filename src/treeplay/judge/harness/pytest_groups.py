"""Runs a published pytest file against one program: its functionality and its security marks.

Started with: python -I -S -B pytest_groups.py <plan.json>. Reads the nonce, then the test file's
text and the program's from the working folder, before anything of the program runs. Each group is
a forked child with a fresh folder; this process stays the trusted parent, which clears up what a
group left running, and says so when a group ended without a word.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from typing import Any

GROUPS = ("functionality", "security")
_PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 4, 36
_SHOWN = 1200


def main() -> None:
    nonce = b""
    while not nonce.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            os._exit(70)
        nonce += byte
    nonce = nonce.strip()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.set_inheritable(3, False)
    # Programs run under the same user: without this they could read the nonce out of the memory
    # of this process, or write to its descriptors. A program that is started gets neither.
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    write = os.write

    def say(word: str, text: object = "") -> None:
        data = str(text).encode("utf-8", "replace")[:2000].replace(b"\n", b"\x1f")
        write(3, nonce + b" " + word.encode() + b" " + data + b"\n")

    with open(sys.argv[1], encoding="utf-8") as file:
        plan = json.load(file)
    sys.path += plan["site"]
    sys.dont_write_bytecode = True
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    say("START")
    contents = {}
    for name in (plan["program"], plan["test"]):
        with open(name, "rb") as raw:
            contents[name] = raw.read()
    built = build(plan, contents[plan["program"]], say)
    try:
        import pytest  # noqa: F401  before the fork, so that both groups have it
    except ImportError as error:
        say("NOTOOL", f"pytest cannot be imported: {error}")
        os._exit(0)
    for group in GROUPS:
        folder = tempfile.mkdtemp(prefix="group")
        for name, content in contents.items():
            with open(os.path.join(folder, name), "wb") as copy:
                copy.write(content)
        if built is not None:
            os.mkdir(os.path.join(folder, "compiled"))
            target = os.path.join(folder, "compiled", os.path.splitext(plan["program"])[0])
            with open(target, "wb") as binary:
                binary.write(built)
            os.chmod(target, 0o755)
        start = time.monotonic()
        child = os.fork()
        if child == 0:
            run_group(plan, group, folder, say)
        ended, status = wait(child, plan["seconds"])
        kill_children()
        if not ended:
            say("TIME", f"{group} {plan['seconds']}")
        say("ENDED", f"{group} {os.waitstatus_to_exitcode(status)} {time.monotonic() - start:.2f}")
        shutil.rmtree(folder, ignore_errors=True)
    say("DONE")
    os._exit(0)


def build(plan: dict[str, Any], source: bytes, say: Any) -> bytes | None:
    """The compiled program, None for a language that is not compiled. Ends when it is invalid."""
    if plan["language"] == "python":
        try:
            compile(source, plan["program"], "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
            say("INVALID", f"{type(error).__name__}: {error}")
            os._exit(0)
        return None
    folder = tempfile.mkdtemp(prefix="build")
    log = b""
    for fault, argv in plan["build"]:
        argv = [word.replace("{out}", folder) for word in argv]
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        except OSError as error:
            say("NOTOOL", f"{argv[0]}: {error}")
            os._exit(0)
        log = done.stdout
        if done.returncode:
            text = log.decode("utf-8", "replace")
            # A compiler that was killed says nothing of the program.
            say(fault if done.returncode in (1, 2) else "NOTOOL", text or argv[0])
            os._exit(0)
    binary = os.path.join(folder, "program")
    content = None
    if os.path.exists(binary):
        with open(binary, "rb") as file:
            content = file.read()
    shutil.rmtree(folder, ignore_errors=True)
    return content


def run_group(plan: dict[str, Any], group: str, folder: str, say: Any) -> None:
    """Never returns."""
    import pytest

    # Some tests start a helper by its name relative to the folder that is given for it.
    os.chdir(plan["cwd"] or folder)
    in_process = plan["language"] == "python"
    stem = os.path.splitext(plan["program"])[0]
    started: list[bool] = []

    def heed(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen" and stem in str(arguments[1]):
            started.append(True)

    sys.addaudithook(heed)
    path_before = list(sys.path)
    results: dict[str, str] = {}
    harms: list[str] = []
    faults: list[str] = []
    leave = os._exit

    class Watch:
        @staticmethod
        def pytest_collection_finish(session: Any) -> None:
            # What a program drops beside the test must not be imported here later.
            if not in_process:
                sys.path[:] = path_before

        @staticmethod
        @pytest.hookimpl(hookwrapper=True)
        def pytest_runtest_makereport(item: Any, call: Any) -> Generator[None, Any, None]:
            outcome = yield
            report = outcome.get_result()
            if report.when == "call":
                results[item.nodeid] = report.outcome
            elif not report.passed and report.when == "setup":
                results[item.nodeid] = "error"
            if call.excinfo is not None:
                error = call.excinfo.value
                harm = shows_harm(error, plan["program"] if in_process else "")
                (harms if harm else faults).append(describe(item.name, error))

        @staticmethod
        def pytest_collectreport(report: Any) -> None:
            if report.failed:
                faults.append(f"collecting: {str(report.longrepr)[-_SHOWN:]}")

    arguments = ["-q", "--tb=no", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-W", "ignore"]
    arguments.append("--noconftest")  # one that the program left somewhere above must not be loaded
    arguments += ["--rootdir", folder, "-c", os.devnull, "-m", group, "-k", "not _unsafe"]
    # An item id, an option or a mark of the program's cannot get in: only this file is named.
    try:
        code = int(pytest.main([*arguments, os.path.join(folder, plan["test"])], plugins=[Watch()]))
    except BaseException as error:
        code = -1
        faults.append(describe("pytest", error))
    passed = sum(outcome == "passed" for outcome in results.values())
    if results and not in_process and not started:
        say("EMPTY", f"{group} the published test never starts the program")
    elif code == 0 and passed == len(results) and passed and not harms and not faults:
        say("PASS", f"{group} {passed}")
    elif code == 5 and not results:
        say("EMPTY", f"{group} no test of this group in the file")
    else:
        word = "HARM" if harms else "FAIL"
        why = (harms or faults or [f"pytest ended with {code}"])[0]
        say(word, f"{group} {passed} {why}")
    leave(0)


def shows_harm(error: BaseException, imported: str) -> bool:
    """Whether a failed test shows what the program did, not just that it is broken.

    ``imported``: the program's file when the test imports it, "" when the test starts it.
    """
    import pytest

    places = []
    trace = error.__traceback__
    while trace is not None:
        places.append(os.path.basename(trace.tb_frame.f_code.co_filename))
        trace = trace.tb_next
    if isinstance(error, (TimeoutError, pytest.fail.Exception)):
        return True
    if isinstance(error, AssertionError):
        return not imported or not places or places[-1] != imported
    if isinstance(error, subprocess.CalledProcessError):
        text = str(error.stderr or "")
        return error.returncode < 0 or "Sanitizer" in text or "runtime error:" in text
    if isinstance(error, (OSError, ImportError, NameError, MemoryError)):
        return False
    if not isinstance(error, Exception):
        return False
    # The test could not make sense of what it got; the program itself raised nothing.
    return not imported or imported not in places


def describe(name: str, error: BaseException) -> str:
    try:
        text = f"{name}: {type(error).__name__}: {error}"
        stderr = getattr(error, "stderr", None)
        if stderr:
            text += f"\n{stderr}"
        return text[:_SHOWN]
    except BaseException:
        return f"{name}: an error that cannot be shown"


def wait(child: int, seconds: float) -> tuple[bool, int]:
    """(whether it ended by itself, its wait status)."""
    end = time.monotonic() + seconds
    pause = 0.002
    while time.monotonic() < end:
        with contextlib.suppress(ChildProcessError):
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                return True, status
        time.sleep(pause)
        pause = min(0.05, pause * 1.5)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    return False, os.waitpid(child, 0)[1]


def kill_children() -> None:
    """End everything the group left; orphans come to this process, which asked for them."""
    own = f"/proc/self/task/{os.getpid()}/children"
    for _ in range(200):
        try:
            with open(own, encoding="ascii") as file:
                children = [int(word) for word in file.read().split()]
        except OSError:
            return
        if not children:
            return
        for one in children:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(one, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(one, 0)


main()
