"""Directions: a vector without its length, the angle between two, and the way from one to the other."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["angle", "slerp", "unit"]

_FLAT = 1e-6  # below this sine two directions are parallel or opposite, and no arc between them is the shortest


def unit(x: Tensor) -> Tensor:
    """Vectors (..., D) of length 1; a zero vector stays zero."""
    length = x.norm(dim=-1, keepdim=True)
    return x / length.where(length > 0, 1.0)


def angle(a: Tensor, b: Tensor) -> Tensor:
    """Angle in [0, pi] between unit vectors (..., D), exact for small angles too, where arccos is not. (...)"""
    return 2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """The unit vector a share `t` of the way from unit vector a to unit vector b, along the sphere. (..., D)"""
    turn = angle(a, b)[..., None]
    flat = turn.sin() < _FLAT
    sine = turn.sin().where(~flat, 1.0)
    one = torch.where(flat, 1 - t, ((1 - t) * turn).sin() / sine)
    other = torch.where(flat, t, (t * turn).sin() / sine)
    between = one * a + other * b
    lost = between.norm(dim=-1, keepdim=True) < _FLAT  # halfway between opposites
    return unit(torch.where(lost, a, between))
