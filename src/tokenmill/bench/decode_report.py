"""report.html of `compare decode`: one file that opens offline, plots drawn here as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from tokenmill.bench.decode import FULL, LIBRARY, LOOKUP, DecodeResults, _number
from tokenmill.bench.figures import interval_text
from tokenmill.bench.report import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    SHOWN,
    TOP,
    WIDTH,
    _plain,
    _range,
    _ticks,
    _told_environment,
    heading,
)
from tokenmill.bench.statistics import Interval

HERE = Path(__file__).parent
COLOURS = ("#0b6bcb", "#d9480f", "#2b8a3e", "#862e9c", "#e67700", "#0c8599", "#5c677d", "#c2255c")
Line = tuple[str, Sequence[tuple[float, float]]]  # name, points


def lines(series: Sequence[Line], x_title: str, y_title: str, *, one: bool = False) -> str:
    """Several curves as one SVG with a legend; `one` draws the line y = 1."""
    points = [p for _, curve in series for p in curve]
    if not points:
        return '<p class="soft">not measured</p>'
    high_x, high_y = max(p[0] for p in points), max([1.0 if one else 0.0, *(p[1] for p in points)]) * 1.05
    low_x = min(p[0] for p in points) if high_x > min(p[0] for p in points) else 0.0
    across = lambda x: LEFT + (x - low_x) / ((high_x - low_x) or 1) * (WIDTH - LEFT - RIGHT)
    up = lambda y: HEIGHT - BOTTOM - y / (high_y or 1) * (HEIGHT - TOP - BOTTOM)
    out = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_title)} by {escape(x_title)}">']
    for x in _ticks(low_x, high_x):
        out.append(f'<text x="{across(x):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{x:g}</text>')
    for y in _ticks(0.0, high_y):
        out.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(y):.1f}" y2="{up(y):.1f}"/>')
        out.append(f'<text x="{LEFT - 8}" y="{up(y) + 4:.1f}" text-anchor="end">{y:g}</text>')
    if one:
        out.append(f'<line class="one" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(1):.1f}" y2="{up(1):.1f}"/>')
    out.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x_title)}</text>'
    )
    out.append(
        f'<text transform="rotate(-90)" x="{-(TOP + HEIGHT - BOTTOM) / 2}" y="14" text-anchor="middle">'
        f"{escape(y_title)}</text>"
    )
    for number, (name, curve) in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in curve)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="3.5" fill="{colour}"/>' for x, y in curve]
        out.append(
            f'<text class="name" x="{WIDTH - RIGHT - 6}" y="{TOP + 14 + 15 * number}" text-anchor="end" '
            f'style="fill:{colour}">{escape(name)}</text>'
        )
    return "".join([*out, "</svg>"])


def html(results: DecodeResults, cost: dict[int, float], context: int) -> str:
    """The whole report; `cost` is seconds of a pass by width behind `context` tokens."""
    ours = [r for r in results.rows if not r.spec.startswith(("model.", FULL))]
    drawn = [r for r in ours if r.metrics.by_position][:8]
    one = cost[min(cost)]
    pass_curve = [(float(w), s / one) for w, s in sorted(cost.items())]
    tree = [(r.metrics.nodes, r.metrics.speed.mean) for r in ours if r.metrics.nodes and r.metrics.speed is not None]
    by_size = [
        ("speed of each row", sorted(tree)),
        ("cost of a pass over 1 + nodes", [(w - 1, c) for w, c in pass_curve]),
    ]
    environment = results.environment
    notes = [*environment["notes"], *(f"left out {spec}: {why}" for spec, why in environment["left_out"].items())]
    places = [(r.spec, [(d + 1.0, a) for d, a in enumerate(r.metrics.by_position)]) for r in drawn]
    parts = {
        "title": escape(f"compare decode: {results.model}"),
        "style": (HERE / "report.css").read_text(encoding="utf-8"),
        "told": escape(_told_environment(environment)),
        "winner": _winner(results),
        "rows": _table(results),
        "positions": lines(places, "position in the draft", "share of passes that drafted so deep and accepted it"),
        "sizes": lines(by_size, "drafted tokens a pass", "times greedy; cost of a pass, 1 token = 1", one=True),
        "context": str(context),
        "cost": escape(", ".join(f"{w} tokens {s * 1000:.1f} ms" for w, s in sorted(cost.items()))),
        "categories": _categories(results),
        "prompts": str(environment["settings"]["prompts"]),
        "new": str(environment["new_tokens"]),
        "notes": "".join(f'<p class="soft">{escape(note)}</p>' for note in notes),
        "facts": "".join(f"<dt>{k}</dt><dd>{escape(_plain(environment[k]))}</dd>" for k in SHOWN if k in environment),
    }
    return Template((HERE / "decode_page.html").read_text(encoding="utf-8")).substitute(parts)


def _winner(results: DecodeResults) -> str:
    best = next((row for row in results.rows if results.winner and row.spec == results.winner.spec), None)
    if best is None or results.winner is None:
        return ""
    m = best.metrics
    if m.speed is None or m.tokens_a_pass is None:
        return ""
    tiles = [
        (f"{m.speed.mean:.2f}×", f"our greedy loop {interval_text(m.speed).partition(' ')[2]}, n = {m.speed.n}"),
        (f"{m.against_library.mean:.2f}×" if m.against_library else "–", "model.generate"),
        (f"{m.tokens_a_pass.mean:.2f}", "tokens a pass"),
        (f"{m.identical:.0%}", "of the texts identical"),
    ]
    shown = "".join(
        f'<div class="tile"><b>{escape(a)}</b><span class="soft small">{escape(b)}</span></div>' for a, b in tiles
    )
    return f'<section>{heading(results.winner)}<div class="tiles">{shown}</div></section>'


def _table(results: DecodeResults) -> str:
    heads = (
        *("method", "speed", "decode", "bound", "× generate", "tokens/pass"),
        *("accepted", "nodes/pass", "identical", "ties", "nats", "extra MB"),
    )
    body = []
    for row in results.rows:
        m = row.metrics
        cells = [
            f'<span class="spec">{escape({FULL: "greedy, our loop"}.get(row.spec, row.spec))}</span>'
            + " ≈" * m.within_noise,
            _span(m.speed), _span(m.decoding), _number(m.bound), _span(m.against_library), _span(m.tokens_a_pass),
            f"{m.accepted:.0%}" if m.accepted is not None else "–", f"{m.nodes:.1f}" if m.nodes is not None else "–",
            f"{m.identical:.0%}", str(m.ties or ""), _number(m.nats), f"{m.bytes / 1e6:.1f}",
        ]  # fmt: skip
        kind = ' class="full"' if row.spec in (FULL, LIBRARY, LOOKUP) else ""
        body.append(f"<tr{kind}>{''.join(f'<td>{c}</td>' for c in cells)}</tr>")
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    return f'<table id="rows"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'


def _span(i: Interval | None) -> str:
    return f"{i.mean:.2f} {_range(i)}" if i else "–"


def _categories(results: DecodeResults) -> str:
    names = list(dict.fromkeys(c for row in results.rows for c in row.metrics.by_category))
    body = []
    for row in results.rows:
        cells = [f'<td class="spec">{escape({FULL: "greedy, our loop"}.get(row.spec, row.spec))}</td>']
        for name in names:
            found = row.metrics.by_category.get(name)
            strength = min(1.0, max(0.0, (found["speed"] - 0.8) / 1.2)) if found else 0.0
            text = f"{found['speed']:.2f} ({found['tokens_a_pass']:.2f})" if found else "–"
            cells.append(f'<td style="background:rgba(var(--heat),{0.04 + 0.6 * strength:.2f})">{text}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f"<th>{escape(n)}</th>" for n in ("", *names))
    return f'<table class="heat"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'
