"""Chimera: a small encoder reads the newest tokens, drafted ones too; the model's own states tell it all the rest.

    g = e_t + M(e_(t-2), e_(t-1), e_t);  s = h + U g + O sum_j softmax_j(Q g, K h_j; distance) V h_j
    guesses d levels below the root = W_out(s + SiLU(A_d s))

e are the model's embeddings of the line that ends in the node, h_j its final hidden states over the text, h the newest
of them, W_out its own head, M a network of two layers. Distance counts as in ALiBi: a slope a head, from the root on.

Zeng et al., "Chimera: A Lossless Decoding Method for Accelerating Large Language Models Inference by Fusing all
Tokens", 2024.

Differs: in the authors' code M alone gives g, without e_t; the upper part is a whole decoder layer, rotary and with a
feed-forward part, in which drafted tokens also see each other's encodings; the heads, one a level, read the model's
state and the layer's side by side, with weights of their own that begin as the model's head twice; and in training
deeper levels read what the heads above them guessed, with the text's own tokens as targets. The paper also draws the
layer's state to the model's next one. Here the upper part is attention alone, over the model's states of the newest
tokens, and all levels read the text's tokens. Trained on what the model itself says is likeliest after real text, on a
sample of the places of each batch. Guesses are among the first `words` tokens of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from tokenmill.method import method
from tokenmill.ops.distil import Ahead, foretelling, foretold, places, refuse_uneven
from tokenmill.ops.sampling import likeliest
from tokenmill.ops.trees import level
from tokenmill.types import Batch, Guess, Learned, Tree, Verified

DEPTH = 4  # levels that have a head; deeper ones use the last
SHORT = 3  # newest tokens that the encoder reads
NARROW = 2  # M is that much narrower than the state
WINDOW = 256

TRAINING = {"rows": 4, "steps": 300, "lr": 1e-3}


class Fusing(nn.Module):
    def __init__(self, size: int, heads: int):
        super().__init__()
        refuse_uneven(size, heads)
        self.heads = heads
        self.narrow, self.wide = nn.Linear(SHORT * size, size // NARROW), nn.Linear(size // NARROW, size)
        self.u, self.q, self.k, self.v, self.o = (nn.Linear(size, size, bias=False) for _ in range(5))
        blocks = [nn.Linear(size, size) for _ in range(DEPTH)]
        self.blocks = nn.ModuleList(blocks)
        for zero in (self.wide, self.u, self.o, *blocks):  # begins as the model's own head on the newest state
            nn.init.zeros_(zero.weight)

    def short(self, embeddings: Tensor) -> Tensor:
        """(..., SHORT, E) -> (..., E): the newest tokens, the very newest last."""
        return embeddings[..., -1, :] + self.wide(silu(self.narrow(embeddings.flatten(-2))))

    def held(self, hidden: Tensor) -> Tensor:
        """(..., T, E) -> (..., T, 2, E): keys and values of the model's states."""
        return torch.stack([self.k(hidden), self.v(hidden)], -2)

    def fuse(self, g: Tensor, newest: Tensor, held: Tensor, distance: Tensor) -> Tensor:
        """g (..., Q, E), newest (..., Q, E), held (..., T, 2, E), distance (Q, T), -1: unseen -> (..., Q, E)."""
        apart = lambda x: x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)  # (..., heads, Q or T, E / heads)
        q, k, v = apart(self.q(g)), apart(held[..., 0, :]), apart(held[..., 1, :])
        slope = 2.0 ** -(8 / self.heads * torch.arange(1, self.heads + 1, device=g.device))
        like = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) - slope[:, None, None].to(q) * distance
        seen = like.masked_fill(distance < 0, -math.inf).softmax(-1) @ v
        return newest + self.u(g) + self.o(seen.transpose(-3, -2).flatten(-2))

    def told(self, s: Tensor, deep: int) -> Tensor:
        """(..., E) -> (..., E): what the model's head reads, `deep` levels below the root."""
        return s + silu(self.blocks[min(deep, DEPTH - 1)](s))


def parts(config: Any, *, heads: int = 9) -> nn.Module:
    return Fusing(config.hidden_size, heads)


def _states(parts: Any, batch: Batch, at: Tensor) -> list[Tensor]:
    """What the head reads 0 .. DEPTH - 1 levels below the root, when the model has read up to each place."""
    held, back = parts.held(batch.hidden), torch.arange(1 - SHORT, 1, device=at.device)
    distance = at[:, None] - torch.arange(batch.ids.shape[1], device=at.device)  # (A, T)
    distance = torch.where(distance < WINDOW, distance, -1)
    out = []
    for d in range(DEPTH):
        newest = (at[:, None] + 1 + d + back).clamp(min=0)  # (A, SHORT)
        g = parts.short(batch.embed(batch.ids[:, newest]).float())
        out.append(parts.told(parts.fuse(g, batch.hidden[:, at], held, distance), d))
    return out


def _ahead(parts: Any, batch: Batch) -> Ahead:
    at = places(batch, DEPTH + 1)
    return [(s, at + d + 1) for d, s in enumerate(_states(parts, batch, at))]


def objective(parts: Any, batch: Batch) -> Tensor:
    return foretelling(batch, _ahead(parts, batch))


def figure(parts: Any, batch: Batch) -> dict[str, float]:
    return foretold(batch, _ahead(parts, batch))


@method(
    title="Chimera: A Lossless Decoding Method for Accelerating Large Language Models Inference by Fusing all Tokens",
    paper="arXiv:2402.15758",
    year=2024,
    needs=("hidden", "prompt"),
    role="source",
    tree="auto",
    trains="part",
    lossless=True,
)
def chimera(
    seen: Verified,
    state: list[Tensor] | None,
    learned: Learned,
    *,
    heads: int = 9,
    width: int = 6,
    words: int = 16384,
    weights: str | None = None,
) -> tuple[object, list[Tensor]]:
    assert seen.hidden is not None
    net: Any = learned.parts
    held, unread = state or (net.held(seen.hidden[:0]), seen.hidden[:0])
    new = seen.hidden[seen.accepted]  # nodes lie in the order of their line
    state = [held, torch.cat([unread, new])[-WINDOW:]]  # (T, 2, E); (N, E) what is read only once somebody asks
    text = seen.context[-SHORT:].tolist()

    def look(tree: Tree, at: Sequence[int]) -> Guess:
        if len(state[1]):
            state[:] = torch.cat([state[0], net.held(state[1])])[-WINDOW:], state[1][:0]
        held = state[0]
        distance = torch.arange(len(held) - 1, -1, -1, device=held.device)[None]  # (1, T)
        lines = [[line[0]] * (SHORT - len(line)) + line for line in tree.ends(text, at, SHORT)]
        g = net.short(learned.embed(torch.tensor(lines, device=held.device)))  # (M, E)
        s = net.fuse(g, seen.newest, held, distance)
        told = torch.stack([net.told(one, level(tree, node)) for one, node in zip(s, at, strict=True)])
        return likeliest(learned.head(told), width)

    return look, state
