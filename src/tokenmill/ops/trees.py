"""Draft trees as two flat tensors: node i carries tokens[i] and hangs below parents[i]; -1 is the root.

The root is the newest accepted token. It is not a node, but it comes first wherever logits are given:
row 0 is what the model predicts after the root, row i + 1 what it predicts after node i.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from itertools import islice

import torch
from torch import Tensor

from tokenmill.types import Draft, Growth, Tree

__all__ = [
    "Sapling",
    "above",
    "accept_greedy",
    "ancestors",
    "best_first",
    "chain",
    "children",
    "depths",
    "from_root",
    "level",
    "likeliest_paths",
]


class Sapling:
    """A tree that grows node by node, in plain lists: a tensor operation a node would cost more than the node."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.chances: list[float] = []
        self.drawn: dict[int, Tensor] = {}
        self._below: dict[tuple[int, int], int] = {}

    def add(self, token: int, parent: int, chance: float = 0.5) -> int:
        """Hang a token below a node, unless it hangs there already; its number."""
        if (parent, token) in self._below:
            return self._below[parent, token]
        self._below[parent, token] = len(self.tokens)
        self.tokens.append(token)
        self.parents.append(parent)
        self.chances.append(chance)
        return len(self.tokens) - 1

    def ends(self, context: Sequence[int], at: Sequence[int], count: int) -> list[list[int]]:
        """The newest `count` tokens of the text that ends in each of these nodes, fewer where it is shorter."""
        out = []
        for node in at:
            path: list[int] = []
            while node >= 0 and len(path) < count:
                path.append(self.tokens[node])
                node = self.parents[node]
            left = count - len(path)
            out.append([*(context[-left:] if left else ()), *reversed(path)])
        return out

    def draft(self, like: Tensor, count: int | None = None) -> Draft:
        """The tree, or its first nodes, as tensors, on the device and in the type of `like`."""
        return Draft(
            torch.tensor(self.tokens[:count], dtype=like.dtype, device=like.device),
            torch.tensor(self.parents[:count], dtype=torch.long, device=like.device),
            torch.tensor(self.chances[:count], device=like.device),
            dict(self.drawn),
        )


def above(tree: Tree, nodes: Sequence[int]) -> list[int]:
    """These nodes and all above them up to the root, -1, each once, parents first."""
    found: set[int] = set()
    for node in nodes:
        while node >= 0 and node not in found:
            found.add(node)
            node = tree.parents[node]
        found.add(-1)
    return sorted(found)


def from_root(parents: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """The tree with its root in front: how deep each node is (1 + N,), and which ones it sees (1 + N, 1 + N) bool.

    A node sees itself and all nodes on its way to the root. Trees of one shape share these tensors.
    """
    levels, sees = _from_root(tuple(parents))
    return levels.to(device), sees.to(device)


@lru_cache(maxsize=1024)
def _from_root(parents: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    sees = torch.eye(1 + len(parents), dtype=torch.bool)
    rows = sees.numpy()  # the same memory: a row is copied at a fifth of a tensor operation's cost
    for node, parent in enumerate(parents, 1):
        rows[node] |= rows[parent + 1]
    return sees.sum(-1) - 1, sees


def ancestors(parents: Tensor) -> Tensor:
    """(N, N) bool: [i, j] is True where node i attends to node j, itself and all nodes on its way to the root."""
    return from_root(parents.tolist(), parents.device)[1][1:, 1:]


def depths(parents: Tensor) -> Tensor:
    """(N,) how many steps each node is below the root; children of the root have depth 1."""
    return from_root(parents.tolist(), parents.device)[0][1:]


def children(parents: Sequence[int]) -> dict[int, list[int]]:
    """The nodes below each node, in their order; -1 is the root."""
    out: dict[int, list[int]] = {}
    for node, parent in enumerate(parents):
        out.setdefault(parent, []).append(node)
    return out


def level(tree: Tree, node: int) -> int:
    """How many steps a node is below the root; 0 for the root, -1."""
    deep = 0
    while node >= 0:
        node, deep = tree.parents[node], deep + 1
    return deep


def chain(tokens: Tensor) -> Draft:
    """The tree that is one line: each token hangs below the one before it."""
    return Draft(tokens, torch.arange(-1, tokens.shape[0] - 1, device=tokens.device))


def accept_greedy(tokens: Sequence[int], parents: Sequence[int], likeliest: Sequence[int]) -> tuple[list[int], int]:
    """The longest line of nodes that are all what the model itself would say, and its own next token after them.

    likeliest (1 + N): the model's token after the root, then after each node. Every pass so yields one token at
    least. Of equal lines the first counts.
    """
    level, path = [0] * (1 + len(tokens)), -1  # how deep each right node is, the root first; -1: not right
    for node, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
        right = level[parent + 1] >= 0 and token == likeliest[parent + 1]
        level[node + 1] = level[parent + 1] + 1 if right else -1
        if level[node + 1] > level[path + 1]:
            path = node
    line = []
    last = path
    while path >= 0:
        line.append(path)
        path = parents[path]
    return line[::-1], likeliest[last + 1]


@cache
def likeliest_paths(nodes: int, width: int, depth: int) -> tuple[tuple[int, int], ...]:
    """A tree's shape when all that is known of a guess is its rank: (parent, rank) of each node, breadth first.

    The `nodes` paths, at most `depth` long, with the largest product of chances 1 / (2 (r + 1)^1.6) of being right
    at rank r = 0, 1, ... < width.
    """
    waiting: list[tuple[float, int, tuple[int, ...]]] = [(-1.0, 0, ())]  # (-chance, tie-break, path); the root first
    taken: list[tuple[int, ...]] = []
    while waiting and len(taken) <= nodes:
        chance, _, path = heapq.heappop(waiting)
        taken.append(path)
        if len(path) < depth:
            for rank in range(width):
                heapq.heappush(waiting, (chance * rank_chance(rank), len(taken), (*path, rank)))
    paths = sorted(taken[1:], key=lambda path: (len(path), path))
    place = {path: i for i, path in enumerate(paths)}
    return tuple((place.get(p[:-1], -1), p[-1]) for p in paths)


def rank_chance(rank: int) -> float:
    """How likely the guess of that rank is right, when nothing else is known of it."""
    return 1 / (2 * (rank + 1) ** 1.6)


def best_first(
    grow: Growth, nodes: int, width: int, depth: int, believe: Callable[[float], float] = float, least: float = 0.0
) -> Sapling:
    """The `nodes` nodes with the largest product of chances from the root on, best first, at most `depth` deep.

    Nodes whose product is below `least` are left out, and so is what hangs below them. The source is not asked about
    nodes that give it less to win than asking takes, if half of what they are worth is won below them.

    A node's value is at most its parent's. So whatever is among the best of all that is known is expanded, together,
    until nothing among them is unasked. `believe` says what a source's chance is worth.
    """
    known: list[tuple[float, int, int, int, float]] = []  # (-value, number, token, parent's number, chance)
    tree, where = Sapling(), {-1: -1}  # tree: all that was expanded; where: number -> its node there
    level, count = {-1: 0}, 0
    asked, values = [-1], {-1: 1.0}
    while asked and (not count or sum(values[n] for n in asked) / 2 >= grow.asking):
        guess = grow.look(tree, [where[n] for n in asked])
        for parent, row in zip(asked, guess.rows, strict=True):
            for token, chance in islice(row.items(), width):
                value = values[parent] * believe(chance)
                if value >= least:
                    values[count], level[count] = value, level[parent] + 1
                    known.append((-values[count], count, token, parent, chance))
                    count += 1
        known = heapq.nsmallest(nodes, known)
        asked = []
        for _, number, token, parent, chance in known:
            if level[number] < depth and number not in where:
                where[number] = tree.add(token, where[parent], chance)
                asked.append(number)
    out, place = Sapling(), {-1: -1}
    for _, number, token, parent, chance in known:
        place[number] = out.add(token, place[parent], chance)
    return out
