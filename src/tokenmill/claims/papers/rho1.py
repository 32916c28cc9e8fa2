"""Rho-1: a model learns the clean text faster when the noise in its corpus is left out by a reference's advice."""

from __future__ import annotations

import copy
import random
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tokenmill.bench.tasks import paragraphs
from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check, check
from tokenmill.run.train import token_losses, train

CLAIM = (
    "On a corpus half of which is noise, training on the 60 % of tokens that lag furthest behind a reference model "
    "gives a lower loss on clean text, in the same number of steps, than training on all tokens or on as many drawn "
    "by lot."
)
PAPER = "1B and 7B models: up to 30 points more on 9 maths tasks after 15B tokens; 6.8 points over 15 tasks after 80B"
BEYOND = "models and corpora of that size: here a small byte-level model of the same architecture learns from scratch"
LENGTH, ROWS, JUDGED = 96, 12, 96
REPEATS = 3  # trainings for each seed, of other models on other batches
APART, RUN = 6, 8  # every sixth paragraph is held out; words in a row that no text on both sides has
RIVALS = ("full_loss", "random_share(share=0.6)")


def _small(lab: Lab, seed: int) -> Any:
    """A few layers of the same architecture, over bytes, with random weights."""
    config = copy.deepcopy(lab.model.config)
    small = {
        "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 256, "max_position_embeddings": 2 * LENGTH,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    }  # fmt: skip
    for name, value in small.items():
        if hasattr(config, name):
            setattr(config, name, value)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return type(lab.model)(config).float()


@cache
def prose() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Paragraphs to train on and paragraphs to judge by, which share no run of RUN words."""
    every = list(paragraphs())
    random.Random("rho1/split").shuffle(every)
    held_out = every[: len(every) // APART]
    known = {run for text in held_out for run in runs(text)}
    return tuple(text for text in every[len(held_out) :] if known.isdisjoint(runs(text))), tuple(held_out)


def runs(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)}


def _clean(seed: str, rows: int, texts: tuple[str, ...]) -> Tensor:
    """Real prose as bytes, from a place that the seed chooses: (rows, LENGTH)."""
    at, text = random.Random(seed).randrange(len(texts)), b""
    while len(text) < rows * LENGTH:
        text += f" {texts[at % len(texts)]}".encode()
        at += 1
    return torch.tensor(list(text[: rows * LENGTH])).view(rows, LENGTH)


def texts_of(seed: int, steps: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Clean batches for the reference, noisy ones for the corpus, and clean text that neither has."""
    train, held_out = prose()
    draw = torch.Generator().manual_seed(seed)
    clean = [_clean(f"rho1/reference/{seed}/{n}", ROWS, train) for n in range(2 * steps)]
    noisy = [_noisy(_clean(f"rho1/corpus/{seed}/{n}", ROWS, train), draw) for n in range(steps)]
    return clean, noisy, _clean(f"rho1/held out/{seed}", JUDGED, held_out)


def _noisy(ids: Tensor, draw: torch.Generator) -> Tensor:
    """The prose with half of all runs of 16 bytes replaced by random printable bytes."""
    noise = torch.randint(32, 127, ids.shape, generator=draw)
    replaced = torch.rand(ROWS, LENGTH // 16, generator=draw) < 0.5
    return torch.where(replaced.repeat_interleave(16, 1), noise, ids)


def measure(lab: Lab) -> list[Check]:
    steps = 8 if lab.quick else 60
    names = ("rho1", *RIVALS)
    losses: dict[str, list[float]] = {name: [] for name in names}
    for seed in (REPEATS * seed + n for seed in lab.seeds for n in range(1 if lab.quick else REPEATS)):
        clean, noisy, held_out = texts_of(seed, steps)
        reference = _small(lab, seed)
        lab.tick(f"seed {seed}: training the reference on clean text")
        train(reference, clean, "full_loss", lr=2e-3, seed=seed)
        for name in names:
            lab.tick(f"seed {seed}: training with {name}")
            model = _small(lab, seed + 1000)
            train(model, noisy, name, reference=reference, lr=2e-3, seed=seed)
            with torch.no_grad():
                losses[name].append(float(token_losses(model.eval(), held_out)[:, 1:].mean()))
    for name, values in losses.items():
        lab.note(name, f"nats a byte of held-out clean text after {steps} steps", values)
    what = f"nats a byte of held-out clean text after {steps} steps"
    return [check(what, ("rho1", losses["rho1"]), (name, losses[name]), "lower") for name in RIVALS]
