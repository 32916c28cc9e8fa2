"""RSD: a draft tree whose siblings, or whose whole lines, are drawn without replacement.

    RSD-C, `branches` (b1, b2, ..): below every node of level l - 1 the first b_l draws without replacement from q
    RSD-S, `width` W: stochastic beam search; of all lines of level l the W with the largest perturbed log q,
        G(line) ~ Gumbel(log q(line)),  below a line: G~ = -log(exp(-G(line)) - exp(-Z) + exp(-G')), Z = max G'

Jeon et al., "Recursive Speculative Decoding: Accelerating LLM Inference via Sampling Without Replacement", 2024.

The draws are checked by recursive rejection, see ops.sampling.residual_walk. Which sibling a Gumbel value belongs to
does not depend on the value, so a line that leaves the beam tells nothing about the tokens that stay.

Where nothing is drawn the likeliest are taken: a plain beam.

Differs: (1) The guesses come from token_recycling unless another source is named; it knows no distribution to draw
from, so the likeliest are taken then. The paper's come from a smaller model (`source=draft_model`). (2) The paper
compares trees of several widths and depths; `width=4, depth=3` are chosen here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.method import Method, method
from tokenmill.methods.draft.token_recycling import token_recycling
from tokenmill.ops.sampling import gumbel_like, offered
from tokenmill.ops.trees import Sapling
from tokenmill.types import Draft, Growth, Verified


@method(
    title="Recursive Speculative Decoding: Accelerating LLM Inference via Sampling Without Replacement",
    paper="arXiv:2402.14160",
    year=2024,
    role="tree",
    lossless=True,
)
def rsd(
    seen: Verified,
    grow: Growth,
    *,
    source: Method = token_recycling,
    width: int = 4,
    depth: int = 3,
    branches: tuple[int, ...] = (),
) -> Draft:
    tree = Sapling()
    beam = [(-1, 0.0, 0.0)]  # (node, log q of its line, perturbed log q)
    for level in range(int(min(len(branches) or depth, grow.room))):
        asked = [node for node, _, _ in beam]
        if not asked:
            break
        guess = grow.look(tree, asked)
        if branches or grow.generator is None or guess.logits is None:
            guesses, q = offered(grow, guess, branches[level] if branches else width)
            found = [
                (line + _log(chance), line + _log(chance), row, token, chance)
                for row, (_, line, _) in enumerate(beam)
                for token, chance in guesses[row]
            ]
        else:
            q = grow.probabilities(guess.logits)  # (M, V)
            found = _perturbed(q, beam, width, grow.generator)
        if not branches:
            found = sorted(found, key=lambda f: -f[0])[:width]
        for row, node in enumerate(asked):
            if q is not None:
                tree.drawn[node] = q[row]
        beam = [(tree.add(token, asked[row], chance), line, score) for score, line, row, token, chance in found]
    return tree.draft(seen.context)


def _perturbed(
    q: Tensor, beam: list[tuple[int, float, float]], width: int, generator: torch.Generator
) -> list[tuple[float, float, int, int, float]]:
    """(perturbed log q, log q, row, token, q) of the `width` best children of each line, given the line's own value."""
    line = torch.tensor([b[1] for b in beam], dtype=torch.float64)[:, None]  # (M, 1)
    own = torch.tensor([b[2] for b in beam], dtype=torch.float64)[:, None]
    logs = q.double().cpu().log() + line  # (M, V)
    noisy = logs + gumbel_like(logs, generator)
    most = noisy.max(-1, keepdim=True).values
    # The children's values, given that the largest of them is the line's: the stable form of the formula on top.
    v = own - noisy + torch.log1p(-(noisy - most).exp())
    value = own - v.clamp(min=0) - torch.log1p((-v.abs()).exp())
    score, token = value.topk(min(width, value.shape[-1]), dim=-1)
    return [
        (s, float(logs[row, t]), row, t, float(q[row, t]))
        for row in range(len(q))
        for s, t in zip(score[row].tolist(), token[row].tolist(), strict=True)
        if s > -torch.inf
    ]


def _log(chance: float) -> float:
    return float(torch.tensor(chance, dtype=torch.float64).log())
