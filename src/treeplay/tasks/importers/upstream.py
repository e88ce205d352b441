"""The pair form that SVEN, SafeCoder and the TSP data share, upstream and converted."""

from __future__ import annotations

from treeplay.errors import TaskError
from treeplay.tasks.importers.pairs import Pair
from treeplay.tasks.importers.reading import (
    Located,
    cwe_names,
    language_of,
    object_of,
    text_of,
)


def read_pair(located: Located, kind: str, name: str = "") -> Pair:
    """The pair in an upstream record (``func_src_before`` and ``func_src_after``) or a converted
    one (``secure`` and ``vulnerable``).

    ``name`` is the id for an upstream record; without one it is made of the file's folder and
    name, ``kind/train/file/index``. Raises TaskError naming the place and the missing key.
    """
    return _converted(located, kind) if located.is_record else _upstream(located, kind, name)


def split_of(located: Located) -> str:
    """ "train" or "val" from the folder or the file name (``val/x.jsonl``, ``x.val.jsonl``)."""
    words = {located.path.parent.name, *located.path.name.split(".")}
    return "val" if "val" in words else "train"


def _upstream(located: Located, kind: str, name: str) -> Pair:
    data, where = located.data, located.where
    split = split_of(located)
    file_name = text_of(data, "file_name", where)
    cwe = cwe_names(data.get("vul_type"))
    if not cwe:
        raise TaskError(f"{where}: 'vul_type' names no CWE; write it like \"cwe-089\"")
    return Pair(
        id=name or f"{kind}/{split}/{located.path.stem}/{located.index}",
        where=where,
        language=language_of(file_name),
        cwe=cwe,
        secure=text_of(data, "func_src_after", where),
        vulnerable=text_of(data, "func_src_before", where),
        description=text_of(data, "description", where, ""),
        name=text_of(data, "func_name", where, ""),
        file_name=file_name,
        commit_link=text_of(data, "commit_link", where, ""),
        upstream_split=split,
        source=kind,
    )


def _converted(located: Located, kind: str) -> Pair:
    data, where = located.data, located.where
    meta = object_of(data, "meta", where)
    source = text_of(data, "source", where)
    if source != kind:
        raise TaskError(f"{where}: this record is of {source!r}, not of {kind!r}")
    instruct = data.get("task") == "instruct"
    prompt = text_of(data, "prompt", where)
    return Pair(
        id=text_of(data, "id", where),
        where=where,
        language=text_of(data, "language", where),
        cwe=cwe_names(data.get("cwe")),
        secure=text_of(data, "secure", where),
        vulnerable=text_of(data, "vulnerable", where),
        given=None if instruct else prompt,
        description=prompt if instruct else "",
        name=text_of(meta, "func_name", where, ""),
        file_name=text_of(meta, "file_name", where, ""),
        commit_link=text_of(meta, "commit_link", where, ""),
        upstream_split=split_of(located),
        source=source,
        license=text_of(data, "license", where, ""),
    )
