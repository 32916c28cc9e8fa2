"""Chimera: a drafter that reads what it drafted, over the model's own states, beats heads that do not."""

from __future__ import annotations

from tokenmill.claims.drafting import GREEDY, drafted
from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check

CLAIM = (
    "Text comes out exactly as without drafting, in fewer passes, and a pass gives more tokens than with Medusa heads, "
    "chain against chain."
)
PAPER = "Vicuna and LLaMA-2 on MT-Bench: 2.7x faster than plain decoding on average"
BEYOND = "the speed on a GPU, the paper's trees, a drafter of the paper's size and training"
MINE, RIVAL = "chain(source=chimera, nodes=3)", "chain(source=medusa, nodes=3)"


def measure(lab: Lab) -> list[Check]:
    out = drafted(lab, [RIVAL, MINE])
    return [out.equal(MINE), out.more(MINE, GREEDY), out.more(MINE, RIVAL, "tokens a pass, three places ahead")]
