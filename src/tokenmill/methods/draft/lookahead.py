"""Lookahead: guesses for a window of places improve from pass to pass, and the runs they went through are drafted.

    window[j][i]: the j-th guess for place i, each pass one new row: what the model says after the i-th column
    a column of `ngram` tokens, oldest first, is a run; pool[first token] = the newest `width` runs that begin with it
    draft: the window's columns below each other, and the runs in pool[newest token]

Fu et al., "Break the Sequential Dependency of LLM Inference Using Lookahead Decoding", 2024.

Differs: (1) The window is 5 places, a run 3 tokens and 3 runs are drafted, because on a CPU every token costs time;
the authors' code runs with `window=7, ngram=5, width=7`, the paper with 15, 5 and 15 for 7B. (2) The window moves on
by as many places as tokens were accepted, in the authors' code by one at every pass; places it did not reach take
tokens of the text, by lot. (3) Their first column begins with the newest token itself, so one run of each pass has a
beginning that is known to be right; here all columns begin with guesses, and the window's tokens may be accepted too
where they are right.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import torch

from tokenmill.method import method
from tokenmill.ops.noise import at as noise
from tokenmill.ops.trees import Sapling
from tokenmill.types import Draft, Verified

Rows = list[list[int]]
Pool = dict[int, list[tuple[int, ...]]]
State = tuple[Rows, Mapping[tuple[int, int], int], Pool]  # window rows; (row, column) -> node of the last draft; pool


@method(
    title="Break the Sequential Dependency of LLM Inference Using Lookahead Decoding",
    paper="arXiv:2402.02057",
    year=2024,
    lossless=True,
)
def lookahead(
    seen: Verified, state: State | None, *, window: int = 5, ngram: int = 3, width: int = 3, seed: int = 0
) -> tuple[Draft, State]:
    text = seen.context.tolist()
    rows, place, pool = state or ([[] for _ in range(ngram - 1)], {}, {})
    if seen.depths is not None:
        likeliest = seen.logits.argmax(-1).tolist()  # row 0 after the old root, row i + 1 after node i
        new = [likeliest[place[ngram - 2, i] + 1] if (ngram - 2, i) in place else None for i in range(window)]
        for i, said in enumerate(new):
            column = [row[i] for row in rows if i < len(row)]
            if said is not None and len(column) == ngram - 1:
                _remember(pool, (*column, said), width)
        taken = int(seen.accepted.sum()) - 1
        rows = [row[taken:] for row in [*rows[1:], [n if n is not None else text[-1] for n in new]]]
    lots = noise(torch.arange(len(rows) * window), torch.tensor(len(text)), seed).view(len(rows), window)
    rows = [
        [*row[:window], *(text[int(lots[j, i] * len(text))] for i in range(min(len(row), window), window))]
        for j, row in enumerate(rows)
    ]
    tree, place = Sapling(), {}
    for i, j in product(range(window), range(ngram - 1)):
        if i + j < seen.room:
            place[j, i] = tree.add(rows[j][i], place[j - 1, i] if j else place.get((0, i - 1), -1))
    for run in reversed(pool.get(text[-1], [])):
        below = -1
        for token in run[: int(min(seen.room, ngram))]:
            below = tree.add(token, below)
    return tree.draft(seen.context), (rows, place, pool)


def _remember(pool: Pool, run: tuple[int, ...], most: int) -> None:
    runs = pool.setdefault(run[0], [])
    if run[1:] in runs:
        runs.remove(run[1:])
    runs.append(run[1:])
    del runs[:-most]
