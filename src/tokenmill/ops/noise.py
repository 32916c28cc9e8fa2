"""Noise that belongs to a token: a hash of seed, layer, head and position, whatever batch and padding."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.types import Trace


def uniform(trace: Trace, seed: int) -> Tensor:
    """One number in (0, 1) a slot: (B, K, T) float32."""
    return _unit(_slots(trace, seed))


def gumbel(trace: Trace, seed: int) -> Tensor:
    """Standard Gumbel noise, drawn anew by each query for each slot: (B, K, Q, T) float32."""
    slots = _slots(trace, seed)[:, :, None]  # (B, K, 1, T)
    each = _unit(_mix(slots + _signed(0x9E3779B1) * trace.query_positions.int()[:, None, :, None]))
    return each.log_().neg_().log_().neg_()


def at(rows: Tensor, positions: Tensor, seed: int) -> Tensor:
    """One number in (0, 1) a row and position, for noise that belongs to no layer: their broadcast shape, float32."""
    rows = rows.int()
    return _unit(_mix(_mix(_mix(torch.full_like(rows, _signed(seed & 0xFFFFFFFF))) + rows) + positions.int()))


def _slots(trace: Trace, seed: int) -> Tensor:
    """32 random bits a slot. (B, K, T) int32"""
    heads = torch.arange(trace.keys.shape[1], dtype=torch.int32, device=trace.keys.device)  # (K,)
    pass_ = torch.full_like(heads, _signed(seed & 0xFFFFFFFF))
    heads = _mix(_mix(_mix(pass_) + trace.layer) + heads)
    return _mix(heads[:, None] + trace.positions.int())


def _unit(bits: Tensor) -> Tensor:
    """The upper 23 of 32 bits, and a half, so that float32 never rounds to 0 or 1."""
    return ((bits >> 9) & 0x7FFFFF).float().add_(0.5).mul_(2.0**-23)


def _mix(x: Tensor) -> Tensor:
    """The 32-bit finaliser of MurmurHash3 (public domain); the constant added keeps 0 from staying 0."""
    x = x + _signed(0x9E3779B9)
    x ^= (x >> 16) & 0xFFFF  # the shift carries the sign in; the mask takes it out again
    x *= _signed(0x85EBCA6B)
    x ^= (x >> 13) & 0x7FFFF
    x *= _signed(0xC2B2AE35)
    x ^= (x >> 16) & 0xFFFF
    return x


def _signed(bits: int) -> int:
    return bits - (1 << 32) if bits >= 1 << 31 else bits
