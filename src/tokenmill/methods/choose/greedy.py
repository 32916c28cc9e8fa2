"""Greedy: the likeliest token.

argmax z; of equals the first
"""

from __future__ import annotations

import math

from torch import Tensor

from tokenmill.method import method


@method(title="", role="final")
def greedy(logits: Tensor) -> Tensor:
    likeliest = logits.argmax(-1, keepdim=True)  # (N, 1)
    return logits.new_full(logits.shape, -math.inf).scatter(-1, likeliest, 0.0)
