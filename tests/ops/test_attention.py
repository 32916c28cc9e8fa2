"""attention, received and across_heads against the library's own softmax attention and against sums."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from contract.traces import SHAPES, trace
from tokenmill.ops import attention as ops
from tokenmill.ops.attention import across_heads, attention, received


def test_is_the_attention_the_model_computes():
    seen = trace((24,), kv=2, groups=3)
    mixed = attention(seen) @ seen.values.repeat_interleave(3, 1)
    want = F.scaled_dot_product_attention(
        seen.queries, seen.keys, seen.values, is_causal=True, scale=seen.scale, enable_gqa=True
    )
    assert torch.allclose(mixed, want, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_sum_to_one_or_are_nothing(shape):
    seen = SHAPES[shape]()
    a = attention(seen)
    sees = ops.seen_by(seen).any(-1).repeat_interleave(seen.groups, 1)
    assert torch.allclose(a.sum(-1), sees.double())
    assert (a[seen.query_positions[:, None].expand(a.shape[:3]) < 0] == 0).all()
    empty = (~seen.filled).repeat_interleave(seen.groups, 1)[:, :, None].expand_as(a)
    assert (a[empty] == 0).all()


def test_sliding_window_counts_the_query_itself():
    seen = trace((24,), window=8)
    visible = (attention(seen)[0, 0] > 0).sum(-1)
    assert visible.tolist() == [min(i + 1, 8) for i in range(24)]


def test_last_counts_the_newest_queries_of_each_row():
    seen = trace((24, 17))
    flipped = replace(seen, queries=seen.queries.flip(2), query_positions=seen.query_positions.flip(1))
    for shown in (seen, flipped):  # wherever the padding is
        counted = attention(shown, last=3).sum(-1)[:, 0] > 0
        at = [sorted(p[c].tolist()) for p, c in zip(shown.query_positions, counted, strict=True)]
        assert at == [[21, 22, 23], [14, 15, 16]]


def test_temperature_and_noise():
    seen = trace((24, 17))
    hot = attention(seen, temperature=1e9)
    sees = ops.seen_by(seen).repeat_interleave(3, 1).double()
    assert torch.allclose(hot, sees / sees.sum(-1, keepdim=True).clamp(min=1), atol=1e-6)
    noise = torch.zeros(2, 2, 1, 24, dtype=torch.float64)
    noise[:, 0, :, 5] = 1e3
    chosen = attention(seen, noise=noise)
    assert torch.allclose(chosen[:, :3, -1, 5], torch.ones(2, 3, dtype=torch.float64))
    assert torch.equal(chosen[:, 3:], attention(seen)[:, 3:])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block", [1, 5, 64])
def test_received_is_the_sum_whatever_the_block(shape, block, monkeypatch):
    seen = SHAPES[shape]()
    whole = ops.by_group(attention(seen).sum(2), seen.keys.shape[1])
    monkeypatch.setattr(ops, "BLOCK", block)
    assert torch.allclose(received(seen), whole, atol=1e-12)


def test_received_holds_no_more_than_a_block(monkeypatch):
    seen, shown = trace((40,)), []
    plain = ops.attention
    monkeypatch.setattr(ops, "BLOCK", 8)
    monkeypatch.setattr(ops, "attention", lambda t, *a: (shown.append(t.queries.shape[2]), plain(t, *a))[1])
    received(seen)
    assert shown == [8] * 5


def test_across_heads_averages_by_position():
    seen = trace((4,), held=((3, 2),), kv=2, groups=1, queries=1)
    x = torch.tensor([[[1.0, 2.0, 4.0], [8.0, 16.0, 99.0]]], dtype=torch.float64)
    x[:, 1, 2] = 0  # empty slot
    got = across_heads(x, seen)
    total = dict.fromkeys(range(4), 0.0)
    for k in range(2):
        for p, value in zip(seen.positions[0, k].tolist(), x[0, k].tolist(), strict=True):
            if p >= 0:
                total[p] += value / 2
    want = [[total[p] if p >= 0 else 0.0 for p in head] for head in seen.positions[0].tolist()]
    assert got[0].tolist() == want


def test_half_precision_sums_in_float32():
    assert attention(trace((24,), dtype=torch.bfloat16)).dtype == torch.float32
    assert attention(trace((24,))).dtype == torch.float64
