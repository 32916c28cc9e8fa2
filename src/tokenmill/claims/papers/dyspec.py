"""DySpec: a draft tree that grows where acceptance is likely beats one of fixed shape."""

from __future__ import annotations

from tokenmill.claims.drafting import GREEDY, drafted
from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check

CLAIM = (
    "At the same number of drafted tokens, a tree grown by the draft's probabilities gives more tokens a pass than a "
    "fixed tree and than a chain."
)
PAPER = (
    "Llama-2 70B with a 7B draft: 9.1x the throughput at low temperature, 6.21x at high; above SpecInfer and Sequoia"
)
BEYOND = (
    "draft models: none of this vocabulary is small enough; the drafts here come from token_recycling and the first "
    "layers"
)
NODES = 12


def measure(lab: Lab) -> list[Check]:
    checks = []
    for source, temperature in (
        ("token_recycling", 0.0),
        ("first_layers(layers=20)", 0.0),
        ("first_layers(layers=20)", 1.0),
    ):
        if lab.quick and source != "token_recycling":
            continue
        mine = f"dyspec(source={source})"
        rivals = [f"fixed(source={source})", f"chain(source={source}, nodes={NODES})"]
        out = drafted(lab, [mine, *rivals], temperature=temperature)
        where = f"tokens a pass, {NODES} drafted by {source}, temperature {temperature:g}"
        checks += [out.equal(mine)] if not temperature else []
        checks += [out.more(mine, GREEDY, where), *(out.more(mine, rival, where) for rival in rivals)]
    return checks
