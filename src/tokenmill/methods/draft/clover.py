"""Clover: the guess for each place knows which token was guessed before it.

    s_0 = h + M(h);  s_d = s_(d-1) + V e_d * cos(Q norm(s_(d-1)), K e_d), head by head;  guesses after d = W_out(O s_d)

e_1 is the embedding of the newest token, e_2 that of the guess below it and so on; h the final hidden state that gave
the newest token, W_out the model's own head, M a small network of two layers.

Xiao et al., "Clover: Regressive Lightweight Speculative Decoding with Sequential Knowledge", 2024.

Differs: the paper's augmenting block is a transformer layer over the sentence; M sees the state alone. The connection
is the one of the authors' second version, a cosine for each head instead of a softmax over one key. There the newest
token's has matrices of its own and comes before the block, O reads the token beside the state and is normed, and
training follows the model's whole distribution and its states. Trained here on what the model itself says is likeliest
after real text, on a sample of the places of each batch. Guesses are among the first `words` tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, silu

from tokenmill.method import method
from tokenmill.ops.distil import Ahead, foretelling, foretold, places, refuse_uneven
from tokenmill.ops.sampling import likeliest
from tokenmill.types import Batch, Guess, Learned, Tree, Verified

DEPTH = 4  # levels that are trained
NARROW = 4  # M is that much narrower than the state


TRAINING = {"rows": 4, "steps": 400, "lr": 1e-3}


class Regressive(nn.Module):
    def __init__(self, size: int, heads: int):
        super().__init__()
        refuse_uneven(size, heads)
        self.heads = heads
        self.norm = nn.RMSNorm(size)
        self.q, self.k, self.v, self.out = (nn.Linear(size, size) for _ in range(4))
        self.narrow, self.wide = nn.Linear(size, size // NARROW), nn.Linear(size // NARROW, size)
        for layer in (self.q, self.k, self.out):
            nn.init.eye_(layer.weight)
        nn.init.uniform_(self.v.weight, -0.01, 0.01)
        nn.init.zeros_(self.wide.weight)
        for layer in (self.q, self.k, self.v, self.out, self.wide):
            nn.init.zeros_(layer.bias)

    def begin(self, hidden: Tensor) -> Tensor:
        """(..., E) -> (..., E): the state before any token was guessed."""
        return hidden + self.wide(silu(self.narrow(hidden)))

    def go_on(self, state: Tensor, embedding: Tensor) -> Tensor:
        """(..., E), (..., E) -> (..., E): the state after a token."""
        apart = lambda x: x.unflatten(-1, (self.heads, -1))  # (..., heads, E / heads)
        like = cosine_similarity(apart(self.q(self.norm(state))), apart(self.k(embedding)), dim=-1)  # (..., heads)
        return state + (apart(self.v(embedding)) * like[..., None]).flatten(-2)


def parts(config: Any, *, heads: int = 9) -> nn.Module:
    return Regressive(config.hidden_size, heads)


def _ahead(parts: Any, batch: Batch) -> Ahead:
    """The state after 1 .. DEPTH of the text's own tokens behind each place."""
    at = places(batch, DEPTH + 1)
    state, out = parts.begin(batch.hidden[:, at]), []
    for d in range(1, DEPTH + 1):
        state = parts.go_on(state, batch.embed(batch.ids[:, at + d]).float())
        out.append((parts.out(state), at + d))
    return out


def objective(parts: Any, batch: Batch) -> Tensor:
    return foretelling(batch, _ahead(parts, batch))


def figure(parts: Any, batch: Batch) -> dict[str, float]:
    return foretold(batch, _ahead(parts, batch))


@method(
    title="Clover: Regressive Lightweight Speculative Decoding with Sequential Knowledge",
    paper="arXiv:2405.00263",
    year=2024,
    needs=("hidden",),
    role="source",
    tree="auto",
    trains="part",
    lossless=True,
)
def clover(
    seen: Verified,
    state: None,
    learned: Learned,
    *,
    heads: int = 9,
    width: int = 6,
    words: int = 16384,
    weights: str | None = None,
) -> tuple[object, None]:
    net: Any = learned.parts
    after: dict[int, Tensor] = {}  # node -> (E,)

    def look(tree: Tree, at: Sequence[int]) -> Guess:
        if not after:
            after[-1] = net.go_on(net.begin(seen.newest), learned.embed(seen.context[-1:])[0])
        while left := [node for node in at if node not in after]:
            new = [node for node in left if tree.parents[node] in after]
            above = torch.stack([after[tree.parents[node]] for node in new])
            tokens = torch.tensor([tree.tokens[node] for node in new], device=above.device)
            after.update(zip(new, net.go_on(above, learned.embed(tokens)), strict=True))
        return likeliest(learned.head(net.out(torch.stack([after[node] for node in at]))), width)

    return look, None
