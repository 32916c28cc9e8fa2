"""SnapKV: keep what the newest queries look at, and its neighbours.

    a_t = sum over the newest `window` queries q of softmax_t(q k_t)
    s_t = mean over a group's heads of maxpool_kernel(a)_t;  infinity for the newest `window` tokens themselves

Li et al., "SnapKV: LLM Knows What You are Looking for Before Generation", 2024.

Differs: (1) The paper repeats the keys of grouped heads and chooses for each query head; here the heads that share a
key choose together. (2) The authors' LongBench runs pool over 7 places (`kernel=7`) with the same window; 5 is the
default of their code, which has a window of 64 and pools by the mean.
"""

from __future__ import annotations

from torch import Tensor

from tokenmill.method import method
from tokenmill.ops.attention import attention, by_group
from tokenmill.ops.select import newest, protect
from tokenmill.ops.windows import max_pool
from tokenmill.types import Trace


@method(
    title="SnapKV: LLM Knows What You are Looking for Before Generation",
    paper="arXiv:2404.14469",
    year=2024,
    needs=("queries",),
)
def snapkv(trace: Trace, *, window: int = 32, kernel: int = 5) -> Tensor:
    looked = attention(trace, last=window).sum(2)  # (B, H, T)
    voters = newest(trace.filled, window).repeat_interleave(trace.groups, 1)  # they vote, nobody votes on them
    pooled = max_pool(looked.masked_fill(voters, 0), kernel)  # (B, H, T)
    return protect(by_group(pooled, trace.keys.shape[1]), trace, window=window)  # (B, K, T)
