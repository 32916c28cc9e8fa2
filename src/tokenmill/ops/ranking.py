"""How well a number tells two kinds of things apart."""

from __future__ import annotations

from torch import Tensor


def auc(score: Tensor, positive: Tensor) -> float:
    """Mann-Whitney: P(score (N,) of a positive is higher than of another), ties half; 0.5 if there is one kind only."""
    one, other = score[positive], score[~positive]
    if not len(one) or not len(other):
        return 0.5
    # Through ranks: a table of all pairs would not fit for a long text.
    _, where, counts = score.unique(return_inverse=True, return_counts=True)
    ranks = counts.cumsum(0).double() - (counts.double() - 1) / 2
    total = float(ranks[where][positive].sum())
    return (total - len(one) * (len(one) + 1) / 2) / (len(one) * len(other))
