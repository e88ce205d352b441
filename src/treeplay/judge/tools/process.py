"""What the tools that are programs of their own share: is one here, and new enough?"""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache

from treeplay.judge.tools.base import ToolResult


@cache
def first_version(command: tuple[str, ...], least: tuple[int, int]) -> str | None:
    """The version that ``command`` prints, None when it is missing or older than ``least``."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    found = re.search(r"(\d+)\.(\d+)(\.\d+)*", done.stdout)
    if done.returncode != 0 or found is None:
        return None
    return found[0] if (int(found[1]), int(found[2])) >= least else None


def all_failed(count: int, reason: str) -> list[ToolResult]:
    """The same failure for each of ``count`` programs."""
    return [ToolResult(failed=reason) for _ in range(count)]
