"""One process at a time works in a run folder.

Two that write the same stage files would leave a mixture behind that no resuming can tell from a
run. So whoever opens a run holds its folder; what the operating system releases by itself when a
process ends, however it ends, so that no stale lock is ever in the way. (Where the file system has
no such locks, NFS say, nothing is held.)
"""

from __future__ import annotations

import os
from pathlib import Path
from weakref import WeakValueDictionary

from treeplay.errors import RunError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


class BusyError(RunError):
    """A run folder in which another process works."""


class Hold:
    """A folder that this process works in, until nothing here refers to this any more."""

    def __init__(self, folder: Path) -> None:
        """Raises :class:`BusyError`."""
        self._open = -1
        self._open = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._open, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(
                f"{folder}: another process is at work in this run; wait for it or end it, or "
                "choose another folder with out=FOLDER"
            ) from error
        except OSError:
            pass  # a file system without locks: as well as it can be there

    def is_of(self, folder: Path) -> bool:
        """Whether ``folder`` is still what was opened: it may have been moved meanwhile."""
        return os.path.samestat(os.fstat(self._open), folder.stat())

    def __del__(self) -> None:
        if self._open >= 0:
            os.close(self._open)


_held: WeakValueDictionary[tuple[int, int], Hold] = WeakValueDictionary()


def hold(folder: Path) -> Hold | None:
    """Hold a folder that is there; within one process as often as wanted. Raises
    :class:`BusyError`."""
    if fcntl is None:
        return None
    there = folder.stat()
    key = (there.st_dev, there.st_ino)
    held = _held.get(key) or Hold(folder)
    if not held.is_of(folder):
        raise BusyError(f"{folder} was moved by another process; try again")
    _held[key] = held
    return held
