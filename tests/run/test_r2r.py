"""R2R: a router trained on tiny pairs, against its formula on whole passes, in batches and beside cache methods."""

import copy

import pytest
import torch

from tiny import ids, tiny
from tokenmill.errors import InputError, ModelError, RecipeError, SpecError
from tokenmill.method import parse
from tokenmill.models.trained import trained
from tokenmill.run.corpus import Corpus
from tokenmill.run.fit import fit
from tokenmill.run.generate import generate

PROMPTS = [ids(1, n, n)[0].tolist() for n in (40, 1, 23)]
ASKED = {"max_new_tokens": 12, "ignore_eos": True}
INSIDE, APART = "r2r(layers=3)", "r2r(model='another')"


def data():
    draw = torch.Generator().manual_seed(0)
    return Corpus(torch.randint(3, 97, (3000,), generator=draw), torch.randint(3, 97, (800,), generator=draw))


@pytest.fixture(scope="module", autouse=True)
def routers(tmp_path_factory):
    """Routers of every pair that is used here; the larger model of `APART` is Qwen3."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENMILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name in ("llama", "gemma3", "gpt2"):
            fit(INSIDE, tiny(name), text=data(), steps=6, rows=4, length=32)
        told = fit(APART, tiny("llama"), text=data(), steps=6, rows=4, length=32, assistant=tiny("qwen3")).held_out
        assert told["of the places, where the two models differ"] > 0.9
        yield


def _cut(model, layers):
    """The first layers under the model's own norm and head, as the library runs them."""
    small = copy.deepcopy(model)
    small.config.num_hidden_layers = layers
    if hasattr(small.base_model, "h"):
        small.base_model.h = small.base_model.h[:layers]
    else:
        small.base_model.layers = small.base_model.layers[:layers]
    return small


@torch.no_grad()
def _slowly(small, large, router, prompt, threshold, new):
    """The formula, with every text read anew."""
    text, asked = list(prompt), 0
    for _ in range(new):
        state = small.base_model(torch.tensor([text])).last_hidden_state[:, -1]
        logits = small(torch.tensor([text])).logits[:, -1]
        token = logits.argmax(-1)
        if float(router(state, logits, small.get_input_embeddings()(token)).sigmoid()) >= threshold:
            token, asked = large(torch.tensor([text])).logits[0, -1:].argmax(-1), asked + 1
        text.append(int(token))
    return text[len(prompt) :], asked


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("threshold", [0.4, 0.5, 0.6])
def test_the_formula_on_whole_passes(name, threshold):
    model, spec = tiny(name), parse(f"r2r(layers=3, threshold={threshold})")
    out = generate(model, None, PROMPTS, spec, **ASKED)
    for prompt, one in zip(PROMPTS, out, strict=True):
        want, asked = _slowly(_cut(model, 3), model, trained(spec, model), prompt, threshold, 12)
        assert one.ids == want
        assert one.stats.asked == asked


def test_the_thresholds_above_ask_for_some_tokens_and_not_for_others():
    asked = [o.stats.asked for o in generate(tiny(), None, PROMPTS, INSIDE, **ASKED)]
    assert 0 < sum(asked) < 36


def test_a_second_model_is_asked():
    model, other = tiny("llama"), tiny("qwen3")
    rows = PROMPTS + [ids(1, n, n)[0].tolist() for n in (8, 9, 10)]
    for threshold in (0.5, 0.9, 0.99):
        spec = parse(f"r2r(model='another', threshold={threshold})")
        out = generate(model, None, rows, spec, assistant=other, **ASKED)
        for prompt, one in zip(rows, out, strict=True):
            want, asked = _slowly(model, other, trained(spec, model), prompt, threshold, 12)
            assert one.ids == want
            assert one.stats.asked == asked
    assert generate(model, None, rows, "r2r(model='another', threshold=0.0)", assistant=other, **ASKED)[0].ids == (
        generate(other, None, rows, **ASKED)[0].ids
    )


def test_always_asked_is_the_large_model_and_never_asked_the_small_one():
    model = tiny()
    large = [o.ids for o in generate(model, None, PROMPTS, **ASKED)]
    small = [o.ids for o in generate(_cut(model, 3), None, PROMPTS, **ASKED)]
    assert [o.ids for o in generate(model, None, PROMPTS, "r2r(layers=3, threshold=0.0)", **ASKED)] == large
    never = generate(model, None, PROMPTS, "r2r(layers=3, threshold=1.0)", **ASKED)
    assert [o.ids for o in never] == small != large
    assert never[0].stats.asked == 0
    assert never[0].stats.token_layers == 3 * (40 + 11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("beside", ["", " + h2o(budget=0.5)", " + zip_cache", " + streaming_llm(slots=20)", " + min_p"])
def test_rows_come_out_as_they_would_alone(beside, dtype):
    model = tiny() if dtype == torch.float32 else copy.deepcopy(tiny()).to(dtype)
    before = {name: p.clone() for name, p in model.named_parameters()}
    together = generate(model, None, PROMPTS, INSIDE + beside, seed=3, **ASKED)
    for prompt, one in zip(PROMPTS, together, strict=True):
        alone = generate(model, None, [prompt], INSIDE + beside, seed=3, **ASKED)[0]
        assert alone.ids == one.ids
        assert alone.stats.peak_cache_bytes >= alone.stats.cache_bytes > 0
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())
    assert "forward" not in model.base_model.__dict__


def test_a_chunked_prompt_and_an_end():
    model = tiny()
    whole = generate(model, None, PROMPTS[:1], INSIDE, **ASKED)[0].ids
    assert generate(model, None, PROMPTS[:1], INSIDE, chunk=7, **ASKED)[0].ids == whole
    assert generate(model, None, PROMPTS[:1], INSIDE, **{**ASKED, "max_new_tokens": 1})[0].ids == whole[:1]
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = whole[4]
    try:
        found = generate(model, None, PROMPTS[:1], INSIDE, max_new_tokens=12)[0].ids
    finally:
        model.generation_config.eos_token_id = before
    assert found == whole[: whole.index(whole[4]) + 1]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("d3 + r2r", "moves between two models' caches"),
        ("lazy_llm(budget=0.5) + r2r", "moves between two models' caches"),
        ("mini_cache + r2r", "moves between two models' caches"),
        ("r2r + prompt_lookup", "checked against the one token"),
        ("r2r + beam", "both decide which token"),
    ],
)
def test_what_cannot_work_is_refused(spec, words):
    with pytest.raises(RecipeError, match=words) as error:
        parse(spec)
    assert "\n" not in str(error.value)


def test_more_refusals():
    model = tiny()
    with pytest.raises(SpecError, match="layers and model contradict each other"):
        parse("r2r(layers=3, model='another')")
    with pytest.raises(SpecError, match=r"threshold must be in \[0, 1\]"):
        parse("r2r(threshold=1.5)")
    with pytest.raises(ModelError, match="run: tokenmill train r2r"):
        generate(model, None, PROMPTS, "r2r(layers=2)", **ASKED)
    with pytest.raises(SpecError, match="layers must be fewer than the model's 4"):
        generate(model, None, PROMPTS, "r2r(layers=4)", **ASKED)
    short = copy.deepcopy(tiny("qwen3"))
    short.config.max_position_embeddings = 20
    with pytest.raises(InputError, match="the model's context is 20"):
        generate(model, None, PROMPTS, APART, assistant=short, **ASKED)
