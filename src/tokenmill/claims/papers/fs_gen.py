"""FS-GEN: a large model must step in at few of a smaller one's tokens, and the smaller one's doubt says at which."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from statistics import fmean

import torch
from torch import Tensor

from tokenmill.claims.drafting import requests
from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check, check
from tokenmill.method import get
from tokenmill.run.generate import generate
from tokenmill.run.probe import inquiry
from tokenmill.types import Inquiry

CLAIM = (
    "The largest of the smaller models differs from the large one at fewer than a fifth of the tokens of its answers; "
    "the larger it is, the fewer; and each one's entropy says where better than chance."
)
PAPER = (
    "pairs of models of several families, several tasks and ways of decoding: fewer than 20 % of the tokens in most "
    "cases, by a scaling law in the ratio of parameters; what tells the places is the small model's uncertainty"
)
BEYOND = (
    "small models that were trained as such: here each is the large one read off behind some of its layers by its own "
    "norm and head; contrastive decoding and proxy tuning; the law's exponent"
)
MOST = 0.2


@torch.no_grad()
def measure(lab: Lab) -> list[Check]:
    tokens, asked = 24 if lab.quick else 96, requests(lab)
    ask, lost = inquiry(lab.model), dict[str, list[float]]()
    rate: dict[str, list[float]] = {}
    auc: dict[str, list[float]] = {}
    chance: dict[str, list[float]] = {}
    for number, prompt in enumerate(asked, 1):
        lab.tick(f"answer {number} of {len(asked)}")
        ids = torch.tensor(generate(lab.model, None, [prompt], max_new_tokens=tokens)[0].ids)
        found = get("fs_gen")(seed=number)(_behind(ask, prompt, lost), ids)
        for name, share, sure, random in found.rows:
            rate.setdefault(str(name), []).append(float(share))
            auc.setdefault(str(name), []).append(float(sure))
            chance.setdefault(str(name), []).append(float(random))
    for name in rate:
        lab.note("fs_gen", f"share of tokens that differ, {name}", rate[name])
        lab.note("fs_gen", f"auc of the entropy, {name}", auc[name])
        lab.note("a number drawn a place", f"auc, {name}", chance[name])
    names = list(rate)
    what = "share of the large model's greedy tokens that differ"
    largest = names[-1]
    small, large = (fmean(lost[n]) for n in (largest, f"{ask.layers} of {ask.layers} layers"))
    lab.note("fs_gen", f"nats a token of the answers, {largest}", lost[largest])
    lab.note("full", "nats a token of the answers", lost[f"{ask.layers} of {ask.layers} layers"])
    lab.because(
        fmean(rate[largest]) > MOST,
        f"nobody trained the model of {largest} to speak: it needs {small:.2f} nats a token for these answers, the "
        f"large one {large:.2f}",
    )
    return [
        check(what, (largest, rate[largest]), ("a fifth", [MOST] * len(asked)), "lower"),
        *(check(what, (b, rate[b]), (a, rate[a]), "lower") for a, b in pairwise(names)),
        *(lab.above("auc of the entropy: where the two differ", (n, auc[n]), 0.5) for n in names),
    ]


def _behind(ask: Inquiry, prompt: list[int], lost: dict[str, list[float]]) -> Inquiry:
    """The model asked about the tokens of an answer alone; `lost` gathers its nats a token behind each layer."""
    before = torch.tensor(prompt)

    def logits(ids: Tensor, layers: tuple[int, ...]) -> Tensor:
        return ask.logits(torch.cat([before, ids]), layers)[len(prompt) - 1 : -1]

    def lens(ids: Tensor) -> Iterator[Tensor]:
        for n, all_of_it in enumerate(ask.lens(torch.cat([before, ids])), 1):
            part = all_of_it[len(prompt) - 1 : -1]
            nats = float(torch.nn.functional.cross_entropy(part, ids))
            lost.setdefault(f"{n} of {ask.layers} layers", []).append(nats)
            yield part

    return Inquiry(ask.layers, logits, lens)
