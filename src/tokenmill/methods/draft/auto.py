"""Auto: as many guesses as pay for themselves on this machine.

    the draft is the n likeliest nodes, n that of the largest  (1 + sum of their values) / cost(1 + n)

    value of a node = product of f(chance) on its way from the root;  cost(w) = a pass over w tokens, timed

f is learned while decoding: of the guesses made with about this chance, below a token that was right, the share that
was right, (hits + k c) / (trials + k) with the source's own chance c as if it had been seen k times. Where nothing is
worth its cost, nothing is drafted, and a pass is a plain step. A node worth less than half of what a node of a full
tree costs is not looked for.
"""

from __future__ import annotations

from bisect import bisect

from tokenmill.method import Method, method
from tokenmill.methods.draft.both import both
from tokenmill.ops.trees import best_first
from tokenmill.types import Draft, Growth, Verified

EDGES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97)  # of the bins of chances
PRIOR = 6.0  # trials that the source's own chance counts for

State = tuple[list[int], list[int], list[tuple[int, float]]]  # hits, trials a bin; last draft: (parent, chance)


@method(title="", needs=("cost",), role="tree", carries=True, lossless=True)
def auto(
    seen: Verified,
    grow: Growth,
    state: State | None,
    *,
    source: Method = both,
    nodes: int = 32,
    width: int = 6,
    depth: int = 10,
) -> tuple[Draft, State]:
    hits, trials, last = state or ([0] * (len(EDGES) + 1), [0] * (len(EDGES) + 1), [])
    right = seen.accepted.tolist()  # the root first
    if seen.depths is not None and len(right) == len(last) + 1:
        for node, (parent, chance) in enumerate(last, 1):
            if right[parent + 1]:
                trials[bisect(EDGES, chance)] += 1
                hits[bisect(EDGES, chance)] += right[node]

    def learned(chance: float) -> float:
        place = bisect(EDGES, chance)
        return (hits[place] + PRIOR * chance) / (trials[place] + PRIOR)

    least = (grow.cost(1 + nodes) / grow.cost(1) - 1) / nodes / 2
    tree = best_first(grow, nodes, width, int(min(depth, grow.room)), learned, least)
    values, worth, best, most = [1.0], 1.0, 0, 1 / grow.cost(1)
    for node, (parent, chance) in enumerate(zip(tree.parents, tree.chances, strict=True)):
        values.append(values[parent + 1] * learned(chance))
        worth += values[-1]
        if worth / grow.cost(node + 2) > most:
            best, most = node + 1, worth / grow.cost(node + 2)
    return tree.draft(seen.context, best), (hits, trials, list(zip(tree.parents, tree.chances, strict=True))[:best])
