"""Placeholders: learned embeddings behind the text stand for tokens to come, and the model fills them in.

    the pass that checks a draft reads  text, draft, b_1 .. b_future;  guesses i places on from the root = what the
    model predicts after b_i, as long as its likeliest token has more than `threshold`

b_i are trained, the model is not. What they predict counts if the whole draft before them was accepted.

Sun et al., "Decoding at the Speed of Thought: Harnessing Parallel Decoding of Lexical Units for LLMs", 2024: its source
of guesses. The rule that takes them unchecked is `lud`; under `exact` they are checked, and nothing is lost.

Differs: (1) The paper puts padding tokens behind the text and fine-tunes the whole model on text in which spans that
it predicts with confidence are marked; here the model stays as it is and learns nothing, only the embeddings do, one
for each place, on what it says itself is likeliest after real text, at a sample of the places of each batch. A frozen
model says little at a placeholder: the claim tunes it too. (2) Three places are looked ahead to (`future`); the
paper's units have any length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tokenmill.method import method
from tokenmill.ops.distil import Ahead, foretelling, foretold, places
from tokenmill.ops.sampling import by_level
from tokenmill.types import Batch, Learned, Verified

TRAINING = {"rows": 4, "steps": 300, "lr": 1e-2}


class Blanks(nn.Module):
    def __init__(self, size: int, future: int):
        super().__init__()
        self.blanks = nn.Parameter(0.05 * torch.randn(future, size))


def parts(config: Any, *, future: int = 3) -> nn.Module:
    return Blanks(config.hidden_size, future)


def _ahead(parts: Any, batch: Batch) -> Ahead:
    """Of each placeholder: final states (B, A, E), and the places whose token they should say."""
    count = len(parts.blanks)
    at = places(batch, count + 1)
    final = batch.above(-1, parts.blanks.expand(len(batch.ids), len(at), -1, -1), at)  # (B, A, future, E)
    return [(final[:, :, i], at + i + 1) for i in range(count)]


def objective(parts: Any, batch: Batch) -> Tensor:
    return foretelling(batch, _ahead(parts, batch))


def figure(parts: Any, batch: Batch) -> dict[str, float]:
    return foretold(batch, _ahead(parts, batch))


@method(
    title="Decoding at the Speed of Thought: Harnessing Parallel Decoding of Lexical Units for LLMs",
    paper="arXiv:2405.15208",
    year=2024,
    needs=("above", "blanks"),
    role="source",
    tree="chain",
    trains="part",
    lossless=True,
)
def placeholders(
    seen: Verified,
    state: None,
    learned: Learned,
    *,
    future: int = 3,
    threshold: float = 0.9,
    width: int = 6,
    weights: str | None = None,
) -> tuple[object, None]:
    logits = seen.beyond if seen.beyond is not None and bool(seen.accepted[-1]) else seen.logits[:0]  # (0 .. future, V)
    sure = logits.float().softmax(-1).amax(-1) > threshold
    unit = int(sure.long().cumprod(0).sum())  # how many in a row are sure
    return by_level(lambda: logits[:unit], width), None
