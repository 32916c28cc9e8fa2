"""MiniCache: two neighbouring deep layers store one direction per token, each its own lengths.

    e = slerp(x_lower / |x_lower|, x_upper / |x_upper|, t),   read back as |x_lower| e and |x_upper| e
    apart where angle_i > angle_max - gamma (angle_max - angle_min),   pairs from layer `start` * L upwards

Liu et al., "MiniCache: KV Cache Compression in Depth Dimension for Large Language Models", 2024.

Differs: a token whose key or whose value is far apart keeps both apart, where the paper chooses for keys and for
values on their own; the range of angles is taken in each head of each row, so that a row's result does not depend
on its batch. Layers with different sliding windows are not merged. The paper's body could not be read: slerp, the
norms, the start at half depth and gamma are confirmed elsewhere, t is from memory, and the one other implementation
found puts its threshold gamma of the range above the least angle; here only the most distinct tokens stay apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.method import method
from tokenmill.ops.attention import wide
from tokenmill.ops.sphere import angle, slerp, unit
from tokenmill.types import Merge, Trace


@method(
    title="MiniCache: KV Cache Compression in Depth Dimension for Large Language Models",
    paper="arXiv:2405.14366",
    year=2024,
)
def mini_cache(lower: Trace, upper: Trace, *, t: float = 0.6, gamma: float = 0.05, start: float = 0.5) -> Merge | None:
    paired = (lower.layers - lower.layer) % 2 == 0  # counted from the top, so that each layer is in one pair
    if lower.layer < start * lower.layers or not paired or lower.window != upper.window:
        return None
    key_direction, key_norms, keys_apart = _joined(lower.keys, upper.keys, lower.filled, t, gamma)
    value_direction, value_norms, values_apart = _joined(lower.values, upper.values, lower.filled, t, gamma)
    return Merge(key_direction, value_direction, key_norms, value_norms, keys_apart | values_apart)


def _joined(lower: Tensor, upper: Tensor, filled: Tensor, t: float, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Direction (B, K, T, D), norms (2, B, K, T) and which tokens stay apart (B, K, T)."""
    both = torch.stack((wide(lower), wide(upper)))  # (2, B, K, T, D)
    norms, (one, other) = both.norm(dim=-1), unit(both)
    turn = angle(one, other)  # (B, K, T)
    most = turn.masked_fill(~filled, -torch.inf).amax(-1, keepdim=True)
    least = turn.masked_fill(~filled, torch.inf).amin(-1, keepdim=True)
    apart = filled & (turn > most - gamma * (most - least))
    return slerp(one, other, t).to(lower.dtype), norms.to(lower.dtype), apart
