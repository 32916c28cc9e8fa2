"""Random share: learn from a random part of the batch's tokens, the rival a selection must beat.

w_t = 1 for a random `share` of the batch's tokens, else 0
"""

import torch
from torch import Tensor

from tokenmill.method import method
from tokenmill.ops import noise
from tokenmill.ops.share import best_share
from tokenmill.types import Weights


@method(title="")
def random_share(losses: Tensor, reference: Tensor | None, *, share: float = 0.6, seed: int = 0) -> Weights:
    rows, positions = (torch.arange(n, device=losses.device) for n in losses.shape)
    lot = noise.at(rows[:, None], positions, seed)  # (B, T)
    return Weights(best_share(lot, torch.isfinite(losses), share).float())
