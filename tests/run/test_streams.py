"""Text as it comes, whatever the tokenizer: pieces add up, a continuation goes on, stop strings are found at once."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny import tiny
from tiny_tokenizer import KINDS, byte_tokenizer, unigram_tokenizer
from tokenmill.ops.spelling import decoded
from tokenmill.ops.text import Detokenizer, pieces
from tokenmill.run.generate import _Writer, generate, stream


@cache
def tokenizer_of(kind):
    return KINDS[kind]()


def written(tokenizer, ids, stop=(), before=(), ends=frozenset(), at_once=1):
    """(text, streamed text, tokens taken) of ids that come some at a time."""
    found = []
    writer = _Writer(tokenizer, 1, ends, stop, len(ids) or 1, lambda _, text: found.append(text), None, [before])
    for at in range(0, len(ids), at_once):
        if writer.add(0, ids[at : at + at_once]):
            break
    writer.close(0)
    assert all(found)
    return writer.text(0), "".join(found), len(writer.ids[0])


def unfinished(tokenizer, ids, before=()):
    """The characters that are complete after these tokens."""
    text = Detokenizer(tokenizer, before)
    return "".join(map(text.add, ids))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=80, deadline=None)
@given(st.data())
def test_pieces_add_up_and_stop_strings_are_found_at_once(kind, data):
    tokenizer = tokenizer_of(kind)
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) + 2), min_size=1, max_size=24))
    before = data.draw(st.lists(st.integers(4, len(tokenizer) - 1), max_size=3))
    text, streamed, taken = written(tokenizer, ids, before=before)
    assert streamed == text
    assert taken == len(ids)
    place, size = data.draw(st.integers(0, max(0, len(text) - 1))), data.draw(st.integers(1, 6))
    stop = (text[place : place + size] or "x", "never to come")
    at_once = data.draw(st.integers(1, 5))
    cut, streamed, taken = written(tokenizer, ids, stop, before, at_once=at_once)
    assert streamed == cut == text.split(stop[0])[0]
    first = next((n for n in range(1, len(ids)) if stop[0] in unfinished(tokenizer, ids[:n], before)), len(ids))
    assert taken == first


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=80, deadline=None)
@given(st.data())
def test_prompt_and_text_are_the_text_of_all_tokens(kind, data):
    tokenizer = tokenizer_of(kind)
    some = st.lists(st.integers(4, len(tokenizer) - 1), min_size=1, max_size=8)
    before, ids = data.draw(some), data.draw(some)
    whole, begun = decoded(tokenizer, before + ids), decoded(tokenizer, before)
    text = written(tokenizer, ids, before=before)[0]
    if "\ufffd" not in whole + begun:  # half a character has no text of its own
        assert begun + text == whole
        assert "".join(pieces(tokenizer, before + ids)) == whole


@pytest.mark.parametrize("kind", ["bytes", "unigram"])
@given(st.text(min_size=1, max_size=8))
def test_every_character_of_several_tokens_comes_out(kind, text):
    tokenizer = tokenizer_of(kind)
    before = tokenizer("s", add_special_tokens=False)["input_ids"]
    ids = tokenizer("s" + text, add_special_tokens=False)["input_ids"]
    if ids[: len(before)] == before and decoded(tokenizer, ids) == "s" + text:
        assert written(tokenizer, ids[len(before) :], before=before)[0] == text


def test_a_stop_string_of_characters_of_several_tokens():
    tokenizer, stop = byte_tokenizer(), "🙂🙃🙂🙃🙂"
    ids = tokenizer("ab" + stop + "more text that should not come")["input_ids"]
    text, streamed, taken = written(tokenizer, ids, (stop,))
    assert (text, streamed, taken) == ("ab", "ab", 22)
    # A token that holds the end of a stop string and the beginning of a character leaves nothing of either.
    assert written(tokenizer, [*tokenizer("a.")["input_ids"], *tokenizer("é")["input_ids"][:1]], (".",))[0] == "a"


def test_a_space_at_the_beginning_of_a_continuation_stays():
    tokenizer = unigram_tokenizer()
    prompt, new = tokenizer("the")["input_ids"], tokenizer("the is Paris.")["input_ids"][2:]
    assert written(tokenizer, new, before=prompt)[0] == " is Paris."
    assert written(tokenizer, new)[0] == " is Paris."
    assert "".join(pieces(tokenizer, new)) == "is Paris."


def test_an_end_is_no_text_and_other_special_tokens_are():
    tokenizer = KINDS["words"]()
    assert written(tokenizer, [4, 1, 5, 2, 6], ends=frozenset([2])) == ("w4<s>w5", "w4<s>w5", 4)


@pytest.mark.parametrize("recipe", [None, "prompt_lookup", "token_recycling", "beam", "token_alignment"])
@pytest.mark.parametrize("kind", KINDS)
def test_stop_strings_are_the_same_under_every_way_of_decoding(kind, recipe):
    tokenizer = tokenizer_of(kind)
    prompt = [i % (len(tokenizer) - 4) + 4 for i in (5, 11, 7, 5, 11, 7, 5)]
    prompt = [i for i in prompt if i < 97]
    asked = {"max_new_tokens": 12, "ignore_eos": True}
    whole = generate(tiny(), tokenizer, [prompt], recipe, **asked)[0].text
    if not whole:
        return
    stop = whole[len(whole) // 2 :][:3]
    found = []
    out = generate(tiny(), tokenizer, [prompt], recipe, stop=stop, on_text=lambda _, t: found.append(t), **asked)[0]
    assert out.text == "".join(found) == whole.split(stop)[0]
    if recipe != "beam":  # whose texts are known when all are
        assert len(out.ids) <= 12
    assert "".join(stream(tiny(), tokenizer, prompt, recipe=recipe, stop=stop, **asked)) == out.text
