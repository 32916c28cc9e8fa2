"""Key norm: keep tokens whose keys are short; they tend to draw the most attention.

    s_t = -||k_t||

Devoto et al., "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression", 2024.

Differs: (1) The authors' runs leave the first one or two layers whole; here every layer is scored.
"""

from __future__ import annotations

from torch import Tensor

from tokenmill.method import method
from tokenmill.ops.attention import wide
from tokenmill.types import Trace


@method(
    title="A Simple and Effective $L_2$ Norm-Based Strategy for KV Cache Compression",
    paper="arXiv:2406.11430",
    year=2024,
)
def knorm(trace: Trace) -> Tensor:
    return -wide(trace.keys).norm(dim=-1)  # (B, K, T)
