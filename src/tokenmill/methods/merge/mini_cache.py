"""MiniCache: two neighbouring deep layers store one direction per token, each its own lengths.

    e = slerp(x_lower / |x_lower|, x_upper / |x_upper|, t),   read back as |x_lower| e and |x_upper| e
    apart: the `retention` share of the tokens with the largest angle,   pairs from layer `start` * L upwards

Liu et al., "MiniCache: KV Cache Compression in Depth Dimension for Large Language Models", 2024.

Differs: (1) The authors published no code. t, the start at half depth and the rule for what stays apart, 5 % of the
tokens by angle, are those of the KVCache-Factory implementation; the paper states a threshold, gamma = 0.05 of the
range of angles, whose side two other readings do not agree on. (2) A token whose key or whose value is among the most
distinct keeps both apart; the paper and that code choose for keys and for values separately. (3) Tokens are chosen in
each head of each row, so that a row's result does not depend on its batch. (4) Layers with different sliding windows
are not merged.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.method import method
from tokenmill.ops.attention import wide
from tokenmill.ops.select import top_share
from tokenmill.ops.sphere import angle, slerp, unit
from tokenmill.types import Merge, Trace


@method(
    title="MiniCache: KV Cache Compression in Depth Dimension for Large Language Models",
    paper="arXiv:2405.14366",
    year=2024,
)
def mini_cache(
    lower: Trace, upper: Trace, *, t: float = 0.6, retention: float = 0.05, start: float = 0.5
) -> Merge | None:
    paired = (lower.layers - lower.layer) % 2 == 0  # counted from the top, so that each layer is in one pair
    if lower.layer < start * lower.layers or not paired or lower.window != upper.window:
        return None
    key_direction, key_norms, keys_apart = _joined(lower.keys, upper.keys, lower.filled, t, retention)
    value_direction, value_norms, values_apart = _joined(lower.values, upper.values, lower.filled, t, retention)
    return Merge(key_direction, value_direction, key_norms, value_norms, keys_apart | values_apart)


def _joined(lower: Tensor, upper: Tensor, filled: Tensor, t: float, retention: float) -> tuple[Tensor, Tensor, Tensor]:
    """Direction (B, K, T, D), norms (2, B, K, T) and which tokens stay apart (B, K, T)."""
    both = torch.stack((wide(lower), wide(upper)))  # (2, B, K, T, D)
    norms, (one, other) = both.norm(dim=-1), unit(both)
    turn = angle(one, other)  # (B, K, T)
    count = torch.ceil(retention * filled.sum(-1).double() - 1e-9).long()  # (B, K)
    apart = top_share(turn, filled, count)
    return slerp(one, other, t).to(lower.dtype), norms.to(lower.dtype), apart
