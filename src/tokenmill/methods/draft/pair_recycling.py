"""Pair recycling: Token Recycling, remembered by the last two tokens, and by the last one where the two are new.

    M[u, v] = the `width` likeliest tokens after v, when v was last read behind u;  M[v] the same behind any token
    guesses after a text that ends in u, v: M[u, v] if it was ever read, else M[v]

A baseline of ours, after Luo et al., "Turning Trash into Treasure", 2024: what follows a word
depends on the word before, and drafts are read by the hundred, so most pairs of a repetitive text are known.

The state is written into, as that of token_recycling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenmill.method import method
from tokenmill.ops.sampling import likeliest
from tokenmill.types import Guess, Tree, Verified

Row = Mapping[int, float]  # successors -> their probabilities
State = tuple[dict[int, Row], dict[tuple[int, int], Row]]


@method(title="", role="source", tree="auto", carries=True, lossless=True)
def pair_recycling(seen: Verified, state: State | None, *, width: int = 6) -> tuple[object, State]:
    singles, pairs = state or ({}, {})
    before = seen.before.tolist() if seen.before is not None else [-1] * len(seen.tokens)
    for u, v, row in zip(before, seen.tokens.tolist(), likeliest(seen.logits, width).rows, strict=True):
        singles[v] = pairs[u, v] = row
    text = seen.context[-2:].tolist()

    def look(tree: Tree, at: Sequence[int]) -> Guess:
        rows = []
        for end in tree.ends(text, at, 2):
            u, v = (end[0] if len(end) == 2 else -1), end[-1]
            # A row of the pair itself is to be believed more than one of its last token behind another word.
            rows.append(pairs[u, v] if (u, v) in pairs else {x: p / 2 for x, p in singles.get(v, {}).items()})
        return Guess(rows)

    return look, (singles, pairs)
