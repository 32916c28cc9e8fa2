"""Typical: tokens about as surprising as expected repeat less than the likeliest ones, and read no worse."""

from __future__ import annotations

from statistics import fmean

import torch
from torch import Tensor

from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import NEAR, Check, check
from tokenmill.claims.writing import PEOPLE, away, openings, written
from tokenmill.method import get
from tokenmill.run.session import Session

CLAIM = (
    "At share 0.2, text repeats itself less than text drawn with top-p 0.95 and top-k 30 (REP: share of tokens that "
    "are among the newest 16, 32 or 128), and its perplexity is as near to that of people's text as top-p's."
)
PAPER = (
    "stories of GPT-2 and summaries of BART: quality on a par with nucleus and top-k sampling, and consistently fewer "
    "degenerate repetitions (abstract)"
)
BEYOND = (
    "share 0.95, the paper's other one for stories: where the likeliest token is likely it keeps the very tokens that "
    "top-p keeps, so nothing tells them apart on this model; stories and summaries by models tuned for them, MAUVE, "
    "Zipf's coefficient and people's ratings"
)
SHARES = (0.2,)
OTHER = 0.95
TOP_P, TOP_K = "top_p(share=0.95)", "top_k(top=30)"


def measure(lab: Lab) -> list[Check]:
    specs = [f"typical(share={share})" for share in SHARES]
    out = written(lab, [*specs, TOP_P, TOP_K, "greedy"], tokens=144)
    for share in (*SHARES, OTHER):
        lab.note(f"typical(share={share})", f"share of places where {TOP_P} keeps the same tokens", _alike(lab, share))
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


@torch.no_grad()
def _alike(lab: Lab, share: float) -> list[float]:
    """A text each: at how many places of people's text this share keeps exactly the tokens that top-p keeps."""
    found = []
    for prompt, people in openings(lab, 48, 1 if lab.quick else 3):
        logits = Session(lab.model).read([prompt + people], last=len(people))[0].float()
        found.append(float(same_sets(logits, share).float().mean()))
    return found


def same_sets(logits: Tensor, share: float) -> Tensor:
    """(N, V) -> (N,): where typical at this share and top-p 0.95 leave the same tokens."""
    kept = [get("typical")(logits, share=share).isfinite(), get("top_p")(logits, share=0.95).isfinite()]
    return (kept[0] == kept[1]).all(-1)
