"""Statistics of compared methods: intervals, paired differences, tests.

The values are rates of tasks, an array (seeds, tasks) an arm: every task's rate is a mean over its
samples, NaN where there is nothing to measure. Tasks and seeds are two crossed random factors: the
same tasks are answered by the players of every seed. So the bootstrap draws both anew, seeds and
tasks each with replacement, and takes the mean over the grid that they span (the pigeonhole
bootstrap: McCullagh 2000, *Resampling and exchangeable arrays*, Bernoulli 6; Owen 2007, *The
pigeonhole bootstrap*, Annals of Applied Statistics 1, who shows that it errs on the wide side).
With one seed only tasks vary, and an interval says nothing about other seeds. Tasks of one cluster
(``clusters_T``, a name a task; none given: every task is one) are drawn together, so that copies of
one scenario do not count as so many independent tasks (the cluster bootstrap: Cameron, Gelbach and
Miller 2008, Review of Economics and Statistics 90). The percentile interval of n clusters is too
narrow by a factor of sqrt((n - 1) / n) and by the normal quantile in the place of Student's, which
few clusters make felt; so further percentiles are taken (the *expanded percentile interval* of
Hesterberg 2015, *What teachers should know about the bootstrap*, The American Statistician 69).

Tests flip signs: under the null hypothesis that two methods are alike, a cluster's difference (sum
over its tasks of the mean over seeds) is as likely as its negative (Fisher's randomisation test for
pairs). They take the seeds as given; Holm's step-down procedure (Holm 1979) corrects for the size
of the family.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Clusters = Sequence[Hashable] | None

RESAMPLES = 4000
EXACT = 14  # differences up to which all sign flips are tried


@dataclass(frozen=True)
class Estimate:
    """``value`` and its 95 % interval; None where there is too little to tell. ``tasks`` and
    ``seeds`` are how many it rests on."""

    value: float | None
    low: float | None
    high: float | None
    tasks: int
    seeds: int


def estimate(
    values_ST: Floats, clusters_T: Clusters = None, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """Mean of ``values_ST`` (seeds, tasks; NaN: no value) over tasks of the mean over seeds, with
    the percentile interval of the crossed bootstrap. No interval with fewer than two clusters."""
    kept_ST, cluster_T = _kept(values_ST, clusters_T)
    seeds, tasks = kept_ST.shape
    if tasks == 0 or seeds == 0:
        return Estimate(None, None, None, 0, 0)
    value = _settled(kept_ST.mean())
    if cluster_T.max() < 1:
        return Estimate(value, None, None, tasks, seeds)
    means = _resampled([kept_ST], cluster_T, seed, resamples)[0]
    low, high = np.percentile(means, _ends(cluster_T))
    return Estimate(value, _settled(low), _settled(high), tasks, seeds)


def difference(
    a_ST: Floats, b_ST: Floats, clusters_T: Clusters = None, resamples: int = RESAMPLES
) -> Estimate:
    """``a_ST - b_ST`` within task and seed, as :func:`estimate`. The columns are the same tasks,
    the rows the same seeds. Exactly zero, with no width, where the two are alike."""
    return estimate(a_ST - b_ST, clusters_T, resamples=resamples)


def ratio(a_ST: Floats, b_ST: Floats, clusters_T: Clusters = None) -> Estimate:
    """Mean of ``a_ST`` over mean of ``b_ST``, both on the same resamples of tasks and seeds.

    A resample whose denominator is zero counts as infinitely large where the numerator is above
    zero, and is left out where both are zero; an end of the interval may so be infinite (inf).
    """
    both = ~np.isnan(a_ST) & ~np.isnan(b_ST)
    a_kept, cluster_T = _kept(np.where(both, a_ST, np.nan), clusters_T)
    b_kept, _ = _kept(np.where(both, b_ST, np.nan), clusters_T)
    seeds, tasks = a_kept.shape
    if tasks == 0 or seeds == 0 or b_kept.mean() == 0:
        return Estimate(None, None, None, tasks, seeds)
    value = _settled(a_kept.mean() / b_kept.mean())
    if cluster_T.max() < 1:
        return Estimate(value, None, None, tasks, seeds)
    top, bottom = _resampled([a_kept, b_kept], cluster_T)
    some = (top > 0) | (bottom > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = top[some] / bottom[some]
    low, high = np.percentile(ratios, _ends(cluster_T), method="closest_observation")
    return Estimate(value, _settled(low), _settled(high), tasks, seeds)


def _settled(value: float) -> float:
    """``value`` to nine decimals. Processors sum in orders of their own, and many rates lie just
    between two that a table prints (11.25 %): what differs in the sixteenth decimal must not decide
    which, or a page made on one machine is not the page of another."""
    return round(float(value), 9) + 0.0


def _kept(values_ST: Floats, clusters_T: Clusters) -> tuple[Floats, Ints]:
    """The rows and columns that hold values, NaN-free, and the number of every column's cluster,
    counted from 0. A task that lacks a value in some seeds stands in with its mean over the others;
    one that has none, or a seed that has none, goes."""
    there = ~np.isnan(values_ST)
    rows, columns = there.any(axis=1), there.any(axis=0)
    some = values_ST[rows][:, columns]
    if np.isnan(some).any():
        some = np.where(np.isnan(some), np.nanmean(some, axis=0, keepdims=True), some)
    named: Sequence[Hashable] = range(values_ST.shape[1]) if clusters_T is None else clusters_T
    numbers: dict[Hashable, int] = {}
    kept = [named[column] for column in np.flatnonzero(columns).tolist()]
    return some, np.array([numbers.setdefault(name, len(numbers)) for name in kept], dtype=np.int64)


def _resampled(
    tables: Sequence[Floats], cluster_T: Ints, seed: int = 0, resamples: int = RESAMPLES
) -> list[Floats]:
    """Means of every table (seeds, tasks) on the same crossed resamples; (resamples,) each."""
    seed_RS, task_RT = _weights(len(tables[0]), tuple(cluster_T.tolist()), seed, resamples)
    return [np.einsum("rs,st,rt->r", seed_RS, table, task_RT, optimize=True) for table in tables]


@lru_cache(maxsize=16)  # a page asks for the same ones hundreds of times
def _weights(
    seeds: int, cluster_T: tuple[int, ...], seed: int, resamples: int
) -> tuple[Floats, Floats]:
    """How much every seed and every task counts in each resample."""
    clusters = max(cluster_T) + 1
    rng = np.random.default_rng([seed, seeds, clusters])
    cluster_RC = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples)
    seed_RS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    task_RT = cluster_RC[:, np.array(cluster_T)].astype(np.float64)
    task_RT /= task_RT.sum(axis=1, keepdims=True)
    return seed_RS, task_RT


def _ends(cluster_T: Ints) -> tuple[float, float]:
    """Percentiles that end a 95 % interval: with n clusters the normal distribution's at
    -+ sqrt(n / (n - 1)) t, t the 97.5 % quantile of Student's with n - 1 degrees of freedom
    (Hesterberg 2015, section 5.3). Clusters of unequal size count as so many equal ones as would
    give the mean the same variance (Kish 1965): (sum of sizes)^2 / sum of squared sizes."""
    sizes = np.bincount(cluster_T)
    n = float(sizes.sum() ** 2 / (sizes**2).sum())
    z = NormalDist().inv_cdf(0.975)
    low = 100 * NormalDist().cdf(-((n / (n - 1)) ** 0.5) * _student(z, n - 1))
    return low, 100 - low


def _student(z: float, degrees: float) -> float:
    """Student's quantile at the normal quantile ``z`` (Abramowitz and Stegun 1964, 26.7.5; to
    0.1 % from four degrees of freedom on, too small below, where ends are the extremes anyway)."""
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, start=1))


def sign_flip(
    a_ST: Floats, b_ST: Floats, clusters_T: Clusters = None, seed: int = 0, flips: int = 20_000
) -> float | None:
    """Two-sided p-value of "no difference on average" by flipping the sign of every cluster's
    difference (mean over seeds); all flips where at most :data:`EXACT` differences are not zero,
    else ``flips`` drawn ones, the observed one counted in (so p is never 0). None without tasks
    in common."""
    some, cluster_T = _kept(a_ST - b_ST, clusters_T)
    if some.size == 0:
        return None
    found = np.bincount(cluster_T, weights=some.mean(axis=0))
    found = found[np.abs(found) > 1e-12]  # a zero is the same with either sign
    if found.size == 0:
        return 1.0
    seen = abs(found.sum())
    if found.size <= EXACT:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=found.size)))
        return float((np.abs(signs @ found) >= seen - 1e-9).mean())
    rng = np.random.default_rng([seed, found.size])
    signs = rng.integers(0, 2, size=(flips, found.size)) * 2.0 - 1.0
    hits = int((np.abs(signs @ found) >= seen - 1e-9).sum())
    return (hits + 1) / (flips + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (Holm 1979), in the order given: with p sorted upwards, the i-th of
    m becomes the largest of (m - j) p_j over j <= i (counted from 0), at most 1."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    out = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        out[index] = largest
    return out
