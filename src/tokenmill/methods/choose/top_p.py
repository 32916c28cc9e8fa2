"""Top-p: only the likeliest tokens that together hold `share` of the probability may come out.

keep the smallest set of likeliest tokens with  sum of p >= share

Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020.

Differs: in its default alone: `share` is 0.9; the paper's own text is drawn at 0.95.
"""

from __future__ import annotations

from torch import Tensor

from tokenmill.method import method
from tokenmill.ops.sampling import nucleus


@method(title="The Curious Case of Neural Text Degeneration", paper="arXiv:1904.09751", year=2020, role="warp")
def top_p(logits: Tensor, *, share: float = 0.9) -> Tensor:
    return nucleus(logits, order=-logits, share=share)
