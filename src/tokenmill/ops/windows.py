"""Statistics over neighbouring slots."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def max_pool(x: Tensor, kernel: int) -> Tensor:
    """The largest of the `kernel` neighbours around each slot, itself included; outside counts as 0. (B, K, T)"""
    return F.max_pool1d(F.pad(x, (kernel // 2, (kernel - 1) // 2)), kernel, stride=1)
