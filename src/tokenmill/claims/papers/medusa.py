"""Medusa: heads on the last state guess the tokens after the next one."""

from __future__ import annotations

from tokenmill.claims.drafting import GREEDY, MEDUSA, drafted
from tokenmill.claims.lab import Lab
from tokenmill.claims.taught import training_plan
from tokenmill.claims.verdict import Check, check
from tokenmill.method import get

CLAIM = (
    "Text comes out exactly as without drafting, in fewer passes; a tree of guesses gives more tokens a pass than the "
    "likeliest line alone; with matrices of their own, heads and a tree of 64 nodes give more than 2.2 tokens a pass."
)
PAPER = (
    "Vicuna 7B and 13B: 2.2 times faster without a loss in quality, with trees of 64 nodes (abstract), so at least as "
    "many tokens a pass; heads with output matrices of their own, trained on 60,000 conversations"
)
BEYOND = "the speed on a GPU; models of 7 billion parameters"
CHAIN, TREE = "chain(source=medusa, nodes=3)", "fixed(source=medusa, nodes=64)"
PAPERS, LEAST = f"fixed(source={MEDUSA}, nodes=64)", 2.2


def measure(lab: Lab) -> list[Check]:
    lacking = ""
    if training_plan(lab, get("medusa")(matrices=16384)) is None:
        lacking = f"heads with output matrices of their own; run: tokenmill train '{MEDUSA}'"
    out = drafted(lab, [CHAIN, TREE] if lacking else [CHAIN, TREE, PAPERS])
    column = out.a_pass.get(PAPERS, [])
    return [
        out.equal(TREE),
        out.more(CHAIN, GREEDY),
        out.more(TREE, CHAIN, "tokens a pass, a tree of 64 nodes"),
        check("tokens a pass", (PAPERS, column), ("required", [LEAST] * len(column)), "higher", lacking=lacking),
    ]
