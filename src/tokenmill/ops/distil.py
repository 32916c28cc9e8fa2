"""Teaching a draft head what the model itself would say, at a sample of places: the head over a vocabulary is dear."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from tokenmill.errors import SpecError
from tokenmill.types import Batch

SAMPLE = 32  # places of a row: the pass of the model below costs more than as many of them through its head
DECAY = 0.8  # what a place counts, the next one further on

Added = Callable[[Tensor], Tensor] | None  # states (B, A, E) -> logits (B, A, W) beside those of the model's own head
# A place ahead: states (B, A, E), the places (A,) whose token they foretell, and what their own matrix adds, if any.
Ahead = Sequence[tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Added]]


def places(batch: Batch, ahead: int) -> Tensor:
    """Places of the rows (A,), drawn by the global generator, with `ahead` tokens behind each."""
    return torch.randperm(batch.ids.shape[1] - ahead, device=batch.ids.device)[:SAMPLE].sort().values


def agreement(batch: Batch, states: Tensor, at: Tensor, added: Added = None) -> Tensor:
    """Cross-entropy of what states (B, A, E) guess against what the model says after places `at`.

    Places where it says a word that cannot be guessed do not count.
    """
    logits, said = _logits(batch, states, added).float(), batch.likeliest[:, at]
    known = said < logits.shape[-1]
    return cross_entropy(logits[known], said[known], reduction="sum") / known.sum().clamp(min=1)


def hits(batch: Batch, states: Tensor, at: Tensor, added: Added = None) -> float:
    """Share of the places where the states' likeliest guess is the model's."""
    return float((_logits(batch, states, added).argmax(-1) == batch.likeliest[:, at]).float().mean())


def _logits(batch: Batch, states: Tensor, added: Added) -> Tensor:
    logits = batch.guesses(states)
    return logits if added is None else add_to_first(logits, added(states))


def add_to_first(logits: Tensor, added: Tensor) -> Tensor:
    """logits (..., W) plus what is added (..., A) to the first of them, as far as both reach."""
    return logits + pad(added, (0, logits.shape[-1] - added.shape[-1]))  # a negative width cuts


def foretelling(batch: Batch, ahead: Ahead) -> Tensor:
    """The loss of states that foretell several places: the sum of their disagreements, the further the less."""
    return torch.stack([DECAY**d * agreement(batch, *told) for d, told in enumerate(ahead)]).sum()


def foretold(batch: Batch, ahead: Ahead) -> dict[str, float]:
    """How often each place ahead is foretold as the model says it."""
    return {f"right at place {d}": hits(batch, *told) for d, told in enumerate(ahead, 1)}


def refuse_uneven(size: int, heads: int) -> None:
    """SpecError unless a state of `size` numbers divides into `heads`."""
    if size % heads:
        usable = [n for n in range(1, 33) if size % n == 0]
        raise SpecError(f"heads={heads} does not divide the model's {size}; give one of {', '.join(map(str, usable))}")
