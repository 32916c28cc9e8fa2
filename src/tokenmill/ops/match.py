"""Write rows as sums over a few other rows."""

from __future__ import annotations

import torch
from torch import Tensor

# Rows matched at a time: a (ROWS, S) table of correlations is held, S being the atoms to choose from.
ROWS = 512


def orthogonal_matching_pursuit(targets: Tensor, atoms: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Approximate each target (N, E) by `count` of the atoms (S, E): indices and coefficients, both (N, A).

    Greedy: the atom with the largest |<residual, atom>| joins, all coefficients are fitted anew by least squares.
    A = min(count, S). An atom that adds nothing to those already chosen gets coefficient 0.
    """
    work = targets.dtype if targets.dtype == torch.float64 else torch.float32
    atoms = atoms.to(work)
    chunks = [_pursue(rows, atoms, min(count, len(atoms))) for rows in targets.to(work).split(ROWS)]
    indices, coefficients = zip(*chunks, strict=True)
    return torch.cat(indices), torch.cat(coefficients)


def combine(rows: Tensor, indices: Tensor, coefficients: Tensor) -> Tensor:
    """coefficients (N, A) @ rows[indices (N, A)] for rows (S, E): (N, E), without gathering N x A rows."""
    parts = []
    for where, weight in zip(indices.split(ROWS), coefficients.split(ROWS), strict=True):
        table = rows.new_zeros(len(where), len(rows)).scatter_add_(1, where, weight.to(rows))  # (n, S)
        parts.append(table @ rows)
    return torch.cat(parts)


def _pursue(targets: Tensor, atoms: Tensor, count: int) -> tuple[Tensor, Tensor]:
    n, size = targets.shape
    chosen = torch.zeros(n, count, dtype=torch.long, device=targets.device)
    taken = torch.zeros(n, len(atoms), dtype=torch.bool, device=targets.device)
    basis = targets.new_zeros(n, count, size)  # orthonormal; chosen atoms = triangle.T @ basis
    triangle = torch.eye(count, dtype=targets.dtype, device=targets.device).repeat(n, 1, 1)
    residual = targets
    tiny = torch.finfo(targets.dtype).eps * max(size, 1)
    for step in range(count):
        correlation = (residual @ atoms.T).abs().masked_fill(taken, -1)  # (n, S)
        new = correlation.argmax(-1)
        chosen[:, step] = new
        taken.scatter_(1, new[:, None], True)
        atom = atoms[new]  # (n, E)
        direction = atom
        for _ in range(2):  # the second pass removes what rounding left of the first
            along = torch.einsum("nae,ne->na", basis[:, :step], direction)
            triangle[:, :step, step] += along
            direction = direction - torch.einsum("nae,na->ne", basis[:, :step], along)
        length = direction.norm(dim=-1)
        adds = length > tiny * atom.norm(dim=-1)
        basis[:, step] = torch.where(adds[:, None], direction / length.clamp_min(1e-30)[:, None], 0)
        triangle[:, step, step] = torch.where(adds, length, 1)
        residual = residual - torch.einsum("ne,ne->n", basis[:, step], residual)[:, None] * basis[:, step]
    heights = torch.einsum("nae,ne->na", basis, targets)
    coefficients = torch.linalg.solve_triangular(triangle, heights[..., None], upper=True)[..., 0]
    return chosen, coefficients
