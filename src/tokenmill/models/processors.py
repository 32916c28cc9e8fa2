"""Warpers of logits for the library's own generate."""

from __future__ import annotations

from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from tokenmill.errors import RecipeError
from tokenmill.method import Method, Recipe
from tokenmill.method import recipe as as_recipe


class _Warper(LogitsProcessor):
    def __init__(self, method: Method):
        self.method = method

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self.method(scores)


def processors(recipe: str | Method | Recipe) -> LogitsProcessorList:
    """The recipe's warpers for `model.generate(logits_processor=..., do_sample=True)`, in order.

    The other methods of a recipe go through `tokenmill.applied`. Raises RecipeError for a method that needs
    Tokenmill's own loop, or if there is nothing that warps.
    """
    wanted = as_recipe(recipe)
    for m in wanted:
        if m.verb in ("draft",) or m.card.role in ("search", "heal", "adapt"):
            raise RecipeError(f"{m!r} needs Tokenmill's own loop: tokenmill.generate")
    chain = [m for m in wanted if m.card.role in ("warp", "final")]
    if not chain:
        raise RecipeError(f"{wanted!r} warps no logits; processors takes warpers such as min_p(share=0.1)")
    return LogitsProcessorList([_Warper(m) for m in chain])
