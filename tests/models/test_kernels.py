"""Attention over lanes and the gate, compiled: what they compute, and that a row's bits are its own."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tokenmill.models import weights

if not weights.compiled():
    pytest.skip("numba is not installed", allow_module_level=True)

from tokenmill.models import kernels

NO_TREE = np.empty((0, 0), np.bool_)


class Case:
    """Random queries over random lanes, of equal counts or ragged ones, with room between them."""

    def __init__(self, size=64, groups=3, lanes=2, rows=1, new=4, older=50, window=0, tree=None, ragged=False, seed=0):
        self.rng = np.random.default_rng(seed)
        self.window, self.scale = window, size**-0.5
        self.tree = NO_TREE if tree is None else tree
        self.counts = np.full((rows, lanes), older + new)
        if ragged:
            self.counts -= self.rng.integers(0, older, (rows, lanes))
        rooms = self.counts + self.rng.integers(0, 9, (rows, lanes))
        self.starts = (np.cumsum(rooms) - rooms.flatten()).reshape(rows, lanes)
        self.queries = self.normal(rows, lanes * groups, new, size) * 3
        self.keys, self.values = self.normal(rooms.sum(), size), self.normal(rooms.sum(), size)
        self.positions = np.full(rooms.sum(), -1, np.int32)
        self.at = np.tile(np.arange(older, older + new), (rows, 1))
        for start, count in zip(self.starts.flat, self.counts.flat, strict=True):  # a lane kept the newest and some
            held = np.sort(self.rng.permutation(older)[: count - new])
            self.positions[start : start + count] = [*held, *range(older, older + new)]

    def normal(self, *shape):
        return self.rng.standard_normal(shape, dtype=np.float32)

    def attend(self, which=slice(None)):
        """For all queries or some: (B, H, Q', D)."""
        queries = np.ascontiguousarray(self.queries[:, :, which])
        at, tree = np.ascontiguousarray(self.at[:, which]), self.tree
        tree = np.ascontiguousarray(tree[which]) if len(tree) else tree
        out = np.full_like(queries, np.nan)
        kernels.attend(
            queries, self.keys, self.values, self.positions, self.starts, self.counts, at, self.window, tree,
            self.scale, out,
        )  # fmt: skip
        return out

    def seen(self, b, k, q):
        """Which slots of a lane a query sees, from the definition: (T,)."""
        start, count, place = self.starts[b, k], self.counts[b, k], self.at[b, q]
        slots = self.positions[start : start + count]
        seen = (slots >= 0) & (slots <= place)
        if self.window:
            seen &= place - slots < self.window
        if len(self.tree):
            seen[-self.tree.shape[1] :] &= self.tree[q]
        return seen

    def reference(self):
        """In float64, query by query over the slots it sees."""
        rows, heads, new, _ = self.queries.shape
        lanes, out = self.starts.shape[1], np.zeros(self.queries.shape)
        for b, h, q in np.ndindex(rows, heads, new):
            if self.at[b, q] >= 0:
                k = h // (heads // lanes)
                slots = self.starts[b, k] + np.flatnonzero(self.seen(b, k, q))
                scores = self.keys[slots].astype(float) @ self.queries[b, h, q] * self.scale
                weight = np.exp(scores - scores.max())
                out[b, h, q] = weight @ self.values[slots] / weight.sum()
        return out


def tree_of(new, nodes, seed=0):
    """Each of the newest of some nodes sees itself and some before it: (Q, N)."""
    sees = np.random.default_rng(seed).random((nodes, nodes)) < 0.5
    return (np.tril(sees, -1) | np.eye(nodes, dtype=np.bool_))[nodes - new :]


CASES = {
    "one query": {"new": 1},
    "one query, no groups": {"new": 1, "groups": 1, "lanes": 3},
    "a first token": {"new": 1, "older": 0},
    "two slots": {"new": 1, "older": 1},
    "some queries": {"new": 5, "rows": 2},
    "more than share a reading": {"new": 33},
    "a long lane": {"new": 2, "older": 777},
    "no groups": {"new": 7, "groups": 1, "lanes": 4},
    "many groups": {"new": 3, "groups": 7},
    "a window": {"new": 6, "window": 9},
    "a window as long as the text": {"new": 2, "older": 8, "window": 9},
    "a tree": {"new": 9, "tree": tree_of(9, 9)},
    "nodes over older nodes": {"new": 4, "tree": tree_of(4, 11)},
    "a tree within a window": {"new": 9, "window": 20, "tree": tree_of(9, 9)},
    "ragged lanes": {"new": 3, "rows": 3, "ragged": True},
    "ragged lanes within a window": {"new": 3, "rows": 2, "ragged": True, "window": 12},
    "a tree over ragged lanes": {"new": 6, "ragged": True, "tree": tree_of(6, 6)},
} | {f"heads of {size}": {"size": size, "new": 4} for size in (1, 4, 8, 12, 16, 20, 33, 72, 80, 128, 200)}


@pytest.mark.parametrize("case", CASES)
def test_attention_is_what_the_definition_says(case):
    made = Case(**CASES[case])
    found, want = made.attend(), made.reference()
    assert float(np.abs(found - want).max()) < 2e-6


@pytest.mark.parametrize("case", CASES)
def test_a_query_does_not_depend_on_the_queries_beside_it(case):
    made = Case(**CASES[case])
    whole, new = made.attend(), made.queries.shape[2]
    for which in [[q] for q in range(new)] + [[*range(new)][1:], [*range(new)][::2], [*range(new)][::-1]]:
        if which:
            assert np.array_equal(made.attend(which), whole[:, :, which]), which


@pytest.mark.parametrize("threads", [2, 3, 5, 64])
@pytest.mark.parametrize("case", CASES)
def test_a_query_does_not_depend_on_how_rows_are_shared(case, threads, monkeypatch):
    made = Case(**CASES[case])
    whole = made.attend()
    monkeypatch.setattr("tokenmill.models.kernels.numba.get_num_threads", lambda: threads)
    assert np.array_equal(made.attend(), whole)


@pytest.mark.parametrize("case", CASES)
def test_slots_that_are_not_seen_change_nothing(case):
    made = Case(**CASES[case])
    whole = made.attend()
    for q in range(made.queries.shape[2]):
        alone = Case(**CASES[case])
        for b, k in np.ndindex(*made.starts.shape):
            slots = made.starts[b, k] + np.flatnonzero(~made.seen(b, k, q))
            alone.keys[slots], alone.values[slots] = 1e18, -1e30
        assert np.array_equal(alone.attend([q]), whole[:, :, [q]])


@pytest.mark.parametrize("case", CASES)
def test_slots_that_are_not_seen_need_not_be_there(case):
    """Also where a slot stands among the others is nothing to the sums: a sibling in a tree takes up a place."""
    made = Case(**CASES[case])
    whole = made.attend()
    for q in range(made.queries.shape[2]):
        alone, slots = Case(**CASES[case]), []
        for b, k in np.ndindex(*made.starts.shape):
            seen = made.starts[b, k] + np.flatnonzero(made.seen(b, k, q))
            alone.starts[b, k], alone.counts[b, k] = sum(map(len, slots)), len(seen)
            slots.append(seen)
        for name in ("keys", "values", "positions"):
            setattr(alone, name, getattr(made, name)[np.concatenate(slots)])
        alone.tree = NO_TREE
        assert np.array_equal(alone.attend([q]), whole[:, :, [q]])


def test_a_padding_query_gets_zeros_and_an_empty_slot_is_not_seen():
    made = Case(rows=2, new=4)
    want = Case(rows=2, new=4).attend()
    made.at[0, :2] = -1
    out = made.attend()
    assert not out[0, :, :2].any()
    assert np.array_equal(out[0, :, 2:], want[0, :, 2:])
    assert np.array_equal(out[1], want[1])
    made.positions[made.starts[1, 0] + 7] = -1
    out = made.attend()
    assert float(np.abs(out - made.reference()).max()) < 2e-6
    assert not np.array_equal(out[1, :3], want[1, :3])
    assert np.array_equal(out[1, 3:], want[1, 3:])  # the other lane


def test_scores_far_apart():
    made = Case(new=3)
    made.queries *= 1e4  # one slot has all the weight
    assert float(np.abs(made.attend() - made.reference()).max()) < 2e-6
    made.queries[:] = 0  # all have the same
    assert float(np.abs(made.attend() - made.reference()).max()) < 2e-6


def test_what_is_not_a_number_shows():
    made = Case(new=4)
    made.values[made.starts[0, 1] + made.counts[0, 1] - 1] = np.nan  # only the last query sees it
    assert np.isnan(made.attend([3])[:, 3:]).all()
    made = Case(new=4)
    made.keys[made.starts[0, 1]] = np.nan
    out = made.attend()
    assert np.isnan(out[:, 3:]).all()
    assert np.isfinite(out[:, :3]).all()


@pytest.mark.parametrize("shape", [(1, 1536), (3, 40), (2, 13), (9, 1000)])
def test_the_gate_is_silu_times_what_it_gates_for_every_row_alike(shape):
    rng = np.random.default_rng(0)
    y = (rng.standard_normal((shape[0], 2 * shape[1])) * 10).astype(np.float32)
    y[0, :6] = 0, -0.0, 80, -80, 200, -200
    out, alone = np.empty(shape, np.float32), np.empty((1, shape[1]), np.float32)
    kernels._gated(y, out)
    gate, up = y[:, : shape[1]].astype(float), y[:, shape[1] :].astype(float)
    want = gate / (1 + np.exp(-gate)) * up
    assert (np.abs(out - want) <= 4e-7 * np.abs(want) + 1e-30).all()
    for m in range(shape[0]):
        kernels._gated(y[m : m + 1], alone)
        assert np.array_equal(alone[0], out[m])
    y[0, 2] = np.nan
    kernels._gated(y, out)
    assert np.isnan(out[0, 2])
    assert np.isfinite(out[0, 3:]).all()


UNPACK = """
import logging, torch
logging.basicConfig(level=logging.INFO)
from tokenmill.models.weights import Blocks
for bits in (8, 4):
    print(Blocks(torch.ones(8, 32), bits=bits).weight.shape)
"""


def test_compilation_is_announced_once_and_only_where_it_happens(tmp_path):
    lines = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", UNPACK], capture_output=True, text=True,
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
        )  # fmt: skip
        assert done.stdout.count("torch.Size([8, 32])") == 2, done.stderr
        lines.append(done.stderr.count("compiling the products of packed weights"))
    assert lines == [1, 0]
