"""DySpec: grow the draft where it is likeliest to be accepted, node by node.

    value(x below n) = value(n) q(x | n),  value(root) = 1;  the draft is the `nodes` nodes of largest value

When tokens are drawn, a node's next child costs a draw before its value is known: the place of the k-th child below n
is worth value(n) (1 - the q of the children drawn so far), and the place worth most is drawn next.

Xiong et al., "DySpec: Faster Speculative Decoding with Dynamic Token Tree Structure", 2024.

Differs: (1) 12 nodes by default; the paper drafts 64 and more. (2) Where nothing is drawn, the values of the next
guesses are known and are used at once; the paper's algorithm ranks by the value of the place there too. (3) Nodes that
surely belong to the draft are asked about together, level by level, which gives the same tree in fewer passes of a
draft model. (4) At most `depth` levels. (5) The guesses come from token_recycling unless another source is named; the
paper's from a smaller model (`source=draft_model`).
"""

from __future__ import annotations

import heapq

from tokenmill.method import Method, method
from tokenmill.methods.draft.token_recycling import token_recycling
from tokenmill.ops.sampling import offered
from tokenmill.ops.trees import Sapling, best_first
from tokenmill.types import Draft, Growth, Verified


@method(
    title="DySpec: Faster Speculative Decoding with Dynamic Token Tree Structure",
    paper="arXiv:2410.11744",
    year=2024,
    role="tree",
    lossless=True,
)
def dyspec(
    seen: Verified, grow: Growth, *, source: Method = token_recycling, nodes: int = 12, width: int = 8, depth: int = 8
) -> Draft:
    depth = int(min(depth, grow.room))
    if grow.generator is None:
        return best_first(grow, nodes, width, depth).draft(seen.context)
    tree, level = Sapling(), {-1: 0}
    places = [(-1.0, -1, 0)]  # (-value, node, how many of its children are drawn)
    children: dict[int, list[tuple[int, float]]] = {}
    while places and len(tree.tokens) < nodes:
        value, parent, rank = heapq.heappop(places)
        if parent not in children:
            guesses, q = offered(grow, grow.look(tree, [parent]), width)
            children[parent] = guesses[0]
            if q is not None:
                tree.drawn[parent] = q[0]
        if rank >= len(children[parent]):
            continue
        token, chance = children[parent][rank]
        node = tree.add(token, parent, chance)
        level[node] = level[parent] + 1
        left = 1 - sum(c for _, c in children[parent][:rank])  # of q, before this child
        heapq.heappush(places, (value * max(0.0, left - chance) / max(left, 1e-9), parent, rank + 1))
        if level[node] < depth:
            heapq.heappush(places, (value * chance / max(left, 1e-9), node, 0))
    return tree.draft(seen.context)
