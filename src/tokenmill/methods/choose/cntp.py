"""CNTP: where the model is unsure it tries several ways to the next punctuation mark and keeps the likeliest.

H = entropy of p;   trials made = floor(1 + (trials - 1) * clamp((H - calm) / (unsure - calm), 0, 1))
each is drawn from p until punctuation or the end; kept is the one of lowest  exp(- mean log p(token))

p is what is drawn from, after temperature and warpers. With one trial a single token is drawn.

Wang et al., "Cautious Next Token Prediction", 2025.

Differs: The trials run as rows of one batch, and a trial that is done leaves it; the authors run one after the other.
trials = 10, calm = 0.01 and unsure = 1.5 are theirs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tokenmill.method import method
from tokenmill.ops.sampling import draw
from tokenmill.types import Writing

MARKS = (".", ",", "\n", "?", "!", ":", ";", ")", "]", "}")


@method(
    title="Cautious Next Token Prediction",
    paper="arXiv:2507.03038",
    year=2025,
    role="search",
    needs=("chooses", "draws", "tokenizer"),
)
def cntp(writing: Writing, *, trials: int = 10, calm: float = 0.01, unsure: float = 1.5) -> Iterator[list[int]]:
    marks = writing.spelled(MARKS) | writing.ends
    room = writing.room
    while room > 0:
        p = writing.probabilities(writing.logits)  # (1, V)
        entropy = float(torch.special.entr(p).sum())
        share = min(max((entropy - calm) / max(unsure - calm, 1e-9), 0.0), 1.0)
        made = int(1 + (trials - 1) * share)
        taken = _tried(writing, made, marks, room) if made > 1 else [draw(p[0], writing.generator)]
        room -= len(taken)
        yield taken
        writing.read(taken[-1:])


def _tried(writing: Writing, made: int, marks: frozenset[int], room: int) -> list[int]:
    """The likeliest of so many trials; all of it but its last token has been read."""
    writing.rows([0] * made)
    texts: list[list[int]] = [[] for _ in range(made)]
    nats = [0.0] * made
    best: tuple[float, list[int], object] | None = None
    while texts:
        p = writing.probabilities(writing.logits)  # (N, V)
        left = []
        for row, text in enumerate(texts):
            text.append(draw(p[row], writing.generator))
            nats[row] -= float(p[row, text[-1]].log())
            if text[-1] not in marks and len(text) < room:
                left.append(row)
            elif best is None or nats[row] / len(text) < best[0]:
                best = nats[row] / len(text), text, writing.saved(row)
        texts, nats = [texts[row] for row in left], [nats[row] for row in left]
        if left:
            writing.rows(left)
            writing.read([text[-1] for text in texts])
    assert best is not None
    writing.restore(best[2])
    return best[1]
