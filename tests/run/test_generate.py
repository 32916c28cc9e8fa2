"""Tokenmill's own loop: the text the library writes, row by row, and where it ends."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import GenerationConfig

from models.test_engine import there
from tiny import ARCHITECTURES, ids, tiny
from tiny_tokenizer import byte_tokenizer, tiny_tokenizer
from tokenmill.errors import InputError, ModelError, RecipeError, SpecError, TokenmillError
from tokenmill.models.apply import applied
from tokenmill.run.generate import ends_of, generate, stream

PROMPTS = [ids(1, n, n)[0].tolist() for n in (40, 1, 23)]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_text_is_the_librarys(name):
    model = tiny(name)
    for chunk, prompts in ((None, PROMPTS), (8, PROMPTS[:1])):
        out = generate(model, None, prompts, max_new_tokens=14, chunk=chunk)
        for prompt, one in zip(prompts, out, strict=True):
            wanted = model.generate(torch.tensor([prompt]), max_new_tokens=14, do_sample=False, pad_token_id=0)
            assert one.ids == wanted[0, len(prompt) :].tolist()
            assert one.prompt_ids == prompt
            assert len(one.kept) == model.config.num_hidden_layers


@pytest.mark.parametrize(
    "spec",
    [
        None,
        "h2o(budget=0.3)",
        "adaptive(score=keyformer, budget=0.4)",
        "zip_cache",
        "lazy_llm(budget=0.5)",
        "snapkv(budget=0.5) + prompt_lookup",
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_each_prompt_comes_out_as_it_would_alone(spec, temperature):
    if spec and not there(spec):
        pytest.skip("not written yet")
    asked = {"max_new_tokens": 20, "temperature": temperature, "top_p": 0.9, "seed": 3, "ignore_eos": True}
    together = generate(tiny("llama"), None, PROMPTS, spec, **asked)
    for prompt, one in zip(PROMPTS, together, strict=True):
        assert generate(tiny("llama"), None, [prompt], spec, **asked)[0].ids == one.ids
    if temperature:
        other = generate(tiny("llama"), None, PROMPTS, spec, **{**asked, "seed": 4})
        assert [o.ids for o in other] != [o.ids for o in together]


def test_temperature_and_top_p_near_nothing_are_greedy():
    greedy = generate(tiny("llama"), None, PROMPTS, max_new_tokens=10)
    for asked in ({"temperature": 1e-4}, {"temperature": 1.0, "top_p": 1e-6}):
        assert [o.ids for o in generate(tiny("llama"), None, PROMPTS, max_new_tokens=10, **asked)] == [
            o.ids for o in greedy
        ]


def test_where_text_ends():
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    whole = generate(model, tokenizer, PROMPTS, max_new_tokens=20, ignore_eos=True)
    ids_, text = whole[0].ids, whole[0].text
    assert text == tokenizer.decode(ids_)
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [ids_[6], 2]
    try:
        ended = generate(model, tokenizer, PROMPTS, max_new_tokens=20)[0]
    finally:
        model.generation_config.eos_token_id = before
    assert ended.ids == ids_[: ids_.index(ids_[6]) + 1]
    assert ended.text == tokenizer.decode(ended.ids[:-1])
    stop = text[len(tokenizer.decode(ids_[:4])) + 1 :][:4]  # begins inside a token, ends inside another
    stopped = generate(model, tokenizer, PROMPTS, max_new_tokens=20, ignore_eos=True, stop=[stop, "never"])[0]
    assert stopped.text == text[: text.index(stop)]
    assert stopped.ids == ids_[: len(stopped.ids)]


@pytest.mark.parametrize("draft", [None, "prompt_lookup"])
def test_pieces_of_text_add_up(draft):
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    plain = generate(model, tokenizer, PROMPTS, draft, max_new_tokens=20, ignore_eos=True)
    stop = plain[0].text[20:26]
    found = ["", "", ""]

    def on_text(row, piece):
        found[row] += piece

    out = generate(model, tokenizer, PROMPTS, draft, max_new_tokens=20, ignore_eos=True, stop=[stop], on_text=on_text)
    assert found == [o.text for o in out]
    assert out[0].text == plain[0].text[: plain[0].text.index(stop)]
    whole = generate(model, tokenizer, "w5 w6 w7", max_new_tokens=9, ignore_eos=True)[0].text
    assert "".join(stream(model, tokenizer, "w5 w6 w7", max_new_tokens=9, ignore_eos=True)) == whole
    with pytest.raises(InputError):
        list(stream(model, tokenizer, "", max_new_tokens=9))


def test_characters_of_several_tokens():
    tokenizer, model, found = byte_tokenizer(), tiny("llama"), []
    out = generate(
        model, tokenizer, [PROMPTS[0]], max_new_tokens=30, ignore_eos=True, on_text=lambda _, t: found.append(t)
    )
    assert "".join(found) == out[0].text == tokenizer.decode(out[0].ids)
    assert all(found)


def test_errors_are_one_line_and_say_what_to_do():
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    for ask, kind, words in (
        (lambda: generate(model, tokenizer, ""), InputError, "empty"),
        (lambda: generate(model, tokenizer, []), InputError, "no prompt"),
        (lambda: generate(model, tokenizer, [[5], []]), InputError, "prompt 1 is empty"),
        (lambda: generate(model, tokenizer, [[5, 97]]), InputError, "token id 97.*vocabulary of 97"),
        (lambda: generate(model, tokenizer, [[5, -1]]), InputError, "token id -1"),
        (lambda: generate(model, tokenizer, [[5] * 500]), InputError, r"streaming_llm\(slots="),
        (lambda: generate(model, tokenizer, [[5]], max_new_tokens=0), InputError, "at least 1"),
        (lambda: generate(model, tokenizer, [[5]], temperature=-1), SpecError, "temperature"),
        (lambda: generate(model, tokenizer, [[5]], top_p=0), SpecError, "top_p"),
        (lambda: generate(model, tokenizer, [[5]], "snapk"), SpecError, "did you mean snapkv"),
        (lambda: generate(model, tokenizer, [[5]], "rho1"), RecipeError, "learn"),
        (lambda: generate(tiny("gpt2"), tokenizer, [[5]], "streaming_llm(slots=9)"), RecipeError, "renumber=False"),
        (lambda: generate(model, None, "w5"), InputError, "no tokenizer"),
        (lambda: generate(model, None, [[5]], stop=["w5"]), InputError, "no tokenizer"),
    ):
        with pytest.raises(kind, match=words) as error:
            ask()
        assert isinstance(error.value, TokenmillError)
        assert "\n" not in str(error.value)
    assert (
        len(generate(model, None, [[5] * 500], "streaming_llm(slots=16)", max_new_tokens=40, ignore_eos=True)[0].ids)
        == 40
    )


# ---- the model's generation_config ----

ASKS = {
    "repetition_penalty": lambda first: {"repetition_penalty": 1.3},
    "no_repeat_ngram_size": lambda first: {"no_repeat_ngram_size": 2},
    "bad_words_ids": lambda first: {"bad_words_ids": [[first], [22, 22]]},
    "sequence_bias": lambda first: {"sequence_bias": [[[first], -9.0], [[72, 29], 6.0]]},
    "suppress_tokens": lambda first: {"suppress_tokens": [first]},
    "begin_suppress_tokens": lambda first: {"begin_suppress_tokens": [first]},
    "eos_token_id": lambda first: {"eos_token_id": [first, 22]},
    "min_new_tokens": lambda first: {"eos_token_id": [first], "min_new_tokens": 5},
    "min_length": lambda first: {"eos_token_id": [first], "min_length": 30},
    "forced_eos_token_id": lambda first: {"forced_eos_token_id": 2},
    "exponential_decay_length_penalty": lambda first: {"exponential_decay_length_penalty": (3, 2.0)},
    "several": lambda first: {"repetition_penalty": 1.1, "min_new_tokens": 3, "eos_token_id": [first, 2]},
}
# What Instruct checkpoints come with: how tokens are chosen is the recipe's, the rest is not.
QWEN = {
    "do_sample": True,
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.8,
    "repetition_penalty": 1.05,
    "eos_token_id": [2, 1],
}


def configured(name, **asked):
    model = copy.deepcopy(tiny(name))
    model.generation_config.update(**asked)
    return model


def librarys(model, prompt, new=14, **asked):
    out = model.generate(torch.tensor([prompt]), max_new_tokens=new, do_sample=False, pad_token_id=0, **asked)
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("asked", ASKS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_generation_config_is_the_librarys(name, asked):
    """Row by row as alone, and drafts give the text without drafts."""
    first = librarys(tiny(name), PROMPTS[0], eos_token_id=None)[0]
    model = configured(name, **ASKS[asked](first))
    wanted = [librarys(model, prompt) for prompt in PROMPTS]
    plain = [librarys(tiny(name), prompt) for prompt in PROMPTS]
    assert wanted != plain, "the setting changes something"
    for spec in (None, "prompt_lookup", "token_recycling", "draft_model"):
        out = generate(model, None, PROMPTS, spec, max_new_tokens=14, assistant=tiny(name))
        assert [o.ids for o in out] == wanted, spec
    with applied(model, "full"):
        assert [librarys(model, prompt) for prompt in PROMPTS] == wanted


def test_how_tokens_are_chosen_is_the_recipes():
    model = configured("llama", **QWEN)
    wanted = [librarys(configured("llama", repetition_penalty=1.05, eos_token_id=[2, 1]), prompt) for prompt in PROMPTS]
    assert [o.ids for o in generate(model, None, PROMPTS, max_new_tokens=14)] == wanted
    before = model.generation_config.to_dict()
    drawn = generate(model, None, PROMPTS, "top_k(top=5)", max_new_tokens=14, seed=1)
    assert [o.ids for o in drawn] != wanted
    assert model.generation_config.to_dict() == before
    for prompt, one in zip(PROMPTS, drawn, strict=True):
        assert generate(model, None, [prompt], "top_k(top=5)", max_new_tokens=14, seed=1)[0].ids == one.ids


def test_drawn_text_is_drawn_from_the_processed_logits():
    """A token that is suppressed is never drawn, with drafts or without."""
    first = librarys(tiny("llama"), PROMPTS[0])[0]
    model = configured("llama", suppress_tokens=[first, 22, 72])
    for spec in (None, "token_recycling", "prompt_lookup"):
        for seed in range(3):
            out = generate(model, None, PROMPTS, spec, max_new_tokens=20, temperature=1.0, seed=seed, ignore_eos=True)
            assert not {first, 22, 72} & {token for o in out for token in o.ids}
            assert all(len(o.ids) == 20 for o in out)


def test_the_callers_generation_config_goes_before_the_models():
    model = configured("llama", repetition_penalty=1.3)
    off = GenerationConfig(repetition_penalty=1.0)
    wanted = [librarys(tiny("llama"), prompt) for prompt in PROMPTS]
    assert [o.ids for o in generate(model, None, PROMPTS, max_new_tokens=14, generation_config=off)] == wanted
    with pytest.raises(RecipeError, match="RepetitionPenalty"):
        generate(model, None, PROMPTS, "beam", max_new_tokens=4)
    assert generate(model, None, PROMPTS[:1], "beam", max_new_tokens=4, generation_config=off)
    for asked in ({"guidance_scale": 1.5}, {"watermarking_config": {"bias": 2.5}}):
        with pytest.raises(RecipeError, match=next(iter(asked))):
            generate(configured("llama", **asked), None, PROMPTS, max_new_tokens=4)


def test_stop_strings_of_the_generation_config():
    tokenizer = tiny_tokenizer()
    whole = generate(tiny("llama"), tokenizer, [PROMPTS[0]], max_new_tokens=14, ignore_eos=True)[0]
    word = tokenizer.decode(whole.ids[1:2])
    model = configured("llama", stop_strings=word)
    out = generate(model, tokenizer, [PROMPTS[0]], max_new_tokens=14, ignore_eos=True)[0]
    assert out.text == whole.text[: whole.text.index(word)]
    assert len(out.ids) < 14


def test_ends_are_those_of_the_generation_config():
    tokenizer = tiny_tokenizer()
    assert ends_of(configured("llama", eos_token_id=[5, 6]), tokenizer) == {5, 6}
    assert ends_of(configured("llama", eos_token_id=7), tokenizer) == {7}
    model = copy.deepcopy(tiny("llama"))
    model.generation_config.eos_token_id = None
    assert ends_of(model, tokenizer) == {tokenizer.eos_token_id}
    assert ends_of(model, None) == frozenset()
    model.generation_config = None
    assert ends_of(model, tokenizer) == {tokenizer.eos_token_id}
    assert generate(model, None, PROMPTS, max_new_tokens=3)
    with pytest.raises(ModelError, match="not a transformers model"):
        generate(torch.nn.DataParallel(model), None, PROMPTS)


def test_results_are_shown_in_a_line():
    out = generate(tiny(), tiny_tokenizer(), ["w5 w6 w7"], "token_recycling", max_new_tokens=40, ignore_eos=True)
    shown = repr(out)  # as a notebook shows what generate returned
    assert len(shown) < 300
    assert "\n" not in shown
    assert out[0].text[:20] in shown
    assert f"{len(out[0].ids)} tokens" in shown
    stats = out[0].stats
    assert f"{stats.accepted} of {stats.drafted} drafted tokens accepted" in repr(stats)
