"""PyramidKV: lower layers need more of a small budget than upper ones."""

from __future__ import annotations

from tokenmill.claims.lab import FITTED, Lab
from tokenmill.claims.verdict import Check

CLAIM = (
    "With the same score and the same total, giving lower layers more tokens than upper ones beats giving all layers "
    "the same, the more so the smaller the budget; 12 % of the cache serves as well as all of it."
)
PAPER = "LongBench: level with the full cache at 12 % of it; at 0.7 % up to 20.5 points above other methods (TREC)"
BEYOND = "budgets below 1 %, which need prompts of tens of thousands of tokens"


def measure(lab: Lab) -> list[Check]:
    shares = (0.06, 0.12)
    score = FITTED  # its usual window of 32 would fill so small a cache
    specs = [
        spec for b in shares for spec in (f"pyramid(score={score}, budget={b})", f"top(score={score}, budget={b})")
    ]
    answers = lab.columns(lab.needles(seen=True), specs, "nats a token of the answer, question seen")
    nats = lab.columns(lab.text(), specs, "nats a token of real text")
    unable = lab.unable(answers)
    checks = []
    for share, mine, rival in zip(shares, specs[::2], specs[1::2], strict=True):
        where = f"{share:.0%} of the cache"
        checks += lab.compare(
            f"{where}, question seen, nats a token of the answer", answers, mine, rival, lacking=unable
        )
        checks += lab.compare(f"{where}, nats a token of text", nats, mine, rival, decides=False)
    checks += lab.recalls("12 %, question seen", answers, specs[2], lacking=unable)
    return checks
