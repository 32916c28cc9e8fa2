"""Medusa: extra heads on the last hidden state guess the tokens after the next one, each for its own place.

    head k:  p_k = softmax(W_out (h + SiLU(A_k h + b_k))),  k = 1 .. heads;  guesses k places on from the root: p_k

h is the final hidden state that gave the newest token, W_out the model's own head. With `matrices` above 0 each head
has an output matrix of its own, as in the paper: W_out + D_k, where D_k starts at zero and has that many rows, for the
first tokens of the vocabulary.

Cai et al., "Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads", 2024.

Differs: (1) three heads; the authors' configuration has five, and they train three or four. (2) By default the heads
share the model's output matrix, so that they are small enough to ship; the paper's have their own (`matrices=16384`,
which the user trains: 57 MB for three heads of the default model). (3) Heads learn the model's own likeliest token
after the text, at a sample of the places of each batch; the paper trains them on the text's next tokens, real ones or
such as the model wrote. (4) Guesses are among the first `words` tokens of the vocabulary. (5) Alone, this source grows
the tree `auto`; the authors' trees are fixed, of 64 nodes, and searched for on a calibration set.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from tokenmill.method import method
from tokenmill.ops.distil import Ahead, add_to_first, foretelling, foretold, places
from tokenmill.ops.sampling import by_level
from tokenmill.types import Batch, Learned, Verified

TRAINING = {"rows": 4, "steps": 400, "lr": 1e-3}


class Heads(nn.Module):
    def __init__(self, size: int, heads: int, matrices: int = 0):
        super().__init__()
        blocks = [nn.Linear(size, size) for _ in range(heads)]
        self.blocks = nn.ModuleList(blocks)
        self.matrices = nn.ModuleList(nn.Linear(size, matrices, bias=False) for _ in range(heads if matrices else 0))
        for zero in (*blocks, *self.matrices):  # every head begins as the model's own
            nn.init.zeros_(zero.weight)
        for block in blocks:
            nn.init.zeros_(block.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., E) -> (..., heads, E): states that the model's head turns into logits."""
        return torch.stack([hidden + silu(block(hidden)) for block in self.blocks], -2)

    def corrected(self, logits: Tensor, states: Tensor) -> Tensor:
        """Logits (heads, W) that the model's head gives for states (heads, E) -> those by each head's own matrix."""
        if not len(self.matrices):
            return logits
        pairs = zip(logits, self.matrices, states, strict=True)
        return torch.stack([add_to_first(row, matrix(state)) for row, matrix, state in pairs])


def parts(config: Any, *, heads: int = 3, matrices: int = 0) -> nn.Module:
    return Heads(config.hidden_size, heads, min(matrices, config.vocab_size))


def _ahead(parts: Any, batch: Batch) -> Ahead:
    count = len(parts.blocks)
    at = places(batch, count + 1)
    states = parts(batch.hidden[:, at])  # (B, A, heads, E)
    own = [*parts.matrices] or [None] * count
    return [(states[:, :, k], at + k + 1, own[k]) for k in range(count)]


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
    matrices: int = 0,
    width: int = 6,
    words: int = 16384,
    weights: str | None = None,
) -> tuple[object, None]:
    def said() -> Tensor:
        states = learned.parts(seen.newest)  # (heads, E)
        return learned.parts.corrected(learned.head(states), states)

    return by_level(said, width), None
