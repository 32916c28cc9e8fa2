"""Input x gradient: how strongly the prediction's logit reacts to each token's embedding.

s_t = || e_t * d logit_y / d e_t ||
"""

import torch
from torch import Tensor

from tokenmill.errors import InputError
from tokenmill.method import method
from tokenmill.types import Ask, Attribution


@method(title="")
def gradient_norm(ask: Ask, ids: Tensor, target: int | None) -> Attribution:
    if ask.embed is None or ask.logits_from_embeddings is None:
        raise InputError("gradient_norm needs the model's embeddings and this model is a black box; use occlusion")
    e = ask.embed(ids[None]).detach().requires_grad_()  # (1, T, E)
    with torch.enable_grad():
        logits = ask.logits_from_embeddings(e)[0]  # (V,)
        y = int(logits.argmax()) if target is None else target
        (slope,) = torch.autograd.grad(logits[y], e)
    return Attribution((e * slope).detach().norm(dim=-1)[0], y, calls=1)
