"""First layers: the model's own first layers, with its own head on top, write the draft.

    guesses after a text = the likeliest tokens of head(norm(hidden state after `layers` layers))

The draft half of Elhoushi et al., "LayerSkip", 2024, and of Zhang et al., "Draft & Verify", 2023, on a model that was
not trained for it; a baseline. The draft's layers keep a cache of their own, `layers` / all of the model's in size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from tokenmill.method import method
from tokenmill.ops.sampling import likeliest
from tokenmill.types import Guess, Tree, Verified


@method(title="", needs=("drafter",), role="source", tree="chain", lossless=True)
def first_layers(
    seen: Verified, state: None, drafter: Callable[[Tree, Sequence[int]], Tensor], *, layers: int = 8, width: int = 8
) -> tuple[object, None]:
    def look(tree: Tree, at: Sequence[int]) -> Guess:
        return likeliest(drafter(tree, at), width)

    return look, None
