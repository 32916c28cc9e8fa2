"""Tokens as bytes, for the three ways vocabularies are written."""

from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tiny_tokenizer import byte_tokenizer, tiny_tokenizer
from tokenmill.ops.spelling import ALPHABET, Spelling, spelling


def test_every_byte_has_a_character_and_every_text_its_bytes():
    assert sorted(ALPHABET.values()) == list(range(256))
    tokenizer = byte_tokenizer()
    for text in ("plain words", "né 日本語 😀\t\r\n", " "):
        assert spelling(tokenizer).text(tokenizer(text)["input_ids"]) == text.encode()


def test_sentence_pieces_and_byte_tokens():
    vocabulary = {"<unk>": 0, "\u2581the": 1, "<0xC3>": 2, "<0xA9>": 3, "n": 4}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    known = spelling(PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>"))
    assert known.text([1, 4, 2, 3]) == " thené".encode()
    assert known.beyond(b" t") == [1]
    assert 0 in known.special


def test_words_are_spelled_as_they_are_and_special_tokens_fit_nothing():
    known = spelling(tiny_tokenizer())
    assert known.text([4, 10]) == b"w4w10"
    assert known.beyond(b"w4") == [4, *range(40, 50)]
    assert known.within(b"w45") == [4]
    assert known.beyond(b"<") == known.within(b"</s>x") == []


def test_tokens_spelled_alike_all_fit():
    known = Spelling({0: b"a", 1: b"ab", 2: b"a", 3: b"", 4: b"\xff\xff", 5: b"ac"})
    assert known.within(b"ab") == [0, 2]
    assert known.beyond(b"a") == [0, 2, 1, 5]
    assert known.beyond(b"\xff") == [4]
