"""How each family of decoders names its parts. One record a family; unknown families are tried and checked.

The engine walks a decoder layer by layer itself, and this is all it must know to do so.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPast

from tokenmill.errors import ModelError
from tokenmill.types import Rotary

# What the library calls a cache, as an argument and in what a model gives: the new name from transformers 5.24 on.
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
CAP = "final_logit_softcapping"
HEADED = ("Llama", "Mistral", "Qwen2", "Qwen3")  # whose logits are the head's output as it is
LENGTH_DEPENDENT = {"dynamic", "longrope"}  # rotary embeddings whose frequencies change as the text grows

# What decoders call one part. The first name that a module has is taken.
NORMS = ("norm", "final_layernorm", "final_layer_norm", "embedding_norm", "ln_f")
INPUT_NORMS = ("input_layernorm", "operator_norm", "self_attn_layer_norm", "attention_layernorm")
ATTENTIONS = ("self_attn", "attention", "self_attention")
EMBEDDINGS = ("embed_tokens", "embed_in")


@dataclass(frozen=True)
class RotaryEmbedding:
    """Turns r dimensions of a head, from `start` on, in pairs: `half` pairs i with i + r/2, else i with i + 1."""

    frequencies: Tensor  # (r / 2,)
    half: bool = True
    start: int = 0

    def rotate(self, x: Tensor, by: Tensor) -> Tensor:
        angle = by[..., None].float() * self.frequencies.to(x.device)  # (..., T, r/2)
        cos, sin = angle.cos(), angle.sin()
        pairs = self.frequencies.shape[0]
        before, turned, behind = x.split([self.start, 2 * pairs, x.shape[-1] - self.start - 2 * pairs], -1)
        turned = turned.float()
        one, other = turned.chunk(2, -1) if self.half else (turned[..., ::2], turned[..., 1::2])
        parts = one * cos - other * sin, other * cos + one * sin
        turned = torch.cat(parts, -1) if self.half else torch.stack(parts, -1).flatten(-2)
        return torch.cat([before, turned.to(x.dtype), behind], -1)


class Unrotated:
    """A layer whose keys do not depend on their positions."""

    def rotate(self, x: Tensor, by: Tensor) -> Tensor:
        return x


@dataclass(frozen=True)
class Decoder:
    """A model's parts under one set of names."""

    model: nn.Module  # with the language-model head
    base: nn.Module  # without it
    layers: list[nn.Module]
    final_norm: Callable[[Tensor], Tensor]
    attention: str  # attribute of a layer
    input_norm: str | None  # None: the attention reads hidden states as they are
    embed: Callable[[Tensor, Tensor], Tensor]  # ids (B, Q), positions (B, Q) -> (B, Q, E)
    place: Callable[[Tensor, Tensor], Tensor]  # the same for ready embeddings
    angles: Callable[[Tensor, Tensor, int], Any]  # hidden, positions, layer -> what the layer takes, or None
    rotaries: tuple[Rotary | None, ...]  # per layer; None: a key cannot be moved to another position
    windows: tuple[int | None, ...]  # per layer: sliding window
    types: tuple[str, ...]  # per layer: layers of one type share their angles
    kind: str
    head: nn.Module | None = None  # final hidden states -> logits, where the model's own forward does nothing else
    learned_positions: bool = False  # positions are part of the embeddings, so keys cannot be moved
    cache_argument: str = CACHE  # what a layer calls the cache
    proven_head: bool = False  # `head_of` gives the model's logits
    skippable: bool = False  # `attention_input` is what each attention reads
    switch: int | None = None  # longrope: texts of more tokens are read with other frequencies, from the start

    def attention_input(self, layer: int, hidden: Tensor) -> Tensor:
        """What a layer's attention reads where the layer is given `hidden` (B, Q, E)."""
        return hidden if self.input_norm is None else getattr(self.layers[layer], self.input_norm)(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """The model's logits (..., V) for final hidden states (..., E)."""
        finish = logits_of(self.model.config.get_text_config(decoder=True))  # type: ignore[union-attr, operator]
        return finish(self.model.get_output_embeddings()(hidden))  # type: ignore[operator]

    @property
    def limit(self) -> int | None:
        """Tokens that positions in the cache reach, where frequencies are those of the trained length."""
        return self.switch or getattr(self.base.config, "max_position_embeddings", None)

    @property
    def device(self) -> torch.device:
        return device_of(self.model)


def device_of(model: Any) -> torch.device:
    """Where a model computes. Weights that are offloaded lie on "meta"; then the hooks that fetch them know.

    Raises ModelError for a model without weights.
    """
    for parameter in model.parameters():
        if parameter.device.type != "meta":
            return parameter.device
    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        for each in getattr(hook, "hooks", (hook,)):
            if (device := getattr(each, "execution_device", None)) is not None:
                return torch.device(device)
    raise ModelError("the model has no weights: they are on the device 'meta'; load them first")


def decoder_of(model: Any) -> Decoder:
    """The parts of a Hugging Face decoder, or a ModelError that says what is missing."""
    config = getattr(model, "config", None)
    if not isinstance(config, PretrainedConfig):
        raise ModelError(f"{type(model).__name__} is not a transformers model; load it with AutoModelForCausalLM")
    config = config.get_text_config(decoder=True)
    kind = config.model_type
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(f"{kind} is an encoder-decoder; Tokenmill runs decoder-only language models")
    if not callable(getattr(model, "get_output_embeddings", None)) or model.get_output_embeddings() is None:
        raise ModelError(f"{type(model).__name__} has no language-model head; load it with AutoModelForCausalLM")
    base = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    if hasattr(base, "layers") and hasattr(base, "rotary_emb") and _name(base, EMBEDDINGS):
        return _llama_like(model, base, config, kind)
    if hasattr(base, "h") and hasattr(base, "wpe"):
        return _gpt2_like(model, base, config, kind)
    if kind == "opt":
        return _opt_like(model, base, config, kind)
    raise ModelError(
        f"the engine does not know how a '{kind}' model is built; docs/families.md lists the families that it runs"
    )


def _name(module: Any, names: Sequence[str]) -> str | None:
    """The first of these names that the module has."""
    return next((name for name in names if hasattr(module, name)), None)


def _part(module: Any, names: Sequence[str], kind: str) -> str:
    found = _name(module, names)
    if found is None:
        raise ModelError(
            f"'{kind}': {type(module).__name__} has none of {', '.join(names)}, so the engine cannot run it"
        )
    return found


def logits_of(config: Any) -> Callable[[Tensor], Tensor]:
    """What a model does to the output of its head: scales it (Cohere, Granite) and caps it (Gemma 2)."""
    cap = getattr(config, CAP, None)
    factor = getattr(config, "logit_scale", None) or 1.0
    factor /= getattr(config, "logits_scaling", None) or 1.0

    def finish(logits: Tensor) -> Tensor:
        logits = logits if factor == 1.0 else logits * factor
        return cap * torch.tanh(logits / cap) if cap else logits

    return finish


def head_of(model: Any, words: int | None = None) -> Callable[[Tensor], Tensor]:
    """The model's own head, final states (..., E) -> logits (..., V), or of the first `words` of the vocabulary.

    Gradients flow to the states alone.
    """
    output, finish = model.get_output_embeddings(), logits_of(model.config.get_text_config(decoder=True))
    if output.weight.is_meta:
        raise ModelError(
            "the model's head is offloaded, and what is asked for needs its weights; load it on one device"
        )
    weight, bias = output.weight.detach()[:words], getattr(output, "bias", None)  # packed: unpacked here, once
    bias = None if bias is None else bias.detach()[:words]

    def head(states: Tensor) -> Tensor:
        return finish(nn.functional.linear(states.to(weight.dtype), weight, bias))

    return head


def context_of(model: Any) -> int | None:
    """Tokens that a model's positions reach; None without a bound."""
    config = model.config.get_text_config(decoder=True)
    limit = getattr(config, "max_position_embeddings", None)
    scaling = getattr(config, "rope_parameters", None) or {}
    if limit is not None and scaling.get("rope_type") == "dynamic":
        return int(limit * scaling.get("factor", 1.0))  # frequencies change as the text grows beyond the trained length
    return limit


def _llama_like(model: Any, base: Any, config: Any, kind: str) -> Decoder:
    count = config.num_hidden_layers
    types: list[str] = list(getattr(config, "layer_types", None) or ["full_attention"] * count)
    other = set(types) - {"full_attention", "sliding_attention"}
    shared = getattr(config, "num_kv_shared_layers", 0)
    if other or shared:
        what = ", ".join(sorted(map(str, other))) or "shared keys and values"
        raise ModelError(f"'{kind}' has layers of type {what}; only full and sliding-window attention are supported")
    if getattr(config, "hidden_size_per_layer_input", 0):
        raise ModelError(f"'{kind}' adds embeddings of each token to every layer, which the engine does not do")
    if len(base.layers) != count:
        raise ModelError(f"'{kind}' has {len(base.layers)} layers where its configuration names {count}")
    window = getattr(config, "sliding_window", None)
    if getattr(config, "layer_types", None) is None and window:
        types = ["sliding_attention"] * count  # Mistral, Phi-3: all layers slide
    if getattr(config, "use_sliding_window", True) is False:
        types = ["full_attention"] * count
    rotary, embedding = base.rotary_emb, _part(base, EMBEDDINGS, kind)
    by_type = "layer_type" in inspect.signature(rotary.forward).parameters
    rope_type = getattr(rotary, "rope_type", None)
    rope_types = {*rope_type.values()} if isinstance(rope_type, dict) else {rope_type}

    def angles(hidden: Tensor, positions: Tensor, layer: int) -> Any:
        turns = rotary
        if rope_types & LENGTH_DEPENDENT:  # it changes itself as the text grows, and the model's must not
            turns = deepcopy(rotary, {id(rotary.config): rotary.config})
        return turns(hidden, positions, types[layer]) if by_type else turns(hidden, positions)

    return Decoder(
        model=model,
        base=base,
        layers=list(base.layers),
        final_norm=getattr(base, _part(base, NORMS, kind)),
        attention=_part(base.layers[0], ATTENTIONS, kind),
        input_norm=_name(base.layers[0], INPUT_NORMS),
        embed=lambda ids, positions: getattr(base, embedding)(ids),
        place=lambda embeds, positions: embeds,
        angles=angles,
        rotaries=(None,) * count,  # see admission.py
        windows=tuple(window if kind_ == "sliding_attention" else None for kind_ in types),
        types=tuple(types),
        kind=kind,
        head=model.lm_head if _adds_its_head(model) and _adds_its_head(base) else None,
        cache_argument=_cache_argument(base.layers[0]),
        switch=_switch(config) if "longrope" in rope_types else None,
    )


def _switch(config: Any) -> int | None:
    """The length at which longrope changes its frequencies, where all layers change at once."""
    parameters = config.rope_parameters
    nested = [value for value in parameters.values() if isinstance(value, dict) and value.get("rope_type")]
    found = {value["original_max_position_embeddings"] for value in nested or [parameters]}
    return found.pop()


def _cache_argument(layer: nn.Module) -> str:
    names = inspect.signature(layer.forward).parameters
    return next((name for name in ("cache", "layer_past", "past_key_values") if name in names), CACHE)


def frequencies_of(decoder: Decoder, layer: int) -> Tensor | None:
    """How far a layer's rotary embedding turns each pair of dimensions for one position: (r / 2,)."""
    rotary, kind = getattr(decoder.base, "rotary_emb", None), decoder.types[layer]
    for name in (f"{kind}_original_inv_freq", f"{kind}_inv_freq", "original_inv_freq", "inv_freq"):
        found = getattr(rotary, name, None)
        if isinstance(found, Tensor):
            return found.detach().clone()  # a length-dependent embedding writes into its buffer
    return None


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
        attention=_part(base.h[0], ("attn",), kind),
        input_norm="ln_1",
        embed=lambda ids, positions: place(base.wte(ids), positions),
        place=place,
        angles=lambda hidden, positions, layer: None,
        rotaries=(None,) * len(base.h),
        windows=(None,) * len(base.h),
        types=("full_attention",) * len(base.h),
        kind=kind,
        learned_positions=True,
    )


def _opt_like(model: Any, base: Any, config: Any, kind: str) -> Decoder:
    base = getattr(base, "decoder", base)

    def place(embeds: Tensor, positions: Tensor) -> Tensor:
        embeds = embeds if base.project_in is None else base.project_in(embeds)
        return embeds + base.embed_positions(None, position_ids=positions)

    def final_norm(hidden: Tensor) -> Tensor:
        hidden = hidden if base.final_layer_norm is None else base.final_layer_norm(hidden)
        return hidden if base.project_out is None else base.project_out(hidden)

    return Decoder(
        model=model,
        base=base,
        layers=list(base.layers),
        final_norm=final_norm,
        attention="self_attn",
        input_norm="self_attn_layer_norm" if config.do_layer_norm_before else None,
        embed=lambda ids, positions: place(base.embed_tokens(ids), positions),
        place=place,
        angles=lambda hidden, positions, layer: None,
        rotaries=(None,) * len(base.layers),
        windows=(None,) * len(base.layers),
        types=("full_attention",) * len(base.layers),
        kind=kind,
        learned_positions=True,
    )
