"""Small random traces. Each row is made from its own seed, so that a row alone equals the row in a batch."""

from dataclasses import replace

import torch

from tokenmill.types import Trace


def row(
    held=(9, 9), *, seed=0, slots=None, queries=4, groups=2, size=8, last=None, layer=0, layers=4, dtype=torch.float32
) -> Trace:
    """One row whose heads hold `held` tokens of 0..last each (all of them when they hold as many)."""
    slots = slots or max(held)
    last = max(held) - 1 if last is None else last
    g = torch.Generator().manual_seed(seed)
    positions = torch.full((1, len(held), slots), -1)
    for head, count in enumerate(held):
        chosen = torch.randperm(last, generator=g)[: count - 1].sort().values
        positions[0, head, :count] = torch.cat([chosen, torch.tensor([last])])
    filled = (positions >= 0)[..., None]
    keys, values = (
        torch.cat([torch.randn(1, len(held), max(held), size, generator=g), torch.zeros(1, len(held), slots, size)], 2)[
            :, :, :slots
        ]
        * filled
        for _ in range(2)
    )
    asked = torch.randn(1, len(held) * groups, queries, size, generator=g)
    return Trace(
        keys=keys.to(dtype),
        values=values.to(dtype),
        positions=positions,
        queries=asked.to(dtype),
        query_positions=torch.arange(last - queries + 1, last + 1)[None].clamp(min=-1),
        seen=torch.tensor([last + 1]),
        layer=layer,
        layers=layers,
        scale=size**-0.5,
    )


def batch(*rows: Trace) -> Trace:
    """Rows of one trace; shorter ones get empty slots at the end and padding queries in front."""
    slots = max(r.keys.shape[2] for r in rows)
    queries = max(r.queries.shape[2] for r in rows)

    def tail(x, dim, value=0):
        return torch.nn.functional.pad(x, (0, 0) * (x.dim() - 1 - dim) + (0, slots - x.shape[dim]), value=value)

    return replace(
        rows[0],
        keys=torch.cat([tail(r.keys, 2) for r in rows]),
        values=torch.cat([tail(r.values, 2) for r in rows]),
        positions=torch.cat([tail(r.positions, 2, -1) for r in rows]),
        queries=torch.cat(
            [torch.nn.functional.pad(r.queries, (0, 0, queries - r.queries.shape[2], 0), value=3.0) for r in rows]
        ),
        query_positions=torch.cat(
            [
                torch.nn.functional.pad(r.query_positions, (queries - r.query_positions.shape[1], 0), value=-1)
                for r in rows
            ]
        ),
        seen=torch.cat([r.seen for r in rows]),
    )


def copied(trace: Trace) -> Trace:
    return replace(trace, **{k: v.clone() for k, v in vars(trace).items() if isinstance(v, torch.Tensor)})


def same(one: Trace, other: Trace) -> bool:
    return all(torch.equal(v, getattr(other, k)) for k, v in vars(one).items() if isinstance(v, torch.Tensor))
