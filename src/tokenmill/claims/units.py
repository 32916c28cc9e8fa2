"""Lexical Unit Decoding's model: tuned, all of it, to say several tokens at placeholders behind its text.

The paper tunes a model on text that the model itself predicts with confidence, so that a placeholder behind the text
says the token that comes there, and goes on predicting the next token as before. Here the whole model learns together
with its placeholders, on text that it wrote itself:

    loss = next token of its own text + sum over the placeholders i of what it would say i tokens on
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tokenmill.claims.lab import Lab
from tokenmill.method import Method, get
from tokenmill.models.above import above, whole_cache
from tokenmill.models.trained import build, place, save
from tokenmill.ops.distil import DECAY
from tokenmill.run.corpus import Corpus, corpus
from tokenmill.run.fit import schedule
from tokenmill.run.own import own_text

STEPS, QUICK_STEPS = 400, 4
TOKENS, QUICK_TOKENS = 120_000, 1_000  # that the model writes
ROWS, LENGTH, PLACES = 4, 128, 16
RATE, BLANKS_RATE = 5e-5, 1e-2

_known: WeakKeyDictionary[Any, tuple[Any, Path, tempfile.TemporaryDirectory[str]]] = WeakKeyDictionary()


PACKED = "a model in full precision, which can be tuned; run it with --weights float32"


def tuned(lab: Lab) -> tuple[Lab, Method]:
    """The lab with a tuned copy of its model, and placeholders that know where their part lies."""
    if lab.model not in _known:
        _known[lab.model] = _tune(lab)
    model, path, _ = _known[lab.model]
    other = Lab(model, lab.tokenizer, lab.seeds, lab.quick, lab.tick, lab.figures, lab.reasons)
    return other, get("placeholders")(weights=str(path))


def untunable(lab: Lab) -> str:
    """Why the model cannot be tuned; "" if it can."""
    return "" if isinstance(lab.model.get_output_embeddings(), nn.Linear) else PACKED


def _tune(lab: Lab) -> tuple[Any, Path, tempfile.TemporaryDirectory[str]]:
    method, steps = get("placeholders"), QUICK_STEPS if lab.quick else STEPS
    text, likeliest = _own(lab)
    with torch.random.fork_rng():
        torch.manual_seed(lab.seeds[0])
        model = copy.deepcopy(lab.model).float().train().requires_grad_(True)
        parts: Any = build(method, model).to(next(model.parameters()).device).train()
        groups: list[dict[str, Any]] = [
            {"params": list(model.parameters()), "weight_decay": 0.0},
            {"params": list(parts.parameters())},
        ]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
        for step in range(steps):
            lab.tick(f"tuning the model to its own lexical units: step {step + 1} of {steps}")
            torch.manual_seed(lab.seeds[0] * 1_000_003 + step)
            at = torch.randint(len(text.train) - LENGTH + 1, (ROWS, 1)) + torch.arange(LENGTH)
            device = next(model.parameters()).device
            value = loss(model, parts.blanks, text.train[at].to(device), likeliest[at].to(device))
            share = schedule(step, steps)
            optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = RATE * share, BLANKS_RATE * share
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_([*model.parameters(), *parts.parameters()], 1.0)
            optimizer.step()
    model.eval().requires_grad_(False)
    folder = tempfile.TemporaryDirectory()
    path = place(method, model, Path(folder.name))
    save(path, parts, method, model, {"model": "", "plan": {"steps": steps}, "steps": steps, "held_out": {}})
    return model, path, folder


def loss(model: Any, blanks: Tensor, ids: Tensor, likeliest: Tensor) -> Tensor:
    """ids (B, T) of the model's text, and what it said was likeliest after each before it was tuned (B, T)."""
    held, count = whole_cache(), len(blanks)
    head = model.get_output_embeddings()
    hidden = model.base_model(input_ids=ids, past_key_values=held, use_cache=True).last_hidden_state
    said = cross_entropy(head(hidden[:, :-1]).float().flatten(0, 1), ids[:, 1:].flatten())
    at = torch.randperm(ids.shape[1] - count - 1, device=ids.device)[:PLACES].sort().values
    final = above(model, held, -1, blanks.expand(len(ids), len(at), -1, -1), at)  # (B, A, M, E)
    for i in range(count):
        told = cross_entropy(head(final[:, :, i]).float().flatten(0, 1), likeliest[:, at + i + 1].flatten())
        said = said + DECAY**i * told
    return said


def _own(lab: Lab) -> tuple[Corpus, Tensor]:
    """Text that the model wrote, and what it held likeliest after each token of what is to train on."""
    tokens = QUICK_TOKENS if lab.quick else TOKENS
    library = corpus(None, lab.reader.ids, LENGTH)
    text, (_, likeliest) = own_text(lab.model, lab.tokenizer, library, tokens, lab.seeds[0], True)
    return text, likeliest


def rename(lab: Lab, spec: str, name: str) -> None:
    """Put the figures of a spec, which names a temporary file, under a name that a reader understands."""
    if spec in lab.figures:  # none where no task fits the model's context
        lab.figures[name] = lab.figures.pop(spec)
