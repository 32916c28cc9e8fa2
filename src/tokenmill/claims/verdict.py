"""From numbers to a verdict, by rule; nobody writes one by hand.

A check compares the method with a rival (or with a plain number) on the same samples:

    d = mean over samples of (method - rival),  with a 95 % interval that is valid at this many samples

    claimed lower:    supported  <=>  high(d) < margin,     contradicted  <=>  low(d) > margin
    claimed higher:   supported  <=>  low(d) > -margin,     contradicted  <=>  high(d) < -margin
    claimed equal:    supported  <=>  no sample differs,    contradicted  <=>  one does

margin 0 reads "better than the rival", a positive one "worse by less than the margin". All else is inconclusive, as is
a check of fewer than FEWEST samples. A check is not testable here if the model, machine or data lack what it needs.

The claim is contradicted if a deciding check is, not testable here if the paper's condition or a deciding check's is
absent, inconclusive if a deciding check is, and supported otherwise. A check that the paper does not make is shown and
does not decide. A record that was measured with other code is stale and has no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from scipy import stats

from tokenmill.bench.statistics import (
    FEWEST,
    Interval,
    difference_interval,
    matched_interval,
    mean_interval,
    smallest_effect,
)
from tokenmill.view.claim import check_line

NEAR = 0.1  # nats a token: what "as good as the untouched model" may cost, about a tenth more perplexity
CHANCE = 0.8  # power for which the smallest effect is given
RULE = (
    "each check compares means over the same samples, with a 95 % interval of the difference (Student's t; for two "
    f"columns of right and wrong answers Agresti and Min's). It is supported if the interval of at least {FEWEST} "
    "independent samples lies wholly on the claimed side of its margin, contradicted if it lies wholly on the other "
    "side, and inconclusive otherwise. The claim is contradicted if one check that the paper makes is, and supported "
    "if all of them are"
)

Outcome = Literal["supported", "contradicted", "inconclusive", "not testable here"]
Verdict = Literal["supported", "contradicted", "inconclusive", "not testable here", "stale"]
Better = Literal["lower", "higher"]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Percentiles(Strict):
    """The interval that earlier versions stored without their samples: percentiles of a bootstrap."""

    mean: float
    low: float
    high: float


class Check(Strict):
    """One comparison. `difference`, `detectable` and `outcome` follow from the other fields: see `complete`."""

    what: str  # quantity and setting, with its unit
    method: str  # spec of what is claimed to be better
    rival: str  # spec, or what a plain number is
    better: Better
    margin: float = Field(default=0.0, ge=0)
    decides: bool = True  # the paper makes this check; one beyond the paper is shown and does not decide
    identity: bool = False  # the claim is that no sample differs: `method` is 1 where a sample is equal
    samples: int
    value: float | None = None  # mean of the method's samples
    rival_value: float | None = None
    method_samples: list[float] = []  # one number a sample; empty in records of earlier versions
    rival_samples: list[float] = []
    bootstrap: Percentiles | None = None  # what earlier versions stored in place of the samples
    lacking: str = ""  # what the check needs and does not have here
    difference: Interval | None = None  # method - rival, paired; None where a number is not finite
    detectable: float | None = None  # smallest distance from the margin that so many samples find, with CHANCE
    outcome: Outcome = "not testable here"

    @property
    def bound(self) -> float:
        """What the difference is compared with."""
        return self.margin if self.better == "lower" else 0.0 - self.margin

    def told(self) -> str:
        """The check in one sentence."""
        return check_line(self.model_dump())


def interval_of(check: Check) -> Interval | None:
    """The difference of a check's samples; from the percentiles that stand in their place in an earlier record."""
    if check.method_samples:
        if check.identity:
            equal = mean_interval(check.method_samples)
            sides = {side: None if x is None else x - 1 for side, x in (("low", equal.low), ("high", equal.high))}
            return equal.model_copy(update={"mean": equal.mean - 1, **sides})
        return difference_interval(check.method_samples, check.rival_samples)
    if check.bootstrap is None or check.value is None or check.rival_value is None:
        return None
    n, found = check.samples, check.bootstrap
    if check.identity:
        return interval_of(check.model_copy(update={"method_samples": _shares(check.value, n)}))
    # The percentiles span 2 z standard errors of the plug-in kind, which divides by n.
    spread = (found.high - found.low) / 2 / float(stats.norm.ppf(0.975))
    counts = [v * n for v in (check.value, check.rival_value)]
    if "share of" in check.what and all(abs(c - round(c)) < 1e-6 for c in counts):
        net = round(counts[0] - counts[1])
        unequal = min(n, max(abs(net), round(n * (n * spread**2 + (net / n) ** 2))))
        unequal += (unequal + net) % 2
        return matched_interval((unequal + net) / 2, (unequal - net) / 2, n).model_copy(
            update={"method": "Agresti-Min, from a bootstrap's spread"}
        )
    if not spread:
        return Interval(mean=found.mean, low=found.mean, high=found.mean, n=n, method="constant")
    half = float(stats.t.ppf(0.975, n - 1)) * spread * math.sqrt(n / (n - 1))
    return Interval(
        mean=found.mean, low=found.mean - half, high=found.mean + half, n=n, method="t, from a bootstrap's spread"
    )


def _shares(share: float, n: int) -> list[float]:
    """The zeros and ones whose mean this is."""
    ones = round(share * n)
    return [1.0] * ones + [0.0] * (n - ones)


def judged(check: Check) -> Outcome:
    """The rule for one check, from its `difference`."""
    d = check.difference
    if check.lacking:
        return "not testable here"
    if d is None:
        return "inconclusive"
    if check.identity and d.mean:
        return "contradicted"
    if d.n < FEWEST or d.low is None or d.high is None:
        return "inconclusive"
    if check.identity:
        return "supported"
    below, above = d.high < check.bound, d.low > check.bound
    claimed, other = (below, above) if check.better == "lower" else (above, below)
    return "supported" if claimed else "contradicted" if other else "inconclusive"


def complete(check: Check) -> Check:
    """The check with its interval, the smallest effect that it can find, and its outcome."""
    d = interval_of(check)
    error = None if d is None else d.error()
    if d is None or error is None:
        detectable = None
    elif check.identity:  # the share of unequal samples of which so many would show one
        detectable = 1 - (1 - CHANCE) ** (1 / d.n)
    else:
        detectable = smallest_effect(error, d.n, CHANCE)
    whole = check.model_copy(update={"difference": d, "detectable": detectable})
    return whole.model_copy(update={"outcome": judged(whole)})


def check(
    what: str,
    method: tuple[str, Sequence[float]],
    rival: tuple[str, Sequence[float]],
    better: Better,
    *,
    margin: float = 0.0,
    lacking: str = "",
    decides: bool = True,
    identity: bool = False,
) -> Check:
    """Compare two columns of numbers, sample by sample; NaN in a column is a method that broke.

    decides: whether the paper makes this comparison. identity: the method's column has 1 where a sample is equal to
    the rival's and 0 where it is not, and the claim is that all are.
    """
    (name, values), (rival_name, rival_values) = method, rival
    pairs = list(zip(values, rival_values, strict=True))
    made: dict[str, Any] = {"what": what, "method": name, "rival": rival_name, "better": better, "margin": margin}
    if pairs and all(math.isfinite(a) and math.isfinite(b) for a, b in pairs):
        made |= {
            "value": mean(values),
            "rival_value": mean(rival_values),
            "method_samples": list(map(float, values)),
            "rival_samples": list(map(float, rival_values)),
        }
    return complete(Check(**made, samples=len(pairs), lacking=lacking, decides=decides, identity=identity))


def overall(checks: Sequence[Check], missing: str = "") -> Outcome:
    """The rule for a claim. `missing`: an essential condition of the paper that is absent here."""
    outcomes = [judged(c) for c in checks if c.decides]
    if missing or not outcomes:
        return "not testable here"
    order: tuple[Outcome, ...] = ("contradicted", "not testable here", "inconclusive")
    return next((outcome for outcome in order if outcome in outcomes), "supported")


class Code(Strict):
    """What a record was measured with."""

    version: str
    commit: str  # "" outside a checkout; "-dirty" behind one with changes
    digests: dict[str, str]  # file of the package -> digest of what the claim uses of it, words left out


class Measured(Strict):
    rule: str
    checks: list[Check]
    figures: dict[str, dict[str, float]]  # spec -> quantity -> mean
    reasons: list[str] = []  # found in the numbers, each under a condition on them


class Reproduction(Strict):
    """The file `tokenmill reproduce` writes about one method."""

    method: str
    title: str
    claim: str
    paper_figure: str  # what the paper reports, on its models
    measured: Measured
    baseline: dict[str, dict[str, float]]  # {rival: {quantity: mean}}
    verdict: Verdict
    why: str
    missing: str = ""  # an essential condition of the paper that is absent here
    beyond: str = ""  # what the paper also claims and this record leaves out
    stale: str = ""  # what has changed since the measurement
    rerun: str = ""  # what a second measurement needs that is not shipped
    environment: dict[str, Any]
    seeds: list[int]
    code: Code


def verdict_of(record: Reproduction) -> Verdict:
    """What the record's figures say; a record of other code says nothing."""
    return "stale" if record.stale else overall(record.measured.checks, record.missing)


def why_of(record: Reproduction) -> str:
    """The checks behind a verdict, and the reasons that were found in the numbers."""
    checks = record.measured.checks
    deciding = [c for c in checks if c.decides]
    if record.stale:
        return f"{record.stale}; the figures were measured with earlier code"
    head = f"{sum(c.outcome == 'supported' for c in deciding)} of {len(deciding)} deciding checks supported"
    beside = [c for c in checks if not c.decides]
    parts = [record.missing] if record.missing else []
    parts += [c.told() for c in deciding if record.verdict == "supported" or c.outcome != "supported"]
    parts += record.measured.reasons if record.verdict != "supported" else []
    parts += [f"beyond the paper, and not deciding: {c.told()}" for c in beside]
    return f"{head}. " + "; ".join(parts)


def again(record: Reproduction, stale: str = "", rerun: str = "") -> Reproduction:
    """The record with everything that follows from its figures computed once more."""
    measured = record.measured.model_copy(
        update={"rule": RULE, "checks": [complete(c) for c in record.measured.checks]}
    )
    whole = record.model_copy(update={"measured": measured, "stale": stale, "rerun": rerun})
    whole = whole.model_copy(update={"verdict": verdict_of(whole)})
    return whole.model_copy(update={"why": why_of(whole)})


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
