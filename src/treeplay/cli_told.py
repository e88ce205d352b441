"""What every command shares: where it prints, and how it tells of errors."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import typer
from rich.console import Console

from treeplay.errors import TreeplayError

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)

F = TypeVar("F", bound=Callable[..., Any])


def told(command: F) -> F:
    """Turn errors that a person can mend into one sentence and an exit status."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except TreeplayError as error:
            err.print(f"error: {error}", markup=False)
            raise typer.Exit(2) from error
        except KeyboardInterrupt:
            err.print("interrupted; what was made is kept: add --resume to go on", markup=False)
            raise typer.Exit(130) from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            err.print(
                f"error: the disk is full ({error.filename or error}); free some space, then add "
                "--resume to go on",
                markup=False,
            )
            raise typer.Exit(2) from error

    return wrapped  # type: ignore[return-value]
