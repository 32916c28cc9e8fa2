"""Every score method, over the catalogue: what the engine and the keep methods rely on."""

import math
from dataclasses import replace

import pytest
import torch

from contract.traces import SHAPES, row, small, tensors, trace, with_empty_slots
from tokenmill import catalog
from tokenmill.errors import RecipeError, SpecError
from tokenmill.method import get, parse, recipe

METHODS = catalog.methods("score")
STATEFUL = [name for name in METHODS if get(name).stateful]
every_method = pytest.mark.parametrize("name", METHODS)
every_shape = pytest.mark.parametrize("shape", SHAPES)


def score(name, seen):
    m = small(get(name))
    return m(seen, None)[0] if m.stateful else m(seen)


def same(one, other, filled, tolerance=1e-5):
    return torch.allclose(one[filled], other[filled], rtol=tolerance, atol=tolerance)


@every_method
@every_shape
def test_one_number_a_slot(name, shape):
    seen = SHAPES[shape]()
    s = score(name, seen)
    assert s.shape == seen.positions.shape
    assert s.dtype in (torch.float32, torch.float64)
    assert not s[seen.filled].isnan().any()
    assert not (s[seen.filled] == -math.inf).any()


@every_method
@every_shape
def test_pure_and_repeatable(name, shape):
    seen = SHAPES[shape]()
    before, first = tensors(seen), score(name, seen)
    torch.manual_seed(5)
    assert torch.equal(first, score(name, seen))
    assert all(torch.equal(x, getattr(seen, field)) for field, x in before.items())


@every_method
@pytest.mark.parametrize("shape", ["padded", "ragged", "sliding"])
def test_a_row_does_not_see_the_batch(name, shape):
    seen = SHAPES[shape]()
    s = score(name, seen)
    for i in range(len(s)):
        alone = row(seen, i)
        most = alone.positions.shape[-1]
        assert same(score(name, alone), s[i, None, :, :most], alone.filled)


@every_method
@every_shape
def test_empty_slots_change_nothing(name, shape):
    seen = SHAPES[shape]()
    t = seen.positions.shape[-1]
    assert same(score(name, with_empty_slots(seen, 3))[..., :t], score(name, seen), seen.filled)


@every_method
def test_queries_of_padding_change_nothing(name):
    seen = trace((24, 17))
    padding = torch.full_like(seen.queries[:, :, :3], 7.0)
    padded = replace(
        seen,
        queries=torch.cat([seen.queries, padding], 2),
        query_positions=torch.cat([seen.query_positions, torch.full((2, 3), -1)], 1),
    )
    assert same(score(name, padded), score(name, seen), seen.filled)


@every_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_only_in_the_inputs(name, dtype):
    half = trace((24, 17), dtype=dtype)
    full = replace(half, keys=half.keys.double(), values=half.values.double(), queries=half.queries.double())
    # Rotating a half-precision query rounds it, so the tolerance is not float32's.
    assert same(score(name, half).double(), score(name, full).double(), half.filled, tolerance=2e-2)


@every_method
def test_keys_or_positions_matter(name):
    """Not the same for every text: what a constant would pass."""
    one, other = trace((24,), seed=0), trace((24,), seed=1)
    if name == "random_tokens":
        assert torch.equal(score(name, one), score(name, other))
        one, other = trace((24,), layer=0), trace((24,), layer=1)
    assert not same(score(name, one), score(name, other), one.filled)


@pytest.mark.parametrize("name", STATEFUL)
def test_state_is_passed_not_kept(name):
    m, seen = get(name), trace((24, 17))
    scores, state = m(seen, None)
    assert state.dtype == torch.float32
    assert state.shape == seen.positions.shape
    before = state.clone()
    again = m(seen, state)
    assert torch.equal(state, before)
    assert torch.equal(again[1], m(seen, state)[1])
    assert not torch.equal(again[0], scores)


@pytest.mark.parametrize("name", STATEFUL)
def test_a_prompt_in_pieces_is_the_prompt(name):
    m, whole = get(name), trace((24,))
    state = None
    for start, stop in ((0, 7), (7, 8), (8, 24)):
        piece = replace(
            whole,
            keys=whole.keys[:, :, :stop],
            values=whole.values[:, :, :stop],
            positions=whole.positions[:, :, :stop],
            queries=whole.queries[:, :, start:stop],
            query_positions=whole.query_positions[:, start:stop],
        )
        if state is not None:
            state = torch.nn.functional.pad(state, (0, stop - start))
        scores, state = m(piece, state)
    assert same(scores, m(whole, None)[0], whole.filled)


@every_method
def test_spec_round_trip(name):
    m = get(name)
    assert parse(repr(m)) == m
    for knob, value in {"budget": 0.3, "slots": 5, "window": 7, "seed": 3, "recent": 0.25, "kernel": 3}.items():
        if knob in m.defaults:
            changed = m(**{knob: value})
            assert changed != m
            assert parse(repr(changed)) == changed


@every_method
def test_mistakes_are_answered_with_what_exists(name):
    with pytest.raises(SpecError, match=f"did you mean {name}"):
        parse(name + "x(budget=0.5)")
    with pytest.raises(SpecError, match="did you mean budget"):
        parse(f"{name}(budgets=0.5)")
    with pytest.raises(SpecError, match=r"budget must be in \(0, 1\]"):
        parse(f"{name}(budget=0)")
    with pytest.raises(SpecError, match=r"budget must be in \(0, 1\]"):
        parse(f"{name}(budget=1.5)")
    with pytest.raises(SpecError, match="contradict"):
        parse(f"{name}(budget=0.5, slots=4)")
    with pytest.raises(RecipeError, match="give it a budget"):
        recipe(name)
