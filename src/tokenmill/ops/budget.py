"""How many tokens a budget buys."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.errors import SpecError
from tokenmill.method import Method
from tokenmill.types import Trace


def asked(seen: Tensor, budget: float | None, slots: int | None) -> Tensor:
    """Tokens a head of each row may hold, which was shown `seen` (B,): a share of them, or a plain number.

    (B,) long, at least one.
    """
    if slots is not None:
        return seen.clamp(max=slots)
    if budget is None:
        raise SpecError("how many tokens stay is not said; give a share or a number: budget=0.25 or slots=512")
    # 1e-9: a share such as 0.1 is not a binary number, and 0.1 * 30 must buy 3 tokens.
    return torch.floor(budget * seen.double() + 1e-9).long().clamp(min=1)


def target(trace: Trace, budget: float | None, slots: int | None) -> Tensor:
    """What is asked for, or what the fullest head of the row holds if that is less. (B,) long."""
    return torch.minimum(asked(trace.seen, budget, slots), trace.filled.sum(-1).amax(-1))


def recent(score: Method, count: Tensor) -> Tensor:
    """How many of `count` tokens are the newest ones' whatever their score: the score's knob `recent`, a share."""
    return torch.floor(score.knobs.get("recent", 0.0) * count.double() + 1e-9).long()


def certain(scores: Tensor, count: Tensor) -> Tensor:
    """How many of `count` (B,) tokens a score says must stay, by scoring them infinity, in each head. (B, K) long."""
    return torch.minimum((scores == torch.inf).sum(-1), count[:, None])
