"""D3: the later a token is generated, the fewer middle layers it runs through.

    layers run for generated token i = floor(L alpha^i), never fewer than the core, which is `core` * L layers:
    the first and the last ones. What is skipped is one block of the layers between, its end next to the last ones

Fan et al., "Position-Aware Depth Decay Decoding (D^3): Boosting Large Language Model Inference Efficiency", 2025.

Differs: the formula is the paper's, and so is that first and last layers are always run and skipped layers get
the state that passed them by as their key and value. How many layers are core, which of the others go first, and
the values of alpha and core are chosen here. fill="missing" stores nothing for skipped layers instead.
"""

from __future__ import annotations

import math

from tokenmill.errors import SpecError
from tokenmill.method import method
from tokenmill.types import Depth, Step


@method(
    title="Position-Aware Depth Decay Decoding (D^3): Boosting Large Language Model Inference Efficiency",
    paper="arXiv:2503.08524",
    year=2025,
)
def d3(step: Step, *, alpha: float = 0.99, core: float = 0.6, fill: str = "carry") -> Depth:
    if fill not in ("carry", "missing"):
        raise SpecError(f"d3: fill must be 'carry' or 'missing', not {fill!r}")
    most = step.layers
    least = min(most, max(1, math.ceil(core * most - 1e-9)))
    kept = min(most, max(least, math.floor(most * alpha**step.generated + 1e-9)))
    last = least // 2  # the core's upper part; a one-layer core is the first layer
    first = kept - last
    return Depth((*range(first), *range(most - last, most)), fill)
