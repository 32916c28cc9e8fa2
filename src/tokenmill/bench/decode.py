"""`tokenmill compare decode`: every way of drafting on the same prompts, against our greedy loop and the library's.

A cell is one prompt under one row. The rows take turns on a prompt, the untouched loop first and last, so that a ratio
compares neighbours in time. Intervals are over prompts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from rich.table import Table

from tokenmill import catalog
from tokenmill.bench.figures import Choice, Strict, interval_text, sample_size, winner_in
from tokenmill.bench.prompts import Prompt
from tokenmill.bench.statistics import FEWEST, Interval, mean_interval, ratio_interval
from tokenmill.bench.store import Store
from tokenmill.errors import TokenmillError
from tokenmill.method import Method, get, recipe
from tokenmill.models.trained import shipped
from tokenmill.run.cost import Cost, pass_cost
from tokenmill.run.generate import generate
from tokenmill.run.processors import Processors
from tokenmill.run.session import Session
from tokenmill.view.terminal import Column, fitted

BASELINES = FULL, LIBRARY, LOOKUP = "full", "model.generate", "model.generate(prompt_lookup_num_tokens=10)"
COST = "(cost)"
TASK = "prompt"
WIDTHS = (1, 2, 4, 8, 16, 32)


class Decoded(Strict):
    """What a row gave over all prompts. Ratios are above 1 where it is faster; their means are geometric."""

    speed: Interval | None = None  # against our greedy loop, prompt by prompt; its own row: its last turns, its first
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
    lossless: bool = True  # the method is, and every text of this run was that of our greedy loop
    ties: int = (
        0  # texts of a lossless method that differ from greedy's first where two logits are equal but for rounding
    )
    within_noise: bool = False  # of the fastest lossless row; that one is marked too unless alone
    seconds: float = 0.0


class DecodeRow(Strict):
    method: str
    spec: str
    budget: float | None = None
    metrics: Decoded


class DecodeResults(Strict):
    schema_: Literal[2] = Field(default=2, alias="schema")
    track: str
    model: str
    environment: dict[str, Any]
    rows: list[DecodeRow]

    @property
    def winner(self) -> Choice | None:
        return winner_in(self.environment)


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
        behind = {row: 0 for row in self.rows if _carries(row)}  # prompts that the row's memory does not know yet
        for index in range(len(self.ids)):
            for row in [*self.rows, f"{FULL} again"]:
                if self.store.done(TASK, index, row):
                    continue
                for earlier in range(behind.get(row, index), index):  # of a run that was killed
                    tick(f"{row} learns prompt {earlier + 1} again (not timed)", 0)
                    self._generate(row, self.ids[earlier], memories)
                behind[row] = index + 1
                tick(f"{self.prompts[index].category} {index + 1}/{len(self.ids)}: {row}", 0)
                began = time.perf_counter()
                self.store.add(TASK, index, row, self._cell(row, index, memories), time.perf_counter() - began)
                tick("", 1)

    def _generate(self, row: str, ids: list[int], memories: dict[str, dict[str, Any]]) -> Any:
        return generate(
            self.model, self.tokenizer, [ids], None if row.startswith(FULL) else row, max_new_tokens=self.new,
            memory=memories.setdefault(row, {}),
        )[0]  # fmt: skip

    def _cell(self, row: str, index: int, memories: dict[str, dict[str, Any]]) -> dict[str, Any]:
        ids = self.ids[index]
        if row.startswith("model.generate"):
            return library_cell(self.model, self.tokenizer, row, ids, self.new)
        began = time.perf_counter()
        out = self._generate(row, ids, memories)
        seconds, stats = time.perf_counter() - began, out.stats
        exact = promises_greedy(row)
        return {
            "ids": out.ids, "seconds": seconds, "decode": stats.decode_seconds,
            "passes": stats.forward_calls - 1, "drafted": stats.drafted, "accepted": stats.accepted,
            "drafted_by_depth": stats.drafted_by_depth, "accepted_by_depth": stats.accepted_by_depth,
            "bytes": stats.draft_bytes, "nats": None if exact else self._nats(ids, out.ids),
            "tie": exact and self._tie(ids, out.ids, self.store.cells().get((TASK, index, FULL))),
        }  # fmt: skip

    def _tie(self, ids: list[int], new: list[int], full: tuple[Any, float] | None) -> bool:
        """Whether the text leaves greedy's where rounding alone decides: two logits equal within four roundings."""
        if full is None or new == full[0]["ids"]:
            return False
        at = next((i for i, (a, b) in enumerate(zip(new, full[0]["ids"], strict=False)) if a != b), None)
        if at is None:
            return False
        text = [*ids, *new[:at]]
        logits = Session(self.model).read(torch.tensor([text], device=self.model.device))
        if processors := Processors(self.model, [ids], self.new):
            logits = processors(0, logits, [text])
        logits = logits[0]
        ours, greedy = float(logits[new[at]]), float(logits[full[0]["ids"][at]])
        return abs(ours - greedy) <= 4 * torch.finfo(self.model.dtype).eps * max(abs(ours), abs(greedy))

    def _nats(self, ids: list[int], new: list[int]) -> float:
        """What the untouched model needs for the text, in nats a token."""
        logits = Session(self.model).read(torch.tensor([[*ids, *new[:-1]]], device=self.model.device), last=len(new))
        logits = logits if logits.ndim == 3 else logits[:, None]
        return float(torch.nn.functional.cross_entropy(logits[0].float(), torch.tensor(new, device=logits.device)))


def library_cell(model: Any, tokenizer: Any, row: str, ids: list[int], new: int) -> dict[str, Any]:
    """The cell of the library's own generate, with or without its prompt lookup."""
    given = torch.tensor([ids], device=model.device)
    calls, more = 0, {"prompt_lookup_num_tokens": 10} if row == LOOKUP else {}
    # Both sides are under the model's generation_config; how tokens are chosen, ours leaves to the recipe.
    more |= {"do_sample": False, "num_beams": 1, "max_new_tokens": new, "tokenizer": tokenizer}

    def counted(*_: Any) -> None:
        nonlocal calls
        calls += 1

    hook = model.register_forward_hook(counted)
    began = time.perf_counter()
    try:
        with torch.no_grad():
            out = model.generate(given, attention_mask=torch.ones_like(given), **more)
    finally:
        hook.remove()
    found = out[0, len(ids) :].tolist()
    return {
        "ids": found, "seconds": time.perf_counter() - began, "decode": None, "passes": calls - 1, "drafted": 0,
        "accepted": 0, "drafted_by_depth": [], "accepted_by_depth": [], "bytes": 0, "nats": None, "tie": False,
    }  # fmt: skip


def promises_greedy(row: str) -> bool:
    """Whether the row's text should be our greedy loop's, token for token."""
    return row.startswith((FULL, "model.")) or all(m.card.lossless for m in recipe(row))


def _carries(row: str) -> bool:
    """Whether a row's drafts learn from one prompt for the next."""

    def carries(made: Method) -> bool:
        return made.card.carries or any(carries(knob) for knob in made.knobs.values() if isinstance(knob, Method))

    return not row.startswith((FULL, "model.")) and any(carries(made) for made in recipe(row))


# ---- from cells to rows -----------------------------------------------------------------------------------------

Cells = dict[tuple[str, int, str], tuple[Any, float]]


def row_of(spec: str, cells: Cells, prompts: Sequence[Prompt]) -> DecodeRow:
    """What a row gave, from its cells, those of the loops it is held against, and the measured cost of a pass."""
    mine = [cells[TASK, i, spec][0] for i in range(len(prompts))]
    first, last = ([cells[TASK, i, name][0] for i in range(len(prompts))] for name in (FULL, f"{FULL} again"))
    library = [cells[TASK, i, LIBRARY][0] for i in range(len(prompts))]
    # A lossy row may stop elsewhere: what is compared is the time a token. The loop itself is held against its own
    # last turns, which shows the noise.
    greedy = [*zip(last, strict=True)] if spec == FULL else [*zip(first, last, strict=True)]
    base, own = [statistics.fmean(map(_all_a_token, turns)) for turns in greedy], [*map(_all_a_token, mine)]
    pairs = [
        (statistics.fmean(map(_a_token, turns)), _a_token(c))
        for turns, c in zip(greedy, mine, strict=True)
        if c["decode"] and len(c["ids"]) > 1
    ]
    a_pass = [(len(c["ids"]) - 1) / max(1, c["passes"]) for c in mine]
    drafted, accepted = sum(c["drafted"] for c in mine), sum(c["accepted"] for c in mine)
    nodes = None if spec.startswith("model.") else drafted / max(1, sum(c["passes"] for c in mine))
    cost = Cost({int(w): s for w, s in cells[COST, 0, FULL][0]["seconds"].items()})
    categories = list(dict.fromkeys(p.category for p in prompts))
    within = {c: [i for i, p in enumerate(prompts) if p.category == c] for c in categories}
    nats = [c["nats"] for c in mine if c["nats"] is not None]
    identical = statistics.fmean(float(c["ids"] == f["ids"]) for c, f in zip(mine, first, strict=True))
    return DecodeRow(
        method="+".join(m.name for m in recipe(spec)) if not spec.startswith((FULL, "model.")) else spec,
        spec=spec,
        metrics=Decoded(
            speed=ratio_interval(base, own),
            decoding=ratio_interval([a for a, _ in pairs], [b for _, b in pairs]) if pairs else None,
            bound=None if nodes is None else statistics.fmean(a_pass) / cost(1 + nodes),
            against_library=ratio_interval([*map(_all_a_token, library)], own),
            tokens_a_pass=mean_interval(a_pass),
            accepted=accepted / drafted if drafted else None,
            nodes=nodes,
            by_position=_by_position(mine),
            by_category={
                c: {
                    "speed": statistics.geometric_mean(base[i] / own[i] for i in at),
                    "tokens_a_pass": statistics.fmean(a_pass[i] for i in at),
                }
                for c, at in within.items()
            },
            identical=identical,
            agreement=statistics.fmean(_agreement(c["ids"], f["ids"]) for c, f in zip(mine, first, strict=True)),
            nats=statistics.fmean(nats) if nats else None,
            bytes=statistics.fmean(c["bytes"] for c in mine),
            tokens_a_second=statistics.median(1 / o for o in own),
            lossless=promises_greedy(spec) and identical == 1,
            ties=sum(c["tie"] for c in mine),
            seconds=sum(cells[TASK, i, spec][1] for i in range(len(prompts))),
        ),
    )


def _all_a_token(cell: dict[str, Any]) -> float:
    """Seconds of a token, the prompt's reading included."""
    return cell["seconds"] / max(1, len(cell["ids"]))


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


WINNER = "the fastest row whose texts were all our greedy loop's, by the ratio to that loop"


def winner(rows: Sequence[DecodeRow], cells: Cells) -> Choice | None:
    """See WINNER: the row with the best mean ratio, and those it is not faster than by more than the prompts' noise."""
    ours = [r for r in rows if r.metrics.lossless and r.metrics.speed and not r.spec.startswith("model.")]
    ranked = sorted(ours, key=lambda r: -r.metrics.speed.mean if r.metrics.speed else 0.0)
    if not ranked:
        return None
    seconds = {row.spec: _seconds(row.spec, cells) for row in ranked}
    best, n = ranked[0], len(seconds[ranked[0].spec])
    faster = {row.spec: ratio_interval(seconds[row.spec], seconds[best.spec]) for row in ranked[1:]}
    rivals = [row for row in ranked[1:] if n < FEWEST or (low := faster[row.spec].low) is None or low <= 1]
    for row in [best, *rivals] if rivals else ():
        row.metrics.within_noise = True
    return Choice(
        spec=best.spec,
        why=WINNER,
        rivals=[row.spec for row in rivals],
        n=n,
        unit="prompts",
        bounds=n >= FEWEST or len(ranked) == 1,
    )


def _seconds(spec: str, cells: Cells) -> list[float]:
    """Seconds of a token, prompt by prompt; of our greedy loop over both its turns."""
    prompts = sorted(i for task, i, row in cells if (task, row) == (TASK, spec))
    turns = (FULL, f"{FULL} again") if spec == FULL else (spec,)
    return [statistics.fmean(_all_a_token(cells[TASK, i, turn][0]) for turn in turns) for i in prompts]


NAMES = {FULL: "greedy, our loop", LOOKUP: "model.generate (prompt lookup)"}


def table(results: DecodeResults, width: int | None) -> tuple[Table, int]:
    """Our greedy loop and the library's, then the fastest first; None shows every column, however wide."""
    rows = [row.metrics for row in results.rows]

    def ratio(title: str, found: Sequence[Interval | None]) -> Column:
        short = [f"{i.mean:.2f}" if i else "–" for i in found]
        return Column(f"{title}\n{sample_size(found)}", [*map(interval_text, found)], short)

    columns = [
        Column("", ["≈" if m.within_noise else "" for m in rows], justify="left"),
        ratio("speed", [m.speed for m in rows]),
        Column("identical\ntexts", [f"{m.identical:.0%}" for m in rows]),
        Column("tokens\n/pass", [f"{m.tokens_a_pass.mean:.2f}" if m.tokens_a_pass else "–" for m in rows]),
        ratio("decode", [m.decoding for m in rows]),
        Column("accepted", [f"{m.accepted:.0%}" if m.accepted is not None else "–" for m in rows]),
        ratio("× generate", [m.against_library for m in rows]),
        Column("nodes\n/pass", [f"{m.nodes:.1f}" if m.nodes is not None else "–" for m in rows]),
        Column("bound", [_number(m.bound) for m in rows]),
        Column("same\nfor", [f"{m.agreement:.0%}" for m in rows]),
        Column("ties", [str(m.ties) if m.ties else "" for m in rows]),
        Column("extra\nMB", [f"{m.bytes / 1e6:.1f}" for m in rows]),
        Column("nats\n/token", [_number(m.nats) for m in rows]),
    ]
    names = Column("method", [NAMES.get(row.spec, row.spec) for row in results.rows], justify="left")
    return fitted(
        names, columns, width, title=f"compare decode: {results.model}, {results.environment['weights']} weights",
        sections=(len({FULL, LIBRARY, LOOKUP} & {row.spec for row in results.rows}) - 1,), bold=(),
        caption="speed: times our greedy loop, in turns on every prompt; its own row is its last turns against its "
        "first: the noise; ≈ within noise of the fastest lossless row; decode: without the prompt's reading; "
        "bound: tokens/pass over the cost of such a pass; identical: texts equal to greedy's",
    )  # fmt: skip


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def preflight(model: Any, tokenizer: Any, rows: Sequence[str], ids: list[int]) -> dict[str, str]:
    """Rows that cannot work on this model, with the reason.

    What is compiled or calibrated at first use is so here, and in no timed cell.
    """
    refused = {}
    for spec in rows:
        try:
            if spec.startswith("model.generate"):
                library_cell(model, tokenizer, spec, ids[-24:], 4)
            else:
                generate(model, tokenizer, [ids[-24:]], None if spec == FULL else spec, max_new_tokens=4)
        except TokenmillError as error:
            refused[spec] = str(error)
        except Exception as error:  # the library's prompt lookup does not know every model; a bug of ours is shown
            if spec != LOOKUP:
                raise
            refused[spec] = f"failed with {type(error).__name__}: {error}"
    return refused
