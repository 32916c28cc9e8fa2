"""Hidden transfer: states sent ahead halfway up foresee more than heads on the last state."""

from __future__ import annotations

from tokenmill.claims.drafting import ahead_of_medusa
from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check

CLAIM = (
    "Text comes out exactly as without drafting, in fewer passes; states that pass the upper layers give more tokens a "
    "pass than as many Medusa heads on the last state, with output matrices of their own and as much training, chain "
    "against chain."
)
PAPER = "Vicuna and LLaMA-2-Chat 7B and 13B: faster than Medusa and self-speculative decoding (abstract, no figures)"
BEYOND = "speed: the upper layers' extra run over the new states counts as no pass here, and the paper's trees"


def measure(lab: Lab) -> list[Check]:
    return ahead_of_medusa(lab, "hidden_transfer")
