"""StreamingLLM: keep the first few tokens, where attention rests when it has nowhere to go, and the newest ones.

    kept = the first `sinks` tokens + the newest n - sinks;  kept tokens are numbered 0, 1, 2 ... n - 1

Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2023.

Differs: the paper's cache holds a fixed number of tokens (`slots`); a `budget` lets it grow with the text. Where it
buys fewer than `sinks` + 1 tokens, the newest token stays and the sinks share the rest.
"""

from __future__ import annotations

from tokenmill.method import method
from tokenmill.ops.budget import target
from tokenmill.ops.select import newest
from tokenmill.types import Keep, Trace


@method(title="Efficient Streaming Language Models with Attention Sinks", paper="arXiv:2309.17453", year=2023)
def streaming_llm(
    trace: Trace,
    *,
    sinks: int = 4,
    budget: float | None = None,
    slots: int | None = None,
    renumber: bool = True,
) -> Keep:
    count = target(trace, budget, slots)[:, None, None]  # (B, 1, 1)
    first = trace.filled & (trace.positions < sinks) & (trace.filled.cumsum(-1) < count)
    rest = trace.filled & ~first
    return Keep(first | newest(rest, count - first.sum(-1, keepdim=True)), renumber=renumber)
