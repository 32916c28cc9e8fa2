"""Token Recycling: the runners-up of earlier predictions, token by token, become the branches of the next draft.

    M[v] = the `width` likeliest tokens after v, when v was last read  (a row of the matrix per token)
    draft: node (r1, r2, ..) = M[.. M[M[newest][r1]][r2] ..], level by level, for a fixed set of rank paths

The set of paths is chosen once: the `nodes` paths, at most `depth` long, with the largest product of chances
c(r) = 1 / (2 (r + 1)^1.6) of being right at rank r = 0, 1, ...

Luo et al., "Turning Trash into Treasure: Accelerating Inference of Large Language Models with Token Recycling",
2024.

Differs: the authors' tree is a table of 80 paths; here a rule makes one of any size, small by default, because on
a CPU every node costs time. At nodes=80 it shares 70 paths with theirs. The prompt fills the matrix too; in the
authors' code only generated tokens do. A token not read yet has no successors; in their code it has token 0.

The state is the matrix, and this method writes into the one it is handed: nobody else holds it, and copying it at
every step would cost more than drafting.
"""

from __future__ import annotations

import heapq
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from tokenmill.method import method
from tokenmill.types import Draft, Verified


@method(
    title="Turning Trash into Treasure: Accelerating Inference of Large Language Models with Token Recycling",
    paper="arXiv:2408.08696",
    year=2024,
    lossless=True,
)
def token_recycling(
    seen: Verified, state: Tensor | None, *, nodes: int = 12, width: int = 8, depth: int = 6
) -> tuple[Draft, Tensor]:
    vocabulary = seen.logits.shape[-1]
    width = min(width, vocabulary)
    if state is None:
        state = torch.full((vocabulary, width), -1, dtype=torch.int32, device=seen.logits.device)  # (V, width)
    token, use = seen.tokens.unique(return_inverse=True)
    order = torch.arange(len(use), device=use.device)
    newest = torch.zeros_like(token).scatter_reduce(0, use, order, "amax", include_self=False)
    state[token] = seen.logits[newest].topk(width, dim=-1).indices.to(state.dtype)
    return _grow(seen.context[-1], state, *_paths(nodes, width, depth)), state


def _grow(
    root: Tensor, state: Tensor, parents: tuple[int, ...], ranks: tuple[int, ...], levels: tuple[int, ...]
) -> Draft:
    """Walk the matrix along the paths; nodes below a token that was never read are left out."""
    above, rank = torch.tensor(parents, device=state.device) + 1, torch.tensor(ranks, device=state.device)  # (N,)
    tokens = root.new_full((len(parents) + 1,), -1)  # the root, then the nodes
    tokens[0] = root
    for start, end in pairwise(levels):
        before = tokens[above[start:end]]
        found = state[before.clamp(min=0), rank[start:end]].to(tokens.dtype)
        tokens[start + 1 : end + 1] = torch.where(before >= 0, found, -1)
    known = tokens >= 0
    number = known.cumsum(0) - 2  # of a node among those left; -1 for the root
    return Draft(tokens[1:][known[1:]], number[above[known[1:]]])


@cache
def _paths(nodes: int, width: int, depth: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The tree's shape, breadth first: parent and rank of each node, and where each level starts and ends."""
    waiting: list[tuple[float, int, tuple[int, ...]]] = [(-1.0, 0, ())]  # (-chance, tie-break, path); the root first
    taken: list[tuple[int, ...]] = []
    while waiting and len(taken) <= nodes:
        chance, _, path = heapq.heappop(waiting)
        taken.append(path)
        if len(path) < depth:
            for r in range(width):
                heapq.heappush(waiting, (chance / (2 * (r + 1) ** 1.6), len(taken), (*path, r)))
    paths = sorted(taken[1:], key=lambda path: (len(path), path))
    place = {path: i for i, path in enumerate(paths)}
    starts = [i for i, path in enumerate(paths) if i == 0 or len(path) > len(paths[i - 1])]
    return tuple(place.get(p[:-1], -1) for p in paths), tuple(p[-1] for p in paths), (*starts, len(paths))
