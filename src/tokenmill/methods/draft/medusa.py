"""Medusa: extra heads on the last hidden state guess the tokens after the next one, each for its own place.

    head k:  p_k = softmax(W_out (h + SiLU(A_k h + b_k))),  k = 1 .. heads;  guesses k places on from the root: p_k

h is the final hidden state that gave the newest token, W_out the model's own head.

Cai et al., "Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads", 2024.

Differs: heads are trained on what the model itself says is likeliest after the text, on a sample of the places of each
batch, and share the model's output matrix; the paper trains them on the text's own next tokens, real ones or such as
the model wrote, and gives each head a matrix of its own, started from that one. Guesses are among the first `words`
tokens of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from tokenmill.method import method
from tokenmill.ops.distil import Ahead, foretelling, foretold, places
from tokenmill.ops.sampling import by_level
from tokenmill.types import Batch, Learned, Verified

TRAINING = {"rows": 4, "steps": 400, "lr": 1e-3}


class Heads(nn.Module):
    def __init__(self, size: int, heads: int):
        super().__init__()
        blocks = [nn.Linear(size, size) for _ in range(heads)]
        self.blocks = nn.ModuleList(blocks)
        for block in blocks:
            nn.init.zeros_(block.weight)  # every head begins as the model's own
            nn.init.zeros_(block.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., E) -> (..., heads, E): states that the model's head turns into logits."""
        return torch.stack([hidden + silu(block(hidden)) for block in self.blocks], -2)


def parts(config: Any, *, heads: int = 3) -> nn.Module:
    return Heads(config.hidden_size, heads)


def _ahead(parts: Any, batch: Batch) -> Ahead:
    count = len(parts.blocks)
    at = places(batch, count + 1)
    states = parts(batch.hidden[:, at])  # (B, A, heads, E)
    return [(states[:, :, k], at + k + 1) for k in range(count)]


def objective(parts: Any, batch: Batch) -> Tensor:
    return foretelling(batch, _ahead(parts, batch))


def figure(parts: Any, batch: Batch) -> dict[str, float]:
    return foretold(batch, _ahead(parts, batch))


@method(
    title="Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads",
    paper="arXiv:2401.10774",
    year=2024,
    needs=("hidden",),
    role="source",
    tree="auto",
    trains="part",
    lossless=True,
)
def medusa(
    seen: Verified,
    state: None,
    learned: Learned,
    *,
    heads: int = 3,
    width: int = 6,
    words: int = 16384,
    weights: str | None = None,
) -> tuple[object, None]:
    return by_level(lambda: learned.head(learned.parts(seen.newest)), width), None
