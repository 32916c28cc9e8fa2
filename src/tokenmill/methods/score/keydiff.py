"""KeyDiff: keep tokens whose keys point away from where the others point.

    s_t = -cos(k_t, a),  a = mean over the cache of k / ||k||

Park et al., "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in Resource-Constrained
Environments", 2025.

Differs: the paper reads the prompt in blocks and evicts after each; here eviction comes when the engine asks.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tokenmill.method import method
from tokenmill.ops.attention import wide
from tokenmill.types import Trace


@method(
    title="KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in "
    "Resource-Constrained Environments",
    paper="arXiv:2504.15364",
    year=2025,
)
def keydiff(trace: Trace) -> Tensor:
    directions = F.normalize(wide(trace.keys), dim=-1)  # (B, K, T, D), empty slots stay zero
    anchor = F.normalize(directions.sum(2, keepdim=True), dim=-1)  # the mean's direction; its length does not matter
    return -(directions * anchor).sum(-1)  # (B, K, T)
