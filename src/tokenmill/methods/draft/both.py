"""Both: the guesses of two sources, one after the other where they differ.

guesses after a text = those of `source`, then those of `other` that are not among them;  a token both name has the
larger of its chances
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tokenmill.method import Method, method
from tokenmill.methods.draft.pair_recycling import pair_recycling
from tokenmill.methods.draft.prompt_lookup import prompt_lookup
from tokenmill.types import Guess, Tree, Verified


@method(title="", role="source", tree="auto", lossless=True)
def both(
    seen: Verified, state: tuple[Any, Any] | None, *given: Any,
    source: Method = pair_recycling, other: Method = prompt_lookup,
) -> tuple[object, tuple[Any, Any]]:  # fmt: skip
    before = state or (None, None)
    (one, first), (two, second) = source(seen, before[0], *given), other(seen, before[1])

    def look(tree: Tree, at: Sequence[int]) -> Guess:
        rows = []
        for guess in (one(tree, at), two(tree, at)):
            rows.append(list(zip(guess.tokens.tolist(), guess.chances.tolist(), strict=True)))
        merged = []
        for mine, theirs in zip(*rows, strict=True):
            best: dict[int, float] = {}
            for token, chance in (*zip(*mine, strict=True), *zip(*theirs, strict=True)):
                if token >= 0:
                    best[token] = max(chance, best.get(token, 0.0))
            merged.append(sorted(best.items(), key=lambda item: -item[1]))
        width = max(map(len, merged), default=0)
        padded = [[*row, *[(-1, 0.0)] * (width - len(row))] for row in merged]
        tokens = torch.tensor([[t for t, _ in row] for row in padded], dtype=torch.long).view(len(at), width)
        return Guess(tokens, torch.tensor([[c for _, c in row] for row in padded]).view(len(at), width))

    return look, (first, second)
