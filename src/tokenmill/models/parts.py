"""Tokens stored in another form than they are read in: packed into few bits, or shared by two layers.

A part is frozen: tokens leave it, none enter. New tokens go to the layer's lanes and may become a part later.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokenmill.models.lanes import View, compact
from tokenmill.ops.bits import dequantize, pack, quantize, unpack
from tokenmill.types import Bits, Merge


def _bytes(*tensors: Tensor | None) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


@dataclass(frozen=True)
class Coded:
    """(B, K, T, D) numbers, each token in a width of its own. Tokens of one width lie together, in slot order."""

    bits: Tensor  # (B, K, T) uint8, 0 = empty slot
    codes: dict[int, Tensor]  # width -> (M, bytes), or (M, D) unpacked numbers at width 16
    scale: dict[int, Tensor]  # width -> (M, 1), or (B, K, 1, D) when by channel
    minimum: dict[int, Tensor]
    channels: Tensor | None  # (B, K, 1, D) multiplied back
    by_channel: bool
    dtype: torch.dtype
    size: int  # D

    @staticmethod
    def of(x: Tensor, bits: Tensor, channels: Tensor | None, by_channel: bool) -> Coded:
        codes, scale, minimum = {}, {}, {}
        channels = None if channels is None else channels.to(x.dtype)
        scaled = x if channels is None else x / channels
        for width in sorted({*bits.unique().tolist()} - {0}):
            mine = bits == width  # (B, K, T)
            if width == 16:
                codes[width] = x[mine]
                continue
            if by_channel:
                low = scaled.masked_fill(~mine[..., None], float("inf")).amin(2, keepdim=True)
                high = scaled.masked_fill(~mine[..., None], float("-inf")).amax(2, keepdim=True)
                none = ~mine.any(-1)[..., None, None]
                low, high = low.masked_fill(none, 0), high.masked_fill(none, 0)
                # As ops.bits.quantize does, over the tokens of one width: in half precision a channel far from zero
                # would lose more to the rounding of its minimum than to the codes.
                levels = 2**width - 1
                step = ((high.float() - low.float()) / levels * (1 + torch.finfo(x.dtype).eps)).to(x.dtype)
                scale[width], minimum[width] = step, low
                steps = (scaled.float() - low.float()) / step.float().where(step > 0, 1.0)
                code = steps.round().clamp(0, levels).to(torch.uint8)[mine]
            else:
                code, step, low = quantize(scaled[mine], width)
                scale[width], minimum[width] = step, low
            codes[width] = pack(code, width)
        return Coded(bits.to(torch.uint8), codes, scale, minimum, channels, by_channel, x.dtype, x.shape[-1])

    def read(self) -> Tensor:
        out = torch.zeros(*self.bits.shape, self.size, dtype=self.dtype, device=self.bits.device)
        for width, packed in self.codes.items():
            mine = self.bits == width
            if width == 16:
                continue
            code = unpack(packed, width, self.size)
            scale, low = self.scale[width].to(self.dtype), self.minimum[width].to(self.dtype)
            if self.by_channel:
                lane = mine.nonzero()[:, :2]
                scale, low = scale[lane[:, 0], lane[:, 1], 0], low[lane[:, 0], lane[:, 1], 0]
            out[mine] = dequantize(code, scale, low).to(self.dtype)
        out = out if self.channels is None else out * self.channels
        if 16 in self.codes:
            out[self.bits == 16] = self.codes[16]
        return out

    def keep(self, mask: Tensor) -> Coded:
        def mine(width: int) -> Tensor:
            return mask[self.bits == width]

        return replace(
            self,
            bits=compact(self.bits, mask & (self.bits > 0)),
            codes={w: c[mine(w)] for w, c in self.codes.items()},
            scale=self.scale if self.by_channel else {w: s[mine(w)] for w, s in self.scale.items()},
            minimum=self.minimum if self.by_channel else {w: m[mine(w)] for w, m in self.minimum.items()},
        )

    def select_rows(self, index: Tensor) -> Coded:
        rows = torch.arange(len(self.bits), device=self.bits.device)[:, None, None].expand_as(self.bits)

        def mine(width: int, x: Tensor) -> Tensor:
            row = rows[self.bits == width]
            return torch.cat([x[row == i] for i in index])

        by_row = (lambda w, x: x[index]) if self.by_channel else mine
        return replace(
            self,
            bits=self.bits[index],
            codes={w: mine(w, c) for w, c in self.codes.items()},
            scale={w: by_row(w, s) for w, s in self.scale.items()},
            minimum={w: by_row(w, m) for w, m in self.minimum.items()},
            channels=None if self.channels is None else self.channels[index],
        )

    @property
    def nbytes(self) -> int:
        return _bytes(self.bits, self.channels, *self.codes.values(), *self.scale.values(), *self.minimum.values())


@dataclass(frozen=True)
class Packed:
    """Tokens in few bits."""

    keys: Coded
    values: Coded
    positions: Tensor  # (B, K, T)

    @staticmethod
    def of(view: View, bits: Bits) -> Packed:
        keys, values, positions = view
        filled = positions >= 0
        return Packed(
            Coded.of(keys, torch.where(filled, bits.keys, 0), bits.key_channels, bits.per_channel_keys),
            Coded.of(values, torch.where(filled, bits.values, 0), bits.value_channels, False),
            positions.clone(),
        )

    def view(self) -> View:
        return self.keys.read(), self.values.read(), self.positions

    def keep(self, mask: Tensor) -> Packed:
        mask = mask & (self.positions >= 0)
        return Packed(self.keys.keep(mask), self.values.keep(mask), compact(self.positions, mask, -1))

    def select_rows(self, index: Tensor) -> Packed:
        return Packed(self.keys.select_rows(index), self.values.select_rows(index), self.positions[index])

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes + _bytes(self.positions)


@dataclass(frozen=True)
class Shared:
    """One of the two layers of a merged pair. The directions belong to both and are counted by the lower one."""

    key_direction: Tensor  # (M, D) of the tokens that are not apart
    value_direction: Tensor  # (M, D)
    key_norms: Tensor  # (M, 1) this layer's own
    value_norms: Tensor  # (M, 1)
    keys_apart: Tensor  # (A, D) this layer's own
    values_apart: Tensor  # (A, D)
    apart: Tensor  # (B, K, T) bool
    positions: Tensor  # (B, K, T)
    lower: bool

    @staticmethod
    def pair(lower: View, upper: View, merge: Merge) -> tuple[Shared, Shared]:
        positions = lower[2].clone()
        filled = positions >= 0
        apart, joined = merge.apart & filled, ~merge.apart & filled
        directions = merge.key_direction[joined], merge.value_direction[joined]
        one, other = (
            Shared(
                *directions,
                merge.key_norms[i][joined][:, None],
                merge.value_norms[i][joined][:, None],
                view[0][apart],
                view[1][apart],
                apart,
                positions,
                lower=i == 0,
            )
            for i, view in enumerate((lower, upper))
        )
        return one, other

    def view(self) -> View:
        filled = self.positions >= 0
        joined = ~self.apart & filled
        out = []
        for direction, norms, own in (
            (self.key_direction, self.key_norms, self.keys_apart),
            (self.value_direction, self.value_norms, self.values_apart),
        ):
            whole = own.new_zeros(*filled.shape, own.shape[-1])
            whole[joined] = (direction * norms).to(own.dtype)
            whole[self.apart] = own
            out.append(whole)
        return out[0], out[1], self.positions

    def keep(self, mask: Tensor) -> Shared:
        raise AssertionError("recipes and layers that drop tokens from a merged pair are refused before they run")

    def select_rows(self, index: Tensor) -> Shared:
        rows = torch.arange(len(self.apart), device=self.apart.device)[:, None, None].expand_as(self.apart)
        joined = ~self.apart & (self.positions >= 0)

        def pick(x: Tensor, where: Tensor) -> Tensor:
            row = rows[where]
            return torch.cat([x[row == i] for i in index])

        return Shared(
            pick(self.key_direction, joined),
            pick(self.value_direction, joined),
            pick(self.key_norms, joined),
            pick(self.value_norms, joined),
            pick(self.keys_apart, self.apart),
            pick(self.values_apart, self.apart),
            self.apart[index],
            self.positions[index],
            self.lower,
        )

    def beside(self, lower: Shared) -> Shared:
        """This upper layer's part with the directions of the lower one, after both were copied apart."""
        same = ("key_direction", "value_direction", "apart", "positions")
        return replace(self, **{name: getattr(lower, name) for name in same})

    @property
    def nbytes(self) -> int:
        own = _bytes(self.key_norms, self.value_norms, self.keys_apart, self.values_apart)
        both = _bytes(self.key_direction, self.value_direction, self.apart, self.positions)
        return own + (both if self.lower else 0)


Part = Packed | Shared
