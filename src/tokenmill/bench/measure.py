"""One cell of a run: one sample, one recipe, one dictionary of plain numbers.

A prompt is read once for all recipes that decide after the fact; a recipe that drops tokens while the prompt
is read (acts="walk") reads it itself. Speeds are taken in turns with the untouched model, A B A B.
"""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from tokenmill.bench.tasks import Sample, Speed
from tokenmill.errors import ModelError
from tokenmill.method import Recipe, recipe

UNTOUCHED = recipe(None)


class Session(Protocol):
    stats: Any

    def read(self, ids: Tensor, *, all_logits: bool = ...) -> Tensor: ...
    def kept(self) -> Any: ...


class Reading(Protocol):
    def session(self, recipe: Recipe) -> Session: ...


class Engine(Protocol):
    """What measuring needs of `tokenmill.run.session`."""

    Session: Callable[[Any, Recipe], Session]
    read_once: Callable[[Any, Tensor, Sequence[Recipe]], Reading]


def walks(what: Recipe) -> bool:
    """Whether a recipe must read the prompt itself, because it drops tokens on the way."""
    return any(m.card.acts == "walk" for m in what)


@dataclass
class Prompt:
    """One prompt, read once; sessions of each recipe that go on from it."""

    engine: Engine
    model: Any
    ids: Tensor  # (B, T)
    reading: Reading
    seconds: float

    @classmethod
    def read(cls, engine: Engine, model: Any, ids: Tensor, recipes: Sequence[Recipe]) -> Prompt:
        shared = list(dict.fromkeys([UNTOUCHED, *(r for r in recipes if not walks(r))]))
        seconds, reading = timed(model, lambda: engine.read_once(model, ids, shared))
        return cls(engine, model, ids, reading, seconds)

    def session(self, what: Recipe) -> Session:
        if not walks(what):
            return self.reading.session(what)
        session = self.engine.Session(self.model, what)
        session.read(self.ids)
        return session


def device(model: Any) -> torch.device:
    return next(model.parameters()).device


def timed(model: Any, work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the wall, with a GPU's queue emptied before and after."""
    cuda = device(model).type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


# ---- quality ----------------------------------------------------------------------------------------------------


def follow(session: Session, tail: Tensor, block: int) -> Tensor:
    """Read a tail (1, N) in blocks: (N - 1, V) what is predicted for every token but the first."""
    blocks = [session.read(part, all_logits=True)[0].float() for part in tail[:, :-1].split(block, dim=1)]
    return torch.cat(blocks)


def greedy(session: Session, first: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`count` tokens after `first` (1, 1): the tail (1, 1 + count), and the logits (count, V) that chose them."""
    tail, logits = [first], []
    for _ in range(count):
        logits.append(session.read(tail[-1])[0].float())
        tail.append(logits[-1].argmax().view(1, 1))
    return torch.cat(tail, 1), torch.stack(logits)


def judge(sample: Sample, logits: Tensor, tail: Tensor, reference: Tensor | None = None) -> float | None:
    """The sample's figure from the predictions (N - 1, V) of tail[1:]; None if it is not a number."""
    at = torch.tensor(sample.scored, device=logits.device) - 1
    truth, predicted = tail[0, 1:][at], logits[at]
    if not bool(predicted.isfinite().all()):
        return None
    if sample.task.measure == "kl":
        assert reference is not None, "drift needs the untouched model's predictions"
        p, q = reference[at].log_softmax(-1), predicted.log_softmax(-1)
        value = float((p.exp() * (p - q)).sum(-1).mean().clamp(min=0))
    elif sample.task.measure == "nll":
        value = float(torch.nn.functional.cross_entropy(predicted, truth))
    else:
        right = predicted.argmax(-1) == truth
        value = float(right.all() if sample.task.measure == "exact" else right.float().mean())
    return value if math.isfinite(value) else None


class Trial:
    """One sample with its prompt read: ask it for the cell of each recipe in turn."""

    def __init__(self, engine: Engine, model: Any, sample: Sample, recipes: Sequence[Recipe]):
        here = device(model)
        self.sample = sample
        self.prompt = Prompt.read(engine, model, torch.tensor([sample.prompt], device=here), recipes)
        self.tail = torch.tensor([sample.tail], device=here)
        self.reference: Tensor | None = None
        if sample.task.kind == "drift":
            count = sample.task.tail
            self.tail, _ = greedy(self.prompt.session(UNTOUCHED), self.tail, count)
            self.sample = Sample(sample.task, sample.index, sample.prompt, [], list(range(1, count + 1)))
            # Teacher-forced in the same blocks as every recipe, so that the untouched model drifts by exactly 0.
            self.reference = follow(self.prompt.session(UNTOUCHED), self.tail, sample.task.block)

    def cell(self, what: Recipe) -> dict[str, Any]:
        session = self.prompt.session(what)
        held, peak = int(session.stats.cache_bytes), getattr(session.stats, "peak_bytes", None)
        logits = follow(session, self.tail, self.sample.task.block)
        value = judge(self.sample, logits, self.tail, self.reference)
        if value is None and what == UNTOUCHED:
            raise ModelError("the untouched model's logits are not finite: the weights or the dtype are broken")
        return {"score": value, "bytes": held, "peak": None if peak is None else int(peak)}


# ---- speed ------------------------------------------------------------------------------------------------------


def prefill_cell(engine: Engine, model: Any, ids: Tensor, what: Recipe, speed: Speed) -> dict[str, Any]:
    """Seconds to read a prompt (B, T), the untouched model and the recipe in turns."""
    turns: dict[Recipe, list[float]] = {UNTOUCHED: [], what: []}
    for _ in range(speed.turns):
        for side in (UNTOUCHED, what):
            turns[side].append(timed(model, lambda side=side: engine.Session(model, side).read(ids))[0])
    # The untouched model against itself has two lists in one: split them, so that its noise is seen.
    mine, full = turns[what], turns[UNTOUCHED]
    if what == UNTOUCHED:
        mine, full = full[1::2], full[0::2]
    return {"mine": mine, "untouched": full}


def decode_cell(prompt: Prompt, what: Recipe, speed: Speed) -> dict[str, Any]:
    """Tokens a second of greedy decoding after the prompt (B, T), in turns; and the bytes held at its end."""
    sides = (UNTOUCHED, what)
    sessions = [prompt.session(side) for side in sides]
    held = [int(session.stats.cache_bytes) for session in sessions]
    tokens = [prompt.ids[:, -1:], prompt.ids[:, -1:]]
    rates: tuple[list[float], list[float]] = ([], [])

    def steps(side: int, count: int) -> None:
        for _ in range(count):
            tokens[side] = sessions[side].read(tokens[side]).argmax(-1, keepdim=True)

    for side in (0, 1):
        steps(side, 1)  # warm
    for _ in range(speed.turns):
        for side in (0, 1):
            seconds, _ = timed(prompt.model, lambda side=side: steps(side, speed.decode_steps))
            rates[side].append(prompt.ids.shape[0] * speed.decode_steps / seconds)
    return {"mine": rates[1], "untouched": rates[0], "bytes": held[1], "bytes_untouched": held[0]}


# ---- what was kept ----------------------------------------------------------------------------------------------


def picture_cell(prompt: Prompt, what: Recipe) -> dict[str, Any]:
    """Which tokens of a prompt each layer and head holds, one bit a token."""
    kept = prompt.session(what).kept()
    length, heads = prompt.ids.shape[1], len(kept[0][0])
    bits = bytearray(-(-len(kept) * heads * length // 8))
    for layer, rows in enumerate(kept):
        for head, positions in enumerate(rows[0]):
            for position in map(int, positions):
                at = (layer * heads + head) * length + position
                bits[at >> 3] |= 1 << (at & 7)
    return {"layers": len(kept), "heads": heads, "tokens": length, "bits": base64.b64encode(bytes(bits)).decode()}
