"""Prompt lookup: what followed the last time these words were used is drafted again; the baseline without a paper.

    the longest n <= ngram such that the newest n tokens occur earlier;  guess = the token that followed, then the next

The newest earlier use counts; a guess's chance is n / (n + 1). An idea of Saxena, "Prompt Lookup Decoding", 2023.

The state is an index of the text, from runs of tokens to where they ended last, and is written into.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenmill.method import method
from tokenmill.types import Guess, Tree, Verified

State = tuple[list[int], dict[tuple[int, ...], int]]  # the text indexed so far; run of tokens -> place after it


@method(title="", role="source", tree="chain", lossless=True)
def prompt_lookup(seen: Verified, state: State | None, *, ngram: int = 3) -> tuple[object, State]:
    text, after = state or ([], {})
    text += seen.context[len(text) :].tolist()
    first = after.get((), 0)  # under the empty run: how much of the text is indexed
    for end in range(max(first, 1), len(text)):
        for n in range(1, min(ngram, end) + 1):
            after[tuple(text[end - n : end])] = end
    after[()] = max(len(text), 1)
    matched = next((n for n in range(ngram, 0, -1) if tuple(text[-n:]) in after), 0)
    place = {-1: after[tuple(text[-matched:])] if matched else len(text)}

    def look(tree: Tree, at: Sequence[int]) -> Guess:
        for node in at:
            if node >= 0:  # the copy goes on where its parent's ended
                place[node] = place[tree.parents[node]] + 1
        chance = matched / (matched + 1)
        return Guess([{text[place[node]]: chance} if place[node] < len(text) else {} for node in at])

    return look, (text, after)
