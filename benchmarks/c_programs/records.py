"""Prints the labelled C programs of this folder as records, one JSON object a line.

    python benchmarks/c_programs/records.py [dev|test] > c_programs.jsonl
    treeplay judge bench c_programs.jsonl

``NAME.secure.c`` and ``NAME.vulnerable.c`` differ in one mistake; ``labels.jsonl``
names the weakness and the half (by the same hash as ``treeplay.judge.bench.records.half_of``), and
for mistakes that a sanitizer can show, what to run the vulnerable one with (``proof``: ``argv``,
``stdin`` and a part of what the sanitizer says).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def records(split: str | None = None) -> list[dict[str, Any]]:
    """All pairs as records, or those of one half."""
    found = []
    for line in (FOLDER / "labels.jsonl").read_text(encoding="utf-8").splitlines():
        label = json.loads(line)
        if split is not None and label["split"] != split:
            continue
        name = label["name"]
        found.append(
            {
                "id": f"c_programs/{name}",
                "source": "c_programs",
                "language": "c",
                "cwe": label["cwe"],
                "prompt": None,
                "secure": (FOLDER / f"{name}.secure.c").read_text(encoding="utf-8"),
                "vulnerable": (FOLDER / f"{name}.vulnerable.c").read_text(encoding="utf-8"),
                "meta": {"split": label["split"], "proof": label.get("proof")},
            }
        )
    return found


if __name__ == "__main__":
    wanted = sys.argv[1] if len(sys.argv) > 1 else None
    if wanted not in (None, "dev", "test"):
        sys.exit(f"records.py: {wanted!r} is no half; say dev, test, or nothing for both")
    for record in records(wanted):
        print(json.dumps(record))
