"""How tokens are chosen from logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import index

import torch
from torch import Tensor

from tokenmill.errors import InputError, ModelError, RecipeError, SpecError
from tokenmill.method import Method, Recipe, get
from tokenmill.ops.logits import largest
from tokenmill.ops.sampling import draws
from tokenmill.run.arguments import real_number

SEEDS = 2**64  # different seeds that a generator takes


class Chooser:
    """Takes the likeliest token, or draws one, of what the warpers leave. Every row draws from a generator of its own.

    `temperature` None means: drawn, at temperature 1, if anything warps or `top_p` is below 1; else the likeliest.
    0 takes the likeliest token after the warpers.
    """

    def __init__(
        self, temperature: float | None = None, top_p: float = 1.0, seed: int | Sequence[int] = 0, rows: int = 1,
        warpers: Sequence[Method] = (),
    ):  # fmt: skip
        temperature = None if temperature is None else real_number("temperature", temperature, "0 (greedy) or above")
        top_p = real_number("top_p", top_p, "in (0, 1]")
        if temperature is not None and not temperature >= 0:
            raise SpecError(f"temperature must be 0 (greedy) or above, not {temperature:g}")
        if not 0 < top_p <= 1:
            raise SpecError(f"top_p must be in (0, 1], not {top_p:g}")
        named = [m.name for m in warpers]
        asked = [] if temperature is None else [get("temperature")(temperature=temperature)]
        asked += [] if top_p == 1 else [get("top_p")(share=top_p)]
        for m in asked:
            if m.name in named:
                raise RecipeError(f"{m.name} is given twice, as an argument and in the recipe; give one of them")
        chain = [*asked, *warpers]
        cold = [m for m in chain if m.card.role == "final" or (m.name == "temperature" and m.temperature == 0)]
        self.greedy = bool(cold) or not (chain or temperature is not None)
        # The order of logits is the same at every temperature, and the likeliest token is what counts.
        self.warpers = [m for m in chain if m not in cold and not (m.name == "temperature" and m.temperature == 1)]
        self.generators = _generators(seed, rows)

    @classmethod
    def of(
        cls, recipe: Recipe, temperature: float | None, top_p: float, seed: int | Sequence[int], rows: int
    ) -> Chooser:
        """What a recipe and the arguments of generate say together."""
        final = recipe.get("final")
        if final is not None and temperature:
            raise RecipeError(f"{final!r} takes the likeliest token and temperature={temperature:g} draws one")
        search = recipe.get("search")
        if search is not None and "draws" in search.card.needs and temperature is None and not recipe.all("warp"):
            temperature = 1.0
        elif search is not None and "chooses" not in search.card.needs and (temperature or top_p < 1):
            raise RecipeError(f"{search!r} draws nothing, so temperature and top_p mean nothing; leave them out")
        return cls(temperature, top_p, seed, rows, [*recipe.all("warp"), *([final] if final else [])])

    def generator(self, row: int) -> torch.Generator:
        """What a row draws with."""
        return self.generators[row]

    def warped(self, logits: Tensor) -> Tensor:
        """(N, V) logits through the warpers, in order, in float32: (N, V)."""
        _refuse_nan(logits.amax(-1))
        logits = logits.float()
        for warper in self.warpers:
            logits = warper(logits)
        return logits

    def __call__(self, logits: Tensor, row: int | None = None) -> Tensor:
        """logits (N, V) to tokens (N,). With `row`, all of them belong to that row."""
        if self.greedy:
            values, tokens = largest(self.warped(logits) if self.warpers else logits)
            _refuse_nan(values)
            return tokens
        generators = [self.generators[i if row is None else row] for i in range(len(logits))]
        return draws(self.probabilities(logits), generators)

    def probabilities(self, logits: Tensor) -> Tensor:
        """(N, V) logits to the distributions tokens are drawn from (N, V); one-hot where the choice is greedy."""
        warped = self.warped(logits)
        if self.greedy:
            return torch.nn.functional.one_hot(largest(warped)[1], warped.shape[-1]).to(warped)
        return warped.softmax(-1)


def _generators(seed: int | Sequence[int], rows: int) -> list[torch.Generator]:
    """A generator for each row, from one seed or one a row; whole numbers of numpy and torch count as such."""
    try:
        seeds = [index(seed)] * rows  # type: ignore[arg-type]
    except TypeError:
        try:
            seeds = [*map(index, seed)]  # type: ignore[arg-type]
        except TypeError:
            raise SpecError(f"seed must be a whole number, or one for each prompt, not {seed!r}") from None
    if len(seeds) != rows:
        raise InputError(f"there are {len(seeds)} seeds for {rows} prompts; give one, or one for each")
    for one in seeds:
        if not 0 <= one < SEEDS:
            raise SpecError(f"seed must be in [0, 2^64), not {one}")
    return [torch.Generator().manual_seed(one) for one in seeds]


def _refuse_nan(values: Tensor) -> None:
    """Raise ModelError if the largest of a row is NaN, as it is if any is. values: (N,)"""
    if any(map(math.isnan, values.tolist())):
        raise ModelError("the model's logits are NaN: its weights, or its number format, are broken")
