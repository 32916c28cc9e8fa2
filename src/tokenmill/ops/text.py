"""Tokens as the text they stand for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tokenmill.errors import InputError, did_you_mean
from tokenmill.ops.template import render_chat

# Characters that are tokenized where only some tokens are wanted: more than a few thousand tokens ever have.
MOST_CHARACTERS = 1 << 22

# A message of a conversation: "role" and "content", both text, and what else a template may use.
Message = dict[str, Any]

# Tokens decoded again before each one: enough for a decoder that looks back at a neighbour.
BEFORE = 4


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text each id adds. A character split over several tokens stands at the last of them, the others are ''."""
    if tokenizer is None:
        return [f"{i} " for i in ids]
    found: list[str] = []
    start, done = 0, 0  # ids[start:done] is the shown neighbour, ids[done:i + 1] not yet shown
    for i in range(len(ids)):
        shown = _decode(tokenizer, ids[start:done])
        text = _decode(tokenizer, ids[start : i + 1])
        if text.endswith("\ufffd") and i + 1 < len(ids) and i - done < BEFORE:
            found.append("")
            continue
        found.append(text[len(shown) :])
        start, done = max(done, i + 1 - BEFORE), i + 1
    return found


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


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
