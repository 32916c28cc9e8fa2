"""Typical acceptance: accept every guess that the model itself finds plausible enough. Not lossless.

    x is taken  <=>  p(x) > min(epsilon, delta exp(-H(p)));  of the longest lines of such guesses the likeliest counts

p is the model's distribution at `temperature`, H its entropy in nats: where the model is unsure, more is plausible. The
token after the last guess taken is the model's own, chosen as without drafting.

Cai et al., "Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads", 2024.

Differs: (1) The paper always takes the first token greedily; here that is the model's own choice after the line. (2)
`temperature` is 1 by default; the paper's figures are at 0.7. epsilon = 0.09 and delta = 0.3 are the authors'.
"""

from __future__ import annotations

from tokenmill.method import method
from tokenmill.ops.logits import heat
from tokenmill.ops.sampling import draw
from tokenmill.types import Draft, Said


@method(
    title="Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads",
    paper="arXiv:2401.10774",
    year=2024,
    role="rule",
)
def typical_acceptance(
    draft: Draft, said: Said, *, epsilon: float = 0.09, delta: float = 0.3, temperature: float = 1.0
) -> tuple[list[int], int]:
    log_p = (said.logits.float() / heat(temperature)).log_softmax(-1)  # (1 + N, V)
    entropy = -(log_p.exp() * log_p.clamp(min=-1e4)).sum(-1)  # (1 + N,)
    bar = (entropy.neg().exp() * delta).clamp(max=epsilon)
    parents = draft.parents.tolist()
    above = draft.parents + 1
    guessed = log_p[above, draft.tokens]  # (N,)
    plausible, likely = (guessed.exp() > bar[above]).tolist(), guessed.tolist()
    best: list[int] = []
    lines: list[list[int]] = []  # of each node: the plausible line that ends in it
    for node, parent in enumerate(parents):
        line = [] if parent < 0 else lines[parent]
        lines.append([*line, node] if plausible[node] and (parent < 0 or line) else [])
        best = max(best, lines[node], key=lambda nodes: (len(nodes), sum(likely[n] for n in nodes)))
    row = best[-1] + 1 if best else 0
    if said.generator is None:
        return best, said.likeliest[row]
    return best, draw(said.probabilities(row), said.generator)
