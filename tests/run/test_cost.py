"""The cost of a pass by width, as trees ask for it."""

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from tiny import tiny
from tokenmill.run.cost import WIDTHS, Cost, cost_of, pass_cost


def test_a_curve_from_a_few_widths():
    cost = Cost({1: 2.0, 4: 3.0, 8: 2.5, 16: 6.0})
    assert [cost(w) for w in (1, 4, 16)] == [1, 1.5, 3]
    assert cost(2) == pytest.approx(1 + 0.5 / 3)
    assert cost(8) == 1.5, "a wider pass that was measured faster is noise"
    assert cost(12) == pytest.approx(2.25)
    assert cost(32) == pytest.approx(3 + 1.5 * 2), "beyond: at the pace of the last piece"


def test_it_is_measured_once_for_a_model():
    model = tiny("llama")
    seconds = pass_cost(model, (1, 4), 16, turns=1)
    assert set(seconds) == {1, 4}
    assert min(seconds.values()) > 0
    first = cost_of(model)
    assert first(1) == 1
    assert [first(w) for w in range(1, 33)] == [cost_of(model)(w) for w in range(1, 33)]


@pytest.mark.parametrize("context", [1, 7, 31, 256])
@pytest.mark.parametrize("limit", [2, 3, 20, 64])
def test_a_short_context_and_a_short_prompt(limit, context):
    config = GPT2Config(vocab_size=97, n_embd=16, n_layer=1, n_head=2, n_positions=limit)
    seconds = pass_cost(GPT2LMHeadModel(config).eval(), context=context, turns=1)
    assert [*seconds] == [width for width in WIDTHS if width < limit]
    cost = Cost(seconds)
    assert [cost(width) for width in range(1, 40)] == sorted(cost(width) for width in range(1, 40))


def test_where_one_width_was_measured_wider_ones_pay_for_themselves_at_no_time():
    assert [Cost({1: 2.0})(width) for width in (1, 2, 9)] == [1, 2, 9]
