"""LUD: the run of guesses that their source is sure of is taken as one lexical unit, unchecked. Not lossless.

    x_i is taken  <=>  q(x_i) > threshold, for it and all guesses before it

q is the chance its source gave the guess. The token after the unit is the model's own, chosen as without drafting:
where nothing is sure, a pass is a plain step. The paper's source is `placeholders`; any other may be believed as well.

Sun et al., "Decoding at the Speed of Thought: Harnessing Parallel Decoding of Lexical Units for LLMs", 2024.

Differs: (1) The paper's guesses come from a model that is fine-tuned for it: see `placeholders`. (2) Its control of
repetitions is not here.
"""

from __future__ import annotations

from tokenmill.method import method
from tokenmill.ops.sampling import draw
from tokenmill.ops.trees import children
from tokenmill.types import Draft, Said


@method(
    title="Decoding at the Speed of Thought: Harnessing Parallel Decoding of Lexical Units for LLMs",
    paper="arXiv:2405.15208",
    year=2024,
    role="rule",
)
def lud(draft: Draft, said: Said, *, threshold: float = 0.9) -> tuple[list[int], int]:
    chances = [0.0] * len(draft.tokens) if draft.chances is None else draft.chances.tolist()
    below, at = children(draft.parents.tolist()), -1
    unit: list[int] = []
    while sure := [node for node in below.get(at, []) if chances[node] > threshold]:
        at = max(sure, key=chances.__getitem__)
        unit.append(at)
    if said.generator is None:
        return unit, said.likeliest[at + 1]
    return unit, draw(said.probabilities(at + 1), said.generator)
