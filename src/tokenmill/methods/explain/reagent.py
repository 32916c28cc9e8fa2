"""ReAGent: replace random tokens by plausible others and credit those whose loss changes the prediction.

    R        a random `share` of the positions, replaced: x -> x_R
    d      = p(y | x) - p(y | x_R)
    l_t   += logit((1 + d) / 2)  for t in R,   logit((1 - d) / 2)  for t not in R
    stop when y is among the `top` predictions with all but the `rationale` best tokens replaced
    s      = mean over `runs` that stopped of softmax(l)

Zhao and Shan, "ReAGent: Towards A Model-agnostic Feature Attribution Method for Generative Language Models", 2024.

Differs: (1) `rationale` is 5, for short prompts; the authors' configurations leave 8 tokens in place. (2) Replacements
are samples from the explained model's own predictions of each place; the authors draw words of the same part of
speech, or RoBERTa's, which see both sides. (3) A run ends after `steps` rounds, 50; theirs after 3,000. When no run
stopped, all are averaged.
"""

import torch
from torch import Tensor

from tokenmill.method import method
from tokenmill.types import Ask, Attribution


@method(
    title="ReAGent: Towards A Model-agnostic Feature Attribution Method for Generative Language Models",
    paper="arXiv:2402.00794",
    year=2024,
)
def reagent(
    ask: Ask,
    ids: Tensor,
    target: int | None,
    *,
    share: float = 0.3,
    rationale: int = 5,
    top: int = 3,
    runs: int = 5,
    steps: int = 50,
    seed: int = 0,
) -> Attribution:
    length = len(ids)
    p = ask.probabilities(ids[None])[0]  # (V,)
    y = int(p.argmax()) if target is None else target
    dice = [torch.Generator().manual_seed(seed * 1_000_003 + run) for run in range(runs)]
    logits = torch.stack([torch.rand(length, generator=die) for die in dice])  # (runs, T)
    stopped = torch.zeros(runs, dtype=torch.bool)
    calls = 1

    def replaced(where: Tensor, active: list[int]) -> Tensor:
        others = torch.stack([ask.replacements(ids, dice[run]) for run in active])
        return torch.where(where, others, ids)

    for _ in range(steps):
        active = (~stopped).nonzero()[:, 0].tolist()
        if not active:
            break
        hit = torch.stack([torch.rand(length, generator=dice[run]) < share for run in active])  # R: (active, T)
        d = p[y] - ask.probabilities(replaced(hit, active))[:, y]  # (active,)
        logits[active] += torch.logit((1 + torch.where(hit, d[:, None], -d[:, None])) / 2, eps=1e-6)
        best = logits[active].topk(min(rationale, length)).indices
        rest = torch.ones_like(hit).scatter(1, best, False)
        guesses = ask.probabilities(replaced(rest, active)).topk(min(top, len(p))).indices  # (active, top)
        stopped[active] = (guesses == y).any(-1)
        calls += 2 * len(active)
    counted = stopped if stopped.any() else torch.ones_like(stopped)
    scores = logits[counted].softmax(-1).mean(0)  # (T,)
    return Attribution(scores, y, calls, {"runs_stopped": int(stopped.sum())})
