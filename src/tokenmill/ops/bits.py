"""Numbers in few bits: rounding to a grid, and packing the grid's codes so that memory is really freed."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["WIDTHS", "dequantize", "pack", "quantize", "unpack"]

WIDTHS = (1, 2, 4, 8)


def quantize(x: Tensor, bits: int, dim: int = -1) -> tuple[Tensor, Tensor, Tensor]:
    """Round to 2**bits evenly spaced levels between the least and the greatest value along `dim`.

    dim=-1 gives every token its own scale and minimum, dim=-2 every channel. Returns codes (uint8, the shape of
    x), scale and minimum (x's dtype, size 1 along `dim`), with |x - dequantize(...)| <= scale / 2.
    """
    _check(bits)
    levels = 2**bits - 1
    if x.shape[dim] == 0:
        nothing = x.new_zeros([1 if n == dim % x.ndim else size for n, size in enumerate(x.shape)])
        return x.to(torch.uint8), nothing, nothing
    least, most = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
    # One rounding step wider than exact: a half-precision scale that was rounded down would clip the top level.
    scale = (most.float() - least.float()) / levels * (1 + torch.finfo(x.dtype).eps)
    scale = scale.to(x.dtype)
    steps = (x.float() - least.float()) / scale.float().where(scale > 0, 1.0)  # scale 0: all values are one
    return steps.round().clamp(0, levels).to(torch.uint8), scale, least


def dequantize(codes: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    """The numbers that codes stand for, in the dtype of `minimum`."""
    return (codes.float() * scale.float() + minimum.float()).to(minimum.dtype)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (..., D) of `bits` each, side by side in bytes: (..., ceil(D * bits / 8)) uint8."""
    _check(bits)
    each = 8 // bits  # codes in a byte
    size = codes.shape[-1]
    if size % each:
        codes = torch.nn.functional.pad(codes, (0, each - size % each))
    packed = codes[..., 0::each].clone()
    for n in range(1, each):
        packed |= codes[..., n::each] << (n * bits)
    return packed


def unpack(packed: Tensor, bits: int, size: int) -> Tensor:
    """The `size` codes that `pack` put away: (..., size) uint8."""
    _check(bits)
    if bits == 8:
        return packed[..., :size]
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(-1) >> shifts) & (2**bits - 1)).flatten(-2)[..., :size]


def _check(bits: int) -> None:
    if bits not in WIDTHS:
        raise ValueError(f"{bits} bits cannot be packed; there is {', '.join(map(str, WIDTHS))}")
