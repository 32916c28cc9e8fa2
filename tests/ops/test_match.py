"""Orthogonal matching pursuit against the slow formula."""

import numpy as np
import pytest
import torch

from tokenmill.ops import match
from tokenmill.ops.match import combine, orthogonal_matching_pursuit


def random(count, size, seed, dtype=torch.float64):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def slow(target, atoms, count):
    residual, chosen, coefficients = target, [], None
    for _ in range(count):
        correlation = np.abs(atoms @ residual)
        correlation[chosen] = -1
        chosen.append(int(correlation.argmax()))
        coefficients = np.linalg.lstsq(atoms[chosen].T, target, rcond=None)[0]
        residual = target - coefficients @ atoms[chosen]
    return chosen, coefficients


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("count", [1, 4, 11])
def test_equals_the_slow_formula(dtype, close, count, monkeypatch):
    monkeypatch.setattr(match, "ROWS", 7)  # several chunks
    targets, atoms = random(20, 12, 0, dtype), random(40, 12, 1, dtype)
    indices, coefficients = orthogonal_matching_pursuit(targets, atoms, count)
    for n in range(20):
        chosen, expected = slow(targets[n].double().numpy(), atoms.double().numpy(), count)
        assert indices[n].tolist() == chosen
        assert np.allclose(coefficients[n].numpy(), expected, atol=close * np.abs(expected).max())


def test_residuals_are_orthogonal_to_what_was_chosen():
    targets, atoms = random(9, 12, 0), random(40, 12, 1)
    indices, coefficients = orthogonal_matching_pursuit(targets, atoms, 5)
    missed = targets - combine(atoms, indices, coefficients)
    assert torch.einsum("ne,nae->na", missed, atoms[indices]).abs().max() < 1e-10


def test_more_atoms_than_needed_or_there_are():
    targets, atoms = random(5, 6, 0), random(9, 6, 1)
    indices, coefficients = orthogonal_matching_pursuit(targets, atoms, 50)
    assert indices.shape == (5, 9)
    assert torch.allclose(combine(atoms, indices, coefficients), targets, atol=1e-9)
    assert coefficients[:, 6:].abs().max() < 1e-6  # six span the space; the rest adds nothing


def test_copies_and_zeros_among_the_atoms():
    atoms = torch.cat([random(4, 6, 0), random(4, 6, 0), torch.zeros(3, 6, dtype=torch.float64)])
    _, coefficients = orthogonal_matching_pursuit(random(2, 6, 5), atoms, 11)
    assert torch.isfinite(coefficients).all()
    assert int((coefficients.abs() > 1e-9).sum()) <= 2 * 4


def test_combine_is_a_weighted_sum():
    rows, indices = random(9, 6, 0), torch.tensor([[0, 3], [8, 8]])  # an anchor named twice counts twice
    made = combine(rows, indices, torch.tensor([[2.0, -1.0], [0.5, 0.25]], dtype=torch.float64))
    assert torch.allclose(made, torch.stack([2 * rows[0] - rows[3], 0.75 * rows[8]]))
