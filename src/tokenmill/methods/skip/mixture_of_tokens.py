"""Mixture of Tokens: tokens at one position of several texts are mixed into one vector for each expert.

    z_te = w_e . h_t                                            t of the n texts of a group, all at one position
    m_te = softmax over t (z_te / temperature)                  temperature 0: 1 for the best text, else 0
    y_t  = n / group * sum_e m_te expert_e(sum_t m_te h_t)

Antoniak et al., "Mixture of Tokens: Efficient LLMs through Cross-Example Aggregation", 2023.

Experts are as large as the feed-forward network they replace, one for each text of a group, so a token costs what it
costs in a dense model. Nothing is discrete and no expert idles. Positions are not mixed, so no token sees what comes
after it; but texts of a batch are: in a group, what a text is told depends on its neighbours. As the temperature falls
(`cool`) an expert reads one token alone, and still the neighbours say whose. A text on its own (n = 1) depends on
nothing else: all its weights are 1 at any temperature, every expert reads it, and the feed-forward costs `experts`
times as much as in a group.

Differs: a small model over bytes; experts are gated as its feed-forward is. n / group is ours and is 1 in the paper,
whose groups are always full: a smaller group stands for one in which each text is repeated until it is full.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, silu

from tokenmill.method import method
from tokenmill.models.small import Small, attention_flops, feed_forward_flops, head_flops, next_byte
from tokenmill.ops.logits import heat
from tokenmill.types import Batch

TRAINING = {"steps": 1000, "lr": 3e-3, "rows": 8, "length": 128}


@method(
    title="Mixture of Tokens: Efficient LLMs through Cross-Example Aggregation",
    paper="arXiv:2310.15961",
    year=2023,
    trains="model",
)
def mixture_of_tokens(
    scores: Tensor,
    *,
    temperature: float = 1.0,
    cool: float = 0.0,
    experts: int = 8,
    group: int = 8,
    layers: int = 4,
    hidden: int = 96,
) -> Tensor:
    """scores (G, n, T, N) of the n texts of each group for N experts -> weights, which sum to 1 over the texts."""
    if temperature == 0:
        return one_hot(scores.argmax(1), scores.shape[1]).movedim(-1, 1).to(scores)
    return (scores / heat(temperature)).softmax(1)


class Experts(nn.Module):
    """Feed-forward networks side by side."""

    def __init__(self, size: int, experts: int):
        super().__init__()
        inner = 8 * size // 3
        self.up = nn.Parameter(0.02 * torch.randn(experts, size, 2 * inner))
        self.down = nn.Parameter(0.02 * torch.randn(experts, inner, size))

    def forward(self, x: Tensor) -> Tensor:
        """x (N, M, E), M vectors for each expert."""
        one, other = torch.bmm(x, self.up).chunk(2, -1)
        return torch.bmm(silu(one) * other, self.down)

    def one(self, expert: int, x: Tensor) -> Tensor:
        """x (M, E) through one of them."""
        one, other = (x @ self.up[expert]).chunk(2, -1)
        return (silu(one) * other) @ self.down[expert]


class Mixer(nn.Module):
    def __init__(self, size: int, experts: int, group: int):
        super().__init__()
        self.controller, self.experts, self.group = nn.Linear(size, experts, bias=False), Experts(size, experts), group

    def forward(self, x: Tensor, together: int, temperature: float) -> Tensor:
        """x (B, T, E), `together` rows a group; the rows that are left make a smaller one."""
        whole = len(x) - len(x) % together
        groups = [x[:whole].unflatten(0, (-1, together)), x[whole:][None]]
        return torch.cat([self.mix(g, temperature).flatten(0, 1) for g in groups if g.numel()])

    def mix(self, x: Tensor, temperature: float) -> Tensor:
        """x (G, n, T, E)."""
        weights = mixture_of_tokens(temperature=temperature)(self.controller(x))  # (G, n, T, N)
        mixed = torch.einsum("gnte,gntx->xgte", x, weights)
        made = self.experts(mixed.flatten(1, 2)).view_as(mixed)
        return x.shape[1] / self.group * torch.einsum("xgte,gntx->gnte", made, weights)


class Mixed(Small):
    def __init__(self, experts: int, group: int, temperature: float, cool: float, layers: int, hidden: int):
        super().__init__(hidden, layers, feed_forward=lambda size: Mixer(size, experts, group))
        self.size, self.experts, self.group, self.temperature, self.cool = hidden, experts, group, temperature, cool

    def forward(self, ids: Tensor, together: int = 1, progress: float = 1.0) -> Tensor:
        """`together` texts of the batch are mixed: each on its own in use, `group` in training."""
        x, positions = self.start(ids)
        for block in self.stack:
            x = x + block.attention(block.norms[0](x), positions)
            x = x + block.feed_forward(block.norms[1](x), together, self.heat(progress))
        return self.end(x)

    def heat(self, progress: float) -> float:
        """The temperature after this share of the training."""
        return self.temperature if not self.cool else self.temperature * min(1.0, (1 - progress) / self.cool)

    def cost(self, length: int, together: int) -> float:
        """Forward operations a token."""
        mixing = 3 * 2 * self.size * self.experts  # scores, mixed, given back
        reading = feed_forward_flops(self.size) * self.experts / together
        block = attention_flops(self.size, (length + 1) / 2) + mixing + reading
        return len(self.blocks) * block + head_flops(self.size)


def parts(
    *,
    temperature: float = 1.0,
    cool: float = 0.0,
    experts: int = 8,
    group: int = 8,
    layers: int = 4,
    hidden: int = 96,
) -> nn.Module:
    return Mixed(experts, group, temperature, cool, layers, hidden)


def objective(parts: Mixed, batch: Batch) -> Tensor:
    return next_byte(parts(batch.ids, parts.group, batch.progress), batch.ids)


def figure(parts: Mixed, batch: Batch) -> dict[str, float]:
    """Alone, as one text is read in use, and among others, as in training and in the paper."""
    length = batch.ids.shape[1]
    return {
        "nats a byte": float(next_byte(parts(batch.ids), batch.ids)),
        "operations a byte": parts.cost(length, 1),
        "nats a byte, mixed with other texts": float(next_byte(parts(batch.ids, parts.group), batch.ids)),
        "operations a byte, mixed with other texts": parts.cost(length, parts.group),
    }
