"""Made-up traces: seeded, float64, with padded rows, ragged heads, grouped heads and rotary positions.

A row's numbers depend on its own seed alone, so a row alone can be compared with the same row in a batch.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from tokenmill.method import Method
from tokenmill.types import Keep, Trace


@dataclass(frozen=True)
class Turn:
    """Rotary positions of head size 8, in the dtype of what is turned."""

    frequencies: tuple[float, ...] = (1.0, 0.3, 0.1, 0.03)

    def rotate(self, x: Tensor, by: Tensor) -> Tensor:
        angle = by[..., None] * torch.tensor(self.frequencies, dtype=torch.float64)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        one, other = x.chunk(2, -1)
        return torch.cat([one * cos - other * sin, other * cos + one * sin], -1)


def trace(
    lengths=(24, 17),
    *,
    held=None,
    kv=2,
    groups=3,
    queries=None,
    dtype=torch.float64,
    seed=0,
    layer=1,
    layers=4,
    window=None,
    generated=0,
) -> Trace:
    """Rows of these lengths. `held[row][head]`: how many tokens a head still holds (all by default).

    `queries`: how many of the newest, padded on the left in rows that are shorter (all by default).
    """
    size, longest = 8, max(lengths)
    asked = longest if queries is None else queries
    keys, values = torch.zeros(2, len(lengths), kv, longest, size, dtype=torch.float64)
    positions = torch.full((len(lengths), kv, longest), -1)
    shown = torch.zeros(len(lengths), kv * groups, asked, size, dtype=torch.float64)
    at = torch.full((len(lengths), asked), -1)
    for row, length in enumerate(lengths):
        noise = torch.Generator().manual_seed(1000 * seed + length)
        k, v = torch.randn(2, kv, length, size, generator=noise, dtype=torch.float64)
        q = torch.randn(kv * groups, length, size, generator=noise, dtype=torch.float64)
        # Some keys are alike and some are far, as in a model, so that norms, directions and attention differ a lot.
        k = (
            k * torch.linspace(0.5, 2, length, dtype=torch.float64)[torch.randperm(length, generator=noise)][:, None]
            + 0.5
        )
        for head in range(kv):
            count = length if held is None else held[row][head]
            # The newest token is always there; the others are chosen by lot.
            chosen = torch.randperm(length - 1, generator=noise)[: count - 1] if length > 1 else torch.zeros(0).long()
            chosen = torch.cat([chosen, torch.tensor([length - 1])]).sort().values
            positions[row, head, :count] = chosen
            keys[row, head, :count], values[row, head, :count] = k[head, chosen], v[head, chosen]
        last = min(asked, length)
        shown[row, :, asked - last :] = q[:, length - last :]
        at[row, asked - last :] = torch.arange(length - last, length)
    most = int((positions >= 0).sum(-1).max())
    return Trace(
        keys=keys[:, :, :most].to(dtype),
        values=values[:, :, :most].to(dtype),
        positions=positions[:, :, :most],
        queries=shown.to(dtype),
        query_positions=at,
        seen=torch.tensor(lengths) if window is None else torch.tensor(lengths).clamp(max=window),
        layer=layer,
        layers=layers,
        scale=size**-0.5,
        rotary=Turn(),
        window=window,
        prompt=generated == 0,
        generated=generated,
    )


def row(batch: Trace, index: int) -> Trace:
    """One row of a batch as if it had been alone: without the batch's padding."""
    most = int(batch.filled[index].sum(-1).max())
    real = batch.query_positions[index] >= 0
    return replace(
        batch,
        keys=batch.keys[index, None, :, :most],
        values=batch.values[index, None, :, :most],
        positions=batch.positions[index, None, :, :most],
        queries=batch.queries[index, None][:, :, real],
        query_positions=batch.query_positions[index, None][:, real],
        seen=batch.seen[index, None],
    )


def with_empty_slots(batch: Trace, more: int) -> Trace:
    """The same trace with `more` empty slots at the end."""
    b, k, _, d = batch.keys.shape
    nothing = batch.keys.new_zeros(b, k, more, d)
    return replace(
        batch,
        keys=torch.cat([batch.keys, nothing], 2),
        values=torch.cat([batch.values, nothing], 2),
        positions=torch.cat([batch.positions, torch.full((b, k, more), -1)], 2),
    )


def last_query(batch: Trace) -> Trace:
    """The newest query alone, as in a pass that generates one token."""
    return replace(batch, queries=batch.queries[:, :, -1:], query_positions=batch.query_positions[:, -1:])


def small(m: Method) -> Method:
    """The method with a window that fits these short texts: 32 newest queries would be all there are."""
    return m(window=4) if "window" in m.knobs and m.window and m.window > 4 else m


def tensors(batch: Trace) -> dict[str, Tensor]:
    """Copies of every tensor in a trace, to see later that nothing was written."""
    return {f.name: x.clone() for f in fields(batch) if isinstance(x := getattr(batch, f.name), Tensor)}


def kept(keep: Keep, batch: Trace) -> list[list[list[int]]]:
    """[row][head] -> sorted positions that stay."""
    return [
        [at[mask].tolist() for at, mask in zip(ats, masks, strict=True)]
        for ats, masks in zip(batch.positions, keep.mask.expand_as(batch.positions) & batch.filled, strict=True)
    ]


# What a cache can look like: name -> trace. Rows of one and two tokens are among them.
SHAPES = {
    "plain": lambda **k: trace((24,), **k),
    "padded": lambda **k: trace((24, 17, 2, 1), **k),
    "ragged": lambda **k: trace((24, 17), held=((9, 20), (17, 3)), **k),
    "one": lambda **k: trace((1,), **k),
    "two": lambda **k: trace((2,), **k),
    "ungrouped": lambda **k: trace((24, 17), kv=3, groups=1, **k),
    "single head": lambda **k: trace((24, 17), kv=1, groups=4, **k),
    "sliding": lambda **k: trace((24, 17), window=8, **k),
}
