"""D3: the later a token is generated, the fewer middle layers it runs through.

    layers run for generated token i = floor(L alpha^i), never fewer than the core, which is `core` * L layers:
    the first and the last ones. What is skipped is one block of the layers between, its end next to the last ones

Fan et al., "Position-Aware Depth Decay Decoding (D^3): Boosting Large Language Model Inference Efficiency", 2025.

The block only grows, so a layer that was skipped once is not run again for this text and nothing has to be stored
for it.

Differs: the decay is the paper's, and that the first and last layers always run. How many are core, which of the
others go first, and the values of alpha and core are chosen here. The paper copies a state for skipped layers.
"""

from __future__ import annotations

import math

from tokenmill.method import method
from tokenmill.types import Depth, Step


@method(
    title="Position-Aware Depth Decay Decoding (D^3): Boosting Large Language Model Inference Efficiency",
    paper="arXiv:2503.08524",
    year=2025,
)
def d3(step: Step, *, alpha: float = 0.99, core: float = 0.6) -> Depth:
    most = step.layers
    least = min(most, max(1, math.ceil(core * most - 1e-9)))
    kept = min(most, max(least, math.floor(most * alpha**step.generated + 1e-9)))
    last = least // 2  # the core's upper part; a one-layer core is the first layer
    first = kept - last
    return Depth((*range(first), *range(most - last, most)), fill="missing")
