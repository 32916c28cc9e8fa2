"""From numbers to a verdict, by rule; nobody writes one by hand.

A check compares the method with a rival (or with a plain number) on the same samples:

    d = mean over samples of (method - rival),  with a 95 % bootstrap interval over the samples
    lower is better:   holds  <=>  high(d) < margin
    higher is better:  holds  <=>  low(d) > -margin

margin 0 reads "better than the rival", a positive one "worse by less than the margin". A check is out of reach if
the untouched model cannot do its task, if there are fewer than three samples, or if the machine or model lacks what
it needs. A claim holds if all its checks do, fails if any check fails, and is out of reach otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from tokenmill.bench.figures import Interval, bootstrap

LEAST = 3  # samples below which an interval says nothing
NEAR = 0.1  # nats a token: what "as good as the untouched model" may cost, about a tenth more perplexity
RULE = (
    "each check compares means over the same samples; it holds if the 95 % bootstrap interval of the difference lies "
    "wholly on the claimed side of its margin, and fails otherwise. The claim holds if every check does, fails if one "
    "fails, and is out of reach if none fails but one cannot be made here"
)

Outcome = Literal["holds", "fails", "out-of-reach"]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Check(Strict):
    """One comparison. `outcome` follows from the other fields: see `judged`."""

    what: str  # quantity and setting, with its unit
    method: str  # spec of what is claimed to be better
    rival: str  # spec, or what a plain number is
    better: Literal["lower", "higher"]
    margin: float = Field(default=0.0, ge=0)
    samples: int
    value: float | None = None
    rival_value: float | None = None
    difference: Interval | None = None  # method - rival, paired
    lacking: str = ""  # what the check needs and does not have here
    outcome: Outcome = "out-of-reach"

    def told(self) -> str:
        """The check in one sentence."""
        if self.outcome == "out-of-reach":
            return f"{self.what}: {self.lacking}"
        if self.difference is None:
            return f"{self.what}: {self.method} gave a number that is not finite"
        d, side = self.difference, "above" if self.better == "higher" else "below"
        bound = self.margin if self.better == "lower" else 0.0 - self.margin
        return (
            f"{self.what}: {self.method} {self.value:.4g}, {self.rival} {self.rival_value:.4g}, difference "
            f"{d.mean:+.3g} [{d.low:+.3g}, {d.high:+.3g}], claimed {side} {bound:g}: {self.outcome}"
        )


def judged(check: Check) -> Outcome:
    """The rule for one check."""
    if check.lacking:
        return "out-of-reach"
    if check.difference is None:
        return "fails"
    if check.better == "lower":
        return "holds" if check.difference.high < check.margin else "fails"
    return "holds" if check.difference.low > -check.margin else "fails"


def check(
    what: str,
    method: tuple[str, Sequence[float]],
    rival: tuple[str, Sequence[float]],
    better: Literal["lower", "higher"],
    *,
    margin: float = 0.0,
    lacking: str = "",
) -> Check:
    """Compare two columns of numbers, sample by sample; NaN in a column is a method that broke."""
    (name, values), (rival_name, rival_values) = method, rival
    differences = [a - b for a, b in zip(values, rival_values, strict=True)]
    if not lacking and len(differences) < LEAST:
        lacking = f"only {len(differences)} samples, and fewer than {LEAST} have no interval; give more --seeds"
    made: dict[str, Any] = {"what": what, "method": name, "rival": rival_name, "better": better, "margin": margin}
    if differences and all(map(math.isfinite, differences)):
        made |= {
            "value": sum(values) / len(values),
            "rival_value": sum(rival_values) / len(rival_values),
            "difference": bootstrap(differences),
        }
    out = Check(**made, samples=len(differences), lacking=lacking)
    return out.model_copy(update={"outcome": judged(out)})


def overall(checks: Sequence[Check]) -> Outcome:
    """The rule for a claim."""
    outcomes = [judged(c) for c in checks]
    if "fails" in outcomes:
        return "fails"
    return "holds" if outcomes and "out-of-reach" not in outcomes else "out-of-reach"


class Reproduction(Strict):
    """The file `tokenmill reproduce` writes about one method."""

    method: str
    title: str
    claim: str
    paper_figure: str  # what the paper reports, on its models
    measured: dict[str, Any]  # {"rule", "checks": [...], "figures": {spec: {quantity: mean}}}
    baseline: dict[str, dict[str, float]]  # {rival: {quantity: mean}}
    verdict: Outcome
    why: str
    environment: dict[str, Any]
    seeds: list[int]


def mean(values: Sequence[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).mean())
