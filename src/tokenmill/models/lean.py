"""Layers of the Llama kind over packed weights in two compiled calls each, around the attention.

The plain walk calls some thirty small operations for a layer, and for one token they cost more than the products.
Here norm, products and rotation are one call, and what follows attention is another. They compute what the layer's
own modules compute, which stay the definition; the engine takes this way where `lean_of` finds that it can. What
a recipe decides is not touched: keys, values and decisions pass through the same `Pass.attend`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from tokenmill.models.architectures import Decoder
from tokenmill.models.lanes import Lanes
from tokenmill.models.weights import Blocks, Table

KNOWN = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
PRODUCTS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
STATIC = ("default", "linear", "llama3", "yarn")  # rotary tables that do not depend on the text's length
Array = np.ndarray[Any, Any]
NOTHING, NO_TREE = np.empty(0, np.float32), np.empty((0, 0), np.bool_)


def lean_of(decoder: Decoder) -> Lean | None:
    """The decoder's layers as compiled calls, or None if one of them is not what these compute."""
    return Lean(decoder) if all(map(_fits, decoder.layers)) else None


def _fits(layer: Any) -> bool:
    """A known layer, all of its products packed in blocks, no hook and nothing in half precision."""
    if type(layer).__name__ not in KNOWN or not type(layer).__module__.startswith("transformers.models."):
        return False
    modules = dict(layer.named_modules())
    packed = {name.rpartition(".")[2]: m for name, m in modules.items() if isinstance(m, Blocks)}
    return (
        set(packed) == set(PRODUCTS)
        and not any(isinstance(m, nn.Linear) or _hooked(m) for m in modules.values())
        and all(packed[name].beside is not None for name in ("q_proj", "gate_proj"))
        and all(packed[name].bias is None for name in PRODUCTS[3:])  # Qwen2 has some on the first three
        and type(layer.mlp.act_fn).__name__ in ("SiLU", "SiLUActivation")
        and all(p.dtype == torch.float32 for p in layer.parameters())
        and not layer.training
    )


def _hooked(module: nn.Module) -> bool:
    """Whether anything listens. What the library leaves behind once a hidden state was asked for is deaf here."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(getattr(hook, "__module__", "") != "transformers.utils.output_capturing" for hook in hooks)


def address(held: Tensor | Array) -> int:
    """Where its numbers lie; 0 if there are none."""
    if isinstance(held, Tensor):
        return held.data_ptr() if held.numel() else 0
    return int(held.ctypes.data) if held.size else 0


def _ends(decoder: Any) -> tuple[int, Array, int, Array, int] | None:
    """Bits and bytes of the rows of tokens and of the head, and its outputs: what `answer` takes of them.

    None if one of them, or the rotary table, is not what it computes.
    """
    table, head, rotary = decoder.base.get_input_embeddings(), decoder.head, decoder.base.rotary_emb
    known = isinstance(table, Table) and table.factor == 1 and isinstance(head, Blocks) and head.bias is None
    if not known or getattr(rotary, "rope_type", None) not in STATIC or any(map(_hooked, (table, head, rotary))):
        return None
    return table.packed.bits, table.packed.codes.numpy(), head.bits, head.codes.numpy(), head.out_features


def _room(lanes: list[Lanes], windows: Sequence[int | None], new: int) -> Array:
    """What `walk` takes of all caches, in which there is room for so many new tokens."""
    for held in lanes:
        held.reserve(new)
    columns = [(*map(address, (h.keys, h.values, h.positions)), h.room, h.n) for h in lanes]
    lengths = [0 if h.counts is None else address(h.counts) for h in lanes]
    return np.array([(*c, window or 0, own) for c, window, own in zip(columns, windows, lengths, strict=True)])


def _added(lanes: list[Lanes], new: int) -> None:
    """The lanes hold what `walk` left in them."""
    for held in lanes:
        held.n += new
        held.counts = None if held.counts is None else held.counts + new


def _places(at: Tensor, tree: Tensor | None) -> tuple[Array, Array, int]:
    """Where new tokens are and what of each other they see, and the threads that share the work."""
    sees = NO_TREE if tree is None else tree.contiguous().numpy()
    return at.contiguous().numpy(), sees, torch.get_num_threads()


class Layer:
    """What the compiled calls take of one layer: its weights as arrays, without a copy."""

    def __init__(self, layer: Any):
        attention, mlp = layer.self_attn, layer.mlp
        q, k, v = attention.q_proj, attention.k_proj, attention.v_proj
        self.bits, self.scale, self.size = q.bits, attention.scaling, attention.head_dim
        self.heads, self.shared = q.out_features // self.size, k.out_features // self.size
        biases = [torch.zeros(p.out_features) if p.bias is None else p.bias for p in (q, k, v)]
        bias = NOTHING if q.bias is k.bias is v.bias is None else torch.cat(biases).numpy()
        before, after = layer.input_layernorm, layer.post_attention_layernorm
        norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        gains = [NOTHING if norm is None else norm.weight.numpy() for norm in norms]
        self.first = self.bits, before.weight.numpy(), before.variance_epsilon, q.beside.numpy(), bias, q.blocks
        self.turn = self.heads, self.shared, *gains
        self.last = (
            *(attention.o_proj.codes.numpy(), attention.o_proj.blocks),
            *(after.weight.numpy(), after.variance_epsilon),
            *(mlp.gate_proj.beside.numpy(), mlp.gate_proj.blocks),
            *(mlp.down_proj.codes.numpy(), mlp.down_proj.blocks),
        )
        held = [before.weight, q.beside, bias, *gains, attention.o_proj.codes, after.weight]
        held += [mlp.gate_proj.beside, mlp.down_proj.codes]
        self.addresses = [address(x) for x in held]
        # What `walk` takes of all layers alike: all but the addresses.
        self.eps = before.variance_epsilon
        self.alike = self.bits, self.heads, self.shared, mlp.up_proj.out_features, self.eps, self.scale


class Lean:
    """A decoder's layers as compiled calls."""

    def __init__(self, decoder: Decoder):
        from tokenmill.models import kernels  # numba is imported for those who have packed weights

        self.kernels: Any = kernels
        self.decoder, self.layers = decoder, [Layer(layer) for layer in decoder.layers]
        first, norm = self.layers[0], cast(Any, decoder.final_norm)
        self.alike = all(layer.alike == first.alike for layer in self.layers) and first.size % 8 == 0
        self._weights = np.array([layer.addresses for layer in self.layers])
        self._turn: tuple[Any, Array, Array] = None, NOTHING, NOTHING  # the angles that came last, as arrays
        self._all_turns = np.empty((2, 0, first.size), np.float32)  # cos and sin of all positions so far
        known = type(norm) is type(cast(Any, decoder.layers[0]).input_layernorm) and not _hooked(norm)
        known = known and norm.weight.dtype == torch.float32
        self._norm = (norm.weight.numpy(), norm.variance_epsilon) if known else None
        self._ends = _ends(decoder) if self.alike and known and norm.variance_epsilon == first.eps else None

    def threads(self) -> AbstractContextManager[None]:
        """Around a pass."""
        return self.kernels.threads()

    def walk(
        self, hidden: Tensor, angles: tuple[Tensor, Tensor], layers: Sequence[int], lanes: list[Lanes],
        windows: Sequence[int | None], at: Tensor, tree: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Several layers in one call, where no recipe has a say in between: hidden states (B, Q, E) to (B, Q, E).

        `lanes` and `windows` are those of the `layers`. What new tokens at positions `at` (B, Q) leave in every
        layer's lanes is appended to them.
        """
        bits, *sizes = self.layers[0].alike
        out = hidden.reshape(-1, hidden.shape[2]).clone()
        cos, sin = (x.reshape(-1, self.layers[0].size).numpy() for x in angles)
        caches = _room(lanes, windows, hidden.shape[1])
        self.kernels.walk(bits, out.numpy(), self._weights[[*layers]], caches, *sizes, cos, sin, *_places(at, tree))
        _added(lanes, hidden.shape[1])
        return out.view_as(hidden)

    @property
    def answers(self) -> bool:
        """`answer` computes all of the model."""
        return self._ends is not None

    def answer(
        self, ids: Tensor, lanes: list[Lanes], windows: Sequence[int | None], at: Tensor, tree: Tensor | None, last: int
    ) -> tuple[Tensor, Tensor]:
        """From tokens (B, Q) to final hidden states (B, Q, E) and the newest `last` tokens' logits (B, last, V).

        As `walk`, with what the model does around its layers.
        """
        (bits, *sizes), (rows, new) = self.layers[0].alike, ids.shape
        assert self._norm is not None
        assert self._ends is not None
        table_bits, table, head_bits, head, outputs = self._ends
        places, logits = _places(at, tree), np.empty((rows, last, outputs), np.float32)
        hidden = self.kernels.answer(
            ids.contiguous().numpy(), table_bits, table, bits, self._weights, _room(lanes, windows, new), *sizes,
            *self._turns(1 + int(places[0].max())), *places, self._norm[0], head_bits, head, logits,
        )  # fmt: skip
        _added(lanes, new)
        return torch.from_numpy(hidden).view(rows, new, -1), torch.from_numpy(logits)

    def _turns(self, count: int) -> Array:
        """cos and sin of so many positions or more, as the model computes them: (2, P, D)."""
        if self._all_turns.shape[1] < count:
            positions = torch.arange(2 * count)[None]
            angles = self.decoder.angles(torch.empty(0), positions, 0)
            self._all_turns = np.stack([x[0].numpy() for x in angles])
        return self._all_turns

    def norm(self, hidden: Tensor) -> Tensor:
        """The decoder's final norm of hidden states (B, Q, E)."""
        if self._norm is None:
            return self.decoder.final_norm(hidden)
        out = self.kernels.normed(hidden.reshape(-1, hidden.shape[-1]).numpy(), *self._norm)
        return torch.from_numpy(out).view_as(hidden)

    def layer(self, index: int, hidden: Tensor, angles: tuple[Tensor, Tensor], attend: Callable[..., Tensor]) -> Tensor:
        """One layer: hidden states (B, Q, E) to (B, Q, E). `attend` is what `Pass.attend` is."""
        layer = self.layers[index]
        rows, new, width = hidden.shape
        hidden = hidden.reshape(rows * new, width)
        if self._turn[0] is not angles:  # layers of one type share them
            cos, sin = (x.reshape(-1, layer.size).numpy() for x in angles)
            self._turn = angles, cos, sin
        _, cos, sin = self._turn
        both = hidden.new_empty(rows, new, layer.heads + 2 * layer.shared, layer.size)
        given, x = layer.first, hidden.numpy()
        self.kernels.enter(given[0], x, *given[1:], cos, sin, *layer.turn, both.view(rows * new, -1).numpy())
        queries, keys, values = both.transpose(1, 2).split((layer.heads, layer.shared, layer.shared), 1)
        seen = attend(index, queries, keys, values, layer.scale).transpose(1, 2).reshape(rows * new, -1)
        out = torch.empty_like(hidden)
        self.kernels.leave(layer.bits, x, seen.numpy(), *layer.last, out.numpy())
        return out.view(rows, new, width)

    def read(
        self, lanes: Lanes, queries: Tensor, at: Tensor, window: int | None, tree: Tensor | None, scale: float
    ) -> Tensor:
        """Queries (B, H, Q, D) at positions (B, Q) over what a layer holds: (B, H, Q, D).

        What `Pass` works out with masks, from the same positions: also where lanes differ in length.
        """
        queries = queries.contiguous()
        out = torch.empty_like(queries)
        count = np.full(lanes.starts.shape, lanes.n) if lanes.even else lanes.count().numpy()
        self.kernels.attend(
            queries.numpy(), lanes.keys.numpy(), lanes.values.numpy(), lanes.positions.numpy(), lanes.starts.numpy(),
            count, at.numpy(), window or 0, NO_TREE if tree is None else tree.contiguous().numpy(),
            scale, out.numpy(),
        )  # fmt: skip
        return out
