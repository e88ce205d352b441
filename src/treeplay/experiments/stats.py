"""Statistics of compared methods: intervals, paired differences, tests.

The values are rates of tasks, an array (seeds, tasks) an arm: every task's rate is a mean over its
samples, NaN where there is nothing to measure. Tasks and seeds are two crossed random factors: the
same tasks are answered by the players of every seed. So the bootstrap draws both anew, seeds and
tasks each with replacement, and takes the mean over the grid that they span (the pigeonhole
bootstrap: McCullagh 2000, *Resampling and exchangeable arrays*, Bernoulli 6; Owen 2007, *The
pigeonhole bootstrap*, Annals of Applied Statistics 1). With one seed only tasks vary, and an
interval says nothing about other seeds. Tasks of one cluster (``clusters_T``, a name a task; none
given: every task is one) are drawn together, so that copies of one scenario do not count as so many
independent tasks (the cluster bootstrap: Cameron, Gelbach and Miller 2008, Review of Economics and
Statistics 90). The percentile interval of n units is too narrow by a factor of sqrt((n - 1) / n)
and by the normal quantile in the place of Student's, which few clusters, and the few seeds there
are, make felt; so further percentiles are taken (the *expanded percentile interval* of Hesterberg
2015, *What teachers should know about the bootstrap*, The American Statistician 69), with the
degrees of freedom of both factors together (Satterthwaite 1946, Biometrics Bulletin 2).

Tests flip signs: under the null hypothesis that two methods are alike, a cluster's difference (sum
over its tasks of the mean over seeds) is as likely as its negative (Fisher's randomisation test for
pairs). That takes the seeds as given; with several, p is no smaller than that of the quasi-F test
with tasks and seeds random (:func:`quasi_t`). Holm's step-down procedure (Holm 1979) corrects for
the size of the family.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.stats import norm
from scipy.stats import t as student

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Clusters = Sequence[Hashable] | None

RESAMPLES = 4000
# Clusters that have to differ for anything to be told: with five, the smallest p of a two-sided
# sign-flip test is 2 / 2^5 > 0.05, and a resample may well have none of them.
FEW = 6
EXACT = 14  # differences up to which all sign flips are tried


@dataclass(frozen=True)
class Estimate:
    """``value`` and its 95 % interval; None where there is too little to tell. ``tasks``,
    ``seeds`` and ``clusters`` are how many it rests on, ``moved`` in how many clusters there is
    anything that is not zero (of a ratio: the fewer of above and below)."""

    value: float | None
    low: float | None
    high: float | None
    tasks: int
    seeds: int
    clusters: int = 0
    moved: int = 0


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
    counted = (tasks, seeds, int(cluster_T.max()) + 1, _moved(kept_ST, cluster_T))
    if cluster_T.max() < 1:
        return Estimate(value, None, None, *counted)
    means = _resampled([kept_ST], cluster_T, seed, resamples)[0]
    low, high = np.percentile(means, _ends(_spread(kept_ST, cluster_T)))
    return Estimate(value, _settled(low), _settled(high), *counted)


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
    No interval where fewer than :data:`FEW` clusters are above zero on either side: resamples of
    them hardly vary (none, if it is none of 20).
    """
    both = ~np.isnan(a_ST) & ~np.isnan(b_ST)
    a_kept, cluster_T = _kept(np.where(both, a_ST, np.nan), clusters_T)
    b_kept, _ = _kept(np.where(both, b_ST, np.nan), clusters_T)
    seeds, tasks = a_kept.shape
    if tasks == 0 or seeds == 0 or b_kept.mean() == 0:
        return Estimate(None, None, None, tasks, seeds)
    value = _settled(a_kept.mean() / b_kept.mean())
    moved = min(_moved(a_kept, cluster_T), _moved(b_kept, cluster_T))
    counted = (tasks, seeds, int(cluster_T.max()) + 1, moved)
    if moved < FEW:
        return Estimate(value, None, None, *counted)
    top, bottom = _resampled([a_kept, b_kept], cluster_T)
    some = (top > 0) | (bottom > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = top[some] / bottom[some]
    linear_ST = a_kept - value * b_kept  # the ratio's own variance, by the delta method
    ends = _ends(_spread(linear_ST, cluster_T))
    low, high = np.percentile(ratios, ends, method="closest_observation")
    return Estimate(value, _settled(low), _settled(high), *counted)


def _moved(values_ST: Floats, cluster_T: Ints) -> int:
    """In how many clusters there is a value other than zero."""
    return len(np.unique(cluster_T[(np.abs(values_ST) > 1e-12).any(axis=0)]))


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


@dataclass(frozen=True)
class _Spread:
    """Variances of a mean over tasks and seeds: that due to clusters of tasks and that due to seeds
    (none where there is one seed), and how many independent parts each is estimated from."""

    tasks: float
    seeds: float
    clusters: float
    of_seeds: int

    @property
    def degrees(self) -> float:
        """Degrees of freedom of the sum of both (Satterthwaite 1946)."""
        if not self.seeds:
            return self.clusters - 1
        parts = self.tasks**2 / (self.clusters - 1) + self.seeds**2 / (self.of_seeds - 1)
        return (self.tasks + self.seeds) ** 2 / parts


def _spread(values_ST: Floats, cluster_T: Ints) -> _Spread:
    """Of ``values_ST``, without NaN. Clusters of unequal size count as so many equal ones as would
    give the mean the same variance (Kish 1965): (sum of sizes)^2 / sum of squared sizes."""
    seeds, tasks = values_ST.shape
    sizes = np.bincount(cluster_T)
    clusters = float(sizes.sum() ** 2 / (sizes**2).sum())
    rest_T = values_ST.mean(axis=0) - values_ST.mean()
    sums = np.bincount(cluster_T, weights=rest_T)
    of_tasks = float((sums**2).sum()) / tasks**2 * clusters / (clusters - 1)
    of_seeds = float(values_ST.mean(axis=1).var(ddof=1)) / seeds if seeds > 1 else 0.0
    # Below rounding there is none: seeds that are alike, say.
    return _Spread(of_tasks, of_seeds if of_seeds > 1e-18 else 0.0, clusters, seeds)


def _ends(spread: _Spread) -> tuple[float, float]:
    """Percentiles that end a 95 % interval (Hesterberg 2015, section 5.3): the normal
    distribution's at -+ k t, t the 97.5 % quantile of Student's and k what the bootstrap's standard
    error is too small by: it has (n - 1) / n of the variance due to n clusters, and likewise of
    that due to seeds."""
    clusters, seeds = spread.clusters, spread.of_seeds
    whole = spread.tasks + spread.seeds
    drawn = spread.tasks * (clusters - 1) / clusters + spread.seeds * (seeds - 1) / seeds
    k = (whole / drawn if drawn else clusters / (clusters - 1)) ** 0.5
    low = 100 * float(norm.cdf(-k * student.ppf(0.975, spread.degrees)))
    return low, 100 - low


def p_no_difference(a_ST: Floats, b_ST: Floats, clusters_T: Clusters = None) -> float | None:
    """Two-sided p-value of "no difference on average": that of :func:`sign_flip`, and with several
    seeds at least that of :func:`quasi_t`. None without tasks in common."""
    p_values = [sign_flip(a_ST, b_ST, clusters_T), quasi_t(a_ST, b_ST, clusters_T)]
    return max((one for one in p_values if one is not None), default=None)


def quasi_t(a_ST: Floats, b_ST: Floats, clusters_T: Clusters = None) -> float | None:
    """Two-sided p-value of "no difference on average" with tasks and seeds random: the difference
    over the root of the sum of its variances over tasks and over seeds, which is the square root of
    Clark's min F' (1973, *The language-as-fixed-effect fallacy*, Journal of Verbal Learning and
    Verbal Behavior 12), by Student's t with Satterthwaite's degrees of freedom. The interaction is
    in both variances: it errs on the safe side. None with one seed or fewer than two clusters."""
    some, cluster_T = _kept(a_ST - b_ST, clusters_T)
    if some.size == 0 or len(some) < 2 or cluster_T.max() < 1:
        return None
    spread = _spread(some, cluster_T)
    error = (spread.tasks + spread.seeds) ** 0.5
    if error == 0:
        return 1.0 if abs(some.mean()) < 1e-12 else 0.0
    return float(2 * student.sf(abs(some.mean()) / error, spread.degrees))


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
