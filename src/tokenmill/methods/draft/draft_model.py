"""Draft model: a second, smaller model with the same tokenizer writes the draft.

    guesses after a text = the likeliest tokens of q(. | text), q being the second model

Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", 2023; Chen et al., 2023.

Differs: (1) The draft is a chain of 8 tokens unless `nodes` or a tree is given; the paper chooses its length by how
often the two models agree. (2) Where nothing is drawn the likeliest tokens are drafted and checked by equality.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from tokenmill.method import method
from tokenmill.ops.sampling import likeliest
from tokenmill.types import Guess, Tree, Verified


@method(
    title="Fast Inference from Transformers via Speculative Decoding",
    paper="arXiv:2211.17192",
    year=2022,
    needs=("drafter",),
    role="source",
    tree="chain",
    lossless=True,
)
def draft_model(
    seen: Verified, state: None, drafter: Callable[[Tree, Sequence[int]], Tensor], *, model: str = "", width: int = 8
) -> tuple[object, None]:
    def look(tree: Tree, at: Sequence[int]) -> Guess:
        return likeliest(drafter(tree, at), width)

    return look, None
