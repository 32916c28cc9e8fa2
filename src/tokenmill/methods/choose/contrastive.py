"""Contrastive search: of the likeliest tokens, the one whose state is least like a state the text already has.

among the `top` likeliest v:   argmax  (1 - penalty) p(v) - penalty * max over the text's states h_j of cos(h_v, h_j)

h_v is the final hidden state after v, from one pass in which the candidates are siblings of a tree.

Su et al., "A Contrastive Framework for Neural Text Generation", 2022.

Differs: (1) Only the decoding; the model is not trained with the paper's contrastive loss, without which the paper
itself finds that the method repeats. (2) `top=5` is the paper's for dialogue; for documents it takes 8.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn.functional import normalize

from tokenmill.method import method
from tokenmill.types import Writing


@method(
    title="A Contrastive Framework for Neural Text Generation",
    paper="arXiv:2202.06417",
    year=2022,
    role="search",
    needs=("hidden", "siblings"),
)
def contrastive(writing: Writing, *, top: int = 5, penalty: float = 0.6) -> Iterator[list[int]]:
    text = normalize(writing.hidden[0].float(), dim=-1)  # (T, E)
    while True:
        chance, tokens = writing.logits[0].float().softmax(-1).topk(min(top, writing.logits.shape[-1]))  # (N,)
        states = normalize(writing.look(tokens).float(), dim=-1)  # (N, E)
        likeness = (states @ text.T).amax(-1)  # (N,)
        best = int(((1 - penalty) * chance - penalty * likeness).argmax())
        writing.take(best)
        text = torch.cat([text, states[best : best + 1]])
        yield [int(tokens[best])]
