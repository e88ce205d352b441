"""Bootstrap, tests and Holm's correction against cases with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treeplay.experiments.stats import (
    _ends,
    _spread,
    difference,
    estimate,
    holm,
    p_no_difference,
    quasi_t,
    ratio,
    sign_flip,
)

NAN = float("nan")
p_lists = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def test_holm_on_a_worked_example() -> None:
    # Sorted .005 .01 .03 .04: times 4, 3, 2, 1, and never below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(p_lists)
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(a >= p for a, p in zip(adjusted, p_values, strict=True))
    assert all(a <= min(1.0, len(p_values) * p) for a, p in zip(adjusted, p_values, strict=True))
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for level in (0.01, 0.05, 0.2):
        rejected: set[int] = set()
        for rank, index in enumerate(order):
            if (len(p_values) - rank) * p_values[index] > level:
                break
            rejected.add(index)
        assert {i for i, a in enumerate(adjusted) if a <= level} == rejected


@given(p_lists, st.randoms())
def test_holm_does_not_depend_on_the_order(p_values: list[float], random: object) -> None:
    order = list(range(len(p_values)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = holm([p_values[i] for i in order])
    assert [shuffled[order.index(i)] for i in range(len(p_values))] == holm(p_values)


def test_rates_without_spread_have_an_interval_without_width() -> None:
    found = estimate(np.full((3, 20), 0.25))
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))
    assert (found.tasks, found.seeds) == (20, 3)


def test_one_seed_gives_the_interval_of_the_mean_over_tasks() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((1, 400))
    found = estimate(values, resamples=8000)
    error = values.std() / math.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_seeds_that_differ_widen_the_interval() -> None:
    tasks = np.random.default_rng(0).random((1, 200))
    alike = np.repeat(tasks, 3, axis=0)
    apart = alike + np.array([[-0.2], [0.0], [0.2]])
    narrow, wide = estimate(alike), estimate(apart)
    assert narrow.high is not None
    assert narrow.low is not None
    assert wide.high is not None
    assert wide.low is not None
    # All three draws are the lowest seed in 1 of 27 resamples, more than the 2.5 % cut off.
    assert narrow.high - narrow.low < 0.09
    assert wide.high - wide.low > 0.36
    assert narrow.value == pytest.approx(wide.value)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(300):
        tasks, seeds = rng.normal(0, 0.1, (1, 40)), rng.normal(0, 0.02, (4, 1))
        found = estimate(0.5 + tasks + seeds + rng.normal(0, 0.05, (4, 40)), resamples=400)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0.5 <= found.high
    assert 0.88 <= hits / 300 <= 1.0


def test_few_clusters_are_told_apart_less_well_than_percentiles_say() -> None:
    # Student's distribution: 2.306 standard errors with 8 degrees of freedom, and the bootstrap's
    # standard error is sqrt(8 / 9) of the unbiased one.
    values = np.random.default_rng(3).normal(0, 1, (1, 9))
    error = float(values.std(ddof=1)) / 3
    few = estimate(values, resamples=40_000)
    assert few.low is not None
    assert few.high is not None
    assert few.high - few.low == pytest.approx(2 * 2.306 * error, rel=0.06)
    assert ends([1] * 9) == pytest.approx((0.7225, 99.2775), abs=1e-3)
    assert ends([1] * 100_000) == pytest.approx((2.5, 97.5), abs=1e-3)
    # Ten tasks in two clusters of five count as two, ten of which nine are alone as fewer than ten.
    assert ends([5, 5]) == pytest.approx(ends([1, 1]))
    assert ends([5, *[1] * 9])[0] < ends([1] * 10)[0]


def ends(sizes: list[int]) -> tuple[float, float]:
    """Percentiles for clusters of these sizes, one seed."""
    rng = np.random.default_rng(1)
    values = rng.normal(0, 1, (1, sum(sizes)))
    return _ends(_spread(values, np.repeat(np.arange(len(sizes)), sizes)))


def test_the_spread_of_few_seeds_counts() -> None:
    """Two tables with the same task means: one whose seeds agree, one whose seeds do not."""
    tasks = np.linspace(-1, 1, 41) + 0.5
    alike = np.tile(tasks, (3, 1))
    apart = tasks + np.array([[-0.4], [0.0], [0.4]])
    same, wide = estimate(alike), estimate(apart)
    assert same.value == pytest.approx(0.5)
    assert wide.value == pytest.approx(0.5)
    assert None not in (same.low, same.high, wide.low, wide.high)
    assert wide.low < same.low - 0.1 < same.high + 0.1 < wide.high  # type: ignore[operator]
    # By hand: variances over tasks s^2 / 41, over seeds 0.4^2 / 3; Satterthwaite's degrees.
    v_tasks, v_seeds = float(tasks.var(ddof=1)) / 41, 0.16 / 3
    spread = _spread(apart, np.arange(41))
    assert (spread.tasks, spread.seeds) == pytest.approx((v_tasks, v_seeds))
    degrees = (v_tasks + v_seeds) ** 2 / (v_tasks**2 / 40 + v_seeds**2 / 2)
    assert spread.degrees == pytest.approx(degrees)
    zero = np.zeros_like(apart)
    # t = 0.5 / sqrt(0.00875 + 0.0533) = 2.0069 with 2.71 degrees of freedom
    assert quasi_t(apart, zero) == pytest.approx(0.1489, abs=2e-3)
    assert p_no_difference(apart, zero) == quasi_t(apart, zero)
    # With seeds that agree it is the t-test over tasks, and the sign flips are near it.
    sure = quasi_t(alike, zero)
    assert sure == pytest.approx(sign_flip(alike, zero), abs=1e-3)
    # One seed: nothing is known of others.
    assert quasi_t(alike[:1], zero[:1]) is None
    assert p_no_difference(alike[:1], zero[:1]) == sign_flip(alike[:1], zero[:1])
    assert quasi_t(zero, zero) == 1.0


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(2, 15), st.integers(0, 99))
def test_a_method_does_not_differ_from_itself(seeds: int, tasks: int, seed: int) -> None:
    values = np.random.default_rng(seed).random((seeds, tasks))
    found = difference(values, values, resamples=50)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)
    assert sign_flip(values, values) == 1.0
    assert p_no_difference(values, values) == 1.0


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(2, 15), st.integers(0, 99))
def test_a_difference_turned_round_has_the_other_sign(seeds: int, tasks: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random((seeds, tasks)), rng.random((seeds, tasks))
    one, other = difference(a, b, resamples=200), difference(b, a, resamples=200)
    assert one.low is not None
    assert one.high is not None
    assert other.low is not None
    assert other.high is not None
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    assert one.value is not None
    assert one.low - 1e-9 <= one.value <= one.high + 1e-9 or tasks < 4
    assert sign_flip(a, b) == sign_flip(b, a)


def test_a_pair_is_judged_by_its_difference_not_by_its_spread() -> None:
    hard = np.linspace(0, 0.9, 60)[None, :]
    found = difference(hard + 0.05, hard)
    assert (found.low, found.high) == pytest.approx((0.05, 0.05))


def test_ratios() -> None:
    found = ratio(np.full((2, 30), 0.6), np.full((2, 30), 0.4))
    assert (found.value, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))
    none = ratio(np.full((1, 5), 0.2), np.zeros((1, 5)))
    assert (none.value, none.low, none.high) == (None, None, None)
    once = np.zeros((3, 20))
    once[0] = 1.0  # some resamples draw this seed never
    assert ratio(np.full((3, 20), 0.5), once).high == math.inf


@pytest.mark.parametrize("turned", [False, True])
def test_a_ratio_of_next_to_nothing_has_no_interval(turned: bool) -> None:
    """Resamples of tasks that are nearly all zero hardly vary."""
    full = np.full((1, 20), 0.5)
    for some, told in ((1, False), (5, False), (6, True), (20, True)):
        rare = np.array([[1.0] * some + [0.0] * (20 - some)])
        found = ratio(full, rare) if turned else ratio(rare, full)
        assert (found.moved, found.clusters) == (some, 20)
        assert (found.low is not None) == (found.high is not None) == told
        assert found.value == pytest.approx(10 / some if turned else some / 10)
    none = ratio(np.zeros((1, 20)), full)
    assert (none.value, none.low, none.high) == (0.0, None, None)


def test_how_many_clusters_differ() -> None:
    values = np.array([[0.5, 0.0, 0.0, 0.2], [0.0, 0.0, 0.0, 0.1]])
    assert estimate(values).moved == 2
    assert estimate(values, ["a", "b", "b", "a"]).moved == 1
    assert difference(values, values).moved == 0


def test_sign_flips_by_hand() -> None:
    # Three tasks, all better: 2 of the 8 ways of flipping are as far out.
    assert sign_flip(np.array([[0.3, 0.2, 0.1]]), np.zeros((1, 3))) == 0.25
    # A task without a difference says nothing.
    assert sign_flip(np.array([[0.3, 0.2, 0.1, 0.0]]), np.zeros((1, 4))) == 0.25
    # Drawn flips agree with the normal approximation: 30 tasks better, 10 worse, z = 20 / sqrt(40).
    some = np.array([[1.0] * 30 + [-1.0] * 10])
    assert sign_flip(some, np.zeros((1, 40))) == pytest.approx(0.0022, abs=0.001)


def test_copies_of_a_task_are_not_so_many_tasks() -> None:
    rng = np.random.default_rng(0)
    alone = rng.random((2, 12))
    copied, names = np.repeat(alone, 5, axis=1), np.repeat(np.arange(12), 5).tolist()
    one, five = estimate(alone), estimate(copied, names)
    assert (five.value, five.low, five.high) == pytest.approx((one.value, one.low, one.high))
    assert five.tasks == 60
    too_sure = estimate(copied)
    assert too_sure.low is not None
    assert one.low is not None
    assert too_sure.low > one.low + 0.02
    other = alone - 0.2
    assert sign_flip(copied, np.repeat(other, 5, axis=1), names) == sign_flip(alone, other)
    assert ratio(copied, copied + 1, names).low == pytest.approx(ratio(alone, alone + 1).low)
    # One cluster says nothing about others.
    assert estimate(alone, ["same"] * 12).low is None


def test_a_cluster_goes_with_its_tasks_that_have_no_value() -> None:
    values = np.array([[0.5, NAN, 0.7, 0.1]])
    found = estimate(values, ["a", "gone", "a", "b"])
    assert found.tasks == 3
    assert (found.low, found.high) == pytest.approx((0.1, 0.6))


def test_what_has_no_value_is_left_out() -> None:
    values = np.array([[0.5, NAN, 0.7], [0.3, NAN, NAN]])
    found = estimate(values)
    # The third task lacks the second seed, where its mean over the others stands in.
    assert found.value == pytest.approx((0.4 + 0.7) / 2)
    assert (found.tasks, found.seeds) == (2, 2)
    assert estimate(np.full((2, 3), NAN)).value is None
    assert estimate(np.zeros((0, 3))).value is None
    alone = estimate(np.array([[0.5]]))
    assert (alone.value, alone.low) == (0.5, None)
    assert sign_flip(np.array([[NAN]]), np.array([[1.0]])) is None


def test_the_order_of_summing_decides_no_digit() -> None:
    """9 in 80 is just between two rates that a table prints, and processors sum as they like."""
    rates = np.array([[1.0] * 9 + [0.0] * 71])
    for noise in (0.0, 1e-14, -1e-14):
        found = estimate(rates + noise)
        assert found.value == 0.1125
        assert f"{100 * found.value:.1f}" == "11.2"
    assert ratio(rates + 1e-14, 2 * rates).value == 0.5
