"""Keyformer: like H2O, but attention is counted with Gumbel noise and a temperature that rises as tokens leave.

    s_t = sum over every query q since t entered the cache of softmax_t( (q k_t + g) / heat )
    heat = temperature + rise * tokens generated
    g ~ Gumbel(0, 1), anew for each query and token
    a share `recent` of what stays is the newest tokens whatever their score, the rest the highest s

Adnan et al., "Keyformer: KV Cache Reduction through Key Tokens Selection for Efficient Generative Inference", 2024.

Differs: (1) The query heads that share a key/value head share noise and score; the paper's models have no such heads.
(2) `rise` is a fixed step, 0.01 by default as in the authors' model files; their scripts set it so that the
temperature is 2 at the end of the text (1 / new tokens). (3) The cache grows with the text if a budget is asked for;
the paper holds it at a share of the prompt.
"""

from __future__ import annotations

from torch import Tensor

from tokenmill.method import method
from tokenmill.ops.attention import accumulated
from tokenmill.ops.noise import gumbel
from tokenmill.types import Trace


@method(
    title="Keyformer: KV Cache Reduction through Key Tokens Selection for Efficient Generative Inference",
    paper="arXiv:2403.09054",
    year=2024,
    needs=("all_queries",),
    every=1,
)
def keyformer(
    trace: Trace,
    state: Tensor | None,
    *,
    recent: float = 0.3,
    temperature: float = 1.0,
    rise: float = 0.01,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    # `recent` is spent by the keep method, which knows how many tokens stay: ops.budget.recent.
    total = accumulated(trace, state, temperature + rise * trace.generated, lambda block: gumbel(block, seed))
    return total, total  # (B, K, T)
