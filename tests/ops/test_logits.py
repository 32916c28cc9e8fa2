"""Reading rows of logits: the fast ways give what the plain ones do."""

import math

import pytest
import torch

from tokenmill.ops.logits import BLOCK, finite, largest, top, top_chances

compiled = pytest.importorskip("tokenmill.ops.compiled", reason="numba is not installed")
SIZES = [1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 2, 1000, 49152]


def _logits(size, rows=3, dtype=torch.float32):
    """All numbers of a row differ, so that the order has one answer."""
    g = torch.Generator().manual_seed(size)
    return torch.stack([torch.randperm(size, generator=g) for _ in range(rows)]).to(dtype) / max(1, size // 30)


def _compiled(logits, width):
    width = min(width, logits.shape[-1])
    tokens, chances = torch.empty(len(logits), width, dtype=torch.long), torch.empty(len(logits), width)
    compiled.top_chances(logits.numpy(), tokens.numpy(), chances.numpy())
    return tokens, chances


def _uncompiled(logits, width):
    tokens = top(logits, min(width, logits.shape[-1]))
    return tokens, logits.softmax(-1).gather(-1, tokens)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("width", [1, 6])
@pytest.mark.parametrize("way", [_compiled, _uncompiled, top_chances])
def test_the_likeliest_tokens_and_their_probabilities(size, width, way):
    logits = _logits(size)
    wanted = logits.double().softmax(-1).topk(min(width, size))
    tokens, chances = way(logits, width)
    assert torch.equal(tokens, wanted.indices)
    torch.testing.assert_close(chances.double(), wanted.values, rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    logits = _logits(200, dtype=dtype)
    tokens, chances = top_chances(logits, 4)
    assert torch.equal(logits.gather(-1, tokens), logits.topk(4).values)
    torch.testing.assert_close(chances, logits.float().softmax(-1).gather(-1, tokens))
    assert torch.equal(largest(logits)[0], logits.amax(-1))


def test_compiled_equal_logits_come_in_the_order_of_their_tokens():
    logits = torch.randint(-2, 3, (20, 3 * BLOCK + 7), generator=torch.Generator().manual_seed(0)).float()
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    assert torch.equal(_compiled(logits, 9)[0], order[:, :9])


@pytest.mark.parametrize("way", [_compiled, _uncompiled])
def test_tokens_that_cannot_come_have_no_chance(way):
    logits = torch.full((2, 3 * BLOCK), -torch.inf)
    logits[:, 100] = 3.0
    tokens, chances = way(logits, 4)
    assert tokens[:, 0].tolist() == [100, 100]
    assert all(len({*row}) == 4 for row in tokens.tolist())
    torch.testing.assert_close(chances, torch.tensor([[1.0, 0, 0, 0]]).expand(2, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_is_the_first_of_equal_ones_and_nan_if_one_is(dtype):
    logits = torch.tensor([[1, 4, 4, 2], [-3, -5, -3, -3], [1, math.nan, 9, 2]], dtype=dtype)
    values, places = largest(logits)
    assert places.tolist() == [1, 0, 1]
    assert values[:2].tolist() == [4, -3]
    assert math.isnan(values[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_finite(dtype):
    assert finite(torch.full((2, 9), torch.finfo(dtype).max, dtype=dtype))
    for broken in (math.inf, -math.inf, math.nan):
        for place in (0, 1):
            logits = torch.ones(2, 40, dtype=dtype)
            logits[place, 17] = broken
            assert not finite(logits)
