"""Choosing slots: the best, the newest, the first."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.types import Trace


def top_share(scores: Tensor, filled: Tensor, count: Tensor) -> Tensor:
    """The `count` filled slots with the highest scores, in each head; ties go to the newest. (B, K, T) bool.

    `count` is (B,) or (B, K). Exactly that many are taken, or all that a head holds. NaN, which overflow in half
    precision leaves behind, is the lowest score.
    """
    count = (count if count.dim() == 2 else count[:, None]).expand(scores.shape[:2])  # (B, K)
    count = torch.minimum(count, filled.sum(-1))[..., None]  # (B, K, 1)
    scores = scores.masked_fill(~filled | scores.isnan(), -torch.inf)
    if scores.shape[-1] == 0:
        return filled
    least = scores.sort(-1, descending=True).values.gather(-1, (count - 1).clamp(min=0))  # the last score that gets in
    above = scores > least
    tied = (scores == least) & filled
    return (above | newest(tied, count - above.sum(-1, keepdim=True))) & (count > 0)


def newest(slots: Tensor, count: Tensor | int) -> Tensor:
    """The newest `count` of these slots (..., T) bool; count is an integer or (..., 1)."""
    return slots & (slots.flip(-1).cumsum(-1).flip(-1) <= count)


def protect(scores: Tensor, trace: Trace, *, window: Tensor | int = 0, sinks: int = 0) -> Tensor:
    """Scores with the newest `window` slots (a number, or one a row) and the first `sinks` tokens at infinity."""
    if isinstance(window, Tensor):
        window = window[:, None, None]  # (B, 1, 1)
    safe = newest(trace.filled, window) | (trace.filled & (trace.positions < sinks))
    return scores.masked_fill(safe, torch.inf)
