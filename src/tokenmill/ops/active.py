"""Some tokens of each row, gathered so that work is done for them alone, and put back where they came from."""

from __future__ import annotations

import torch
from torch import Tensor


def gather(mask: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    """mask (B, T) bool -> places (B, N), real (B, N) bool, and each of `of` (B, T, ...) at those places.

    N is the longest row's count; text order is kept; what a shorter row lacks is not `real`, and comes last.
    """
    longest = int(mask.sum(-1).max()) if mask.numel() else 0
    places = (~mask).to(torch.uint8).sort(dim=-1, stable=True).indices[:, :longest]
    rows = torch.arange(len(mask), device=mask.device)[:, None]
    return places, mask.gather(1, places), *(x[rows, places] for x in of)


def put(x: Tensor, places: Tensor, real: Tensor, new: Tensor) -> Tensor:
    """x (B, T, ...) with new (B, N, ...) at the real places; differentiable in both."""
    rows = torch.arange(len(x), device=x.device)[:, None].expand_as(places)
    return x.index_put((rows[real], places[real]), new[real])
