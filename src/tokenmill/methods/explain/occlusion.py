"""Occlusion: leave one token out and see how much less likely the prediction becomes.

    s_t = p(y | x) - p(y | x without x_t)

The only token of a prompt of one scores p(y | x): nothing is left to ask about.
"""

import torch
from torch import Tensor

from tokenmill.method import method
from tokenmill.types import Ask, Attribution


@method(title="")
def occlusion(ask: Ask, ids: Tensor, target: int | None) -> Attribution:
    length = len(ids)
    p = ask.probabilities(ids[None])[0]  # (V,)
    y = int(p.argmax()) if target is None else target
    if length == 1:
        return Attribution(p[y][None], y, calls=1)
    others = ~torch.eye(length, dtype=torch.bool)
    without = ids.expand(length, length)[others].view(length, length - 1)  # row t lacks x_t
    return Attribution(p[y] - ask.probabilities(without)[:, y], y, calls=1 + length)
