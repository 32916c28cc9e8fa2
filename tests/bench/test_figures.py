"""Intervals against scipy, Pareto marks by brute force, the aggregate by hand."""

import math
import random

import numpy as np
import pytest
import torch

from tokenmill.bench import figures
from tokenmill.bench.figures import Interval, Metrics, Pace, Row
from tokenmill.bench.tasks import Task


def task(name="t", family="f", measure="exact", samples=4):
    return Task(name, family, "needle", samples, 512, measure=measure)


@pytest.mark.parametrize("values", [[0, 1, 1, 0, 1, 1, 1, 0], [2.7, 2.9, 3.4, 2.2, 2.5, 3.0]])
def test_bootstrap_against_scipy(values):
    stats = pytest.importorskip("scipy.stats")
    mine = figures.bootstrap(values, seed=0, resamples=20_000)
    theirs = stats.bootstrap(
        (np.array(values, float),), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    spread = theirs.high - theirs.low
    assert mine.mean == pytest.approx(np.mean(values))
    # Means of few 0/1 samples come in steps: within one step.
    step = max(0.04 * spread, 1 / len(values) if set(values) <= {0, 1} else 0)
    assert abs(mine.low - theirs.low) <= step
    assert abs(mine.high - theirs.high) <= step


def test_bootstrap_is_seeded_and_ordered():
    values = torch.randn(12, generator=torch.Generator().manual_seed(0)).tolist()
    one, two, other = figures.bootstrap(values, 3), figures.bootstrap(values, 3), figures.bootstrap(values, 4)
    assert one == two != other
    assert one.low < one.mean < one.high
    assert figures.bootstrap([0.5]) == Interval(mean=0.5, low=0.5, high=0.5)


def test_figure_is_paired_with_the_untouched_model():
    made = figures.figure(task(), [1, 0, 1, 0], [1, 1, 1, 1], seed=0)
    assert (made.mean, made.untouched, made.difference.mean, made.samples, made.counts) == (0.5, 1.0, -0.5, 4, True)
    same = figures.figure(task(measure="nll"), [2.0, 3.0, 9.0], [1.0, 2.0, 8.0], seed=0)
    assert same.difference.low == same.difference.high == same.difference.mean == 1.0  # pairing removes the spread
    assert figures.figure(task(), [1, None], [1, 1], 0) is None
    assert figures.figure(task(), [1, math.inf], [1, 1], 0) is None
    assert not figures.figure(task(), [0, 0], [0, 0.25], 0).counts


def test_quality_by_hand():
    plan = [
        task("n1", "needle"),
        task("n2", "needle"),
        task("c", "continuation", "nll"),
        task("d", "drift", "kl"),
        task("impossible", "recall", "share"),
    ]
    full = {"n1": [1, 1], "n2": [1, 0, 1, 0], "c": [2.0, 4.0], "d": [0.0, 0.0], "impossible": [0.1, 0.1]}
    mine = {"n1": [1, 0], "n2": [0, 0, 0, 0], "c": [2.5, 4.5], "d": [0.1, 0.3], "impossible": [9.0, 9.0]}
    quality, families = figures.quality(plan, mine, full, seed=0)
    assert families == pytest.approx(
        {"needle": (2 * 0.5 + 4 * 0) / 6, "continuation": math.exp(-0.5), "drift": math.exp(-0.2)}
    )
    assert quality.mean == pytest.approx(sum(families.values()) / 3)
    assert quality.low <= quality.mean <= quality.high
    best, parts = figures.quality(plan, full, full, seed=0)
    assert set(parts.values()) == {1.0}
    assert best.mean == 1.0
    assert figures.quality(plan[4:], mine, full, 0) == (None, {})


def test_pareto_by_brute_force():
    rng = random.Random(0)
    for _ in range(200):
        points = [(rng.choice([None, 0, 1, 2, 3]), rng.choice([None, 0, 1, 2, 3])) for _ in range(rng.randrange(1, 12))]
        expected = []
        for q, c in points:
            beaten = q is None or c is None
            for oq, oc in points:
                if not beaten and oq is not None and oc is not None:
                    beaten = (oq >= q and oc < c) or (oq > q and oc <= c)
            expected.append(not beaten)
        assert figures.pareto([q for q, _ in points], [c for _, c in points]) == expected


def row(spec, quality, size, speed=1.0):
    method = spec.split("(")[0]
    q = None if quality is None else Interval(mean=quality, low=quality, high=quality)
    pace = Pace(batch=1, context=8, value=1, untouched=1, ratio=speed, low=speed, high=speed)
    return Row(method=method, spec=spec, budget=None, metrics=Metrics(quality=q, bytes_share=size, decode=pace))


def test_order_marks_and_winner():
    rows = [
        row("broken", None, 0.1),
        row("worse", 0.5, 0.5, 1.5),
        row("best", 0.9, 0.5, 1.2),
        row("big", 0.95, 0.8, 1.0),
        row("full", 1.0, 1.0, 1.0),
        row("tiny", 0.3, 0.1, 1.1),
    ]
    figures.mark(rows)
    ordered = figures.best_first(rows)
    assert [r.spec for r in ordered] == ["full", "big", "best", "worse", "tiny", "broken"]
    assert [r.spec for r in ordered if r.metrics.pareto_bytes] == ["full", "big", "best", "tiny"]
    assert [r.spec for r in ordered if r.metrics.pareto_speed] == ["full", "best", "worse"]
    assert figures.winner(rows).spec == "best"
    assert figures.winner([row("full", 1.0, 1.0)]) is None


def test_nan_is_never_written():
    with pytest.raises(ValueError, match="finite"):
        Interval(mean=math.nan, low=0, high=0)
