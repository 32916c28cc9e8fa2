"""Exact counts and ties: what a budget being met rests on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.traces import trace
from tokenmill.method import get
from tokenmill.ops.budget import asked, certain, recent, target
from tokenmill.ops.select import newest, protect, top_share
from tokenmill.ops.windows import max_pool

NUMBERS = st.sampled_from([-torch.inf, -1.0, 0.0, 0.5, 2.0, torch.inf])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(NUMBERS, st.booleans()), min_size=1, max_size=12), st.integers(0, 14))
def test_top_share_is_sorting(slots, count):
    """Against a sort by (score, age), with many ties, infinities and empty slots."""
    scores, filled = (torch.tensor([[x]]) for x in zip(*slots, strict=True))
    mask = top_share(scores, filled, torch.tensor([count]))[0, 0].tolist()
    best = sorted((t for t, (_, f) in enumerate(slots) if f), key=lambda t: (slots[t][0], t), reverse=True)[:count]
    assert [t for t, m in enumerate(mask) if m] == sorted(best)


def test_top_share_counts_by_row_or_by_head():
    scores, filled = torch.rand(2, 3, 10), torch.ones(2, 3, 10, dtype=torch.bool)
    assert top_share(scores, filled, torch.tensor([2, 5])).sum(-1).tolist() == [[2] * 3, [5] * 3]
    by_head = torch.tensor([[1, 2, 3], [0, 10, 99]])
    assert top_share(scores, filled, by_head).sum(-1).tolist() == [[1, 2, 3], [0, 10, 10]]


def test_top_share_of_nothing():
    assert top_share(torch.zeros(1, 2, 0), torch.zeros(1, 2, 0, dtype=torch.bool), torch.tensor([3])).shape == (1, 2, 0)


def test_newest_and_protect():
    seen = trace((6, 4), held=((6, 3), (4, 2)))
    assert newest(seen.filled, 2).sum(-1).tolist() == [[2, 2], [2, 2]]
    scores = torch.zeros(seen.positions.shape)
    safe = protect(scores, seen, window=torch.tensor([1, 2]), sinks=2).isinf()
    for b, window in enumerate((1, 2)):
        for k in range(2):
            held = [p for p in seen.positions[b, k].tolist() if p >= 0]
            want = [p in held[-window:] or p < 2 for p in held]
            assert safe[b, k].tolist() == want + [False] * (6 - len(held))
    assert (scores == 0).all()


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, 9])
def test_max_pool(kernel):
    x = torch.rand(2, 3, 7)
    pooled = max_pool(x, kernel)
    for t in range(7):
        around = x[..., max(0, t - kernel // 2) : t + (kernel - 1) // 2 + 1]
        assert torch.equal(pooled[..., t], around.amax(-1))


@pytest.mark.parametrize("n", range(1, 60))
@pytest.mark.parametrize("percent", [1, 10, 29, 30, 57, 58, 100])
def test_a_share_is_counted_in_whole_numbers(n, percent):
    seen = trace((n,), kv=1, groups=1, queries=1)
    want = max(1, n * percent // 100)
    assert target(seen, percent / 100, None).tolist() == [want]


def test_evicted_tokens_count_as_seen():
    seen = trace((20,), held=((6, 4),), kv=2, groups=1, queries=1)
    assert asked(seen.seen, 0.5, None).tolist() == [10]
    assert target(seen, 0.5, None).tolist() == [6]
    assert target(seen, 0.2, None).tolist() == [4]
    assert target(seen, None, 5).tolist() == [5]
    assert target(seen, None, 50).tolist() == [6]


def test_recent_and_certain():
    counts = torch.tensor([1, 10, 11])
    assert recent(get("h2o"), counts).tolist() == [0, 5, 5]
    assert recent(get("h2o")(recent=0.1), counts).tolist() == [0, 1, 1]
    assert recent(get("knorm"), counts).tolist() == [0, 0, 0]
    scores = torch.tensor([[[torch.inf, 1, torch.inf], [0, 1, 2]]])
    assert certain(scores, torch.tensor([1])).tolist() == [[1, 0]]
    assert certain(scores, torch.tensor([9])).tolist() == [[2, 0]]


def test_scores_that_are_no_numbers_come_last_and_the_count_is_met():
    scores = torch.tensor([[[float("nan"), 1.0, float("nan"), torch.inf, float("nan")]]])
    filled = torch.tensor([[[True, True, True, True, False]]])
    assert top_share(scores, filled, torch.tensor([2])).tolist() == [[[False, True, False, True, False]]]
    assert top_share(scores, filled, torch.tensor([3])).tolist() == [[[False, True, True, True, False]]]
