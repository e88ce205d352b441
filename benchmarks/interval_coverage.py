"""How often a 95 % interval of the results page holds the truth, by the number of clusters.

    python benchmarks/interval_coverage.py --repeats 4000

Draws studies whose truth is known: every cluster has a share of secure answers of its own, from
a Beta distribution with mean 0.2 (skewed, as rates of hard tasks are), its tasks have that share,
and a task is answered four times. A second method has the same share for two clusters of three and
another one, from the same distribution, for the rest. Counts how often intervals hold 0.2 (of the
first method's mean) and 0 (of the difference): with the plain percentiles of the bootstrap, and as
:mod:`treeplay.experiments.stats` ends them.
"""

from __future__ import annotations

import argparse

import numpy as np

from treeplay.experiments.stats import Floats, _resampled, estimate

SHAPES = {
    "9 clusters of 5 (held-out SecCodePLT)": [5] * 9,
    "24 tasks (CWEval)": [1] * 24,
    "40 tasks (starter, SecurityEval)": [1] * 40,
    "64 tasks and 9 clusters of 5 (executed, decision form)": [1] * 64 + [5] * 9,
}
MEAN, SAMPLES, CHANGED, RESAMPLES = 0.2, 4, 1 / 3, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("--repeats", type=int, default=4000, help="studies a shape")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print("| clusters | of | plain percentiles | as on the page |\n|---|---|---|---|")
    for name, sizes in SHAPES.items():
        hits = coverage(sizes, args.repeats, args.seed)
        for what, (plain, ours) in zip(("a rate", "a difference"), hits, strict=True):
            print(f"| {name} | {what} | {100 * plain:.1f} % | {100 * ours:.1f} % |", flush=True)


def coverage(sizes: list[int], repeats: int, seed: int) -> Floats:
    """(rate or difference, plain or as ended): shares of studies whose interval holds the truth."""
    rng = np.random.default_rng(seed)
    cluster_T = np.repeat(np.arange(len(sizes)), sizes)
    hits = np.zeros((2, 2))
    for number in range(repeats):
        one_C, other_C = rng.beta(2 * MEAN, 2 * (1 - MEAN), (2, len(sizes)))
        other_C = np.where(rng.random(len(sizes)) < CHANGED, other_C, one_C)
        one_ST, other_ST = rng.binomial(
            SAMPLES, np.stack([one_C, other_C])[:, None, cluster_T]
        ) / float(SAMPLES)
        for row, (values_ST, truth) in enumerate([(one_ST, MEAN), (one_ST - other_ST, 0.0)]):
            means = _resampled([values_ST], cluster_T, number, RESAMPLES)[0]
            low, high = np.percentile(means, (2.5, 97.5))
            found = estimate(values_ST, cluster_T.tolist(), number, RESAMPLES)
            assert found.low is not None
            assert found.high is not None
            hits[row] += (low <= truth <= high, found.low <= truth <= found.high)
    return hits / repeats


if __name__ == "__main__":
    main()
