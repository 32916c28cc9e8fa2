"""Speculative Jacobi decoding: what each pass said after yesterday's guesses are today's guesses.

    guess at place i <- what the last pass predicted there, given the guesses before it;  places it did not reach:
    tokens of the text, by lot
    a guess x is taken with probability min(1, p_now(x) / p_before(x)),  else drawn anew from (p_now - p_before)+

Teng et al., "Accelerating Auto-regressive Text-to-Image Generation with Training-free Speculative Jacobi Decoding",
2024. Without drawing it is Jacobi decoding (Santilli et al. 2023).

After a refusal all later guesses are drawn anew from the new predictions, as in the authors' code, which keeps every
guess a draw from the distribution it is tested against.

Differs: (1) Made for image tokens; here the window is text, and a place that no pass has reached takes a token from
the text (the paper: a random one, or an image neighbour). (2) The window is `nodes`, 8 by default; the authors' is 16
tokens. (3) They draw images with classifier-free guidance and the 2,000 likeliest tokens alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenmill.method import method
from tokenmill.ops.noise import at as noise
from tokenmill.ops.sampling import likeliest
from tokenmill.ops.trees import level
from tokenmill.types import Guess, Tree, Verified


@method(
    title="Accelerating Auto-regressive Text-to-Image Generation with Training-free Speculative Jacobi Decoding",
    paper="arXiv:2410.01699",
    year=2024,
    role="source",
    tree="chain",
    lossless=True,
)
def jacobi(seen: Verified, state: None, *, seed: int = 0) -> tuple[object, None]:
    said: dict[int, Tensor] = {}  # place below the newest token -> what was predicted there, (V,)
    if seen.depths is not None:
        reached = int(seen.depths[seen.accepted].max()) + 1  # the newest token's own depth in the last tree
        for row, depth in enumerate(seen.depths.tolist()):
            if depth >= reached:
                said.setdefault(depth - reached, seen.logits[row])
    text = seen.context.tolist()

    def look(tree: Tree, at: Sequence[int]) -> Guess:
        deep = [level(tree, node) for node in at]
        rows = [said[d] if d in said else _by_lot(text, d, seed, seen.logits[0]) for d in deep]
        return likeliest(torch.stack(rows).float(), 1)

    return look, None


def _by_lot(text: list[int], place: int, seed: int, like: Tensor) -> Tensor:
    """Logits that are certain of one token of the text."""
    lot = float(noise(torch.tensor(0), torch.tensor(len(text) + place), seed))
    sure = torch.full_like(like, -torch.inf)
    sure[text[int(lot * len(text))]] = 0
    return sure
