"""Full loss: every token teaches alike, the loss models are trained with.

w_t = 1 for every token that has a loss
"""

import torch
from torch import Tensor

from tokenmill.method import method
from tokenmill.types import Weights


@method(title="")
def full_loss(losses: Tensor, reference: Tensor | None) -> Weights:
    return Weights(torch.isfinite(losses).float())
