"""Draft a tree, check it in one pass, keep what the model itself would have said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tokenmill.method import Method
from tokenmill.ops.trees import accept, ancestors, depths
from tokenmill.run.session import Session
from tokenmill.types import Verified

# Newest prompt tokens whose logits a drafter is shown: the head over a whole long prompt costs more than it gives.
SHOWN = 256


def speculate(
    session: Session, prompt: list[int], draft: Method, choose: Callable[[Tensor], Tensor]
) -> Iterator[list[int]]:
    """Tokens of one row, a list for each pass. `choose` picks from logits (N, V): greedily or by drawing.

    What comes out is what `choose` says after exactly the text that precedes it, so greedy output equals plain
    greedy decoding and drawn output has the model's distribution. The recipe's cache methods see only tokens that
    were accepted.
    """
    ids = torch.tensor([prompt], device=session.model.device)
    shown = min(len(prompt), SHOWN)
    logits = session.read(ids, last=shown) if shown > 1 else session.read(ids)[:, None]
    root = choose(logits[0, -1:])  # (1,)
    context = torch.cat([ids[0], root])
    seen = Verified(context, ids[0, -shown:], logits[0], torch.ones(shown, dtype=torch.bool))
    state: Any = None
    yield root.tolist()
    while True:
        guess, state = draft(seen, state)
        nodes = len(guess.tokens)
        tokens = torch.cat([root, guess.tokens.to(root)])
        line = torch.zeros(nodes + 1, nodes + 1, dtype=torch.bool, device=root.device)
        line[:, 0] = True  # everything hangs below the root
        line[1:, 1:] = ancestors(guess.parents)
        depth = torch.cat([root.new_zeros(1), depths(guess.parents).to(root)])
        logits = session.verify(tokens, depth, line)
        path, root = accept(guess, choose(logits))
        root = root.reshape(1)
        kept = torch.cat([path.new_zeros(1), path + 1])
        session.accept(kept)
        session._stats.drafted += nodes
        session._stats.accepted += len(path)
        taken = torch.zeros(nodes + 1, dtype=torch.bool)
        taken[kept] = True
        context = torch.cat([context, tokens[kept[1:]], root])
        seen = Verified(context, tokens, logits, taken)
        yield [*tokens[kept[1:]].tolist(), *root.tolist()]
