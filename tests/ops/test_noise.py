"""Noise belongs to a token: the same wherever the token stands, different for anything else."""

import math

import torch

from contract.traces import row, trace, with_empty_slots
from tokenmill.ops.noise import gumbel, uniform


def by_token(values, seen):
    return {
        (k, p): v
        for k in range(values.shape[1])
        for p, v in zip(seen.positions[0, k].tolist(), values[0, k].tolist(), strict=True)
        if p >= 0
    }


def test_a_token_keeps_its_number():
    """In a batch, alone, beside empty slots, after eviction: by position, not by slot."""
    batch = trace((24, 17), queries=1)
    evicted = trace((17,), held=((9, 4),), queries=1)
    whole = by_token(uniform(row(batch, 1), 3), row(batch, 1))
    for other in (with_empty_slots(row(batch, 1), 4), evicted):
        for token, value in by_token(uniform(other, 3), other).items():
            assert whole[token] == value
    assert torch.equal(uniform(batch, 3)[1, :, :17], uniform(row(batch, 1), 3)[0])


def test_gumbel_is_drawn_by_each_query():
    seen = trace((24, 17))
    noise = gumbel(seen, 0)
    assert noise.shape == (2, 2, 24, 24)
    later = trace((24, 17), queries=5)
    assert torch.equal(gumbel(later, 0)[0], noise[0, :, -5:])
    assert (noise[0, :, 0] != noise[0, :, 1]).all()
    assert not torch.equal(noise, gumbel(seen, 1))


def test_distributions():
    seen = trace((200,), kv=2, groups=1)
    u, g = uniform(seen, 0), gumbel(seen, 0)
    assert 0 < u.min() < u.max() < 1
    assert g.isfinite().all()
    assert abs(float(g.mean()) - 0.5772) < 0.02
    assert abs(float(g.var()) - math.pi**2 / 6) < 0.05
    # neither neighbours in a row of keys nor neighbouring queries go together
    for step in (g[..., 1:, :] - g[..., :-1, :], g[..., 1:] - g[..., :-1]):
        assert abs(float(step.var()) / (2 * math.pi**2 / 6) - 1) < 0.05


def test_global_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    gumbel(trace((8,)), 1)
    assert torch.equal(before, torch.get_rng_state())
