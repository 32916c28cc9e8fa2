"""ZipCache: tokens that are looked at are stored in more bits, the rest in fewer.

    salience_i = sum over probing queries q of A[q, i]  /  number of probing queries that can see i
    `bits` bits for the `share` of tokens with the highest salience, `low` bits for the others
    keys: one scale a channel;  values: divided by c_d = sqrt(max over tokens |v_d|), then one scale a token

The probing queries are a share `probes` of all: half of them the newest, half drawn at random.

He et al., "ZipCache: Accurate and Efficient KV Cache Quantization with Salient Token Identification", 2024.

Differs: attention is divided by the number of probing queries that can see a token, as the paper's formula says;
the authors' code divides by all later tokens. Scales belong to one head of one row; the authors' code shares them
over heads, and by channel over the batch too. While generating, the probes are among the queries since the last
packing and look only at the tokens to be packed; the code takes the newest query alone, and does not divide.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from tokenmill.errors import SpecError
from tokenmill.method import method
from tokenmill.ops import noise
from tokenmill.ops.attention import attention, by_group, seen_by
from tokenmill.ops.bits import WIDTHS
from tokenmill.ops.select import newest, top_share
from tokenmill.types import Bits, Trace


@method(
    title="ZipCache: Accurate and Efficient KV Cache Quantization with Salient Token Identification",
    paper="arXiv:2405.14256",
    year=2024,
    needs=("all_queries",),
    every=100,
)
def zip_cache(
    trace: Trace, *, bits: int = 4, low: int = 2, share: float = 0.6, probes: float = 0.1, seed: int = 0
) -> Bits:
    for asked in (bits, low):
        if asked not in (*WIDTHS, 16):
            raise SpecError(f"zip_cache: {asked} bits cannot be stored; there is {', '.join(map(str, WIDTHS))}, 16")
    probing = _probing(trace, probes, seed)
    looked = by_group(attention(probing).sum(2), trace.keys.shape[1])  # (B, K, T)
    salience = looked / seen_by(probing).sum(2).clamp(min=1)  # (B, K, T)
    held = trace.filled.sum(-1)  # (B, K)
    rest = torch.floor((1 - share) * held.double() + 1e-9).long()
    width = torch.where(top_share(salience, trace.filled, held - rest), bits, low)  # (B, K, T)
    channels = trace.values.abs().amax(2, keepdim=True).sqrt()  # (B, K, 1, D)
    channels = channels.where(channels > 0, 1.0)
    return Bits(width, width, value_channels=channels, per_channel_keys=True)


def _probing(trace: Trace, probes: float, seed: int) -> Trace:
    """The trace with the probing queries only; rows that have fewer are filled up with padding."""
    at = trace.query_positions  # (B, Q)
    half = torch.floor(probes / 2 * (at >= 0).sum(-1, keepdim=True).double() + 1e-9).long()  # (B, 1)
    recent = half.clamp(min=1)
    drawn = noise.at(torch.full_like(at, trace.layer), at, seed)  # (B, Q) in (0, 1)
    drawn = drawn.masked_fill(newest(at >= 0, recent), 2.0).masked_fill(at < 0, -1.0)
    count = recent + half  # (B, 1)
    index = drawn.argsort(dim=-1, descending=True, stable=True)[:, : int(count.max())]  # (B, P)
    beyond = torch.arange(index.shape[1], device=at.device) >= count
    taken = index[:, None, :, None].expand(-1, trace.queries.shape[1], -1, trace.queries.shape[3])
    return replace(
        trace, queries=trace.queries.gather(2, taken), query_positions=at.gather(1, index).masked_fill(beyond, -1)
    )
