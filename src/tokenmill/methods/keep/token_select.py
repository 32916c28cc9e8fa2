"""TokenSelect: the cache keeps every token, and each pass attends only to those its queries vote for.

    vote_t = sum over heads h of softmax_t(scale q_h k_t),   q = mean query of the pass, t not a sink and not recent
    attended: first `sinks` tokens, newest `window` tokens, and the highest votes, `budget` in all

A row votes again only when its mean query has turned: cosine with the query of its last vote below `similarity`.
The pass's own tokens are always attended to.

Wu et al., "TokenSelect: Efficient Long-Context Inference and Length Extrapolation for LLMs via Dynamic Token-Level
KV Cache Selection", 2024.

Differs: (1) `sinks` is 4 and `window` 32, for short texts; the authors' configurations have 128 and 512, beside 2,048
chosen tokens. (2) Sinks and window count towards the budget, where the paper adds them to k; when a vote is reused and
the budget has grown since, the newest tokens fill it up. (3) The query votes at its own position and with the model's
scale; the authors' code turns it to a nearer position, for texts longer than the model was trained on, and leaves the
scale out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.method import method
from tokenmill.ops.attention import wide
from tokenmill.ops.budget import target
from tokenmill.ops.select import protect, top_share
from tokenmill.types import Keep, Trace


@method(
    title="TokenSelect: Efficient Long-Context Inference and Length Extrapolation for LLMs via Dynamic Token-Level "
    "KV Cache Selection",
    paper="arXiv:2411.02886",
    year=2024,
    needs=("all_queries",),
    acts="attend",
)
def token_select(
    trace: Trace,
    state: tuple[Tensor, Tensor] | None,
    *,
    budget: float | None = None,
    slots: int | None = None,
    sinks: int = 4,
    window: int = 32,
    similarity: float = 0.9,
) -> tuple[Keep, tuple[Tensor, Tensor]]:
    own = (trace.query_positions >= 0).sum(-1)  # (B,) tokens of this pass
    count = torch.maximum(target(trace, budget, slots), own)
    query = _mean_query(trace)  # (B, H, D)
    recent = own.clamp(min=window)  # (B,)
    votes = protect(_votes(trace, query, recent, sinks), trace, window=recent, sinks=sinks)  # (B, K, T)
    elected = _by_position(top_share(votes, trace.filled, count) & ~votes.isinf(), trace)  # (B, K, P)
    if state is not None:
        asked, before = state  # (B, H, D), (B, K, P)
        before, elected = _as_long(before, elected), _as_long(elected, before)
        alike = torch.cosine_similarity(query.flatten(1), asked.flatten(1), dim=-1) >= similarity  # (B,)
        elected = torch.where(alike[:, None, None], before, elected)
        query = torch.where(alike[:, None, None], asked, query)
    seats = elected.gather(-1, trace.positions.clamp(min=0).long()).to(votes.dtype)  # (B, K, T)
    keep = top_share(protect(seats, trace, window=recent, sinks=sinks), trace.filled, count)
    # Where nobody was elected, as in a prompt that attends to all of itself, there is nothing to use again.
    return Keep(keep), (query * elected.any(-1).any(-1)[:, None, None], elected)


def _mean_query(trace: Trace) -> Tensor:
    real = (trace.query_positions >= 0)[:, None, :, None]  # (B, 1, Q, 1)
    return (wide(trace.queries) * real).sum(2) / real.sum(2).clamp(min=1)


def _votes(trace: Trace, query: Tensor, recent: Tensor, sinks: int) -> Tensor:
    """Share of each head's attention, sinks and recent tokens left out of it, summed over all heads. (B, K, T)"""
    safe = protect(torch.zeros_like(trace.positions, dtype=query.dtype), trace, window=recent, sinks=sinks)
    free = trace.filled & ~safe.isinf()  # (B, K, T)
    logits = query.unflatten(1, (trace.keys.shape[1], -1)) @ wide(trace.keys).mT * trace.scale  # (B, K, G, T)
    logits = logits.masked_fill(~free[:, :, None], torch.finfo(logits.dtype).min)
    votes = logits.softmax(-1).masked_fill(~free[:, :, None], 0).sum(2)  # (B, K, T)
    return votes.sum(1, keepdim=True).expand_as(votes)


def _by_position(mask: Tensor, trace: Trace) -> Tensor:
    """A choice of slots (B, K, T) as a choice of positions (B, K, P), which stays true when slots are added."""
    at = trace.positions.clamp(min=0).long()
    out = mask.new_zeros(*mask.shape[:2], int(at.max()) + 1, dtype=torch.uint8)
    return out.scatter_reduce(-1, at, mask.to(torch.uint8), "amax").bool()


def _as_long(mask: Tensor, other: Tensor) -> Tensor:
    return torch.nn.functional.pad(mask, (0, max(0, other.shape[-1] - mask.shape[-1])))
