"""Layers of the Llama kind over packed weights in two compiled calls each, around the attention.

The plain walk calls some thirty small operations for a layer, and for one token they cost more than the products.
Here norm, products and rotation are one call, and what follows attention is another. They compute what the layer's
own modules compute, which stay the definition; the engine takes this way where `lean_of` finds that it can. What
a recipe decides is not touched: keys, values and decisions pass through the same `Pass.attend`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tokenmill.models.architectures import Decoder
from tokenmill.models.lanes import Lanes
from tokenmill.models.weights import Blocks

KNOWN = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
PRODUCTS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FEW = 64  # new tokens up to which `read` is used; a prompt is read by torch's attention
Array = np.ndarray[Any, Any]
NOTHING, NO_TREE = np.empty(0, np.float32), np.empty((0, 0), np.bool_)


def lean_of(decoder: Decoder) -> Lean | None:
    """The decoder's layers as compiled calls, or None if one of them is not what these compute."""
    return Lean([Layer(layer) for layer in decoder.layers]) if all(map(_fits, decoder.layers)) else None


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
        self.alike = self.bits, self.heads, self.shared, mlp.up_proj.out_features, before.variance_epsilon, self.scale


class Lean:
    """A decoder's layers as compiled calls."""

    def __init__(self, layers: list[Layer]):
        from tokenmill.models import kernels  # numba is imported for those who have packed weights

        self.kernels: Any = kernels
        self.layers = layers
        self.alike = all(layer.alike == layers[0].alike for layer in layers) and layers[0].size % 8 == 0
        self._weights = np.array([layer.addresses for layer in layers])
        self._turn: tuple[Any, Array, Array] = None, NOTHING, NOTHING  # the angles that came last, as arrays

    def threads(self) -> AbstractContextManager[None]:
        """Around a pass."""
        return self.kernels.threads()

    def walk(
        self, hidden: Tensor, angles: tuple[Tensor, Tensor], lanes: list[Lanes], windows: Sequence[int | None],
        at: Tensor, tree: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """All layers in one call, where no recipe has a say in between: hidden states (B, Q, E) to (B, Q, E).

        What new tokens at positions `at` (B, Q) leave in every layer's lanes is appended to them.
        """
        new, layer = hidden.shape[1], self.layers[0]
        for held in lanes:
            held.reserve(new)
        caches = [
            (*map(address, (held.keys, held.values, held.positions)), held.room, held.n, window or 0)
            for held, window in zip(lanes, windows, strict=True)
        ]
        out = hidden.reshape(-1, hidden.shape[2]).clone()
        bits, heads, shared, inner, eps, scale = layer.alike
        cos, sin = (x.reshape(-1, layer.size).numpy() for x in angles)
        self.kernels.walk(
            bits, out.numpy(), self._weights, np.array(caches), heads, shared, inner, eps, scale, cos, sin,
            at.contiguous().numpy(), NO_TREE if tree is None else tree.contiguous().numpy(), torch.get_num_threads(),
        )  # fmt: skip
        for held in lanes:
            held.n += new
        return out.view_as(hidden)

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
        """Few queries (B, H, Q, D) at positions (B, Q) over what a layer holds: (B, H, Q, D).

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
