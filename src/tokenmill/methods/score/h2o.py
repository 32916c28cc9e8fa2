"""H2O: keep the heavy hitters, tokens that have drawn the most attention so far, and the newest ones.

    s_t = sum over every query q since t entered the cache of softmax_t(q k_t),  mean over a group's heads
    a share `recent` of what stays is the newest tokens whatever their score, the rest the highest s

Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models", 2023.

Differs: (1) The prompt is read whole, and evicted from once it is read, as in the authors' own cache code; the paper's
algorithm would evict after every prompt token too. (2) Query heads that share a key/value head share its score; the
paper's models have no such heads.
"""

from __future__ import annotations

from torch import Tensor

from tokenmill.method import method
from tokenmill.ops.attention import accumulated
from tokenmill.types import Trace


@method(
    title="H$_2$O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
    paper="arXiv:2306.14048",
    year=2023,
    needs=("all_queries",),
    every=1,
)
def h2o(trace: Trace, state: Tensor | None, *, recent: float = 0.5) -> tuple[Tensor, Tensor]:
    # `recent` is spent by the keep method, which knows how many tokens stay: ops.budget.recent.
    total = accumulated(trace, state)  # (B, K, T)
    return total, total
