"""What a recipe means for the engine, worked out once: which method is asked when, and what it must be shown."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tokenmill.errors import RecipeError
from tokenmill.method import Method, Recipe, decider, get
from tokenmill.models.architectures import Decoder
from tokenmill.models.lanes import compact
from tokenmill.types import Keep, Trace


@dataclass(frozen=True)
class Plan:
    recipe: Recipe
    keep: Method | None = None  # evicts (a score with a budget included)
    select: Method | None = None  # chooses what each pass attends to
    walker: Method | None = None  # drops tokens between layers
    merge: Method | None = None
    quantize: Method | None = None
    skip: Method | None = None  # says before a pass which layers it runs
    exit: Method | None = None  # says after each layer which rows go no deeper
    watcher: Method | None = None  # the score behind `keep`, or `keep` itself
    every: int = 64  # single-token passes between two decisions

    @property
    def queries(self) -> int | None:
        """How many of the newest queries the watcher is shown: None all of the pass, 0 none."""
        if self.watcher is None:
            return 0
        if self.watcher.stateful or "all_queries" in self.watcher.card.needs:
            return None
        return self.watcher.knobs.get("window") if "queries" in self.watcher.card.needs else 0

    @staticmethod
    def pairs(layer: int, decoder: Decoder) -> bool:
        """A layer and the one below can be stored as one: neither forgets tokens by a window of its own."""
        return layer > 0 and decoder.windows[layer] is None and decoder.windows[layer - 1] is None

    @property
    def renumbers(self) -> bool:
        """Kept tokens get in-cache positions."""
        return self.keep is not None and bool(self.keep.knobs.get("renumber"))

    @property
    def idle(self) -> bool:
        """Nothing is decided after a layer has attended."""
        return self.keep is None and self.merge is None and self.quantize is None

    def score(self, trace: Trace, state: Any) -> tuple[Tensor, Any]:
        """Run the score behind `keep`."""
        assert self.watcher is not None
        return self.watcher(trace, state) if self.watcher.stateful else (self.watcher(trace), None)

    def spend(self, trace: Trace, scores: Tensor | None) -> Keep:
        """Spend the budget on what was scored."""
        assert self.keep is not None
        if self.keep.verb == "score":
            spent = {"budget": self.keep.knobs["budget"], "slots": self.keep.knobs["slots"]}
            return get("top")(trace, scores, score=self.keep, **spent)
        return self.keep(trace) if scores is None else self.keep(trace, scores)

    @property
    def scores(self) -> bool:
        """`keep` spends on a score, rather than choosing by itself."""
        return self.watcher is not None and self.watcher.verb == "score"


def plan_of(recipe: Recipe, decoder: Decoder) -> Plan:
    """Raises RecipeError when a method of the recipe cannot run on this model."""
    parts: dict[str, Any] = {}
    for m in recipe:
        asked = [m, *(k for k in m.knobs.values() if isinstance(k, Method))]
        needs = {need for a in asked for need in a.card.needs}
        if None in decoder.rotaries and ("rotary" in needs or m.knobs.get("renumber")):
            hint = f"; use {m.name}(renumber=False, …)" if "renumber" in m.knobs else ""
            why = (
                "has learned ones" if decoder.learned_positions else "turns its keys in a way the engine does not know"
            )
            raise RecipeError(f"{m!r} needs rotary positions and '{decoder.kind}' {why}{hint}")
        if m.verb == "skip" and not decoder.skippable:
            raise RecipeError(f"{m!r} skips layers, and what the layers of '{decoder.kind}' store is not known then")
        if m.verb == "skip" and m.card.acts == "exit" and not decoder.proven_head:
            raise RecipeError(f"{m!r} reads logits between layers, and the head of '{decoder.kind}' is not known")
        if m.verb in ("score", "keep"):
            if m.name == "full":
                continue
            parts[{"cache": "keep", "attend": "select", "walk": "walker"}[m.card.acts]] = m
            if m.card.acts == "cache":
                parts["watcher"] = decider(m)
                parts["every"] = parts["watcher"].card.every
        elif m.verb == "skip":
            parts["exit" if m.card.acts == "exit" else "skip"] = m
        elif m.verb in ("merge", "quantize"):
            parts[m.verb] = m
    if "merge" in parts and not any(Plan.pairs(i, decoder) for i in range(len(decoder.windows))):
        raise RecipeError(
            f"{parts['merge']!r} stores neighbouring full-attention layers as one and this '{decoder.kind}' has none; "
            "its layers slide over windows and forget at different times"
        )
    plan = Plan(recipe, **parts)
    slots = plan.keep.knobs["slots"] if plan.keep is not None and plan.renumbers else None
    if slots and decoder.limit is not None:  # decided about before the cache outgrows the context
        plan = replace(plan, every=max(1, min(plan.every, decoder.limit - slots)))
    return plan


def thin(trace: Trace, mask: Tensor) -> Trace:
    """The trace of what a keep left: for a method that decides after another."""
    mask = mask & trace.filled
    return replace(
        trace,
        keys=compact(trace.keys, mask),
        values=compact(trace.values, mask),
        positions=compact(trace.positions, mask, -1),
    )


def newest(queries: Tensor, positions: Tensor, count: int | None) -> tuple[Tensor, Tensor]:
    """The last `count` real queries of each row, oldest first; rows that have fewer are padded on the left."""
    if count is None:
        return queries, positions
    if count == 0:
        return queries[:, :, :0], positions[:, :0]
    if bool((positions[:, -count:] >= 0).all()):
        return queries[:, :, -count:], positions[:, -count:]
    order = (positions >= 0).long().argsort(dim=-1, stable=True)[:, -count:]  # padding first, then as they came
    index = order[:, None, :, None].expand(-1, queries.shape[1], -1, queries.shape[3])
    return queries.gather(2, index), torch.gather(positions, 1, order)
