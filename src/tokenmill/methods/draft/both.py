"""Both: the guesses of two sources, one after the other where they differ.

guesses after a text = those of `source`, then those of `other` that are not among them;  a token both name has the
larger of its chances
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
        for mine, theirs in zip(one(tree, at).rows, two(tree, at).rows, strict=True):
            larger = {token: max(mine.get(token, 0.0), theirs.get(token, 0.0)) for token in (*mine, *theirs)}
            rows.append(dict(sorted(larger.items(), key=lambda item: -item[1])))
        return Guess(rows)

    return look, (first, second)
