"""The errors a person can mend.

Every one of them is one clear sentence: what went wrong, where, and how to mend it. The command
line prints that sentence and exits with a non-zero status; anything else that escapes is a bug
and keeps its traceback.
"""

from __future__ import annotations


class TreeplayError(Exception):
    """Base of all errors whose message is meant for the person at the terminal."""


class ConfigError(TreeplayError):
    """A recipe or an override is wrong (unknown key, wrong type, impossible value)."""


class TaskError(TreeplayError):
    """A task file or a task in it cannot be used."""


class ModelError(TreeplayError):
    """A model, tokenizer or adapter cannot be found, read or used as asked."""


class SandboxError(TreeplayError):
    """Generated code cannot be run safely here."""


class RunError(TreeplayError):
    """A run folder cannot be used, resumed or written."""


class LearningError(RunError):
    """A loss or a gradient is not a number, or training has destroyed the player: with other
    settings it may go well."""
