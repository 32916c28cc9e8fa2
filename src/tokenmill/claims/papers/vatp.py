"""VATP: attention to a token whose value is short does little; count the value too."""

from __future__ import annotations

from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check

CLAIM = (
    "Weighing accumulated attention by the length of values keeps better tokens than accumulated attention alone "
    "(H2O), on text and for facts hidden in it, at the same share of the cache."
)
PAPER = "LLaMA2-7B-chat and Vicuna-7B on LongBench at half of the cache: above H2O on 12 and 13 of 16 tasks"
BEYOND = "its combination with Scissorhands"


def measure(lab: Lab) -> list[Check]:
    checks = []
    for share in (0.5, 0.2):
        mine, plain = f"vatp(budget={share})", f"h2o(budget={share})"
        nats = lab.columns(lab.text(each=4), [mine, plain], "nats a token of real text")
        checks += lab.compare(f"{share:.0%} of the cache, nats a token", nats, mine, plain, decides=False)
    answers = lab.columns(lab.needles(seen=True), [mine, plain], "nats a token of the answer, question seen")
    what = f"{share:.0%} of the cache, question seen, nats a token of the answer"
    return checks + lab.compare(what, answers, mine, plain, lacking=lab.unable(answers))
