"""Constant skip: every generated token passes by the same block of middle layers.

layers run = round(share * L): the first half of them and the last half; the prompt runs through all

Nothing is stored for a token in a layer it skips, and no later token asks for it.
"""

from __future__ import annotations

from tokenmill.method import method
from tokenmill.types import Depth, Step


@method(title="")
def constant_skip(step: Step, *, share: float = 0.8) -> Depth:
    if not step.generated:
        return Depth(tuple(range(step.layers)))
    kept = max(1, round(share * step.layers))
    last = kept // 2
    return Depth((*range(kept - last), *range(step.layers - last, step.layers)), fill="missing")
