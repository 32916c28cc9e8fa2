"""Exact: accept what leaves the text as it would be without drafting.

    greedy:  the longest line of guesses that are all the model's own likeliest token
    drawn:   a guess x is taken with probability min(1, p(x) / q(x)),  else p <- (p - q)+ / sum for its sibling

p is what the model's tokens are drawn from, q what the guess was drawn from. A guess that was chosen, not drawn, is
taken where it is the token that p gives: as often, and the text is then the one that the seed gives without a draft.
The rule every draft goes by unless another is added to the recipe.

Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", 2023.
"""

from __future__ import annotations

from tokenmill.method import method
from tokenmill.ops.sampling import residual_walk
from tokenmill.ops.trees import accept_greedy, children
from tokenmill.types import Draft, Said


@method(title="", role="rule", lossless=True)
def exact(draft: Draft, said: Said) -> tuple[list[int], int]:
    parents = draft.parents.tolist()
    if said.generator is None:
        return accept_greedy(draft.tokens.tolist(), parents, said.likeliest)
    return residual_walk(draft, children(parents), said)
