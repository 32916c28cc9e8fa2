"""Token Recycling: yesterday's runners-up are tomorrow's guesses."""

from __future__ import annotations

from statistics import fmean

from tokenmill.claims.drafting import GREEDY, drafted, requests
from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check

CLAIM = (
    "Text comes out exactly as without drafting, in fewer passes; with the matrix kept from request to request and a "
    "tree of 80 nodes, a pass gives more tokens than with drafts looked up in the text so far, however long, and than "
    "with lookahead decoding."
)
PAPER = (
    "Vicuna 7B to 33B on Spec-Bench: about 2x faster, 30 % above the best method without training; under 2 MB stored"
)
BEYOND = "the speed of a pass over a tree on a GPU, where drafted tokens cost almost nothing"
NODES = 80  # the paper's tree; a copy that is looked up may be as long
MINE, LOOKUP = f"token_recycling(nodes={NODES})", f"prompt_lookup(nodes={NODES})"
LOOKAHEAD = "lookahead(window=7, ngram=5, width=7)"  # as its authors run it
SMALL = "token_recycling"  # what a user gets without a size
REPETITIVE = 0.25


def measure(lab: Lab) -> list[Check]:
    out = drafted(lab, [LOOKUP, LOOKAHEAD, SMALL, MINE], prompts=requests(lab, each=2), carried=(MINE, SMALL))
    again = [_repeated(ids) for ids in out.texts[GREEDY]]
    lab.note(GREEDY, "share of its four-token runs that it had written before", again)
    lab.because(
        fmean(again) > REPETITIVE,
        f"{fmean(again):.0%} of the four-token runs of this model's greedy text repeat an earlier one, which is what "
        "looking drafts up in the text is made for",
    )
    return [out.equal(MINE), out.more(MINE, GREEDY), *(out.more(MINE, rival) for rival in (LOOKUP, LOOKAHEAD))]


def _repeated(ids: list[int]) -> float:
    runs = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    return 1 - len(set(runs)) / max(1, len(runs))
