"""Judge: more of a draft is accepted than alignment would allow, and answers stay right."""

from __future__ import annotations

from statistics import fmean

from tokenmill.claims.drafting import GREEDY, drafted, recalled
from tokenmill.claims.lab import MISSED, Lab
from tokenmill.claims.verdict import Check, check

CLAIM = (
    "A linear head that judges drafted tokens by the model's state accepts more of the same drafts than exact "
    "verification, and answers stay as often right."
)
PAPER = (
    "Llama 3.1 8B drafting for 405B: 9x faster than plain decoding, answers to benchmarks as good as the model's own"
)
BEYOND = "a draft model that is often right in its own way, labels by hand, benchmarks of knowledge and code"
SOURCE = "first_layers(layers=20, nodes=4)"
MINE, LAX = f"{SOURCE} + judge", f"{SOURCE} + typical_acceptance"


def measure(lab: Lab) -> list[Check]:
    out, codes = drafted(lab, [SOURCE, MINE, LAX]), recalled(lab, [MINE, LAX])
    lab.because(
        bool(codes) and fmean(codes[MINE]) < fmean(codes[LAX]),
        "accepting by the model's own probabilities (typical_acceptance) recalls "
        f"{fmean(codes.get(LAX, [0])):.0%} of the codes at {fmean(out.a_pass[LAX]):.2f} tokens a pass",
    )
    return [
        out.more(MINE, SOURCE, "tokens a pass, against exact verification of the same source"),
        check(
            "share of codes hidden in 512 tokens of text that are written when asked for",
            (MINE, codes.get(MINE, [])),
            (GREEDY, codes.get(GREEDY, [])),
            "higher",
            margin=MISSED,
        ),
    ]
