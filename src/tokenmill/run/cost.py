"""What a forward pass costs by width: how many tokens at once are worth drafting on this machine."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch

from tokenmill.models.architectures import context_of
from tokenmill.run.machine import clock
from tokenmill.run.session import Session

WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_measured: WeakKeyDictionary[Any, dict[tuple[int, int], dict[int, float]]] = WeakKeyDictionary()


def pass_cost(model: Any, widths: Sequence[int] = WIDTHS, context: int = 256, *, turns: int = 3) -> dict[int, float]:
    """Seconds of a pass over so many new tokens behind `context` others, the median of `turns` interleaved rounds.

    Fewer stand before it where the model's own context ends, and widths that do not fit it are left out.
    """
    session, limit = Session(model), context_of(model) or math.inf
    widths = [width for width in widths if width < limit] or [1]
    context = int(max(1, min(context, limit - max(widths))))
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(context + max(widths), device=session.device) * 7919 % vocabulary
    seconds: dict[int, list[float]] = {width: [] for width in widths}
    with session.engaged():
        session.read(ids[None, :context])
        for turn in range(turns + 1):
            for width in widths:
                began = clock(ids.device)
                line = torch.ones(width, width, dtype=torch.bool, device=session.device).tril()
                session.verify(ids[context : context + width], torch.arange(width, device=session.device), line)
                if turn:  # the first round warms up
                    seconds[width].append(clock(ids.device) - began)
                session.accept([])
    return {width: statistics.median(taken) for width, taken in seconds.items()}


class Cost:
    """Time of a pass by width, relative to one token: 1 at one token, never falling, straight lines between.

    `a_token` is the time of a pass over one token, in seconds.
    """

    def __init__(self, seconds: dict[int, float]):
        self.widths = sorted(seconds)
        self.a_token = seconds[self.widths[0]]
        self.curve = [max(seconds[w] for w in self.widths[: i + 1]) / self.a_token for i in range(len(seconds))]

    def __call__(self, width: int) -> float:
        widths, curve = self.widths, self.curve
        place = bisect_left(widths, width)
        if place == 0:
            return curve[0]
        if len(widths) == 1:  # nothing is known of wider ones: they cost as much as so many passes
            return curve[0] * width / widths[0]
        if place == len(widths):  # beyond what was measured: at the pace of the last piece
            place -= 1
        left, right = widths[place - 1], widths[place]
        return curve[place - 1] + (curve[place] - curve[place - 1]) * (width - left) / (right - left)


def cost_of(model: Any, context: int = 256) -> Cost:
    """What a pass of this model costs; measured once for a model and a number of threads."""
    known, key = _measured.setdefault(model, {}), (torch.get_num_threads(), context.bit_length())
    if key not in known:
        known[key] = pass_cost(model, context=context)
    return Cost(known[key])
