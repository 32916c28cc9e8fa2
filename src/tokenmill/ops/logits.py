"""Reading rows of logits. A row is as long as the vocabulary, so it is read as few times as can be."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

COLDEST, HOTTEST = 1e-30, 1e30
BLOCK = 64  # numbers of which the largest is found first


def heat(temperature: float) -> float:
    """A temperature that logits in float32 can be divided by: what is colder or hotter gives the same softmax."""
    return min(max(temperature, COLDEST), HOTTEST)


def largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of each row (N, V), NaN if there is one, and where it is, the first of equal ones: (N,) both."""
    rows = _array(logits)
    if rows is None:
        values, places = logits.max(-1)
        return values, places
    found = rows.argmax(-1)  # torch's own takes twenty times as long
    return torch.from_numpy(rows[np.arange(len(rows)), found]), torch.from_numpy(found)


def top_chances(logits: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The likeliest tokens after each row of logits (N, V), in falling order, and their probabilities: (N, width) both.

    Fewer where the vocabulary is smaller.
    """
    width, rows = min(width, logits.shape[-1]), _array(logits)
    if rows is None or not sys.modules.get("numba"):  # who has packed weights has it; its import takes two seconds
        tokens = top(logits, width)
        return tokens, logits.float().softmax(-1).gather(-1, tokens)
    from tokenmill.ops import compiled

    found, chances = np.empty((len(rows), width), np.int64), np.empty((len(rows), width), np.float32)
    compiled.top_chances(rows, found, chances)
    return torch.from_numpy(found), torch.from_numpy(chances)


def top(logits: Tensor, width: int) -> Tensor:
    """Where the `width` largest of each row (N, V) are, in falling order: (N, width).

    They are in the blocks with the largest maxima: those are found in a fifth of the time `topk` takes for a row.
    """
    size = logits.shape[-1]
    whole = size // BLOCK * BLOCK
    most = logits[:, :whole].unflatten(-1, (whole // BLOCK, BLOCK)).amax(-1)  # (N, V / BLOCK)
    blocks = most.topk(min(width, most.shape[-1]), dim=-1).indices
    inside = (blocks[..., None] * BLOCK + torch.arange(BLOCK, device=logits.device)).flatten(1)
    beyond = torch.arange(whole, size, device=logits.device).expand(len(logits), -1)
    places = torch.cat([inside, beyond], 1)
    return places.gather(-1, logits.gather(-1, places).topk(width, dim=-1).indices)


def finite(logits: Tensor) -> bool:
    """Whether no number is NaN or infinite: then the least and the largest are neither."""
    least, most = logits.aminmax()
    return math.isfinite(least) and math.isfinite(most)


def _array(logits: Tensor) -> Any:
    """The same numbers as numpy has them, rows one after the other; None where it cannot."""
    if logits.device.type != "cpu" or logits.dtype != torch.float32:
        return None
    return logits.detach().contiguous().numpy()
