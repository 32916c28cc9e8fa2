"""Min-p: only tokens at least `share` times as likely as the likeliest may come out.

keep v where  p_v >= share * max p

Nguyen et al., "Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs", 2024.

Differs: in its default alone: `share` is 0.1, which the authors' logs compare most; they also recommend 0.05.
"""

from __future__ import annotations

import math

from torch import Tensor

from tokenmill.method import method


@method(
    title="Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs",
    paper="arXiv:2407.01082",
    year=2024,
    role="warp",
)
def min_p(logits: Tensor, *, share: float = 0.1) -> Tensor:
    least = logits.amax(-1, keepdim=True) + math.log(share)  # p_v / max p = exp(z_v - max z)
    return logits.masked_fill(logits < least, -math.inf)
