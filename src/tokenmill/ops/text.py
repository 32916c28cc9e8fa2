"""Tokens as the text they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenmill.ops.template import render_chat

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


def as_message(tokenizer: Any, text: str) -> str:
    """The text as a user's message that the model is to answer, if the tokenizer has a chat format; else as it is."""
    if not getattr(tokenizer, "chat_template", None):
        return text
    turns = [{"role": "user", "content": text}]
    return render_chat(tokenizer, turns, add_generation_prompt=True)


def around_message(tokenizer: Any) -> tuple[str, str]:
    """What a chat format writes before a user's first message, and behind it."""
    mark = "\N{SYMBOL FOR UNIT SEPARATOR}"
    before, _, after = as_message(tokenizer, mark).partition(mark)
    return before, after


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
