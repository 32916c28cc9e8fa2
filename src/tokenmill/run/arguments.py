"""What callers give: prompts, stop strings, numbers. Checked where they come in; a mistake is one line."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from tokenmill.errors import InputError, SpecError
from tokenmill.models.architectures import context_of
from tokenmill.ops.text import Message, chat_text, messages_of
from tokenmill.run.inputs import checked

# A text, a conversation, or token ids.
Prompt = str | Sequence[Message] | Sequence[int]
PROMPTS = "a prompt is text, messages (dicts with role and content), or token ids"
# Characters a token for which nobody asks how long the longest one is.
USUAL = 64


def prompt_rows(tokenizer: Any, prompts: Any, chat: bool | str = False, most: int | None = None) -> list[list[int]]:
    """Ids of each prompt: (rows, tokens of each).

    prompts: one prompt or several; a tensor or array is ids, (T,) or (rows, T); what a tokenizer returned is its
    `input_ids` where `attention_mask` is not 0. chat: text is a user's message in the model's chat format; a name
    takes the template of that name. most: the model's context, beyond which text is refused before it is tokenized.
    Raises InputError.
    """
    if isinstance(prompts, str) or _conversation(prompts):
        prompts = [prompts]
    elif isinstance(prompts, Mapping) or hasattr(prompts, "input_ids"):
        prompts = _unpadded(prompts)
    elif hasattr(prompts, "tolist"):
        if getattr(prompts, "ndim", 0) not in (1, 2):
            raise InputError(f"prompts of shape {tuple(prompts.shape)} are no ids; give (T,) or (rows, T)")
        prompts = prompts.tolist() if prompts.ndim == 2 else [prompts.tolist()]
    elif isinstance(prompts, bytes | set | frozenset) or not isinstance(prompts, Iterable):
        raise InputError(f"prompts are {_kind(prompts)}; {PROMPTS}, or a list of them")
    else:
        prompts = list(prompts)
        prompts = [prompts] if prompts and _number(prompts[0]) else prompts
    if not prompts:
        raise InputError("there is no prompt; give at least one")
    return [_row(tokenizer, prompt, f"prompt {n}", chat, most) for n, prompt in enumerate(prompts)]


def prompt_ids(tokenizer: Any, prompt: Any, chat: bool | str = False, most: int | None = None) -> list[int]:
    """The ids of one prompt, as `prompt_rows`."""
    rows = prompt_rows(tokenizer, prompt, chat, most)
    if len(rows) != 1:
        raise InputError(f"one prompt at a time: these are {len(rows)}")
    return rows[0]


def _row(tokenizer: Any, prompt: Any, place: str, chat: bool | str, most: int | None) -> list[int]:
    template = chat if isinstance(chat, str) else None
    if isinstance(prompt, str) and not prompt:
        ids: list[int] = []
    elif isinstance(prompt, str) or _conversation(prompt):
        if tokenizer is None:
            raise InputError("the prompt is text and there is no tokenizer; give the model's, or token ids")
        chats = chat or not isinstance(prompt, str)
        if chats:
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else messages_of(prompt, place)
            prompt = chat_text(tokenizer, messages, template)
        _refuse_long(tokenizer, prompt, place, most)
        # A chat format writes its special tokens itself.
        ids = tokenizer(checked(prompt, place), add_special_tokens=not chats)["input_ids"]
    elif isinstance(prompt, bytes | set | frozenset | Mapping) or not isinstance(prompt, Iterable):
        raise InputError(f"{place} is {_kind(prompt)}; {PROMPTS}")
    else:
        ids = token_ids(prompt, place)
        if chat:
            raise InputError(f"{place} is ids already, and a chat format is for text; leave out chat")
    if not ids:
        raise InputError(f"{place} is empty; give at least one token")
    return [int(i) for i in ids]


def token_ids(value: Iterable[Any], place: str) -> list[int]:
    """(T,) ids of a list, tensor or array. Raises InputError for what is no whole number."""
    found = value.tolist() if hasattr(value, "tolist") else list(value)
    if not isinstance(found, list) or not all(map(_number, found)):
        wrong = next((i for i in found if not _number(i)), None) if isinstance(found, list) else found
        raise InputError(f"{place} has {_kind(wrong)} where a token id should be; ids are whole numbers")
    return [operator.index(i) for i in found]


def refuse_unknown(model: Any, rows: Iterable[Sequence[int]]) -> None:
    """Raise InputError for ids that the model's table has no row for."""
    vocabulary = model.get_input_embeddings().num_embeddings
    for row in rows:
        if row and (max(row) >= vocabulary or min(row) < 0):
            wrong = min(row) if min(row) < 0 else max(row)
            raise InputError(
                f"token id {wrong} is outside the model's vocabulary of {vocabulary}; use the model's own tokenizer, "
                "or resize_token_embeddings where tokens were added"
            )


def learned_positions(model: Any) -> int | None:
    """The context of a model that has a learned vector for each position and none beyond; else None."""
    base = getattr(model, "base_model", model)
    for part in (base, getattr(base, "decoder", None), getattr(base, "transformer", None)):
        for name, child in part.named_children() if isinstance(part, nn.Module) else ():
            if isinstance(child, nn.Embedding) and ("pos" in name or name == "wpe"):
                return context_of(model)
    return None


def refuse_beyond(model: Any, length: int) -> None:
    """Raise InputError for a text longer than the positions that a model has learned."""
    most = learned_positions(model)
    if most is not None and length > most:
        raise InputError(f"the text has {length} tokens and the model has learned {most} positions; shorten it")


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """The number, also one of numpy's. Raises InputError for anything else, and for one below `least`."""
    if not _number(value):
        raise InputError(f"{name} must be a whole number, not {_kind(value)}")
    if operator.index(value) < least:
        raise InputError(f"{name} must be at least {least}, not {value}")
    return operator.index(value)


def real_number(name: str, value: Any, words: str) -> float:
    """The number, also one of numpy's; `words` say which are meant. Raises SpecError for anything else."""
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise SpecError(f"{name} must be {words}, not {_kind(value)}")
    return float(value)


def stop_strings(stop: str | Iterable[str] | None) -> tuple[str, ...]:
    """What ends a text: one string, several, or None. Raises InputError for what is no text, or empty."""
    found = (stop,) if isinstance(stop, str) else () if stop is None else stop
    if not isinstance(found, Iterable) or isinstance(found, bytes):
        raise InputError(f"stop is {_kind(stop)}; give a text, or a list of texts")
    found = tuple(found)
    for text in found:
        if not isinstance(text, str):
            raise InputError(f"stop has {_kind(text)} in it; stop strings are texts")
        if not text:
            raise InputError("a stop string is empty, and every text begins with that; leave it out")
        checked(text, "a stop string")
    return found


def _conversation(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(m, Mapping) for m in value)


def _number(value: Any) -> bool:
    if isinstance(value, bool) or getattr(value, "ndim", None):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def _unpadded(found: Any) -> list[list[int]]:
    """Rows of what a tokenizer returned, without padding."""
    ids, mask = (found.get(key) for key in ("input_ids", "attention_mask"))
    if ids is None:
        raise InputError(f"prompts are {_kind(found)} without input_ids; {PROMPTS}")
    rows = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    rows = [rows] if rows and _number(rows[0]) else rows
    if mask is None:
        return rows
    marks = mask.tolist() if hasattr(mask, "tolist") else list(mask)
    marks = [marks] if marks and _number(marks[0]) else marks
    try:
        return [[i for i, m in zip(row, m_, strict=True) if m] for row, m_ in zip(rows, marks, strict=True)]
    except ValueError:
        raise InputError("attention_mask and input_ids have different shapes") from None


def _refuse_long(tokenizer: Any, text: str, place: str, most: int | None) -> None:
    """Raise InputError for a text that has more tokens than the context, however long they are."""
    if most is None or len(text) <= USUAL * most or not hasattr(tokenizer, "get_vocab"):
        return
    longest = max(map(len, tokenizer.get_vocab()), default=1)
    if len(text) > longest * most:
        raise InputError(
            f"{place} has {len(text):,} characters, at least {-(-len(text) // longest):,} tokens, but the model's "
            f"context is {most}; shorten it"
        )


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__} ({str(value)[:40]!r})"
