"""TOVA: keep what the newest query looks at; the token it looks at least leaves.

    s_t = mean over all query heads of softmax_t(q k_t),  q the newest query

Oren et al., "Transformers are Multi-State RNNs", 2024.

Differs: With window=1 it does not; a wider window adds up the newest `window` queries.
"""

from __future__ import annotations

from torch import Tensor

from tokenmill.method import method
from tokenmill.ops.attention import across_heads, attention
from tokenmill.types import Trace


@method(title="Transformers are Multi-State RNNs", paper="arXiv:2401.06104", year=2024, needs=("queries",), every=1)
def tova(trace: Trace, *, window: int = 1) -> Tensor:
    looked = attention(trace, last=window).sum(2)  # (B, H, T)
    return across_heads(looked, trace)  # (B, K, T), the same in every head that holds the token
