"""How often a 95 % interval of the results page holds the truth, and how often p is below 0.05
where there is nothing to find, by the number of clusters and seeds.

    python benchmarks/interval_coverage.py --repeats 2000

Draws studies whose truth is known: every cluster has a share of secure answers of its own, from
a Beta distribution with mean 0.2 (skewed, as rates of hard tasks are; in the last rows 0.05, as
those of a weak model), its tasks have that share,
and a task is answered four times by the player of every seed. A second method has the same share
for two clusters of three and another one, from the same distribution, for the rest. Where there are
several seeds, the players of each method differ too: a player's shares are all times a number from
0.6 to 1 of its own. Counts how often intervals hold the true mean (of the first method) and 0 (of
the difference): with the plain percentiles of the bootstrap, and as
:mod:`treeplay.experiments.stats` ends them; and how often p is at most 0.05 with the seeds taken as
given (sign flips alone), and as on the page.
"""

from __future__ import annotations

import argparse

import numpy as np

from treeplay.experiments.stats import Floats, _resampled, estimate, p_no_difference, sign_flip

MIXED = [1] * 64 + [5] * 9
SHAPES = {
    "9 clusters of 5 (held-out SecCodePLT)": ([5] * 9, 1, 0.2),
    "24 tasks (CWEval)": ([1] * 24, 1, 0.2),
    "40 tasks (starter, SecurityEval)": ([1] * 40, 1, 0.2),
    "64 tasks and 9 clusters of 5 (executed, decision form)": (MIXED, 1, 0.2),
    "the same, 2 seeds that differ": (MIXED, 2, 0.2),
    "the same, 3 seeds that differ": (MIXED, 3, 0.2),
    "40 tasks, rates of 0.05": ([1] * 40, 1, 0.05),
    "64 tasks and 9 clusters of 5, rates of 0.05": (MIXED, 1, 0.05),
    "the same, 3 seeds that differ, rates of 0.05 (0.04)": (MIXED, 3, 0.05),
}
SAMPLES, CHANGED, RESAMPLES = 4, 1 / 3, 1000
PLAYERS = (0.6, 1.0)
HEADS = ("clusters", "rate: plain", "as on the page", "difference: plain", "as on the page")
TESTS = ("p of sign flips ≤ 0.05", "p as on the page ≤ 0.05")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("--repeats", type=int, default=2000, help="studies a shape")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(f"| {' | '.join((*HEADS, *TESTS))} |\n|{'---|' * 7}")
    for name, (sizes, seeds, mean) in SHAPES.items():
        shares = coverage(sizes, seeds, mean, args.repeats, args.seed)
        cells = [f"{100 * share:.1f} %" for share in shares]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def coverage(sizes: list[int], seeds: int, mean: float, repeats: int, seed: int) -> Floats:
    """Shares of studies, in the order of the table: whose interval holds the truth, then of those
    with a p-value of at most 0.05."""
    rng = np.random.default_rng(seed)
    cluster_T = np.repeat(np.arange(len(sizes)), sizes)
    names = cluster_T.tolist()
    hits = np.zeros(6)
    truth = mean * (sum(PLAYERS) / 2 if seeds > 1 else 1.0)
    for number in range(repeats):
        one_C, other_C = rng.beta(2 * mean, 2 * (1 - mean), (2, len(sizes)))
        other_C = np.where(rng.random(len(sizes)) < CHANGED, other_C, one_C)
        share_2ST = np.stack([one_C, other_C])[:, None, cluster_T].repeat(seeds, axis=1)
        if seeds > 1:
            share_2ST = share_2ST * rng.uniform(*PLAYERS, (2, seeds, 1))
        one_ST, other_ST = rng.binomial(SAMPLES, share_2ST) / float(SAMPLES)
        for row, (values_ST, true) in enumerate([(one_ST, truth), (one_ST - other_ST, 0.0)]):
            means = _resampled([values_ST], cluster_T, number, RESAMPLES)[0]
            low, high = np.percentile(means, (2.5, 97.5))
            found = estimate(values_ST, names, number, RESAMPLES)
            assert found.low is not None
            assert found.high is not None
            hits[2 * row] += low <= true <= high
            hits[2 * row + 1] += found.low <= true <= found.high
        for place, test in ((4, sign_flip), (5, p_no_difference)):
            p_value = test(one_ST, other_ST, names)
            hits[place] += p_value is not None and p_value <= 0.05
    return hits / repeats


if __name__ == "__main__":
    main()
