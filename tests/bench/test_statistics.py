"""Intervals cover what their module states, at the sample sizes that are used."""

import math

import numpy as np
import pytest
from scipy import stats

from tokenmill.bench.statistics import (
    cluster_interval,
    difference_interval,
    matched_interval,
    mean_interval,
    power,
    ratio_interval,
    smallest_effect,
    sum_interval,
)

TRIALS = 2000
DRAWS = {
    "normal": (lambda rng, n: rng.normal(size=n), 0.0),
    "exponential": (lambda rng, n: rng.exponential(size=n), 1.0),
    "log-normal": (lambda rng, n: np.exp(rng.normal(size=n)), math.exp(0.5)),
}
# The table in the module's docstring.
STATED = {
    ("normal", 3): 0.95, ("normal", 6): 0.95, ("normal", 12): 0.95,
    ("exponential", 3): 0.88, ("exponential", 6): 0.90, ("exponential", 12): 0.92,
    ("log-normal", 3): 0.84, ("log-normal", 6): 0.83, ("log-normal", 12): 0.85,
}  # fmt: skip


def slack(share, trials=TRIALS):
    """Three standard errors of a share that was counted, and the rounding of what is stated."""
    return 3 * math.sqrt(share * (1 - share) / trials) + 0.005


def covers(interval, truth):
    return interval.low <= truth <= interval.high


@pytest.mark.parametrize(("kind", "n"), STATED)
def test_a_mean_is_covered_as_often_as_stated(kind, n):
    draw, truth = DRAWS[kind]
    rng = np.random.default_rng(n)
    share = sum(covers(mean_interval(draw(rng, n)), truth) for _ in range(TRIALS)) / TRIALS
    assert share == pytest.approx(STATED[kind, n], abs=slack(STATED[kind, n]))


@pytest.mark.parametrize("confidence", [0.8, 0.99])
def test_other_levels_cover_what_they_say(confidence):
    rng = np.random.default_rng(0)
    share = sum(covers(mean_interval(rng.normal(size=5), confidence), 0) for _ in range(TRIALS)) / TRIALS
    assert share == pytest.approx(confidence, abs=slack(confidence))


@pytest.mark.parametrize("n", [12, 30])
@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_a_share_is_covered(n, share):
    """Wilson's interval varies with the share around 95 %: the mean over many is what it promises."""
    counts = stats.binom(n, share).pmf(np.arange(n + 1))
    found = [mean_interval([1.0] * k + [0.0] * (n - k)) for k in range(n + 1)]
    assert sum(p for p, i in zip(counts, found, strict=True) if covers(i, share)) > 0.87


@pytest.mark.parametrize("n", [12, 30])
@pytest.mark.parametrize(
    ("both", "one", "other"), [(0.5, 0.1, 0.1), (0.6, 0.3, 0.05), (0.85, 0.05, 0.05), (0.3, 0.5, 0)]
)
def test_the_difference_of_two_shares_is_covered(n, both, one, other):
    rng = np.random.default_rng(n)
    drawn = rng.multinomial(n, [both, one, other, 1 - both - one - other], size=TRIALS)
    share = sum(covers(matched_interval(b, c, n), one - other) for _, b, c, _ in drawn) / TRIALS
    assert share > 0.93 - slack(0.93)


def test_a_t_interval_is_scipys():
    values = [1.0, 2.5, 3.0, 7.0, 4.0]
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    found = mean_interval(values)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert (found.n, found.method) == (5, "t")
    assert found.error() == pytest.approx(stats.sem(values))


def test_differences_are_paired():
    rivals = [1.0, 5.0, 20.0, 80.0]
    found = difference_interval([r - 0.1 + e for r, e in zip(rivals, (0, 0.01, -0.01, 0), strict=True)], rivals)
    assert found.low < -0.1 < found.high < 0


def test_equal_answers_are_not_certain():
    """Twelve of twelve alike do not show that the next thousand are."""
    found = difference_interval([1.0] * 12, [1.0] * 12)
    assert found.mean == 0
    assert found.low < -0.1
    assert found.high > 0.1
    assert mean_interval([1.0] * 12).low < 0.8


def test_a_share_against_a_number():
    found = difference_interval([1.0, 0.0] * 10, [0.25] * 20)
    assert found.mean == 0.25
    assert found.method == "Wilson"
    assert found.low < 0.25 < found.high


def test_one_sample_has_no_interval():
    found = mean_interval([0.9])
    assert (found.mean, found.low, found.high, found.method) == (0.9, None, None, "none")
    assert found.error() is None
    assert smallest_effect(1.0, 1) is None


def test_what_never_varies_is_said():
    assert mean_interval([4.0477896] * 7).model_dump() == {
        "mean": 4.0477896, "low": 4.0477896, "high": 4.0477896, "n": 7, "method": "constant",
    }  # fmt: skip


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [math.inf]])
def test_what_has_no_mean_is_refused(bad):
    with pytest.raises(ValueError, match="samples"):
        mean_interval(bad)


def test_a_ratio_is_multiplicative():
    turns = [1.0, 2.0, 4.0, 8.0]
    found = ratio_interval([2 * t for t in turns], turns)
    assert (found.mean, found.method) == (pytest.approx(2.0), "constant of logarithms")
    noisy = ratio_interval([2.1, 4.3, 7.7], [1.0, 2.0, 4.0])
    back = ratio_interval([1.0, 2.0, 4.0], [2.1, 4.3, 7.7])
    assert noisy.low == pytest.approx(1 / back.high)
    assert noisy.low < 2 < noisy.high
    with pytest.raises(ValueError, match="above 0"):
        ratio_interval([0.0, 1.0], [1.0, 1.0])


def test_a_ratio_is_covered():
    rng = np.random.default_rng(0)
    found = [ratio_interval(np.exp(rng.normal(size=6)), np.exp(rng.normal(size=6))) for _ in range(TRIALS)]
    assert sum(covers(i, 1.0) for i in found) / TRIALS == pytest.approx(0.95, abs=slack(0.95))


def test_clusters_are_the_samples():
    """Ten texts on each of six subjects are six samples where a subject sets the figure."""
    rng = np.random.default_rng(0)
    clusters = [c for c in range(6) for _ in range(10)]
    hits = plain = 0
    for _ in range(TRIALS):
        values = np.repeat(rng.normal(size=6), 10) + 0.3 * rng.normal(size=60)
        found = cluster_interval(values, clusters)
        hits += covers(found, 0)
        plain += covers(mean_interval(values), 0)
    assert found.n == 6
    assert hits / TRIALS == pytest.approx(0.95, abs=slack(0.95))
    assert plain / TRIALS < 0.6


@pytest.mark.parametrize("sizes", [(2, 3, 9), (6, 6), (30, 4)])
def test_a_sum_of_means_over_different_samples_is_covered(sizes):
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(TRIALS):
        parts = [mean_interval(spread * rng.normal(size=n)) for spread, n in zip((1, 2, 0.5), sizes, strict=False)]
        hits += covers(sum_interval(parts), 0)
    assert sum_interval(parts).n == sum(sizes)
    assert hits / TRIALS > 0.95 - slack(0.95) - 0.01  # Satterthwaite's degrees of freedom are an approximation
    assert sum_interval([mean_interval([1.0]), mean_interval([1.0, 2.0])]).low is None
    assert sum_interval([mean_interval([3.0, 3.0]), mean_interval([2.0, 2.0])]).low == 5
    alone = mean_interval([1.0, 2.0, 4.0])
    assert (sum_interval([alone]).low, sum_interval([alone]).high) == pytest.approx((alone.low, alone.high))


@pytest.mark.parametrize("n", [4, 12])
def test_power_is_how_often_the_interval_excludes_zero(n):
    rng = np.random.default_rng(0)
    effect = 0.8
    counted = sum(mean_interval(rng.normal(effect, size=n)).low > 0 for _ in range(TRIALS)) / TRIALS
    assert counted == pytest.approx(power(effect, 1 / math.sqrt(n), n), abs=slack(counted))


@pytest.mark.parametrize("n", [2, 3, 8, 200])
def test_the_smallest_effect_has_that_power(n):
    found = smallest_effect(0.25, n)
    assert power(found, 0.25, n) == pytest.approx(0.8)
    assert power(found / 2, 0.25, n) < 0.8


def test_power_without_spread():
    assert power(0.1, 0.0, 8) == 1
    assert power(0.0, 0.0, 8) == 0
    assert smallest_effect(0.0, 8) == 0
