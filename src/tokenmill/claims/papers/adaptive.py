"""Ada-KV: heads that look far and wide get more of the layer's budget."""

from __future__ import annotations

from tokenmill.claims.lab import FITTED, Lab
from tokenmill.claims.verdict import Check

CLAIM = (
    "With the same score and the same total, sharing a layer's budget among its heads by need beats giving each head "
    "the same, whether the question is seen before the choice or not."
)
PAPER = "Ruler (13 tasks) and LongBench (16): Ada-SnapKV above SnapKV at equal budgets, question seen and not seen"
BEYOND = "models with more key/value heads a layer to share among"


def measure(lab: Lab) -> list[Check]:
    share = 0.12
    mine, rival = (f"{spend}(score={FITTED}, budget={share})" for spend in ("adaptive", "top"))
    checks = []
    for seen in (True, False):
        when = "seen" if seen else "asked later"
        answers = lab.columns(lab.needles(seen=seen), [mine, rival], f"nats a token of the answer, question {when}")
        what = f"{share:.0%} of the cache, question {when}, nats a token of the answer"
        checks += lab.compare(what, answers, mine, rival, lacking=lab.unable(answers))
    nats = lab.columns(lab.text(), [mine, rival], "nats a token of real text")
    checks += lab.compare(f"{share:.0%} of the cache, nats a token of text", nats, mine, rival, decides=False)
    heads = getattr(lab.model.config.get_text_config(decoder=True), "num_key_value_heads", 0)
    lab.because(
        0 < heads <= 4, f"this model has {heads} key/value heads a layer to share a budget among; the paper's have 8"
    )
    return checks
