"""Texts, prompts and conversations in files of the user's: every command reads them here.

records("mine.jsonl")       # one Record a line; .ndjson the same
records("mine.json")        # an array of them
records("mine.csv")         # a row each; .tsv the same
records("notes.txt")        # one text; any other ending is read as text too
records("folder")           # every file in it, by name

Each of these may be compressed with gzip (.gz). Text is UTF-8, or UTF-16 and UTF-32 with a byte order mark.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.errors import InputError
from tokenmill.ops.text import Message, chat_text, messages_of
from tokenmill.paths import expanded

LIMIT = 1 << 28  # bytes that are read of a file or a folder, after decompression
KEYS = ("prompt", "messages", "turns", "text", "question")
COLUMNS = ("prompt", "text", "question")
ACCEPTED = (
    'a record is a text, or an object with "prompt", "text" or "question" (text), "messages" (objects with role and '
    'content) or "turns" (texts), and if it likes "answer" and "category"'
)
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Record:
    """One text of a file, or one conversation."""

    turns: tuple[str, ...] = ()  # the text; several if they are a user's turns, with the model's between
    messages: tuple[Message, ...] = ()  # a conversation instead, with both sides
    answer: str | None = None  # what is right, where the file has it
    category: str = "input"
    place: str = ""  # 'mine.jsonl, line 3'

    @property
    def prompt(self) -> str | list[Message]:
        """What a model is to continue: the first turn, or the messages up to where it has its turn."""
        if not self.messages:
            return self.turns[0] if self.turns else ""
        return list(self.messages[:-1] if self.messages[-1]["role"] == "assistant" else self.messages)

    @property
    def text(self) -> str:
        """All of its text."""
        return "\n\n".join(self.turns or [str(m["content"]) for m in self.messages])

    def whole(self, tokenizer: Any) -> str:
        """All of its text, a conversation in the model's chat format where it has one."""
        chat = self.messages and getattr(tokenizer, "chat_template", None)
        return chat_text(tokenizer, self.messages, reply=False) if chat else self.text


class _NoRecords(InputError):
    """A file that holds something else altogether: in a folder it is passed over."""


class _ExtraData(InputError):
    """A value of JSON, and more behind it."""


def records(path: str | Path, *, paragraphs: bool = False) -> list[Record]:
    """The records of a file or folder that have text, in order; at least one.

    With `paragraphs` blank lines part a plain text into records. In a folder, files that begin with a dot and files
    that hold no records (pictures, tables of something else) are passed over. Raises InputError, with file, line and
    what is accepted, for what cannot be read, and for more than LIMIT bytes.
    """
    where = expanded(path)
    reason = f"{where} holds no text"
    found: list[Record] = []
    room = LIMIT
    for file in _files(where):
        try:
            raw = _bytes(file, room, where)
            text = _decoded(str(file), raw)
            found += [r for r in _parsed(file, text, paragraphs) if r.text.strip()]
        except _NoRecords as error:
            if file == where:
                raise
            reason = f"{where} holds no text; {error}"
            continue
        room -= len(raw)
    if not found:
        raise InputError(reason)
    return found


def standard_input() -> str:
    """All text on the standard input. Raises InputError as `records`."""
    raw = sys.stdin.buffer.read(LIMIT + 1)
    if len(raw) > LIMIT:
        raise InputError(f"standard input has more than {LIMIT >> 20} MiB, which is the most that is read; shorten it")
    return _decoded("standard input", raw)


def checked(text: str, place: str) -> str:
    """The text, if every character of it is one: half of a surrogate pair is none."""
    if half := _SURROGATE.search(text):
        raise InputError(
            f"{place} has half of a surrogate pair ({ascii(half[0])[1:-1]} at character {half.start()}), which is no "
            "character; remove it, or write \\ufffd instead"
        )
    return text


def _files(where: Path) -> list[Path]:
    try:
        if not where.is_dir():
            return [where]
        inside = sorted(f for f in where.rglob("*") if f.is_file())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {where}: {getattr(error, 'strerror', None) or error}") from None
    return [f for f in inside if not any(part.startswith(".") for part in f.relative_to(where).parts)]


def _bytes(file: Path, room: int, where: Path) -> bytes:
    try:
        with gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb") as opened:
            raw = opened.read(room + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _NoRecords(f"{file} is not compressed with gzip, or damaged: {error}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from None
    if len(raw) > room:
        raise InputError(f"{where} has more than {LIMIT >> 20} MiB of text, which is the most that is read; shorten it")
    return raw


def _decoded(name: str, raw: bytes) -> str:
    form = next((form for mark, form in _MARKS if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(form).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _NoRecords(
            f"{name}, line {line} is not {form.upper()} text (byte {error.start}, {raw[error.start]:#04x}); "
            "convert it to UTF-8 first"
        ) from None
    if (at := text.find("\0")) >= 0:
        raise _NoRecords(
            f"{name}, line {text.count(chr(10), 0, at) + 1} has a NUL character: it is no text, or UTF-16 without a "
            "byte order mark; convert it to UTF-8 first"
        )
    if not text.strip():
        raise _NoRecords(f"{name} is empty")
    return text


def _parsed(file: Path, text: str, paragraphs: bool) -> Iterator[Record]:
    endings = [suffix.lower() for suffix in file.suffixes]
    ending = next((suffix for suffix in reversed(endings) if suffix != ".gz"), "")
    if ending in (".jsonl", ".ndjson"):
        return _lines(file, text)
    if ending == ".json":
        return _array(file, text)
    if ending in (".csv", ".tsv"):
        return _table(file, text, "\t" if ending == ".tsv" else ",")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    parts = [part.strip() for part in re.split(r"\n[ \t]*\n", text)] if paragraphs else [text]
    return (Record((part,), place=str(file)) for part in parts)


def _lines(file: Path, text: str) -> Iterator[Record]:
    first = True
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip(" \t\r"):
            place = f"{file}, line {number}"
            yield _record(_json(line, place), place, first)
            first = False


def _array(file: Path, text: str) -> Iterator[Record]:
    try:
        found = _json(text, str(file))
    except _ExtraData:  # lines of JSON under the other name
        yield from _lines(file, text)
        return
    for number, value in enumerate(found if isinstance(found, list) else [found]):
        yield _record(value, f"{file}, record {number + 1}", number == 0)


def _table(file: Path, text: str, separator: str) -> Iterator[Record]:
    header = text.lstrip("\r\n").split("\n")[0]
    if separator == "," and "," not in header:
        separator = next((s for s in ";\t" if s in header), ",")
    before = csv.field_size_limit(LIMIT)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    names: list[str] = []
    line = 0
    try:
        for row in rows:
            place, line = f"{file}, line {line + 1}", rows.line_num
            if not row:
                continue
            if not names:
                names = [name.strip().lower() for name in row]
                if not {*names} & {*COLUMNS}:
                    raise _NoRecords(
                        f"{place} names no column prompt, text or question (it has {_listed(names)}); a table has "
                        "one of them, and if it likes answer and category"
                    )
                continue
            if len(row) != len(names):
                raise InputError(f"{place} has {len(row)} cells, and the first line names {len(names)} columns")
            cells = dict(zip(names, row, strict=True))
            yield _record({k: cells[k] for k in (*COLUMNS, "answer", "category") if cells.get(k)} or "", place, False)
    except csv.Error as error:
        raise InputError(f"{file}, line {line + 1} is not CSV: {error}") from None
    finally:
        csv.field_size_limit(before)


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f" (its line {error.lineno}, column {error.colno})" if "\n" in text.strip() else ""
        kind = _ExtraData if error.msg == "Extra data" else InputError
        raise kind(f"{place} is not JSON: {error.msg}{line}") from None
    except RecursionError:
        raise InputError(f"{place} is nested too deep; {ACCEPTED}") from None
    except ValueError as error:  # a number of thousands of digits
        raise InputError(f"{place} is not JSON that can be read: {error}") from None


def _record(value: Any, place: str, first: bool) -> Record:
    """One record of JSON or of a table. `first`: of a file that may hold something else."""
    if isinstance(value, str):
        return Record((checked(value, place),), place=place)
    key = next((k for k in KEYS if value.get(k) is not None), None) if isinstance(value, dict) else None
    if key is None:
        kind = _NoRecords if first else InputError
        has = _listed(list(value)) if isinstance(value, dict) else f"a {type(value).__name__}"
        raise kind(f"{place} has {has}; {ACCEPTED}")
    found, answer, category = value[key], value.get("answer"), value.get("category")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = json.dumps(answer)
    if answer is not None and not isinstance(answer, str):
        raise InputError(f'{place} has an "answer" that is no text; leave it out, or write one')
    others: dict[str, Any] = {
        "answer": None if answer is None else checked(answer, place),
        "category": "input" if category is None else checked(str(category), place),
        "place": place,
    }
    if isinstance(found, str) and key not in ("messages", "turns"):
        return Record((checked(found, place),), **others)
    if key == "turns" and isinstance(found, list) and found and all(isinstance(t, str) for t in found):
        turns = tuple(checked(t, place) for t in found)
        return Record(tuple(t for t in turns if t.strip()), **others)
    if key in ("messages", "prompt") and isinstance(found, list):
        messages = tuple(messages_of(found, place))
        for message in messages:
            checked(message["content"], place)
        if messages[-1]["role"] == "assistant":
            if len(messages) == 1:
                raise InputError(f"{place} has an answer and no message before it")
            others["answer"] = others["answer"] if answer is not None else messages[-1]["content"]
        return Record(messages=messages, **others)
    raise InputError(f'{place} has "{key}" of another shape; {ACCEPTED}')


def _listed(names: list[Any]) -> str:
    shown = ", ".join(str(name)[:40] for name in names[:8])
    return (shown + (", …" if len(names) > 8 else "")) or "nothing"
