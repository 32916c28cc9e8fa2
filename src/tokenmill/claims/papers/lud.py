"""LUD: units that are taken unchecked save passes, and answers stay right."""

from __future__ import annotations

from tokenmill.claims.drafting import GREEDY, drafted, recalled
from tokenmill.claims.lab import MISSED, Lab
from tokenmill.claims.units import rename, tuned, untunable
from tokenmill.claims.verdict import Check, check

CLAIM = (
    "A model that is tuned to its own lexical units, and takes runs of confident guesses at placeholders unchecked, "
    "writes more than a token a pass; answers stay as often right as when it writes token by token."
)
PAPER = "LLaMA-2 13B: text 33 % faster with nothing lost, code 30 % faster with 3 % lost in quality"
BEYOND = "code; the control of repetitions; a model and a training of the paper's size"
MINE, ALONE = "placeholders + lud, in the tuned model", "the tuned model, token by token"
PASSES, RIGHT = (
    "tokens a pass",
    "share of codes hidden in 512 tokens of text that are written when asked for",
)


def measure(lab: Lab) -> list[Check]:
    if lacking := untunable(lab):
        return [
            check(PASSES, (MINE, []), (ALONE, []), "higher", lacking=lacking),
            check(RIGHT, (MINE, []), (ALONE, []), "higher", margin=MISSED, lacking=lacking),
        ]
    recalled(lab, [])  # what the model answers before it is tuned stands beside
    rename(lab, GREEDY, "before tuning, token by token")
    other, source = tuned(lab)
    spec = f"{source!r} + lud"
    out, codes = drafted(other, [spec]), recalled(other, [spec])
    rename(lab, spec, MINE)
    rename(lab, GREEDY, ALONE)
    return [
        check(PASSES, (MINE, out.a_pass[spec]), (ALONE, out.a_pass[GREEDY]), "higher"),
        check(RIGHT, (MINE, codes.get(spec, [])), (ALONE, codes.get(GREEDY, [])), "higher", margin=MISSED),
    ]
