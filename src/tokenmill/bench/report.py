"""report.html: one file that opens offline. Plots are SVG drawn here; a little script sorts and draws tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from tokenmill.bench.figures import Choice, Pace, Results, Row, interval_text, size_of
from tokenmill.bench.statistics import Interval

HERE = Path(__file__).parent
FAMILIES = {
    "needle_after": ("needle, asked after", "share of hidden codes recalled; the question comes after the choice"),
    "needle_seen": ("needle, question seen", "share of hidden codes recalled; the question was read before the choice"),
    "recall": ("list recall", "share of the items of a list, read earlier, that are copied right"),
    "continuation": ("nll", "negative log-likelihood a token of the real text that follows, in nats; lower is better"),
    "drift": (
        "drift",
        "KL divergence from the untouched model over its own continuation, nats a token; lower is better",
    ),
    "own_continuation": ("nll, own text", "the same on your own text"),
    "own_drift": ("drift, own text", "the same on your own text"),
}


@dataclass(frozen=True)
class Column:
    """One family of tasks: the mean over its samples."""

    family: str
    title: str
    about: str
    tasks: tuple[str, ...]

    def value(self, row: Row) -> float | None:
        figures = [f for task in self.tasks if (f := row.metrics.tasks.get(task))]
        if len(figures) < len(self.tasks):
            return None
        return sum(f.mean * f.n for f in figures) / sum(f.n for f in figures)

    def samples(self, row: Row) -> int | None:
        """Samples of all its tasks together; None if one gave no number."""
        figures = [f for task in self.tasks if (f := row.metrics.tasks.get(task))]
        return sum(f.n for f in figures) if len(figures) == len(self.tasks) else None

    def text(self, row: Row) -> str:
        value = self.value(row)
        return "–" if value is None else "<0.01" if 0 < value < 0.005 else f"{value:.2f}"


def columns(results: Results) -> list[Column]:
    """The families that were measured, in the order of the plan."""
    names: dict[str, list[str]] = {}
    for task in results.environment["tasks"]:
        names.setdefault(task["family"], []).append(task["name"])
    return [Column(family, *FAMILIES.get(family, (family, "")), tuple(tasks)) for family, tasks in names.items()]


# ---- plots ------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 600, 400, 52, 20, 18, 48


@dataclass(frozen=True)
class Point:
    row: Row
    x: float
    best: bool


def scatter(points: Sequence[Point], x_title: str, *, better: str) -> str:
    """Quality against something, as SVG: the front as a line, its points named, every point with its interval."""
    if not points:
        return '<p class="soft">not measured</p>'
    xs = [p.x for p in points]
    low, high = (0.0, max(1.05, *xs)) if better == "left" else _padded(min(1.0, *xs), max(1.0, *xs))
    floor, ceiling = _padded(min(0.0, *(_quality(p.row) for p in points)), max(1.0, *(_quality(p.row) for p in points)))
    floor = min(floor, 0.0) if min(_quality(p.row) for p in points) < 0 else 0.0
    across = lambda x: LEFT + (x - low) / (high - low) * (WIDTH - LEFT - RIGHT)
    up = lambda y: HEIGHT - BOTTOM - (min(y, ceiling) - floor) / (ceiling - floor) * (HEIGHT - TOP - BOTTOM)
    out = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="quality against {escape(x_title)}">']
    for x in _ticks(low, high):
        label = f"{x:.0%}" if better == "left" else f"{x:g}×"
        out.append(f'<line class="axis" x1="{across(x):.1f}" x2="{across(x):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        out.append(f'<text x="{across(x):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{label}</text>')
    for y in _ticks(floor, ceiling):
        out.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(y):.1f}" y2="{up(y):.1f}"/>')
        out.append(f'<text x="{LEFT - 8}" y="{up(y) + 4:.1f}" text-anchor="end">{y:g}</text>')
    out.append(f'<line class="one" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(1):.1f}" y2="{up(1):.1f}"/>')
    if better == "right":
        out.append(f'<line class="one" x1="{across(1):.1f}" x2="{across(1):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    out.append(f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x_title)}</text>')
    out.append(
        f'<text transform="rotate(-90)" x="{-(TOP + HEIGHT - BOTTOM) / 2}" y="14" text-anchor="middle">'
        "quality, relative to the untouched model</text>"
    )
    front = sorted((p for p in points if p.best), key=lambda p: p.x)
    line = " ".join(f"{across(p.x):.1f},{up(_quality(p.row)):.1f}" for p in front)
    out.append(f'<polyline class="front" points="{line}"/>')
    for p in sorted(points, key=lambda p: p.best):
        q, x = p.row.metrics.quality, across(p.x)
        assert q is not None
        kind = " best" * p.best + " full" * (p.row.method == "full")
        out.append(
            f'<g class="point{kind}" data-method="{escape(p.row.method)}"><title>{escape(_told(p.row))}</title>'
            f"{_whisker(q, x, up, floor)}"
            f'<circle class="dot" cx="{x:.1f}" cy="{up(q.mean):.1f}" r="{5.5 if p.best else 4}"/></g>'
        )
    taken = [(across(p.x) - 6, up(_quality(p.row)) - 6, across(p.x) + 6, up(_quality(p.row)) + 6) for p in points]
    for p in front:
        out.append(_label(_short(p.row), across(p.x), up(_quality(p.row)), taken))
    return "".join([*out, "</svg>"])


def _whisker(q: Interval, x: float, up: Callable[[float], float], floor: float) -> str:
    if q.low is None or q.high is None:
        return ""
    return f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{up(max(q.low, floor)):.1f}" y2="{up(q.high):.1f}"/>'


def _label(name: str, x: float, y: float, taken: list[tuple[float, float, float, float]]) -> str:
    """The name beside its point, at the first place that covers no point and no other name."""
    wide = 6.6 * len(name)
    places = [
        (x + dx if dx > 0 else x + dx - wide, y + dy)
        for r in (0, 14, 28, 42)
        for dx in (10, -10)
        for dy in (4 - r, 4 + r)
    ]
    inside = [(a, b) for a, b in places if a > LEFT and a + wide < WIDTH - 2 and TOP - 6 < b < HEIGHT - BOTTOM]
    free = lambda a, b: not any(a < r and c < a + wide and b - 10 < d and u < b + 3 for c, u, r, d in taken)
    a, b = next(((a, b) for a, b in inside if free(a, b)), (inside or places)[0])
    taken.append((a, b - 10, a + wide, b + 3))
    return f'<text class="name" x="{a:.1f}" y="{b:.1f}">{escape(name)}</text>'


def _quality(row: Row) -> float:
    assert row.metrics.quality is not None
    return row.metrics.quality.mean


def _padded(low: float, high: float) -> tuple[float, float]:
    room = 0.06 * (high - low) or 0.1
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    step = next((s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1, 2, 5, 10) if (high - low) / s <= 7), 20)
    first = int(low // step) + (low % step > 1e-9)
    return [round(n * step, 6) for n in range(first, int(high / step + 1e-9) + 1)]


def _short(row: Row) -> str:
    return "untouched" if row.method == "full" else row.spec.replace("budget=", "").replace("score=", "")


def _told(row: Row) -> str:
    m = row.metrics
    parts = [_short(row) if row.method == "full" else row.spec]
    if m.quality:
        parts.append(f"quality {interval_text(m.quality, 3)} (n = {m.quality.n})")
    if m.bytes_share is not None:
        parts.append(f"bytes {m.bytes_share:.1%}")
    parts += [
        f"{name} {interval_text(pace.interval)}"
        for name, pace in (("decode", m.decode), ("prefill", m.prefill))
        if pace
    ]
    return ", ".join(parts)


# The columns of compare depth alone: heading, and what it is.
DEPTH = (
    ("operations", "products with weights for a token after the prompt, exit heads included, share of the untouched"),
    ("vs constant", "quality minus that of skipping as many layers, the same ones, for every token"),
)
# What a track spends: the heading of its column, and what it is.
SPENT = (("bytes", "bytes held, share of the untouched cache"), ("layers", "layers run for a token, share of all"))


def pareto_plots(results: Results) -> tuple[str, str]:
    """Quality against bytes, quality against decode speed, as two SVG pictures."""
    rows = [row for row in results.rows if row.metrics.quality]
    size = [Point(r, s, r.metrics.pareto_bytes) for r in rows if (s := size_of(r)) is not None]
    fast = [Point(r, r.metrics.decode.ratio, r.metrics.pareto_speed) for r in rows if r.metrics.decode]
    return (
        scatter(size, SPENT[results.track == "depth"][1], better="left"),
        scatter(fast, "decode speed, untouched model = 1", better="right"),
    )


def standalone_svg(svg: str) -> str:
    """A plot as a file of its own (for a README): the page's light colours, a white ground."""
    style = (
        "svg{--ink:#1c2430;--soft:#5b6675;--line:#dfe4ea;--accent:#0b6bcb;--dot:#aab4c0;--mark:#d9480f;background:#fff}"
        + "".join(
            line for line in (HERE / "report.css").read_text(encoding="utf-8").splitlines() if line.startswith("svg ")
        )
    )
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(
        ">", f"><style>{style}</style>", 1
    )


# ---- tables -----------------------------------------------------------------------------------------------------


def _table(results: Results) -> str:
    shown = columns(results)
    heads = [
        ("method", ""),
        (
            "",
            f"● nothing of as few {SPENT[results.track == 'depth'][0]} is as good within the noise, "
            "◆ nothing as fast is, ≈ within noise of the best row that qualifies as the winner",
        ),
        ("quality", "1 = as the untouched model; 95 % interval over texts, and their number"),
    ]
    deep = results.track == "depth"
    heads += [SPENT[deep], *(DEPTH if deep else ())]
    heads += [(c.title, c.about) for c in shown]
    heads += [
        ("decode", "tokens a second, ratio to the untouched model"),
        ("prefill", "speed, ratio to the untouched model"),
    ]
    head = "".join(f'<th class="sort" title="{escape(about)}">{escape(name)}</th>' for name, about in heads)
    body = []
    for row in results.rows:
        m = row.metrics
        marks = "●" * m.pareto_bytes + "◆" * m.pareto_speed + "≈" * m.within_noise
        cells = [
            _cell(row.spec, f'<span class="spec">{escape("untouched" if row.method == "full" else row.spec)}</span>'),
            _cell(len(marks), f'<span class="mark">{marks}</span>'),
            _cell(
                m.quality and m.quality.mean,
                f"{m.quality.mean:.3f} {_range(m.quality)}" if m.quality else "–",
            ),
            _cell(size_of(row), f"{size:.1%}" if (size := size_of(row)) is not None else "–"),
            *(depth_cells(row) if deep else ()),
            *(_cell(c.value(row), c.text(row), _detail(row, c)) for c in shown),
            *(
                _cell(
                    p and p.ratio,
                    f"{p.ratio:.2f}× {_range(p.interval)}" if p else "–",
                    _pace(p, unit) if p else "",
                )
                for p, unit in ((m.decode, "tokens/s"), (m.prefill, "s"))
            ),
        ]
        kind = ' class="full"' if row.method == "full" else ""
        body.append(f'<tr{kind} data-method="{escape(row.method)}">{"".join(cells)}</tr>')
    return f'<table id="rows"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'


def depth_cells(row: Row) -> tuple[str, str]:
    """The columns DEPTH of a row."""
    m = row.metrics
    rival = m.against_constant
    return (
        _cell(m.operations_share, f"{m.operations_share:.0%}" if m.operations_share is not None else "–"),
        _cell(rival and rival.mean, f"{rival.mean:+.2f} {_range(rival)}" if rival else "–"),
    )


def _cell(value: object, text: str, title: str = "") -> str:
    return f'<td data-value="{escape("" if value is None else str(value))}" title="{escape(title)}">{text}</td>'


def _range(i: Interval) -> str:
    bounds = "" if i.low is None or i.high is None else f"[{i.low:.2f}, {i.high:.2f}] "
    return f'<span class="range">{bounds}n={i.n}</span>'


def _detail(row: Row, column: Column) -> str:
    lines = []
    for task in column.tasks:
        f = row.metrics.tasks.get(task)
        lines.append(
            f"{task}: {interval_text(f, 3)}, untouched {f.untouched:.3f}, n = {f.n}" if f else f"{task}: not a number"
        )
    return "\n".join(lines)


def _pace(pace: Pace, unit: str) -> str:
    return (
        f"{pace.value:.3g} {unit}, untouched {pace.untouched:.3g} {unit} "
        f"(batch {pace.batch}, context {pace.context}); {pace.n} pairs of turns"
    )


def _heat(results: Results) -> str:
    """Method by budget, one table for the families and one for each task."""
    rows = [row for row in results.rows if row.method != "full"]
    methods = list(dict.fromkeys(method_of(row) for row in rows))
    budgets: list[float | None] = [*sorted({r.budget for r in rows if r.budget is not None}, reverse=True)] or [None]
    by_place = {(method_of(row), row.budget): row for row in rows}
    full = results.rows[0]

    def grid(name: str, groups: list[tuple[str, str, Callable[[Row], tuple[float | None, str]]]], hidden: bool) -> str:
        top = "".join(
            f'<th class="group" colspan="{len(budgets)}" title="{escape(a)}">{escape(t)}</th>' for t, a, _ in groups
        )
        second = "".join(
            f'<th class="{"group" if n == 0 else ""}">{b:g}</th>' if b is not None else "<th></th>"
            for _ in groups
            for n, b in enumerate(budgets)
        )
        lines = []
        for method in methods:
            cells = []
            for _, _, value in groups:
                alone = by_place.get((method, None))
                if alone is not None:  # a method without a budget: one cell as wide as all budgets
                    cells.append(_heat_cell(*value(alone), len(budgets), True))
                    continue
                for n, budget in enumerate(budgets):
                    row = by_place.get((method, budget))
                    cells.append(_heat_cell(*(value(row) if row else (None, "")), 1, n == 0))
            lines.append(f'<tr><td class="spec">{escape(method)}</td>{"".join(cells)}</tr>')
        return (
            f'<table class="heat" data-task="{escape(name)}"{" hidden" * hidden}><thead><tr><th></th>{top}</tr>'
            f"<tr><th>budget</th>{second}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
        )

    shown = columns(results)

    def family(column: Column) -> Callable[[Row], tuple[float | None, str]]:
        return lambda row: (row.metrics.families.get(column.family), column.text(row))

    def one(task: dict[str, Any]) -> Callable[[Row], tuple[float | None, str]]:
        def value(row: Row) -> tuple[float | None, str]:
            mine, base = row.metrics.tasks.get(task["name"]), full.metrics.tasks.get(task["name"])
            if mine is None or base is None:
                return None, "–"
            if task["measure"] in ("nll", "kl"):
                return 2.718281828 ** (base.mean - mine.mean), f"{mine.mean:.3f}"
            return (mine.mean / base.mean if base.mean else None), f"{mine.mean:.2f}"

        return value

    quality = lambda row: (
        row.metrics.quality and row.metrics.quality.mean,
        f"{_quality(row):.2f}" if row.metrics.quality else "–",
    )
    tables = [grid("", [("quality", "the aggregate", quality), *((c.title, c.about, family(c)) for c in shown)], False)]
    options = ['<option value="">all families</option>']
    for task in results.environment["tasks"]:
        base = full.metrics.tasks.get(task["name"])
        title = f"{task['name']} (untouched {base.mean:.2f}, {task['samples']} samples)" if base else task["name"]
        tables.append(grid(task["name"], [(title, "", one(task))], True))
        options.append(f'<option value="{escape(task["name"])}">{escape(title)}</option>')
    return f'<p class="controls"><label>show <select id="heat-task">{"".join(options)}</select></label></p>' + (
        f'<div class="scroll">{"".join(tables)}</div>'
    )


def _heat_cell(value: float | None, text: str, span: int, first: bool) -> str:
    strength = 0.0 if value is None else min(1.0, max(0.0, value))
    # Half the scale would be lost on a straight ramp: what matters is how far below 1 a method falls.
    style = f"background:rgba(var(--heat),{0.04 + 0.86 * strength**2:.2f})" + (";color:#fff" if strength > 0.8 else "")
    wide = f' colspan="{span}"' if span > 1 else ""
    return f'<td class="{"group" if first else ""}"{wide} style="{style}">{escape(text)}</td>'


def method_of(row: Row) -> str:
    """A spec without its budget: the rows of one method at several budgets share it."""
    if row.method == "full":
        return "untouched"
    if row.budget is None:
        return row.spec
    for text in (f", budget={row.budget!r}", f"budget={row.budget!r}, ", f"(budget={row.budget!r})"):
        if text in row.spec:
            return row.spec.replace(text, "", 1)
    return row.spec


# ---- the page ---------------------------------------------------------------------------------------------------


def html(results: Results, picture: dict[str, Any]) -> str:
    """The whole report. `picture`: the tokens of a prompt, and for each spec which of them each layer and head kept."""
    environment, best = results.environment, _best(results)
    by_size, by_speed = pareto_plots(results)
    drawn = next((row for row in results.rows if row.budget is not None), best)  # the best that evicts
    options = "".join(
        f'<option value="{escape(row.spec)}"{" selected" if row is drawn else ""}>{escape(row.spec)}</option>'
        for row in results.rows
        if row.spec in picture["kept"]
    )
    speed, cost = environment["speed"], environment["cost"]
    style, sorting, script = map(_file, ("report.css", "report_table.js", "report.js"))
    parts = {
        "title": escape(f"compare {results.track}: {results.model}"),
        "style": style,
        "script": sorting + script,
        "data": json.dumps(picture, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "told": escape(_told_environment(environment)),
        "winner": _winner(results),
        "by_size": by_size,
        "by_speed": by_speed,
        "rows": _table(results),
        "heat": _heat(results),
        "options": options,
        "quality": escape(environment["quality"]),
        "tasks": _tasks(results),
        "notes": _notes(environment),
        "facts": "".join(f"<dt>{k}</dt><dd>{escape(_plain(environment[k]))}</dd>" for k in SHOWN if k in environment),
        "more": f"{cost['one_more_row_seconds']:.1f}",
        "share": f"{cost['share_of_this_run']:.1%}",
        "total": f"{cost['run_seconds']:.0f}",
        "count": str(cost["rows"]),
        "alone": f"{cost['alone_seconds']:.0f}",
        "alone_share": f"{cost['share_of_a_run_alone']:.0%}",
        **{
            place: str(speed[place]) for place in ("decode_batch", "decode_context", "prefill_batch", "prefill_context")
        },
    }
    return Template((HERE / "report_page.html").read_text(encoding="utf-8")).substitute(parts)


def _file(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def depth_html(results: Results) -> str:
    """The report of `compare depth`."""
    environment = results.environment
    by_layers, by_speed = pareto_plots(results)
    style, script = map(_file, ("report.css", "report_table.js"))
    parts = {
        "title": escape(f"compare {results.track}: {results.model}"),
        "style": style,
        "script": script,
        "told": escape(_told_environment(environment)),
        "winner": _winner(results),
        "by_layers": by_layers,
        "by_speed": by_speed,
        "rows": _table(results),
        "quality": escape(environment["quality"]),
        "tasks": _tasks(results),
        "notes": _notes(environment),
        "facts": "".join(f"<dt>{k}</dt><dd>{escape(_plain(environment[k]))}</dd>" for k in SHOWN if k in environment),
        "context": str(environment["speed"]["decode_context"]),
    }
    return Template((HERE / "depth_page.html").read_text(encoding="utf-8")).substitute(parts)


SHOWN = (
    "machine", "cores", "threads", "system", "device", "dtype", "weights", "parameters", "versions", "chat_format",
    "seed", "quick", "date", "corpus",
)  # fmt: skip


def _plain(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _told_environment(environment: dict[str, Any]) -> str:
    return (
        f"{environment['machine']}, {environment['threads']} threads, {environment['weights']}, "
        f"{'chat format, ' if environment.get('chat_format') else ''}"
        f"seed {environment['seed']}, {environment['date']}{', quick run' if environment['quick'] else ''}"
    )


def _best(results: Results) -> Row | None:
    return next((row for row in results.rows if results.winner and row.spec == results.winner.spec), None)


def heading(choice: Choice) -> str:
    """The winner's name, or that there is none, above what the figures allow to say."""
    name = f'Winner: <span class="spec">{escape(choice.spec)}</span>' if choice.decided else "No winner"
    return f'<h2>{name}</h2><p class="soft small">{escape(choice.text(most=20))}; in recipe.toml</p>'


def _winner(results: Results) -> str:
    best = _best(results)
    if best is None or results.winner is None or best.metrics.quality is None:
        return ""
    m, q = best.metrics, best.metrics.quality
    tiles = [
        (f"{q.mean:.2f}", f"quality {interval_text(q).partition(' ')[2]}, n = {q.n}"),
        (f"{size_of(best):.0%}", "of the bytes" if m.layers_share is None else "of the layers"),
    ]
    tiles += [
        (f"{p.ratio:.2f}×", f"{name} {interval_text(p.interval).partition(' ')[2]}, n = {p.n}")
        for p, name in ((m.decode, "decode speed"), (m.prefill, "prefill speed"))
        if p
    ]
    shown = "".join(
        f'<div class="tile"><b>{escape(a)}</b><span class="soft small">{escape(b)}</span></div>' for a, b in tiles
    )
    return f'<section>{heading(results.winner)}<div class="tiles">{shown}</div></section>'


def _tasks(results: Results) -> str:
    full = results.rows[0].metrics.tasks
    lines = []
    for task in results.environment["tasks"]:
        f = full.get(task["name"])
        score = f"{f.mean:.3f} {_range(f)}" if f else "–"
        counted = "yes" if f and f.counts else "no"
        lines.append(
            f"<tr><td>{escape(task['name'])}</td><td>{task['samples']}</td><td>{task['length']}</td><td>{score}</td><td>{counted}</td></tr>"
        )
    return (
        '<div class="scroll"><table><thead><tr><th>task</th><th>samples</th><th>prompt tokens</th>'
        f"<th>untouched model</th><th>counted</th></tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _notes(environment: dict[str, Any]) -> str:
    notes = [
        *environment.get("notes", []),
        *(f"left out: {spec}: {why}" for spec, why in environment.get("left_out", {}).items()),
    ]
    return "".join(f'<p class="soft">{escape(note)}</p>' for note in notes)
