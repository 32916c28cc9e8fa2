"""R2R: a small model writes, and where a router expects it to go another way than a large one, the large one is asked.

token = argmax of the small model;   doubt = sigmoid(router(state, its 100 highest logits, the token))
if doubt >= `threshold`:  the large model reads what it missed, and its token comes instead

The model that is given is the one that writes, and `model` names the large one. Without `model` the one that is given
is the large one, and its first `layers` layers with its own head write (two thirds of them if no number is given).

Fu et al., "R2R: Efficiently Navigating Divergent Reasoning Paths with Small-Large Model Token Routing", 2025.

Differs: the router learns at which places of a text the two models' likeliest tokens differ. The paper goes on from
both tokens and lets a verifier sort out the differences that lead to the same meaning, which makes fewer places count.
Its router has six blocks of 1,024 numbers, this one two of 256, and the inputs are normalised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from tokenmill.method import method
from tokenmill.ops.ranking import auc
from tokenmill.types import Batch, Learned, Writing

TOP, WIDTH, BLOCKS, DROPOUT = 100, 256, 2, 0.1
TRAINING = {"rows": 4, "steps": 300, "lr": 1e-3}


class Block(nn.Module):
    """A network of one hidden layer beside what goes through."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        inside = self.drop(nn.functional.gelu(self.wide(self.norm(x))))
        return x + self.drop(self.narrow(inside))


class Router(nn.Module):
    """How likely the large model would choose another token, as a logit."""

    def __init__(self, size: int, top: int):
        super().__init__()
        self.top = top
        self.state_norm, self.token_norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.chances = nn.Linear(top, size)
        self.together = nn.Linear(3 * size, WIDTH)
        self.blocks = nn.Sequential(*(Block(WIDTH) for _ in range(BLOCKS)))
        self.norm, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, state: Tensor, logits: Tensor, token: Tensor) -> Tensor:
        """(..., E) states, (..., V) logits, (..., E) embeddings of the small model's tokens -> (...)."""
        highest = logits.topk(self.top, -1).values.float().softmax(-1).to(self.out.weight.dtype)  # (..., TOP)
        seen = self.state_norm(state), self.token_norm(token), self.chances(highest)
        return self.out(self.norm(self.blocks(self.together(torch.cat(seen, -1))))).squeeze(-1)


def parts(config: Any, *, model: str = "", layers: int | None = None) -> nn.Module:
    return Router(config.hidden_size, min(TOP, config.vocab_size))


def layers(config: Any, *, model: str = "", layers: int | None = None) -> tuple[int, ...]:
    return () if model else ((layers or max(1, round(config.num_hidden_layers * 2 / 3))) - 1,)


def places(parts: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """What the router says (B, T), where the two models' tokens differ (B, T), and the small one's logits (B, T, V)."""
    state, large = (
        (batch.norm(*batch.states.values()).detach(), batch.logits) if batch.states else (batch.hidden, batch.second)
    )
    with torch.no_grad():
        small = batch.head(state)  # (B, T, V)
        token = small.argmax(-1)
    kind = parts.out.weight.dtype
    return parts(state.to(kind), small, batch.embed(token).to(kind)), token != large.argmax(-1), small


def objective(parts: Any, batch: Batch) -> Tensor:
    said, differs, _ = places(parts, batch)
    weight = (~differs).sum() / differs.sum().clamp(min=1)  # both kinds of places count alike
    return binary_cross_entropy_with_logits(said, differs.to(said), pos_weight=weight.clamp(min=1e-2).to(said))


def figure(parts: Any, batch: Batch) -> dict[str, float]:
    said, differs, _ = places(parts, batch)
    asks = said >= 0
    return {
        "of the places, where the two models differ": float(differs.float().mean()),
        "of the places, asked at threshold 0.5": float(asks.float().mean()),
        "of those that differ, asked at threshold 0.5": float(asks[differs].float().mean()) if differs.any() else 1.0,
        "area under the router's curve": auc(said.flatten().float(), differs.flatten()),
    }


@method(
    title="R2R: Efficiently Navigating Divergent Reasoning Paths with Small-Large Model Token Routing",
    paper="arXiv:2505.21600",
    year=2025,
    role="search",
    needs=("chooses", "larger"),
    trains="part",
)
def r2r(
    writing: Writing, learned: Learned, large: Callable[[Sequence[int]], Tensor], *,
    model: str = "", layers: int | None = None, threshold: float = 0.5, weights: str | None = None,
) -> Iterator[list[int]]:  # fmt: skip
    kind = learned.parts.out.weight.dtype
    missed: list[int] = []
    while True:
        token = writing.choose(writing.logits)  # (1,)
        doubt = learned.parts(writing.state.to(kind), writing.logits, learned.embed(token).detach().to(kind)).sigmoid()
        if float(doubt) >= threshold:
            token, missed = writing.choose(large(missed)), []
        missed += token.tolist()
        yield token.tolist()
        writing.read(token.tolist())
