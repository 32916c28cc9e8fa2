"""Fixed tree: the same shape at every step, by the rank of each guess alone.

    node (r1, r2, ..) = the r2-th guess after the r1-th guess after .. ;  the shape holds the `nodes` paths, at most
    `depth` long, with the largest product of c(r) = 1 / (2 (r + 1)^1.6), the chance of being right at rank r = 0, 1, ..

When tokens are drawn, and the source knows a distribution, "the r-th guess" is the r-th drawn without replacement.
"""

from __future__ import annotations

from itertools import groupby

from tokenmill.method import Method, method
from tokenmill.methods.draft.token_recycling import token_recycling
from tokenmill.ops.sampling import offered
from tokenmill.ops.trees import Sapling, likeliest_paths
from tokenmill.types import Draft, Growth, Verified


@method(title="", role="tree", lossless=True)
def fixed(
    seen: Verified, grow: Growth, *, source: Method = token_recycling, nodes: int = 12, width: int = 8, depth: int = 6
) -> Draft:
    tree = Sapling()
    place = {-1: -1}  # path of the shape -> node of the tree
    width = min(width, source.knobs.get("width", width))
    shape = list(enumerate(likeliest_paths(nodes, width, int(min(depth, grow.room)))))
    level = [-1]
    while level:
        below = [(i, parent, rank) for i, (parent, rank) in shape if parent in level and parent in place]
        asked = sorted({parent for _, parent, _ in below})
        if not asked:
            break
        most = max(rank for _, _, rank in below) + 1
        guesses, q = offered(grow, grow.look(tree, [place[p] for p in asked]), most)
        for row, (parent, group) in enumerate(groupby(below, key=lambda b: b[1])):
            if q is not None:
                tree.drawn[place[parent]] = q[row]
            for i, _, rank in group:
                if rank < len(guesses[row]):
                    place[i] = tree.add(guesses[row][rank][0], place[parent], guesses[row][rank][1])
        level = [i for i, _, _ in below]
    return tree.draft(seen.context)
