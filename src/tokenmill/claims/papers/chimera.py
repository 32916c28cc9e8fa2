"""Chimera: a drafter that reads what it drafted, over the model's own states, beats heads that do not."""

from __future__ import annotations

from tokenmill.claims.drafting import ahead_of_medusa
from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check

CLAIM = (
    "Text comes out exactly as without drafting, in fewer passes, and a pass gives more tokens than with Medusa heads, "
    "which have output matrices of their own and as much training, chain against chain."
)
PAPER = "Vicuna and LLaMA-2 on MT-Bench: 2.7x faster than plain decoding on average"
BEYOND = "the speed on a GPU, the paper's trees, a drafter of the paper's size and training"


def measure(lab: Lab) -> list[Check]:
    return ahead_of_medusa(lab, "chimera")
