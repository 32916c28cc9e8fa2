"""Who looks at whom: attention of this pass's queries over the cached slots, computed from queries and keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenmill.ops.logits import heat
from tokenmill.types import Trace

BLOCK = 64  # queries whose attention exists at once when only sums over queries are asked for


def wide(x: Tensor) -> Tensor:
    """At least float32: sums over thousands of tokens are lost in half precision."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def attention(trace: Trace, temperature: float = 1.0, noise: Tensor | None = None, last: int | None = None) -> Tensor:
    """softmax((scale q.k + noise) / temperature) over the slots a query may see. (B, H, Q, T)

    A query sees filled slots up to its own position, inside the layer's sliding window. `noise` is (B, K, Q or 1, T);
    `last` counts only the newest queries. Queries that are padding, or not counted, have rows of zeros.
    """
    shape = (trace.groups, trace.queries.shape[2])
    temperature = heat(temperature)
    queries = wide(trace.queries).unflatten(1, (-1, trace.groups)).flatten(2, 3)  # (B, K, G Q, D): no key is repeated
    logits = (queries * (trace.scale / temperature) @ wide(trace.keys).mT).unflatten(2, shape)  # (B, K, G, Q, T)
    if trace.softcap is not None:
        logits = trace.softcap / temperature * (logits * (temperature / trace.softcap)).tanh()
    if noise is not None:
        logits += noise[:, :, None] / temperature
    hidden = ~seen_by(trace, last)[:, :, None]  # (B, K, 1, Q, T)
    logits.masked_fill_(hidden, torch.finfo(logits.dtype).min)
    if trace.sinks is not None:
        sinks = trace.sinks.to(logits).view(1, -1, trace.groups, 1) / temperature  # (1, K, G, 1)
        paid = _softmax(logits, sinks.expand(*logits.shape[:-1]))
    else:
        paid = logits.softmax(-1)
    blind = hidden.all(-1, keepdim=True)  # (B, K, 1, Q, 1)
    if bool(blind.any()):  # else what is hidden is zero already, and another pass over the matrix is saved
        paid.masked_fill_(blind, 0)
    return paid.flatten(1, 2)


def _softmax(scores: Tensor, sinks: Tensor) -> Tensor:
    """softmax of scores (..., T) beside one more score (...), whose share is left out."""
    return torch.cat([scores, sinks[..., None].to(scores)], -1).softmax(-1)[..., :-1]


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float,
    softcap: float | None = None, sinks: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """softmax(scale q.k) v, queries (..., Q, D) over slots (..., T, D), where mask (..., Q, T) is True: (..., Q, Dv).

    `softcap` c makes scores c tanh(score / c); `sinks` (..., Q) are scores of an empty slot that each query sees too.
    """
    if softcap is None and sinks is None:
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)
    scores = queries @ keys.mT * scale
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    scores = scores.float()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is None:
        return scores.softmax(-1).to(queries.dtype) @ values
    return _softmax(scores, sinks.expand(scores.shape[:-1])).to(queries.dtype) @ values


def seen_by(trace: Trace, last: int | None = None) -> Tensor:
    """Which slots each query may look at: (B, K, Q, T) bool."""
    at = trace.query_positions  # (B, Q)
    if last is not None and at.shape[1] > last:
        at = at.masked_fill(at <= at.amax(-1, keepdim=True) - last, -1)
    at, slots = at[:, None, :, None], trace.positions[:, :, None]  # (B, 1, Q, 1), (B, K, 1, T)
    visible = trace.filled[:, :, None] & (slots <= at)
    return visible if trace.window is None else visible & (slots > at - trace.window)


def by_group(x: Tensor, heads: int) -> Tensor:
    """Mean over the query heads that share a key/value head: (B, H, ...) -> (B, K, ...)."""
    return x.unflatten(1, (heads, -1)).mean(2)


def received(trace: Trace, temperature: float = 1.0, noise: Callable[[Trace], Tensor] | None = None) -> Tensor:
    """Attention each slot gets from all queries of this pass, mean over the heads of a group. (B, K, T)

    Block by block of queries, so that the whole Q x T matrix never exists; `noise` is asked for block by block too.
    """
    total = wide(trace.keys).new_zeros(trace.keys.shape[:3])
    for block in _blocks(trace):
        paid = attention(block, temperature, noise(block) if noise else None).sum(2)  # (B, H, up to T)
        total[..., : paid.shape[-1]] += by_group(paid, total.shape[1])
    return total


def accumulated(
    trace: Trace, state: Tensor | None, temperature: float = 1.0, noise: Callable[[Trace], Tensor] | None = None
) -> Tensor:
    """`received` over all passes so far: `state` (B, K, T) and what this one adds. (B, K, T) float32"""
    got = received(trace, temperature, noise).float()
    return got if state is None else state + got


def _blocks(trace: Trace) -> Iterator[Trace]:
    """The trace with BLOCK of its queries at a time, and without the slots that are newer than all of these."""
    if trace.queries.shape[2] <= BLOCK:
        yield trace
        return
    for start in range(0, trace.queries.shape[2], BLOCK):
        at = trace.query_positions[:, start : start + BLOCK]
        slots = int((trace.filled & (trace.positions <= at.max())).sum(-1).max())
        yield replace(
            trace,
            queries=trace.queries[:, :, start : start + BLOCK],
            query_positions=at,
            keys=trace.keys[:, :, :slots],
            values=trace.values[:, :, :slots],
            positions=trace.positions[:, :, :slots],
        )


def across_heads(x: Tensor, trace: Trace) -> Tensor:
    """Mean over all query heads, token by token: (B, H, T) -> (B, K, T).

    Heads may hold different tokens in the same slot, so what is averaged is found by position. A head that no longer
    holds a token counts as zero.
    """
    heads, k = x.shape[1], trace.keys.shape[1]
    summed = x.unflatten(1, (k, -1)).sum(2).flatten(1)  # (B, K T)
    at = trace.positions.clamp(min=0).flatten(1).long()  # (B, K T); empty slots bring zero to position 0
    by_position = summed.new_zeros(x.shape[0], int(at.max()) + 1).scatter_add_(1, at, summed)
    return by_position.gather(1, at).unflatten(1, (k, -1)).masked_fill(~trace.filled, 0) / heads
