"""Runs test groups against solution.py.

Started with: python -I -S -B python.py <seconds> <modules> <test file>... Each test file is a
group with a nonce of its own on the standard input. One group runs in this process. Several run one
after the other, each in a forked child and a folder as it was at the start. This process stays the
parent: it reads a group's nonce only when it is that group's turn, ends what the group before left
running, and gives up when it cannot clear up; a group that was not started is run afresh from
outside. ``modules``: folders of third-party modules that the program may import, joined by ":".
"""

from __future__ import annotations

import os
import sys
import time


def main() -> None:
    seconds, modules, tests = float(sys.argv[1]), sys.argv[2], sys.argv[3:]
    sys.path.insert(0, os.getcwd())
    sys.path += [folder for folder in modules.split(":") if folder]
    sys.argv = ["test"]
    # These two come from the site module, which is left out because it costs time.
    import builtins
    import warnings

    builtins.__dict__.update(exit=sys.exit, quit=sys.exit)
    warnings.simplefilter("ignore")
    if len(tests) == 1:
        run(read_nonce(), tests[0], load(tests[0]), check=True)
    texts = [(test, load(test)) for test in tests]
    program = load("solution.py")
    for number, (test, text) in enumerate(texts):
        if number and not clear(program):
            break
        nonce = read_nonce()
        start = time.monotonic()
        status = in_child(nonce, test, text, seconds, check=not number)
        os.write(3, nonce + b" ENDED %d %.3f\n" % (status, time.monotonic() - start))
        # What follows on this stream belongs to the next group.
        os.write(2, b"\n" + nonce + b"\n")
    os._exit(0)


def read_nonce() -> bytes:
    nonce = b""
    while not nonce.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            os._exit(70)
        nonce += byte
    return nonce.strip()


def load(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogatepass", newline="") as file:
        return file.read()


def in_child(nonce: bytes, test: str, text: str, seconds: float, check: bool) -> int:
    """The exit status of a child that ran the group, as the system gives it."""
    # The module `signal` costs more than all the rest of this file.
    import _signal  # type: ignore[import-not-found]

    child = os.fork()
    if child == 0:
        run(nonce, test, text, check)

    def ring(_number: int, _frame: object) -> None:
        os.write(3, nonce + b" TIME\n")
        os.kill(child, 9)

    _signal.signal(_signal.SIGALRM, ring)
    _signal.setitimer(_signal.ITIMER_REAL, seconds)
    status = os.waitpid(child, 0)[1]
    _signal.setitimer(_signal.ITIMER_REAL, 0)
    return os.waitstatus_to_exitcode(status)


def clear(program: str) -> bool:
    """Make everything as it was. False when that cannot be done or this is no sandbox."""
    # In a sandbox this process is the only one beside the first of its process namespace, and all
    # that can be written is under /tmp and /dev/shm.
    home, work = "/tmp", "/tmp/work"
    if os.getppid() != 1 or os.environ.get("HOME") != home or os.getcwd() != work:
        return False
    for _ in range(100):
        try:
            os.kill(-1, 9)
        except ProcessLookupError:
            break
        except PermissionError:
            break  # only the first process, of another user, is left
        time.sleep(0.002)
    else:
        return False
    try:
        for folder, kept in ((home, "work"), ("/dev/shm", ""), (work, ".treeplay")):
            for name in os.listdir(folder):
                if name != kept:
                    remove(f"{folder}/{name}")
        with open("solution.py", "w", encoding="utf-8", errors="surrogatepass", newline="") as file:
            file.write(program)
    except (OSError, RecursionError):
        return False
    return True


def remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        os.chmod(path, 0o700)
        for name in os.listdir(path):
            remove(f"{path}/{name}")
        os.rmdir(path)
    else:
        os.unlink(path)


def run(nonce: bytes, test: str, text: str, check: bool) -> None:
    """Never returns."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)

    # One write each, straight to the descriptor: they hold in threads, in forked children and
    # before a sudden end, and no buffer can lose them.
    def say(word: bytes, text: object = "") -> None:
        data = str(text).encode("utf-8", "replace")[:2000].replace(b"\n", b"\x1f")
        write(3, nonce + b" " + word + b" " + data + b"\n")

    write, leave = os.write, os._exit
    say(b"START")

    def exploited(why: object = "exploited") -> None:
        """Never returns and cannot be caught, in whatever thread or child it is called."""
        say(b"EXPLOITED", why)
        leave(0)

    try:
        if check:
            compile(load("solution.py"), "solution.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        say(b"INVALID", f"{type(error).__name__}: {error}")
        leave(0)
    module = type(sys)("treeplay_test")
    module.__dict__["exploited"] = exploited
    sys.modules["treeplay_test"] = module
    word, told = b"PASS", ""
    try:
        exec(compile(text, "test.py", "exec", dont_inherit=True), module.__dict__)
    except MemoryError:
        word, told = b"MEMORY", "MemoryError"
    except BaseException as error:
        word, told = b"FAIL", describe(error)
    if module.__dict__.get("exploited") is not exploited:
        word, told = b"FAIL", "the program put something in the place of exploited()"
    say(word, told)
    leave(0)


def describe(error: BaseException) -> str:
    """The error in a line, and the last place in the test and in the program."""
    try:
        text = f"{type(error).__name__}: {error}"
        places = []
        trace = error.__traceback__
        while trace is not None:
            name = os.path.basename(trace.tb_frame.f_code.co_filename)
            if name in ("test.py", "solution.py"):
                places.append(f"{name}:{trace.tb_lineno}")
            trace = trace.tb_next
        return text + (f" (at {', '.join(places[-3:])})" if places else "")
    except BaseException:
        return "an error that cannot be shown"


main()
