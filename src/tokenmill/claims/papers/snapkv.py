"""SnapKV: the end of the prompt, where the question stands, says what to keep."""

from __future__ import annotations

from tokenmill.claims.lab import FITTED, Lab
from tokenmill.claims.verdict import NEAR, Check

CLAIM = (
    "When the question stands at the prompt's end, the tokens it looks at answer it as well as the whole cache does, "
    "and better than H2O's, recent, or random tokens at the same share."
)
PAPER = "comparable to the full cache on 16 datasets, above H2O; 3.6x faster, 8.2x less memory at 16K tokens"
BEYOND = "speed and memory at 16K tokens and more"


def measure(lab: Lab) -> list[Check]:
    fitted = FITTED.replace(")", ", budget=0.25)")
    mine = "snapkv(window=8, budget=0.25)"  # as long as the question; a wider window hears the text before it too
    rivals = [f"{name}(budget=0.25)" for name in ("h2o", "recent_window", "random_tokens")]
    answers = lab.columns(lab.needles(seen=True), [mine, fitted, *rivals], "nats a token of the answer, question seen")
    unable = lab.unable(answers)
    later = lab.columns(lab.needles(seen=False), [mine], "nats a token of the answer, question asked later")
    unseen = lab.compare("", later, mine, None, margin=NEAR)
    lab.because(
        bool(unseen) and unseen[0].outcome == "contradicted",
        "with the question asked only after the choice the answer is lost too",
    )
    wider = lab.recalls("", answers, fitted)
    lab.because(
        bool(wider) and wider[0].outcome == "supported",
        f"pooled more widely, {fitted}, it recalls as the whole cache does: this tokenizer gives every digit a token, "
        "and five tokens do not reach over a number from where the question looks",
    )
    what = "a quarter of the cache, question seen, nats a token of the answer"
    return [
        *lab.compare(what, answers, mine, rivals, lacking=unable),
        *lab.recalls("a quarter, question seen", answers, mine, lacking=unable),
    ]
