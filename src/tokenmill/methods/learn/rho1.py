"""Rho-1: learn only from the tokens where the model lags furthest behind a reference model.

    excess_t = loss_t - reference_t
    w_t = 1 for the top `share` of the batch's tokens by excess, else 0
    training loss = sum w_t loss_t / sum w_t

Lin et al., "Rho-1: Not All Tokens Are What You Need", 2024. A token whose loss is not finite (padding) weighs 0 and
does not count towards the share.

Differs: in its default alone: `share` is 0.6, the paper's for models of 1 billion parameters; it takes 0.7 for 7
billion.
"""

import torch
from torch import Tensor

from tokenmill.errors import InputError
from tokenmill.method import method
from tokenmill.ops.share import best_share
from tokenmill.types import Weights


@method(title="Rho-1: Not All Tokens Are What You Need", paper="arXiv:2404.07965", year=2024)
def rho1(losses: Tensor, reference: Tensor | None, *, share: float = 0.6) -> Weights:
    if reference is None:
        raise InputError("rho1 compares with a reference model and was given none; pass reference=a model of good text")
    excess = (losses - reference).detach()  # (B, T)
    return Weights(best_share(excess, torch.isfinite(excess), share).float())
