"""Load a model and its tokenizer: the default one, a Hugging Face name, or a local folder."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import logging as hub_logging
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from tokenmill.errors import ModelError, did_you_mean
from tokenmill.models.checkpoint import bounds, contents, refuse_bad_config
from tokenmill.models.default import NAME, default_model
from tokenmill.models.weights import known, pack
from tokenmill.paths import expanded


def load(
    name: str | os.PathLike[str] = NAME,
    *,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str = "cpu",
    weights: str = "float32",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A decoder in eval mode and its tokenizer.

    `name` is "smollm2" (the default model, no network), a name on the Hugging Face Hub, or a local folder. `weights`
    is the number format they are held in on a CPU: float32 (as `dtype` says), bfloat16, float16, int8, int4, or auto.
    Raises ModelError, in one line, for what is missing, not reachable, or not a decoder.
    """
    dtype, device, weights = _dtype(dtype), _device(device), known(weights)
    name, where = str(name), str(expanded(name))
    local = name == NAME or (bool(name.strip()) and Path(where).exists())
    if not local:
        _refuse_missing_folder(name)
    with _quiet(bars=not local):  # a download may be long
        if name == NAME:
            where = str(default_model())
        with _explained(name):
            if local:
                _refuse_adapter(name, Path(where))
                refuse_bad_config(name, Path(where))
            config = AutoConfig.from_pretrained(where, trust_remote_code=False)
            _refuse_other_kinds(name, config)
            _refuse_odd_sizes(name, config)
            # A config.json may name kernels that transformers would download and run.
            config._attn_implementation = config._experts_implementation = None
            tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
            # Annotated as a model alone; with the loading info it is a pair.
            with _bound(name, Path(where), config) if local else contextlib.nullcontext():
                loaded: Any = AutoModelForCausalLM.from_pretrained(
                    where,
                    config=config,
                    dtype=dtype,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # told below, in one line
                    trust_remote_code=False,
                    use_safetensors=True,
                )
    model, report = loaded
    _refuse_other_weights(name, model, report)
    _refuse_odd_ends(name, model)
    _refuse_odd_tables(name, model)
    return pack(model.to(device).eval(), weights), tokenizer


def _bound(name: str, folder: Path, config: PreTrainedConfig) -> contextlib.AbstractContextManager[None]:
    file = getattr(config, "transformers_weights", None)
    quantized = getattr(config, "quantization_config", None) is not None
    return bounds(name, contents(name, folder, file if isinstance(file, str) else None), quantized=quantized)


def _refuse_adapter(name: str, folder: Path) -> None:
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"'{name}' holds an adapter of another model; merge it (merge_and_unload) and save the whole model"
        )


def _refuse_odd_sizes(name: str, config: PreTrainedConfig) -> None:
    """Sizes that transformers accepts and no model can have. Others are refused when the model is built."""
    text = config.get_text_config(decoder=True)
    for field in ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", "num_key_value_heads"):
        value = getattr(text, field, None)
        if isinstance(value, int) and value < 1:
            raise ModelError(f"'{name}': config.json says {field}={value}; a model has at least 1")
    context = getattr(text, "max_position_embeddings", None)
    if isinstance(context, int) and context < 1:
        raise ModelError(f"'{name}': config.json says max_position_embeddings={context}; a context is at least 1 token")


def _refuse_other_weights(name: str, model: PreTrainedModel, report: dict[str, Any]) -> None:
    """The weights must be those that config.json describes: each of them, of that shape, and no further layers."""
    if wrong := sorted(report["mismatched_keys"]):
        key, found, wanted = wrong[0]
        raise ModelError(
            f"'{name}': {key} has the shape {tuple(found)} in its weights files and {tuple(wanted)} by config.json; "
            "get a complete copy of it"
        )
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"'{name}' lacks {len(missing)} of its weights, such as {missing[0]}; get a complete copy of it"
        )
    known = {_numberless(key) for key in model.state_dict()}
    if further := sorted(key for key in report["unexpected_keys"] if _numberless(key) in known):
        raise ModelError(
            f"'{name}' has {len(further)} weights more than config.json describes, such as {further[0]}; "
            "get a complete copy of it"
        )


def _refuse_odd_tables(name: str, model: PreTrainedModel) -> None:
    """Frequencies of positions that config.json makes infinite or NaN, which attention would hide."""
    for key, table in model.named_buffers():
        if "inv_freq" in key and not torch.isfinite(table).all():
            raise ModelError(f"'{name}': config.json gives positions that are no numbers (rope_parameters); mend it")


def _numberless(key: str) -> str:
    return re.sub(r"\d+", "#", key)


def _refuse_odd_ends(name: str, model: PreTrainedModel) -> None:
    ends = getattr(model.generation_config, "eos_token_id", None)
    listed = ends if isinstance(ends, list | tuple) else [] if ends is None else [ends]
    if odd := [end for end in listed if not isinstance(end, int)]:
        raise ModelError(f"'{name}': generation_config.json has the eos_token_id {odd[0]!r}; it is a token's number")


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ModelError(f"no dtype '{dtype}' to load a model in; there is float32, bfloat16, float16")
    return found


def _device(device: torch.device | str) -> torch.device:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        usable = ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
        raise ModelError(f"no device '{device}' here; there is {', '.join(usable)}") from None
    return torch.device(device)


def _refuse_missing_folder(name: str) -> None:
    """A name on the Hub is `word` or `word/word`; anything else was meant as a path."""
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip():
        raise ModelError(f"no folder '{name}'; give a folder with config.json, a Hugging Face name, or {NAME}")
    if "/" not in name and did_you_mean(name, [NAME]).startswith("did you mean"):
        raise ModelError(f"no model '{name}'; {did_you_mean(name, [NAME])}")


def _refuse_other_kinds(name: str, config: PreTrainedConfig) -> None:
    # By name: asking the mapping for its classes would import every model there is.
    named: Any = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    known = (named,) if isinstance(named, str) else named
    says = list(config.architectures or [])
    if getattr(config, "is_encoder_decoder", False):
        kind = "an encoder-decoder"
    elif known is None:
        kind = f"a {config.model_type} model"
    elif says and not any(n in known or n.endswith(("ForCausalLM", "LMHeadModel")) for n in says):
        kind = f"a {says[0]}"
    elif getattr(config, "is_decoder", None) is False:
        kind = f"a {config.model_type} encoder"
    else:
        return
    raise ModelError(f"'{name}' is {kind}; Tokenmill runs decoders that predict the next token, such as {NAME}")


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """What transformers says in a paragraph and a traceback, in one line."""
    try:
        yield
    except (ModelError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a file may break a library in any way; a panic in Rust is no Exception
        raise ModelError(_reason(name, error)) from error


def _reason(name: str, error: BaseException) -> str:
    kinds = {type(e).__name__ for e in _chain(error)}
    text = " ".join(str(error).split())
    if not isinstance(error, OSError | ValueError | ImportError) and "Validation" not in type(error).__name__:
        text = f"{type(error).__name__}: {text}"
    local = expanded(name).is_dir()
    if "trust_remote_code" in text:
        return f"'{name}' brings code of its own, which Tokenmill does not run; use a model that transformers knows"
    if local and not (expanded(name) / "config.json").is_file():
        return f"'{name}' holds no config.json; give the folder that save_pretrained wrote"
    if local:
        return f"cannot load '{name}': {text[:300]}"
    if Path(name).is_file():
        return f"'{name}' is a file; give the folder it lies in"
    if "GatedRepoError" in kinds or "gated repo" in text:
        return f"'{name}' is gated; accept its licence on its page and log in with: hf auth login"
    if "RepositoryNotFoundError" in kinds or "HFValidationError" in kinds or "is not a valid model identifier" in text:
        return f"no model '{name}' on the Hugging Face Hub (or a private one); give a local folder, or {NAME}"
    if kinds & OFFLINE or "couldn't connect" in text or "offline mode" in text:
        return (
            f"cannot reach the Hugging Face Hub for '{name}', and it is not cached here; give a local folder, or {NAME}"
        )
    return f"cannot load '{name}': {text[:300]}"


OFFLINE = {
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
    "ConnectionError",
    "ConnectError",
    "ConnectTimeout",
    "ReadTimeout",
    "ProxyError",
    "SSLError",
}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def _quiet(bars: bool) -> Iterator[None]:
    """Without the libraries' notes about loading and retrying; their settings are put back."""
    level, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub_level = hub_logging.get_verbosity()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    if not bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        hub_logging.set_verbosity(hub_level)
        if had_bars:
            logging.enable_progress_bar()
