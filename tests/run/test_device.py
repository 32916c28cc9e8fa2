"""On a GPU the methods give what they give on the CPU. Skipped where there is none.

TOKENMILL_TEST_DEVICE names another device; `cpu` tries these tests themselves.
"""

import copy
import math
import os
from functools import cache

import pytest
import torch

from tiny import ARCHITECTURES, VOCAB, ids, tiny
from tiny_tokenizer import tiny_tokenizer
from tokenmill import catalog
from tokenmill.method import get, grown, parse
from tokenmill.models.apply import applied
from tokenmill.models.trained import trained
from tokenmill.run.corpus import Corpus, Tasks
from tokenmill.run.cost import pass_cost
from tokenmill.run.explain import explain
from tokenmill.run.fit import fit
from tokenmill.run.generate import generate
from tokenmill.run.own import written
from tokenmill.run.probe import probe
from tokenmill.run.session import read_once
from tokenmill.run.train import train
from tokenmill.run.transplant import transplant

DEVICE = os.environ.get("TOKENMILL_TEST_DEVICE", "cuda")
pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no GPU here")

PROMPTS = [ids(1, 24)[0].tolist() * 2, ids(1, 31, seed=1)[0].tolist(), [5, 6, 7]]
ASKED = {"max_new_tokens": 16, "ignore_eos": True}
OF_OTHERS = {"adaptive": "adaptive(score=snapkv, budget=0.5)", "pyramid": "pyramid(score=snapkv, budget=0.5)"}
OF_OTHERS |= {"lazy_llm": "lazy_llm(budget=0.5)", "token_select": "token_select(budget=0.5)"}
NO_BUDGET = ("full",)
HEADS = (
    "medusa",
    "clover(heads=4)",
    "hidden_transfer(layers=2)",
    "chimera(heads=4)",
    "s2d(exits=(1, 2, 3))",
    "placeholders",
)
SCRATCH = [name for name in catalog.methods() if get(name).card.trains == "model"]


def _cache_specs():
    for name in [*catalog.methods("score"), *catalog.methods("keep")]:
        spec = name if name in NO_BUDGET else f"{name}(budget=0.5)"
        yield OF_OTHERS.get(name, "top(score=knorm, budget=0.5)" if name == "top" else spec)
    yield from ("mini_cache", "zip_cache", "snapkv(budget=0.5) + zip_cache")


def _draft_specs():
    for name in catalog.methods("draft"):
        card = get(name).card
        if card.trains or name in ("draft_model", "first_layers"):
            continue
        yield f"{name} + token_recycling" if card.role == "rule" else name
    yield from ("first_layers(layers=2)", "dyspec(source=pair_recycling)", "rsd(source=token_recycling)")


def _choose_specs():
    other = {"latent_seek", "r2r", "token_lora"}
    yield from (name for name in catalog.methods("choose") if name not in other)


def _skip_specs():
    yield from (name for name in catalog.methods("skip") if not get(name).card.trains)


@cache
def there(name="llama", dtype=torch.float32):
    return copy.deepcopy(tiny(name, dtype)).to(DEVICE)


def _same(recipe, name="llama", **asked):
    """Of a recipe that draws, only that it runs: each device has its own way from random numbers to a token."""
    draws = any("draws" in m.card.needs or m.card.role == "warp" for m in (parse(p) for p in recipe.split(" + ")))
    tokenizer = tiny_tokenizer()
    ours = generate(there(name), tokenizer, PROMPTS, recipe, **ASKED, **asked)
    assert all(out.ids for out in ours)
    if not draws:
        theirs = generate(tiny(name), tokenizer, PROMPTS, recipe, **ASKED, **asked)
        assert [out.ids for out in ours] == [out.ids for out in theirs]
        if "auto" not in repr(grown(parse(recipe.split(" + ")[0]))):  # how much it drafts is a matter of time
            assert [out.kept for out in ours] == [out.kept for out in theirs]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_plain_text_of_every_architecture(name):
    _same("full", name)
    _same("snapkv(budget=0.5)", name)
    _same("token_recycling", name)


@pytest.mark.parametrize("spec", [*_cache_specs(), *_draft_specs(), *_choose_specs(), *_skip_specs()])
def test_every_recipe(spec):
    _same(spec)


def test_a_second_model_drafts():
    tokenizer = tiny_tokenizer()
    ours = generate(there(), tokenizer, PROMPTS, "draft_model", assistant=there("qwen2"), **ASKED)
    assert [o.ids for o in ours] == [o.ids for o in generate(tiny(), tokenizer, PROMPTS, **ASKED)]


def test_draws_have_the_distribution_and_rows_do_not_see_each_other():
    asked = {"temperature": 1.0, "max_new_tokens": 1, "ignore_eos": True}
    prompt = PROMPTS[1]
    drawn = generate(there(), None, [prompt] * 4000, seed=list(range(4000)), **asked)
    with torch.no_grad():
        p = tiny()(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    counts = torch.bincount(torch.tensor([o.ids[0] for o in drawn]), minlength=len(p))
    often = p > 5 / 4000
    off = (counts - 4000 * p)[often] / (4000 * p * (1 - p))[often].sqrt()
    assert off.abs().max() < 4.5
    assert off.square().mean() < 2
    alone = [generate(there(), None, [prompt], seed=seed, **asked)[0].ids for seed in range(5)]
    assert alone == [o.ids for o in drawn[:5]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    for recipe in ("full", "h2o(budget=0.5)", "auto"):
        out = generate(there("llama", dtype), None, PROMPTS, recipe, **ASKED)
        assert all(len(o.ids) == 16 for o in out)


def test_applied_and_read_once():
    prompt = torch.tensor([PROMPTS[0]], device=DEVICE)
    asked = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    with applied(there(), "h2o(budget=0.5)"):
        ours = there().generate(prompt, **asked)
    with applied(tiny(), "h2o(budget=0.5)"):
        theirs = tiny().generate(prompt.cpu(), **asked)
    assert ours.tolist() == theirs.tolist()
    reading = read_once(there(), [PROMPTS[0]], ["snapkv(budget=0.5)", "zip_cache"])
    assert reading.session("snapkv(budget=0.5)").read([[5]]).device.type == torch.device(DEVICE).type
    assert reading.session("zip_cache").read([[5]]).isfinite().all()


@pytest.fixture
def data(monkeypatch, tmp_path):
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path))
    draw = torch.Generator().manual_seed(0)
    return Corpus(torch.randint(3, 97, (3000,), generator=draw), torch.randint(3, 97, (800,), generator=draw))


@pytest.mark.parametrize("spec", HEADS)
def test_heads_are_trained_and_draft(spec, data):
    fit(spec, there(), text=data, steps=8, rows=4, length=32)
    plain = generate(tiny(), None, PROMPTS, **ASKED)
    for recipe in (f"chain(source={spec}, nodes=3)", f"dyspec(source={spec})", spec):
        out = generate(there(), None, PROMPTS, recipe, **ASKED)
        assert [o.ids for o in out] == [o.ids for o in plain]
    on_cpu = generate(tiny(), None, PROMPTS, f"chain(source={spec}, nodes=3)", **ASKED)
    assert [o.stats.drafted for o in on_cpu] == [
        o.stats.drafted for o in generate(there(), None, PROMPTS, f"chain(source={spec}, nodes=3)", **ASKED)
    ]


def test_the_judge_is_trained_and_accepts(data):
    fit("judge", there(), text=data, steps=4, rows=4, length=32)
    _same("judge + token_recycling")


def test_what_a_model_writes_comes_with_its_states():
    ours, theirs = (written(model, PROMPTS, 8, 1e-6, [0, 1, 2], frozenset()) for model in (there(), tiny()))
    assert [(len(own), len(states)) for own, states, _ in ours] == [(len(p) + 8, len(p) + 8) for p in PROMPTS]
    assert all(x.device.type == "cpu" for _, *xs in ours for x in xs)
    for (own, states, likeliest), (text, told, said) in zip(ours, theirs, strict=True):  # so cold: the likeliest
        assert own == text
        assert torch.equal(likeliest, said)
        torch.testing.assert_close(states, told, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("name", SCRATCH)
def test_small_models_are_trained(name, data, monkeypatch):
    made = fit(name, text=None, steps=2, rows=4, length=32, device=DEVICE)
    assert all(map(math.isfinite, made.held_out.values()))
    assert trained(get(name)).training is False


@pytest.mark.parametrize("name", catalog.methods("explain"))
def test_explanations(name):
    method = get(name)(steps=3, runs=2) if "steps" in get(name).defaults else get(name)
    ours, theirs = (explain(m, None, PROMPTS[2], method=method).attribution for m in (there(), tiny()))
    assert ours.target == theirs.target
    torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", catalog.methods("learn"))
def test_learning(name):
    losses = []
    for model in (there(), tiny()):
        pupil = copy.deepcopy(model)
        reference = {"reference": model} if "reference" in get(name).card.needs or name == "rho1" else {}
        losses.append([h.trained for h in train(pupil, [ids(2, 24)], name, steps=3, lr=1e-3, **reference)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_probes():
    rows = [PROMPTS[0], PROMPTS[1]]
    ours, theirs = (probe(m, None, rows, "layer_drop").as_dict() for m in (there(), tiny()))
    assert ours["columns"] == theirs["columns"]
    for mine, other in zip(ours["rows"], theirs["rows"], strict=True):
        assert mine == [x if isinstance(x, str) else pytest.approx(x, rel=1e-3, abs=1e-3) for x in other]
    probe(there(), None, rows, "fs_gen", second=there("qwen2"))


def test_the_cost_of_a_pass_is_of_work_done():
    curve = pass_cost(there(), widths=(1, 8), context=64)
    assert all(seconds > 0 for seconds in curve.values())


def test_a_larger_model_is_asked(data):
    fit("r2r(layers=3)", there(), text=data, steps=4, rows=4, length=32)
    _same("r2r(layers=3)")


def test_adapters_are_mixed(data):
    fit("token_lora", there(), text=Tasks(("one", "two", "three"), (data,) * 3), steps=4, rows=6, length=32)
    _same("token_lora")


def test_texts_worth_more_are_sought():
    ours, theirs = (
        generate(model, None, PROMPTS, "latent_seek(steps=3)", reward=lambda row, ids: -len({*ids}), **ASKED)
        for model in (there(), tiny())
    )
    assert [o.ids for o in ours] == [o.ids for o in theirs]


@pytest.mark.parametrize("method", ["omp_transplant(anchors=5)", "knn_transplant", "mean_transplant"])
def test_transplants(method):
    words = {f"w{i}": i for i in range(VOCAB)}
    known = {word: i for word, i in words.items() if i < 90}
    (ours, told), (theirs, said) = (
        transplant(model, known, donor, words, method)
        for model, donor in ((there(), there("qwen2")), (tiny(), tiny("qwen2")))
    )
    assert (told.copied, told.rebuilt) == (said.copied, said.rebuilt) == (90, 7)
    mine, other = (m.get_input_embeddings().weight.cpu() for m in (ours, theirs))
    torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)
