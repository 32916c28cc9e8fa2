"""Storage: every row and head of a layer is a lane with a count of its own, and what a lane drops is freed.

One layer's keys are one flat tensor of slots, cut into lanes. While all lanes have equal room it is also a
(B, K, room, D) tensor, and attention reads it without a copy; when heads keep different counts each lane gets
its own room. Room is at most `SLACK` slots a lane above what was needed when it was made, `2 * SLACK` after
evictions: that is the constant in "bytes held".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SLACK = 32

View = tuple[Tensor, Tensor, Tensor]  # keys (B, K, T, D), values (B, K, T, D), positions (B, K, T), -1 = empty


def compact(x: Tensor, mask: Tensor, fill: float = 0) -> Tensor:
    """Move the slots of x (B, K, T, ...) that mask (B, K, T) keeps to the left; what is left over holds `fill`."""
    counts = mask.sum(-1)
    longest = int(counts.max()) if counts.numel() else 0
    if mask.numel() and int(counts.min()) == longest:
        return x[mask].view(*mask.shape[:2], longest, *x.shape[3:])
    out = x.new_full((*mask.shape[:2], longest, *x.shape[3:]), fill)
    out[torch.arange(longest, device=x.device) < counts[..., None]] = x[mask]
    return out


class Lanes:
    """Keys, values and positions of one layer. Slots of a lane are in the order they were added."""

    def __init__(self) -> None:
        self.keys = self.values = self.positions = torch.empty(0)  # flat: (S, D), (S, D), (S,)
        self.rows = self.heads = 0
        self.room = 0  # slots a lane, while equal for all
        self.rooms: Tensor | None = None  # (B, K) once lanes differ
        self.starts = torch.empty(0, dtype=torch.long)  # (B, K) first slot of each lane
        self.n = 0  # tokens in the longest lane
        self.counts: Tensor | None = None  # (B, K) once lanes differ; None = n everywhere

    # ---- reading ----

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.keys, self.values, self.positions))

    @property
    def even(self) -> bool:
        """Every lane holds the same number of tokens, so nothing needs a mask."""
        return self.counts is None

    @property
    def alike(self) -> bool:
        """Every lane holds as many tokens in as much room."""
        return self.rows > 0 and self.counts is None and self.rooms is None

    @property
    def ragged(self) -> bool:
        """Lanes have rooms of their own."""
        return self.rooms is not None

    def count(self) -> Tensor:
        """Tokens held: (B, K)."""
        if self.counts is not None:
            return self.counts
        return torch.full((self.rows, self.heads), self.n, dtype=torch.long, device=self.keys.device)

    def view(self) -> View:
        """All lanes side by side; no copy while rooms are equal."""
        if self.rooms is None:
            shape = (self.rows, self.heads, self.room)
            return (
                self.keys.view(*shape, -1)[:, :, : self.n],
                self.values.view(*shape, -1)[:, :, : self.n],
                self.positions.view(shape)[:, :, : self.n],
            )
        slot = torch.arange(self.n, device=self.keys.device)
        inside = slot < self.count()[..., None]  # (B, K, T)
        index = (self.starts[..., None] + slot)[inside]
        out = []
        for column, fill in ((self.keys, 0), (self.values, 0), (self.positions, -1)):
            padded = column.new_full((*inside.shape, *column.shape[1:]), fill)
            padded[inside] = column[index]
            out.append(padded)
        return out[0], out[1], out[2]

    def lanes(self) -> list[tuple[int, int, Tensor, Tensor, Tensor]]:
        """(row, head, keys, values, positions) of each lane, without a copy."""
        starts, counts = self.starts.tolist(), self.count().tolist()
        return [
            (b, k, self.keys[s:e], self.values[s:e], self.positions[s:e])
            for b in range(self.rows)
            for k in range(self.heads)
            for s, e in [(starts[b][k], starts[b][k] + counts[b][k])]
        ]

    # ---- writing ----

    def append(self, keys: Tensor, values: Tensor, positions: Tensor, valid: Tensor | None = None) -> None:
        """Add keys, values (B, K, Q, D) at positions (B, Q); where `valid` (B, Q) is False nothing is stored."""
        rows, heads, new = keys.shape[:3]
        if not self.rows:
            self._start(rows, heads, keys, values)
        if valid is None and self.alike:
            self.reserve(new)
            given = (self.keys, keys), (self.values, values), (self.positions, positions[:, None])
            for held, added in given:  # once a layer and token: slicing would cost more than the copy
                self._wide(held).narrow(2, self.n, new).copy_(added)
            self.n += new
            return
        if valid is None:
            valid = torch.ones(rows, new, dtype=torch.bool, device=keys.device)
        counts = self.count()
        after = counts + valid.sum(-1)[:, None]
        if self.rooms is None:
            if self.counts is None:  # lanes may differ from here on: what lies behind a shorter one is told by its -1
                self._wide(self.positions)[:, :, self.n :] = -1
            if int(after.max()) > self.room:
                self._grow(int(after.max()))
        elif bool((after > self.rooms).any()):
            self._relay(after + SLACK, *self._flat(None))
        row, col = valid.nonzero(as_tuple=True)  # (M,) each
        rank = valid.cumsum(-1)[row, col] - 1
        slot = self.starts[row] + counts[row] + rank[:, None]  # (M, K) flat
        self.keys[slot] = keys[row, :, col]
        self.values[slot] = values[row, :, col]
        self.positions[slot] = positions[row, col].to(self.positions.dtype)[:, None].expand_as(slot)
        self._set_counts(after)

    def reserve(self, new: int) -> None:
        """Room for `new` more tokens in every lane, while rooms are equal."""
        if self.n + new > self.room:
            self._grow(self.n + new)

    def keep(self, mask: Tensor) -> None:
        """Drop every slot that mask (B, K, n) does not keep, and free its memory."""
        counts = mask.sum(-1)
        most = int(counts.max())
        if self.rooms is None and self.counts is None and int(counts.min()) == most:
            self._keep_even(mask, most)
            return
        keys, values, positions = self._flat(mask)
        same_in_row = bool((counts == counts[:, :1]).all())
        self._relay(counts + SLACK, keys, values, positions, counts, uniform=same_in_row)
        self._set_counts(counts)

    def _keep_even(self, mask: Tensor, count: int) -> None:
        """The usual case, every lane keeps as many: whole rows are copied, in place where the room still fits."""
        slots = (mask.nonzero()[:, 2].view(self.rows, self.heads, count) + self.starts[..., None]).flatten()
        columns = {name: getattr(self, name).index_select(0, slots) for name in ("keys", "values", "positions")}
        if not count <= self.room <= count + 2 * SLACK:
            self._even_rooms(count + SLACK)
            for name, column in columns.items():
                setattr(self, name, column.new_zeros(self.rows * self.heads * self.room, *column.shape[1:]))
        for name, column in columns.items():
            self._wide(getattr(self, name))[:, :, :count] = column.view(self.rows, self.heads, count, *column.shape[1:])
        self.n = count

    def keep_tail(self, new: int, accepted: Sequence[int]) -> None:
        """Of the `new` newest slots of each lane keep those at indices `accepted`, which rise."""
        moves = [(place, slot) for place, slot in enumerate(accepted) if place != slot]
        for column in (self.keys, self.values, self.positions) if moves else ():
            if self.alike:
                first = self.n - new
                for place, slot in moves:  # one or two, as a rule; the same in all lanes
                    column[first + place :: self.room].copy_(column[first + slot :: self.room])
            else:
                tail = (self.starts + self.count() - new)[..., None]  # (B, K, 1)
                to, at = torch.tensor(moves, device=column.device).T
                column[tail + to] = column[tail + at]
        self.drop_tail(new - len(accepted))

    def pop_tail(self, count: int) -> tuple[Tensor, Tensor]:
        """Take the `count` newest slots of each lane out: their keys and values (B, K, count, D)."""
        slots = (self.starts + self.count() - count)[..., None] + torch.arange(count, device=self.starts.device)
        out = self.keys[slots], self.values[slots]
        self.drop_tail(count)
        return out

    def drop_tail(self, count: int) -> None:
        """Take the `count` newest slots of each lane back."""
        if self.alike:
            self.n -= count
        elif count:
            left = self.count() - count
            self.positions[(self.starts + left)[..., None] + torch.arange(count, device=left.device)] = -1
            self._set_counts(left)

    def _wide(self, column: Tensor) -> Tensor:
        """A column lane by lane, while rooms are equal: (B, K, room, ...)."""
        return column.view(self.rows, self.heads, self.room, *column.shape[1:])

    def rotate(self, rotated: Tensor) -> None:
        """Replace the keys by `rotated` (B, K, n, D), laid out as in view()."""
        inside = torch.arange(self.n, device=rotated.device) < self.count()[..., None]
        index = (self.starts[..., None] + torch.arange(self.n, device=rotated.device))[inside]
        self.keys[index] = rotated[inside].to(self.keys.dtype)

    def select_rows(self, index: Tensor) -> Lanes:
        """A copy with rows index (B',): beam search re-orders, sessions fork."""
        out = Lanes()
        counts = self.count()[index]
        out.rows, out.heads, out.room, out.n = len(index), self.heads, self.room, int(counts.max())
        keys, values, positions = self.view()
        out._like(self)
        filled = positions[index] >= 0
        out._relay(
            counts + SLACK,
            keys[index][filled],
            values[index][filled],
            positions[index][filled],
            counts,
            uniform=self.rooms is None,
        )
        out._set_counts(counts)
        return out

    def copy(self) -> Lanes:
        """The same lanes in memory of their own."""
        out = Lanes()
        out.__dict__.update(self.__dict__)
        out.keys, out.values, out.positions = self.keys.clone(), self.values.clone(), self.positions.clone()
        return out

    # ---- the layout ----

    def _start(self, rows: int, heads: int, keys: Tensor, values: Tensor) -> None:
        self.rows, self.heads = rows, heads
        self.keys = keys.new_empty(0, keys.shape[-1])
        self.values = values.new_empty(0, values.shape[-1])
        self.positions = torch.empty(0, dtype=torch.int32, device=keys.device)
        self.starts = torch.zeros(rows, heads, dtype=torch.long, device=keys.device)

    def _like(self, other: Lanes) -> None:
        self.keys, self.values, self.positions = other.keys[:0], other.values[:0], other.positions[:0]
        self.starts = other.starts[:0]

    def _set_counts(self, counts: Tensor) -> None:
        self.n = int(counts.max()) if counts.numel() else 0
        self.counts = None if bool((counts == self.n).all()) else counts

    def _grow(self, need: int) -> None:
        """More room for every lane, all equal."""
        room = need + SLACK
        shape, lanes = (self.rows, self.heads, self.room), self.rows * self.heads
        for name, empty in (("keys", 0), ("values", 0), ("positions", -1)):
            old = getattr(self, name)
            new = old.new_full((lanes * room, *old.shape[1:]), empty)
            if self.n:
                wide = new.view(self.rows, self.heads, room, *old.shape[1:])
                wide[:, :, : self.n] = old.view(*shape, *old.shape[1:])[:, :, : self.n]
            setattr(self, name, new)
        self._even_rooms(room)

    def _even_rooms(self, room: int) -> None:
        """Lanes of equal room, one after the other."""
        self.room = room
        lanes = torch.arange(self.rows * self.heads, device=self.keys.device)
        self.starts = (lanes * room).view(self.rows, self.heads)

    def _flat(self, mask: Tensor | None) -> View:
        """The tokens that mask keeps (None: all), lane after lane: (M, D), (M, D), (M,)."""
        slot = torch.arange(self.n, device=self.keys.device)
        inside = slot < self.count()[..., None]
        if mask is not None:
            inside = inside & mask
        index = (self.starts[..., None] + slot)[inside]
        return self.keys[index], self.values[index], self.positions[index]

    def _relay(
        self,
        rooms: Tensor,
        keys: Tensor,
        values: Tensor,
        positions: Tensor,
        counts: Tensor | None = None,
        uniform: bool = False,
    ) -> None:
        """New memory with these rooms (B, K), filled with the given tokens, lane after lane."""
        counts = self.count() if counts is None else counts
        if uniform:
            self.room, self.rooms = int(rooms.max()), None
            rooms = torch.full_like(rooms, self.room)
        else:
            self.rooms = rooms
        ends = rooms.flatten().cumsum(0)
        self.starts = (ends - rooms.flatten()).view(rooms.shape)
        total = int(ends[-1])
        self.keys = keys.new_zeros(total, keys.shape[-1])
        self.values = values.new_zeros(total, values.shape[-1])
        self.positions = positions.new_full((total,), -1)
        self._fill(keys, values, positions, counts)

    def _fill(self, keys: Tensor, values: Tensor, positions: Tensor, counts: Tensor) -> None:
        flat = counts.flatten()
        lane = torch.repeat_interleave(torch.arange(len(flat), device=flat.device), flat)
        rank = torch.arange(len(lane), device=flat.device) - (flat.cumsum(0) - flat)[lane]
        index = self.starts.flatten()[lane] + rank
        self.keys[index], self.values[index], self.positions[index] = keys, values, positions
