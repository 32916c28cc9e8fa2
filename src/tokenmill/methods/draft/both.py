"""Both: the guesses of two sources, one after the other where they differ.

guesses after a text = those of `source`, then those of `other` that are not among them;  a token both name has the
larger of its chances;  `source` is not asked where the best chance of `other` is above `threshold`

A threshold below 1 is for a source that costs time, such as a trained head, beside tables that cost none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenmill.method import Method, method
from tokenmill.methods.draft.pair_recycling import pair_recycling
from tokenmill.methods.draft.prompt_lookup import prompt_lookup
from tokenmill.ops.trees import above
from tokenmill.types import Guess, Tree, Verified


@method(title="", role="source", tree="auto", lossless=True)
def both(
    seen: Verified, state: tuple[Any, Any] | None, *given: Any,
    source: Method = pair_recycling, other: Method = prompt_lookup, threshold: float = 1.0,
) -> tuple[object, tuple[Any, Any]]:  # fmt: skip
    before = state or (None, None)
    (one, first), (two, second) = source(seen, before[0], *given), other(seen, before[1])
    asked: dict[int, dict[int, float]] = {}  # node -> what `source` guesses there

    def told(tree: Tree, at: Sequence[int], known: list[dict[int, float]]) -> list[dict[int, float]]:
        unsure = [n for n, row in zip(at, known, strict=True) if max(row.values(), default=0.0) <= threshold]
        new = [n for n in above(tree, unsure) if n not in asked]  # it may build on what it said of the nodes above
        asked.update(zip(new, one(tree, new).rows, strict=True) if new else ())
        return [asked[node] if node in unsure else {} for node in at]

    def look(tree: Tree, at: Sequence[int]) -> Guess:
        known = two(tree, at).rows
        rows = []
        for mine, theirs in zip(told(tree, at, known) if threshold < 1 else one(tree, at).rows, known, strict=True):
            larger = {token: max(mine.get(token, 0.0), theirs.get(token, 0.0)) for token in (*mine, *theirs)}
            rows.append(dict(sorted(larger.items(), key=lambda item: -item[1])))
        return Guess(rows)

    return look, (first, second)
