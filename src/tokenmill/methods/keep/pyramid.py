"""PyramidKV: any score, with more tokens for the first layers than for the last.

    n = budget * tokens seen, of which w are the score's own (scored infinity) in every layer;  b = n - w
    lowest = b / steepness,  highest = 2 b - lowest;  no layer more than all tokens: then lowest = 2 b - highest
    layer l of L keeps the w + highest - (highest - lowest) l / (L - 1) best, rounded down

Cai et al., "PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling", 2024.

Differs: (1) The authors' code leaves a prompt whole that is shorter than the cache asked for, and gives every layer
the same if it is shorter than about twice that; here the pyramid is only flattened as far as the shortest text
demands. (2) The score is SnapKV's with its own window of 32; the authors' LongBench runs have a window of 8.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.method import Method, method
from tokenmill.methods.score.snapkv import snapkv
from tokenmill.ops.budget import asked, certain, recent
from tokenmill.ops.select import protect, top_share
from tokenmill.types import Keep, Trace


@method(
    title="PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling",
    paper="arXiv:2406.02069",
    year=2024,
)
def pyramid(
    trace: Trace,
    scores: Tensor,
    *,
    score: Method = snapkv,
    steepness: float = 20.0,
    budget: float | None = None,
    slots: int | None = None,
) -> Keep:
    n = asked(trace.seen, budget, slots)  # (B,) of the tokens seen: layers already hold different numbers
    own = certain(scores, n).amax(-1).clamp(min=1)  # (B,) at least one token a layer
    b = (n - own).double()
    highest = torch.minimum(2 * b - b / steepness, (trace.seen - own).double())
    lowest = 2 * b - highest
    down = trace.layer / (trace.layers - 1) if trace.layers > 1 else 0.5
    count = own + torch.floor(highest - (highest - lowest) * down + 1e-9).long()  # (B,)
    scores = protect(scores, trace, window=recent(score, count))
    return Keep(top_share(scores, trace.filled, count))
