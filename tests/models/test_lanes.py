"""Storage: against lists of tokens, under random traffic; and what is dropped is gone from memory."""

from __future__ import annotations

import pytest
import torch

from tokenmill.models.lanes import SLACK, Lanes, compact


class Model:
    """The same as lists: [row][head] -> list of (position, key, value)."""

    def __init__(self, rows, heads):
        self.lanes = [[[] for _ in range(heads)] for _ in range(rows)]

    def same(self, lanes: Lanes) -> None:
        keys, values, positions = lanes.view()
        assert lanes.count().tolist() == [[len(head) for head in row] for row in self.lanes]
        for b, k, ks, vs, ps in lanes.lanes():
            told = self.lanes[b][k]
            n = len(told)
            for got in (ps, positions[b, k, :n]):
                assert got.tolist() == [p for p, _, _ in told]
            for got in (ks, keys[b, k, :n]):
                assert torch.equal(got, torch.stack([x for _, x, _ in told]) if n else got[:0])
            for got in (vs, values[b, k, :n]):
                assert torch.equal(got, torch.stack([x for _, _, x in told]) if n else got[:0])
            assert (positions[b, k, n:] == -1).all()


def storage(lanes: Lanes) -> int:
    return sum(t.untyped_storage().nbytes() for t in (lanes.keys, lanes.values, lanes.positions))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("drop", ["even", "by row", "ragged"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_traffic(seed, drop, padded):
    g = torch.Generator().manual_seed(seed)
    rows, heads, size = 3, 2, 4
    lanes, model, at = Lanes(), Model(rows, heads), torch.zeros(rows, dtype=torch.long)
    for _ in range(30):
        new = int(torch.tensor([1, 1, 3, 90])[torch.randint(4, (1,), generator=g)])
        keys, values = torch.randn(2, rows, heads, new, size, generator=g)
        valid = torch.rand(rows, new, generator=g) < 0.7 if padded and new > 1 else None
        real = torch.ones(rows, new, dtype=torch.bool) if valid is None else valid
        positions = torch.where(real, at[:, None] + real.cumsum(-1) - 1, -1)
        lanes.append(keys, values, positions, valid)
        at += real.sum(-1)
        for b in range(rows):
            for k in range(heads):
                model.lanes[b][k] += [
                    (int(positions[b, i]), keys[b, k, i], values[b, k, i]) for i in range(new) if real[b, i]
                ]
        model.same(lanes)
        if torch.rand(1, generator=g) < 0.4:
            n = lanes.n
            filled = lanes.view()[2] >= 0
            if drop == "even":
                mask = (torch.rand(n, generator=g) < 0.5).expand(rows, heads, n) & filled
            elif drop == "by row":
                mask = (torch.rand(rows, 1, n, generator=g) < 0.5).expand(rows, heads, n) & filled
            else:
                mask = (torch.rand(rows, heads, n, generator=g) < 0.5) & filled
            lanes.keep(mask)
            for b in range(rows):
                for k in range(heads):
                    model.lanes[b][k] = [t for i, t in enumerate(model.lanes[b][k]) if mask[b, k, i]]
            model.same(lanes)
            most = lanes.count() if lanes.ragged else lanes.count().amax().expand(rows, heads)
            assert storage(lanes) == lanes.nbytes
            assert lanes.nbytes <= int((most + 2 * SLACK).sum()) * (2 * size * 4 + 4)
        if torch.rand(1, generator=g) < 0.2:
            index = torch.randint(rows, (rows,), generator=g)
            before = [t.clone() for t in lanes.view()]
            picked = lanes.select_rows(index)
            picked.keys.fill_(7)  # memory of its own
            assert all(torch.equal(a, b) for a, b in zip(before, lanes.view(), strict=True))
            lanes, at = lanes.select_rows(index), at[index]
            model.lanes = [[list(head) for head in model.lanes[i]] for i in index.tolist()]
            model.same(lanes)


@pytest.mark.parametrize("ragged", [False, True])
def test_keep_tail_and_copy(ragged):
    lanes, model = Lanes(), Model(1, 2)
    keys, values = torch.randn(2, 1, 2, 20, 4)
    lanes.append(keys, values, torch.arange(20)[None])
    mask = torch.ones(1, 2, 20, dtype=torch.bool)
    if ragged:
        mask[0, 1, ::2] = False
        lanes.keep(mask)
    copied = lanes.copy()
    tree, other = torch.randn(2, 1, 2, 5, 4)
    lanes.append(tree, other, torch.tensor([[20, 21, 21, 22, 22]]))
    lanes.keep_tail(5, [0, 2, 4])
    for k in range(2):
        model.lanes[0][k] = [(i, keys[0, k, i], values[0, k, i]) for i in range(20) if mask[0, k, i]]
    model.same(copied)
    for k in range(2):
        model.lanes[0][k] += [(20 + n, tree[0, k, i], other[0, k, i]) for n, i in enumerate((0, 2, 4))]
    model.same(lanes)
    lanes.append(tree[:, :, :1], other[:, :, :1], torch.tensor([[23]]))
    for k in range(2):
        model.lanes[0][k].append((23, tree[0, k, 0], other[0, k, 0]))
    model.same(lanes)


def test_what_was_taken_back_is_empty_where_a_row_is_shorter_from_then_on():
    lanes, model = Lanes(), Model(2, 1)
    keys, values = torch.randn(2, 2, 1, 6, 4)
    lanes.append(keys, values, torch.arange(6).expand(2, 6))
    lanes.drop_tail(3)
    one, other = torch.randn(2, 2, 1, 1, 4)
    lanes.append(one, other, torch.tensor([[3], [-1]]), torch.tensor([[True], [False]]))
    for b in range(2):
        model.lanes[b][0] = [(i, keys[b, 0, i], values[b, 0, i]) for i in range(3)]
    model.lanes[0][0].append((3, one[0, 0, 0], other[0, 0, 0]))
    model.same(lanes)
    assert lanes.view()[2].tolist() == [[[0, 1, 2, 3]], [[0, 1, 2, -1]]]


def test_compact():
    x = torch.arange(6.0).view(1, 2, 3)
    mask = torch.tensor([[[True, False, True], [False, False, True]]])
    assert compact(x, mask, -1).tolist() == [[[0, 2], [5, -1]]]
    assert compact(x, torch.zeros_like(mask)).shape == (1, 2, 0)
