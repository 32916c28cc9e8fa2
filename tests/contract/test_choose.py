"""What every choose method promises: warpers against the library's own, searches against theirs."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from tiny import ids, tiny
from tokenmill import catalog
from tokenmill.errors import ModelError, RecipeError, SpecError
from tokenmill.method import get, parse, recipe
from tokenmill.models.apply import applied
from tokenmill.models.processors import processors
from tokenmill.run.choose import Chooser
from tokenmill.run.generate import generate

ROLES = {name: parse(name).card.role for name in catalog.methods("choose")}
WARPS = [name for name, role in ROLES.items() if role in ("warp", "final")]
V = 23
PROMPTS = [ids(1, n, n)[0].tolist() for n in (40, 1, 23)]


def _logits(rows=64, seed=0, dtype=torch.float32, width=V):
    return (torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)


def test_roles_are_those_of_the_contract():
    assert set(ROLES.values()) <= {"warp", "final", "heal", "search"}


@pytest.mark.parametrize("name", WARPS)
class TestEveryWarper:
    def test_repr_is_a_spec(self, name):
        assert parse(repr(get(name))) == get(name)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_shape_kind_and_nothing_written(self, name, dtype):
        logits = _logits(dtype=dtype)
        before = logits.clone()
        out = get(name)(logits)
        assert out.shape == logits.shape
        assert out.dtype == dtype
        assert torch.equal(logits, before)
        assert torch.equal(out, get(name)(logits))

    def test_rows_do_not_see_each_other(self, name):
        logits = _logits()
        assert torch.equal(get(name)(logits)[5:6], get(name)(logits[5:6]))

    def test_one_token_and_impossible_tokens(self, name):
        assert torch.isfinite(get(name)(torch.tensor([[0.3]])))
        logits = _logits()
        logits[:, ::2] = -math.inf
        out = get(name)(logits)
        assert not torch.isnan(out).any()
        assert (out[:, ::2] == -math.inf).all()
        assert (out > -math.inf).any(-1).all()

    def test_the_likeliest_stays_unless_typical(self, name):
        if name == "typical":
            pytest.skip("it may leave out the likeliest: that is its point")
        logits = _logits()
        assert torch.equal(get(name)(logits).argmax(-1), logits.argmax(-1))


@pytest.mark.parametrize(
    ("spec", "theirs"),
    [
        ("temperature(temperature=0.7)", TemperatureLogitsWarper(0.7)),
        ("top_k(top=5)", TopKLogitsWarper(5)),
        ("top_k(top=500)", TopKLogitsWarper(500)),
        ("top_p(share=0.9)", TopPLogitsWarper(0.9)),
        ("top_p(share=0.3)", TopPLogitsWarper(0.3)),
        ("min_p(share=0.1)", MinPLogitsWarper(0.1)),
        ("min_p(share=1.0)", MinPLogitsWarper(1.0)),
        ("typical(share=0.2)", TypicalLogitsWarper(0.2)),
        ("typical(share=0.95)", TypicalLogitsWarper(0.95)),
    ],
)
def test_equal_to_the_librarys(spec, theirs):
    for width in (V, 997):
        logits = _logits(200, seed=1, width=width)
        torch.testing.assert_close(parse(spec)(logits), theirs(None, logits))


@pytest.mark.parametrize(
    "spec",
    ["top_k(top=4)", "temperature(temperature=0.6) + top_p(share=0.8)", "min_p(share=0.2)", "typical(share=0.7)"],
)
def test_draws_have_the_distribution(spec):
    """Chi-square over 4000 draws at the 0.1 % level: it notices a shift of 5 % of the mass with power above 0.99."""
    logits = _logits(1, seed=4)
    chooser = Chooser.of(recipe(spec), None, 1.0, 5, 1)
    assert not chooser.greedy
    wanted = chooser.probabilities(logits)[0].double()
    drawn = chooser(logits.expand(4000, -1), row=0).bincount(minlength=V).double()
    possible = wanted > 0
    assert drawn[~possible].sum() == 0
    expected = wanted[possible] * 4000
    keep = expected >= 5
    observed = torch.cat([drawn[possible][keep], drawn[possible][~keep].sum()[None]])
    expected = torch.cat([expected[keep], expected[~keep].sum()[None]])
    statistic = ((observed - expected).square() / expected.clamp(min=1e-9)).sum()
    free = len(expected) - 1
    assert statistic < free + 3.1 * math.sqrt(2 * free) + 6  # Wilson-Hilferty, 0.1 %


def test_warpers_compose_in_order():
    logits = _logits()
    hot_last = Chooser.of(recipe("top_p(share=0.5) + temperature(temperature=3.0)"), None, 1.0, 0, 1)
    hot_first = Chooser.of(recipe("temperature(temperature=3.0) + top_p(share=0.5)"), None, 1.0, 0, 1)
    wanted = get("top_p")(share=0.5)(get("temperature")(temperature=3.0)(logits)).softmax(-1)
    torch.testing.assert_close(hot_first.probabilities(logits), wanted)
    assert (hot_last.probabilities(logits) > 0).sum() < (hot_first.probabilities(logits) > 0).sum()
    asked = Chooser(0.8, 0.9, 0, 1)
    same = Chooser.of(recipe("temperature(temperature=0.8) + top_p(share=0.9)"), None, 1.0, 0, 1)
    assert torch.equal(asked.probabilities(logits), same.probabilities(logits))


def test_greedy_is_one_hot_of_the_warped_argmax():
    logits = _logits()
    for chooser in (
        Chooser(),
        Chooser(0.0),
        Chooser.of(recipe("greedy"), None, 1.0, 0, 1),
        Chooser.of(recipe("temperature(temperature=0)"), None, 1.0, 0, 1),
        Chooser.of(recipe("top_k(top=3) + greedy"), None, 1.0, 0, 1),
    ):
        assert chooser.greedy
        assert torch.equal(chooser(logits), logits.argmax(-1))
        assert torch.equal(chooser.probabilities(logits).argmax(-1), logits.argmax(-1))
        assert chooser.probabilities(logits).sum() == len(logits)
    typical = Chooser.of(recipe("typical(share=0.1)"), 0.0, 1.0, 0, 1)
    assert typical.greedy
    assert torch.equal(typical(logits), get("typical")(share=0.1)(logits).argmax(-1))
    assert not torch.equal(typical(logits), logits.argmax(-1))


class TestRecipes:
    def test_two_final_choices_are_refused(self):
        with pytest.raises(RecipeError, match="both decide which token is emitted"):
            parse("greedy + greedy")

    def test_a_choice_said_twice_is_refused(self):
        model = tiny()
        with pytest.raises(RecipeError, match="temperature is given twice"):
            generate(model, None, [[5]], "temperature(temperature=0.5)", temperature=0.7)
        with pytest.raises(RecipeError, match="top_p is given twice"):
            generate(model, None, [[5]], "top_p(share=0.5)", top_p=0.7)
        with pytest.raises(RecipeError, match="greedy takes the likeliest"):
            generate(model, None, [[5]], "greedy", temperature=0.7)

    @pytest.mark.parametrize(
        ("spec", "words"),
        [
            ("min_p(share=0)", r"share must be in \(0, 1\]"),
            ("top_p(share=1.2)", r"share must be in \(0, 1\]"),
            ("temperature(temperature=-1)", r"temperature must be in \[0"),
            ("top_k(top=0)", "top must be in"),
        ],
    )
    def test_knobs_out_of_range(self, spec, words):
        with pytest.raises(SpecError, match=words) as error:
            parse(spec)
        assert "\n" not in str(error.value)

    def test_logits_that_are_not_numbers(self):
        for chooser in (Chooser(), Chooser(1.0)):
            with pytest.raises(ModelError, match="NaN"):
                chooser(torch.full((1, V), math.nan))

    @pytest.mark.parametrize("spec", ["min_p(share=0.3)", "typical + h2o(budget=0.5)", "top_k(top=3) + prompt_lookup"])
    def test_rows_draw_as_they_would_alone(self, spec):
        asked = {"max_new_tokens": 12, "seed": 3, "ignore_eos": True}
        together = generate(tiny(), None, PROMPTS, spec, **asked)
        for prompt, one in zip(PROMPTS, together, strict=True):
            assert generate(tiny(), None, [prompt], spec, **asked)[0].ids == one.ids
        assert [o.ids for o in generate(tiny(), None, PROMPTS, spec, **{**asked, "seed": 4})] != [
            o.ids for o in together
        ]


class TestInsideTheLibrary:
    def test_processors_give_the_librarys_own_draws(self):
        prompt = torch.tensor(PROMPTS[:1])
        asked = {"max_new_tokens": 12, "do_sample": True, "pad_token_id": 0}
        torch.manual_seed(1)
        ours = tiny().generate(prompt, logits_processor=processors("min_p(share=0.2)"), top_k=0, **asked)
        torch.manual_seed(1)
        assert torch.equal(ours, tiny().generate(prompt, min_p=0.2, top_k=0, **asked))
        with applied(tiny(), "h2o(budget=0.5)"):
            tiny().generate(prompt, logits_processor=processors("h2o(budget=0.5) + top_p(share=0.5)"), **asked)

    def test_applied_says_where_to_put_them(self):
        with (
            pytest.raises(RecipeError, match=r'processors\("min_p\(share=0.2\)"\)'),
            applied(tiny(), "min_p(share=0.2)"),
        ):
            pass
        with pytest.raises(RecipeError, match="warps no logits"):
            processors("h2o(budget=0.5)")
        with pytest.raises(RecipeError, match=r"tokenmill\.generate"):
            processors("prompt_lookup + min_p")
