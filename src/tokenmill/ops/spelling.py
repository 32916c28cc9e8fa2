"""How tokens are spelled, in bytes, and which of them fit a text."""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

# GPT-2's alphabet: printable bytes stand for themselves, the others for the characters from 256 on.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [b for b in range(256) if b not in set(_PRINTABLE)]
ALPHABET = {chr(b): b for b in _PRINTABLE} | {chr(256 + n): b for n, b in enumerate(_OTHERS)}
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Spelling:
    """The bytes of every token, sorted, so that what fits a text is found by bisection: a trie without nodes.

    Special tokens stand for no text and fit none.
    """

    def __init__(self, tokens: dict[int, bytes], special: frozenset[int] = frozenset()):
        self.tokens, self.special = tokens, special
        pairs = sorted((text, token) for token, text in tokens.items() if text and token not in special)
        self.texts, self.ids = [text for text, _ in pairs], [token for _, token in pairs]
        self.longest = max(map(len, self.texts), default=0)

    def within(self, text: bytes) -> list[int]:
        """Tokens that are a beginning of the text, and shorter than it."""
        found: list[int] = []
        for length in range(1, min(len(text), self.longest + 1)):
            found += self.ids[slice(*self._equal(text[:length]))]
        return found

    def beyond(self, text: bytes) -> list[int]:
        """Tokens that begin with the text."""
        first = bisect_left(self.texts, text)
        return self.ids[first : bisect_right(self.texts, text + b"\xff" * self.longest)]

    def _equal(self, text: bytes) -> tuple[int, int]:
        return bisect_left(self.texts, text), bisect_right(self.texts, text)

    def text(self, ids: list[int]) -> bytes:
        """What these tokens spell, special ones by their names."""
        return b"".join(self.tokens.get(i, b"") for i in ids)


class Letters:
    """The bytes that each token of a tokenizer stands for, in the middle of a text; found when asked for, and kept.

    Exact where they can be read off the vocabulary: byte-level ones, SentencePiece-like ones with byte tokens, plain
    words. Of any other tokenizer (`exact` is False) a token is what it adds to a text that another one begins.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        kinds = _decoders(tokenizer)
        self.by_byte = kinds is not None and "ByteLevel" in kinds
        self.fallback = kinds is not None and "ByteFallback" in kinds
        self.space = kinds is not None and ("Replace" in kinds or "Metaspace" in kinds)
        self.exact = kinds is not None
        self.added = {i: str(t) for i, t in getattr(tokenizer, "added_tokens_decoder", {}).items()}
        self.spelling: Spelling | None = None  # of all tokens, once it was asked for
        self._known: dict[int, bytes] = {}

    def __call__(self, token: int) -> bytes:
        found = self._known.get(token)
        if found is None:
            found = self._known[token] = self._spelled(token) if self.exact else self._beside(token)
        return found

    def _spelled(self, token: int) -> bytes:
        if token in self.added:
            return self.added[token].encode()
        name = self.tokenizer.convert_ids_to_tokens(token)
        if name is None:  # the model's table is longer than the vocabulary
            return b""
        if self.by_byte:
            return bytes(ALPHABET[c] for c in name) if all(c in ALPHABET for c in name) else name.encode()
        if self.fallback and (found := _BYTE.fullmatch(name)):
            return bytes([int(found[1], 16)])
        return (name.replace("\u2581", " ") if self.space else name).encode()

    def _beside(self, token: int) -> bytes:
        before = decoded(self.tokenizer, self._begin)
        return added_text(before, decoded(self.tokenizer, [*self._begin, token])).encode()

    @cached_property
    def _begin(self) -> list[int]:
        return list(self.tokenizer("a", add_special_tokens=False)["input_ids"])[-1:]


def letters(tokenizer: Any) -> Letters:
    """Of a tokenizer, made once, and again when tokens were added to it."""
    try:
        known, made = _LETTERS[tokenizer]
    except (KeyError, TypeError):  # TypeError: one that cannot be kept without being held
        known, made = None, None
    now = {i: str(t) for i, t in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    if made is None or known != now:
        made = Letters(tokenizer)
        with suppress(TypeError):
            _LETTERS[tokenizer] = now, made
    return made


def spelling(tokenizer: Any) -> Spelling:
    """Every token of a tokenizer as bytes; made once, and again when tokens were added to it."""
    spelled, added = letters(tokenizer), getattr(tokenizer, "added_tokens_decoder", {})
    special = frozenset(i for i, t in added.items() if t.special) | frozenset(tokenizer.all_special_ids)
    made = spelled.spelling
    if made is None or made.special != special:
        tokens = {i: spelled(i) for i in {*tokenizer.get_vocab().values(), *added}}
        made = spelled.spelling = Spelling(tokens, special)
    return made


def decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """What the tokenizer makes of ids, special tokens by their names, no space taken away before punctuation."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def added_text(before: str, after: str) -> str:
    """What a text has beyond the beginning it shares with what it was before."""
    same = 0
    while same < min(len(before), len(after)) and before[same] == after[same]:
        same += 1
    return after[same:]


def _decoders(tokenizer: Any) -> frozenset[str] | None:
    """The steps of a fast tokenizer's decoder, if they do to each token alone what is known here; else None."""
    from transformers import PreTrainedTokenizerFast

    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    overridden = getattr(type(tokenizer), "_decode", None) is not PreTrainedTokenizerFast._decode
    if decoder is None or overridden:
        return None
    found = json.loads(decoder.__getstate__())
    steps = found["decoders"] if found["type"] == "Sequence" else [found]
    kinds = [step["type"] for step in steps]
    if {*kinds} <= {"ByteLevel", "Fuse"}:
        return frozenset(kinds)
    for place, step in enumerate(steps):
        kind = step["type"]
        if kind == "Replace" and (step["pattern"], step["content"]) != ({"String": "\u2581"}, " "):
            return None
        # A space at the beginning of the whole text, and only there, is taken away.
        if kind == "Strip" and ("Fuse" not in kinds[:place] or step["stop"] or step["content"] != " "):
            return None
        if kind == "Metaspace" and step["replacement"] != "\u2581":
            return None
        if kind not in ("Replace", "Strip", "Metaspace", "ByteFallback", "Fuse"):
            return None
    return frozenset(kinds)


_LETTERS: WeakKeyDictionary[Any, tuple[dict[int, str], Letters]] = WeakKeyDictionary()
