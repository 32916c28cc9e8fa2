"""DySpec: a draft tree that grows where acceptance is likely beats one of fixed shape."""

from __future__ import annotations

from tokenmill.claims.beside import smaller
from tokenmill.claims.drafting import GREEDY, drafted
from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check, check

CLAIM = (
    "At the same number of tokens that a smaller model drafts, a tree grown by the draft's probabilities gives more "
    "tokens a pass than a tree of fixed shape, at a low and at a high temperature."
)
PAPER = (
    "Llama-2 70B with a 7B draft: 9.1x the throughput at low temperature, 6.21x at high; above SpecInfer and Sequoia"
)
BEYOND = "the speed; the trees of SpecInfer and Sequoia, which are measured on a calibration set: here a fixed one"
NODES, TEMPERATURES = 32, (0.0, 0.6)
MINE, FIXED = (f"{tree}(source=draft_model, nodes={NODES})" for tree in ("dyspec", "fixed"))
CHAIN = "chain(source=draft_model, nodes=8)"


def measure(lab: Lab) -> list[Check]:
    small, lacking = smaller(lab)
    checks = []
    for temperature in TEMPERATURES:
        told = f", temperature {temperature:g}"
        what = f"tokens a pass, {NODES} drafted by a smaller model{told}"
        if lacking:
            checks.append(check(what, (MINE, []), (FIXED, []), "higher", lacking=lacking))
            continue
        out = drafted(lab, [MINE, FIXED, CHAIN], temperature=temperature, told=told, assistant=small)
        checks += [out.equal(MINE)] if not temperature else []
        checks += [out.more(MINE, GREEDY, what), out.more(MINE, FIXED, what)]
    return checks
