"""Protocol ``unseen`` without the tasks by which settings were chosen (those of ``ablation``).

    python scripts/without_development.py results MODEL

Prints every arm against the base model, as the pages of tables do: seed by seed, paired by task.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from treeplay.errors import RunError
from treeplay.experiments.cells import estimate_cell, table_head, table_line
from treeplay.experiments.plan import BASE
from treeplay.experiments.results import Group, read_studies
from treeplay.experiments.stats import difference, ratio

MEASURES = ("spr1_all", "vulnerable", "valid", "pass1")
HEADS = ("SPR@1", "vulnerable", "valid", "pass@1")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("model")
    args = parser.parse_args()
    try:
        found = {(s.protocol, s.model): s for s in read_studies(args.results)}
        study, chosen_by = (found[name, args.model] for name in ("unseen", "ablation"))
    except RunError as error:
        sys.exit(f"error: {error}")
    except KeyError as error:
        sys.exit(f"error: {args.results} has no results of {' and '.join(error.args[0])}")
    known = {task for group in chosen_by.groups() for _, task in group.keys}
    whole = study.main_groups()[0]
    kept = [n for n, (_, task) in enumerate(whole.keys) if task not in known]
    group = Group(
        whole.name, tuple(whole.keys[n] for n in kept), tuple(whole.clusters[n] for n in kept)
    )
    clusters = len(set(group.clusters))
    print(f"{group.name}: {len(kept)} of {len(whole.keys)} tasks, {clusters} clusters\n")
    print("\n".join(table_head(["arm", *HEADS, "vulnerable, ratio"])))
    for arm in study.arms:
        seeds = study.together(arm, BASE)
        if arm == BASE or not seeds:
            continue
        mine, base = (
            {m: study.values(one, group, m, seeds) for m in MEASURES} for one in (arm, BASE)
        )
        changes = [difference(mine[m], base[m], group.clusters) for m in MEASURES]
        times = ratio(mine["vulnerable"], base["vulnerable"], group.clusters)
        cells = [estimate_cell(change, 100, sign=True) for change in changes]
        print(table_line([f"`{arm}`", *cells, estimate_cell(times, 1, digits=2)]))


if __name__ == "__main__":
    main()
