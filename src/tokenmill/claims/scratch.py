"""Small models trained from scratch, side by side: the same text in the same order, and compute that is counted."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from tokenmill.run.corpus import Corpus, corpus
from tokenmill.run.fit import HELD_OUT_ROWS, adam, schedule, update
from tokenmill.types import Batch

ROWS, LENGTH, LR = 8, 128, 3e-3
STEPS, QUICK_STEPS = 1000, 100


@cache
def text() -> Corpus:
    """The standard library's text as bytes."""
    return corpus(None, None, LENGTH)


def learn(
    make: Callable[[], nn.Module],
    objective: Callable[[Any, Batch], Tensor],
    seed: int,
    steps: int,
    tick: Callable[[str], None],
) -> nn.Module:
    """A model after so many steps, in eval mode. Seed and step fix every batch, whatever the model."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().train()
        optimizer = adam(model, LR)
        for step in range(steps):
            if step % 20 == 0:
                tick(f"step {step} of {steps}")
            torch.manual_seed(seed * 1_000_003 + step)
            batch = Batch(text().batch(ROWS, LENGTH, seed, step), step / steps)
            update(optimizer, objective(model, batch), LR * schedule(step, steps))
    return model.eval()


def trained_figures(
    make: Callable[[], nn.Module],
    objective: Callable[[Any, Batch], Tensor],
    figure: Callable[[Any, Batch], dict[str, float]],
    seed: int,
    steps: int,
    tick: Callable[[str], None],
) -> dict[str, float]:
    """The figures of a model that was trained for them, as a unit of a claim."""
    return held_out(learn(make, objective, seed, steps, tick), figure)


@torch.no_grad()
def held_out(model: nn.Module, figure: Callable[[Any, Batch], dict[str, float]]) -> dict[str, float]:
    """The method's figures on text that no model was trained on: the same text for all."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        told = [figure(model, Batch(ids)) for ids in text().judged(HELD_OUT_ROWS, LENGTH).split(ROWS)]
    return {what: sum(t[what] for t in told) / len(told) for what in told[0]}
