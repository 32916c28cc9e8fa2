import copy
from dataclasses import replace

import pytest
import torch

from tiny import tiny
from tiny_trace import copied, row, same
from tokenmill.errors import ModelError, SpecError
from tokenmill.method import parse
from tokenmill.methods.keep import lazy_llm
from tokenmill.run.generate import generate


def _at(layer, held=20, layers=32, seed=0, dtype=torch.float32):
    return row((held, held), queries=1, seed=seed, layer=layer, layers=layers, dtype=dtype)


def test_repr_is_a_spec():
    assert parse(repr(lazy_llm(budget=0.3))) == lazy_llm(budget=0.3)
    assert parse("lazy_llm") == lazy_llm


def test_shares_tighten_stage_by_stage_down_to_the_budget():
    left = {i: int(lazy_llm(budget=0.125)(_at(i)).mask.sum()) for i in range(31)}
    assert {i: n for i, n in left.items() if n < 20} == {7: 10, 15: 5, 23: 2}  # before layers 8, 16, 24: 1/2, 1/4, 1/8


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5])
def test_shallow_models_reach_the_budget_too(layers):
    left = [int(lazy_llm(budget=0.3)(_at(i, layers=layers)).mask.sum()) for i in range(layers)]
    assert min(left) == (6 if layers > 1 else 20)
    assert left[-1] == 20


@pytest.mark.parametrize("seed", range(3))
def test_those_the_newest_token_looks_at_go_on(seed):
    trace = _at(23, seed=seed)
    kept = copied(trace)
    mask = lazy_llm(budget=0.3)(trace).mask
    looked = torch.zeros(20, dtype=torch.float64)
    for h in range(4):
        looked += (trace.keys[0, h // 2].double() @ trace.queries[0, h, 0].double() * trace.scale).softmax(0) / 4
    best = {19, *sorted(range(19), key=lambda i: -float(looked[i]))[:5]}
    assert mask.shape == (1, 1, 20)
    assert {*mask[0, 0].nonzero().flatten().tolist()} == best
    assert same(trace, kept)


def test_tokens_that_did_not_come_this_far_count_as_seen():
    trace = replace(row((8, 8), queries=1, last=19, layer=23, layers=32), seen=torch.tensor([3]), window=3)
    assert int(lazy_llm(budget=0.3)(trace).mask.sum()) == 6
    assert int(lazy_llm(budget=0.5)(trace).mask.sum()) == 8  # no more than there are


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("held", [1, 2])
def test_the_newest_token_always_goes_on(held, dtype):
    for layer in range(32):
        assert lazy_llm(budget=0.01)(_at(layer, held, dtype=dtype)).mask[0, 0, -1]


def test_a_larger_budget_lets_a_superset_pass():
    small, large = (lazy_llm(budget=b)(_at(15)).mask for b in (0.1, 0.6))
    assert (small <= large).all()
    assert small.sum() < large.sum()
    assert lazy_llm(budget=1.0)(_at(23)).mask.all()


def test_without_a_budget_it_says_so():
    with pytest.raises(SpecError, match="how many tokens stay is not said"):
        lazy_llm(_at(23))


def test_overflow_in_half_precision_is_told_and_no_crash():
    model = copy.deepcopy(tiny("llama", torch.float16))
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(300)
    with pytest.raises(ModelError, match=r"NaN or infinite|nan"):
        generate(model, None, [list(range(4, 64))], recipe="lazy_llm(budget=0.5)", max_new_tokens=2)
