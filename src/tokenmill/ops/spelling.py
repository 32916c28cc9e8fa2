"""How tokens are spelled, in bytes, and which of them fit a text."""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from functools import lru_cache
from typing import Any

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


@lru_cache(maxsize=4)
def spelling(tokenizer: Any) -> Spelling:
    """Of a fast tokenizer, once for each: byte-level, SentencePiece-like with byte tokens, or plain words."""
    backend = tokenizer.backend_tokenizer
    decoder = json.dumps(json.loads(backend.to_str()).get("decoder"))
    added = {i: t.content.encode() for i, t in tokenizer.added_tokens_decoder.items()}
    special = frozenset(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)
    special |= frozenset(tokenizer.all_special_ids)
    made = {}
    for token, i in tokenizer.get_vocab().items():
        if i in added:
            made[i] = added[i]
        elif "ByteLevel" in decoder:
            made[i] = bytes(ALPHABET[c] for c in token) if all(c in ALPHABET for c in token) else token.encode()
        elif found := _BYTE.fullmatch(token):
            made[i] = bytes([int(found[1], 16)])
        else:
            made[i] = token.replace("\u2581", " ").encode()
    return Spelling(made, special)
