"""Judge: more of a draft is accepted than alignment would allow, and answers stay right."""

from __future__ import annotations

from statistics import fmean

from tokenmill.claims.beside import smaller
from tokenmill.claims.drafting import GREEDY, drafted, recalled
from tokenmill.claims.lab import MISSED, Lab
from tokenmill.claims.taught import training_plan
from tokenmill.claims.verdict import Check, check
from tokenmill.method import get

CLAIM = (
    "A linear head that judges the tokens of a capable draft model by the large model's state accepts more of the same "
    "drafts than exact verification, and answers stay as often right."
)
PAPER = (
    "Llama 3.1 8B drafting for 405B: 9x faster than plain decoding, answers to benchmarks as good as the model's own"
)
BEYOND = "labels by hand, benchmarks of knowledge and code, models of that size"
SOURCE = "draft_model(nodes=10)"
MINE, LAX = f"{SOURCE} + judge", f"{SOURCE} + typical_acceptance"
PASSES = "tokens a pass, against exact verification of the same drafts"
RIGHT = "share of codes hidden in 512 tokens of text that are written when asked for"


def measure(lab: Lab) -> list[Check]:
    small, lacking = smaller(lab)
    if not lacking and training_plan(lab, get("judge")) is None:
        lacking = "a judge that was trained on this model; run: tokenmill train judge --model MODEL"
    if lacking:
        return [
            check(PASSES, (MINE, []), (SOURCE, []), "higher", lacking=lacking),
            check(RIGHT, (MINE, []), (GREEDY, []), "higher", margin=MISSED, lacking=lacking),
        ]
    out = drafted(lab, [SOURCE, MINE, LAX], assistant=small)
    codes = recalled(lab, [MINE, LAX], assistant=small)
    lab.because(
        bool(codes) and fmean(codes[MINE]) < fmean(codes[LAX]),
        "accepting by the model's own probabilities (typical_acceptance) recalls "
        f"{fmean(codes.get(LAX, [0])):.0%} of the codes at {fmean(out.a_pass[LAX]):.2f} tokens a pass",
    )
    return [
        out.more(MINE, SOURCE, PASSES),
        check(RIGHT, (MINE, codes.get(MINE, [])), (GREEDY, codes.get(GREEDY, [])), "higher", margin=MISSED),
    ]
