"""Noise that belongs to a token: a hash of seed, layer, head and position, so batch, padding and order do not matter."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.types import Trace

_MASK = 0xFFFFFFFF


def uniform(trace: Trace, seed: int) -> Tensor:
    """One number in (0, 1) a slot: (B, K, T) float32."""
    head = torch.arange(trace.keys.shape[1], device=trace.keys.device)[:, None]  # (K, 1)
    mixed = _mix(_mix(torch.full_like(head, seed & _MASK) + trace.layer) + head)
    return _open_interval(_mix(_mix(mixed + trace.positions)))  # (B, K, T)


def at(rows: Tensor, positions: Tensor, seed: int) -> Tensor:
    """One number in (0, 1) a row and position, for noise that belongs to no layer: their broadcast shape, float32."""
    return _open_interval(_mix(_mix(_mix(torch.full_like(rows, seed & _MASK)) + rows) + positions))


def gumbel(trace: Trace, seed: int) -> Tensor:
    """Standard Gumbel noise, one number a slot: (B, K, T) float32."""
    return -torch.log(-torch.log(uniform(trace, seed)))


def _open_interval(bits: Tensor) -> Tensor:
    return ((bits >> 9).double().add(0.5) / 2**23).float()  # 23 bits and a half: neither 0 nor 1 in float32


def _mix(x: Tensor) -> Tensor:
    """The 32-bit finaliser of MurmurHash3 (public domain), with a constant added so that 0 does not stay 0."""
    x = (x + 0x9E3779B9) & _MASK
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _MASK
    return x ^ (x >> 16)
