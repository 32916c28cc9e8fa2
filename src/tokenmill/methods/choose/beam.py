"""Beam search: follows the `beams` likeliest beginnings and writes the likeliest whole text among them.

score of a finished text = sum of log p / length^length_penalty

It stops when no open beginning can beat the worst of `beams` finished texts, judged at its present length; `early=True`
when there are so many; `early='never'` judges at the longest length it may reach.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tokenmill.errors import SpecError
from tokenmill.method import method
from tokenmill.types import Writing


@method(title="", role="search")
def beam(
    writing: Writing, *, beams: int = 4, length_penalty: float = 1.0, early: bool | str = False
) -> Iterator[list[int]]:
    if early not in (True, False, "never"):
        raise SpecError(f"beam: early must be True, False or 'never', not {early!r}")
    size = writing.logits.shape[-1]
    lines: list[list[int]] = [[] for _ in range(beams)]
    scores = torch.tensor([0.0] + [-1e9] * (beams - 1))  # all begin alike: the others would be copies of the first
    finished: list[tuple[float, list[int]]] = []
    writing.rows([0] * beams)
    for length in range(1, writing.room + 1):
        total = writing.logits.float().log_softmax(-1) + scores.to(writing.logits.device)[:, None]  # (N, V)
        # So many that enough go on even if every likeliest one ends.
        best = total.flatten().topk(min(beams * max(2, 1 + len(writing.ends)), total.numel()))
        found = [(s, i // size, i % size) for s, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
        ended = [token in writing.ends or length == writing.room for _, _, token in found]
        for (score, row, token), over in list(zip(found, ended, strict=True))[:beams]:
            if over:
                finished.append((score / length**length_penalty, [*lines[row], token]))
        finished = sorted(finished, key=lambda one: -one[0])[:beams]
        going = [one for one, over in zip(found, ended, strict=True) if not over][:beams]
        if not going:
            break
        going += [(-1e9, row, token) for _, row, token in going[:1]] * (beams - len(going))
        lines = [[*lines[row], token] for _, row, token in going]
        scores = torch.tensor([score for score, _, _ in going])
        reach = writing.room if early == "never" and length_penalty > 0 else length
        full = len(finished) == beams
        if full and (early is True or going[0][0] / reach**length_penalty <= finished[-1][0]):
            break
        writing.rows([row for _, row, _ in going])
        writing.read([token for _, _, token in going])
    yield finished[0][1]
