"""From samples to figures: means with bootstrap intervals, the aggregate quality, Pareto marks, results.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from tokenmill.bench.tasks import Task

RESAMPLES = 2000
FLOOR = 0.25  # a task the untouched model scores below this on says nothing about a cache: it does not count

QUALITY = (
    "quality: each task relative to the untouched model, 1 = as good. Needles and recall: score / untouched score. "
    "Continuation: exp(untouched nll - nll), the ratio of the probabilities given to each real token. "
    "Drift: exp(-KL). Tasks are averaged inside their family, weighted by their samples, "
    "(needle asked after, needle question seen, recall, continuation, drift), and families count equally. "
    f"A task on which the untouched model scores below {FLOOR} is shown but not counted."
)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, populate_by_name=True)


class Interval(Strict):
    mean: float
    low: float  # 95 % bootstrap interval over the samples
    high: float


class Figure(Interval):
    samples: int
    untouched: float
    difference: Interval  # this row minus the untouched model, paired sample by sample
    counts: bool = True  # in the aggregate quality


class Pace(Strict):
    """A speed, and the untouched model's, taken turn by turn in one run."""

    batch: int
    context: int
    value: float  # seconds (prefill) or tokens a second (decode)
    untouched: float
    ratio: float  # above 1 is faster than the untouched model, for both
    low: float  # of the ratio over the turns
    high: float


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
    against_constant: float | None = None  # quality minus that of skipping the same layers for every token, as many
    prefill: Pace | None = None
    decode: Pace | None = None
    pareto_bytes: bool = False
    pareto_speed: bool = False
    seconds: float = 0.0  # what measuring this row took, the shared reading left out


class Row(Strict):
    method: str
    spec: str
    budget: float | None
    metrics: Metrics


class Results(Strict):
    schema_: Literal[1] = Field(default=1, alias="schema")
    track: str
    model: str
    environment: dict[str, Any]
    rows: list[Row]


def bootstrap(values: Sequence[float], seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """The mean and its 95 % percentile interval; one sample has no spread to show."""
    return _interval(torch.tensor(values, dtype=torch.float64), _draws(len(values), seed, resamples))


def _draws(n: int, seed: int, resamples: int = RESAMPLES) -> torch.Tensor:
    return torch.randint(n, (resamples, n), generator=torch.Generator().manual_seed(seed))


def _interval(values: torch.Tensor, draws: torch.Tensor) -> Interval:
    means = values[draws].mean(1)
    return _percentiles(float(values.mean()), means)


def _percentiles(mean: float, resampled: torch.Tensor) -> Interval:
    low, high = torch.quantile(resampled, torch.tensor([0.025, 0.975], dtype=resampled.dtype)).tolist()
    return Interval(mean=mean, low=low, high=high)


def figure(task: Task, values: Sequence[float | None], untouched: Sequence[float | None], seed: int) -> Figure | None:
    """One task's figure, paired with the untouched model's; None if a sample gave no number."""
    if not values or len(values) != len(untouched) or any(v is None or not math.isfinite(v) for v in values):
        return None
    mine, full = (torch.tensor(v, dtype=torch.float64) for v in (values, untouched))
    draws = _draws(len(mine), seed)
    mean = float(full.mean())
    return Figure(
        **_interval(mine, draws).model_dump(),
        samples=len(mine),
        untouched=mean,
        difference=_interval(mine - full, draws),
        counts=task.measure in ("nll", "kl") or mean >= FLOOR,
    )


def _relative(task: Task, mine: torch.Tensor, full: torch.Tensor, base: float) -> torch.Tensor:
    """Means over samples -> how good relative to the untouched model."""
    if task.measure == "nll":
        return torch.exp(full - mine)
    if task.measure == "kl":
        return torch.exp(-mine)
    return mine / torch.where(full > 0, full, base)  # a resample may hold none of the samples it could do


def quality(
    tasks: Sequence[Task], values: Mapping[str, Sequence[float]], untouched: Mapping[str, Sequence[float]], seed: int
) -> tuple[Interval | None, dict[str, float]]:
    """The aggregate (see QUALITY) with its interval, and each family's share in it."""
    families: dict[str, list[tuple[int, float, torch.Tensor]]] = {}
    for number, task in enumerate(tasks):
        mine, full = (torch.tensor(v[task.name], dtype=torch.float64) for v in (values, untouched))
        base = float(full.mean())
        if task.measure in ("exact", "share") and base < FLOOR:
            continue
        draws = _draws(len(mine), seed + number)
        resampled = _relative(task, mine[draws].mean(1), full[draws].mean(1), base)
        relative = float(_relative(task, mine.mean(), full.mean(), base))
        families.setdefault(task.family, []).append((len(mine), relative, resampled))
    if not families:
        return None, {}
    means, spread = {}, torch.zeros(RESAMPLES, dtype=torch.float64)
    for name, parts in families.items():
        samples = sum(n for n, _, _ in parts)
        means[name] = sum(n * relative for n, relative, _ in parts) / samples
        for n, _, resampled in parts:
            spread += n * resampled / samples / len(families)
    return _percentiles(sum(means.values()) / len(means), spread), means


def pareto(quality: Sequence[float | None], cost: Sequence[float | None]) -> list[bool]:
    """Which points no other point beats: more quality at no more cost, or less cost at no less quality."""
    known = [(q, c) for q, c in zip(quality, cost, strict=True) if q is not None and c is not None]

    def best(q: float | None, c: float | None) -> bool:
        if q is None or c is None:
            return False
        return not any(oq >= q and oc <= c and (oq > q or oc < c) for oq, oc in known)

    return [best(q, c) for q, c in zip(quality, cost, strict=True)]


def size_of(row: Row) -> float | None:
    """What a row spends relative to the untouched model: layers where the track is about them, else bytes."""
    m = row.metrics
    return m.bytes_share if m.layers_share is None else m.layers_share


def mark(rows: Sequence[Row]) -> None:
    """Set the Pareto marks: quality against bytes (or layers), quality against decode speed."""
    good = [row.metrics.quality.mean if row.metrics.quality else None for row in rows]
    size = [size_of(row) for row in rows]
    slow = [1 / row.metrics.decode.ratio if row.metrics.decode else None for row in rows]
    for row, by_bytes, by_speed in zip(rows, pareto(good, size), pareto(good, slow), strict=True):
        row.metrics.pareto_bytes, row.metrics.pareto_speed = by_bytes, by_speed


def best_first(rows: Sequence[Row]) -> list[Row]:
    """The untouched model, then best quality first; rows without a quality last."""

    def place(row: Row) -> tuple[bool, float, float]:
        m = row.metrics
        size = size_of(row)
        return (row.method != "full", -(m.quality.mean if m.quality else -math.inf), 1.0 if size is None else size)

    return sorted(rows, key=place)


CONSTANT = "constant_skip"  # the plain rival of every depth method: the same layers skipped for every token


def set_against_constant(rows: Sequence[Row]) -> None:
    """How much better each row is than the rival that runs as many layers, on straight lines between its points.

    The untouched model is the rival's point at all layers; where it has no point on both sides, nothing is said.
    """
    known = sorted(
        (m.layers_share, m.quality.mean)
        for row in rows
        if row.method in ("full", CONSTANT) and (m := row.metrics).quality and m.layers_share is not None
    )
    for row in rows:
        m = row.metrics
        if row.method in ("full", CONSTANT) or m.quality is None or m.layers_share is None:
            continue
        for (left, low), (right, high) in pairwise(known):
            if left <= m.layers_share <= right and left < right:
                rival = low + (high - low) * (m.layers_share - left) / (right - left)
                m.against_constant = m.quality.mean - rival


# The engine keeps room for the next tokens (a constant): half the tokens are a little over half the bytes.
HALF = 0.55
WINNER = f"the best aggregate quality among the rows that hold at most about half ({HALF:.0%}) of the untouched bytes"


# Fewer operations than this are a saving that may show; above it, it drowns in the noise. Layers would not do: asking
# the model's head after a layer costs more than some layers.
SHALLOW = 0.9
SHALLOW_WINNER = f"the best aggregate quality among the rows that take at most {SHALLOW:.0%} of the operations"


def shallow_winner(rows: Sequence[Row]) -> Row | None:
    """See SHALLOW_WINNER; None if no row takes so few."""
    ranked = [row for row in best_first(rows) if row.method != "full" and row.metrics.quality]
    return next((row for row in ranked if (row.metrics.operations_share or 1.0) <= SHALLOW), None)


def winner(rows: Sequence[Row]) -> Row | None:
    """See WINNER; if no row holds so little, the best Pareto row that is not the untouched model."""
    ranked = [row for row in best_first(rows) if row.method != "full" and row.metrics.quality]
    small = [row for row in ranked if (row.metrics.bytes_share or 1.0) <= HALF]
    return next(iter(small or [row for row in ranked if row.metrics.pareto_bytes] or ranked), None)
