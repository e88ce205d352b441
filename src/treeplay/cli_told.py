"""What every command shares: where it prints, and how it tells of errors."""

from __future__ import annotations

import errno
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import typer
from rich.console import Console

from treeplay.errors import TreeplayError
from treeplay.words import printable

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)

F = TypeVar("F", bound=Callable[..., Any])


# Errors of files that a person can mend; others are bugs.
MENDED = (
    *(errno.EACCES, errno.EPERM, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.EROFS),
    errno.ENAMETOOLONG,
)
# Commands that go on with what is there by themselves; others take --resume, or keep nothing.
GOES_ON = ("grow", "train", "experiment")


def told(command: F) -> F:
    """Turn errors that a person can mend into one sentence and an exit status."""
    if "resume" in inspect.signature(command).parameters:
        again = "add --resume to go on"
    else:
        again = "run the same again" + " to go on" * (command.__name__ in GOES_ON)

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except TreeplayError as error:
            err.print(f"error: {printable(str(error))}", markup=False)
            raise typer.Exit(2) from error
        except KeyboardInterrupt:
            kept = "" if again.endswith("again") else "what was made is kept: "
            err.print(f"interrupted; {kept}{again}", markup=False)
            raise typer.Exit(130) from None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                text = (
                    f"the disk is full ({error.filename or error}); free some space, then {again}"
                )
            elif error.filename is not None and error.errno in MENDED:
                text = f"{error.filename}: {error.strerror}; check the path and its permissions"
            else:
                raise
            err.print(f"error: {text}", markup=False)
            raise typer.Exit(2) from error

    return wrapped  # type: ignore[return-value]
