"""From samples to figures: intervals over texts, the aggregate quality, who can be told apart, results.json."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tokenmill.bench.statistics import (
    FEWEST,
    Interval,
    cluster_interval,
    difference_interval,
    matched_interval,
    mean_interval,
    sum_interval,
)
from tokenmill.bench.tasks import Task

FLOOR = 0.25  # a task the untouched model scores below this on says nothing about a cache: it does not count

QUALITY = (
    "quality: each task relative to the untouched model, 1 = as good. Needles and recall: score / untouched score. "
    "Continuation: exp(untouched nll - nll), the ratio of the probabilities given to each real token. "
    "Drift: exp(-KL). Tasks are averaged inside their family, weighted by their samples, "
    "(needle asked after, needle question seen, recall, continuation, drift), and families count equally. "
    f"A task on which the untouched model scores below {FLOOR} is shown but not counted. "
    "Intervals are 95 % intervals over texts (n): samples that share a text count as one, rows are compared on the "
    "same texts, and a family with one text gives no interval."
)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, populate_by_name=True)


def interval_text(i: Interval | None, digits: int = 2) -> str:
    """ "0.91 [0.85, 0.97]"; a dash in place of what is not known."""
    if i is None:
        return "–"
    bounds = "–" if i.low is None or i.high is None else f"[{i.low:.{digits}f}, {i.high:.{digits}f}]"
    return f"{i.mean:.{digits}f} {bounds}"


def sample_size(intervals: Iterable[Interval | None], unit: str = "") -> str:
    """For a heading, such as "n=22 texts": the rows' samples, the fewest and the most where they differ."""
    sizes = sorted({i.n for i in intervals if i is not None})
    return f"n={sizes[0]}{f'–{sizes[-1]}' if len(sizes) > 1 else ''} {unit}".rstrip() if sizes else ""


class Figure(Interval):
    """One task's figure over its samples, each of another text."""

    untouched: float
    difference: Interval  # this row minus the untouched model, paired sample by sample
    counts: bool = True  # in the aggregate quality


class Pace(Strict):
    """A speed, and the untouched model's, taken turn by turn in one run."""

    batch: int
    context: int
    value: float  # seconds (prefill) or tokens a second (decode), the median
    untouched: float
    ratio: float  # above 1 is faster than the untouched model, for both; the geometric mean over pairs of turns
    low: float | None
    high: float | None
    n: int  # pairs

    @property
    def interval(self) -> Interval:
        return Interval(mean=self.ratio, low=self.low, high=self.high, n=self.n, method="t of logarithms")


class Metrics(Strict):
    quality: Interval | None = None  # None: not measured, or a figure that is not a number
    tasks: dict[str, Figure | None] = {}
    families: dict[str, float] = {}
    bytes_share: float | None = (
        None  # bytes held at the end of the decode measurement's prompts / the untouched model's
    )
    bytes_held: int | None = None
    bytes_held_untouched: int | None = None
    peak_share: float | None = None  # most bytes held between passes while the prefill measurement's prompt is read
    layers_share: float | None = None  # layers run for a token after the prompt / the untouched model's
    operations_share: float | None = None  # products with weights for such a token, exit heads too / the untouched's
    against_constant: Interval | None = None  # quality minus that of skipping the same layers for every token, as many
    prefill: Pace | None = None
    decode: Pace | None = None
    pareto_bytes: bool = False
    pareto_speed: bool = False
    within_noise: bool = False  # of the best row that qualifies as the winner; the best is marked too unless alone
    seconds: float = 0.0  # what measuring this row took, the shared reading left out


class Row(Strict):
    method: str
    spec: str
    budget: float | None
    metrics: Metrics


class Choice(Strict):
    """The row with the best figure among those that qualify, and the rows it cannot be told apart from."""

    spec: str
    why: str
    rivals: list[str]  # their paired difference to `spec` is not distinguishable from 0, best first
    n: int  # independent samples that the comparison rests on
    unit: str = "texts"
    bounds: bool = True  # False: too few samples to tell rows apart

    @property
    def decided(self) -> bool:
        return self.bounds and not self.rivals

    def text(self, most: int = 6) -> str:
        """One line for the terminal, the report and recipe.toml."""
        if self.decided:
            return f"Winner ({self.why}): {self.spec} (n = {self.n} {self.unit})"
        if not self.bounds:
            return (
                f"Winner ({self.why}): none; {self.spec} has the best mean, but rows are not distinguishable: "
                f"n = {self.n} {self.unit}, "
                + ("too few to tell them apart" if self.n < FEWEST else "and one alone in its family gives no interval")
            )
        names = ", ".join(self.rivals[:most])
        more = f" and {len(self.rivals) - most} more" if len(self.rivals) > most else ""
        return (
            f"Winner ({self.why}): none; {self.spec} has the best mean, but is not distinguishable from {names}{more} "
            f"(n = {self.n} {self.unit})"
        )


class Results(Strict):
    schema_: Literal[2] = Field(default=2, alias="schema")
    track: str
    model: str
    environment: dict[str, Any]
    rows: list[Row]

    @property
    def winner(self) -> Choice | None:
        return winner_in(self.environment)


def winner_in(environment: Mapping[str, Any]) -> Choice | None:
    """The choice that a run has written down beside its rows."""
    found = environment["winner"]
    return None if found is None else Choice.model_validate(found)


def figure(task: Task, values: Sequence[float | None], untouched: Sequence[float | None]) -> Figure | None:
    """One task's figure, paired with the untouched model's; None if a sample gave no number."""
    if not values or len(values) != len(untouched) or any(v is None or not math.isfinite(v) for v in values):
        return None
    numbers, base = [float(v) for v in values if v is not None], [float(v) for v in untouched if v is not None]
    return Figure(
        **mean_interval(numbers).model_dump(),
        untouched=fmean(base),
        difference=difference_interval(numbers, base),
        counts=_counts(task, base),
    )


# ---- the aggregate quality --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stratum:
    """Texts that a row was measured on, apart from all other strata: families that share texts are in one stratum."""

    parts: dict[str, float]  # source -> how far it moves the aggregate from its mean; they sum to 0
    coarse: float  # the weight in the aggregate of answers that are right or wrong: few of them may hide their spread


@dataclass(frozen=True)
class Quality:
    """The aggregate of a row (see QUALITY), and what each text did to it."""

    mean: float
    families: dict[str, float]
    strata: dict[str, Stratum]

    def interval(self) -> Interval:
        """The aggregate's interval: a comparison with the untouched model, whose aggregate is 1. None is below 0."""
        found = _over_texts(self.mean, [(s.parts, s.coarse) for s in self.strata.values()])
        return found if found.low is None else found.model_copy(update={"low": max(0.0, found.low)})


def compared(weights: Sequence[tuple[float, Quality]]) -> Interval:
    """A weighted sum of aggregates measured on the same texts, with its interval: (1, a), (-1, b) is a minus b."""
    strata = []
    for name, first in weights[0][1].strata.items():
        parts = {t: math.fsum(w * q.strata[name].parts[t] for w, q in weights) for t in first.parts}
        strata.append((parts, first.coarse))
    return _over_texts(math.fsum(w * q.mean for w, q in weights), strata)


def _over_texts(mean: float, strata: Iterable[tuple[Mapping[str, float], float]]) -> Interval:
    spreads = []
    for parts, coarse in strata:
        n = len(parts)
        spread = cluster_interval([n * part for part in parts.values()], list(parts))
        if coarse and n > 1:
            # Equal answers on all of few questions do not prove that no question would be answered otherwise.
            none_differ = matched_interval(0, 0, n)
            wide = none_differ.model_copy(update={b: coarse * getattr(none_differ, b) for b in ("low", "high")})
            spread = max(spread, wide, key=lambda i: i.error() or 0.0)
        spreads.append(spread.model_copy(update={"mean": 0.0}))
    found = sum_interval(spreads)
    if found.low is None or found.high is None:
        return found.model_copy(update={"mean": mean})
    return found.model_copy(update={"mean": mean, "low": mean + found.low, "high": mean + found.high})


def quality(
    tasks: Sequence[Task], values: Mapping[str, Sequence[float]], untouched: Mapping[str, Sequence[float]]
) -> Quality | None:
    """The aggregate of a row; None if no task counts."""
    families: dict[str, list[Task]] = {}
    for task in tasks:
        if _counts(task, untouched[task.name]):
            families.setdefault(task.family, []).append(task)
    means: dict[str, float] = {}
    parts: dict[str, float] = {}
    stratum_of: dict[str, str] = {}  # source -> stratum
    coarse: dict[str, float] = {}
    for family, members in families.items():
        relative = {t.name: _relative(t, values[t.name], untouched[t.name]) for t in members}
        samples = sum(map(len, relative.values()))
        means[family] = math.fsum(v for each in relative.values() for v in each) / samples
        sources = [task.source(index) for task in members for index in range(len(relative[task.name]))]
        together = next((stratum_of[s] for s in sources if s in stratum_of), family)
        for source, value in zip(sources, (v for each in relative.values() for v in each), strict=True):
            stratum_of[source] = together
            parts[source] = parts.get(source, 0.0) + (value - means[family]) / samples / len(families)
        scores = [base for t in members if t.measure in ("exact", "share") for base in untouched[t.name]]
        coarse[together] = coarse.get(together, 0.0) + (1 / fmean(scores) / len(families) if scores else 0.0)
    if not families:
        return None
    strata = {
        name: Stratum({s: parts[s] for s, where in stratum_of.items() if where == name}, weight)
        for name, weight in coarse.items()
    }
    return Quality(fmean(means.values()), means, strata)


def _counts(task: Task, untouched: Sequence[float]) -> bool:
    return task.measure in ("nll", "kl") or fmean(untouched) >= FLOOR


def _relative(task: Task, values: Sequence[float], untouched: Sequence[float]) -> list[float]:
    """How good relative to the untouched model: one number a sample, whose mean is the task's figure.

    The figure is a ratio of means, or an exponential of one; the numbers are its straight line at the means.
    """
    if task.measure in ("nll", "kl"):
        gain = [(full if task.measure == "nll" else 0.0) - x for x, full in zip(values, untouched, strict=True)]
        middle = fmean(gain)
        return [math.exp(middle) * (1 + x - middle) for x in gain]
    base = fmean(untouched)
    ratio = fmean(values) / base
    return [ratio + (x - ratio * full) / base for x, full in zip(values, untouched, strict=True)]


# ---- who can be told apart --------------------------------------------------------------------------------------

Qualities = Mapping[str, Quality]  # by spec


def better(a: str, b: str, qualities: Qualities) -> bool:
    """Whether row `a` is better than row `b` by more than the noise of the texts; fewer than FEWEST tell nothing."""
    found = compared([(1, qualities[a]), (-1, qualities[b])])
    return found.n >= FEWEST and found.low is not None and found.low > 0


def undominated(
    specs: Sequence[str], no_dearer: Callable[[str, str], bool], better: Callable[[str, str], bool]
) -> dict[str, bool]:
    """Which rows are better, by more than the noise, than every other one that may cost no more than they do."""
    return {
        spec: all(better(spec, other) for other in specs if other != spec and no_dearer(other, spec)) for spec in specs
    }


def size_of(row: Row) -> float | None:
    """What a row spends relative to the untouched model: layers where the track is about them, else bytes."""
    m = row.metrics
    return m.bytes_share if m.layers_share is None else m.layers_share


ALIKE = 1.05  # sizes closer than this are one size: budgets are rounded to whole tokens


def mark(rows: Sequence[Row], qualities: Qualities) -> None:
    """Set the Pareto marks: quality against bytes (or layers), quality against decode speed.

    A row is marked if nothing that costs as little is, within the noise, as good.
    """
    known = {row.spec: row for row in rows if row.spec in qualities}
    size = {spec: s for spec, row in known.items() if (s := size_of(row)) is not None}
    pace = {spec: row.metrics.decode for spec, row in known.items() if row.metrics.decode}

    def as_fast(a: str, b: str) -> bool:
        high, low = pace[a].high, pace[b].low
        return high is None or low is None or high >= low

    tell = lambda a, b: better(a, b, qualities)
    by_size = undominated(list(size), lambda a, b: size[a] <= size[b] * ALIKE, tell)
    by_speed = undominated(list(pace), as_fast, tell)
    for row in rows:
        row.metrics.pareto_bytes = by_size.get(row.spec, False)
        row.metrics.pareto_speed = by_speed.get(row.spec, False)


def best_first(rows: Sequence[Row]) -> list[Row]:
    """The untouched model, then best quality first; rows without a quality last."""

    def place(row: Row) -> tuple[bool, float, float]:
        m = row.metrics
        size = size_of(row)
        return (row.method != "full", -(m.quality.mean if m.quality else -math.inf), 1.0 if size is None else size)

    return sorted(rows, key=place)


CONSTANT = "constant_skip"  # the plain rival of every depth method: the same layers skipped for every token


def set_against_constant(rows: Sequence[Row], qualities: Qualities) -> None:
    """How much better each row is than the rival that runs as many layers, on straight lines between its points.

    The untouched model is the rival's point at all layers; where it has no point on both sides, nothing is said.
    """
    known = sorted(
        (m.layers_share, row.spec)
        for row in rows
        if row.method in ("full", CONSTANT) and (m := row.metrics).quality and m.layers_share is not None
    )
    for row in rows:
        m = row.metrics
        if row.method in ("full", CONSTANT) or m.quality is None or m.layers_share is None:
            continue
        for (left, low), (right, high) in pairwise(known):
            if left <= m.layers_share <= right and left < right:
                share = (m.layers_share - left) / (right - left)
                rival = [(share - 1, qualities[low]), (-share, qualities[high])]
                m.against_constant = compared([(1, qualities[row.spec]), *rival])


# The engine keeps room for the next tokens (a constant): half the tokens are a little over half the bytes.
HALF = 0.55
WINNER = f"the best aggregate quality among the rows that hold at most about half ({HALF:.0%}) of the untouched bytes"
ANY_SIZE = "the best aggregate quality; no row holds as little as half of the untouched bytes"

# Fewer operations than this are a saving that may show; above it, it drowns in the noise. Layers would not do: asking
# the model's head after a layer costs more than some layers.
SHALLOW = 0.9
SHALLOW_WINNER = f"the best aggregate quality among the rows that take at most {SHALLOW:.0%} of the operations"


def winner(rows: Sequence[Row], qualities: Qualities) -> Choice | None:
    """See WINNER (compare cache) and ANY_SIZE; None if there is no row but the untouched model."""
    ranked = [row for row in best_first(rows) if row.method != "full" and row.spec in qualities]
    small = [row for row in ranked if (row.metrics.bytes_share or 1.0) <= HALF]
    return choose(small or ranked, qualities, WINNER if small else ANY_SIZE)


def shallow_winner(rows: Sequence[Row], qualities: Qualities) -> Choice | None:
    """See SHALLOW_WINNER (compare depth); None if no row takes so few."""
    ranked = [row for row in best_first(rows) if row.method != "full" and row.spec in qualities]
    return choose(
        [row for row in ranked if (row.metrics.operations_share or 1.0) <= SHALLOW], qualities, SHALLOW_WINNER
    )


def choose(ranked: Sequence[Row], qualities: Qualities, why: str) -> Choice | None:
    """The first row, and those that it is not better than by more than the noise; all of them are marked."""
    if not ranked:
        return None
    best = ranked[0]
    rivals = [row for row in ranked[1:] if not better(best.spec, row.spec, qualities)]
    for row in [best, *rivals] if rivals else ():
        row.metrics.within_noise = True
    found = qualities[best.spec].interval()
    enough = found.low is not None and found.n >= FEWEST
    return Choice(
        spec=best.spec, why=why, rivals=[r.spec for r in rivals], n=found.n, bounds=enough or len(ranked) == 1
    )
