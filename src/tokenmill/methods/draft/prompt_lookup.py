"""Prompt lookup: what followed the last time these words were used is drafted again; the baseline without a paper.

    the longest n <= ngram such that the newest n tokens occur earlier;  draft = the `nodes` tokens that followed

The newest earlier use counts. An idea of Saxena, "Prompt Lookup Decoding", 2023.
"""

from __future__ import annotations

from tokenmill.method import method
from tokenmill.ops.trees import chain
from tokenmill.types import Draft, Verified


@method(title="", lossless=True)
def prompt_lookup(seen: Verified, state: None, *, ngram: int = 3, nodes: int = 8) -> tuple[Draft, None]:
    text = seen.context  # (T,)
    for n in range(min(ngram, len(text) - 1), 0, -1):
        found = (text[:-1].unfold(0, n, 1) == text[-n:]).all(-1).nonzero().flatten()  # starts of earlier uses
        if len(found):
            after = int(found[-1]) + n
            return chain(text[after : after + nodes]), None
    return chain(text[:0]), None
