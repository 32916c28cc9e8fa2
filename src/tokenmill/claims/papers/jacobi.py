"""Speculative Jacobi decoding: guesses that were predicted in parallel, checked by the ratio of two predictions."""

from __future__ import annotations

from tokenmill.claims.drafting import GREEDY, drafted
from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check, check

CLAIM = (
    "Without a draw, text comes out exactly as greedy decoding writes it. Images are drawn in half as many passes as "
    "they have tokens."
)
PAPER = "Lumina-mGPT and Anole, 768-pixel images: about 2x fewer passes than next-token sampling (abstract: no figure)"
BEYOND = "images: the paper is about image tokens alone, whose neighbours are alike; its figures for text stand beside"
MINE, LEAST = "jacobi(nodes=8)", 2.0
DOMAIN = (
    "a model that writes image tokens: the paper's domain is image generation, where neighbouring tokens are alike; of "
    "text it says nothing"
)


def measure(lab: Lab) -> list[Check]:
    drawn, greedy = drafted(lab, [MINE], temperature=1.0, told=", text drawn at temperature 1"), drafted(lab, [MINE])
    lab.note(GREEDY, "tokens a pass of drawn text", drawn.a_pass[GREEDY])
    column = drawn.a_pass[MINE]
    what = "tokens a pass, drawn at temperature 1"
    return [
        greedy.equal(MINE),
        check(what, (MINE, column), ("required", [LEAST] * len(column)), "higher", lacking=DOMAIN),
    ]
