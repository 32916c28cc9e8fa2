"""Drawing tokens: without replacement, and so that drafting leaves the distribution as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import islice

import torch
from torch import Tensor
from torch.nn.functional import pad

from tokenmill.ops.logits import top_chances
from tokenmill.ops.trees import level
from tokenmill.types import Draft, Growth, Guess, Said, Tree


def nucleus(logits: Tensor, order: Tensor, share: float) -> Tensor:
    """Logits (N, V), -inf beyond the first tokens by `order` that together hold `share` of the probability.

    At least the first stays.
    """
    if share >= 1:
        return logits
    first = order.argsort(dim=-1, stable=True)
    held = logits.gather(-1, first).softmax(-1).cumsum(-1)
    beyond = torch.zeros_like(held, dtype=torch.bool)
    beyond[:, 1:] = held[:, :-1] >= share
    return logits.masked_fill(torch.zeros_like(beyond).scatter(-1, first, beyond), -math.inf)


def gumbel_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise, drawn on the generator's device."""
    uniform = torch.rand(x.shape, generator=generator, dtype=torch.float64).clamp(min=1e-300)
    return (-(-uniform.log()).clamp(min=1e-300).log()).to(x.device)


def without_replacement(probabilities: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` different tokens from each row (M, V), in the order of drawing: (M, count), -1 where none is left.

    Gumbel top-k: the order of log p + Gumbel noise is that of drawing one after the other.
    """
    count = min(count, probabilities.shape[-1])
    noisy = probabilities.double().log() + gumbel_like(probabilities, generator)
    value, token = noisy.topk(count, dim=-1)
    return torch.where(value.isfinite(), token, -1)


def draws(probabilities: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """A token of each row (N, V), each by a generator of its own: (N,).

    The generators live on the CPU. Rows on another device stay there: a number a row goes over, not a vocabulary back.
    It is the same distribution, and another token than the CPU would draw.
    """
    if probabilities.device.type == "cpu":
        rows = zip(probabilities, generators, strict=True)
        return torch.cat([torch.multinomial(row, 1, generator=generator) for row, generator in rows])
    at = torch.cat([torch.rand(1, 1, generator=g, dtype=torch.float64) for g in generators]).to(probabilities.device)
    below = probabilities.double().cumsum(-1)  # (N, V)
    return torch.searchsorted(below, at * below[:, -1:], right=True)[:, 0].clamp(max=probabilities.shape[-1] - 1)


def draw(probabilities: Tensor, generator: torch.Generator) -> int:
    """One token from (V,)."""
    return int(draws(probabilities[None], [generator]))


def residual_walk(draft: Draft, below: dict[int, list[int]], said: Said) -> tuple[list[int], int]:
    """Down the tree by rejection: what comes out is distributed as the model's own draws, whatever was drafted.

    Where guesses were chosen, not drawn, it is those very draws: see `residual_step`.
    """
    path: list[int] = []
    at = -1
    while True:
        child, token = residual_step(draft, at, below.get(at, ()), said)
        if child is None:
            return path, token
        path.append(child)
        at = child


def residual_step(draft: Draft, at: int, children: Sequence[int], said: Said) -> tuple[int | None, int]:
    """The child of a node that is taken, or None, and the token that comes next.

        drawn children x:  taken with probability min(1, p(x) / q(x)),
                           else p <- (p - q)+ / sum, q <- q without x / sum;  at the end a token is drawn from p
        chosen children:   a token is drawn from p, and the child that carries it is taken

    p is what the model draws from after the node, q what the children were drawn from. Chen et al. 2023 for a chain,
    Jeon et al. 2024 for children drawn without replacement. A chosen child is taken as often as by the first rule with
    a q that is sure of it, but the tokens do not depend on the draft: the generator draws once a token, as without one.
    """
    assert said.generator is not None, "a greedy choice is accepted by equality"
    p, q = said.probabilities(at + 1), draft.drawn.get(at)
    if q is None:
        token = draw(p, said.generator)
        return next((child for child in children if int(draft.tokens[child]) == token), None), token
    p = p.double()
    q = pad(q.double(), (0, len(p) - len(q)))  # a source may know the first words alone
    for child in children:
        token = int(draft.tokens[child])
        if float(torch.rand((), generator=said.generator, dtype=torch.float64)) < float(p[token] / q[token]):
            return child, token
        left = (p - q).clamp(min=0)
        q[token] = 0
        q /= q.sum().clamp(min=1e-300)
        total = left.sum()
        if not total > 0:  # p was q but for rounding: the child would have been taken
            return child, token
        p = left / total
    return None, draw(p, said.generator)


def offered(grow: Growth, guess: Guess, count: int) -> tuple[list[list[tuple[int, float]]], Tensor | None]:
    """At most `count` (token, chance) below each of M nodes, and the distributions (M, V) they were drawn from.

    None instead of distributions: the tokens are the source's likeliest. They are drawn where the model's own tokens
    are, from a source that knows a whole distribution.
    """
    if grow.generator is None or guess.logits is None:
        rows, q = guess.rows, None
    else:
        q = grow.probabilities(guess.logits)  # (M, V)
        tokens = without_replacement(q, count, grow.generator)
        rows = as_rows(tokens, q.gather(-1, tokens.clamp(min=0)))
    return [list(islice(row.items(), count)) for row in rows], q


def as_rows(tokens: Tensor, chances: Tensor) -> list[dict[int, float]]:
    """The rows of a Guess from tokens (M, W), -1 = none, and their chances (M, W)."""
    both = zip(tokens.tolist(), chances.tolist(), strict=True)
    return [{t: c for t, c in zip(*row, strict=True) if t >= 0} for row in both]


def likeliest(logits: Tensor, width: int) -> Guess:
    """The guesses of a source that knows a whole distribution, (M, V) logits."""
    return Guess(as_rows(*top_chances(logits, width)), logits)


def by_level(said: Callable[[], Tensor], width: int) -> Callable[[Tree, Sequence[int]], Guess]:
    """What a source says that knows one distribution for each level below the root: none below L.

    `said` gives their logits (L, V). It is called once, and only if somebody asks.
    """
    known = cache(said)

    def look(tree: Tree, at: Sequence[int]) -> Guess:
        logits, deep = known(), [level(tree, node) for node in at]
        if not len(logits):
            return Guess([{} for _ in at])
        guess = likeliest(logits[[min(d, len(logits) - 1) for d in deep]], width)
        return Guess([row if d < len(logits) else {} for d, row in zip(deep, guess.rows, strict=True)], guess.logits)

    return look
