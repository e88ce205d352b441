"""SafeCoder's pairs with descriptions (eth-sri/SafeCoder, sec-new-desc.jsonl, sec-desc.jsonl)."""

from __future__ import annotations

from pathlib import Path

from treeplay.tasks.importers.pairs import pairs_to_tasks
from treeplay.tasks.importers.reading import find_inputs, read_records
from treeplay.tasks.importers.report import ImportResult, make_report
from treeplay.tasks.importers.upstream import read_pair

PATTERNS = ("safecoder*.jsonl", "sec-*desc.jsonl", "*/sec-*desc.jsonl", "*/*/sec-*desc.jsonl")


def load(path: str | Path, max_chars: int | None) -> ImportResult:
    """Every pair of a file, or of a folder with train and val. The description stands as a
    comment above the signature and is the instruction."""
    files = find_inputs(path, PATTERNS, "SafeCoder's sec-*desc.jsonl")
    pairs = [read_pair(located, "safecoder") for file in files for located in read_records(file)]
    tasks, lines, remarks = pairs_to_tasks(pairs, comment=True, max_chars=max_chars)
    return make_report("safecoder", len(pairs), tasks, lines, remarks)
