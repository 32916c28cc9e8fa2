"""Lookahead: the model guesses its own future in parallel."""

from __future__ import annotations

from tokenmill.claims.drafting import GREEDY, drafted
from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check

CLAIM = (
    "Text comes out exactly as greedy decoding writes it, in fewer passes, with nothing but the model itself; the "
    "larger the window, the fewer."
)
PAPER = (
    "LLaMA-2-Chat 7B on MT-Bench: 1.8x faster on one GPU; up to 4x for code on several (abstract and blog). The "
    "authors' code runs with window 7, runs of 5 tokens and 7 guesses, the paper with 15, 5 and 15 for 7B"
)
BEYOND = "the speed on a GPU, where the tokens of a window cost almost nothing beside the weights"
SMALL, MINE = "lookahead", "lookahead(window=7, ngram=5, width=7)"


def measure(lab: Lab) -> list[Check]:
    out = drafted(lab, [SMALL, MINE])
    return [out.equal(MINE), out.more(MINE, GREEDY), out.more(MINE, SMALL, "tokens a pass, against a smaller window")]
