"""Train a model where every token's loss has a weight.

    history = train(model, batches, "rho1(share=0.6)", reference=reference, steps=100, lr=1e-4)

The whole loop is on this page. With weights of one it is the library's own loss: `full_loss`, `rho1(share=1.0)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import track
from torch import Tensor
from torch.nn.functional import cross_entropy

from tokenmill.errors import InputError, ModelError, SpecError
from tokenmill.method import Method, parse
from tokenmill.models.owner import mode
from tokenmill.run.arguments import refuse_beyond
from tokenmill.types import Weights

IGNORED = -100  # a label that has no loss
Batch = Tensor | Mapping[str, Tensor]  # ids (B, T), or input_ids with attention_mask and labels where there are any


@dataclass(frozen=True)
class TrainStep:
    """One step, measured before its update."""

    step: int
    loss: float  # mean over all tokens
    trained: float  # mean over the weights: what was minimised
    tokens: int  # tokens that have a loss
    share: float  # of the weight they could have had


def token_losses(model: Any, ids: Tensor, mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
    """(B, T) float32: at t, -log p(labels[t] | ids[:t]); without labels they are the ids. NaN where there is none.

    That is the first token of a row and a label of -100; without labels, padding (mask 0) and a token right after it.
    """
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    targets = (ids if labels is None else labels.masked_fill(labels == IGNORED, 0))[:, 1:]
    losses = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(len(ids), -1)
    losses = torch.cat([losses.new_zeros(len(ids), 1), losses], dim=1)
    return losses.masked_fill(~has_loss(ids, mask, labels), torch.nan)


def has_loss(ids: Tensor, mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
    """(B, T) bool: labels that are not to be left out; without labels, tokens that something real comes before."""
    if labels is not None:
        real = labels != IGNORED
    else:
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        real = real & real.roll(1, dims=1)
    real[:, 0] = False
    return real


def weighted_loss(losses: Tensor, weights: Weights) -> Tensor:
    """sum w l / sum w over the tokens that have a weight; 0 when none has."""
    w = weights.values.to(losses)
    return torch.where(w > 0, w * losses, 0).sum() / w.sum().clamp(min=torch.finfo(w.dtype).tiny)


def train(
    model: Any,
    batches: Iterable[Batch],
    method: str | Method = "full_loss",
    *,
    reference: Any = None,
    steps: int | None = None,
    lr: float = 1e-4,
    seed: int = 0,
    clip: float = 1.0,
    progress: bool = False,
) -> list[TrainStep]:
    """Train `model` in place (AdamW) and return what every step measured.

    `steps=None` goes through the batches once; with more steps than batches they are gone through again. Labels are
    honoured as given: the loss at a token is that of its label, -100 has none. A batch without targets, or whose
    targets all have the weight 0, changes nothing; it counts as a step. `reference` is a model that methods such as
    rho1 compare with; it is never trained. `seed` sets dropout and methods that draw. Raises InputError for a batch of
    another shape, for labels outside the vocabulary, and where nothing can be learned or trained, ModelError for a loss
    that is not finite.
    """
    chosen = parse(method) if isinstance(method, str) else method
    if not isinstance(chosen, Method) or chosen.verb != "learn":
        raise SpecError(f"{chosen!r} does not weigh losses; `tokenmill ls learn` lists the methods that do")
    device, vocabulary = next(model.parameters()).device, model.get_input_embeddings().num_embeddings
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise InputError("no parameter of the model requires a gradient, so there is nothing to train")
    optimizer = torch.optim.AdamW(trainable, lr=lr)
    history = []
    with torch.random.fork_rng(), mode(model, training=True):
        torch.manual_seed(seed)
        try:
            steady = track(_stream(batches, steps), chosen.name, total=steps, transient=True, disable=not progress)
            for step, batch in enumerate(steady):
                ids, mask, labels = _parts(batch, device, vocabulary)
                refuse_beyond(model, ids.shape[1])
                if not has_loss(ids, mask, labels).any():
                    history.append(TrainStep(step, 0.0, 0.0, 0, 0.0))
                    continue  # not even weight decay: there is nothing to learn from
                losses = token_losses(model, ids, mask, labels)
                compared = None if reference is None else _compare(reference, ids, mask, labels)
                weights = _at_step(chosen, seed, step)(losses.detach(), compared)
                loss = weighted_loss(losses, weights)
                plain = losses.detach()[has_loss(ids, mask, labels)]
                if not torch.isfinite(plain).all():
                    raise ModelError(f"the loss is not a number at step {step}; lower lr ({lr:g}) or load in float32")
                count, share = len(plain), float(weights.values.sum()) / max(len(plain), 1)
                history.append(TrainStep(step, plain.sum().item() / max(count, 1), loss.item(), count, share))
                if not weights.values.any():
                    continue
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trainable, clip)
                optimizer.step()
        finally:
            optimizer.zero_grad(set_to_none=True)
    if history and not any(step.tokens for step in history):
        raise InputError("no batch has a token to learn from: every label is -100, or all of it is padding")
    return history


@torch.no_grad()
def _compare(reference: Any, ids: Tensor, mask: Tensor | None, labels: Tensor | None) -> Tensor:
    where = next(reference.parameters()).device
    with mode(reference, training=False):
        return token_losses(reference, *_moved(where, ids, mask, labels)).to(ids.device)


def _at_step(method: Method, seed: int, step: int) -> Method:
    """Methods that draw, draw anew at every step."""
    if "seed" not in method.defaults:
        return method
    return method(seed=method.knobs["seed"] + seed * 1_000_003 + step)


def _stream(batches: Iterable[Batch], steps: int | None) -> Iterator[Batch]:
    done = 0
    while True:
        before = done
        for batch in batches:
            if done == steps:
                return
            yield batch
            done += 1
        if steps is None or done == steps:
            return
        if done == before:  # an iterator that is used up, or nothing to begin with
            raise InputError(f"the batches ended after {done} of {steps} steps; pass a list, or fewer steps")


def _parts(batch: Batch, device: torch.device, vocabulary: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if isinstance(batch, Tensor):
        ids, mask, labels = batch, None, None
    else:
        ids, mask, labels = batch["input_ids"], batch.get("attention_mask"), batch.get("labels")
    if ids.dim() != 2 or ids.shape[1] < 2:
        raise InputError(f"a batch is ids (rows, tokens) with at least two tokens, not of shape {tuple(ids.shape)}")
    for what, other in (("attention_mask", mask), ("labels", labels)):
        if other is not None and other.shape != ids.shape:
            raise InputError(f"{what} has the shape {tuple(other.shape)} and the ids {tuple(ids.shape)}")
    for what, tokens in (("a token id", ids), ("a label", ids if labels is None else labels[labels != IGNORED])):
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
            raise InputError(f"{what} is outside the model's vocabulary of {vocabulary}")
    return _moved(device, ids, mask, labels)


def _moved(
    device: torch.device, ids: Tensor, mask: Tensor | None, labels: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    return ids.to(device), None if mask is None else mask.to(device), None if labels is None else labels.to(device)
