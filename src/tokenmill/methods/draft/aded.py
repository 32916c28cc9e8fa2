"""ADED: a search that weighs likely continuations against untried ones fills the draft from a table of trigrams.

    at a node with N visits go to the child of largest
        Q + (c1 + log((N + c2 + 1) / c2)) P sqrt(N) / (1 + n),   n its visits, P its chance, Q its mean score,
    an unvisited one first;  from the first unexpanded node on, draw by chance down to `depth`;  score of a run =
    1 + sum of chances on its way, added to all nodes it passed.  The draft: the `nodes` nodes visited most

Liu et al., "Adaptive Draft-Verification for Efficient Large Language Model Decoding", 2024.

Differs: (1) The table starts empty and learns from the prompt and from what is said; the authors' starts from the
trigrams of a chat corpus, 12 a pair, and before each draft gains 0.04 for every trigram of the newest 16 tokens, on
top of the corpus's share. Ours counts, and P is a share. (2) 12 nodes, 8 children and 40 runs, in Python; theirs
drafts 24 nodes after 150 runs. (3) A line has up to `depth` tokens by search; theirs has three by search and the
likeliest one behind. (4) Unvisited siblings come likeliest first. (5) Any source can stand in the table's place. c1 =
32, c2 = 8 are the authors'.
"""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from tokenmill.method import Method, method
from tokenmill.methods.draft.trigram import trigram
from tokenmill.ops.trees import Sapling
from tokenmill.types import Draft, Growth, Verified

C1, C2 = 32.0, 8.0


@method(
    title="Adaptive Draft-Verification for Efficient Large Language Model Decoding",
    paper="arXiv:2407.12021",
    year=2024,
    role="tree",
    lossless=True,
)
def aded(
    seen: Verified,
    grow: Growth,
    *,
    source: Method = trigram,
    nodes: int = 12,
    width: int = 8,
    depth: int = 4,
    steps: int = 40,
    seed: int = 0,
) -> Draft:
    root = _Place(-1, -1, 1.0)
    search = _Search(grow, width, int(min(depth, grow.room)), random.Random(f"{seed}/{len(seen.context)}"))
    for _ in range(steps):
        place, way = root, [root]
        while place.children and len(way) <= search.depth:
            place = max(place.children, key=partial(_worth, visits=place.visits))
            way.append(place)
        if place.children is None and len(way) <= search.depth and (untried := search.expand(place)):
            place = untried[0]
            way.append(place)
        score = 1 + sum(p.chance for p in way[1:]) + search.drawn_on(place, search.depth + 1 - len(way))
        for place in way:
            place.visits, place.score = place.visits + 1, place.score + score
    return _most_visited(root, nodes).draft(seen.context)


def _worth(place: _Place, visits: int) -> float:
    if not place.visits:
        return math.inf
    curious = (C1 + math.log((visits + C2 + 1) / C2)) * place.chance * math.sqrt(visits) / (1 + place.visits)
    return place.score / place.visits + curious


@dataclass
class _Place:
    """A node of the search."""

    node: int  # in the tree that the source is asked about
    token: int
    chance: float
    visits: int = 0
    score: float = 0.0
    children: list[_Place] | None = None  # None: not asked about yet


@dataclass
class _Search:
    """The source, and the tree of all it was asked about."""

    grow: Growth
    width: int
    depth: int
    dice: random.Random
    asked: Sapling = field(default_factory=Sapling)

    def expand(self, place: _Place) -> list[_Place]:
        if place.children is None:
            guess = self.grow.look(self.asked, [place.node])
            pairs = islice(guess.rows[0].items(), self.width)
            place.children = [_Place(self.asked.add(t, place.node, c), t, c) for t, c in pairs]
        return place.children

    def drawn_on(self, place: _Place, levels: int) -> float:
        """The sum of the chances on a way drawn by chance."""
        total = 0.0
        while levels > 0 and (children := self.expand(place)):
            place = self.dice.choices(children, [c.chance + 1e-9 for c in children])[0]
            total, levels = total + place.chance, levels - 1
        return total


def _most_visited(root: _Place, nodes: int) -> Sapling:
    """A node is visited at most as often as its parent, so the most visited ones hang together."""
    tree, order = Sapling(), 0
    waiting = [(0, order, -1, root)]
    while waiting and len(tree.tokens) < nodes:
        _, _, parent, place = heapq.heappop(waiting)
        node = -1 if place is root else tree.add(place.token, parent, place.chance)
        for child in place.children or ():
            if child.visits:
                order += 1
                heapq.heappush(waiting, (-child.visits, order, node, child))
    return tree
