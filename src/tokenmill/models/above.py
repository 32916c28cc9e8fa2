"""The layers above a state, with gradients: for parts that are trained to put states there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from tokenmill.models.architectures import decoder_of


def whole_cache() -> DynamicCache:
    """A cache that keeps every token, also in layers with a window."""
    return DynamicCache()


class _Behind:
    """Given to a layer as its cache: the text's keys and values come before its own, and nothing is written."""

    def __init__(self, cache: DynamicCache):
        self.cache = cache

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        text: Any = self.cache.layers[layer]
        return torch.cat([text.keys, keys], 2), torch.cat([text.values, values], 2)


def above(model: Any, cache: DynamicCache | None, layer: int, states: Tensor, at: Tensor) -> Tensor:
    """States (B, A, M, E) after a layer, as if of the M tokens behind each place (A,) of the text that `cache` holds.

    Gives them after the final norm. They see the text up to their place, and each other as a text of its own would.
    """
    assert cache is not None, "say needs=('above',) on the card"
    decoder, text = decoder_of(model), cache.get_seq_length()
    places, count = states.shape[1:3]
    own = (at[:, None] + 1 + torch.arange(count, device=at.device)).flatten()  # (A M,) positions
    hidden = states.flatten(1, 2)
    if layer < 0:
        hidden = decoder.place(hidden, own[None])
    group = torch.arange(places, device=at.device).repeat_interleave(count)
    position = torch.cat([torch.arange(text, device=at.device), own])
    before = torch.arange(text, device=at.device) <= at[group][:, None]
    beside = (group[:, None] == group) & (own[:, None] >= own)
    sees, distance = torch.cat([before, beside], 1), own[:, None] - position  # (A M, T + A M)
    angles: dict[str, Any] = {}
    for index in range(layer + 1, len(decoder.layers)):
        kind, window = decoder.types[index], decoder.windows[index]
        if kind not in angles:
            angles[kind] = decoder.angles(hidden, own[None], index)
        seen = sees if window is None else sees & (distance < window)
        mask = torch.zeros(seen.shape, dtype=hidden.dtype, device=at.device).masked_fill(
            ~seen, torch.finfo(hidden.dtype).min
        )
        out = decoder.layers[index](
            hidden, attention_mask=mask[None, None], position_embeddings=angles[kind], position_ids=own[None],
            **{decoder.cache_argument: _Behind(cache)}, use_cache=True,
        )  # fmt: skip
        hidden = out[0] if isinstance(out, tuple) else out
    return decoder.final_norm(hidden).unflatten(1, (places, count))
