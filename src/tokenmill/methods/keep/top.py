"""Top: keep the tokens with the highest scores, the same number in every head and layer.

    kept = the n highest s_t of each head,  n = budget * tokens seen

What `snapkv(budget=0.25)` is short for: `top(score=snapkv, budget=0.25)`.
"""

from __future__ import annotations

from torch import Tensor

from tokenmill.method import Method, method
from tokenmill.methods.score.snapkv import snapkv
from tokenmill.ops.budget import recent, target
from tokenmill.ops.select import protect, top_share
from tokenmill.types import Keep, Trace


@method(title="")
def top(
    trace: Trace, scores: Tensor, *, score: Method = snapkv, budget: float | None = None, slots: int | None = None
) -> Keep:
    count = target(trace, budget, slots)  # (B,)
    scores = protect(scores, trace, window=recent(score, count))
    return Keep(top_share(scores, trace.filled, count))
