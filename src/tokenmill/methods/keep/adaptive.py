"""Ada-KV: any score, with more tokens for the heads of a layer whose scores are high.

    n = budget * tokens seen, of which w are the score's own (scored infinity or newest) in a head
    each head is sure of its w + safeguard (n - w) best;  the rest of the layer's K n goes to the best of all heads

Feng et al., "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM Inference", 2024.

Differs: the authors' first code mixes an even and an adaptive share of the budget; here, as in the library they gave
the method to later, the safeguard is a least number for each head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.method import Method, method
from tokenmill.methods.score.snapkv import snapkv
from tokenmill.ops.budget import certain, recent, target
from tokenmill.ops.select import protect, top_share
from tokenmill.types import Keep, Trace


@method(
    title="Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM Inference",
    paper="arXiv:2407.11550",
    year=2024,
)
def adaptive(
    trace: Trace,
    scores: Tensor,
    *,
    score: Method = snapkv,
    safeguard: float = 0.2,
    budget: float | None = None,
    slots: int | None = None,
) -> Keep:
    n = target(trace, budget, slots)  # (B,)
    scores = protect(scores, trace, window=recent(score, n))
    own = certain(scores, n)  # (B, K)
    sure = own + torch.floor(safeguard * (n[:, None] - own).double() + 1e-9).long()
    scores = scores.masked_fill(top_share(scores, trace.filled, sure), torch.inf)

    # All heads as one head: slot by slot, so that ties go to the newest, not to the last head.
    b, k, t = scores.shape
    pooled = top_share(scores.mT.reshape(b, 1, t * k), trace.filled.mT.reshape(b, 1, t * k), n * k)
    return Keep(pooled.view(b, t, k).mT)
