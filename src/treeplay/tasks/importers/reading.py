"""Reading what others publish: JSON, JSONL, YAML and parquet files, and the words in them."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from treeplay.errors import TaskError
from treeplay.tasks.jsonl import read_lines

# The keys that tell a converted record from an upstream one.
_RECORD_KEYS = frozenset({"id", "source", "prompt", "secure", "vulnerable", "meta"})
_SUFFIXES = {
    ".py": "python",
    ".c": "c",
    ".h": "c",
    ".cpp": "cpp",
    ".cc": "cpp",
    ".cxx": "cpp",
    ".hpp": "cpp",
    ".js": "javascript",
    ".jsx": "javascript",
    ".mjs": "javascript",
    ".go": "go",
    ".java": "java",
    ".rb": "ruby",
    ".rs": "rust",
    ".php": "php",
}
# What a set is told to be under that has no licence file.
NO_LICENSE = "none stated (no LICENSE file in repo)"
_CWE = re.compile(r"cwe[-_ :]*0*(\d{1,6})(?!\d)", re.IGNORECASE)


@dataclass(frozen=True)
class Located:
    """One upstream record: where it stands (``file:line`` or ``file[index]``) and its 0-based
    index in the file."""

    data: dict[str, Any]
    where: str
    path: Path
    index: int

    @property
    def is_record(self) -> bool:
        """Whether this is the converted record form (id, prompt, secure, vulnerable, meta)."""
        return self.data.keys() >= _RECORD_KEYS


def find_inputs(path: str | Path, patterns: tuple[str, ...], what: str) -> list[Path]:
    """The files to read: ``path`` itself, or in a folder what matches the first fitting pattern.

    Raises TaskError when there is nothing to read.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise TaskError(f"{path}: no such file or folder; give the path of {what}")
    for pattern in patterns:
        found = sorted(path.glob(pattern))
        if found:
            return found
    raise TaskError(f"{path}: holds no {what} (looked for {', '.join(patterns)})")


def read_records(path: Path) -> list[Located]:
    """Every record of a .jsonl (also .jsonl.gz), .json (a list), .yaml (one record) or .parquet
    file.

    Raises TaskError naming file and line for a record that is no object or no JSON.
    """
    if path.suffix == ".parquet":
        values = [(f"{path}[{i}]", value) for i, value in enumerate(_parquet(path))]
    elif path.suffix == ".json":
        values = [(f"{path}[{i}]", value) for i, value in enumerate(_json_list(path))]
    elif path.suffix == ".yaml":
        values = [(str(path), _yaml(path))]
    else:
        values = [(f"{path}:{number}", value) for number, value in read_lines(path)]
    records = []
    for index, (where, value) in enumerate(values):
        if not isinstance(value, dict):
            raise TaskError(f"{where}: a record must be a JSON object; repair or remove it")
        records.append(Located(value, where, path, index))
    if not records:
        raise TaskError(f"{path}: holds no records; check that this is the right file")
    return records


def _json_list(path: Path) -> list[Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TaskError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except json.JSONDecodeError as error:
        raise TaskError(
            f"{path}:{error.lineno}: not valid JSON ({error.msg}); fetch the file again"
        ) from None
    except ValueError as error:
        raise TaskError(f"{path}: not UTF-8 text ({error}); fetch the file again") from None
    if not isinstance(value, list):
        raise TaskError(f"{path}: must hold a JSON list of records")
    return value


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        first = str(error).splitlines()[0]
        raise TaskError(f"{path}: not readable YAML ({first}); fetch it again") from None


def _parquet(path: Path) -> list[Any]:
    try:
        from pyarrow import parquet  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError:
        raise TaskError(
            f"{path}: reading parquet needs pyarrow; run 'pip install pyarrow' or export the "
            "data set as JSONL"
        ) from None
    try:
        rows: list[Any] = parquet.read_table(path).to_pylist()
    except Exception as error:  # pyarrow raises its own many classes
        raise TaskError(f"{path}: not a readable parquet file ({error}); fetch it again") from None
    return rows


def text_of(data: Mapping[str, Any], key: str, where: str, default: str | None = None) -> str:
    """``data[key]`` as text. Null or missing gives ``default``; without one, or for another type,
    TaskError names the place and the key."""
    value = data.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        problem = "is missing" if value is None else f"must be a string, not {type(value).__name__}"
        raise TaskError(f"{where}: {key!r} {problem}; is this file of the kind you named?")
    return value


def text_or_none(data: Mapping[str, Any], key: str, where: str) -> str | None:
    return None if data.get(key) is None else text_of(data, key, where)


def object_of(data: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    """``data[key]`` as a dict: an object, or the JSON or Python text of one; missing gives {}."""
    value = data.get(key)
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            try:
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                raise TaskError(f"{where}: {key!r} is text that holds no object") from None
    if not isinstance(value, dict):
        raise TaskError(f"{where}: {key!r} must be an object, not {type(value).__name__}")
    return value


def language_of(file_name: str) -> str | None:
    """The language that a file name's ending stands for; None when it is not one of ours."""
    return _SUFFIXES.get(Path(file_name).suffix.lower())


def cwe_names(value: object) -> tuple[str, ...]:
    """All CWE names in a value ("cwe-089", "CWE_89", 89, "089", a list...), like "CWE-89"."""
    if isinstance(value, (list, tuple)):
        return tuple(dict.fromkeys(name for part in value for name in cwe_names(part)))
    if isinstance(value, float) and value.is_integer():  # of a column in which some are missing
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return (f"CWE-{value}",)
    if not isinstance(value, str):
        return ()
    numbers = _CWE.findall(value)
    if not numbers and value.strip().isdecimal() and len(value.strip()) <= 6:
        numbers = [value.strip()]
    return tuple(dict.fromkeys(f"CWE-{int(number)}" for number in numbers))
