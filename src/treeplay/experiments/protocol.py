"""A protocol: what is trained on, what is evaluated, and the arms that are compared.

Read from ``protocols/NAME.yaml``, strictly. An *arm* is a method with settings of its own; most
arms are called as their method. Sizes (``cpu``, ``gpu``) bound the tasks and change settings;
``smoke`` takes two tasks of everything, to see whether all is in place.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from importlib import resources
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from treeplay.errors import ConfigError
from treeplay.tasks.decision import Form
from treeplay.words import nearest

Size = Literal["cpu", "gpu", "smoke"]
SIZES: tuple[Size, ...] = ("cpu", "gpu", "smoke")
SMOKE_TASKS = 2

# Data sets in record form: files of the data folder, by the kind that the importers know them as.
FILES = {
    "seccodeplt": "seccodeplt.jsonl",
    "safecoder": "safecoder.train.jsonl",
    "sven": "sven.train.jsonl",
    "tsp": "tsp.annotated.json",
    "securityeval": "securityeval.eval.jsonl",
    "cweval": "cweval.eval.jsonl",
    "humaneval": "humaneval.jsonl",
    "mbpp": "mbpp.jsonl",
}


@dataclass(frozen=True)
class Part:
    """Tasks of one data set. ``source``: ``starter`` or a key of :data:`FILES`. What is empty or
    0 chooses everything: ``splits``, ``languages``, ``cwes`` (one of the task's), ``tested`` (has
    tests), ``max_chars`` of prompt and golden answer, ``limit`` by size. ``name``, ``form``,
    ``samples`` and ``max_tokens`` are for suites (0: as the section ``eval`` says), and so
    are ``rest`` (only what is not trained on) and ``static`` (without tests: judged by static
    tools)."""

    source: str
    name: str = ""
    splits: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    cwes: tuple[str, ...] = ()
    tested: bool = False
    max_chars: int = 0
    limit: dict[str, int] = field(default_factory=dict)
    form: Form = "full"
    samples: int = 0
    max_tokens: int = 0
    rest: bool = False
    static: bool = False

    def suite(self) -> str:
        """The name of the suite in results."""
        return f"{self.name or self.source}@{self.form}"

    def most(self, size: Size) -> int:
        """How many tasks at most; 0: all."""
        if size == "smoke":
            return SMOKE_TASKS
        return self.limit.get(size, 0)


@dataclass(frozen=True)
class Protocol:
    """``reference``: the arm whose tokens are the budget of the others. ``claims``: the arms of
    which it is claimed that they are better, which are compared with all others. ``folds`` above 1:
    CWEs are held out in so many folds, and ``train`` and ``eval`` are filtered by them.
    ``by_language``: suites are pooled language by language. ``settings`` hold for all arms,
    ``sizes`` for all arms of a size, ``arms`` for one (``method`` is the arm's name unless said).
    """

    name: str
    title: str
    train: tuple[Part, ...]
    eval: tuple[Part, ...]
    arms: dict[str, dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, dict[str, Any]] = field(default_factory=dict)
    reference: str = "tsp"
    claims: tuple[str, ...] = ("tsp",)
    folds: int = 1
    by_language: bool = False

    def kinds(self) -> list[str]:
        """The data sets that the protocol needs, the starter pack left out."""
        return list(dict.fromkeys(p.source for p in (*self.train, *self.eval) if p.source in FILES))


def protocol_names() -> list[str]:
    """Names of the protocols that come with the package."""
    folder = resources.files("treeplay") / "experiments" / "protocols"
    return sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_protocol(name: str) -> Protocol:
    """The protocol called ``name``. Raises :class:`ConfigError` for one that is not there or that
    does not fit together."""
    inside = resources.files("treeplay") / "experiments" / "protocols" / f"{name}.yaml"
    if name not in protocol_names():
        raise ConfigError(f"there is no experiment {name!r}; {nearest(name, protocol_names())}")
    return parse_protocol(name, inside.read_text(encoding="utf-8"))


def parse_protocol(name: str, text: str) -> Protocol:
    """Raises :class:`ConfigError` naming what is wrong in ``text``."""
    data = yaml.safe_load(text)
    try:
        for path, cls, given in _levels(data):
            unknown = [key for key in given if key not in {f.name for f in fields(cls)}]
            if unknown:
                raise ConfigError(f"experiment {name}: unknown key {path}{unknown[0]!r}")
        protocol = TypeAdapter(Protocol).validate_python({"name": name, **data})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"experiment {name}: {place}: {first['msg']}") from error
    suites = [part.suite() for part in protocol.eval]
    double = next((suite for suite in suites if suites.count(suite) > 1), None)
    if double:
        raise ConfigError(f"experiment {name}: two suites are called {double!r}; name one")
    for part in (*protocol.train, *protocol.eval):
        if part.source != "starter" and part.source not in FILES:
            raise ConfigError(f"experiment {name}: unknown source {part.source!r}")
    for arm in (protocol.reference, *protocol.claims):
        if arm not in protocol.arms:
            raise ConfigError(f"experiment {name}: there is no arm {arm!r} to compare with")
    return protocol


def _levels(data: dict[str, Any]) -> list[tuple[str, type, dict[str, Any]]]:
    levels: list[tuple[str, type, dict[str, Any]]] = [("", Protocol, data)]
    for kind in ("train", "eval"):
        levels += [(f"{kind}.", Part, part) for part in data.get(kind, ())]
    return levels
