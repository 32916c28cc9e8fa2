"""Chain: one guess after the other, each below the one before.

x_i = the likeliest guess after x_<i;  drawn from all of q where the source knows it
"""

from __future__ import annotations

from tokenmill.method import Method, method
from tokenmill.methods.draft.prompt_lookup import prompt_lookup
from tokenmill.ops.sampling import offered
from tokenmill.ops.trees import Sapling
from tokenmill.types import Draft, Growth, Verified


@method(title="", role="tree", lossless=True)
def chain(seen: Verified, grow: Growth, *, source: Method = prompt_lookup, nodes: int = 8) -> Draft:
    tree, at = Sapling(), -1
    while len(tree.tokens) < min(nodes, grow.room):
        guesses, q = offered(grow, grow.look(tree, [at]), 1)
        if not guesses[0]:
            break
        if q is not None:
            tree.drawn[at] = q[0]
        token, chance = guesses[0][0]
        at = tree.add(token, at, chance)
    return tree.draft(seen.context)
