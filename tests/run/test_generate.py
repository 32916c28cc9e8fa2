"""Tokenmill's own loop: the text the library writes, row by row, and where it ends."""

from __future__ import annotations

import pytest
import torch

from models.test_engine import there
from tiny import ARCHITECTURES, ids, tiny
from tiny_tokenizer import byte_tokenizer, tiny_tokenizer
from tokenmill.errors import InputError, RecipeError, SpecError, TokenmillError
from tokenmill.run.generate import generate, stream

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
