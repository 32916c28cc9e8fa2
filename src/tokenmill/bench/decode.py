"""`tokenmill compare decode`: every way of drafting on the same prompts, against our greedy loop and the library's.

A cell is one prompt under one row. The rows take turns on a prompt, the untouched loop first and last, so that a ratio
compares neighbours in time.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from rich.table import Table
from rich.text import Text

from tokenmill import catalog
from tokenmill.bench.figures import Interval, Strict, bootstrap
from tokenmill.bench.prompts import Prompt
from tokenmill.bench.store import Store
from tokenmill.errors import TokenmillError
from tokenmill.method import get, recipe
from tokenmill.models.trained import shipped
from tokenmill.run.cost import Cost, pass_cost
from tokenmill.run.generate import generate
from tokenmill.run.session import Session

FULL, LIBRARY, LOOKUP = "full", "model.generate", "model.generate(prompt_lookup_num_tokens=10)"
COST = "(cost)"
TASK = "prompt"
WIDTHS = (1, 2, 4, 8, 16, 32)


class Decoded(Strict):
    """What a row gave over all prompts. Ratios are above 1 where it is faster."""

    speed: Interval | None = None  # against our greedy loop, prompt by prompt: mean of the ratios
    decoding: Interval | None = None  # the same without the prompt's reading, which no draft makes faster
    bound: float | None = None  # of that, if drafting itself took no time: tokens a pass over such a pass's cost
    against_library: Interval | None = None  # against the library's generate
    tokens_a_pass: Interval | None = None
    accepted: float | None = None  # share of the drafted tokens
    nodes: float | None = None  # drafted tokens a pass
    by_position: list[float] = Field(default_factory=list)  # share of the passes that drafted so deep
    by_category: dict[str, dict[str, float]] = Field(default_factory=dict)  # category -> speed, tokens_a_pass
    identical: float = 1.0  # share of prompts whose text is that of our greedy loop
    agreement: float = 1.0  # mean share of a text before it first differs
    nats: float | None = None  # a token of the text, under the untouched model
    bytes: float = 0.0  # held beside the model's own cache, mean
    tokens_a_second: float | None = None
    lossless: bool = True
    seconds: float = 0.0


class DecodeRow(Strict):
    method: str
    spec: str
    budget: float | None = None
    metrics: Decoded


class DecodeResults(Strict):
    schema_: Literal[1] = Field(default=1, alias="schema")
    track: str
    model: str
    environment: dict[str, Any]
    rows: list[DecodeRow]


def default_rows() -> list[str]:
    """Everything with a paper that drafts without a second model and is trained or needs no training, and baselines."""
    papers = [get(name) for name in catalog.methods("draft") if catalog.find(name).title]
    papers = [m for m in papers if m.card.role != "rule" and "drafter" not in m.card.needs]
    own, here = [m.name for m in papers if not m.card.trains], shipped()
    heads = [m.name for m in papers if m.name in here]
    baselines = ["prompt_lookup", "first_layers(layers=20, nodes=4)", "auto(source=token_recycling)", "auto"]
    return [*own, *heads, *baselines]


@dataclass
class Decoding:
    """The walk over the cells. `tick(what, weight)` is told of each finished one."""

    model: Any
    tokenizer: Any
    prompts: list[Prompt]
    ids: list[list[int]]
    rows: list[str]
    store: Store
    new: int

    def total(self) -> float:
        return float(len(self.ids) * (len(self.rows) + 1) + 3)

    def left(self) -> float:
        cells = self.store.cells()
        done = sum((TASK, i, row) in cells for i in range(len(self.ids)) for row in [*self.rows, f"{FULL} again"])
        return self.total() - done - 3 * ((COST, 0, FULL) in cells)

    def run(self, tick: Callable[[str, float], None]) -> None:
        if not self.store.done(COST, 0, FULL):
            tick("the cost of a pass by width", 0)
            began = time.perf_counter()
            context = min(256, max(map(len, self.ids)))
            seconds = pass_cost(self.model, WIDTHS, context)
            value = {"context": context, "seconds": {str(w): s for w, s in seconds.items()}}
            self.store.add(COST, 0, FULL, value, time.perf_counter() - began)
            tick("", 3)
        memories: dict[str, dict[str, Any]] = {row: {} for row in self.rows}
        generate(self.model, None, [self.ids[0]], max_new_tokens=2)  # warm
        for index, ids in enumerate(self.ids):
            for row in [*self.rows, f"{FULL} again"]:
                if self.store.done(TASK, index, row):
                    continue
                tick(f"{self.prompts[index].category} {index + 1}/{len(self.ids)}: {row}", 0)
                began = time.perf_counter()
                self.store.add(TASK, index, row, self._cell(row, ids, memories), time.perf_counter() - began)
                tick("", 1)

    def _cell(self, row: str, ids: list[int], memories: dict[str, dict[str, Any]]) -> dict[str, Any]:
        if row.startswith("model.generate"):
            return self._library(row, ids)
        spec = FULL if row.startswith(FULL) else row
        began = time.perf_counter()
        out = generate(
            self.model, self.tokenizer, [ids], None if spec == FULL else spec, max_new_tokens=self.new,
            memory=memories.setdefault(row, {}),
        )[0]  # fmt: skip
        seconds, stats = time.perf_counter() - began, out.stats
        lossless = spec == FULL or all(m.card.lossless for m in recipe(spec))
        return {
            "ids": out.ids, "seconds": seconds, "decode": stats.decode_seconds,
            "passes": stats.forward_calls - 1, "drafted": stats.drafted, "accepted": stats.accepted,
            "drafted_by_depth": stats.drafted_by_depth, "accepted_by_depth": stats.accepted_by_depth,
            "bytes": stats.draft_bytes, "nats": None if lossless else self._nats(ids, out.ids),
        }  # fmt: skip

    def _nats(self, ids: list[int], new: list[int]) -> float:
        """What the untouched model needs for the text, in nats a token."""
        logits = Session(self.model).read(torch.tensor([[*ids, *new[:-1]]], device=self.model.device), last=len(new))
        logits = logits if logits.ndim == 3 else logits[:, None]
        return float(torch.nn.functional.cross_entropy(logits[0].float(), torch.tensor(new, device=logits.device)))

    def _library(self, row: str, ids: list[int]) -> dict[str, Any]:
        given = torch.tensor([ids], device=self.model.device)
        calls, more = 0, {"prompt_lookup_num_tokens": 10} if row == LOOKUP else {}
        # Both sides are under the model's generation_config; how tokens are chosen, ours leaves to the recipe.
        more |= {"do_sample": False, "num_beams": 1, "max_new_tokens": self.new, "tokenizer": self.tokenizer}

        def counted(*_: Any) -> None:
            nonlocal calls
            calls += 1

        hook = self.model.register_forward_hook(counted)
        began = time.perf_counter()
        try:
            with torch.no_grad():
                out = self.model.generate(given, attention_mask=torch.ones_like(given), **more)
        finally:
            hook.remove()
        new = out[0, len(ids) :].tolist()
        return {
            "ids": new, "seconds": time.perf_counter() - began, "decode": None, "passes": calls - 1, "drafted": 0,
            "accepted": 0, "drafted_by_depth": [], "accepted_by_depth": [], "bytes": 0, "nats": None,
        }  # fmt: skip


# ---- from cells to rows -----------------------------------------------------------------------------------------

Cells = dict[tuple[str, int, str], tuple[Any, float]]


def row_of(spec: str, cells: Cells, prompts: Sequence[Prompt], seed: int) -> DecodeRow:
    """What a row gave, from its cells, those of the loops it is held against, and the measured cost of a pass."""
    mine = [cells[TASK, i, spec][0] for i in range(len(prompts))]
    first, last = ([cells[TASK, i, name][0] for i in range(len(prompts))] for name in (FULL, f"{FULL} again"))
    library = [cells[TASK, i, LIBRARY][0] for i in range(len(prompts))]
    base = [(a["seconds"] + b["seconds"]) / 2 for a, b in zip(first, last, strict=True)]
    same = [len(c["ids"]) for c in mine]
    # A lossy row may stop elsewhere: what is compared is the time a token.
    own = [c["seconds"] / n for c, n in zip(mine, same, strict=True)]
    ratios = [b / len(f["ids"]) / o for b, f, o in zip(base, first, own, strict=True)]
    writing = [
        statistics.fmean(_a_token(c) for c in full) / _a_token(c)
        for *full, c in zip(first, last, mine, strict=True)
        if c["decode"] and len(c["ids"]) > 1
    ]
    theirs = [c["seconds"] / max(1, len(c["ids"])) / o for c, o in zip(library, own, strict=True)]
    a_pass = [(len(c["ids"]) - 1) / max(1, c["passes"]) for c in mine]
    drafted, accepted = sum(c["drafted"] for c in mine), sum(c["accepted"] for c in mine)
    nodes = None if spec.startswith("model.") else drafted / max(1, sum(c["passes"] for c in mine))
    cost = Cost({int(w): s for w, s in cells[COST, 0, FULL][0]["seconds"].items()})
    categories = list(dict.fromkeys(p.category for p in prompts))
    within = {c: [i for i, p in enumerate(prompts) if p.category == c] for c in categories}
    nats = [c["nats"] for c in mine if c["nats"] is not None]
    return DecodeRow(
        method="+".join(m.name for m in recipe(spec)) if not spec.startswith((FULL, "model.")) else spec,
        spec=spec,
        metrics=Decoded(
            speed=bootstrap(ratios, seed),
            decoding=bootstrap(writing, seed) if writing else None,
            bound=None if nodes is None else statistics.fmean(a_pass) / cost(1 + nodes),
            against_library=bootstrap(theirs, seed),
            tokens_a_pass=bootstrap(a_pass, seed),
            accepted=accepted / drafted if drafted else None,
            nodes=nodes,
            by_position=_by_position(mine),
            by_category={
                c: {
                    "speed": statistics.fmean(ratios[i] for i in at),
                    "tokens_a_pass": statistics.fmean(a_pass[i] for i in at),
                }
                for c, at in within.items()
            },
            identical=statistics.fmean(float(c["ids"] == f["ids"]) for c, f in zip(mine, first, strict=True)),
            agreement=statistics.fmean(_agreement(c["ids"], f["ids"]) for c, f in zip(mine, first, strict=True)),
            nats=statistics.fmean(nats) if nats else None,
            bytes=statistics.fmean(c["bytes"] for c in mine),
            tokens_a_second=statistics.median(1 / o for o in own),
            lossless=spec.startswith((FULL, "model.")) or all(m.card.lossless for m in recipe(spec)),
            seconds=sum(cells[TASK, i, spec][1] for i in range(len(prompts))),
        ),
    )


def _a_token(cell: dict[str, Any]) -> float:
    """Seconds of a token after the first, which comes with the prompt's reading."""
    return cell["decode"] / max(1, len(cell["ids"]) - 1)


def _by_position(cells: Sequence[dict[str, Any]]) -> list[float]:
    deep = max((len(c["drafted_by_depth"]) for c in cells), default=0)
    at = lambda c, key, d: c[key][d] if d < len(c[key]) else 0
    drafted = [sum(at(c, "drafted_by_depth", d) for c in cells) for d in range(deep)]
    accepted = [sum(at(c, "accepted_by_depth", d) for c in cells) for d in range(deep)]
    return [a / n for a, n in zip(accepted, drafted, strict=True)]


def _agreement(mine: list[int], full: list[int]) -> float:
    same = next((i for i, (a, b) in enumerate(zip(mine, full, strict=False)) if a != b), min(len(mine), len(full)))
    return same / max(len(full), 1)


def best_first(rows: Sequence[DecodeRow]) -> list[DecodeRow]:
    """Our greedy loop, the library's, then the fastest first."""
    place = {FULL: 0, LIBRARY: 1, LOOKUP: 2}
    fast = lambda row: row.metrics.speed.mean if row.metrics.speed else 0.0
    return sorted(rows, key=lambda row: (place.get(row.spec, 3), -fast(row)))


WINNER = "the fastest lossless row, by the mean ratio to our greedy loop"


def winner(rows: Sequence[DecodeRow]) -> DecodeRow | None:
    ours = [r for r in rows if r.metrics.lossless and not r.spec.startswith("model.")]
    return max(ours, key=lambda r: r.metrics.speed.mean if r.metrics.speed else 0.0, default=None)


def recipe_toml(results: DecodeResults, best: DecodeRow) -> str:
    """The winner, as `tokenmill run --recipe-file` reads it."""
    text = lambda value: json.dumps(value, ensure_ascii=False)
    m = best.metrics
    assert m.speed is not None
    assert m.tokens_a_pass is not None
    return (
        f"# Chosen by computation: {WINNER}.\n"
        f'# Use it: tokenmill run --recipe-file recipe.toml "..."\n'
        f"recipe = {text(best.spec)}\nmodel = {text(results.model)}\n\n"
        f"[measured]  # relative to our greedy loop, 1 = as fast\n"
        f"speed = {m.speed.mean:.6g}\nspeed_low = {m.speed.low:.6g}\nspeed_high = {m.speed.high:.6g}\n"
        f"tokens_a_pass = {m.tokens_a_pass.mean:.6g}\n"
        f"machine = {text(str(results.environment['machine']))}\ndate = {text(results.environment['date'])}\n"
    )


def table(results: DecodeResults, width: int) -> Table:
    """Our greedy loop and the library's, then the fastest first."""
    shown = Table(
        title=f"compare decode: {results.model}, {results.environment['weights']} weights",
        caption="speed: times our greedy loop, in turns on every prompt; decode: without the prompt's reading; "
        "bound: tokens/pass over the cost of such a pass; identical: texts equal to greedy's",
    )
    shown.add_column("method", overflow="fold")
    more = ("bound", "extra MB", "nats/token") if width >= 120 else ()
    for name in ("speed", "decode", "× generate", "tokens/pass", "accepted", "nodes/pass", "identical", *more):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in results.rows:
        m = row.metrics
        cells = [
            {FULL: "greedy, our loop"}.get(row.spec, row.spec),
            f"{m.speed.mean:.2f} [{m.speed.low:.2f}, {m.speed.high:.2f}]" if m.speed else "–",
            f"{m.decoding.mean:.2f}" if m.decoding else "–",
            f"{m.against_library.mean:.2f}" if m.against_library else "–",
            f"{m.tokens_a_pass.mean:.2f}" if m.tokens_a_pass else "–",
            f"{m.accepted:.0%}" if m.accepted is not None else "–",
            f"{m.nodes:.1f}" if m.nodes is not None else "–",
            f"{m.identical:.0%}" + ("" if m.lossless else f", same for {m.agreement:.0%}"),
            *((_number(m.bound), f"{m.bytes / 1e6:.1f}", _number(m.nats)) if more else ()),
        ]
        shown.add_row(*map(Text, cells), end_section=row.spec == LOOKUP)
    return shown


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def preflight(model: Any, rows: Sequence[str], ids: list[int]) -> dict[str, str]:
    """Rows that cannot work on this model, with the reason."""
    refused = {}
    for spec in rows:
        if spec.startswith((FULL, "model.")):
            continue
        try:
            generate(model, None, [ids[-24:]], spec, max_new_tokens=4)
        except TokenmillError as error:
            refused[spec] = str(error)
    return refused
