"""What `ops.logits` computes, compiled by numba: a row of logits is read twice, nothing of its length is written."""

# mypy: ignore-errors
# (numba gives types of its own to what is compiled here)

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

BLOCK, PIECE = 64, 512  # numbers of which the largest is kept; whose exponentials are summed in float32
ANY_ORDER = {"nnan", "nsz", "reassoc", "contract"}  # for sums and maxima in vector instructions


def _cacheable() -> bool:
    """Whether numba finds a folder to keep what it compiles: $NUMBA_CACHE_DIR, beside the source, or the user's."""
    try:
        njit(cache=True)(_cacheable)
    except (RuntimeError, OSError):
        return False  # compiled anew by every process
    return True


CACHE = _cacheable()


@intrinsic
def _two_to(context: Any, w: Any) -> Any:
    """2^w for a whole number -126 <= w <= 127, put together from its bits."""

    def generate(target: Any, b: Any, signature: Any, given: Any) -> Any:
        bits = ir.IntType(32)
        return b.bitcast(b.shl(b.add(given[0], bits(127)), bits(23)), ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def _fused(context: Any, x: Any, y: Any, z: Any) -> Any:
    """x y + z, rounded once."""

    def generate(target: Any, b: Any, signature: Any, given: Any) -> Any:
        return b.fma(*given)

    return types.float32(*[types.float32] * 3), generate


@njit(fastmath=False, error_model="numpy")  # said, for else it is compiled with the flags of who calls it first
def exp(x: Any) -> Any:
    """exp(x) to float32's last place, x held between -87 and 88. Loops over it become vector instructions."""
    x = np.float32(-87) if x < np.float32(-87) else x
    x = np.float32(88) if x > np.float32(88) else x
    n = np.rint(x * np.float32(1.442695041))
    f = _fused(n, np.float32(-0.693359375), x)  # ln 2 in two parts, the first of which has few bits
    f = _fused(n, np.float32(2.12194440e-4), f)
    p = np.float32(0.00138636675)  # the exponential series, its end fitted to this narrow range
    for c in (0.00836760933, 0.0416672424, 0.16666533, 0.5, 1.0, 1.0):
        p = _fused(p, f, np.float32(c))
    return p * _two_to(np.int32(n if n == n else np.float32(0)))  # NaN as a whole number is undefined; p stays NaN


@njit(fastmath=ANY_ORDER, error_model="numpy")
def _largest(x: Any, largest: Any) -> None:
    """The largest of each block of x (V,): (V / BLOCK,), rounded up."""
    whole = len(x) // BLOCK
    for block in range(whole):
        most = x[block * BLOCK]
        for k in range(BLOCK):
            most = max(most, x[block * BLOCK + k])
        largest[block] = most
    if whole < len(largest):
        largest[whole] = x[whole * BLOCK :].max()


@njit(fastmath=ANY_ORDER, error_model="numpy")
def _mass(x: Any, most: Any) -> float:
    """The sum of exp(x - most) over x (V,)."""
    total = 0.0
    for first in range(0, len(x), PIECE):
        part = np.float32(0)
        for k in range(first, min(first + PIECE, len(x))):
            part += exp(x[k] - most)
        total += part
    return total


@njit(error_model="numpy")
def _following(x: Any, first: int, token: int) -> int:
    """The largest of a block that comes after a token: is less, or as much and behind it. -1: none; token -1: any."""
    found = -1
    for k in range(first, min(first + BLOCK, len(x))):
        after = token < 0 or x[k] < x[token] or (x[k] == x[token] and k > token)
        if after and (found < 0 or x[k] > x[found]):
            found = k
    return found


@njit(error_model="numpy", cache=CACHE)
def top_chances(logits: Any, tokens: Any, chances: Any) -> None:
    """The likeliest tokens after each row of logits (N, V), in falling order, and their probabilities: (N, W) both.

    Of equal logits the one of the smaller token comes first.
    """
    largest = np.empty((logits.shape[1] + BLOCK - 1) // BLOCK, np.float32)  # of each block, of what is not taken yet
    for n in range(len(logits)):
        x, token = logits[n], -1
        _largest(x, largest)
        most = largest.max()
        total = _mass(x, most)
        for place in range(tokens.shape[1]):
            first = largest.argmax() * BLOCK
            token = _following(x, first, token)
            tokens[n, place], chances[n, place] = token, exp(x[token] - most) / total
            left = _following(x, first, token)
            largest[first // BLOCK] = x[left] if left >= 0 else -np.inf
