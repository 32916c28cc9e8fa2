"""The aggregate by hand, what its intervals cover, marks by brute force, and that noise names no winner."""

import math
import random

import pytest

from tokenmill.bench import figures
from tokenmill.bench.figures import Metrics, Pace, Quality, Row, Stratum
from tokenmill.bench.statistics import Interval
from tokenmill.bench.tasks import Task


def task(name="t", family="f", measure="exact", samples=4, kind="needle", length=512, **more):
    return Task(name, family, kind, samples, length, measure=measure, **more)


def test_figure_is_paired_with_the_untouched_model():
    made = figures.figure(task(), [1, 0, 1, 0], [1, 1, 1, 1])
    assert (made.mean, made.untouched, made.difference.mean, made.n, made.counts) == (0.5, 1.0, -0.5, 4, True)
    assert made.method == "Wilson"
    same = figures.figure(task(measure="nll"), [2.0, 3.0, 9.0], [1.0, 2.0, 8.0])
    assert same.difference.low == same.difference.high == same.difference.mean == 1.0  # pairing removes the spread
    assert figures.figure(task(), [1, None], [1, 1]) is None
    assert figures.figure(task(), [1, math.inf], [1, 1]) is None
    assert not figures.figure(task(), [0, 0], [0, 0.25]).counts


def test_one_sample_has_no_interval():
    alone = figures.figure(task(measure="nll", samples=1), [2.0], [1.0])
    assert (alone.n, alone.low, alone.high, alone.difference.low) == (1, None, None, None)
    assert figures.interval_text(alone) == "2.00 –"
    # One text in one family leaves the aggregate without an interval, however many the others have.
    plan = [task("c", "continuation", "nll"), task("d", "drift", "kl", kind="drift")]
    full = {"c": [1.0] * 9, "d": [0.0]}
    assert figures.quality(plan, {"c": [1.5] * 9, "d": [0.2]}, full).interval().low is None


def test_quality_by_hand():
    plan = [
        task("n1", "needle", length=1),
        task("n2", "needle", length=2),
        task("c", "continuation", "nll", kind="continuation"),
        task("d", "drift", "kl", kind="drift"),
        task("impossible", "recall", "share", kind="recall"),
    ]
    full = {"n1": [1, 1], "n2": [1, 0, 1, 0], "c": [2.0, 4.0], "d": [0.0, 0.0], "impossible": [0.1, 0.1]}
    mine = {"n1": [1, 0], "n2": [0, 0, 0, 0], "c": [2.5, 4.5], "d": [0.1, 0.3], "impossible": [9.0, 9.0]}
    made = figures.quality(plan, mine, full)
    assert made.families == pytest.approx(
        {"needle": (2 * 0.5 + 4 * 0) / 6, "continuation": math.exp(-0.5), "drift": math.exp(-0.2)}
    )
    found = made.interval()
    assert made.mean == found.mean == pytest.approx(sum(made.families.values()) / 3)
    assert found.low < found.mean < found.high
    assert found.n == 6 + 2 + 2
    for stratum in made.strata.values():
        assert sum(stratum.parts.values()) == pytest.approx(0)
    best = figures.quality(plan, full, full)
    assert (set(best.families.values()), best.mean) == ({1.0}, 1.0)
    assert figures.quality(plan[4:], mine, full) is None


def test_samples_of_one_text_count_once():
    """The needle tasks ask about the same texts twice: twice the questions are not twice the evidence."""
    plan = [task("after", "needle_after"), task("seen", "needle_seen")]
    full = {"after": [1.0] * 12, "seen": [1.0] * 12}
    answers = [1, 0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 1]
    twice = figures.quality(plan, {"after": answers, "seen": answers}, full).interval()
    once = figures.quality(plan[:1], {"after": answers}, {"after": full["after"]}).interval()
    assert (twice.n, once.n) == (12, 12)
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))
    own = [task("c", "own_continuation", "nll", own_text=True), task("d", "own_drift", "kl", kind="d", own_text=True)]
    values = {"c": [1.0, 2.0, 3.0], "d": [0.1, 0.2, 0.3]}
    assert figures.quality(own, values, {"c": [1.0] * 3, "d": [0.0] * 3}).interval().n == 3


def test_few_right_answers_do_not_prove_that_two_rows_are_alike():
    plan = [task("n", "needle")]
    ones = {"n": [1.0] * 8}
    found = figures.compared([(1, figures.quality(plan, ones, ones)), (-1, figures.quality(plan, ones, ones))])
    assert found.low < -0.1 < 0.1 < found.high


# ---- what the intervals cover, and how often noise is called a winner: a run is drawn again and again

PLAN = [
    task("after", "needle_after"), task("seen", "needle_seen"), task("recall", "recall", "share", kind="recall"),
    task("c", "continuation", "nll", kind="continuation"), task("d", "drift", "kl", kind="drift"),
]  # fmt: skip
FULL = {"after": 0.95, "seen": 0.9, "recall": 0.9}


def drawn(rng, rows, each=3):
    """The figures of a run: rows that differ by noise alone on the same texts. (untouched, rows)"""
    full, made = {t.name: [] for t in PLAN}, [{t.name: [] for t in PLAN} for _ in range(rows)]
    for _ in range(each):
        hard = rng.gauss(0, 1)  # of the text, the same for all rows
        full["c"].append(3 + hard)
        full["d"].append(0.0)
        for name, share in FULL.items():
            full[name].append(float(rng.random() < share) if name != "recall" else share)
        for values in made:
            values["c"].append(full["c"][-1] + 0.2 + 0.2 * rng.gauss(0, 1))
            values["d"].append(0.3 * rng.lognormvariate(0, 0.5))
            values["recall"].append(max(0.0, min(1.0, 0.6 + 0.2 * rng.gauss(0, 1))))
            values["after"].append(float(rng.random() < 0.5))
            values["seen"].append(max(values["after"][-1], float(rng.random() < 0.4)))
    return full, made


def test_intervals_of_a_difference_cover_it():
    rng, covered, runs = random.Random(5), 0, 600
    for _ in range(runs):
        full, (a, b) = drawn(rng, 2)
        found = figures.compared([(1, figures.quality(PLAN, a, full)), (-1, figures.quality(PLAN, b, full))])
        covered += found.low <= 0 <= found.high
    assert covered / runs > 0.93


def test_noise_is_seldom_called_a_winner():
    rng, named, runs = random.Random(2), 0, 300
    for _ in range(runs):
        full, made = drawn(rng, 5)
        rows = [row(f"m{n}", 0.5, 0.5) for n in range(5)]
        qualities = {f"m{n}": figures.quality(PLAN, values, full) for n, values in enumerate(made)}
        for one in rows:
            one.metrics.quality = qualities[one.spec].interval()
        named += figures.winner(rows, qualities).decided
    assert named / runs < 0.05


def test_a_row_that_is_much_better_is_named():
    rng = random.Random(3)
    full, made = drawn(rng, 3, each=6)
    made[1]["c"] = [x - 0.9 for x in made[1]["c"]]
    made[1]["d"] = [x / 50 for x in made[1]["d"]]
    made[1] |= {"after": full["after"], "seen": full["seen"], "recall": full["recall"]}
    qualities = {f"m{n}": figures.quality(PLAN, values, full) for n, values in enumerate(made)}
    rows = [row(f"m{n}", qualities[f"m{n}"].mean, 0.5) for n in range(3)]
    found = figures.winner(rows, qualities)
    assert (found.spec, found.rivals, found.decided) == ("m1", [], True)
    assert found.text().startswith("Winner (")
    assert not any(r.metrics.within_noise for r in rows)


# ---- marks


def exactly(mean, texts=12, noise=0.0):
    """An aggregate over so many texts that moves each by +-noise."""
    parts = {str(n): (noise if n % 2 else -noise) / texts for n in range(texts)}
    return Quality(mean, {}, {"s": Stratum(parts, 0.0)})


def test_undominated_by_brute_force():
    rng = random.Random(0)
    for _ in range(200):
        points = {str(n): (rng.randrange(4), rng.randrange(4)) for n in range(rng.randrange(1, 12))}
        as_small = lambda a, b, points=points: points[a][1] <= points[b][1]
        found = figures.undominated(list(points), as_small, lambda a, b, points=points: points[a][0] > points[b][0])
        for spec, (q, c) in points.items():
            beaten = any(other != spec and oq >= q and oc <= c for other, (oq, oc) in points.items())
            assert found[spec] == (not beaten)


def row(spec, quality, size, speed=1.0):
    method = spec.split("(")[0]
    q = None if quality is None else Interval(mean=quality, low=quality, high=quality, n=12, method="t")
    pace = Pace(batch=1, context=8, value=1, untouched=1, ratio=speed, low=speed - 0.01, high=speed + 0.01, n=8)
    return Row(method=method, spec=spec, budget=None, metrics=Metrics(quality=q, bytes_share=size, decode=pace))


def six():
    rows = [
        row("broken", None, 0.1),
        row("worse", 0.5, 0.5, 1.5),
        row("best", 0.9, 0.5, 1.2),
        row("big", 0.95, 0.8, 1.0),
        row("full", 1.0, 1.0, 1.0),
        row("tiny", 0.3, 0.1, 1.1),
    ]
    return rows, {r.spec: r.metrics.quality.mean for r in rows if r.metrics.quality}


def test_order_marks_and_winner():
    rows, means = six()
    qualities = {spec: exactly(mean) for spec, mean in means.items()}
    figures.mark(rows, qualities)
    ordered = figures.best_first(rows)
    assert [r.spec for r in ordered] == ["full", "big", "best", "worse", "tiny", "broken"]
    assert [r.spec for r in ordered if r.metrics.pareto_bytes] == ["full", "big", "best", "tiny"]
    assert [r.spec for r in ordered if r.metrics.pareto_speed] == ["full", "best", "worse"]
    found = figures.winner(rows, qualities)
    assert (found.spec, found.rivals, found.decided, found.n) == ("best", [], True, 12)
    assert figures.winner([row("full", 1.0, 1.0)], {"full": exactly(1.0)}) is None


def test_nothing_is_marked_or_named_within_the_noise():
    rows, means = six()
    qualities = {spec: exactly(mean, noise=5.0 * (n % 2)) for n, (spec, mean) in enumerate(means.items())}
    figures.mark(rows, qualities)
    assert [r.spec for r in rows if r.metrics.pareto_bytes] == ["tiny"]  # nothing else is as small
    found = figures.winner(rows, qualities)
    assert (found.spec, found.rivals, found.decided) == ("best", ["worse", "tiny"], False)
    assert {r.spec for r in rows if r.metrics.within_noise} == {"best", "worse", "tiny"}
    assert found.text() == (
        f"Winner ({figures.WINNER}): none; best has the best mean, but is not distinguishable from worse, tiny "
        "(n = 12 texts)"
    )


def test_no_quality_is_below_0():
    found = exactly(0.2, noise=5.0).interval()
    assert (found.low, found.mean) == (0.0, 0.2)
    assert found.high > 1


def test_few_texts_name_nobody_however_small_their_spread():
    rows, means = six()
    qualities = {spec: exactly(mean, texts=7) for spec, mean in means.items()}
    figures.mark(rows, qualities)
    assert [r.spec for r in rows if r.metrics.pareto_bytes] == ["tiny"]
    found = figures.winner(rows, qualities)
    assert not found.decided
    assert "n = 7 texts, too few" in found.text()


def test_a_family_with_one_text_names_nobody():
    plan = [task("c", "continuation", "nll"), task("d", "drift", "kl", kind="drift")]
    full = {"c": [1.0] * 9, "d": [0.0]}
    qualities = {name: figures.quality(plan, {"c": [x] * 9, "d": [0.2]}, full) for name, x in (("a", 1.1), ("b", 3.0))}
    found = figures.winner([row("a", 0.9, 0.5), row("b", 0.2, 0.5)], qualities)
    assert not found.decided
    assert "n = 10 texts, and one alone in its family gives no interval" in found.text()


def test_rows_of_one_size_or_one_speed_are_rivals():
    a, b = row("a", 0.9, 0.500, 1.00), row("b", 0.8, 0.495, 1.01)  # b is smaller and faster by nothing that counts
    figures.mark([a, b], {"a": exactly(0.9), "b": exactly(0.8)})
    assert (a.metrics.pareto_bytes, b.metrics.pareto_bytes) == (True, False)
    assert (a.metrics.pareto_speed, b.metrics.pareto_speed) == (True, False)


def test_nan_is_never_written():
    with pytest.raises(ValueError, match="finite"):
        Interval(mean=math.nan, low=0, high=0, n=2, method="t")
