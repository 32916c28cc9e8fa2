"""FS-GEN: a large model must step in at few of a smaller one's tokens, and the smaller one's doubt says at which."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tokenmill.claims.beside import smaller
from tokenmill.claims.drafting import requests
from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check, check
from tokenmill.method import get
from tokenmill.run.generate import generate
from tokenmill.run.probe import inquiry
from tokenmill.types import Inquiry

CLAIM = (
    "A smaller model of the same family differs from the large one at fewer than a fifth of the tokens of its answers, "
    "and its entropy says where better than chance."
)
PAPER = (
    "pairs of models of several families, several tasks and ways of decoding: fewer than 20 % of the tokens in most "
    "cases, by a scaling law in the ratio of parameters; what tells the places is the small model's uncertainty"
)
BEYOND = "the scaling law, which needs several smaller models; contrastive decoding and proxy tuning"
MOST = 0.2
NAME = "second model"  # as the probe calls it
RATE, AUC = "share of the large model's greedy tokens that differ", "auc of the entropy: where the two differ"


@torch.no_grad()
def measure(lab: Lab) -> list[Check]:
    small, lacking = smaller(lab)
    if lacking:
        return [
            check(RATE, (NAME, []), ("a fifth", []), "lower", lacking=lacking),
            check(AUC, (NAME, []), ("chance", []), "higher", lacking=lacking),
        ]
    tokens, asked = 24 if lab.quick else 96, requests(lab, each=2)
    ask = inquiry(lab.model, small)
    rate: list[float] = []
    auc: list[float] = []
    chance: list[float] = []
    for number, prompt in enumerate(asked, 1):
        lab.tick(f"answer {number} of {len(asked)}")
        ids = torch.tensor(generate(lab.model, None, [prompt], max_new_tokens=tokens)[0].ids)
        found = get("fs_gen")(seed=number)(behind(ask, prompt), ids)
        row: dict[str, Any] = {str(row[0]): row[1:] for row in found.rows}
        for column, value in zip((rate, auc, chance), row[NAME], strict=True):
            column.append(float(value))
    lab.note("fs_gen", RATE, rate)
    lab.note("fs_gen", AUC, auc)
    lab.note("a number drawn a place", AUC, chance)
    parameters = [sum(p.numel() for p in model.parameters()) for model in (small, lab.model)]
    lab.note("fs_gen", "parameters of the smaller model over the large one's", [parameters[0] / parameters[1]])
    return [
        check(RATE, (NAME, rate), ("a fifth", [MOST] * len(rate)), "lower"),
        lab.above(AUC, (NAME, auc), 0.5),
    ]


def behind(ask: Inquiry, prompt: list[int]) -> Inquiry:
    """The two models asked about the tokens of an answer alone; the large one's own layers are not read off."""
    before = torch.tensor(prompt)

    def answer(logits: Tensor) -> Tensor:
        return logits[len(prompt) - 1 : -1]

    def large(ids: Tensor, layers: tuple[int, ...]) -> Tensor:
        return answer(ask.logits(torch.cat([before, ids]), layers))

    def lens(ids: Tensor) -> Iterator[Tensor]:
        yield from ()

    def second(ids: Tensor) -> Tensor:
        assert ask.second is not None
        return answer(ask.second(torch.cat([before, ids])))

    return Inquiry(ask.layers, large, lens, second)
