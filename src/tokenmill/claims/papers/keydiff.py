"""KeyDiff: keys that point elsewhere are worth keeping, whatever the question will be."""

from __future__ import annotations

from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import NEAR, Check

CLAIM = (
    "Keeping the most distinctive keys recalls a fact whose question comes later better than keeping what attention "
    "has looked at, what is recent, or tokens by lot; with three quarters of the cache nothing is lost."
)
PAPER = "Llama-3.1-8B, 3.2-3B: under 0.04 % below the full cache on LongBench with an 8K cache, about 23 % less"
BEYOND = "latency, and prompts longer than the memory, read and evicted in blocks"


def measure(lab: Lab) -> list[Check]:
    tight, mild = "keydiff(budget=0.25)", "keydiff(budget=0.75)"
    rivals = [f"{name}(budget=0.25)" for name in ("tova", "snapkv", "recent_window", "random_tokens")]
    answers = lab.columns(lab.needles(seen=False), [tight, mild, *rivals], "nats a token of the answer")
    nats = lab.columns(lab.text(each=6), [mild], "nats a token of real text")
    lab.copied(nats, mild)
    unable = lab.unable(answers)
    what = "a quarter of the cache, question asked later, nats a token of the answer"
    return [
        *lab.compare(what, answers, tight, rivals, lacking=unable),
        *lab.recalls("three quarters", answers, mild, lacking=unable),
        *lab.compare(
            "three quarters against the whole cache, nats a token of text", nats, mild, None, margin=NEAR, decides=False
        ),
    ]
