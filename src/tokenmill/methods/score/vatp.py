"""VATP: like H2O, but attention to a token counts only as much as its value is long.

    s_t = |v_t|_1 * sum over every query q since t entered the cache of softmax_t(q k_t);  infinity for the `sinks`
    a share `recent` of what stays is the newest tokens whatever their score, the rest the highest s

Guo et al., "Attention Score is not All You Need for Token Importance Indicator in KV Cache Reduction: Value Also
Matters", 2024.

Differs: (1) `sinks` is 4; the authors' runs protect the first 20 tokens. (2) Query heads that share a key/value head
share its score; the paper's models have no such heads.
"""

from __future__ import annotations

from torch import Tensor

from tokenmill.method import method
from tokenmill.ops.attention import accumulated, wide
from tokenmill.ops.select import protect
from tokenmill.types import Trace


@method(
    title="Attention Score is not All You Need for Token Importance Indicator in KV Cache Reduction: "
    "Value Also Matters",
    paper="arXiv:2406.12335",
    year=2024,
    needs=("all_queries",),
    every=1,
)
def vatp(trace: Trace, state: Tensor | None, *, sinks: int = 4, recent: float = 0.5) -> tuple[Tensor, Tensor]:
    # `recent` is spent by the keep method, which knows how many tokens stay: ops.budget.recent.
    total = accumulated(trace, state)  # (B, K, T)
    length = wide(trace.values).norm(p=1, dim=-1)  # (B, K, T)
    return protect(total * length, trace, sinks=sinks), total
