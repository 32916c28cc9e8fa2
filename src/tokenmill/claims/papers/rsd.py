"""RSD: drafts drawn without replacement are accepted more often."""

from __future__ import annotations

from tokenmill.claims.beside import smaller
from tokenmill.claims.drafting import GREEDY, drafted, requests
from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check, check

CLAIM = (
    "At temperature 1, trees that a smaller model draws without replacement give more tokens a pass than a chain of "
    "the same length, and stochastic beam search more than constant branching of as many tokens."
)
PAPER = (
    "Llama 2 7B to 70B and OPT: above chains and trees drawn with replacement at every fixed draft length (block "
    "efficiency)"
)
BEYOND = "trees drawn with replacement are not built; models of that size"
SOURCE = "draft_model"
BEAM, BRANCHES = f"rsd(source={SOURCE}, width=4)", f"rsd(source={SOURCE}, branches=(3, 2, 1))"
CHAIN = f"chain(source={SOURCE}, nodes=3)"
PAIRS = ((BEAM, GREEDY), (BEAM, CHAIN), (BRANCHES, CHAIN), (BEAM, BRANCHES))


def measure(lab: Lab) -> list[Check]:
    small, lacking = smaller(lab)
    what = "tokens a pass at temperature 1, three levels"
    names = {BRANCHES: f"{what}, 12 drafted tokens against 15"}
    if lacking:
        return [check(names.get(b, what), (a, []), (b, []), "higher", lacking=lacking) for a, b in PAIRS]
    prompts = requests(lab, each=2)
    out = drafted(lab, [BEAM, BRANCHES, CHAIN], temperature=1.0, prompts=prompts, assistant=small)
    return [out.more(a, b, names.get(b, what)) for a, b in PAIRS]
