"""Medusa: heads on the last state guess the tokens after the next one."""

from __future__ import annotations

from tokenmill.claims.drafting import GREEDY, drafted
from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check

CLAIM = "Text comes out exactly as without drafting, and a pass gives 1.5 tokens or more with three heads and a chain."
PAPER = "Vicuna 7B and 13B: 2.2 times faster without a loss in quality, with trees of 64 nodes (abstract)"
BEYOND = "the speed on a GPU, the paper's trees, heads with output matrices of their own"
MINE, LEAST = "chain(source=medusa, nodes=3)", 1.5


def measure(lab: Lab) -> list[Check]:
    out = drafted(lab, [MINE])
    return [out.equal(MINE), out.more(MINE, GREEDY), lab.above("tokens a pass", (MINE, out.a_pass[MINE]), LEAST)]
