"""Tokens as text."""

import pytest
from tokenizers import decoders
from transformers import PreTrainedTokenizerFast

from tiny_tokenizer import KINDS, byte_tokenizer, metaspace_tokenizer, tiny_tokenizer, unigram_tokenizer
from tokenmill.ops.spelling import decoded, spelling
from tokenmill.ops.text import continuation_ids, cut, pieces


def test_pieces_join_to_the_text():
    tokenizer = byte_tokenizer()
    for text in ("plain text", "naïve café", "日本語 and 🙂🙃", "a\n\n\tb  c", "é"):
        ids = tokenizer(text)["input_ids"]
        shown = pieces(tokenizer, ids)
        assert len(shown) == len(ids)
        assert "".join(shown) == text


def test_a_character_of_several_tokens_stands_at_the_last():
    assert pieces(byte_tokenizer(), byte_tokenizer()("aéb")["input_ids"]) == ["a", "", "é", "b"]


def test_bytes_that_are_no_text_end():
    tokenizer = byte_tokenizer()
    half = tokenizer("é")["input_ids"][:1]
    assert len(pieces(tokenizer, half * 9)) == 9


def test_words_specials_and_no_tokenizer():
    tokenizer = tiny_tokenizer()
    ids = [tokenizer.bos_token_id, *tokenizer("w4 w9")["input_ids"]]
    assert pieces(tokenizer, ids) == ["<s>", "w4", "w9"]
    assert pieces(None, [5, 6]) == ["5 ", "6 "]
    assert pieces(tokenizer, []) == []


def test_a_text_that_is_added_to_another_gets_no_space():
    for tokenizer in (unigram_tokenizer(), metaspace_tokenizer()):
        begun = tokenizer("the", add_special_tokens=False)["input_ids"]
        for text in (".", "s", " the", " is.", "ns"):
            assert decoded(tokenizer, [*begun, *continuation_ids(tokenizer, text)]) == "the" + text
    for text in (" a", "b", '\n2. "'):
        assert continuation_ids(byte_tokenizer(), text) == byte_tokenizer()(text)["input_ids"]


def test_tokens_that_are_added_later_are_spelled():
    tokenizer = byte_tokenizer()
    assert spelling(tokenizer).text([65]) == spelling(tokenizer).text([65])
    assert spelling(tokenizer) is spelling(tokenizer)
    tokenizer.add_tokens(["<tool>", "né"])
    assert spelling(tokenizer).text(tokenizer("x<tool>né").input_ids) == "x<tool>né".encode()
    assert pieces(tokenizer, tokenizer("x<tool>né").input_ids) == ["x", "<tool>", "né"]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    assert spelling(tokenizer).special == {tokenizer.convert_tokens_to_ids("<tool>")}


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_is_spelled_as_it_is_shown(kind):
    """Of any kind of tokenizer: after a text, a token adds the bytes it is spelled with."""
    tokenizer = KINDS[kind]()
    begun = tokenizer("a", add_special_tokens=False)["input_ids"]
    for token, text in spelling(tokenizer).tokens.items():
        if b"\xef\xbf\xbd" not in text and "\ufffd" not in text.decode(errors="replace"):
            assert decoded(tokenizer, [*begun, token]) == decoded(tokenizer, begun) + text.decode()


def test_a_decoder_that_does_something_else_is_asked_itself():
    made = byte_tokenizer()
    made.backend_tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("a", "b")])
    assert pieces(made, made("xay").input_ids) == ["x", "b", "y"]

    class Other(PreTrainedTokenizerFast):
        def _decode(self, token_ids, **how):
            return super()._decode(token_ids, **how).upper()

    assert pieces(Other(tokenizer_object=byte_tokenizer().backend_tokenizer), made("xay").input_ids) == ["X", "A", "Y"]


def test_cut_loses_nothing():
    text = "some words\nand lines " * 50 + "x" * 100
    assert "".join(cut(text, 33)) == text
    assert all(len(part) <= 33 for part in cut(text, 33))
    assert list(cut("short", 33)) == ["short"]
