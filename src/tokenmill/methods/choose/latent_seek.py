"""LatentSeek: the states behind an answer's first tokens are moved, step by step, to where the answer is worth more.

z = final hidden states that gave the first `share` of the greedy answer's tokens;   up to `steps` times:
x = argmax head(z);   z <- Adam(z, grad of worth * sum log softmax(head(z))_x, `rate`)
new answer = argmax head(z), then greedy to the end;   stops when its worth is above `enough`

Worth is what the caller's `reward` says, negative for a bad answer, or else the mean log probability of the answer's
tokens under the model. The last answer is what comes out, the best or not.

Li et al., "Seek in the Dark: Reasoning via Test-Time Instance-Level Policy Gradient in Latent Space", 2025.

Differs: the authors ask the model four questions about its answer, such as whether the calculation is right, and take
minus the share of objections; that is a `reward` here. As long as the tokens of z stay the same, so does the answer,
and it is not written again.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tokenmill.method import method
from tokenmill.types import Writing

MOST = 300  # states that are moved


@method(
    title="Seek in the Dark: Reasoning via Test-Time Instance-Level Policy Gradient in Latent Space",
    paper="arXiv:2505.13308",
    year=2025,
    role="search",
    needs=("hidden", "reward"),
)
def latent_seek(
    writing: Writing, *, share: float = 0.1, steps: int = 10, rate: float = 0.03, enough: float = -0.2
) -> Iterator[list[int]]:
    start = writing.saved(0)
    text, worth, states = _answer(writing, [])
    count = min(int(share * len(text)), MOST)
    with torch.inference_mode(False):  # the caller may be in it
        z = states[:count].float().clone().requires_grad_()  # (C, E)
    adam = torch.optim.Adam([z], lr=rate) if count else None
    for _ in range(steps):
        if adam is None or worth > enough:
            break
        adam.zero_grad()
        with torch.inference_mode(False), torch.enable_grad():
            likeliest = writing.head(z).float().log_softmax(-1).max(-1).values  # (C,)
            (-worth * likeliest.sum()).backward()
            adam.step()
        first = writing.head(z.detach()).argmax(-1).tolist()
        if first != text[:count]:
            writing.restore(start)
            start = writing.saved(0)
            text, worth, _ = _answer(writing, first)
    yield text


def _answer(writing: Writing, first: list[int]) -> tuple[list[int], float, Tensor]:
    """The greedy answer that begins with these tokens, what it is worth, and the states that gave the others (N, E)."""
    ended = next((n for n, token in enumerate(first, 1) if token in writing.ends), 0)
    text, states = first[: ended or None], []
    logits = torch.cat([writing.logits, writing.follow(first)]) if first else writing.logits  # (C + 1, V)
    chances = [logits[n].float().log_softmax(-1)[token] for n, token in enumerate(text)]
    while not ended and len(text) < writing.room:
        states.append(writing.state)
        chance, token = writing.logits.float().log_softmax(-1).max(-1)  # (1,)
        chances.append(chance[0])
        text.append(int(token))
        ended = text[-1] in writing.ends
        if not ended and len(text) < writing.room:
            writing.read(text[-1:])
    worth = float(torch.stack(chances).mean()) if writing.reward is None else writing.reward(text)
    return text, worth, torch.cat(states) if states else writing.logits[:0]
