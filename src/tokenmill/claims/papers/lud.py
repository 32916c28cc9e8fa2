"""LUD: units that are taken unchecked save passes, and answers stay right."""

from __future__ import annotations

from tokenmill.claims.drafting import GREEDY, drafted, recalled
from tokenmill.claims.lab import MISSED, Lab
from tokenmill.claims.verdict import Check, check

CLAIM = "Taking runs of confident guesses at placeholders unchecked gives more than a token a pass; answers stay right."
PAPER = "LLaMA-2 13B: text 33 % faster with nothing lost, code 30 % faster with 3 % lost in quality"
BEYOND = "a model fine-tuned on its own lexical units, code"
MINE = "placeholders + lud"


def measure(lab: Lab) -> list[Check]:
    out, codes = drafted(lab, [MINE]), recalled(lab, [MINE])
    return [
        out.more(MINE, GREEDY),
        check(
            "share of codes hidden in 512 tokens of text that are written when asked for",
            (MINE, codes.get(MINE, [])),
            (GREEDY, codes.get(GREEDY, [])),
            "higher",
            margin=MISSED,
        ),
    ]
