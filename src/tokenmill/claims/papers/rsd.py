"""RSD: drafts drawn without replacement are accepted more often."""

from __future__ import annotations

from tokenmill.claims.drafting import GREEDY, drafted
from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check

CLAIM = (
    "At temperature 1, trees drawn without replacement give more tokens a pass than a chain of the same length, and "
    "stochastic beam search more than constant branching of as many tokens."
)
PAPER = (
    "Llama 2 7B to 70B and OPT: above chains and trees drawn with replacement at every fixed draft length (block "
    "efficiency)"
)
BEYOND = (
    "a trained draft model; the drafts here come from the model's own first layers. Trees drawn with replacement are "
    "not built"
)
SOURCE = "first_layers(layers=20)"


def measure(lab: Lab) -> list[Check]:
    beam, branches = f"rsd(source={SOURCE}, width=4)", f"rsd(source={SOURCE}, branches=(3, 2, 1))"
    chain = f"chain(source={SOURCE}, nodes=3)"
    out = drafted(lab, [beam, branches, chain], temperature=1.0)
    what = "tokens a pass at temperature 1, three levels"
    return [
        out.more(beam, GREEDY, what),
        out.more(beam, chain, what),
        out.more(branches, chain, what),
        out.more(beam, branches, f"{what}, 12 drafted tokens against 15"),
    ]
