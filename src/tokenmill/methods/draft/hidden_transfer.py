"""Hidden transfer: halfway up, a state is turned into those of the tokens to come; the upper layers finish them.

    s_i = A_i h + b_i,  i = 1 .. future;  s_1 .. s_future run through the layers above `layers`, over the text and each
    other;  guesses i places on from the root: softmax(W_out norm(s_i))

h is the state, after the first `layers` layers, of the token that gave the newest one; s_i stands i places behind it.

Wu et al., "Parallel Decoding via Hidden Transfer for Lossless Large Language Model Acceleration", 2024.

Differs: all places leave from one layer. The upper layers run on the new states after a draft was checked, for the
accepted token alone; the paper runs those of every node together with the check, which saves a pass and costs states
that are thrown away. The paper draws what the states say to the whole distribution of the real ones (Kullback-Leibler);
here the target is the model's own likeliest token after real text, on a sample of the places of each batch. Guesses are
among the first `words` tokens of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tokenmill.method import method
from tokenmill.ops.distil import Ahead, foretelling, foretold, places
from tokenmill.ops.sampling import by_level
from tokenmill.types import Batch, Learned, Verified

TRAINING = {"rows": 4, "steps": 300, "lr": 1e-3}


class Transfer(nn.Module):
    def __init__(self, size: int, future: int, layer: int):
        super().__init__()
        self.layer = layer
        places = [nn.Linear(size, size) for _ in range(future)]
        self.places = nn.ModuleList(places)
        for place in places:
            nn.init.eye_(place.weight)
            nn.init.zeros_(place.bias)

    def forward(self, state: Tensor) -> Tensor:
        """(..., E) -> (..., future, E)."""
        return torch.stack([place(state) for place in self.places], -2)


def parts(config: Any, *, layers: int = 20, future: int = 3) -> nn.Module:
    return Transfer(config.hidden_size, future, layers - 1)


def layers(config: Any, *, layers: int = 20, future: int = 3) -> tuple[int, ...]:
    return (layers - 1,)


def _ahead(parts: Any, batch: Batch) -> Ahead:
    """For each place on from the root: final states (B, A, E), and the places whose token they should say."""
    at = places(batch, len(parts.places) + 1)
    final = batch.above(parts.layer, parts(batch.states[parts.layer][:, at]), at)  # (B, A, future, E)
    return [(final[:, :, i], at + i + 1) for i in range(len(parts.places))]


def objective(parts: Any, batch: Batch) -> Tensor:
    return foretelling(batch, _ahead(parts, batch))


def figure(parts: Any, batch: Batch) -> dict[str, float]:
    return foretold(batch, _ahead(parts, batch))


@method(
    title="Parallel Decoding via Hidden Transfer for Lossless Large Language Model Acceleration",
    paper="arXiv:2404.12022",
    year=2024,
    needs=("above",),
    role="source",
    tree="auto",
    trains="part",
    lossless=True,
)
def hidden_transfer(
    seen: Verified,
    state: None,
    learned: Learned,
    *,
    layers: int = 20,
    future: int = 3,
    width: int = 6,
    words: int = 16384,
    weights: str | None = None,
) -> tuple[object, None]:
    def said() -> Tensor:
        assert learned.above is not None
        return learned.head(learned.above(layers - 1, learned.parts(seen.states[layers - 1][seen.tip])))  # (future, V)

    return by_level(said, width), None
