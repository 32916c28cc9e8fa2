"""How each family of decoders names its parts. One record a family; unknown families are tried and checked.

The engine walks a decoder layer by layer itself, and this is all it must know to do so.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenmill.errors import ModelError

# Families the test-suite runs. Others that look alike are accepted after a self-check against their own forward.
TESTED = ("llama", "qwen2", "qwen3", "mistral", "gemma3_text", "phi3", "gpt2")


CAP = "final_logit_softcapping"
HEADED = ("Llama", "Mistral", "Qwen2", "Qwen3")  # whose logits are the head's output as it is


@dataclass(frozen=True)
class HalfRotary:
    """Rotary embedding that pairs dimension i with i + r/2 of the first r (Llama and most others)."""

    frequencies: Tensor  # (r / 2,)

    def rotate(self, x: Tensor, by: Tensor) -> Tensor:
        angle = by[..., None].float() * self.frequencies.to(x.device)  # (..., T, r/2)
        cos, sin = angle.cos(), angle.sin()
        half = self.frequencies.shape[0]
        one, other, rest = x[..., :half].float(), x[..., half : 2 * half].float(), x[..., 2 * half :]
        turned = torch.cat([one * cos - other * sin, other * cos + one * sin], -1)
        return torch.cat([turned.to(x.dtype), rest], -1)


@dataclass(frozen=True)
class Decoder:
    """A model's parts under one set of names."""

    model: nn.Module  # with the language-model head
    base: nn.Module  # without it
    layers: list[nn.Module]
    final_norm: nn.Module
    attention: str  # attribute of a layer
    input_norm: str
    embed: Callable[[Tensor, Tensor], Tensor]  # ids (B, Q), positions (B, Q) -> (B, Q, E)
    place: Callable[[Tensor, Tensor], Tensor]  # the same for ready embeddings
    angles: Callable[[Tensor, Tensor, int], Any]  # hidden, positions, layer -> what the layer takes, or None
    rotaries: tuple[HalfRotary | None, ...]  # per layer
    windows: tuple[int | None, ...]  # per layer: sliding window
    types: tuple[str, ...]  # per layer: layers of one type share their angles
    kind: str
    head: nn.Module | None = None  # final hidden states -> logits, where the model's own forward does nothing else

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def decoder_of(model: Any) -> Decoder:
    """The parts of a Hugging Face decoder, or a ModelError that says what is missing."""
    config = model.config.get_text_config(decoder=True)
    kind = config.model_type
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(f"{kind} is an encoder-decoder; Tokenmill runs decoder-only language models")
    if not hasattr(model, "lm_head") and not hasattr(model, "get_output_embeddings"):
        raise ModelError(f"{type(model).__name__} has no language-model head; load it with AutoModelForCausalLM")
    base = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    if hasattr(base, "layers") and hasattr(base, "rotary_emb") and hasattr(base, "embed_tokens"):
        return _llama_like(model, base, config, kind)
    if hasattr(base, "h") and hasattr(base, "wpe"):
        return _gpt2_like(model, base, config, kind)
    raise ModelError(
        f"the engine does not know how a '{kind}' model is built; it knows {', '.join(TESTED)} and models like them"
    )


def head_of(model: Any, words: int | None = None) -> Callable[[Tensor], Tensor]:
    """The model's own head, final states (..., E) -> logits (..., V), or of the first `words` of the vocabulary.

    Gradients flow to the states alone.
    """
    output, cap = model.get_output_embeddings(), getattr(model.config.get_text_config(decoder=True), CAP, None)
    weight, bias = output.weight.detach()[:words], getattr(output, "bias", None)  # packed: unpacked here, once
    bias = None if bias is None else bias.detach()[:words]

    def head(states: Tensor) -> Tensor:
        logits = nn.functional.linear(states.to(weight.dtype), weight, bias)
        return logits if not cap else cap * torch.tanh(logits / cap)

    return head


def _llama_like(model: Any, base: Any, config: Any, kind: str) -> Decoder:
    count = config.num_hidden_layers
    types: list[str] = list(getattr(config, "layer_types", None) or ["full_attention"] * count)
    other = set(types) - {"full_attention", "sliding_attention"}
    shared = getattr(config, "num_kv_shared_layers", 0)
    if other or shared:
        what = ", ".join(sorted(map(str, other))) or "shared keys and values"
        raise ModelError(f"'{kind}' has layers of type {what}; only full and sliding-window attention are supported")
    window = getattr(config, "sliding_window", None)
    if getattr(config, "layer_types", None) is None and window:
        types = ["sliding_attention"] * count  # Mistral, Phi-3: all layers slide
    if getattr(config, "use_sliding_window", True) is False:
        types = ["full_attention"] * count
    by_type = "layer_type" in inspect.signature(base.rotary_emb.forward).parameters

    def angles(hidden: Tensor, positions: Tensor, layer: int) -> Any:
        return base.rotary_emb(hidden, positions, types[layer]) if by_type else base.rotary_emb(hidden, positions)

    def frequencies(layer: int) -> HalfRotary:
        return HalfRotary(getattr(base.rotary_emb, f"{types[layer]}_inv_freq" if by_type else "inv_freq"))

    return Decoder(
        model=model,
        base=base,
        layers=list(base.layers),
        final_norm=base.norm,
        attention="self_attn",
        input_norm="input_layernorm",
        embed=lambda ids, positions: base.embed_tokens(ids),
        place=lambda embeds, positions: embeds,
        angles=angles,
        rotaries=tuple(frequencies(i) for i in range(count)),
        windows=tuple(window if kind_ == "sliding_attention" else None for kind_ in types),
        types=tuple(types),
        kind=kind,
        head=model.lm_head if _adds_its_head(model) and _adds_its_head(base) else None,
    )


def _adds_its_head(module: nn.Module) -> bool:
    """Whether a model is known to do no more than its decoder and its head, and nobody listens to its calls."""
    return (
        type(module).__module__.startswith("transformers.models.")
        and type(module).__name__.removesuffix("ForCausalLM").removesuffix("Model") in HEADED
        and not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
    )


def _gpt2_like(model: Any, base: Any, config: Any, kind: str) -> Decoder:
    def place(embeds: Tensor, positions: Tensor) -> Tensor:
        return base.drop(embeds + base.wpe(positions))

    return Decoder(
        model=model,
        base=base,
        layers=list(base.h),
        final_norm=base.ln_f,
        attention="attn",
        input_norm="ln_1",
        embed=lambda ids, positions: place(base.wte(ids), positions),
        place=place,
        angles=lambda hidden, positions, layer: None,
        rotaries=(None,) * len(base.h),
        windows=(None,) * len(base.h),
        types=("full_attention",) * len(base.h),
        kind=kind,
    )
