"""What callers give is checked where it comes in: used, or refused in one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from tiny import VOCAB, ids, tiny
from tiny_tokenizer import tiny_tokenizer
from tokenmill.bench.prompts import Prompt, encoded
from tokenmill.errors import InputError, SpecError, TokenmillError
from tokenmill.run.arguments import prompt_rows, stop_strings, whole_number
from tokenmill.run.decide import decide
from tokenmill.run.explain import explain
from tokenmill.run.generate import generate, stream
from tokenmill.run.inputs import records
from tokenmill.run.probe import probe
from tokenmill.run.session import Session

CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role not in ('user', 'assistant', 'system') %}"
    "{{ raise_exception('no role ' + m.role) }}{% endif %} {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %} w90{% endif %}"
)
HI, HELLO = {"role": "user", "content": "w5 w6"}, {"role": "assistant", "content": "w7"}


def chatter(template=CHAT):
    """A tokenizer that begins a text with <s>, and whose chat format writes it too."""
    made = tiny_tokenizer()
    made.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made.chat_template = template
    return made


def one_line(ask, kind, words):
    with pytest.raises(kind, match=words) as error:
        ask()
    assert isinstance(error.value, TokenmillError)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("prompts", "rows"),
    [
        ("w5 w6", [[1, 5, 6]]),
        (["w5", "w6 w7"], [[1, 5], [1, 6, 7]]),
        (("w5",), [[1, 5]]),
        ((word for word in ["w5", "w6"]), [[1, 5], [1, 6]]),
        ([5, 6], [[5, 6]]),
        ([np.int64(5), torch.tensor(6)], [[5, 6]]),
        (range(5, 8), [[5, 6, 7]]),
        ([[5], (6, 7)], [[5], [6, 7]]),
        (np.array([5, 6]), [[5, 6]]),
        (np.array([[5, 6], [7, 8]], dtype=np.uint8), [[5, 6], [7, 8]]),
        (torch.tensor([5, 6]), [[5, 6]]),
        (torch.tensor([[5, 6], [7, 8]], dtype=torch.int16), [[5, 6], [7, 8]]),
        ([torch.tensor([5, 6]), np.array([7])], [[5, 6], [7]]),
        ({"input_ids": [[0, 5], [6, 7]], "attention_mask": [[0, 1], [1, 1]]}, [[5], [6, 7]]),
        ([HI], [[1, 5, 6, 90]]),
        ([[HI], [HI, HELLO, HI]], [[1, 5, 6, 90], [1, 5, 6, 7, 5, 6, 90]]),
        ([HI, HELLO], [[1, 5, 6, 7]]),  # the assistant's message is gone on with
        ([[HI], "w5", [9]], [[1, 5, 6, 90], [1, 5], [9]]),
    ],
)
def test_forms_of_prompts(prompts, rows):
    assert prompt_rows(chatter(), prompts) == rows


def test_what_a_tokenizer_returns_is_a_prompt():
    tokenizer = chatter()
    tokenizer.padding_side = "left"
    found = tokenizer(["w5", "w6 w7"], return_tensors="pt", padding=True)
    assert prompt_rows(tokenizer, found) == [[1, 5], [1, 6, 7]]


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        (None, "prompts are None"),
        ([None], "prompt 0 is None; a prompt is text, messages"),
        (5, "prompts are a int"),
        (b"w5", "prompts are a bytes"),
        ({"w5", "w6"}, "prompts are a set"),
        ({"text": "w5"}, "without input_ids"),
        ([], "no prompt"),
        (iter(()), "no prompt"),
        ([[5], []], "prompt 1 is empty"),
        ([[5], ""], "prompt 1 is empty"),
        (torch.zeros(1, 2, 3, dtype=torch.long), r"shape \(1, 2, 3\)"),
        (torch.tensor(5), r"shape \(\)"),
        (torch.tensor([0.5, 2.0]), "a float .* where a token id should be"),
        (np.array([True, False]), "a bool .* where a token id should be"),
        ([[5, "w6"]], "prompt 0 has a str"),
        ([[5.0]], "prompt 0 has a float"),
        ([{"role": "user"}], "message 1 is not"),
        ([{"role": "robot", "content": "x"}], "chat template cannot .*no role robot"),
        (["w5 \ud83d"], "half of a surrogate pair"),
        ({"input_ids": [[5, 6]], "attention_mask": [[0, 0]]}, "prompt 0 is empty"),
        ({"input_ids": [[5, 6]], "attention_mask": [[1]]}, "different shapes"),
    ],
)
def test_what_is_no_prompt_is_refused_in_one_line(prompts, words):
    one_line(lambda: generate(tiny(), chatter(), prompts, max_new_tokens=2), InputError, words)


def test_chat_formats():
    tokenizer = chatter()
    written = tokenizer.apply_chat_template([HI], add_generation_prompt=True, return_dict=False)
    assert prompt_rows(tokenizer, "w5 w6", chat=True) == prompt_rows(tokenizer, [HI]) == [written]
    assert encoded(tokenizer, Prompt("x", "w5 w6"), 99) == written  # one <s>
    assert encoded(tokenizer, Prompt("x", "", (HI, HELLO, HI)), 99).count(1) == 1
    out = generate(tiny(), tokenizer, [HI], max_new_tokens=3, ignore_eos=True)[0]
    assert out.prompt_ids == written
    assert generate(tiny(), tokenizer, "w5 w6", chat=True, max_new_tokens=3, ignore_eos=True)[0].ids == out.ids
    assert "".join(stream(tiny(), tokenizer, [HI], max_new_tokens=3, ignore_eos=True)) == out.text
    named = chatter({"default": CHAT, "short": "{{ messages[0].content }} w50"})
    assert prompt_rows(named, [HI], chat="short") == [[5, 6, 50]]
    assert prompt_rows(named, [HI]) == [written]
    assert prompt_rows(named, "w5", chat="short") == [[5, 50]]
    for asked, words in (
        (lambda: prompt_rows(named, [HI], chat="shrt"), "no chat template 'shrt'; did you mean short"),
        (lambda: prompt_rows(tiny_tokenizer(), [HI]), "has no chat format"),
        (lambda: prompt_rows(tiny_tokenizer(), "w5", chat=True), "has no chat format"),
        (lambda: prompt_rows(chatter({"a": CHAT, "b": CHAT}), [HI]), "several chat templates; name one of a, b"),
        (lambda: prompt_rows(tokenizer, [[5]], chat=True), "ids already"),
        (lambda: prompt_rows(chatter("{{ messages[7].content.x() }}"), [HI]), "chat template cannot"),
        (lambda: prompt_rows(chatter("{% for %}"), [HI]), "chat template cannot"),
    ):
        one_line(asked, InputError, words)


@pytest.mark.parametrize(
    ("asked", "kind", "words"),
    [
        ({"max_new_tokens": 0}, InputError, "max_new_tokens must be at least 1, not 0"),
        ({"max_new_tokens": -3}, InputError, "at least 1"),
        ({"max_new_tokens": 2.5}, InputError, "max_new_tokens must be a whole number, not a float"),
        ({"max_new_tokens": "9"}, InputError, "whole number"),
        ({"max_new_tokens": True}, InputError, "whole number"),
        ({"chunk": 0}, InputError, "chunk must be at least 1"),
        ({"chunk": 1.5}, InputError, "chunk must be a whole number"),
        ({"seed": 1 << 64}, TokenmillError, "seed must be"),
        ({"seed": -(1 << 64)}, TokenmillError, "seed must be"),
        ({"seed": "x"}, TokenmillError, "seed"),
        ({"seed": 0.5}, TokenmillError, "seed must be"),
        ({"seed": [0, 1]}, InputError, "2 seeds for 1 prompts"),
        ({"temperature": "hot"}, SpecError, "temperature must be 0"),
        ({"temperature": float("nan")}, SpecError, "temperature must be 0"),
        ({"top_p": None}, SpecError, "top_p must be in"),
        ({"stop": [""]}, InputError, "a stop string is empty"),
        ({"stop": ""}, InputError, "a stop string is empty"),
        ({"stop": ["a", 5]}, InputError, "stop has a int"),
        ({"stop": 5}, InputError, "stop is a int"),
        ({"stop": ["\udc00"]}, InputError, "half of a surrogate"),
    ],
)
def test_numbers_and_stop_strings_are_checked(asked, kind, words):
    one_line(lambda: generate(tiny(), tiny_tokenizer(), "w5 w6", **{"max_new_tokens": 2, **asked}), kind, words)


def test_numbers_of_numpy_are_numbers():
    asked = {"max_new_tokens": 6, "ignore_eos": True, "temperature": 1.0, "chunk": 2}
    plain = generate(tiny(), None, ids(), seed=7, **asked)[0].ids
    ours = {k: np.float32(v) if k == "temperature" else np.int32(v) for k, v in asked.items() if k != "ignore_eos"}
    assert generate(tiny(), None, ids().numpy(), seed=np.int64(7), ignore_eos=True, **ours)[0].ids == plain
    assert generate(tiny(), None, ids(), seed=np.array([7]), **asked)[0].ids == plain
    assert generate(tiny(), None, ids(), seed=(1 << 63) + 7, **asked)[0].ids  # torch's generators take it
    assert whole_number("x", np.uint8(3)) == 3
    assert (stop_strings(None), stop_strings("ab")) == ((), ("ab",))
    assert stop_strings(iter(["a", "b"])) == ("a", "b")


def test_a_huge_prompt_is_refused_before_it_is_tokenized():
    class Untouched:
        def get_vocab(self):
            return {"word": 0}

        def __call__(self, *_, **__):
            raise AssertionError("tokenized")

    one_line(
        lambda: generate(tiny(), Untouched(), "word " * 10_000_000),
        InputError,
        "at least 12,500,000 tokens, but .* 512",
    )


def test_ids_beyond_the_table_and_the_learned_positions():
    wrong = [5, 6, VOCAB]
    for ask in (
        lambda: generate(tiny(), None, [wrong]), lambda: explain(tiny(), None, wrong, "occlusion"),
        lambda: decide(tiny(), wrong, "h2o(budget=0.5)"), lambda: probe(tiny(), None, [wrong], "layer_drop"),
        lambda: Session(tiny()).read([wrong]), lambda: Session(tiny()).read(torch.tensor([wrong])),
    ):  # fmt: skip
        one_line(ask, InputError, "token id 97 is outside the model's vocabulary of 97")
    long = ids(1, 513)
    one_line(
        lambda: decide(tiny("gpt2"), long, "h2o(budget=0.5)"), InputError, "513 tokens and the model has learned 512"
    )
    one_line(lambda: probe(tiny("gpt2"), None, long, "layer_drop"), InputError, "reads at most 512")
    session = Session(tiny("gpt2"))
    session.read(ids(1, 512))
    one_line(lambda: session.read([[5]]), InputError, "513 tokens and the model has learned 512")
    one_line(lambda: decide(tiny(), "some text", "h2o(budget=0.5)"), InputError, "not text")


def test_a_session_refuses_what_it_cannot_read():
    session = Session(tiny())
    for ask, words in (
        (lambda: session.read(torch.rand(1, 4)), "ids are float32"),
        (lambda: session.read(torch.ones(1, 4, dtype=torch.bool)), "ids are bool"),
        (lambda: session.read(torch.tensor([5, 6])), "shape"),
        (lambda: session.read([[5], []]), "empty"),
        (lambda: session.read(ids(), chunk=0), "chunk must be at least 1"),
        (lambda: session.read(ids(), last=0), "last must be at least 1"),
        (lambda: session.read(ids(2, 4), valid=torch.ones(2, 3)), "the same"),
        (lambda: session.read(ids(2, 4), valid=torch.tensor([[1] * 4, [0] * 4])), "padding"),
    ):
        one_line(ask, InputError, words)
    given = ids(2, 4)
    assert torch.equal(session.read(given.int()), Session(tiny()).read(given))
    assert torch.equal(Session(tiny()).read(given.numpy()), Session(tiny()).read(given))


def test_conversations_of_a_file_are_prompts(tmp_path):
    file = tmp_path / "chat.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "w5 w6"}, {"role": "assistant", "content": "w7"}]}')
    (record,) = records(file)
    tokenizer = chatter()
    assert prompt_rows(tokenizer, [record.prompt]) == [[1, 5, 6, 90]]
    assert record.whole(tokenizer) == "<s> w5 w6  w7 "
    assert record.whole(tiny_tokenizer()) == record.text == "w5 w6\n\nw7"
