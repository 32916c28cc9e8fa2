"""Intervals of means that cover what they promise at few samples, and the power of a comparison.

A mean gets Student's t interval, a share of right answers Wilson's, the difference of two such shares on the same
questions Agresti and Min's. What the 95 % intervals cover, by simulation (tests/bench/test_statistics.py):

    samples           3     6    12
    normal          95 %  95 %  95 %
    exponential     88 %  90 %  92 %
    log-normal      84 %  83 %  85 %

A percentile bootstrap of normal samples covers 73 %, 86 % and 91 %; BCa covers less than t up to 30 samples.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence

from pydantic import BaseModel, ConfigDict
from scipy import optimize, stats

CONFIDENCE = 0.95
FEWEST = 8  # independent samples below which no verdict rests on an interval


class Interval(BaseModel):
    """A mean and its confidence interval; `low` and `high` are None where one sample has no spread."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)

    mean: float
    low: float | None
    high: float | None
    n: int  # independent samples
    method: str  # how it was computed: "t", "Wilson", "Agresti-Min", "constant", "none" ...

    def error(self, confidence: float = CONFIDENCE) -> float | None:
        """The standard error of the mean that the width of this interval stands for."""
        if self.low is None or self.high is None:
            return None
        return (self.high - self.low) / 2 / _quantile(confidence, self.n)


def mean_interval(samples: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The mean of independent samples. Samples that are all 0 or 1 are a share and get Wilson's interval.

    Raises ValueError for no samples and for samples that are not finite.
    """
    values = _finite(samples)
    n = len(values)
    if n > 1 and _binary(values):
        share = stats.binomtest(round(sum(values)), n).proportion_ci(confidence, method="wilson")
        return Interval(mean=math.fsum(values) / n, low=float(share.low), high=float(share.high), n=n, method="Wilson")
    return _student(values, confidence)


def difference_interval(samples: Sequence[float], rivals: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The mean of `samples[i] - rivals[i]`, measured on the same texts.

    Two columns of right (1) and wrong (0) answers get Agresti and Min's interval for matched pairs, which has a width
    also where both are right everywhere. Raises ValueError for columns of unequal length, empty or not finite.
    """
    ours, theirs = _finite(samples), _finite(rivals)
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    n = len(ours)
    if n > 1 and _binary(ours) and _binary(theirs):
        better, worse = differences.count(1.0), differences.count(-1.0)
        return matched_interval(better, worse, n, confidence)
    if n > 1 and _binary(ours) and len(set(theirs)) == 1:
        share, base = mean_interval(ours, confidence), theirs[0]
        assert share.low is not None
        assert share.high is not None
        return Interval(mean=share.mean - base, low=share.low - base, high=share.high - base, n=n, method=share.method)
    return _student(differences, confidence)


def matched_interval(better: float, worse: float, n: int, confidence: float = CONFIDENCE) -> Interval:
    """The difference of two shares on the same `n` questions (Agresti and Min, 2005).

    `better`: questions only the first answers right; `worse`: only the second. Half a question is added to each cell.
    """
    up, down, total = better + 0.5, worse + 0.5, n + 2
    middle = (up - down) / total
    error = math.sqrt((up + down) - (up - down) ** 2 / total) / total
    half = float(stats.norm.ppf((1 + confidence) / 2)) * error
    low, high = max(-1.0, middle - half), min(1.0, middle + half)
    return Interval(mean=(better - worse) / n, low=low, high=high, n=n, method="Agresti-Min")


def ratio_interval(samples: Sequence[float], baselines: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The geometric mean of `samples[i] / baselines[i]`, as of seconds measured in turns: t over the logarithms.

    Raises ValueError for values that are not positive and finite, empty columns, or columns of unequal length.
    """
    ours, theirs = _finite(samples), _finite(baselines)
    if min(ours + theirs) <= 0:
        raise ValueError("a ratio needs values above 0")
    found = _student([math.log(a / b) for a, b in zip(ours, theirs, strict=True)], confidence)
    low, high = (None if x is None else math.exp(x) for x in (found.low, found.high))
    return Interval(mean=math.exp(found.mean), low=low, high=high, n=found.n, method=f"{found.method} of logarithms")


def cluster_interval(
    samples: Sequence[float], clusters: Sequence[Hashable], confidence: float = CONFIDENCE
) -> Interval:
    """The mean of samples that are alike within a cluster (texts of one subject): t over the means of the clusters.

    `n` counts clusters, and each weighs the same. Raises ValueError as `mean_interval` does.
    """
    groups: dict[Hashable, list[float]] = {}
    for value, cluster in zip(_finite(samples), clusters, strict=True):
        groups.setdefault(cluster, []).append(value)
    found = _student([math.fsum(group) / len(group) for group in groups.values()], confidence)
    return found.model_copy(update={"method": f"{found.method} over clusters"})


def sum_interval(parts: Sequence[Interval], confidence: float = CONFIDENCE) -> Interval:
    """The sum of independent means, each over its own samples (Welch and Satterthwaite).

    It has no bounds if a part has none.
    """
    mean, n = math.fsum(part.mean for part in parts), sum(part.n for part in parts)
    errors = [(part.error(confidence), part.n) for part in parts]
    if any(error is None for error, _ in errors):
        return Interval(mean=mean, low=None, high=None, n=n, method="none")
    squares = [(error**2, size - 1) for error, size in errors if error]
    if not squares:
        return Interval(mean=mean, low=mean, high=mean, n=n, method="constant")
    variance = math.fsum(square for square, _ in squares)
    freedom = variance**2 / math.fsum(square**2 / df for square, df in squares)
    half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * math.sqrt(variance)
    return Interval(mean=mean, low=mean - half, high=mean + half, n=n, method="Welch")


def power(effect: float, error: float, n: int, confidence: float = CONFIDENCE) -> float:
    """The chance that a t interval of `n` samples lies wholly beyond zero on the side of a true mean of `effect`.

    error: the standard error of the mean.
    """
    if n < 2:
        return 0.0
    if error <= 0:
        return float(effect != 0)
    return float(stats.nct.sf(_quantile(confidence, n), n - 1, abs(effect) / error))


def smallest_effect(error: float, n: int, chance: float = 0.8, confidence: float = CONFIDENCE) -> float | None:
    """The smallest true mean that `n` samples of this standard error find with this chance; None for one sample."""
    if n < 2:
        return None
    if error <= 0:
        return 0.0
    most = 2 * _quantile(confidence, n) + 10
    return error * float(optimize.brentq(lambda x: power(x, 1.0, n, confidence) - chance, 0.0, most))


def _student(values: list[float], confidence: float) -> Interval:
    n, mean = len(values), math.fsum(values) / len(values)
    if n < 2:
        return Interval(mean=mean, low=None, high=None, n=n, method="none")
    if len(set(values)) == 1:  # no rounding error where nothing varies
        return Interval(mean=values[0], low=values[0], high=values[0], n=n, method="constant")
    variance = math.fsum((x - mean) ** 2 for x in values) / (n - 1)
    half = _quantile(confidence, n) * math.sqrt(variance / n)
    return Interval(mean=mean, low=mean - half, high=mean + half, n=n, method="t")


def _quantile(confidence: float, n: int) -> float:
    return float(stats.t.ppf((1 + confidence) / 2, n - 1))


def _binary(values: Iterable[float]) -> bool:
    return set(values) <= {0.0, 1.0}


def _finite(samples: Sequence[float]) -> list[float]:
    values = [float(x) for x in samples]
    if not values:
        raise ValueError("an interval needs samples")
    if not all(map(math.isfinite, values)):
        raise ValueError("an interval needs finite samples")
    return values
