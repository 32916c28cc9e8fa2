"""Token Recycling: the runners-up of earlier predictions, token by token, become the branches of the next draft.

    M[v] = the `width` likeliest tokens after v, when v was last checked  (a row of the matrix per token)
    guesses after a text that ends in v: M[v]

A pass that checks a draft fills the rows of all its tokens, accepted or not; the prompt fills that of its last token
alone. The matrix is kept from one text to the next (`memory` of tokenmill.generate), which is most of what it knows.

Luo et al., "Turning Trash into Treasure: Accelerating Inference of Large Language Models with Token Recycling",
2024.

Differs: (1) The authors' tree is a table of 80 paths; alone, this source grows the tree `fixed`, which has any size,
12 nodes by default, because on a CPU every node costs time. At nodes=80 it shares 70 paths with theirs. (2) Theirs
keeps the matrix from text to text; here that is the caller's choice (`memory=`), and a call without it starts with an
empty one. (3) A token not checked yet has no successors; in their code it has token 0. (4) The matrix holds each
successor's probability beside it, for trees that grow by chances.

The state is the matrix, and this method writes into the one it is handed: nobody else holds it, and copying it at
every step would cost more than drafting.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenmill.method import method
from tokenmill.ops.logits import top_chances
from tokenmill.ops.sampling import as_rows
from tokenmill.types import Guess, Tree, Verified

State = tuple[Tensor, Tensor]  # successors (V, W), -1 = never checked; their probabilities (V, W)


@method(
    title="Turning Trash into Treasure: Accelerating Inference of Large Language Models with Token Recycling",
    paper="arXiv:2408.08696",
    year=2024,
    role="source",
    tree="fixed",
    carries=True,
    lossless=True,
)
def token_recycling(seen: Verified, state: State | None, *, width: int = 8) -> tuple[object, State]:
    vocabulary = seen.logits.shape[-1]
    width = min(width, vocabulary)
    if state is None:
        none = torch.full((vocabulary, width), -1, dtype=torch.int32, device=seen.logits.device)
        state = none, torch.zeros_like(none, dtype=torch.float16)
    successors, chances = state
    first = len(seen.tokens) - 1 if seen.depths is None else 0
    newest = {token: row for row, token in enumerate(seen.tokens.tolist()) if row >= first}
    likely = top_chances(seen.logits, width)
    for column, found in zip(state, likely, strict=True):
        column[[*newest]] = found[[*newest.values()]].to(column.dtype)

    def look(tree: Tree, at: Sequence[int]) -> Guess:
        last = [tree.tokens[node] if node >= 0 else root for node in at]
        return Guess(as_rows(successors[last], chances[last]))

    root = int(seen.context[-1])
    return look, state
