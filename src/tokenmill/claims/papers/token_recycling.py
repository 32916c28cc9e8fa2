"""Token Recycling: yesterday's runners-up are tomorrow's guesses."""

from __future__ import annotations

from statistics import fmean

from tokenmill.claims.drafting import GREEDY, drafted
from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check

CLAIM = (
    "Text comes out exactly as without drafting, in fewer passes; a pass gives more tokens than with drafts looked up "
    "in the text so far, at the same number of drafted tokens."
)
PAPER = (
    "Vicuna 7B to 33B on Spec-Bench: about 2x faster, 30 % above the best method without training; under 2 MB stored"
)
BEYOND = "the speed of a pass over a tree on a GPU, where drafted tokens cost almost nothing"
LOOKUP = "prompt_lookup(nodes=12)"  # as many as token_recycling drafts
REPETITIVE = 0.25


def measure(lab: Lab) -> list[Check]:
    mine = "token_recycling"
    out = drafted(lab, [LOOKUP, mine])
    again = [_repeated(ids) for ids in out.texts[GREEDY]]
    lab.note(GREEDY, "share of its four-token runs that it had written before", again)
    lab.because(
        fmean(again) > REPETITIVE,
        f"{fmean(again):.0%} of the four-token runs of this model's greedy text repeat an earlier one, which is what "
        "looking drafts up in the text is made for",
    )
    return [out.equal(mine), out.more(mine, GREEDY), out.more(mine, LOOKUP)]


def _repeated(ids: list[int]) -> float:
    runs = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    return 1 - len(set(runs)) / max(1, len(runs))
