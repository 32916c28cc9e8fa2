import math

import pytest
import torch

from tokenmill.ops.sphere import angle, slerp, unit


def _pair(seed=0, n=7):
    return unit(torch.randn(2, n, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def test_units_have_length_one_and_zero_stays():
    assert torch.allclose(unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]])), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_angle_is_arccos_and_exact_where_arccos_is_not():
    a, b = _pair()
    assert torch.allclose(angle(a, b), (a * b).sum(-1).arccos())
    close = unit(torch.tensor([1.0, 1e-4]))
    assert float(angle(torch.tensor([1.0, 0.0]), close)) == pytest.approx(1e-4, rel=1e-4)
    assert float(angle(torch.zeros(2), torch.zeros(2))) == 0


@pytest.mark.parametrize("t", [0.0, 0.25, 0.6, 1.0])
def test_slerp_turns_a_share_of_the_way_in_the_plane_of_both(t):
    a, b = _pair()
    e = slerp(a, b, t)
    assert torch.allclose(e.norm(dim=-1), torch.ones(7, dtype=torch.float64))
    assert torch.allclose(angle(a, e), t * angle(a, b))
    assert torch.allclose(angle(e, b), (1 - t) * angle(a, b))


def test_slerp_of_parallel_opposite_and_zero_vectors():
    x, zero = torch.tensor([0.6, 0.8]), torch.zeros(2)
    assert torch.allclose(slerp(x, x, 0.6), x)
    for t in (0.3, 0.5, 0.6):
        assert float(slerp(x, -x, t).norm()) == pytest.approx(1)
    assert torch.allclose(slerp(x, zero, 0.6), x)
    assert torch.allclose(slerp(zero, x, 0.6), x)
    assert torch.equal(slerp(zero, zero, 0.6), zero)
    assert float(angle(x, -x)) == pytest.approx(math.pi)
