"""Full: keep everything; the untouched cache."""

from __future__ import annotations

from tokenmill.method import method
from tokenmill.types import Keep, Trace


@method(title="")
def full(trace: Trace) -> Keep:
    return Keep(trace.filled)
