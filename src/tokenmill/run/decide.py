"""The decision itself, nothing applied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tokenmill.errors import InputError, RecipeError
from tokenmill.method import Method, Recipe
from tokenmill.method import recipe as as_recipe
from tokenmill.models.plan import plan_of
from tokenmill.run.arguments import prompt_ids
from tokenmill.run.session import Session, read_once
from tokenmill.types import Trace


@dataclass(frozen=True)
class Kept:
    """What a recipe keeps of one prompt."""

    recipe: Recipe
    positions: list[list[list[int]]]  # [layer][key/value head] -> sorted absolute positions
    length: int

    @property
    def share(self) -> float:
        """Share of all slots, over layers and heads, that stays."""
        heads = [head for layer in self.positions for head in layer]
        return sum(map(len, heads)) / (len(heads) * self.length)


def decide(model: Any, ids: Tensor | Sequence[int], recipe: str | Method | Recipe) -> Kept:
    """Which tokens of a prompt a recipe keeps, in each layer and head; nothing is evicted.

    ids: (T,) or (1, T). For methods that choose anew at every step it is the choice of the last prompt token;
    for methods that drop tokens between layers, what each layer computed. Raises InputError for anything but ids of
    the model, RecipeError for a recipe that does not choose.
    """
    if isinstance(ids, str):
        raise InputError("decide takes the ids of one prompt, not text; give tokenizer(text)['input_ids']")
    row = torch.tensor([prompt_ids(None, ids)])
    wanted = as_recipe(recipe)
    if wanted.get("keep", "score") is None:
        raise RecipeError(f"{wanted!r} does not choose which tokens stay; methods that do are under 'score' and 'keep'")
    if wanted.acts("walk"):
        session = Session(model, wanted)
        session.read(row)
        kept = session.kept()
    elif wanted.acts("attend"):
        kept = _selected(model, row, wanted)
    else:
        kept = read_once(model, row, [wanted]).session(wanted).kept()
    return Kept(wanted, [layer[0] for layer in kept], row.shape[1])


def _selected(model: Any, row: Tensor, recipe: Recipe) -> list[list[list[list[int]]]]:
    whole = Session(model, None)
    kept = []
    with whole.engaged() as engine:
        select = plan_of(recipe, engine.decoder).select
        assert select is not None

        def observe(layer: int, trace: Trace) -> None:
            shown = replace(trace, queries=trace.queries[:, :, -1:], query_positions=trace.query_positions[:, -1:])
            mask = (select(shown, None)[0].mask & trace.filled).expand_as(trace.positions)
            kept.append([[p[m].sort().values.tolist() for p, m in zip(trace.positions[0], mask[0], strict=True)]])

        engine.observe = observe
        whole.read(row)
    return kept
