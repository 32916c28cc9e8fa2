"""Draft a tree, check it in one pass, keep what the model itself would have said."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tokenmill.method import Method
from tokenmill.ops.trees import accept, ancestors, depths
from tokenmill.run.session import Session
from tokenmill.types import Draft, Verified

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
    limit = getattr(session.model.config.get_text_config(decoder=True), "max_position_embeddings", None) or math.inf
    yield root.tolist()
    while True:
        guess, state = draft(seen, state)
        guess = _within(guess, limit - len(context))
        nodes = len(guess.tokens)
        tokens = torch.cat([root, guess.tokens.to(root)])
        line = torch.zeros(nodes + 1, nodes + 1, dtype=torch.bool, device=root.device)
        line[:, 0] = True  # everything hangs below the root
        line[1:, 1:] = ancestors(guess.parents)
        depth = torch.cat([root.new_zeros(1), depths(guess.parents).to(root)])
        logits = session.verify(tokens, depth, line)
        path, root = accept(guess, choose(logits)[_first_of_equals(guess)])
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


def _within(guess: Draft, room: float) -> Draft:
    """Without the nodes that lie deeper than `room`: learned positions have an end."""
    near = depths(guess.parents) <= room
    if bool(near.all()):
        return guess
    number = near.cumsum(0) - 1
    parents = guess.parents[near]
    return Draft(guess.tokens[near], torch.where(parents >= 0, number[parents.clamp(min=0)], -1))


def _first_of_equals(guess: Draft) -> Tensor:
    """For the root and each node, the first that stands for the same text: (1 + N,).

    Nodes that stand for one text must get one draw between them. If each had its own, the tokens drafted below any of
    them would come out more often than the model says.
    """
    found: dict[tuple[int, int], int] = {}
    first = [0]
    for node, (token, parent) in enumerate(zip(guess.tokens.tolist(), guess.parents.tolist(), strict=True), 1):
        first.append(found.setdefault((first[parent + 1], token), node))
    return torch.tensor(first, device=guess.tokens.device)
