"""Every form method that writes new rows, over the catalogue."""

import pytest
import torch

from tokenmill import catalog
from tokenmill.errors import TokenmillError
from tokenmill.method import get, parse
from tokenmill.ops.match import combine

METHODS = catalog.methods("form")


def rows(count, size, seed, dtype=torch.float32):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("new", [1, 2, 7])
@pytest.mark.parametrize("shared", [1, 2, 40])
def test_sums_of_shared_rows(name, new, shared):
    d, s = rows(new, 12, 0), rows(shared, 12, 1)
    before = d.clone(), s.clone()
    made = get(name)(d, s)
    assert made.anchors.shape == made.coefficients.shape
    assert made.anchors.shape[0] == new
    assert made.anchors.min() >= 0
    assert made.anchors.max() < shared
    assert torch.isfinite(made.coefficients).all()
    assert all(len(set(row.tolist())) == len(row) for row in made.anchors)
    assert torch.equal(d, before[0])
    assert torch.equal(s, before[1])


@pytest.mark.parametrize("name", METHODS)
def test_a_row_does_not_depend_on_the_others(name):
    d, s = rows(6, 12, 0), rows(30, 12, 1)
    together, alone = get(name)(d, s), get(name)(d[4:5], s)
    assert torch.equal(together.anchors[4:5], alone.anchors)
    assert torch.allclose(together.coefficients[4:5], alone.coefficients, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_the_same_every_time(name):
    d, s = rows(3, 12, 0), rows(30, 12, 1)
    one, other = get(name)(d, s), get(name)(d, s)
    assert torch.equal(one.anchors, other.anchors)
    assert torch.equal(one.coefficients, other.coefficients)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(name, dtype):
    made = get(name)(rows(3, 12, 0, dtype), rows(30, 12, 1, dtype))
    assert torch.isfinite(made.coefficients).all()


@pytest.mark.parametrize("name", METHODS)
def test_odd_rows(name):
    d, s = rows(3, 12, 0), rows(30, 12, 1)
    d[0], s[5], s[7] = 0, 0, s[8]
    assert torch.isfinite(get(name)(d, s).coefficients).all()


@pytest.mark.parametrize("name", METHODS)
def test_spec(name):
    assert parse(repr(get(name))) == get(name)


def test_omp_spec_and_range():
    m = get("omp_transplant")(anchors=3)
    assert parse(repr(m)) == m
    assert m(rows(2, 12, 0), rows(9, 12, 1)).anchors.shape == (2, 3)
    with pytest.raises(TokenmillError, match="anchors"):
        m(anchors=0)


def test_omp_is_closer_than_its_rivals():
    d, s = rows(8, 12, 0), rows(40, 12, 1)

    def missed(name, **knobs):
        made = get(name)(**knobs)(d, s)
        return (d - combine(s, made.anchors, made.coefficients)).norm()

    assert missed("omp_transplant", anchors=6) < missed("knn_transplant", anchors=6) < 2 * missed("mean_transplant")
    assert missed("omp_transplant", anchors=6) < missed("omp_transplant", anchors=3)


def test_mean_and_knn_are_averages():
    d, s = rows(4, 12, 0), rows(20, 12, 1)
    mean = get("mean_transplant")(d, s)
    assert torch.allclose(combine(s, mean.anchors, mean.coefficients), s.mean(0).expand(4, -1), atol=1e-6)
    near = get("knn_transplant")(anchors=5, temperature=0.0)(s[:4] * 3, s)
    assert near.anchors[:, 0].tolist() == [0, 1, 2, 3]  # itself is the most like it, whatever its length
    assert torch.allclose(near.coefficients.sum(-1), torch.ones(4))
    assert torch.allclose(near.coefficients[:, 0], torch.ones(4))
