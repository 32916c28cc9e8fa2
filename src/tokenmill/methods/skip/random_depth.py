"""Random depth: every generated token runs through as many layers, drawn anew for each token.

layers run = the first one and round(share * L) - 1 others, drawn; text that is read runs through all

A token that skips a layer leaves there the key and value of the hidden state that passed by.
"""

from __future__ import annotations

import torch

from tokenmill.method import method
from tokenmill.ops.noise import at
from tokenmill.types import Depth, Step


@method(title="")
def random_depth(step: Step, *, share: float = 0.8, seed: int = 0) -> Depth:
    if step.prompt or not step.generated:
        return Depth(tuple(range(step.layers)))
    kept = max(1, round(share * step.layers))
    draws = at(torch.arange(1, step.layers), torch.tensor(step.generated), seed)  # (L - 1,)
    others = (1 + draws.argsort()[: kept - 1]).tolist()
    return Depth((0, *sorted(others)), fill="carry")
