"""Duo-LLM: every feed-forward network has a small twin, and each token takes one of the two, or neither, in each layer.

    h <- h + attention(norm(h));   h <- h + (0, small, large)[route] (norm(h))
    training   route drawn by lot for every token and layer, so that any route works
    router     route = argmax r . norm(h), the model as it is:  loss = next token + (mean large layers a token - big)^2
    oracle     of all routes with at most `big` large modules, the one after which the next token is likeliest

Alizadeh et al., "Duo-LLM: A Framework for Studying Adaptive Computation in Large Language Models", 2024.

The oracle sees the token that it predicts: it says what routes could be worth, and can be used by no one. It tries
every route of a token against the keys and values of the routes that earlier tokens took; a route that harms later
tokens is not noticed.

Differs: a small model over bytes. What is bypassed is the feed-forward: attention runs for every token. The authors
gave no code; routers learn here from the next token through a straight-through estimate, on half of the rows and in
the second half of the training, with gradients for themselves alone.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, one_hot

from tokenmill.method import method
from tokenmill.models.small import (
    FeedForward,
    Small,
    attention_flops,
    feed_forward_flops,
    head_flops,
    initialise,
    next_byte,
)
from tokenmill.types import Batch

BYPASS, SMALL, LARGE = range(3)
SHRINK = 8  # how much smaller the twin is
ROUTING_FROM, ROUTED_ROWS = 0.5, 0.5  # of the training; of the rows of a batch
TRAINING = {"steps": 1000, "lr": 3e-3, "rows": 8, "length": 128}


@method(
    title="Duo-LLM: A Framework for Studying Adaptive Computation in Large Language Models",
    paper="arXiv:2410.10846",
    year=2024,
    trains="model",
)
def duo_llm(scores: Tensor, *, big: int = 1, layers: int = 6, hidden: int = 96) -> Tensor:
    """scores (..., 3) of a layer's router -> BYPASS, SMALL or LARGE (...). `big`: large modules a token, on average."""
    return scores.argmax(-1)


class Twins(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.large, self.small = FeedForward(size), FeedForward(size, 8 * size // 3 // SHRINK)

    def forward(self, x: Tensor, route: Tensor) -> Tensor:
        """x (..., E) with a route (...) each, computed for those who take it; or with weights (..., 3), for all."""
        if route.is_floating_point():
            return route[..., SMALL, None] * self.small(x) + route[..., LARGE, None] * self.large(x)
        out = torch.zeros_like(x)
        for choice, module in ((SMALL, self.small), (LARGE, self.large)):
            if bool((mask := route == choice).any()):
                out[mask] = module(x[mask])
        return out


class Duo(Small):
    def __init__(self, big: int, layers: int, hidden: int):
        super().__init__(hidden, layers, feed_forward=Twins)
        self.big, self.size = big, hidden
        self.routers = nn.ModuleList(nn.Linear(hidden, 3) for _ in range(layers))
        self.routers.apply(initialise)

    def forward(
        self, ids: Tensor, routes: Tensor | None = None, learning: bool = False, taken: list[Tensor] | None = None
    ) -> Tensor:
        """`routes` (L, B, T), else the routers'; `learning`: they learn. `taken` gets what was taken, (B, T, 3)."""
        x, positions = self.start(ids)
        for i, (block, router) in enumerate(zip(self.stack, self.routers, strict=True)):
            x = x + block.attention(block.norms[0](x), positions)
            inside = block.norms[1](x)
            route = duo_llm(scores := router(inside)) if routes is None else routes[i]
            choice = one_hot(route, 3).to(x)
            if learning:  # what is computed is the choice, what is learned is how likely it was
                likely = scores.softmax(-1)
                choice = choice + likely - likely.detach()
            x = x + block.feed_forward(inside, choice if learning else route)
            if taken is not None:
                taken.append(choice)
        return self.end(x)

    def cost(self, taken: list[Tensor]) -> float:
        """Forward operations a token, by what was taken."""
        _, small, large = torch.stack(taken).mean((0, 1, 2)).tolist()
        inner = 8 * self.size // 3
        ahead = small * feed_forward_flops(self.size, inner // SHRINK) + large * feed_forward_flops(self.size, inner)
        seen = attention_flops(self.size, (taken[0].shape[1] + 1) / 2)
        return len(self.blocks) * (seen + ahead + 2 * 3 * self.size) + head_flops(self.size)


def by_lot(layers: int, ids: Tensor) -> Tensor:
    return torch.randint(3, (layers, *ids.shape), device=ids.device)


def fixed(layers: int, ids: Tensor, large: tuple[int, ...]) -> Tensor:
    """The same route for every token: these layers large, the others small."""
    route = torch.full((layers, *ids.shape), SMALL, device=ids.device)
    route[list(large)] = LARGE
    return route


def prefixes(layers: int, big: int) -> list[tuple[Tensor, Tensor]]:
    """All routes with at most `big` large modules, layer by layer: whose continuation each is, and what it takes."""
    level, out = [0], []  # large modules so far
    for _ in range(layers):
        grown = [
            (i, choice, n + (choice == LARGE))
            for (i, n), choice in product(enumerate(level), range(3))
            if n + (choice == LARGE) <= big
        ]
        out.append((torch.tensor([g[0] for g in grown]), torch.tensor([g[1] for g in grown])))
        level = [g[2] for g in grown]
    return out


@torch.no_grad()
def oracle(model: Duo, ids: Tensor, big: int) -> tuple[Tensor, Tensor]:
    """ids (B, T) -> nats (B, T - 1) of each next byte by the best route with at most `big` large modules, and the route
    (B, T - 1, L).

    One token after the other; all its routes at once, as a tree that branches at each feed-forward.
    """
    tree = [(parent.to(ids.device), choice.to(ids.device)) for parent, choice in prefixes(len(model.blocks), big)]
    rows = torch.arange(len(ids), device=ids.device)
    held: list[tuple[Tensor, Tensor]] = []  # keys and values (B, H, t, D) of each layer
    nats, routes = [], []
    for t in range(ids.shape[1] - 1):
        x = model.embedding(ids[:, t, None])  # (B, R, E): R routes so far
        fresh = []
        for i, (block, (parent, choice)) in enumerate(zip(model.stack, tree, strict=True)):
            q, k, v = block.heads(block.norms[0](x), torch.full(x.shape[:2], t, device=ids.device))  # (B, H, R, D)
            fresh.append((k, v))
            x = x + block.out(_seen(q, k, v, held[i] if t else None).transpose(1, 2).flatten(2))
            inside = block.norms[1](x)
            x = x[:, parent] + block.feed_forward(inside[:, parent], choice.expand(len(ids), -1))
        logits = model.end(x)  # (B, R, V)
        lost = cross_entropy(logits.flatten(0, 1), ids[:, t + 1].repeat_interleave(x.shape[1]), reduction="none")
        best = lost.view(len(ids), -1).min(1)
        nats.append(best.values)
        at, path = best.indices, []
        kept: list[tuple[Tensor, Tensor]] = []
        for i in reversed(range(len(tree))):
            parent, choice = tree[i]
            path.append(choice[at])
            at = parent[at]
            k, v = (part[rows, :, at][:, :, None] for part in fresh[i])
            kept.append((k, v) if not t else (torch.cat([held[i][0], k], 2), torch.cat([held[i][1], v], 2)))
        held = kept[::-1]
        routes.append(torch.stack(path[::-1], -1))
    return torch.stack(nats, 1), torch.stack(routes, 1)


def _seen(q: Tensor, k: Tensor, v: Tensor, held: tuple[Tensor, Tensor] | None) -> Tensor:
    """Attention of each route's token to the tokens before and to itself, not to its other routes."""
    own = (q * k).sum(-1, keepdim=True)
    if held is None:
        return v
    keys, values = held
    weights = (torch.cat([q @ keys.mT, own], -1) / q.shape[-1] ** 0.5).softmax(-1)
    return weights[..., :-1] @ values + weights[..., -1:] * v


def parts(*, big: int = 1, layers: int = 6, hidden: int = 96) -> nn.Module:
    return Duo(big, layers, hidden)


def objective(parts: Duo, batch: Batch) -> Tensor:
    loss = next_byte(parts(batch.ids, by_lot(len(parts.blocks), batch.ids)), batch.ids)
    if batch.progress < ROUTING_FROM:
        return loss
    some = batch.ids[: max(1, round(ROUTED_ROWS * len(batch.ids)))]
    alone = {n: p if n.startswith("routers.") else p.detach() for n, p in parts.named_parameters()}
    taken: list[Tensor] = []
    logits = functional_call(parts, alone, (some,), {"learning": True, "taken": taken})
    # Halved: the loss in the log does not jump where routers begin, and Adam does not mind.
    return (loss + next_byte(logits, some) + (large(taken) - parts.big).square()) / 2


def large(taken: list[Tensor]) -> Tensor:
    """Large modules a token, on average."""
    return torch.stack(taken)[..., LARGE].sum(0).mean()


def figure(parts: Duo, batch: Batch) -> dict[str, float]:
    taken: list[Tensor] = []
    logits = parts(batch.ids, taken=taken)
    everywhere = fixed(len(parts.blocks), batch.ids, tuple(range(len(parts.blocks))))
    return {
        "nats a byte": float(next_byte(logits, batch.ids)),
        "large modules a byte": float(large(taken)),
        "operations a byte": parts.cost(taken),
        "nats a byte, all large": float(next_byte(parts(batch.ids, everywhere), batch.ids)),
        "nats a byte, oracle that sees it": float(oracle(parts, batch.ids, parts.big)[0].mean()),
    }
