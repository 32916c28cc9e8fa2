"""Who looks at whom: attention of this pass's queries over the cached slots, without the model's own weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from tokenmill.types import Trace

BLOCK = 256  # queries whose attention is held at once when only sums over queries are asked for


def wide(x: Tensor) -> Tensor:
    """At least float32: sums over thousands of tokens are lost in half precision."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def attention(trace: Trace, temperature: float = 1.0, noise: Tensor | None = None, last: int | None = None) -> Tensor:
    """softmax((scale q.k + noise) / temperature) over the slots a query may see. (B, H, Q, T)

    A query sees filled slots up to its own position, inside the layer's sliding window. `noise` is (B, K, T);
    `last` counts only the newest queries. Queries that are padding, or not counted, have rows of zeros.
    """
    b, k, t, _ = trace.keys.shape
    queries = wide(trace.queries).unflatten(1, (k, trace.groups))  # (B, K, G, Q, D)
    logits = queries @ wide(trace.keys)[:, :, None].mT * trace.scale  # (B, K, G, Q, T)
    if noise is not None:
        logits = logits + noise[:, :, None, None]
    visible = seen_by(trace, last)[:, :, None]  # (B, K, 1, Q, T)
    logits = (logits / temperature).masked_fill(~visible, torch.finfo(logits.dtype).min)
    return logits.softmax(-1).masked_fill(~visible, 0).reshape(b, trace.queries.shape[1], -1, t)


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


def received(trace: Trace, temperature: float = 1.0, noise: Tensor | None = None) -> Tensor:
    """Attention each slot gets from all queries of this pass, mean over the heads of a group. (B, K, T)

    In blocks of queries, so that the whole Q x T matrix never exists.
    """
    total = wide(trace.keys).new_zeros(trace.keys.shape[:3])
    for block in blocks(trace):
        total += by_group(attention(block, temperature, noise).sum(2), total.shape[1])
    return total


def blocks(trace: Trace) -> Iterator[Trace]:
    """The same trace with at most BLOCK of its queries at a time."""
    for start in range(0, trace.queries.shape[2], BLOCK):
        part = slice(start, start + BLOCK)
        yield replace(trace, queries=trace.queries[:, :, part], query_positions=trace.query_positions[:, part])
