"""Placeholders: the model fills in several places at once, and what it is sure of is often right."""

from __future__ import annotations

from tokenmill.claims.drafting import GREEDY, drafted
from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check

CLAIM = (
    "Guesses that the model makes with confidence at placeholders behind the text, checked, give more than a token a "
    "pass and change no text."
)
PAPER = "LLaMA-2 13B, unchecked: 33 % faster with nothing lost (see lud)"
BEYOND = "the paper checks nothing and fine-tunes the model: see lud"
MINE = "placeholders"


def measure(lab: Lab) -> list[Check]:
    out = drafted(lab, [MINE])
    return [out.equal(MINE), out.more(MINE, GREEDY)]
