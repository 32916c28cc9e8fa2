"""The rows of a table and the walk over its cells: each measured once, each stored the moment it is finished."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from tokenmill import catalog
from tokenmill.bench import measure
from tokenmill.bench.store import Store
from tokenmill.bench.tasks import Plan, Reader, Sample, build, sentences
from tokenmill.errors import RecipeError, SpecError, TokenmillError
from tokenmill.method import Method, Recipe, parse, recipe

_CACHE = (
    "full random_tokens recent_window streaming_llm knorm keydiff tova snapkv expected_attention h2o vatp keyformer "
    "pyramid(score=snapkv) adaptive(score=snapkv) token_select lazy_llm mini_cache zip_cache"
)
CACHE_METHODS = tuple(_CACHE.split())
# Operating points of equal kind: a share of the layers where the method takes one, else settings on both sides of it.
DEPTH_METHODS = (
    "constant_skip", "random_depth", "d3(alpha=0.998)", "d3(alpha=0.99)", "skip_decode(least=0.8)",
    "skip_decode(least=0.5)", "early_exit(threshold=0.9)", "early_exit(threshold=0.5)",
)  # fmt: skip
READING, PREFILL, DECODE, PICTURE = "(reading)", "(prefill)", "(decode)", "(picture)"


@dataclass(frozen=True)
class RowSpec:
    """One row: a recipe, and the budget it spends if it has one."""

    method: str
    spec: str
    budget: float | None
    recipe: Recipe


def expand(methods: Sequence[str], budgets: Sequence[float]) -> list[RowSpec]:
    """Specs as rows: one without a budget becomes a row a budget; the untouched model is always the first row."""
    rows = {"full": RowSpec("full", "full", None, recipe(None))}
    for spec in methods:
        for made in _each_budget(spec, budgets):
            what = recipe(made)
            if not len(what) or repr(what) == "full":
                continue
            keep, skip = what.get("score", "keep"), what.get("skip")
            budget = keep.knobs.get("budget") if keep else skip.knobs.get("share") if skip else None
            rows[repr(what)] = RowSpec("+".join(m.name for m in what), repr(what), budget, what)
    return list(rows.values())


def _each_budget(spec: str, budgets: Sequence[float]) -> Iterator[Method | Recipe]:
    if spec.strip() == "full":
        return
    made = parse(spec)
    if isinstance(made, Method) and made.verb == "skip" and "share" in made.knobs and "share" not in made.given:
        yield from (made(share=budget) for budget in budgets)
        return
    open_budget = isinstance(made, Method) and "budget" in made.knobs and "budget" not in made.given
    if isinstance(made, Method) and open_budget and made.knobs.get("slots") is None:
        yield from (made(budget=budget) for budget in budgets)
    else:
        yield made


def takes_budget(spec: str) -> bool:
    """Whether a row a budget is made of a spec."""
    return len(list(_each_budget(spec, (0.5, 0.25)))) > 1


# What the methods of a track do; compare decode takes whatever generates.
VERBS = {"cache": ("score", "keep", "merge", "quantize"), "depth": ("skip",)}


def check_track(track: str, spec: str) -> None:
    """Refuse a spec whose methods the track cannot tell from doing nothing. Raises SpecError."""
    if track not in VERBS:
        return
    made = parse(spec)
    for method in made if isinstance(made, Recipe) else (made,):
        if method.verb not in VERBS[track]:
            names = ", ".join(sorted(name for verb in VERBS[track] for name in catalog.methods(verb)))
            other = {"skip": "depth", "draft": "decode", **dict.fromkeys(VERBS["cache"], "cache")}.get(method.verb)
            raise SpecError(
                f"compare {track} does not measure {method.name}, a {method.verb} method; it takes {names}"
                + (f"; use compare {other}" if other else "")
            )


def check_budgets(budgets: Sequence[float]) -> tuple[float, ...]:
    for budget in budgets:
        if not 0 < budget <= 1:
            raise SpecError(
                f"budget must be in (0, 1], not {budget:g} (share of the tokens seen that stays in the cache)"
            )
    if not budgets:
        raise SpecError("no budgets; give --budgets a list such as 0.5,0.25,0.1")
    return tuple(dict.fromkeys(budgets))


@dataclass
class Sweep:
    """Everything a run measures. `tick(what, weight)` is told of each finished piece of work."""

    engine: measure.Engine
    model: Any
    reader: Reader
    rows: list[RowSpec]
    plan: Plan
    seed: int
    store: Store
    own: Sequence[list[int]] = ()
    picture: str = ""

    # ---- what there is to do, and about how much work each piece is (in seconds of the reference machine; only
    # the proportions matter, for the time left)

    def pieces(self) -> Iterator[tuple[str, int, float, float]]:
        """(task, sample, weight of its reading, weight of a cell)."""
        speed = self.plan.speed
        for task in self.plan.tasks:
            for index in range(task.samples):
                extra = 0.055 * task.tail if task.kind == "drift" else 0.0
                cell = 0.15 + 0.0015 * (task.tail or 24) + 0.00015 * task.length
                yield task.name, index, 0.0045 * task.length + extra, cell
        yield PREFILL, 0, 0.0, 2 * speed.prefill_turns * 0.0023 * speed.prefill_context * speed.prefill_batch
        step = 0.045 + 6e-6 * speed.decode_batch * speed.decode_context
        yield (
            DECODE, 0, 0.0045 * speed.decode_context * speed.decode_batch,
            2 * (1 + speed.turns * speed.decode_steps) * step,
        )  # fmt: skip
        if self.plan.picture_tokens:
            yield PICTURE, 0, 0.5, 0.1

    def total(self) -> float:
        return sum(reading + cell * len(self.rows) for _, _, reading, cell in self.pieces())

    def left(self) -> float:
        """Work not done yet: a reading counts as long as any of its cells is missing."""
        work = 0.0
        for task, index, reading, cell in self.pieces():
            missing = len(self._pending(self._name(task), index))
            work += cell * missing + (reading if missing else 0.0)
        return work

    def _name(self, task: str) -> str:
        return f"{PICTURE} {self.picture_key}" if task == PICTURE else task

    @property
    def picture_key(self) -> str:
        return hashlib.sha256(self.picture.encode()).hexdigest()[:16]

    def picture_ids(self) -> list[int]:
        return (self.reader.prefix + self.reader.ids(self.picture))[: self.plan.picture_tokens]

    def _pending(self, task: str, index: int) -> list[RowSpec]:
        return [row for row in self.rows if not self.store.done(task, index, row.spec)]

    # ---- doing it

    def preflight(self) -> dict[str, str]:
        """Rows that cannot work on this model, with the reason; they leave the run before it begins."""
        ids = torch.tensor([build_text(self.reader, "preflight", 40)], device=measure.device(self.model))
        refused: dict[str, str] = {}
        for row in list(self.rows):
            try:
                session = self.engine.Session(self.model, row.recipe)
                session.read(ids)
                session.read(ids[:, -1:])
            except RecipeError as error:
                refused[row.spec] = str(error)
            except TokenmillError:
                raise
            except Exception as error:  # a method's own bug must not cost the other rows their run
                if row.method == "full":
                    raise
                refused[row.spec] = f"failed with {type(error).__name__}: {error}"
        self.rows = [row for row in self.rows if row.spec not in refused]
        return refused

    def run(self, tick: Callable[[str, float], None]) -> None:
        """Measure every cell that the store does not hold yet."""
        tasks = {task.name: task for task in self.plan.tasks}
        for name, index, reading, cell in self.pieces():
            pending = self._pending(self._name(name), index)
            if not pending:
                continue
            if name in tasks:
                self._quality(build(tasks[name], index, self.seed, self.reader, self.own), pending, tick, reading, cell)
            elif name == PREFILL:
                self._prefill(pending, tick, cell)
            elif name == DECODE:
                self._decode(pending, tick, reading, cell)
            else:
                self._picture(pending, tick, reading, cell)

    def _quality(self, sample: Sample, pending: list[RowSpec], tick: Any, reading: float, cell: float) -> None:
        task = sample.task.name
        tick(f"{task} {sample.index + 1}/{sample.task.samples}: reading", 0)
        began = time.perf_counter()
        trial = measure.Trial(self.engine, self.model, sample, [row.recipe for row in pending])
        self._read(task, sample.index, trial.prompt, pending, time.perf_counter() - began)
        tick(f"{task} {sample.index + 1}/{sample.task.samples}", reading)
        for row in pending:
            self._cell(task, sample.index, row, partial(trial.cell, row.recipe), tick, cell)

    def _read(self, task: str, index: int, prompt: measure.Prompt, rows: list[RowSpec], seconds: float) -> None:
        """Note what a reading cost, and which part of it each row's decisions were."""
        if not self.store.done(task, index, READING):
            spent = prompt.reading.decision_seconds
            value = {"decisions": {row.spec: spent[row.recipe] for row in rows if row.recipe in spent}}
            self.store.add(task, index, READING, value, seconds)

    def _cell(self, task: str, index: int, row: RowSpec, work: Callable[[], Any], tick: Any, weight: float) -> None:
        seconds, value = measure.timed(self.model, work)
        self.store.add(task, index, row.spec, value, seconds)
        tick("", weight)

    def _batch(self, batch: int, length: int) -> torch.Tensor:
        """(batch, length) real text, another stretch a row."""
        rows = [build_text(self.reader, f"{self.seed}/speed/{row}", length) for row in range(batch)]
        return torch.tensor(rows, device=measure.device(self.model))

    def _prefill(self, pending: list[RowSpec], tick: Any, weight: float) -> None:
        speed = self.plan.speed
        ids = self._batch(speed.prefill_batch, speed.prefill_context)
        tick("prefill speed", 0)
        self.engine.Session(self.model, measure.UNTOUCHED).read(ids)  # warm
        for row in pending:
            work = partial(measure.prefill_cell, self.engine, self.model, ids, row.recipe, speed)
            self._cell(PREFILL, 0, row, work, tick, weight)

    def _decode(self, pending: list[RowSpec], tick: Any, reading: float, weight: float) -> None:
        speed = self.plan.speed
        ids = self._batch(speed.decode_batch, speed.decode_context)
        tick(f"decode speed: reading {speed.decode_batch} x {speed.decode_context} tokens", 0)
        prompt = measure.Prompt.read(self.engine, self.model, ids, [row.recipe for row in pending])
        self._read(DECODE, 0, prompt, pending, prompt.seconds)
        tick("decode speed", reading)
        for row in pending:
            work = partial(measure.decode_cell, prompt, row.recipe, speed)
            self._cell(DECODE, 0, row, work, tick, weight)

    def _picture(self, pending: list[RowSpec], tick: Any, reading: float, weight: float) -> None:
        tick("what each method keeps", 0)
        ids = torch.tensor([self.picture_ids()], device=measure.device(self.model))
        prompt = measure.Prompt.read(self.engine, self.model, ids, [row.recipe for row in pending])
        tick("", reading)
        for row in pending:
            self._cell(self._name(PICTURE), 0, row, partial(measure.picture_cell, prompt, row.recipe), tick, weight)


def build_text(reader: Reader, key: str, length: int) -> list[int]:
    """Exactly `length` tokens of real text."""
    body = [i for part in reader.stretch(sentences(key), length - len(reader.prefix)) for i in part]
    return reader.prefix + body
