"""What every merge method promises, and what each of them computes."""

from dataclasses import replace

import pytest
import torch

from tiny_trace import batch, copied, row, same
from tokenmill import catalog
from tokenmill.method import get, parse
from tokenmill.methods.merge import mini_cache

METHODS = catalog.methods("merge")


def _pair(held=(9, 6), seed=0, dtype=torch.float32, likeness=0.9):
    lower = row(held, seed=seed, layer=2, dtype=dtype)
    other = row(held, seed=seed + 100, layer=3, dtype=dtype)
    mixed = {
        n: getattr(lower, n) * likeness + getattr(other, n) * (1 - likeness) * lower.filled[..., None]
        for n in ("keys", "values")
    }
    return lower, replace(lower, layer=3, **mixed)


@pytest.mark.parametrize("name", METHODS)
class TestEvery:
    def test_repr_is_a_spec(self, name):
        assert parse(repr(get(name))) == get(name)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("held", [(1, 1), (2, 2), (2, 1), (9, 6)])
    def test_shapes_norms_and_nothing_written(self, name, held, dtype):
        pair = _pair(held, dtype=dtype)
        kept = [copied(t) for t in pair]
        merge = get(name)(*pair)
        shape, filled = pair[0].positions.shape, pair[0].filled
        assert merge.apart.shape == shape
        assert merge.apart.dtype == torch.bool
        assert not (merge.apart & ~filled).any()
        for direction, norms, x in (
            (merge.key_direction, merge.key_norms, [t.keys for t in pair]),
            (merge.value_direction, merge.value_norms, [t.values for t in pair]),
        ):
            assert direction.dtype == norms.dtype == dtype
            assert norms.shape == (2, *shape)
            assert torch.allclose(direction.float().norm(dim=-1), filled.float(), atol=1e-2)
            assert torch.allclose(norms.float(), torch.stack(x).float().norm(dim=-1), rtol=1e-2)
            assert torch.isfinite(direction).all()
        assert all(map(same, pair, kept))

    def test_a_row_does_not_depend_on_its_batch_or_padding(self, name):
        pairs = [_pair((9, 6), 1), _pair((4, 5), 2), _pair((1, 1), 3)]
        merge = get(name)(batch(*(p[0] for p in pairs)), batch(*(p[1] for p in pairs)))
        for i, pair in enumerate(pairs):
            alone, t = get(name)(*pair), pair[0].keys.shape[2]
            assert torch.allclose(merge.key_direction[i, :, :t], alone.key_direction[0], atol=1e-6)
            assert torch.equal(merge.apart[i, :, :t], alone.apart[0])

    def test_equal_layers_come_back_as_they_were(self, name):
        lower, _ = _pair()
        merge = get(name)(lower, replace(lower, layer=3))
        assert torch.allclose(merge.key_direction * merge.key_norms[0][..., None], lower.keys, atol=1e-5)
        assert torch.allclose(merge.value_direction * merge.value_norms[1][..., None], lower.values, atol=1e-5)


class TestMiniCache:
    def test_directions_and_who_stays_apart_are_what_the_formula_says(self):
        lower, upper = _pair((8, 8), likeness=0.6)
        merge = mini_cache(retention=0.3)(lower, upper)
        for head in range(2):
            far = {"keys": [], "values": []}
            for i in range(8):
                for name, direction in (("keys", merge.key_direction), ("values", merge.value_direction)):
                    a, b = getattr(lower, name)[0, head, i].double(), getattr(upper, name)[0, head, i].double()
                    a, b = a / a.norm(), b / b.norm()
                    turn = torch.arccos(a @ b)
                    e = (torch.sin(0.4 * turn) * a + torch.sin(0.6 * turn) * b) / torch.sin(turn)
                    assert torch.allclose(direction[0, head, i].double(), e, atol=1e-5)
                    far[name].append(float(turn))
            expected = {i for turns in far.values() for i in sorted(range(8), key=turns.__getitem__)[-3:]}  # 3 of 8
            assert merge.apart[0, head].nonzero()[:, 0].tolist() == sorted(expected)
            assert len(expected) < 8

    @pytest.mark.parametrize(
        ("layers", "lower"), [(4, [2]), (30, [*range(16, 29, 2)]), (5, [3]), (32, [*range(16, 31, 2)])]
    )
    def test_pairs_of_the_upper_half(self, layers, lower):
        one, other = _pair()
        merged = [
            i
            for i in range(layers - 1)
            if mini_cache(replace(one, layer=i, layers=layers), replace(other, layer=i + 1, layers=layers)) is not None
        ]
        assert merged == lower

    def test_layers_with_other_windows_are_left(self):
        lower, upper = _pair()
        assert mini_cache(lower, replace(upper, window=4)) is None

    def test_one_outlier_does_not_decide_how_many_stay_apart(self):
        """5 % of the tokens, however far the farthest lies from the rest."""
        lower = row((40, 40), layer=2)
        values = lower.values + 0.05 * row((40, 40), seed=1, layer=3).values
        keys = lower.keys + 0.05 * row((40, 40), seed=1, layer=3).keys
        keys[:, :, 7], values[:, :, 7] = -lower.keys[:, :, 7], -lower.values[:, :, 7]
        merge = mini_cache(lower, replace(lower, layer=3, keys=keys, values=values))
        assert merge.apart[..., 7].all()
        assert ((merge.apart.sum(-1) >= 2) & (merge.apart.sum(-1) <= 4)).all()  # two by keys, two by values

    def test_no_retention_keeps_nothing_apart(self):
        assert not mini_cache(retention=0.0)(*_pair()).apart.any()
