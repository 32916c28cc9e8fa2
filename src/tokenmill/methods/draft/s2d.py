"""S2D: the model's own first layers write the draft, each guess from as few of them as are sure of it.

    guesses after a node = W_out(norm(h_i + P_i h_i));  i = the first exit with  max softmax > threshold, else the last

h_i is the node's state after `exits`[i] layers, P_i is trained for that exit, norm and W_out are the model's own. A
node that goes deeper takes the nodes above it along, where they stayed below: so each exit says what the nested model
that ends there would say.

Kavehzadeh et al., "S2D: Sorted Speculative Decoding For More Efficient Deployment of Nested Large Language Models",
2024.

Differs: in the paper the exits are those of one draft model that serves several targets (the first 6, 9 and 12 layers
of a larger one), and sorted fine-tuning on real text changes all its layers; here they are the target's own, which
stays as it is, and what is trained is a projection an exit, all exits in one sum, on what the model itself says is
likeliest after real text. The authors also tuned exits into the target, and found it slower than a draft and the target
spoilt. They set a threshold for each exit, 0.5 in the code they published later. Untrained, it is `first_layers` among
the first `words` tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokenmill.method import method
from tokenmill.ops.distil import agreement, hits, places
from tokenmill.ops.sampling import likeliest
from tokenmill.types import Batch, Guess, Learned, Tree, Verified

TRAINING = {"rows": 4, "steps": 300, "lr": 1e-3}


class Exits(nn.Module):
    def __init__(self, size: int, layers: tuple[int, ...]):
        super().__init__()
        self.layers = layers
        projections = [nn.Linear(size, size, bias=False) for _ in layers]
        for projection in projections:
            nn.init.zeros_(projection.weight)
        self.projections = nn.ModuleList(projections)

    def forward(self, state: Tensor, which: int) -> Tensor:
        """(..., E) at an exit -> (..., E): as if after the last layer."""
        return state + self.projections[which](state)


def parts(config: Any, *, exits: tuple[int, ...] = (10, 16, 22)) -> nn.Module:
    return Exits(config.hidden_size, tuple(layer - 1 for layer in exits))


def layers(config: Any, *, exits: tuple[int, ...] = (10, 16, 22)) -> tuple[int, ...]:
    return tuple(layer - 1 for layer in exits)


def _read(parts: Any, batch: Batch, at: Tensor) -> list[Tensor]:
    return [batch.norm(parts(batch.states[layer][:, at], i)) for i, layer in enumerate(parts.layers)]


def objective(parts: Any, batch: Batch) -> Tensor:
    at = places(batch, 1)
    return torch.stack([agreement(batch, read, at) for read in _read(parts, batch, at)]).mean()


def figure(parts: Any, batch: Batch) -> dict[str, float]:
    at = places(batch, 1)
    named = zip(parts.layers, _read(parts, batch, at), strict=True)
    return {f"right after {layer + 1} layers": hits(batch, read, at) for layer, read in named}


@method(
    title="S2D: Sorted Speculative Decoding For More Efficient Deployment of Nested Large Language Models",
    paper="arXiv:2407.01955",
    year=2024,
    needs=("climb",),
    role="source",
    tree="chain",
    trains="part",
    lossless=True,
)
def s2d(
    seen: Verified,
    state: None,
    learned: Learned,
    *,
    exits: tuple[int, ...] = (10, 16, 22),
    threshold: float = 0.6,
    width: int = 8,
    words: int = 16384,
    weights: str | None = None,
) -> tuple[object, None]:
    def look(tree: Tree, at: Sequence[int]) -> Guess:
        assert learned.climb is not None
        assert learned.norm is not None
        logits, rows = torch.empty(0), torch.arange(len(at))  # rows: who is not sure yet
        for which in range(len(exits)):
            states = learned.climb(tree, [at[row] for row in rows.tolist()], which)
            here = learned.head(learned.norm(learned.parts(states, which)))  # (rows, V)
            logits = here if which == 0 else logits.index_copy(0, rows.to(here.device), here)
            sure = here.float().softmax(-1).amax(-1).cpu() > threshold
            if bool(sure.all()):
                break
            rows = rows[~sure]
        return likeliest(logits, width)

    return look, None
