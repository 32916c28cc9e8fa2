"""One cell of a run: one sample, one recipe, one dictionary of plain numbers.

A prompt is read once for all recipes that decide after the fact; a recipe that drops tokens while the prompt
is read (acts="walk") reads it itself. Speeds are taken in pairs of turns with the untouched model, A B B A A B.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from tokenmill.bench.tasks import Sample, Speed
from tokenmill.errors import ModelError
from tokenmill.method import Recipe, recipe
from tokenmill.run.machine import clock

UNTOUCHED = recipe(None)


class Session(Protocol):
    stats: Any

    def read(self, ids: Tensor, *, all_logits: bool = ...) -> Tensor: ...
    def kept(self) -> Any: ...
    def engaged(self) -> AbstractContextManager[Any]: ...


class Reading(Protocol):
    decision_seconds: dict[Recipe, float]

    def session(self, recipe: Recipe) -> Session: ...


class Engine(Protocol):
    """What measuring needs of `tokenmill.run.session`."""

    Session: Callable[[Any, Recipe], Session]
    read_once: Callable[[Any, Tensor, Sequence[Recipe]], Reading]


@dataclass
class Prompt:
    """One prompt, read once; sessions of each recipe that go on from it."""

    model: Any
    ids: Tensor  # (B, T)
    reading: Reading
    seconds: float

    @classmethod
    def read(cls, engine: Engine, model: Any, ids: Tensor, recipes: Sequence[Recipe]) -> Prompt:
        seconds, reading = timed(model, lambda: engine.read_once(model, ids, [UNTOUCHED, *recipes]))
        return cls(model, ids, reading, seconds)

    def session(self, what: Recipe) -> Session:
        return self.reading.session(what)


def device(model: Any) -> torch.device:
    return next(model.parameters()).device


def timed(model: Any, work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the wall, with a GPU's queue emptied before and after."""
    start = clock(device(model))
    result = work()
    return clock(device(model)) - start, result


# ---- quality ----------------------------------------------------------------------------------------------------


def follow(session: Session, tail: Tensor, block: int) -> Tensor:
    """Read a tail (1, N) in blocks: (N - 1, V) what is predicted for every token but the first."""
    with session.engaged():
        blocks = [session.read(part, all_logits=True)[0].float() for part in tail[:, :-1].split(block, dim=1)]
    return torch.cat(blocks)


def follow_singly(session: Session, tail: Tensor, first: int) -> Tensor:
    """The same for a recipe that drops tokens inside a pass, whose logits are only defined after a pass's last token.

    Tokens before `first` are scored by nothing: they are read in one pass, and their rows are zeros.
    """
    with session.engaged():
        rows = [session.read(part).float() for part in (tail[:, :first], *tail[:, first:-1].split(1, dim=1))]
    return torch.cat([rows[0].new_zeros(first - 1, rows[0].shape[-1]), *rows])


def greedy(session: Session, first: Tensor, count: int) -> Tensor:
    """`first` (1, 1) and the `count` tokens the model writes after it: (1, 1 + count)."""
    tail = [first]
    with session.engaged():
        for _ in range(count):
            tail.append(session.read(tail[-1]).argmax(-1, keepdim=True))
    return torch.cat(tail, 1)


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
            self.tail = greedy(self.prompt.session(UNTOUCHED), self.tail, count)
            self.sample = replace(sample, scored=list(range(1, count + 1)))
            # Teacher-forced in the same blocks as every recipe, so that the untouched model drifts by exactly 0.
            self.reference = follow(self.prompt.session(UNTOUCHED), self.tail, sample.task.block)

    def cell(self, what: Recipe) -> dict[str, Any]:
        session = self.prompt.session(what)
        held, before = int(session.stats.cache_bytes), session.stats
        try:
            if what.acts("walk"):
                logits = follow_singly(session, self.tail, self.sample.scored[0])
            else:
                logits = follow(session, self.tail, self.sample.task.block)
        except ModelError:  # logits that are not finite: the untouched model is broken, or this recipe breaks it
            if what == UNTOUCHED:
                raise
            return {"score": None, "bytes": held, "layers": None, "heads": None}
        after, tokens = session.stats, self.tail.shape[1] - 1
        return {
            "score": judge(self.sample, logits, self.tail, self.reference),
            "bytes": held,
            "layers": (after.token_layers - before.token_layers) / tokens,  # run for a token
            "heads": (after.exit_heads - before.exit_heads) / tokens,  # asked about a token on its way
        }


# ---- speed ------------------------------------------------------------------------------------------------------


def order(turn: int) -> tuple[int, int]:
    """Which side of a pair goes first: each as often, so that neither always finds the machine as the other left it."""
    return (0, 1) if turn % 2 == 0 else (1, 0)


def prefill_cell(engine: Engine, model: Any, ids: Tensor, what: Recipe, speed: Speed) -> dict[str, Any]:
    """Seconds to read a prompt (B, T) in turns, and the most bytes held between two passes."""
    seconds: tuple[list[float], list[float]] = ([], [])
    peaks = [0, 0]
    for turn in range(speed.prefill_turns):
        for side in order(turn):
            session = engine.Session(model, (UNTOUCHED, what)[side])
            seconds[side].append(timed(model, lambda session=session: session.read(ids))[0])  # type: ignore[misc]
            peaks[side] = int(session.stats.peak_cache_bytes)
    return {"mine": seconds[1], "untouched": seconds[0], "peak": peaks[1], "peak_untouched": peaks[0]}


def decode_cell(prompt: Prompt, what: Recipe, speed: Speed) -> dict[str, Any]:
    """Tokens a second of greedy decoding after the prompt (B, T), in turns; and the bytes held at its end."""
    sides = (UNTOUCHED, what)
    sessions = [prompt.session(side) for side in sides]
    held = [int(session.stats.cache_bytes) for session in sessions]
    tokens = [prompt.ids[:, -1:], prompt.ids[:, -1:]]
    rates: tuple[list[float], list[float]] = ([], [])

    def steps(side: int, count: int) -> None:
        with sessions[side].engaged():
            for _ in range(count):
                tokens[side] = sessions[side].read(tokens[side]).argmax(-1, keepdim=True)

    for side in (0, 1):
        steps(side, 1)  # warm
    for turn in range(speed.turns):
        for side in order(turn):
            seconds, _ = timed(prompt.model, lambda side=side: steps(side, speed.decode_steps))  # type: ignore[misc]
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
