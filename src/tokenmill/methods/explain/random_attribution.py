"""Random attribution: noise, the floor every explanation must beat."""

import torch
from torch import Tensor

from tokenmill.method import method
from tokenmill.ops import noise
from tokenmill.types import Ask, Attribution


@method(title="")
def random_attribution(ask: Ask, ids: Tensor, target: int | None, *, seed: int = 0) -> Attribution:
    scores = noise.at(torch.zeros_like(ids), torch.arange(len(ids)), seed)  # (T,)
    if target is not None:
        return Attribution(scores, target)
    return Attribution(scores, int(ask.probabilities(ids[None])[0].argmax()), calls=1)
