"""Placeholders: the model fills in several places at once, and what it is sure of is often right."""

from __future__ import annotations

from tokenmill.claims.drafting import GREEDY, drafted
from tokenmill.claims.lab import Lab
from tokenmill.claims.units import rename, tuned, untunable
from tokenmill.claims.verdict import Check, check

CLAIM = (
    "Guesses that a model, tuned to its own lexical units, makes with confidence at placeholders behind the text give "
    "more than a token a pass where they are checked, and change no text."
)
PAPER = "LLaMA-2 13B, unchecked: 33 % faster with nothing lost (see lud)"
BEYOND = "the paper checks nothing: see lud; a model and a training of the paper's size"
MINE, ALONE = "placeholders, in the tuned model", "the tuned model, token by token"
SAME, PASSES = "share of texts equal to greedy's", "tokens a pass"


def measure(lab: Lab) -> list[Check]:
    if lacking := untunable(lab):
        return [
            check(SAME, (MINE, []), (ALONE, []), "higher", identity=True, lacking=lacking),
            check(PASSES, (MINE, []), (ALONE, []), "higher", lacking=lacking),
        ]
    other, source = tuned(lab)
    spec = repr(source)
    out = drafted(other, [spec])
    rename(lab, spec, MINE)
    rename(lab, GREEDY, ALONE)
    alike = out.alike[spec]
    return [
        check(SAME, (MINE, alike), (ALONE, [1.0] * len(alike)), "higher", identity=True),
        check(PASSES, (MINE, out.a_pass[spec]), (ALONE, out.a_pass[GREEDY]), "higher"),
    ]
