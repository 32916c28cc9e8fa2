"""Random tokens: a score by lot; what any method must beat at the same budget.

s_t = uniform number, a hash of (seed, layer, head, position)
"""

from __future__ import annotations

from torch import Tensor

from tokenmill.method import method
from tokenmill.ops.noise import uniform
from tokenmill.types import Trace


@method(title="")
def random_tokens(trace: Trace, *, seed: int = 0) -> Tensor:
    return uniform(trace, seed)  # (B, K, T)
