"""Early exit: a generated token goes no deeper once the model is sure what comes next.

    a row leaves after layer l  <=>  c_l > threshold_t
    c_l = p_1 - p_2 of softmax(head(norm(h_l)))   "margin"
        = p_1                                     "top"
        = cos(h_l, h_(l-1))                       "saturation"
    threshold_t = clip(0.9 threshold + 0.1 exp(-decay t / length), 0, 1);  threshold itself if decay is 0

Schuster et al., "Confident Adaptive Language Modeling", 2022.

Rows of a batch leave at layers of their own; the layers above run for the others only. They hold for a token that left
the key and value of the hidden state it left with (`fill="carry"`), or nothing ("missing"). Text that is read runs
through all layers.

"margin" and "top" cost the model's head, over the whole vocabulary, each time they are asked: after every `stride`-th
layer, from the share `start` of the depth on.

Differs: (1) The threshold is given, not calibrated to a risk. (2) The model was not trained to be read in the middle.
(3) It is asked after every second layer of the upper half (`stride`, `start`), because its head is expensive; the
paper asks after every layer. (4) The paper's third measure, a classifier trained for it, is left out ("top" is in the
authors' code alone). (5) A row stays at the threshold itself, so that none leaves at 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenmill.errors import SpecError
from tokenmill.method import method
from tokenmill.types import Exit, Midway

MEASURES = ("margin", "top", "saturation")


@method(title="Confident Adaptive Language Modeling", paper="arXiv:2207.07061", year=2022, acts="exit")
def early_exit(
    midway: Midway,
    *,
    threshold: float = 0.9,
    measure: str = "margin",
    stride: int = 2,
    start: float = 0.5,
    decay: float = 0.0,
    length: int = 128,
    fill: str = "carry",
) -> Exit | None:
    if measure not in MEASURES or fill not in ("carry", "missing"):
        raise SpecError(f"early_exit: measure is one of {', '.join(MEASURES)}, fill is carry or missing")
    done = midway.layer + 1
    first = max(1, math.ceil(start * midway.step.layers))
    if done < first or (done - first) % stride:
        return None
    if decay:
        threshold = min(1.0, 0.9 * threshold + 0.1 * math.exp(-decay * midway.step.generated / length))
    return Exit(_confidence(midway, measure) > threshold, fill)


def _confidence(midway: Midway, measure: str) -> Tensor:
    if measure == "saturation":
        return torch.cosine_similarity(midway.hidden.float(), midway.before.float(), dim=-1)  # (B,)
    best = midway.logits().float().softmax(-1).topk(2, dim=-1).values  # (B, 2)
    return best[:, 0] - best[:, 1] if measure == "margin" else best[:, 0]
