"""Tokens as the text they stand for."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from typing import Any

from tokenmill.errors import InputError, did_you_mean
from tokenmill.ops.spelling import added_text, decoded, letters
from tokenmill.ops.template import render_chat

# Characters that are tokenized where only some tokens are wanted: more than a few thousand tokens ever have.
MOST_CHARACTERS = 1 << 22

# A message of a conversation: "role" and "content", both text, and what else a template may use.
Message = dict[str, Any]

# Tokens decoded again before each one: enough for a decoder that looks back at a neighbour.
BEFORE = 4


class Detokenizer:
    """The text of tokens that come one by one; its pieces put together are the text, and no piece is taken back.

    before: tokens that the text goes on from, so that a space a tokenizer drops at the beginning of a text is there.
    begins: the text begins here instead. skip: bytes at the beginning that are left out.
    """

    def __init__(self, tokenizer: Any, before: Sequence[int] = (), *, begins: bool = False, skip: int = 0):
        self._tokenizer, self._letters, self._skip = tokenizer, letters(tokenizer), skip
        self._window = [] if begins else list(before)[-BEFORE:]  # tokens that were read, for a decoder that looks back
        self._begins, self._waiting = begins, 0
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """The characters that a token completes; '' if it ends inside one."""
        return self._given(self._exact(token) if self._letters.exact else self._beside(token))

    def rest(self) -> str:
        """What is left when nothing more comes: U+FFFD for a character that was not completed."""
        found = self._given(self._read().encode() if self._waiting else b"")
        return found + self._characters.decode(b"", final=True)

    def _given(self, text: bytes) -> str:
        left = text[self._skip :]
        self._skip -= len(text) - len(left)
        return self._characters.decode(left)

    def _exact(self, token: int) -> bytes:
        text = self._letters(token)
        if self._begins and text.startswith(b" "):
            text = decoded(self._tokenizer, [token]).encode()
        self._begins = False
        return text

    def _beside(self, token: int) -> bytes:
        self._window.append(token)
        self._waiting += 1
        text = decoded(self._tokenizer, self._window)
        if text.endswith("\ufffd") and self._waiting < BEFORE:
            return b""
        return self._read().encode()

    def _read(self) -> str:
        """What the waiting tokens add to those before them."""
        before = decoded(self._tokenizer, self._window[: len(self._window) - self._waiting])
        text = added_text(before, decoded(self._tokenizer, self._window))
        self._window, self._waiting = self._window[-BEFORE:], 0
        return text


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text each id adds. A character split over several tokens stands at the last of them, the others are ''."""
    if tokenizer is None:
        return [f"{i} " for i in ids]
    text = Detokenizer(tokenizer, begins=True)
    found = [text.add(i) for i in ids]
    return [*found[:-1], found[-1] + text.rest()] if found else found


def spelled_text(tokenizer: Any, ids: Sequence[int], before: Sequence[int] = ()) -> str:
    """What ids add to a text that goes on."""
    text = Detokenizer(tokenizer, before)
    return "".join([*map(text.add, ids), text.rest()])


def continuation_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids (T,) that add a text to one that goes on: without the space that some tokenizers begin every text with."""
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    for begun in ("", "\n", "a", "."):
        before = list(tokenizer(begun, add_special_tokens=False)["input_ids"]) if begun else []
        both = list(tokenizer(begun + text, add_special_tokens=False)["input_ids"])
        if both[: len(before)] == before and spelled_text(tokenizer, both[len(before) :], before or ids[-1:]) == text:
            return both[len(before) :]
    return ids  # of a tokenizer that changes the text


def cut(text: str, size: int) -> Iterator[str]:
    """The text in pieces of at most `size` characters, cut behind a line or a word where there is one."""
    at = 0
    while len(text) - at > size:
        end = max(text.rfind("\n", at, at + size), text.rfind(" ", at + size // 2, at + size)) + 1
        end = end if end > at + size // 2 else at + size
        yield text[at:end]
        at = end
    yield text[at:]


def messages_of(value: Any, place: str) -> list[Message]:
    """A conversation, checked: dicts with a role and a content, which is text or parts that hold text.

    Raises InputError that begins with `place`.
    """
    if not isinstance(value, list | tuple) or not value:
        raise InputError(f"{place} has no messages; a conversation is a list of objects with role and content")
    found = []
    for number, message in enumerate(value, 1):
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
            content = "".join(part["text"] for part in content)
        if not isinstance(role, str) or not isinstance(content, str):
            raise InputError(f'{place}: message {number} is not {{"role": "user", "content": "…"}}, both of them text')
        found.append({**message, "role": role, "content": content})
    return found


def chat_text(tokenizer: Any, messages: Sequence[Message], template: str | None = None, *, reply: bool = True) -> str:
    """A conversation as the model's chat format writes it, special tokens included: tokenize it without adding any.

    With `reply` it ends where the model's next message begins; a last message of the assistant's is gone on with.
    `template` names one of several that a tokenizer has. Raises InputError where there is none, or where it fails.
    """
    known = getattr(tokenizer, "chat_template", None)
    if not known:
        raise InputError("this model has no chat format (its tokenizer has no chat_template); give text, or ids")
    names = known if isinstance(known, dict) else {"default": known}
    if template is not None and template not in names:
        raise InputError(f"this model has no chat template '{template}'; {did_you_mean(template, names)}")
    if template is None and "default" not in names:
        raise InputError(f"this model has several chat templates; name one of {', '.join(sorted(names))}")
    going_on = reply and messages[-1]["role"] == "assistant"
    return render_chat(
        tokenizer,
        messages,
        chat_template=names[template or "default"],
        add_generation_prompt=reply and not going_on,
        continue_final_message=going_on,
    )


def shortened(text: str, most: int = 60) -> str:
    """The text's beginning, with … where it goes on."""
    return text if len(text) <= most else text[: most - 1] + "…"


def as_message(tokenizer: Any, text: str) -> str:
    """The text as a user's message that the model is to answer, if the tokenizer has a chat format; else as it is."""
    if not getattr(tokenizer, "chat_template", None):
        return text
    return chat_text(tokenizer, [{"role": "user", "content": text}])


def around_message(tokenizer: Any) -> tuple[str, str]:
    """What a chat format writes before a user's first message, and behind it."""
    mark = "\N{SYMBOL FOR UNIT SEPARATOR}"
    before, _, after = as_message(tokenizer, mark).partition(mark)
    return before, after
