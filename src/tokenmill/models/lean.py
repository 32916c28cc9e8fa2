"""A decoder layer of the Llama kind over packed weights, in two compiled calls around the attention.

The plain walk calls some thirty small operations for a layer; for one token they cost more than the products. Here
norm, products and rotation are one call, what follows attention is another. What they compute is what the layer's
own modules compute, which stay the definition: `Pass` takes this way only where `lean_layers` finds nothing else.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tokenmill.models.architectures import Decoder
from tokenmill.models.weights import Blocks

KNOWN = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}
NOTHING = np.empty(0, np.float32)


def lean_layers(decoder: Decoder) -> list[LeanLayer] | None:
    """The layers as compiled calls; None if one of them is anything but packed weights of a known kind."""
    return [LeanLayer(layer) for layer in decoder.layers] if all(map(_fits, decoder.layers)) else None


def _fits(layer: Any) -> bool:
    if type(layer).__name__ not in KNOWN or not type(layer).__module__.startswith("transformers.models."):
        return False
    products = [m for m in layer.modules() if isinstance(m, Blocks)]
    others = [m for m in layer.modules() if isinstance(m, nn.Linear)]
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in layer.modules())
    plain = isinstance(layer.mlp.act_fn, nn.SiLU) or type(layer.mlp.act_fn).__name__ == "SiLUActivation"
    bare = all(p.bias is None for p in products if p is not layer.self_attn.q_proj) or _qkv_alone_biased(layer)
    return len(products) == 7 and not others and not hooked and plain and bare and not layer.training


def _qkv_alone_biased(layer: Any) -> bool:
    return all(p.bias is None for p in (layer.self_attn.o_proj, *_mlp(layer)))


def _mlp(layer: Any) -> tuple[Blocks, Blocks, Blocks]:
    return layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj


class LeanLayer:
    """What the compiled calls need of one layer. It holds no weights of its own."""

    def __init__(self, layer: Any):
        attention = layer.self_attn
        qkv, (gate, _, down) = (attention.q_proj, attention.k_proj, attention.v_proj), _mlp(layer)
        self.bits, self.scale, self.size = gate.bits, attention.scaling, attention.head_dim
        self.heads, self.shared = (p.out_features // self.size for p in qkv[:2])
        biases = [torch.zeros(p.out_features) if p.bias is None else p.bias for p in qkv]
        self.bias = torch.cat(biases).numpy() if any(p.bias is not None for p in qkv) else NOTHING
        self.norms = [n.weight.detach().numpy() for n in (layer.input_layernorm, layer.post_attention_layernorm)]
        self.eps = layer.input_layernorm.variance_epsilon
        own = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        self.gains = [NOTHING if n is None else n.weight.detach().numpy() for n in own]
        self.qkv, self.up = qkv[0].beside.numpy(), gate.beside.numpy()
        self.out, self.down = attention.o_proj.codes.numpy(), down.codes.numpy()
        self.blocks = [p.blocks for p in (qkv[0], attention.o_proj, gate, down)]

    def enter(self, hidden: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """hidden (B, Q, E) to queries (B, H, Q, D), keys and values (B, K, Q, D)."""
        from tokenmill.models import kernels

        rows, new, _ = hidden.shape
        out = hidden.new_empty(rows, new, self.heads + 2 * self.shared, self.size)
        cos, sin = (x.reshape(-1, self.size).numpy() for x in angles)
        flat = hidden.reshape(rows * new, -1).numpy()
        with kernels.threads():
            kernels.enter(
                self.bits, flat, self.norms[0], self.eps, self.qkv, self.bias, self.blocks[0], cos, sin,
                self.heads, self.shared, *self.gains, out.view(rows * new, -1).numpy(),
            )  # fmt: skip
        queries, keys, values = out.transpose(1, 2).split((self.heads, self.shared, self.shared), 1)
        return queries, keys, values

    def leave(self, hidden: Tensor, seen: Tensor) -> Tensor:
        """hidden (B, Q, E) and what attention gave (B, H, Q, D) to the hidden states for the next layer."""
        from tokenmill.models import kernels

        rows, new, width = hidden.shape
        out = torch.empty_like(hidden)
        with kernels.threads():
            kernels.leave(
                self.bits, hidden.view(-1, width).numpy(), seen.transpose(1, 2).reshape(rows * new, -1).numpy(),
                self.out, self.blocks[1], self.norms[1], self.eps, self.up, self.blocks[2], self.down, self.blocks[3],
                out.view(-1, width).numpy(),
            )  # fmt: skip
        return out
