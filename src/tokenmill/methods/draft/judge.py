"""Judge: a guess is also accepted where a trained head, looking at the model's own state, holds it right. Not lossless.

    x is taken  <=>  the exact rule takes it  or  sigmoid(w h_x + b) > threshold

h_x is the model's final hidden state after it has read x: the pass that checks a draft computes it anyway. The token
after the last guess taken is the model's own, chosen as without drafting.

Bachmann et al., "Judge Decoding: Faster Speculative Sampling Requires Going Beyond Model Alignment", 2025.

Differs: (1) The paper labels answers by hand, right ones and such with a marked mistake. Here real text is right, and
a mistake is made: a token drawn from the model's own flattened distribution, neither the text's nor the model's
likeliest. Both kinds count alike in the loss. (2) The paper judges long drafts of a capable model (8 billion
parameters drafting for 405); any source may be judged here. (3) Where a tree offers several guesses the exact rule's
comes first, then the one the judge is surest of; the paper judges a chain.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from tokenmill.method import method
from tokenmill.ops.distil import places
from tokenmill.ops.sampling import residual_step
from tokenmill.ops.trees import children
from tokenmill.types import Batch, Draft, Learned, Said

FLAT = 1.5  # temperature that mistakes are drawn at: from near misses to nonsense

TRAINING = {"rows": 4, "steps": 300, "lr": 3e-3}


class Verdict(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.linear = nn.Linear(size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., E) -> (...): log odds that the token just read is right."""
        return self.linear(hidden)[..., 0]


def parts(config: Any) -> nn.Module:
    return Verdict(config.hidden_size)


def _judged(parts: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log odds of right tokens (M,), and of mistakes put among them (N,)."""
    at = 1 + places(batch, 1)
    logits = batch.head(batch.hidden[:, at - 1]).float() / FLAT  # (B, A, V)
    own = torch.stack([batch.ids[:, at], logits.argmax(-1)], -1)
    chances = logits.scatter(-1, own, -math.inf).softmax(-1).flatten(0, 1)
    ids = batch.ids.index_copy(1, at, torch.multinomial(chances, 1).view(len(batch.ids), -1))
    hidden = batch.read(ids)
    sound = torch.ones(ids.shape[1], dtype=torch.bool, device=ids.device)
    sound[0] = sound[at] = sound[(at + 1).clamp(max=ids.shape[1] - 1)] = False  # right after a mistake: who can say
    right = torch.cat([batch.hidden[:, 1:], hidden[:, sound]], 1)
    return parts(right).flatten(), parts(hidden[:, at]).flatten()


def objective(parts: Any, batch: Batch) -> Tensor:
    right, wrong = _judged(parts, batch)
    return (softplus(-right).mean() + softplus(wrong).mean()) / 2


def figure(parts: Any, batch: Batch) -> dict[str, float]:
    right, wrong = _judged(parts, batch)
    return {
        "right tokens passed": float((right > 0).float().mean()),
        "mistakes passed": float((wrong > 0).float().mean()),
    }


@method(
    title="Judge Decoding: Faster Speculative Sampling Requires Going Beyond Model Alignment",
    paper="arXiv:2501.19309",
    year=2025,
    needs=("hidden",),
    role="rule",
    trains="part",
)
def judge(
    draft: Draft, said: Said, learned: Learned, *, threshold: float = 0.5, weights: str | None = None
) -> tuple[list[int], int]:
    assert said.hidden is not None
    sure = learned.parts(said.hidden[1:]).float().sigmoid().tolist()  # (N,)
    below, tokens, at = children(draft.parents.tolist()), draft.tokens.tolist(), -1
    path: list[int] = []
    while True:
        offers, own = below.get(at, []), said.likeliest[at + 1] if said.generator is None else -1
        if said.generator is None:
            child = next((node for node in offers if tokens[node] == own), None)
        else:
            child, own = residual_step(draft, at, offers, said)
        if child is None:
            child = max((node for node in offers if sure[node] > threshold), key=sure.__getitem__, default=None)
        if child is None:
            return path, own
        path.append(child)
        at = child
