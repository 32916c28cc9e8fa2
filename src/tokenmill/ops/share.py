"""The best share of a whole batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def best_share(scores: Tensor, valid: Tensor, share: float) -> Tensor:
    """The top `share` of the valid places, over all rows together: bool, shaped like scores.

    max(1, floor(share * valid)) of them, none when nothing is valid; ties go to the first place.
    """
    count = min(int(valid.sum()), max(1, math.floor(share * int(valid.sum()) + 1e-9)))
    ranked = scores.masked_fill(~valid, -torch.inf).flatten().argsort(descending=True, stable=True)
    chosen = torch.zeros(valid.numel(), dtype=torch.bool, device=valid.device)
    chosen[ranked[:count]] = True
    return chosen.view_as(valid)
