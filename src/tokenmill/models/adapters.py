"""Low-rank additions to a model's query and value projections, while it runs; the model itself is not changed.

    q <- q + sum_a w_a B_a A_a x,   v alike;   w is a row's own, or a token's own

They hang on the projections as hooks, so whatever computes queries and values has them: the library's forward, the
engine, weights in any number format. On leaving, also by an exception, the hooks are gone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tokenmill.errors import ModelError
from tokenmill.models.architectures import Decoder, decoder_of

APART, TOGETHER = ("q_proj", "v_proj"), ("qkv_proj", "c_attn")  # what an attention's projections are called


class Mixer(threading.local):
    """How much of each adapter is added to what this thread reads next; other threads read the model as it is."""

    weights: Tensor | None = None  # (B, 1 or Q, A); None: nothing is added


@dataclass(frozen=True)
class _Added:
    """What is added to some of a projection's outputs: those between `before` first and `behind` last ones."""

    down: Tensor  # (A r, E)
    up: Tensor  # (O, A r)
    before: int
    behind: int

    def __call__(self, x: Tensor, weights: Tensor) -> Tensor:
        """x (B, Q, E), weights (B, 1 or Q, A) -> (B, Q, all outputs)."""
        count = weights.shape[-1]
        inner = F.linear(x.to(self.down.dtype), self.down).unflatten(-1, (count, -1))  # (B, Q, A, r)
        mixed = (inner * weights.to(inner)[..., None]).flatten(-2)
        return F.pad(F.linear(mixed, self.up), (self.before, self.behind))


@contextmanager
def attached(decoder: Decoder, parts: Any) -> Iterator[Mixer]:
    """The decoder with adapters. `parts.added(layer)` gives (A, r, E) and (A, O, r) for its queries, then its values.

    Raises ModelError for an attention whose projections are not known.
    """
    mixer = Mixer()
    handles: list[Any] = []
    try:
        for index, layer in enumerate(decoder.layers):
            attention = getattr(layer, decoder.attention)
            flat = [(down.flatten(0, 1), up.transpose(0, 1).flatten(1)) for down, up in parts.added(index)]
            for module, added in _placed(attention, flat, decoder.kind):
                handles.append(module.register_forward_hook(_hook(mixer, added)))
        yield mixer
    finally:
        for handle in handles:
            handle.remove()


def adapted(model: Any, ids: Tensor, parts: Any, weights: Tensor) -> Tensor:
    """Final hidden states (B, T, E) of ids (B, T), with weights (B, A) or (B, T, A); gradients flow to the adapters."""
    with attached(decoder_of(model), parts) as mixer:
        mixer.weights = weights if weights.ndim == 3 else weights[:, None]
        return model.base_model(input_ids=ids, use_cache=False).last_hidden_state


def _placed(attention: Any, flat: list[tuple[Tensor, Tensor]], kind: str) -> list[tuple[Any, list[_Added]]]:
    """Each projection with what is added to it."""
    wide = [len(up) for _, up in flat]  # outputs of queries, of values
    if all(hasattr(attention, name) for name in APART):
        found = [getattr(attention, name) for name in APART]
        if [_outputs(m) for m in found] == wide:
            return [(m, [_Added(*pair, 0, 0)]) for m, pair in zip(found, flat, strict=True)]
    for name in TOGETHER:  # queries, keys, values, one after the other
        if hasattr(attention, name):
            module = getattr(attention, name)
            if (outputs := _outputs(module)) == wide[0] + 2 * wide[1]:
                rest = [outputs - w for w in wide]
                return [(module, [_Added(*flat[0], 0, rest[0]), _Added(*flat[1], rest[1], 0)])]
    raise ModelError(
        f"'{kind}' has no query and value projections of the shapes that adapters are for; known are "
        f"{' and '.join(APART)}, or one of {', '.join(TOGETHER)} for queries, keys and values"
    )


def _outputs(module: Any) -> int:
    """Of a linear layer: the library has one that calls them otherwise."""
    return module.nf if hasattr(module, "nf") else module.out_features


def _hook(mixer: Mixer, added: list[_Added]) -> Callable[..., Tensor | None]:
    def hook(module: Any, given: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
        if mixer.weights is None:
            return None
        for each in added:
            out = out + each(given[0], mixer.weights).to(out.dtype)
        return out

    return hook
