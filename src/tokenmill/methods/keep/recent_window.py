"""Recent window: keep the newest tokens and nothing else; the baseline every score must beat."""

from __future__ import annotations

from tokenmill.method import method
from tokenmill.ops.budget import target
from tokenmill.ops.select import newest
from tokenmill.types import Keep, Trace


@method(title="")
def recent_window(trace: Trace, *, budget: float | None = None, slots: int | None = None) -> Keep:
    count = target(trace, budget, slots)[:, None, None]  # (B, 1, 1)
    return Keep(newest(trace.filled, count))
