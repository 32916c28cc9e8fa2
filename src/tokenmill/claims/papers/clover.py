"""Clover: a head that knows which token was guessed before foresees more than heads that do not."""

from __future__ import annotations

from tokenmill.claims.drafting import ahead_of_medusa
from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check

CLAIM = (
    "Text comes out exactly as without drafting, in fewer passes, and a pass gives more tokens than with Medusa heads, "
    "which have output matrices of their own and as much training, chain against chain."
)
PAPER = "Baichuan-Small and Baichuan-Large: up to 91% and 146% faster than plain decoding, 37% and 57% than Medusa"
BEYOND = "the speed on a GPU, the paper's trees, its augmenting block and its training"


def measure(lab: Lab) -> list[Check]:
    return ahead_of_medusa(lab, "clover")
