"""What a program sees in the sandbox, as bubblewrap's and prlimit's command lines.

A root made only of the system's read-only program folders, one small tmpfs, no network, and
namespaces of its own. :mod:`treeplay.sandbox` runs them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treeplay.sandbox import Limits

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ETC = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")
WORK = "/tmp/work"


def is_root() -> bool:
    return os.geteuid() == 0


def tool(name: str) -> str:
    """The path of one of the system's own programs, whatever stands first in ``PATH``."""
    for folder in ("/usr/bin", "/bin", "/usr/local/bin"):
        if os.access(f"{folder}/{name}", os.X_OK):
            return f"{folder}/{name}"
    return name


def limit_argv(limits: Limits, with_processes: bool) -> list[str]:
    """prlimit with the limits that the kernel keeps, in front of the program's own words."""
    # the soft limit's signal tells time used up from every other kill
    cpu = f"--cpu={limits.cpu_s}:{limits.cpu_s + 1}"
    argv = [tool("prlimit"), cpu, "--core=0", "--nofile=256", "--memlock=0"]
    argv += [f"--fsize={limits.file_mb << 20}", "--msgqueue=0"]
    if with_processes:
        argv.append(f"--nproc={limits.processes}")
    if limits.address_mb is not None:
        argv.append(f"--as={limits.address_mb << 20}")
    return [*argv, "--"]


def environment_of(extra: Mapping[str, str], home: str) -> dict[str, str]:
    """All that a program finds in its environment: nothing of the caller's."""
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": home,
        "TMPDIR": home,
        "LANG": "C.UTF-8",
        **extra,
    }


def bwrap_argv(uid: int, limits: Limits, readonly: Sequence[str]) -> list[str]:
    """bubblewrap's command line, but for the program and its files: what the program is shown."""
    argv = [shutil.which("bwrap") or "bwrap", "--die-with-parent", "--new-session", "--clearenv"]
    argv += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    argv += ["--unshare-cgroup-try", "--hostname", "sandbox"]
    if not is_root():
        argv += ["--unshare-user", "--uid", str(uid), "--gid", str(uid)]
    for path in _SYSTEM:
        if os.path.islink(path):
            argv += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            argv += ["--ro-bind", path, path]
    argv += ["--perms", "0755", "--dir", "/etc"]
    for path in _ETC:
        argv += ["--ro-bind-try", path, path]
    argv += ["--proc", "/proc", "--dev", "/dev"]
    size = str((limits.file_mb * 4) << 20)
    argv += ["--perms", "1777", "--size", size, "--tmpfs", "/dev/shm"]
    argv += ["--perms", "1777", "--size", size, "--tmpfs", "/tmp"]
    # Behind the tmpfs, which would hide a folder that lies under /tmp.
    made: set[str] = {"/tmp", "/dev"}
    for path in readonly:
        # Folders on the way would be made 0700 and shut the unprivileged user out.
        for parent in reversed(Path(path).parents[:-1]):
            if str(parent) not in made:
                made.add(str(parent))
                argv += ["--perms", "0755", "--dir", str(parent)]
        argv += ["--ro-bind", path, path]
    return [*argv, "--perms", "0777", "--dir", WORK]
