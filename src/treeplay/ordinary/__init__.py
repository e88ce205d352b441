"""Ordinary code: short, working functions that have nothing to do with security.

A player that learns from security decisions alone forgets how to write anything else. These texts
are mixed into training (``contrasts.ordinary``) as anchors that keep it in place. They were written
for treeplay (Apache-2.0), one TOML file a language; ``check`` is an expression in that language
that is true of the code, so that each can be proved by running it.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from functools import cache
from importlib import resources

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LANGUAGES = ("python", "c", "javascript", "go")


@dataclass(frozen=True)
class Ordinary:
    """One text: ``code`` as it would stand in a file, and a ``check`` that is true of it."""

    name: str
    language: str
    code: str
    check: str


@cache
def ordinary_code() -> tuple[Ordinary, ...]:
    """All texts, by language and in the order of the files. ``name`` is unique ("go/Max")."""
    found = []
    for language in LANGUAGES:
        text = (resources.files("treeplay.ordinary") / f"{language}.toml").read_text("utf-8")
        found += [
            Ordinary(f"{language}/{one['name']}", language, one["code"], one["check"])
            for one in tomllib.loads(text)["function"]
        ]
    return tuple(found)


def some_ordinary_code(count: int, seed: int, languages: tuple[str, ...] = ()) -> dict[str, str]:
    """``count`` texts by name, drawn with ``seed`` and evenly over ``languages`` (empty: all that
    there are); fewer where there are not so many."""
    spoken = [name for name in LANGUAGES if not languages or name in languages] or list(LANGUAGES)
    decks = []
    for language in spoken:
        deck = [one for one in ordinary_code() if one.language == language]
        random.Random(f"ordinary/{seed}/{language}").shuffle(deck)
        decks.append(deck)
    longest = max(len(deck) for deck in decks)
    dealt = [deck[i] for i in range(longest) for deck in decks if i < len(deck)]
    return {one.name: one.code for one in dealt[:count]}
