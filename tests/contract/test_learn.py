"""Every learn method, over the catalogue."""

import pytest
import torch

from tokenmill import catalog
from tokenmill.errors import TokenmillError
from tokenmill.method import get, parse

METHODS = catalog.methods("learn")
SHARED = [name for name in METHODS if "share" in get(name).defaults]


def losses(rows, length, seed=0, holes=True):
    made = torch.rand(rows, length, generator=torch.Generator().manual_seed(seed)) * 5
    if holes:
        made[:, 0] = torch.nan
    return made


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 2), (3, 11)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_for_losses_and_none_for_padding(name, rows, length, dtype):
    own, other = losses(rows, length).to(dtype), losses(rows, length, 1).to(dtype)
    before = own.clone()
    w = get(name)(own, other).values
    assert w.shape == own.shape
    assert torch.isfinite(w).all()
    assert (w >= 0).all()
    assert (w[own.isnan()] == 0).all()
    assert torch.equal(own.nan_to_num(-1), before.nan_to_num(-1))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("hole", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_teaches_nothing(name, hole):
    own, other = losses(2, 8, holes=False), losses(2, 8, 1, holes=False)
    own[1, 4:] = hole
    w = get(name)(own, other).values
    assert (w[1, 4:] == 0).all()
    assert w.sum() > 0


@pytest.mark.parametrize("name", METHODS)
def test_nothing_but_padding(name):
    none = torch.full((2, 3), torch.nan)
    assert get(name)(none, none).values.sum() == 0


@pytest.mark.parametrize("name", METHODS)
def test_the_same_every_time_and_no_global_state(name):
    state = torch.get_rng_state()
    one, other = (get(name)(losses(2, 8), losses(2, 8, 1)).values for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", SHARED)
def test_exactly_the_share_and_a_larger_one_adds(name):
    own, other = losses(4, 26), losses(4, 26, 1)  # 100 with a loss
    kept = torch.zeros(4, 26, dtype=torch.bool)
    for share, count in ((0.001, 1), (0.29, 29), (0.6, 60), (1.0, 100)):
        w = get(name)(share=share)(own, other).values
        assert int(w.sum()) == count
        assert set(w.unique().tolist()) <= {0.0, 1.0}
        assert w[kept].all()
        kept = w > 0
    assert torch.equal(kept, torch.isfinite(own))


@pytest.mark.parametrize("name", METHODS)
def test_spec(name):
    assert parse(repr(get(name))) == get(name)


def test_rho1_takes_the_largest_excess_of_the_whole_batch():
    own = torch.tensor([[torch.nan, 3.0, 5.0, 1.0], [torch.nan, 9.0, 2.0, 0.5]])
    other = torch.tensor([[torch.nan, 1.0, 5.0, 2.0], [torch.nan, 8.5, 1.5, -4.0]])
    # excess:                         2.0, 0.0, -1.0                0.5, 0.5,  4.5
    w = get("rho1")(share=0.5)(own, other).values
    assert w.tolist() == [[0, 1, 0, 0], [0, 1, 0, 1]]


def test_rho1_needs_a_reference():
    with pytest.raises(TokenmillError, match="reference"):
        get("rho1")(losses(1, 4), None)


def test_random_share_draws_by_seed():
    one, other = (get("random_share")(share=0.3, seed=s)(losses(4, 26), None).values for s in (0, 1))
    assert not torch.equal(one, other)
