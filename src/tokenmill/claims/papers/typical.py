"""Typical: tokens about as surprising as expected repeat less than the likeliest ones, and read no worse."""

from __future__ import annotations

from statistics import fmean

from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import NEAR, Check, check
from tokenmill.claims.writing import PEOPLE, away, written

CLAIM = (
    "At both shares that the paper takes for stories, 0.2 and 0.95, text repeats itself less than text drawn with "
    "top-p 0.95 and top-k 30 (REP: share of tokens that are among the newest 16, 32 or 128), and its perplexity is as "
    "near to that of people's text as top-p's."
)
PAPER = (
    "stories of GPT-2 and summaries of BART: quality on a par with nucleus and top-k sampling, and consistently fewer "
    "degenerate repetitions (abstract)"
)
BEYOND = "stories and summaries by models tuned for them, MAUVE, Zipf's coefficient and people's ratings"
SHARES = (0.2, 0.95)
TOP_P, TOP_K = "top_p(share=0.95)", "top_k(top=30)"


def measure(lab: Lab) -> list[Check]:
    specs = [f"typical(share={share})" for share in SHARES]
    out = written(lab, [*specs, TOP_P, TOP_K, "greedy"], tokens=144)
    checks = []
    for spec in specs:
        for rival in (TOP_P, TOP_K):
            checks.append(check("REP", (spec, out.rep[spec]), (rival, out.rep[rival]), "lower"))
        what = "nats a token under the model, distance from people's text"
        checks.append(check(what, away(out.nats, spec), away(out.nats, TOP_P), "lower", margin=NEAR))
        mine, people = fmean(out.nats[spec]), fmean(out.nats[PEOPLE])
        lab.because(
            abs(mine - people) > abs(fmean(out.nats[TOP_P]) - people) + NEAR,
            f"{spec} leaves text {'more' if mine > people else 'less'} surprising than people's: {mine:.2f} against "
            f"{people:.2f} nats a token, {TOP_P} {fmean(out.nats[TOP_P]):.2f}",
        )
    return checks
