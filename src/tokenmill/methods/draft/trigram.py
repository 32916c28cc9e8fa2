"""Trigrams: what followed these two words in the text so far; the table ADED drafts from, as a source of its own.

    M[a, b][x] = how often x followed a, b;  chance of x after a, b = M[a, b][x] / sum of M[a, b]

The state is the table, and is written into.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from tokenmill.method import method
from tokenmill.types import Guess, Tree, Verified

Table = dict[tuple[int, int], dict[int, int]]
State = tuple[int, Table]  # how much of the text is counted, and the counts


@method(title="", role="source", tree="fixed", lossless=True)
def trigram(seen: Verified, state: State | None, *, width: int = 8) -> tuple[object, State]:
    text = seen.context.tolist()
    counted, table = state or (0, {})
    for (a, b), x in zip(pairwise(text[max(0, counted - 2) :]), text[max(2, counted) :], strict=False):
        counts = table.setdefault((a, b), {})
        counts[x] = counts.get(x, 0) + 1

    def look(tree: Tree, at: Sequence[int]) -> Guess:
        rows = []
        for end in tree.ends(text, at, 2):
            counts = table.get((end[0], end[-1]), {}) if len(end) == 2 else {}
            best = sorted(counts.items(), key=lambda item: -item[1])[:width]
            rows.append({token: count / sum(counts.values()) for token, count in best})
        return Guess(rows)

    return look, (len(text), table)
