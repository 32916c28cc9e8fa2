"""FS-GEN: how often a large model would step in while a smaller one writes, and whether the latter's doubt says when.

    step in at a place  <=>  argmax small != argmax large
    rate = share of places;  auc = P(entropy of the small model is higher where it steps in than where it does not)
    random = the same for a number drawn a place

Zhang et al., "Fast and Slow Generating: An Empirical Study on Large and Small Language Models Collaborative Decoding",
2024.

Differs: the small model is the large one read off by its own norm and head behind a quarter, a half, three quarters
and nine tenths of its layers, or a second model that is given. Places are those of a given text.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.method import method
from tokenmill.ops.noise import at
from tokenmill.ops.ranking import auc
from tokenmill.types import Findings, Inquiry

DEPTHS = (0.25, 0.5, 0.75, 0.9)


@method(
    title="Fast and Slow Generating: An Empirical Study on Large and Small Language Models Collaborative Decoding",
    paper="arXiv:2406.12295",
    year=2024,
)
def fs_gen(ask: Inquiry, ids: Tensor, *, seed: int = 0) -> Findings:
    large = ask.logits(ids, tuple(range(ask.layers))).argmax(-1)  # (T,)
    behind = dict.fromkeys(max(1, round(share * ask.layers)) for share in DEPTHS)
    small = [(f"{n} of {ask.layers} layers", x) for n, x in enumerate(ask.lens(ids), 1) if n in behind]
    if ask.second is not None:
        small.append(("second model", ask.second(ids)))
    draw = at(torch.zeros(len(ids)), torch.arange(len(ids)), seed)
    rows = []
    for name, logits in small:
        differs = logits.argmax(-1) != large
        p = logits.softmax(-1)
        entropy = -(p * p.clamp(min=1e-30).log()).sum(-1)
        rows.append((name, float(differs.float().mean()), auc(entropy, differs), auc(draw, differs)))
    figures = {f"rate, {name}": rate for name, rate, _, _ in rows} | {f"auc, {name}": auc for name, _, auc, _ in rows}
    return Findings(("small model", "rate", "auc", "random"), tuple(rows), figures)
