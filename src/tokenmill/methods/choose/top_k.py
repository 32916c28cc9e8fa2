"""Top-k: only the `top` likeliest tokens may come out.

z_v = -inf where z_v lies below the `top`-th largest z; equals of it stay
"""

from __future__ import annotations

import math

from torch import Tensor

from tokenmill.method import method


@method(title="", role="warp")
def top_k(logits: Tensor, *, top: int = 50) -> Tensor:
    least = logits.topk(min(top, logits.shape[-1]), dim=-1).values[:, -1:]  # (N, 1)
    return logits.masked_fill(logits < least, -math.inf)
