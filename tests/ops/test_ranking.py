"""How well a number tells two kinds apart, against a table of all pairs."""

import torch

from tokenmill.ops.ranking import auc


def test_auc_is_the_share_of_pairs_in_order():
    draw = torch.Generator().manual_seed(0)
    for levels in (3, 1000):
        score = torch.randint(levels, (200,), generator=draw).float()
        positive = torch.rand(200, generator=draw) < 0.3
        one, other = score[positive], score[~positive]
        pairs = (one[:, None] > other).double() + 0.5 * (one[:, None] == other).double()
        assert abs(auc(score, positive) - float(pairs.mean())) < 1e-12
    assert auc(score, score > -1) == auc(score, score < -1) == 0.5
