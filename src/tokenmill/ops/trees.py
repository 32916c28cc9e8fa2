"""Draft trees as two flat tensors: node i carries tokens[i] and hangs below parents[i]; -1 is the root.

The root is the newest accepted token. It is not a node, but it comes first wherever logits are given:
row 0 is what the model predicts after the root, row i + 1 what it predicts after node i.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.types import Draft

__all__ = ["accept", "accept_greedy", "ancestors", "chain", "depths"]


def ancestors(parents: Tensor) -> Tensor:
    """(N, N) bool: [i, j] is True where node i attends to node j, itself and all nodes on its way to the root.

    Doubles the reach each round, so a tree of depth d takes log2(d) small matrix products.
    """
    n = parents.shape[0]
    reach = torch.eye(n, device=parents.device)
    below = (parents >= 0).nonzero().squeeze(-1)
    reach[below, parents[below]] = 1
    for _ in range(max(n - 1, 0).bit_length()):
        further = ((reach @ reach) > 0).to(reach.dtype)
        if torch.equal(further, reach):
            break
        reach = further
    return reach.bool()


def depths(parents: Tensor) -> Tensor:
    """(N,) how many steps each node is below the root; children of the root have depth 1."""
    return ancestors(parents).sum(-1)


def chain(tokens: Tensor) -> Draft:
    """The tree that is one line: each token hangs below the one before it."""
    return Draft(tokens, torch.arange(-1, tokens.shape[0] - 1, device=tokens.device))


def accept_greedy(draft: Draft, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Walk from the root, on to the child that is what the model itself would say, until there is none.

    logits (1 + N, V): after the root, then after each node. Returns the accepted nodes (in order, possibly none)
    and the model's own next token () after the last of them, so that every pass yields at least one token.
    """
    return accept(draft, logits.argmax(-1))


def accept(draft: Draft, said: Tensor) -> tuple[Tensor, Tensor]:
    """`accept_greedy` for tokens said (1 + N,) chosen in any way: greedily, or each drawn from its own distribution.

    Drawing keeps the sampling distribution: every token that comes out was drawn given exactly what precedes it.
    """
    parents = draft.parents.to(said.device)
    right = draft.tokens.to(said.device) == said[parents + 1]  # (N,) agrees with the parent's prediction
    # A node is accepted when all of its line is right. Equal siblings can both be; the deepest line is taken.
    line = ancestors(parents)
    taken = right & ~(line & ~right).any(-1)
    if not bool(taken.any()):
        return parents.new_zeros(0), said[0]
    length = torch.where(taken, line.sum(-1), 0)
    last = int(length.argmax())  # the first of equals
    path = line[last].nonzero().squeeze(-1)
    return path, said[last + 1]
