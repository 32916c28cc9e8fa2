"""S2D: a draft from nested exits costs fewer layers than one of fixed depth and is accepted as often."""

from __future__ import annotations

from tokenmill.claims.drafting import drafted
from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check, check

CLAIM = (
    "Text comes out exactly as without drafting; going deeper only where an exit is unsure gives as many tokens a pass "
    "as always drafting from the deepest exit, for fewer layers a token of text."
)
PAPER = "Vicuna 7B, 13B and LLaMA Chat 70B on Spec-Bench: above drafting at one depth for several targets (abstract)"
BEYOND = "one draft model for several targets, tuned in all its layers: here the exits are the target's own"
MINE, DEEP = "s2d(nodes=4)", "s2d(threshold=1.0, nodes=4)"  # nothing is surer than 1: the last exit always
LESS = 0.1  # tokens a pass


def measure(lab: Lab) -> list[Check]:
    out = drafted(lab, [DEEP, MINE])
    return [
        out.equal(MINE),
        check(
            "tokens a pass, against the deepest exit always",
            (MINE, out.a_pass[MINE]),
            (DEEP, out.a_pass[DEEP]),
            "higher",
            margin=LESS,
        ),
        check(
            "layers run for a token of text, drafts and checks",
            (MINE, out.layers[MINE]),
            (DEEP, out.layers[DEEP]),
            "lower",
        ),
    ]
