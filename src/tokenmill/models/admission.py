"""Which models the engine runs: what it relies on is proven on the model itself, once for a configuration.

The proof compares a prompt and several tokens after it with the model's own forward and the library's own cache. It
also finds out, layer by layer, how a key moves from one position to another. A model that fails is refused in one line.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tokenmill.errors import ModelError, TokenmillError
from tokenmill.models.architectures import (
    CACHE,
    Decoder,
    RotaryEmbedding,
    Unrotated,
    decoder_of,
    frequencies_of,
    logits_of,
)  # fmt: skip
from tokenmill.models.engine import call
from tokenmill.models.owner import behind_dispatcher, in_pass, owner_of
from tokenmill.models.weights import Product
from tokenmill.types import Rotary

PROMPT, FURTHER = 8, 3  # tokens
PLACES = (0, 7, 150)  # positions between which a key is moved, where the context has them
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}  # mean difference of logits over their deviation
PACKED_TOLERANCE = 1e-2  # compiled products of packed weights round otherwise than torch's
HALF_TOLERANCE = 5e-2
PLAIN = {"use_cache": True, "output_attentions": False, "output_hidden_states": False}  # whatever the config says


@dataclass(frozen=True)
class Proof:
    """What was found out about a model."""

    rotaries: tuple[Rotary | None, ...]  # per layer; None: how a key moves is not known
    head: bool  # logits are those of `architectures.head_of`
    skippable: bool  # a layer's attention reads what `Decoder.attention_input` gives


Install = Callable[[], AbstractContextManager[Any]]  # puts the model under the engine without a recipe

_by_model: WeakKeyDictionary[Any, tuple[Any, Proof]] = WeakKeyDictionary()
_by_configuration: dict[tuple[Any, ...], Proof] = {}


def proof_of(model: Any, install: Install) -> Proof:
    """The proof for this model, made the first time that its configuration comes. Raises ModelError.

    A refusal is not remembered: it may be about this model's weights or hooks.
    """
    replaced = _replaced(model)
    build = tuple((type(module), type(module).forward) for module in model.modules())
    key = build, str(model.config.to_dict()), model.dtype, str(model.device), replaced
    known = _by_model.get(model)
    if known is not None and known[0] == key:
        return known[1]
    found = None if replaced else _by_configuration.get(key)
    if found is None:
        found = _prove(model, install)
        if not replaced:
            _by_configuration[key] = found
    _by_model[model] = key, found
    return found


def _replaced(model: Any) -> tuple[int, ...]:
    """The forwards that modules of this one model have instead of their class's."""
    own = [vars(module).get("forward") for module in model.modules()]
    return tuple(id(f) for f in (behind_dispatcher(f) for f in own) if f is not None)


def admitted(model: Any, install: Install) -> Decoder:
    """The parts of a model that passed, with the rotary embedding of each layer."""
    decoder, proof = decoder_of(model), proof_of(model, install)
    return replace(decoder, rotaries=proof.rotaries, proven_head=proof.head, skippable=proof.skippable)


def _prove(model: Any, install: Install) -> Proof:
    decoder = decoder_of(model)
    try:
        with torch.no_grad():
            packed = any(isinstance(module, Product) for module in model.modules())
            final, logits = _compare(model, decoder, install, packed)
            with install():
                rotaries, skippable = _layers(decoder)
            head = _same(logits_of(model.config.get_text_config(decoder=True))(_head(model)(final)), logits, packed)
    except TokenmillError as error:
        raise ModelError(f"the engine cannot run '{decoder.kind}': {error}") from error
    except Exception as error:
        raise ModelError(f"the engine cannot run '{decoder.kind}': {type(error).__name__}: {error}") from error
    return Proof(rotaries, head, skippable)


def _head(model: Any) -> Callable[[Tensor], Tensor]:
    return model.get_output_embeddings()


def _same(one: Tensor, other: Tensor, packed: bool = False) -> bool:
    exact = other.dtype in TOLERANCE
    limit = PACKED_TOLERANCE if packed else TOLERANCE.get(other.dtype, HALF_TOLERANCE)
    one, other = one.float(), other.float()
    scale = other.std() if other.shape[-1] > 1 else other.abs().mean()  # the one logit of a vocabulary of one
    apart = (one - other).abs().mean(-1)  # of each token
    # Rounding may send a token to another expert, but not most tokens.
    return bool((apart.mean() if exact else apart.median()) <= limit * scale)


def _compare(model: Any, decoder: Decoder, install: Install, packed: bool) -> tuple[Tensor, Tensor]:
    """A prompt and further tokens, by the library and by the engine: final hidden states and logits of the newest."""
    vocabulary = model.get_input_embeddings().num_embeddings
    context = getattr(decoder.base.config, "max_position_embeddings", None) or PROMPT + FURTHER
    count = min(PROMPT + FURTHER, context)
    prompt = max(1, count - FURTHER)
    ids = (torch.arange(5, 5 + count, device=decoder.device) * 7 % vocabulary)[None]

    def read() -> tuple[list[Tensor], Any]:
        out = model(ids[:, :prompt], **PLAIN)
        logits = [out.logits]
        for token in ids[:, prompt:].split(1, 1):
            out = model(token, **{CACHE: out[CACHE]}, **PLAIN)
            logits.append(out.logits)
        return logits, out[CACHE]

    try:
        with owner_of(decoder.base).serving(decoder.base, None, public=False):  # whatever recipe it is under
            library, _ = read()
    except Exception as error:
        raise ModelError(f"its own forward fails: {type(error).__name__}: {error}") from error
    with install() as engine:
        ours, cache = read()
        final = engine.hidden
    for layer, (store, window) in enumerate(zip(cache.stores, decoder.windows, strict=True)):
        if store.lanes.n != count and not (window is not None and store.lanes.n >= min(window, count)):
            raise ModelError(f"layer {layer} stored {store.lanes.n} of {count} tokens for attention")
    if not all(bool(logits.isfinite().all()) for logits in library):
        raise ModelError("its logits are NaN or infinite: its weights, or its number format, are broken")
    steps = [(library[0], ours[0], "the prompt")]
    if count > prompt:
        steps.append((torch.cat(library[1:], 1), torch.cat(ours[1:], 1), "tokens after the prompt"))
    for expected, got, where in steps:
        if not _same(got, expected, packed):
            raise ModelError(
                f"its logits differ from the library's at {where} "
                f"(by {float((got - expected).abs().max()):.2g}, deviation {float(expected.std()):.2g})"
            )
    return final, library[-1]


class _Probe:
    """Takes the keys of one layer instead of attending."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, *rest: Any) -> Tensor:
        self.keys = keys
        return torch.zeros_like(queries[..., : values.shape[-1]])


def _layers(decoder: Decoder) -> tuple[tuple[Rotary | None, ...], bool]:
    """How each layer moves keys, and whether all attentions read what the decoder's record says."""
    some = next(decoder.layers[0].parameters()).new_empty(0, device=decoder.device)  # weights may be offloaded
    width = decoder.embed(
        torch.zeros(1, 1, dtype=torch.long, device=decoder.device),
        torch.zeros(1, 1, dtype=torch.long, device=decoder.device),
    ).shape[-1]
    generator = torch.Generator().manual_seed(0)
    hidden = (
        torch.randn(1, 1, width, generator=generator).to(some.device, _float_type(some)).expand(-1, len(PLACES), -1)
    )
    limit = decoder.limit or PLACES[-1] + 1
    places = torch.tensor(PLACES, device=some.device).clamp(max=limit - 1)
    positions = places[None]
    rotaries: list[Rotary | None] = []
    skippable = True
    for index, layer in enumerate(decoder.layers):
        probe, angles = _Probe(), decoder.angles(hidden, positions, index)
        inputs: list[Tensor] = []
        attention = getattr(layer, decoder.attention)
        handle = attention.register_forward_pre_hook(
            lambda module, given, named, inputs=inputs: (  # not of a forward that another thread runs meanwhile
                inputs.append(given[0] if given else named["hidden_states"]) if in_pass() else None
            ),
            with_kwargs=True,
        )
        try:
            call(decoder, layer, hidden, angles, positions, probe)
        finally:
            handle.remove()
        skippable = skippable and len(inputs) == 1 and _same(decoder.attention_input(index, hidden), inputs[0])
        assert probe.keys is not None
        rotaries.append(
            None if decoder.learned_positions else _rotary(probe.keys, places, frequencies_of(decoder, index))
        )
    return tuple(rotaries), skippable


def _float_type(x: Tensor) -> torch.dtype:
    return x.dtype if x.is_floating_point() else torch.float32


def _rotary(keys: Tensor, places: Tensor, frequencies: Tensor | None) -> Rotary | None:
    """What turns the key (1, K, 3, D) of the first place into those of the others."""
    size = keys.shape[-1]
    candidates: list[Rotary] = []
    if frequencies is not None and 2 * len(frequencies) <= size:
        for start in dict.fromkeys((0, size - 2 * len(frequencies))):
            candidates += [RotaryEmbedding(frequencies, half, start) for half in (True, False)]
    limit = 1e-3 if keys.dtype in TOLERANCE else 2e-2
    first = keys[:, :, :1].float().expand(-1, -1, len(PLACES), -1)
    by = places.expand(first.shape[:3])
    for candidate in (*candidates, Unrotated()):  # last, for keys that are zero lie still under all
        if bool((candidate.rotate(first, by) - keys.float()).abs().amax() <= limit * keys.float().abs().amax()):
            return candidate
    return None
