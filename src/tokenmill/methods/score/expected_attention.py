"""Expected attention: keep what future queries will look at, if they are distributed like the queries so far.

    q ~ N(m, S) from this pass's queries, moved to the end of the text;  R = mean rotation over the next `future` places
    s_t = ||v_t|| softmax_t( scale k_t R m + scale^2 k_t R S R' k_t / 2 ),  mean over a group's heads
    the first `sinks` tokens are left out of m, S and the softmax, and always stay

Devoto et al., "Expected Attention: KV Cache Compression by Estimating Attention from Future Queries Distribution",
2025.

Differs: the paper weighs a token by the norm of its value after the output projection; here, as in its authors'
library, by that of the value itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.method import method
from tokenmill.ops.attention import by_group, wide
from tokenmill.ops.select import protect
from tokenmill.types import Trace


@method(
    title="Expected Attention: KV Cache Compression by Estimating Attention from Future Queries Distribution",
    paper="arXiv:2510.00636",
    year=2025,
    needs=("queries", "rotary"),
)
def expected_attention(trace: Trace, *, sinks: int = 4, future: int = 512, window: int | None = None) -> Tensor:
    assert trace.rotary is not None
    keys, queries, at = wide(trace.keys), wide(trace.queries), trace.query_positions
    k, d = keys.shape[1], keys.shape[-1]

    # Every query as it would be at the first place after the text.
    end = trace.positions.amax((1, 2))[:, None] + 1  # (B, 1)
    moved = trace.rotary.rotate(queries, (end - at)[:, None].expand(queries.shape[:3]))  # (B, H, Q, D)
    counted = (at >= sinks).to(moved.dtype)[:, None, :, None]  # (B, 1, Q, 1)
    n = counted.sum(2, keepdim=True).clamp(min=1)
    mean = (moved * counted).sum(2, keepdim=True) / n  # (B, H, 1, D)
    apart = (moved - mean) * counted
    spread = apart.mT @ apart / n  # (B, H, D, D)

    steps = torch.arange(future, device=keys.device)
    basis = torch.eye(d, dtype=keys.dtype, device=keys.device)[:, None].expand(d, future, d)
    turn = trace.rotary.rotate(basis, steps.expand(d, future)).mean(1)  # (D, D): row i is R e_i
    mean, spread = mean @ turn, turn.mT @ spread @ turn

    shared = keys.repeat_interleave(trace.groups, 1) * trace.scale  # (B, H, T, D)
    logits = (shared @ mean.mT).squeeze(-1) + ((shared @ spread) * shared).sum(-1) / 2  # (B, H, T)
    left_out = (~trace.filled | (trace.positions < sinks)).repeat_interleave(trace.groups, 1)
    expected = logits.masked_fill(left_out, torch.finfo(logits.dtype).min).softmax(-1)
    return protect(by_group(expected, k) * wide(trace.values).norm(dim=-1), trace, sinks=sinks)  # (B, K, T)
