"""Locally typical sampling: only tokens about as surprising as this place is on average may come out.

keep the tokens of smallest  | -log p_v - H(p) |  that together hold `share` of the probability

Meister et al., "Locally Typical Sampling", 2022.

Differs: in its default alone: `share` is 0.95, the paper's value for summaries and one of two for stories; the other
is 0.2. Where the likeliest token is likely, 0.95 keeps exactly what top-p 0.95 keeps.
"""

from __future__ import annotations

from torch import Tensor

from tokenmill.method import method
from tokenmill.ops.sampling import nucleus


@method(title="Locally Typical Sampling", paper="arXiv:2202.00666", year=2022, role="warp")
def typical(logits: Tensor, *, share: float = 0.95) -> Tensor:
    surprise = -logits.log_softmax(-1)  # (N, V)
    average = (surprise * surprise.neg().exp()).nansum(-1, keepdim=True)  # 0 * inf counts as 0
    return nucleus(logits, order=(surprise - average).abs(), share=share)
