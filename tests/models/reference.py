"""The answer computed the slow way, without a line of the engine: the library's own model over the whole text at once,
with a mask a layer, head and query saying what each token may look at, and an optional turn of keys and queries.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

NAME = "tokenmill_reference"


@dataclass
class Layer:
    """What one layer does to one row. T tokens, K key/value heads."""

    sees: torch.Tensor  # (K, T, T) bool: [head, query, token]
    query_shift: torch.Tensor | None = None  # (T,) positions each query is turned by
    key_shift: torch.Tensor | None = None  # (K, T, T) positions each token's key is turned by, as each query meets it
    frequencies: torch.Tensor | None = None  # (D / 2,)
    queries: torch.Tensor | None = None  # recorded: (1, H, T, D)
    keys: torch.Tensor | None = None  # (1, K, T, D)
    values: torch.Tensor | None = None


@dataclass
class _Running:
    layers: list[Layer] = field(default_factory=list)


_now = _Running()


def _turn(x: torch.Tensor, by: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """Rotate (..., D) by (...) positions: complex numbers, so that it shares nothing with the engine's way."""
    half = frequencies.shape[0]
    pairs = torch.complex(x[..., :half].double(), x[..., half : 2 * half].double())
    turned = pairs * torch.polar(
        torch.ones_like(by, dtype=torch.float64)[..., None], by[..., None] * frequencies.double()
    )
    return torch.cat([turned.real.to(x), turned.imag.to(x), x[..., 2 * half :]], -1)


def _attend(module, query, key, value, attention_mask, scaling=None, **kwargs):
    layer = _now.layers[module.layer_idx]
    layer.queries, layer.keys, layer.values = query, key, value
    groups = query.shape[1] // key.shape[1]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if layer.key_shift is None:
        logits = query @ key.repeat_interleave(groups, 1).mT * scaling  # (1, H, Q, T)
    else:
        query = _turn(query, layer.query_shift, layer.frequencies)
        met = _turn(
            key[0, :, None].expand(-1, query.shape[2], -1, -1), layer.key_shift, layer.frequencies
        )  # (K, Q, T, D)
        logits = torch.einsum("bhqd,hqtd->bhqt", query, met.repeat_interleave(groups, 0)) * scaling
    logits = logits.masked_fill(~layer.sees.repeat_interleave(groups, 0), float("-inf"))
    out = logits.softmax(-1) @ value.repeat_interleave(groups, 1)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def _under(model, layers: list[Layer]):
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    _now.layers = layers
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        _now.layers = []


def windows(model) -> list[int | None]:
    config = model.config
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    count = config.num_hidden_layers
    if types is None:
        return [window] * count
    return [window if t == "sliding_attention" else None for t in types]


def heads(model) -> int:
    return getattr(model.config, "num_key_value_heads", None) or model.config.num_attention_heads


def causal(model, length: int) -> list[Layer]:
    """Everything up to itself, inside the layer's window."""
    at = torch.arange(length)
    out = []
    for window in windows(model):
        sees = at[:, None] >= at
        if window is not None:
            sees = sees & (at[:, None] - at < window)
        out.append(Layer(sees.expand(heads(model), -1, -1).clone()))
    return out


def logits(model, ids: torch.Tensor, layers: list[Layer]) -> torch.Tensor:
    """ids (1, T) -> (T, V)."""
    with torch.no_grad(), _under(model, layers):
        return model(ids, use_cache=False).logits[0]


class History:
    """What each query may see, told pass by pass: what was held before it, and its own pass up to itself."""

    def __init__(self, model, row: int = 0):
        self.model, self.row = model, row
        self.held: list[list[set[int]]] = [[set() for _ in range(heads(model))] for _ in windows(model)]
        self.passes: list[tuple[int, int, list[list[set[int]]]]] = []  # first, behind the last, held before
        self.seen = 0

    def told(self, new: int, kept) -> None:
        """After a pass over `new` tokens: kept[layer][row][head] are the positions that are still held."""
        self.passes.append((self.seen, self.seen + new, self.held))
        self.seen += new
        self.held = [[set(head) for head in layer[self.row]] for layer in kept]

    def layers(self, frequencies: list[torch.Tensor] | None = None) -> list[Layer]:
        """`frequencies` (one tensor a layer): tokens held are numbered 0, 1, 2 ... in the cache at every pass."""
        out = causal(self.model, self.seen)
        for index, layer in enumerate(out):
            window = windows(self.model)[index]
            if frequencies is not None:  # distances are those in the cache, for a window too
                layer.sees = torch.ones_like(layer.sees).tril()
                layer.frequencies = frequencies[index]
                layer.query_shift = torch.zeros(self.seen, dtype=torch.long)
                layer.key_shift = torch.zeros(layer.sees.shape, dtype=torch.long)
            for first, end, held in self.passes:
                for head, positions in enumerate(held[index]):
                    gone = torch.ones(first, dtype=torch.bool)
                    gone[list(positions)] = False
                    layer.sees[head, first:end, :first] &= ~gone
                    if frequencies is not None:
                        old = torch.tensor(sorted(positions), dtype=torch.long)
                        cached = torch.cat([old, torch.arange(first, end)])
                        shift = torch.arange(len(cached)) - cached
                        layer.key_shift[head, first:end, cached] = shift.expand(end - first, -1)
                        layer.query_shift[first:end] = shift[len(old) :]
                        if window is not None:
                            places = torch.arange(len(cached))
                            near = places[len(old) :, None] - places < window
                            layer.sees[head, first:end, cached] &= near
        return out
