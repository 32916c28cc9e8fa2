"""Products of packed weights with a few rows of activations, compiled on first use by numba.

A block is 32 neighbouring weights of one output: a float16 scale (and, in 4 bits, a float16 least weight) and codes.
Activations become 16-bit whole numbers with a scale a row, so the sum inside a block is exact:

    y_n = a * sum over blocks b of ( scale_nb * sum over k in b of code_nk q_k  +  least_nb * sum over k in b of q_k )

Each row of activations is summed in the same order whatever rows are beside it. Eight outputs are stored together,
block by block, so that a vector instruction serves all eight and nothing has to be added across a vector (`packed`
lays them out).
"""

# mypy: ignore-errors
# (numba gives types of its own to what is compiled here)

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.core.event import Listener, register
from numba.extending import intrinsic
from torch import Tensor

from tokenmill.ops.compiled import CACHE, exp

log = logging.getLogger(__name__)

I8, I16, I32, I64 = (ir.IntType(n) for n in (8, 16, 32, 64))
F32, HALF, VEC = ir.FloatType(), ir.HalfType(), ir.VectorType
LANES, PAIRS = VEC(F32, 8), VEC(I16, 16)
TOP, LEAST = np.float32(32767), np.float32(1e-30).view(np.int32)  # of a row's whole numbers; a row of zeros' size
EIGHT = 8  # outputs that are stored together: the lanes of a vector
RECORD = {4: 160, 8: 272}  # bytes of a block of eight outputs: scales, in 4 bits least weights, codes
AHEAD = 1024  # bytes that are fetched before they are needed; the processor by itself looks less far
MOST_THREADS = numba.config.NUMBA_NUM_THREADS
GROUP = 32  # rows of activations that stay in the cache while the weights pass by


def _splat(b: Any, x: Any) -> Any:
    empty = ir.Constant(VEC(x.type, 8), ir.Undefined)
    return b.shuffle_vector(b.insert_element(empty, x, I32(0)), empty, ir.Constant(VEC(I32, 8), [0] * 8))


def _at(b: Any, address: Any, step: int | Any, by: Any) -> Any:
    return b.add(address, b.mul(I64(step) if isinstance(step, int) else step, by))


def _load(b: Any, address: Any, kind: Any, align: int) -> Any:
    found = b.load(b.inttoptr(address, kind.as_pointer()))
    found.align = align
    return found


def _call(b: Any, name: str, result: Any, *given: Any) -> Any:
    kind = ir.FunctionType(result, [x.type for x in given])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), given)


def _fma(b: Any, x: Any, y: Any, z: Any) -> Any:
    return _call(b, "llvm.fma.v8f32", LANES, x, y, z)


def _halves(b: Any, address: Any) -> Any:
    """Eight float16 as float32."""
    return b.fpext(b.bitcast(_load(b, address, VEC(I16, 8), 2), VEC(HALF, 8)), LANES)


def _fetch(b: Any, address: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    fetch = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0i8")
    b.call(fetch, [b.inttoptr(address, I8.as_pointer()), I32(0), I32(3), I32(1)])


def _codes(b: Any, bits: int, address: Any) -> Iterator[Any]:
    """The codes of a block of eight outputs: a vector has two neighbouring ones of each, as 16-bit numbers."""
    for i in range(bits):
        held = _load(b, b.add(address, I64(32 * i)), PAIRS, 2)
        for low in range(0, 16, bits):
            up = b.shl(held, _all(16 - bits - low)) if low < 16 - bits else held
            yield (b.ashr if bits == 8 else b.lshr)(up, _all(16 - bits))


def _all(number: int) -> Any:
    return ir.Constant(PAIRS, [number] * 16)


def _loop(b: Any, count: Any, step: int, carried: list[Any]) -> tuple[Any, list[Any], Any]:
    """A counted loop: its index, what it carries, and a function that closes it with the new values."""
    before, body, after = b.block, b.append_basic_block("body"), b.append_basic_block("after")
    b.branch(body)
    b.position_at_end(body)
    index = b.phi(I64)
    index.add_incoming(I64(0), before)
    held = [b.phi(x.type) for x in carried]
    for phi, x in zip(held, carried, strict=True):
        phi.add_incoming(x, before)

    def close(new: list[Any]) -> None:
        following = b.add(index, I64(step))
        index.add_incoming(following, b.block)
        for phi, x in zip(held, new, strict=True):
            phi.add_incoming(x, b.block)
        b.cbranch(b.icmp_signed("<", following, count), body, after)
        b.position_at_end(after)

    return index, held, close


def _tile(bits: int, rows: int) -> Any:
    """Eight outputs for `rows` rows of activations, in vector instructions."""

    @intrinsic
    def tile(context: Any, w: Any, q: Any, sums: Any, a: Any, y: Any, blocks: Any, outputs: Any) -> Any:
        def generate(target: Any, b: Any, signature: Any, given: Any) -> Any:
            w, q, sums, a, y, blocks, outputs = given
            i, held, close = _loop(b, blocks, 1, [ir.Constant(LANES, [0.0] * 8)] * rows)
            block = _at(b, w, RECORD[bits], i)
            for line in range(0, RECORD[bits], 64):
                _fetch(b, b.add(block, I64(AHEAD + line)))
            scale = _halves(b, block)
            totals = [ir.Constant(VEC(I32, 8), [0] * 8)] * rows
            starts = [_at(b, _at(b, q, 64 * r, blocks), 64, i) for r in range(rows)]
            for pair, codes in enumerate(_codes(b, bits, b.add(block, I64(RECORD[bits] - 32 * bits)))):
                for r in range(rows):
                    two = b.bitcast(_splat(b, _load(b, b.add(starts[r], I64(4 * pair)), I32, 2)), PAIRS)
                    totals[r] = b.add(totals[r], _call(b, "llvm.x86.avx2.pmadd.wd", VEC(I32, 8), codes, two))
            new = [_fma(b, b.sitofp(totals[r], LANES), scale, held[r]) for r in range(rows)]
            if bits == 4:
                least = _halves(b, b.add(block, I64(16)))
                for r in range(rows):
                    total = _load(b, _at(b, _at(b, sums, 4 * r, blocks), 4, i), F32, 4)
                    new[r] = _fma(b, least, _splat(b, total), new[r])
            close(new)
            for r in range(rows):
                total = b.fmul(_now(held[r]), _splat(b, _load(b, b.add(a, I64(4 * r)), F32, 4)))
                b.store(total, b.inttoptr(_at(b, y, 4 * r, outputs), LANES.as_pointer())).align = 4
            return target.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return tile


def _now(phi: Any) -> Any:
    """What a loop's carried value is after the loop."""
    return phi.incomings[-1][0]


_4x4, _4x2, _4x1 = (_tile(4, rows) for rows in (4, 2, 1))
_8x4, _8x2, _8x1 = (_tile(8, rows) for rows in (4, 2, 1))


# Twice on purpose, here and in `product4` and `product8`: one function that asks for the bits at every tile takes up to
# 30 % longer for the same numbers, int8 the most.


@njit(error_model="numpy")
def _rows4(rows: int, w: int, q: int, sums: int, a: int, y: int, blocks: int, outputs: int) -> None:
    """Eight outputs for all rows: four at a time, then what is left."""
    m = 0
    while rows - m >= 4:
        _4x4(w, q + m * 64 * blocks, sums + m * 4 * blocks, a + 4 * m, y + 4 * m * outputs, blocks, outputs)
        m += 4
    if rows - m >= 2:
        _4x2(w, q + m * 64 * blocks, sums + m * 4 * blocks, a + 4 * m, y + 4 * m * outputs, blocks, outputs)
        m += 2
    if rows - m:
        _4x1(w, q + m * 64 * blocks, sums + m * 4 * blocks, a + 4 * m, y + 4 * m * outputs, blocks, outputs)


@njit(error_model="numpy")
def _rows8(rows: int, w: int, q: int, sums: int, a: int, y: int, blocks: int, outputs: int) -> None:
    m = 0
    while rows - m >= 4:
        _8x4(w, q + m * 64 * blocks, sums + m * 4 * blocks, a + 4 * m, y + 4 * m * outputs, blocks, outputs)
        m += 4
    if rows - m >= 2:
        _8x2(w, q + m * 64 * blocks, sums + m * 4 * blocks, a + 4 * m, y + 4 * m * outputs, blocks, outputs)
        m += 2
    if rows - m:
        _8x1(w, q + m * 64 * blocks, sums + m * 4 * blocks, a + 4 * m, y + 4 * m * outputs, blocks, outputs)


@njit(error_model="numpy")
def _room(x: Any, blocks: int) -> Any:
    rows = min(GROUP, len(x))
    sums, a = np.empty((rows, blocks), np.float32), np.empty(rows, np.float32)
    return np.empty((rows, blocks * 32), np.int16), sums, a, np.empty((rows, EIGHT), np.float32)


@intrinsic
def _number(context: Any, bits: Any) -> Any:
    """The float32 that these bits are."""
    return types.float32(types.int32), lambda target, b, signature, given: b.bitcast(given[0], F32)


@njit(error_model="numpy")
def whole(x: Any, q: Any, sums: Any, a: Any) -> None:
    """x (M, K) as 16-bit whole numbers q (M, K'), the sums of their blocks (M, B), and a scale a row (M,).

    A row with NaN or an infinite number has a scale that is neither finite.
    """
    for m in range(len(x)):
        row, size = x[m].view(np.int32), np.int32(0)
        for k in range(x.shape[1]):  # as bits: they have the order of sizes, NaN above all, in whichever order compared
            size = max(size, row[k] & np.int32(0x7FFFFFFF))
        top = _number(max(size, LEAST))
        a[m] = top / TOP
        by = TOP / top
        for k in range(x.shape[1]):
            q[m, k] = np.int16(np.rint(x[m, k] * by))
        for k in range(x.shape[1], q.shape[1]):
            q[m, k] = 0
        for block in range(q.shape[1] // 32):
            total = np.int32(0)
            for k in range(block * 32, block * 32 + 32):
                total += q[m, k]
            sums[m, block] = total


@njit(parallel=True, error_model="numpy", cache=CACHE)
def product4(w: Any, x: Any, y: Any, blocks: int) -> int:
    """y (M, N) = x (M, K) times packed 4-bit weights w (N / 8, bytes)."""
    outputs, q, sums, a, rest = y.shape[1], *_room(x, blocks)
    for first in range(0, len(x), GROUP):
        rows, full = min(GROUP, len(x) - first), outputs // EIGHT
        whole(x[first : first + rows], q, sums, a)
        pw, pq, ps, pa = w.ctypes.data, q.ctypes.data, sums.ctypes.data, a.ctypes.data
        py = y.ctypes.data + 4 * first * outputs
        for n in prange(full):
            _rows4(rows, pw + n * w.shape[1], pq, ps, pa, py + 4 * EIGHT * n, blocks, outputs)
        if outputs > full * EIGHT:
            _rows4(rows, pw + full * w.shape[1], pq, ps, pa, rest.ctypes.data, blocks, EIGHT)
            y[first : first + rows, full * EIGHT :] = rest[:rows, : outputs - full * EIGHT]
    return q.size + sums.size + a.size  # they live until here: the loop knows only their addresses


@njit(parallel=True, error_model="numpy", cache=CACHE)
def product8(w: Any, x: Any, y: Any, blocks: int) -> int:
    """y (M, N) = x (M, K) times packed 8-bit weights w (N / 8, bytes)."""
    outputs, q, sums, a, rest = y.shape[1], *_room(x, blocks)
    for first in range(0, len(x), GROUP):
        rows, full = min(GROUP, len(x) - first), outputs // EIGHT
        whole(x[first : first + rows], q, sums, a)
        pw, pq, ps, pa = w.ctypes.data, q.ctypes.data, sums.ctypes.data, a.ctypes.data
        py = y.ctypes.data + 4 * first * outputs
        for n in prange(full):
            _rows8(rows, pw + n * w.shape[1], pq, ps, pa, py + 4 * EIGHT * n, blocks, outputs)
        if outputs > full * EIGHT:
            _rows8(rows, pw + full * w.shape[1], pq, ps, pa, rest.ctypes.data, blocks, EIGHT)
            y[first : first + rows, full * EIGHT :] = rest[:rows, : outputs - full * EIGHT]
    return q.size + sums.size + a.size  # they live until here: the loop knows only their addresses


@intrinsic
def _half(context: Any, address: Any) -> Any:
    """One float16 as float32."""

    def generate(target: Any, b: Any, signature: Any, given: Any) -> Any:
        return b.fpext(b.bitcast(_load(b, given[0], I16, 2), HALF), F32)

    return types.float32(types.int64), generate


@njit(error_model="numpy", cache=CACHE)
def unpack(bits: int, w: Any, rows: Any, out: Any) -> None:
    """Rows (M,) of packed weights w (N / 8, bytes) as numbers: (M, 32 B)."""
    record, few = (160 if bits == 4 else 272), 8 // bits  # bytes of a block, codes in a byte
    for m in range(len(rows)):
        if not 0 <= rows[m] < EIGHT * len(w):
            raise IndexError("a token id is outside the model's vocabulary")
        tile, lane = w[rows[m] // EIGHT], rows[m] % EIGHT
        for block in range(out.shape[1] // 32):
            start = tile.ctypes.data + block * record + 2 * lane
            scale, least = _half(start), _half(start + 16) if bits == 4 else np.float32(0)
            codes = (block + 1) * record - 32 * bits + 4 * lane
            for i in range(bits):
                for byte in range(4):
                    for j in range(few):
                        code = np.int64(tile[codes + 32 * i + byte]) >> bits * j & (1 << bits) - 1
                        if code > 127:
                            code -= 256
                        k = 2 * (16 // bits * i + byte % 2 * few + j) + byte // 2
                        out[m, 32 * block + k] = np.float32(code) * scale + least


@njit(error_model="numpy", cache=CACHE)
def _product(bits: int, w: Any, x: Any, y: Any, blocks: int) -> None:
    if bits == 4:
        product4(w, x, y, blocks)
    else:
        product8(w, x, y, blocks)


@intrinsic
def _eights(context: Any, x: Any, size: Any) -> Any:
    """The sum of squares of `size` numbers, a multiple of eight: eight sums of every eighth, then theirs."""

    def generate(target: Any, b: Any, signature: Any, given: Any) -> Any:
        x, size = given
        i, (held,), close = _loop(b, size, 8, [ir.Constant(LANES, [0.0] * 8)])
        eight = _load(b, _at(b, x, 4, i), LANES, 4)
        close([_fma(b, eight, eight, held)])
        sums, total = _now(held), F32(0.0)
        for lane in range(8):
            total = b.fadd(total, b.extract_element(sums, I32(lane)))
        return total

    return types.float32(*[types.int64] * 2), generate


@njit(error_model="numpy")
def _to_one(x: Any, eps: float) -> Any:
    """What brings numbers x (D,) to a mean square of 1.

    Their squares are added in an order of its own: left to the compiler, it would not be the same in every function
    that this becomes a part of, nor after a function came from numba's cache.
    """
    eights, total = len(x) // 8 * 8, np.float32(0)
    if eights:
        total = _eights(x.ctypes.data, eights)
    for k in range(eights, len(x)):
        total += x[k] * x[k]
    return np.float32(1) / np.sqrt(total / np.float32(len(x)) + np.float32(eps))


@njit(error_model="numpy", cache=CACHE)
def _normed(x: Any, gain: Any, eps: float, out: Any) -> None:
    """Root-mean-square norm of rows x (M, E)."""
    for m in range(len(x)):
        by = _to_one(x[m], eps)
        for k in range(x.shape[1]):
            out[m, k] = x[m, k] * by * gain[k]


@njit(error_model="numpy", cache=CACHE)
def _turned(y: Any, first: int, heads: int, cos: Any, sin: Any, gain: Any, eps: float) -> None:
    """Rotate heads of rows y (M, N) that begin at column `first`; with a gain (D,), norm each of them before."""
    size = cos.shape[1]
    half = size // 2
    for m in range(len(y)):
        at = m % len(cos)
        for h in range(heads):
            head = y[m, first + h * size : first + (h + 1) * size]
            if len(gain):
                by = _to_one(head, eps)
                for k in range(size):
                    head[k] = head[k] * by * gain[k]
            for k in range(half):
                one, other = head[k], head[k + half]
                head[k] = one * cos[at, k] - other * sin[at, k]
                head[k + half] = other * cos[at, k + half] + one * sin[at, k + half]


@njit(error_model="numpy", cache=CACHE)
def enter(
    bits: int, x: Any, gain: Any, eps: float, w: Any, bias: Any, blocks: int,
    cos: Any, sin: Any, heads: int, shared: int, query_gain: Any, key_gain: Any, out: Any,
) -> None:  # fmt: skip
    """Hidden states x (M, E) to rotated queries, rotated keys and values side by side: (M, (H + 2 K) D)."""
    normed = np.empty_like(x)
    _normed(x, gain, eps, normed)
    _product(bits, w, normed, out, blocks)
    if len(bias):
        out += bias
    _turned(out, 0, heads, cos, sin, query_gain, eps)
    _turned(out, heads * cos.shape[1], shared, cos, sin, key_gain, eps)


@intrinsic
def _greater(context: Any, x: Any, y: Any) -> Any:
    """The greater of two, NaN if one is."""

    def generate(target: Any, b: Any, signature: Any, given: Any) -> Any:
        return _call(b, "llvm.maximum.f32", F32, *given)

    return types.float32(*[types.float32] * 2), generate


ALONE = 1 << 13  # numbers that one thread has gated before others have started


@njit(error_model="numpy")
def _gate(y: Any, m: int, out: Any) -> None:
    size = out.shape[1]
    for k in range(size):
        out[m, k] = y[m, k] / (np.float32(1) + exp(-y[m, k])) * y[m, k + size]


@njit(parallel=True, error_model="numpy", cache=CACHE)
def _gated(y: Any, out: Any) -> None:
    """silu(gate) * up, from rows y (M, 2 I) with both side by side."""
    if out.size < ALONE:
        for m in range(len(out)):
            _gate(y, m, out)
    else:
        for m in prange(len(out)):
            _gate(y, m, out)


@njit(error_model="numpy", cache=CACHE)
def leave(
    bits: int, x: Any, seen: Any, w_out: Any, blocks_out: int, gain: Any, eps: float,
    w_up: Any, blocks_up: int, w_down: Any, blocks_down: int, out: Any,
) -> None:  # fmt: skip
    """What attention gave (M, H D) back into the hidden states x (M, E), and through the feed-forward part: (M, E)."""
    rows, wide = len(x), len(w_up) * EIGHT // 2
    part, both, gated = np.empty_like(x), np.empty((rows, 2 * wide), np.float32), np.empty((rows, wide), np.float32)
    _product(bits, w_out, seen, out, blocks_out)
    out += x
    _normed(out, gain, eps, part)
    _product(bits, w_up, part, both, blocks_up)
    _gated(both, gated)
    _product(bits, w_down, gated, part, blocks_down)
    out += part


SLOTS = 4  # keys a query row is multiplied by at once; with three rows twelve sums fill the registers
VECTORS = 4  # of a value, summed at once; likewise
CHUNK = 24  # query rows that share one reading of keys and values
STRETCH = 4096  # numbers of values that stay in the cache while the query rows pass by
ONE = np.float32(1 << 30)  # the greatest weight as a whole number


def _score(rows: int) -> Any:
    """Products of query rows with four keys. A product is eight sums of every eighth number, then theirs."""

    @intrinsic
    def score(context: Any, q: Any, key: Any, size: Any, slot: Any, last: Any, out: Any, room: Any) -> Any:
        def generate(target: Any, b: Any, signature: Any, given: Any) -> Any:
            q, key, size, slot, last, out, room = given
            wide, keys = b.mul(size, I64(4)), []
            for n in range(SLOTS):  # behind the last slot there may be no memory; it is read again
                own = b.add(slot, I64(n))
                keys.append(_at(b, key, wide, b.select(b.icmp_signed("<", own, last), own, last)))
            i, held, close = _loop(b, size, 8, [ir.Constant(LANES, [0.0] * 8)] * (SLOTS * rows))
            queries = [_load(b, _at(b, _at(b, q, r, wide), 4, i), LANES, 4) for r in range(rows)]
            new = []
            for at in keys:  # one vector of keys at a time: there is no register for a second
                x = _load(b, _at(b, at, 4, i), LANES, 4)
                new += [_fma(b, x, queries[r], held[len(new) + r]) for r in range(rows)]
            close(new)
            for r in range(rows):
                sums = _four_sums(b, [_now(h) for h in held[r::rows]])
                at = _at(b, _at(b, out, 4 * r, room), 4, slot)
                b.store(sums, b.inttoptr(at, sums.type.as_pointer())).align = 4
            return target.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return score


def _four_sums(b: Any, x: list[Any]) -> Any:
    """The sums of four vectors, as one of four."""

    def folded(u: Any, v: Any, *halves: list[int]) -> Any:
        return b.fadd(*(b.shuffle_vector(u, v, ir.Constant(VEC(I32, len(half)), half)) for half in halves))

    one, other = (folded(u, v, [0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]) for u, v in (x[:2], x[2:]))
    both = folded(one, other, [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15])
    return folded(both, both, [0, 1, 2, 3], [4, 5, 6, 7])


def _mix(rows: int, vectors: int) -> Any:
    """Add to sums of query rows some slots' values times their weights, one slot after the other."""

    @intrinsic
    def mix(context: Any, weight: Any, room: Any, value: Any, size: Any, slots: Any, out: Any) -> Any:
        def generate(target: Any, b: Any, signature: Any, given: Any) -> Any:
            weight, room, value, size, slots, out = given
            places = [b.add(_at(b, out, 4 * r, size), I64(32 * n)) for n in range(vectors) for r in range(rows)]
            i, held, close = _loop(b, slots, 1, [_load(b, place, LANES, 4) for place in places])
            weights = [_splat(b, _load(b, _at(b, _at(b, weight, 4 * r, room), 4, i), F32, 4)) for r in range(rows)]
            at, new = _at(b, value, 4, b.mul(size, i)), []
            for n in range(vectors):
                x = _load(b, b.add(at, I64(32 * n)), LANES, 4)
                new += [_fma(b, x, weights[r], held[len(new) + r]) for r in range(rows)]
            close(new)
            for place, h in zip(places, held, strict=True):
                b.store(_now(h), b.inttoptr(place, LANES.as_pointer())).align = 4
            return target.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return mix


_score3, _score1 = _score(3), _score(1)
_mix3x4, _mix3x1, _mix1x4, _mix1x1 = (_mix(rows, vectors) for rows in (3, 1) for vectors in (VECTORS, 1))


@njit(error_model="numpy")
def _scores(q: int, key: int, size: int, count: int, score: Any) -> None:
    """Query rows (R, D) times all keys of a lane (T, D): the first T columns of score (R, T')."""
    (rows, room), out = score.shape, score.ctypes.data
    for slot in range(0, count, SLOTS):
        r = 0
        while r < rows:
            if rows - r >= 3:
                _score3(q + 4 * r * size, key, size, slot, count - 1, out + 4 * r * room, room)
                r += 3
            else:
                _score1(q + 4 * r * size, key, size, slot, count - 1, out + 4 * r * room, room)
                r += 1


@njit(error_model="numpy")
def _mixed(weight: Any, value: int, size: int, count: int, out: int) -> None:
    """To sums (R, D) add weights (R, T') times all values of a lane (T, D)."""
    (rows, room), stretch = weight.shape, max(1, STRETCH // size)
    for first in range(0, count, stretch):
        slots, r = min(stretch, count - first), 0
        while r < rows:
            w, d = weight.ctypes.data + 4 * (r * room + first), 0
            while d < size:
                v, o, whole = value + 4 * (first * size + d), out + 4 * (r * size + d), size - d >= 8 * VECTORS
                if rows - r >= 3 and whole:
                    _mix3x4(w, room, v, size, slots, o)
                elif rows - r >= 3:
                    _mix3x1(w, room, v, size, slots, o)
                elif whole:
                    _mix1x4(w, room, v, size, slots, o)
                else:
                    _mix1x1(w, room, v, size, slots, o)
                d += 8 * VECTORS if whole else 8
            r += 3 if rows - r >= 3 else 1


@njit(error_model="numpy")
def _softened(
    score: Any, r: int, positions: Any, count: int, place: int, window: int, tree: Any, node: int, scale: float
) -> Any:
    """Row r of scores (R, T) becomes the weights of its slots, the greatest 1 and unseen ones 0. Their sum.

    The weights are added as whole numbers: in that their order does not matter, nor how many zeros are between them.
    """
    nothing, before, older = np.float32(-np.inf), np.int32(-1), count - tree.shape[1]
    if window > 0 and place >= window:
        before = np.int32(place - window)
    for t in range(max(older, 0), count):
        score[r, t] = score[r, t] if tree[node, t - older] else nothing
    place, top = np.int32(place), nothing
    for t in range(score.shape[1]):
        seen = before < positions[t] and positions[t] <= place
        score[r, t] = score[r, t] * np.float32(scale) if seen else nothing
        top = _greater(top, score[r, t])
    for t in range(score.shape[1]):
        weight = exp(score[r, t] - top)
        score[r, t] = np.float32(0) if score[r, t] == nothing else weight
    total = 0
    for t in range(score.shape[1]):
        weight = score[r, t] if score[r, t] == score[r, t] else np.float32(0)  # NaN stays one among the weights
        total += np.int64(np.int32(np.rint(weight * ONE)))
    return np.float32(total) / ONE


@njit(error_model="numpy")
def _attended(
    first: int, last: int, queries: Any, keys: Any, values: Any, positions: Any, starts: Any, counts: Any, at: Any,
    window: int, tree: Any, scale: float, out: Any,
) -> None:  # fmt: skip
    """Rows `first` to `last` of the queries (B H Q, D), all of one lane."""
    (batch, lanes), new, size, rows = starts.shape, at.shape[1], queries.shape[1], last - first
    lane = first // (len(queries) // (batch * lanes))
    b, start, count = lane // lanes, starts[lane // lanes, lane % lanes], counts[lane // lanes, lane % lanes]
    if tree.shape[1] == 0:  # what none of these queries sees at either end is not read
        oldest, newest = np.int64(1) << 62, np.int64(-1)
        for row in range(first, last):
            place = at[b, row % new]
            oldest, newest = min(oldest, place), max(newest, place)
        while count > 0 and positions[start + count - 1] > newest:
            count -= 1
        while window > 0 and count > 0 and positions[start] <= oldest - window:
            start, count = start + 1, count - 1
    room = (count + 31) // 32 * 32  # whole vectors, several at a time; what is behind the last slot is not seen
    score, totals, held = np.empty((rows, room), np.float32), np.empty(rows, np.float32), np.empty(room, np.int32)
    for t in range(room):
        held[t] = positions[start + t] if t < count else -1
    key, value, ahead = keys.ctypes.data + 4 * start * size, values.ctypes.data + 4 * start * size, 4 * first * size
    _scores(queries.ctypes.data + ahead, key, size, count, score)
    for r in range(rows):
        node = (first + r) % new
        totals[r] = _softened(score, r, held, count, at[b, node], window, tree, node, scale)
        for d in range(size):
            out[first + r, d] = 0
    _mixed(score, value, size, count, out.ctypes.data + ahead)
    for r in range(rows):
        padding = at[b, (first + r) % new] < 0
        for d in range(size):
            out[first + r, d] = np.float32(0) if padding else out[first + r, d] / totals[r]


@njit(parallel=True, error_model="numpy", cache=CACHE)
def _attend(
    queries: Any, keys: Any, values: Any, positions: Any, starts: Any, counts: Any, at: Any, window: int, tree: Any,
    scale: float, out: Any, threads: int,
) -> None:  # fmt: skip
    """`attend` for rows of queries (B H Q, D), each of whole vectors; threads share the rows evenly."""
    each = len(queries) // starts.size  # rows of a lane, which may be of several heads
    if at.shape[1] >= CHUNK:  # one head's alone, so that a chunk's queries are neighbours and end where they do
        each = at.shape[1]
    shares = min(len(queries), threads)
    for share in prange(shares):
        first, last = len(queries) * share // shares, len(queries) * (share + 1) // shares
        while first < last:
            end = min(first + CHUNK, last, (first // each + 1) * each)
            _attended(first, end, queries, keys, values, positions, starts, counts, at, window, tree, scale, out)
            first = end


def attend(
    queries: Any, keys: Any, values: Any, positions: Any, starts: Any, counts: Any, at: Any, window: int, tree: Any,
    scale: float, out: Any,
) -> None:  # fmt: skip
    """Queries (B, H, Q, D) over lanes of keys and values (S, D): (B, H, Q, D). All are contiguous.

    A lane is `counts` (B, K) slots from `starts` (B, K). A query at position `at` (B, Q) sees the slots at or before
    it, within the window if there is one; among the newest N slots `tree` (Q, N) decides as well, unless it is empty.
    A query's numbers are added in an order of their own, so that neither other queries nor slots it does not see
    change anything in the result, not even its rounding. A query at a position below 0 gets zeros.
    """
    size, threads = queries.shape[3], numba.get_num_threads()
    given, result = (queries.reshape(-1, size), keys, values), out.reshape(-1, size)
    if size % 8:  # whole vectors, as the lanes of real models are
        given = tuple(np.pad(x, ((0, 0), (0, -size % 8))) for x in given)
        result = np.empty_like(given[0])
    _attend(*given, positions, starts, counts, at, window, tree, scale, result, threads)
    if size % 8:
        out[:] = result[:, :size].reshape(out.shape)


@intrinsic
def _pointer(context: Any, address: Any) -> Any:
    def generate(target: Any, b: Any, signature: Any, given: Any) -> Any:
        return b.inttoptr(given[0], I8.as_pointer())

    return types.voidptr(types.int64), generate


@njit(error_model="numpy")
def _floats(address: int, rows: int, columns: int) -> Any:
    return numba.carray(_pointer(address), (rows, columns), np.float32)


@njit(error_model="numpy")
def _row(address: int, size: int) -> Any:
    return numba.carray(_pointer(address), (size if address else 0,), np.float32)


@njit(error_model="numpy")
def _wholes(address: int, size: int) -> Any:
    return numba.carray(_pointer(address), (size if address else 0,), np.int64)


@njit(error_model="numpy")
def _bytes(address: int, outputs: int, blocks: int, bits: int) -> Any:
    wide = blocks * (160 if bits == 4 else 272)
    return numba.carray(_pointer(address), ((outputs + EIGHT - 1) // EIGHT, wide), np.uint8)


@njit(error_model="numpy", cache=CACHE)
def walk(
    bits: int, x: Any, weights: Any, caches: Any, heads: int, shared: int, inner: int, eps: float, scale: float,
    cos: Any, sin: Any, at: Any, tree: Any, threads: int,
) -> None:  # fmt: skip
    """Hidden states x (M, E) of few new tokens through all layers, in place.

    `weights` (L, 9) are addresses: norm, queries-keys-values, their bias, norms of queries and keys, output, norm,
    gates beside ups, downs; 0 where a layer has none. `caches` (L, 7): the addresses of keys, values and positions, how
    many slots a lane has and holds, the window or 0, and the address of how many each lane (B, K) holds, 0 if all hold
    as many. New keys and values are written behind what is held, the positions `at` (B, Q) with them.
    """
    size, width = cos.shape[1], x.shape[1]
    (rows, new), many = at.shape, heads + 2 * shared
    blocks, blocks_out, blocks_down = (width + 31) // 32, (heads * size + 31) // 32, (inner + 31) // 32
    both, out = np.empty((len(x), many * size), np.float32), np.empty_like(x)
    queries = np.empty((rows, heads, new, size), np.float32)
    seen, flat = np.empty_like(queries), np.empty((len(x), heads * size), np.float32)
    starts, counts = np.empty((rows, shared), np.int64), np.empty((rows, shared), np.int64)
    for layer in range(len(weights)):
        w = weights[layer]
        enter(
            bits, x, _row(w[0], width), eps, _bytes(w[1], many * size, blocks, bits), _row(w[2], many * size), blocks,
            cos, sin, heads, shared, _row(w[3], size), _row(w[4], size), both,
        )  # fmt: skip
        room, held, window = caches[layer, 3], caches[layer, 4], caches[layer, 5]
        slots, lengths = rows * shared * room, _wholes(caches[layer, 6], rows * shared)
        keys, values = _floats(caches[layer, 0], slots, size), _floats(caches[layer, 1], slots, size)
        positions = numba.carray(_pointer(caches[layer, 2]), (slots,), np.int32)
        for b in range(rows):
            for k in range(shared):
                before = lengths[b * shared + k] if len(lengths) else held
                starts[b, k], counts[b, k] = (b * shared + k) * room, before + new
                for q in range(new):
                    slot, row = starts[b, k] + before + q, both[b * new + q]
                    keys[slot] = row[(heads + k) * size : (heads + k + 1) * size]
                    values[slot] = row[(heads + shared + k) * size : (heads + shared + k + 1) * size]
                    positions[slot] = at[b, q]
            for h in range(heads):
                for q in range(new):
                    queries[b, h, q] = both[b * new + q, h * size : (h + 1) * size]
        _attend(
            queries.reshape(-1, size), keys, values, positions, starts, counts, at, window, tree, scale,
            seen.reshape(-1, size), threads,
        )  # fmt: skip
        for b in range(rows):
            for h in range(heads):
                for q in range(new):
                    flat[b * new + q, h * size : (h + 1) * size] = seen[b, h, q]
        leave(
            bits, x, flat, _bytes(w[5], width, blocks_out, bits), blocks_out, _row(w[6], width), eps,
            _bytes(w[7], 2 * inner, blocks, bits), blocks, _bytes(w[8], width, blocks_down, bits), blocks_down, out,
        )  # fmt: skip
        x[:] = out


@njit(error_model="numpy", cache=CACHE)
def normed(x: Any, gain: Any, eps: float) -> Any:
    """The model's last norm of hidden states x (M, E), or any of a layer's: (M, E)."""
    out = np.empty_like(x)
    _normed(x, gain, eps, out)
    return out


@njit(error_model="numpy", cache=CACHE)
def answer(
    ids: Any, table_bits: int, table: Any, bits: int, weights: Any, caches: Any, heads: int, shared: int, inner: int,
    eps: float, scale: float, cos: Any, sin: Any, at: Any, tree: Any, threads: int,
    gain: Any, head_bits: int, head: Any, logits: Any,
) -> Any:  # fmt: skip
    """Tokens (B, Q) to their final hidden states (B Q, E), and the logits (B, last, V) after each row's newest few.

    From packed rows of the `table` through all layers, as in `walk`, the last norm and the packed `head`. `cos` and
    `sin` are of all positions that may be asked for.
    """
    (rows, new), last, width = ids.shape, logits.shape[1], len(gain)
    blocks = (width + 31) // 32
    wide = np.empty((rows * new, 32 * blocks), np.float32)
    unpack(table_bits, table, ids.ravel(), wide)
    x = wide[:, :width].copy()
    walk(
        bits, x, weights, caches, heads, shared, inner, eps, scale, cos[at.ravel()], sin[at.ravel()], at, tree, threads
    )  # fmt: skip
    hidden, newest = normed(x, gain, eps), np.empty((rows * last, width), np.float32)
    for b in range(rows):
        newest[b * last : (b + 1) * last] = hidden[(b + 1) * new - last : (b + 1) * new]
    _product(head_bits, head, newest, logits.reshape(rows * last, -1), blocks)
    return hidden


_one_at_a_time = threading.RLock()  # not every threading layer of numba's may be entered twice


@contextmanager
def threads() -> Iterator[None]:
    """Around calls of the compiled functions: as many threads as torch uses."""
    with _one_at_a_time:
        wanted = min(torch.get_num_threads(), MOST_THREADS)
        if numba.get_num_threads() != wanted:
            numba.set_num_threads(wanted)
        yield


def product(bits: int, codes: Tensor, x: Tensor, out: Tensor, blocks: int) -> None:
    """out (M, N) = x (M, K) times the packed weights."""
    with threads():
        _product(bits, codes.numpy(), x.numpy(), out.numpy(), blocks)


class _Announcement(Listener):
    """Says once that something is compiled, which happens only where numba's cache does not have it."""

    silent = False

    def on_start(self, event: Any) -> None:
        ours = event.data["dispatcher"].py_func.__module__.startswith("tokenmill.")
        if ours and not self.silent:
            self.silent = True
            log.info("compiling the products of packed weights: about a minute, once on this machine")

    def on_end(self, event: Any) -> None:
        pass


def _start() -> None:
    """Start numba's threads. Where they are OpenMP's they are torch's own, and starting them changes torch's count."""
    threads = torch.get_num_threads()
    numba.set_num_threads(1)
    torch.set_num_threads(threads)


register("numba:compile", _Announcement())
_start()
