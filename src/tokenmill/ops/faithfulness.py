"""How well scores say what the model used: hide by score, ask again.

Both measures hide *soft*: every element of every embedding is kept or zeroed by a coin of its own, so that no number of
"important tokens" has to be chosen.

    keep_t   = rank of s_t, spread evenly over (0, 1)       sufficiency: the better a token, the more of it stays
    hide_t   = 1 - keep_t                                   comprehensiveness: the better a token, the less of it stays
    H(p, q)  = || sqrt p - sqrt q || / sqrt 2               distance of two next-token distributions, in [0, 1]
    S(x')    = 1 - H(p(.| x), p(.| x'))
    sufficiency        = max(0, S(x_keep) - S(0)) / (1 - S(0))
    comprehensiveness  = (1 - S(x_hide)) / (1 - S(0))       0 stands for x with every embedding zeroed

Higher is better in both. After Zhao and Aletras, "Incorporating Attribution Importance for Improving Faithfulness
Metrics", 2023, as applied to next-token distributions by Zhao and Shan (ReAGent), 2024.

Differs: scores enter by rank, so that every method keeps the same half of the elements in expectation, whatever the
scale of its scores; the mean over several draws of the coins is taken. The script released with ReAGent sums squared
differences of roots over sqrt 2, which can exceed one; this is the Hellinger distance, which cannot.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenmill.errors import InputError
from tokenmill.types import Ask


@dataclass(frozen=True)
class Faithfulness:
    """Two sides of one question; higher is better in both."""

    sufficiency: float  # how much of the prediction survives when the important tokens stay
    comprehensiveness: float  # how much of it goes when the important tokens go
    calls: int  # rows the model was asked about


def soft(ask: Ask, ids: Tensor, scores: Tensor, *, samples: int = 8, seed: int = 0) -> Faithfulness:
    """Soft normalised sufficiency and comprehensiveness of scores (T,) for the prompt ids (T,)."""
    if ask.embed is None or ask.logits_from_embeddings is None:
        raise InputError("soft faithfulness zeroes parts of embeddings, and this model is a black box; use `hard`")
    e = ask.embed(ids[None]).detach()  # (1, T, E)
    keep = ranks(scores).to(e)[None, :, None]  # (1, T, 1)
    coins = torch.rand(samples, *e.shape[1:], generator=torch.Generator().manual_seed(seed)).to(e)  # (samples, T, E)
    rows = torch.cat([e, torch.zeros_like(e), e * (coins < keep), e * (coins < 1 - keep)])
    with torch.no_grad():
        p = ask.logits_from_embeddings(rows).float().softmax(-1)  # (2 + 2 samples, V)
    away = hellinger(p[0], p[1:])
    zeroed, kept, hidden = away[0], away[1 : 1 + samples].mean(), away[1 + samples :].mean()
    worth = zeroed.clamp(min=torch.finfo(zeroed.dtype).tiny)  # 1 - S(0)
    return Faithfulness(float((zeroed - kept).clamp(min=0) / worth), float(hidden / worth), len(rows))


def hard(
    ask: Ask, ids: Tensor, scores: Tensor, target: int, *, share: float = 0.2, samples: int = 8, seed: int = 0
) -> Faithfulness:
    """For black boxes: keep only the top `share` of the tokens, or replace just those, by plausible others.

    sufficiency = p(target | rest replaced) / p(target | x), at most 1; comprehensiveness = 1 - the same with the top
    share replaced, at least 0.
    """
    top = scores.argsort(descending=True, stable=True)[: max(1, round(share * len(ids)))]
    best = torch.zeros(len(ids), dtype=torch.bool)
    best[top] = True
    dice = torch.Generator().manual_seed(seed)
    others = torch.stack([ask.replacements(ids, dice) for _ in range(samples)])  # (samples, T)
    rows = torch.cat([ids[None], torch.where(best, ids, others), torch.where(best, others, ids)])
    p = ask.probabilities(rows)[:, target]  # (1 + 2 samples,)
    whole = p[0].clamp(min=torch.finfo(p.dtype).tiny)
    kept, hidden = p[1 : 1 + samples].mean() / whole, p[1 + samples :].mean() / whole
    return Faithfulness(float(kept.clamp(max=1)), float((1 - hidden).clamp(min=0)), len(rows))


def ranks(scores: Tensor) -> Tensor:
    """Each score's rank as a share in (0, 1), ties sharing theirs: (T,)."""
    below = (scores[None, :] < scores[:, None]).sum(-1)
    level = (scores[None, :] == scores[:, None]).sum(-1)
    return (below + level / 2) / len(scores)


def hellinger(p: Tensor, q: Tensor) -> Tensor:
    """Distance of distributions (..., V), in [0, 1]."""
    return (p.sqrt() - q.sqrt()).norm(dim=-1) / 2**0.5
