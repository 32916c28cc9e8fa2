"""Expected attention: what future queries will look at can be estimated without seeing them."""

from __future__ import annotations

from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import NEAR, Check

CLAIM = (
    "Estimating what future queries will look at keeps better tokens than looking at past attention (SnapKV, TOVA) or "
    "at key norms when the question is not seen, and half of the cache serves text as well as all of it."
)
PAPER = (
    "Llama-3.1-8B, Qwen3-8B, Gemma3-12B on LongBench, RULER, needles: above SnapKV, TOVA, StreamingLLM at most shares"
)
BEYOND = "the head-adaptive variant, reasoning traces, and contexts above 4K tokens"


def measure(lab: Lab) -> list[Check]:
    half = "expected_attention(budget=0.5)"
    rivals = [f"{name}(budget=0.5)" for name in ("snapkv", "tova", "knorm", "random_tokens")]
    answers = lab.columns(lab.needles(seen=False), [half, *rivals], "nats a token of the answer")
    nats = lab.columns(lab.text(each=6), [half], "nats a token of real text")
    lab.copied(nats, half)
    unable = lab.unable(answers)
    what = "half of the cache, question asked later, nats a token of the answer"
    return [
        *lab.compare(what, answers, half, rivals, lacking=unable),
        *lab.compare(
            "half against the whole cache, nats a token of text", nats, half, None, margin=NEAR, decides=False
        ),
    ]
