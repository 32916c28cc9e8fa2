"""SkipDecode: every position has its number of layers, falling along the text; lower and middle layers are passed by.

    n_t = max - (max - min) * t / length        for the generated token t <= length, then min
    layers run = the first `warmup`, and the last n_t - warmup;   max = L, min = `least` * L

Del Corro et al., "SkipDecode: Autoregressive Skip Decoding with Batching and Caching for Efficient LLM Inference",
2023.

The budget only falls, so every layer that a token runs through was run through by all tokens before it: nothing is
stored for layers passed by, and nothing is ever missing. Text of a later turn is read at the depth reached.

Differs: (1) The paper tunes the model with its schedule and nothing is tuned here. (2) The paper states its largest
and smallest number of layers for each model and speed; here they are all of them and half (`least`), over 128 tokens.
(3) Text that is read, before anything is generated, runs through all layers; t counts generated tokens. (4) n_t is
rounded.
"""

from __future__ import annotations

from tokenmill.method import method
from tokenmill.types import Depth, Step


@method(
    title="SkipDecode: Autoregressive Skip Decoding with Batching and Caching for Efficient LLM Inference",
    paper="arXiv:2307.02628",
    year=2023,
)
def skip_decode(step: Step, *, least: float = 0.5, length: int = 128, warmup: int = 1) -> Depth:
    most = step.layers
    fallen = min(1.0, step.generated / length)
    count = max(1, round(most - (most - least * most) * fallen))
    first = min(max(1, warmup), count)  # layer 0 reads the embedding: it always runs
    return Depth((*range(first), *range(most - (count - first), most)), fill="missing")
