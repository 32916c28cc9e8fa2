"""Hidden transfer: states sent ahead halfway up foresee more than heads on the last state."""

from __future__ import annotations

from tokenmill.claims.drafting import GREEDY, drafted
from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check

CLAIM = (
    "Text comes out exactly as without drafting, in fewer passes; states that pass the upper layers give more tokens a "
    "pass than as many Medusa heads on the last state, chain against chain."
)
PAPER = "Vicuna and LLaMA-2-Chat 7B and 13B: faster than Medusa and self-speculative decoding (abstract, no figures)"
BEYOND = "speed: the upper layers' extra run over the new states counts as no pass here, and the paper's trees"
MINE, RIVAL = "chain(source=hidden_transfer, nodes=3)", "chain(source=medusa, nodes=3)"


def measure(lab: Lab) -> list[Check]:
    out = drafted(lab, [RIVAL, MINE])
    return [out.equal(MINE), out.more(MINE, GREEDY), out.more(MINE, RIVAL, "tokens a pass, three places ahead")]
