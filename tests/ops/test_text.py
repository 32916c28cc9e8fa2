"""Tokens as text."""

from tiny_tokenizer import byte_tokenizer, tiny_tokenizer
from tokenmill.ops.text import pieces


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
