"""TokenSelect: keep all tokens, attend to few, chosen anew as queries change."""

from __future__ import annotations

from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import NEAR, Check

CLAIM = (
    "Attending to a quarter of the tokens, chosen by the current query, answers questions asked later as well as "
    "attending to all, and better than evicting to the same number with H2O, SnapKV or a recent window."
)
PAPER = "InfiniteBench, RULER, LongBench: above InfLLM, StreamingLLM and others; attention up to 23.84x faster"
BEYOND = "the speed of its attention kernel, which needs a GPU, and texts longer than the model was trained on"


def measure(lab: Lab) -> list[Check]:
    mine = "token_select(budget=0.25)"
    rivals = [f"{name}(budget=0.25)" for name in ("h2o", "snapkv", "recent_window")]
    answers = lab.columns(lab.needles(seen=False), [mine, *rivals], "nats a token of the answer")
    # A block votes as one; while generating, every token does.
    nats = lab.columns(lab.text(tail=48, block=1), [mine], "nats a token of real text")
    lab.copied(nats, mine)
    unable = lab.unable(answers)
    what = "a quarter attended to, question asked later, nats a token of the answer"
    return [
        *lab.compare(what, answers, mine, rivals, lacking=unable),
        *lab.recalls("a quarter attended to", answers, mine, lacking=unable),
        *lab.compare("a quarter against all, nats a token of text", nats, mine, None, margin=NEAR, decides=False),
    ]
