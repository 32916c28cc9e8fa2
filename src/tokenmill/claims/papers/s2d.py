"""S2D: a draft from nested exits costs fewer layers than one of fixed depth and is accepted nearly as often."""

from __future__ import annotations

from tokenmill.claims.drafting import drafted
from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check, check, mean

CLAIM = (
    "Text comes out exactly as without drafting; going deeper only where an exit is unsure gives nearly as many tokens "
    "a pass as always drafting from the deepest exit, for fewer layers a token of text."
)
PAPER = (
    "Vicuna 7B and 13B on MT-Bench, against always the deepest of three exits: 2.86 and 2.76 tokens accepted for 3.11 "
    "and 3.01, 1.34 and 1.38 times as fast as plain decoding for 1.17 and 1.23 (answers to reviewers); above drafting "
    "at one depth for several targets (abstract)"
)
BEYOND = "one draft model for several targets, tuned in all its layers: here the exits are the target's own"
MINE, DEEP = "s2d(nodes=4)", "s2d(threshold=1.0, nodes=4)"  # nothing is surer than 1: the last exit always
LESS = 0.09  # of the deepest exit's tokens a pass: the paper's own method loses up to as much


def measure(lab: Lab) -> list[Check]:
    out = drafted(lab, [DEEP, MINE])
    return [
        out.equal(MINE),
        check(
            "tokens a pass, against the deepest exit always",
            (MINE, out.a_pass[MINE]),
            (DEEP, out.a_pass[DEEP]),
            "higher",
            margin=LESS * mean(out.a_pass[DEEP]),
        ),
        check(
            "layers run for a token of text, drafts and checks",
            (MINE, out.layers[MINE]),
            (DEEP, out.layers[DEEP]),
            "lower",
        ),
    ]
