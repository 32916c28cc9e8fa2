"""Lookahead: the model guesses its own future in parallel."""

from __future__ import annotations

from statistics import fmean

from tokenmill.claims.drafting import GREEDY, drafted
from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check

CLAIM = "Text comes out exactly as greedy decoding writes it, in fewer passes, with nothing but the model itself."
PAPER = "LLaMA-2-Chat 7B on MT-Bench: 1.8x faster on one GPU; up to 4x for code on several (abstract and blog)"
BEYOND = "the speed on a GPU, where the tokens of a window cost almost nothing beside the weights"


def measure(lab: Lab) -> list[Check]:
    small, mine = "lookahead", "lookahead(window=10, ngram=4, width=6)"
    out = drafted(lab, [small, mine])
    slower = fmean(a / b for a, b in zip(out.seconds[mine], out.seconds[GREEDY], strict=True))
    lab.because(slower > 1, f"with {mine} a text takes {slower:.2f} times as long here: every guess costs arithmetic")
    return [out.equal(mine), out.more(mine, GREEDY), out.more(mine, small, "tokens a pass, against a smaller window")]
