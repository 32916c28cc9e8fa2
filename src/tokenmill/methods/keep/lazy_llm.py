"""LazyLLM: the deeper the layer, the fewer tokens go on to it; a token dropped for one word may return for the next.

    s_t = mean over heads of A[newest token, t],   after a scheduled layer the highest s_t go on
    stage n = 1 .. `stages`, before layer (start + (n-1) (1 - start) / stages) L:
        budget^(n / stages) of the tokens seen so far go on

`budget` is the share of all tokens seen so far that are left after the last stage; every stage keeps the same
share of what the stage before it left. The newest token always goes on.

Fu et al., "LazyLLM: Dynamic Token Pruning for Efficient Long Context LLM Inference", 2024.

Differs: The paper chooses the layers and shares for each model and task; here one budget sets them all, in three
stages by default.
"""

from __future__ import annotations

from dataclasses import replace

from tokenmill.method import method
from tokenmill.ops.attention import attention
from tokenmill.ops.budget import target
from tokenmill.ops.select import protect, top_share
from tokenmill.types import Keep, Trace


@method(
    title="LazyLLM: Dynamic Token Pruning for Efficient Long Context LLM Inference",
    paper="arXiv:2407.14057",
    year=2024,
    needs=("queries",),
    acts="walk",
)
def lazy_llm(trace: Trace, *, budget: float | None = None, stages: int = 3, start: float = 0.25) -> Keep:
    filled = trace.filled[:, :1]  # (B, 1, T): a token is in all heads or in none
    following = trace.layer + 1
    begins = (start + n * (1 - start) / stages for n in range(stages))  # as shares of the depth
    starts = [max(1, int(share * trace.layers + 1e-9)) for share in begins]  # layers before which a stage drops
    if following not in starts or following == trace.layers:
        return Keep(filled)
    stage = sum(start <= following for start in starts)
    text = replace(trace, seen=trace.query_positions[:, -1] + 1)  # a sliding layer counts its window only
    count = target(text, budget if budget is None else budget ** (stage / stages), None)  # (B,)
    looked = attention(trace)[:, :, -1].mean(1, keepdim=True)  # (B, 1, T)
    return Keep(top_share(protect(looked.expand_as(trace.positions), trace, window=1)[:, :1], filled, count))
