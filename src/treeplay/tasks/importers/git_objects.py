"""The objects of a git repository that may be anybody's.

Its own settings can name programs for git to run, and places to fetch from. So objects are read
from an empty repository beside it.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from treeplay.errors import TaskError

MOST_BYTES = 1_000_000  # of a file; what is longer was written by no one
PATIENCE = 600.0  # seconds for one answer of git's


class Objects:
    """The objects of a repository, read with none of its settings: from an empty repository whose
    alternate they are."""

    def __init__(self, repository: Path, folder: Path) -> None:
        asked = ("--git-path", "objects", "--git-path", "shallow", "--show-object-format")
        self._command = ["git", "-C", str(repository), "-c", "core.fsmonitor=false"]
        self._repository = repository
        lines = self.ask("rev-parse", *asked, "HEAD^{commit}").split("\n")
        objects, shallow, form, self.head = lines[0], lines[1], lines[2], lines[3]
        top = self.ask("rev-parse", "--absolute-git-dir").strip()
        self.name = Path(top.removesuffix("/.git")).name.removesuffix(".git")
        self._command = ["git", "--git-dir", str(folder)]
        self.ask("init", "--quiet", "--bare", "--template=", f"--object-format={form}")
        (folder / "objects/info").mkdir(parents=True, exist_ok=True)
        (folder / "objects/info/alternates").write_text(f"{(repository / objects).resolve()}\n")
        if (repository / shallow).is_file():
            (folder / "shallow").write_bytes((repository / shallow).read_bytes())

    def ask(self, *arguments: str, given: str = "") -> str:
        """What git says. Raises TaskError where it fails."""
        return self.raw(*arguments, given=given).decode(errors="replace")

    def raw(self, *arguments: str, given: str = "") -> bytes:
        # None of the settings of a hook that this may be called from; nothing is fetched.
        env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        env |= {"GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "", "GIT_TERMINAL_PROMPT": "0"}
        try:
            done = subprocess.run(
                [*self._command, *arguments],
                input=given.encode("utf-8", "surrogateescape"),
                capture_output=True,
                check=False,
                env=env,
                timeout=PATIENCE,
            )
        except FileNotFoundError:
            raise TaskError("git is not installed, and reads the history; install it") from None
        except subprocess.TimeoutExpired:
            raise TaskError(
                f"{self._repository}: git took more than {PATIENCE:.0f} s; give a smaller clone"
            ) from None
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().split("\n")[0]
            raise TaskError(
                f"{self._repository}: git cannot read a history here ({said}); give the folder of "
                "a repository"
            )
        return done.stdout

    def texts(self, names: list[str]) -> list[str | None]:
        """The text of each object; None where it is not there, is too long or no UTF-8."""
        if any("\n" in name for name in names):
            return [None] * len(names)
        lines = "".join(f"{name}\n" for name in names)
        sizes = self.ask("cat-file", "--batch-check=%(objecttype) %(objectsize)", given=lines)
        found: list[str | None] = []
        for name, told in zip(names, sizes.splitlines(), strict=False):
            kind, _, size = told.partition(" ")
            text = None
            if kind == "blob" and int(size) <= MOST_BYTES:
                try:
                    text = self.raw("cat-file", "blob", name).decode()
                except UnicodeDecodeError:
                    text = None
            found.append(text)
        return found + [None] * (len(names) - len(found))
