"""Text to train on, and text that is kept apart to judge by: no file is in both.

By default the standard library's own: the reference in `pydoc_data.topics`, a file a topic, and its modules' sources.
A user's text is a file or a folder (see run/inputs.py); a single text is cut, its last tenth is held out. Texts of
several tasks are a folder with a file or a folder for each; by default sources, prose, and the tables of the library's
encodings.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenmill.errors import InputError
from tokenmill.ops.text import MOST_CHARACTERS, cut
from tokenmill.paths import expanded
from tokenmill.run.inputs import records

APART = 10  # every tenth file is held out
BYTES = 256  # the vocabulary without a tokenizer


@dataclass(frozen=True)
class Corpus:
    """Rows of text, in an order that a seed fixes. A batch depends on seed and step alone, so training can resume."""

    train: Tensor  # (N,) ids, files one after the other
    held_out: Tensor  # (M,)

    def batch(self, rows: int, length: int, seed: int, step: int) -> Tensor:
        """(rows, length) from places that seed and step choose."""
        draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
        at = torch.randint(len(self.train) - length + 1, (rows, 1), generator=draw)
        return self.train[at + torch.arange(length)]

    def row(self, number: int, length: int) -> Tensor:
        """(length,): a row of the text cut from its start."""
        return self.train[number * length : (number + 1) * length]

    def in_turn(self, rows: int, length: int, seed: int, step: int, count: int) -> list[int]:
        """Which rows of the text cut from its start a batch has: of `count` that the seed picks, each once a round."""
        chosen = torch.randperm(len(self.train) // length, generator=torch.Generator().manual_seed(seed))[:count]
        first, size = step * rows, len(chosen)
        rounds = range(first // size, (first + rows - 1) // size + 1)
        draws = [torch.Generator().manual_seed(seed * 1_000_003 + number + 1) for number in rounds]
        order = torch.cat([chosen[torch.randperm(size, generator=draw)] for draw in draws])
        return order[first % size :][:rows].tolist()

    def judged(self, rows: int, length: int) -> Tensor:
        """(rows, length) of held-out text, evenly spread; fewer rows if it is short. The same for every seed."""
        rows = max(1, min(rows, len(self.held_out) // length))
        at = torch.arange(rows) * ((len(self.held_out) - length) // max(1, rows - 1) if rows > 1 else 0)
        return self.held_out[at[:, None] + torch.arange(length)]

    def labels(self, rows: int) -> Tensor | None:
        """Which task each row is of: there is one."""
        return None

    @property
    def digest(self) -> str:
        told = hashlib.sha256(self.train.numpy().tobytes())
        told.update(self.held_out.numpy().tobytes())
        return told.hexdigest()[:16]


@dataclass(frozen=True)
class Tasks:
    """Texts of several tasks, which take turns from row to row. Otherwise as a corpus."""

    names: tuple[str, ...]
    texts: tuple[Corpus, ...]

    def batch(self, rows: int, length: int, seed: int, step: int) -> Tensor:
        each = -(-rows // len(self.texts))
        return self._in_turns([text.batch(each, length, seed, step) for text in self.texts])[:rows]

    def judged(self, rows: int, length: int) -> Tensor:
        """As many rows of every task as the shortest has."""
        own = [text.judged(-(-rows // len(self.texts)), length) for text in self.texts]
        return self._in_turns([ids[: min(map(len, own))] for ids in own])

    def labels(self, rows: int) -> Tensor:
        """(rows,): which task each row of a batch is of."""
        return torch.arange(rows) % len(self.texts)

    @property
    def digest(self) -> str:
        return hashlib.sha256("".join(text.digest for text in self.texts).encode()).hexdigest()[:16]

    @staticmethod
    def _in_turns(own: list[Tensor]) -> Tensor:
        return torch.stack(own, 1).flatten(0, 1)


def corpus(
    path: str | Path | None, encode: Callable[[str], list[int]] | None, length: int, tokenizer: Any = None
) -> Corpus:
    """The text at `path` (None: the standard library's) as ids; bytes without `encode`.

    `tokenizer` writes conversations in its chat format.
    """
    return _corpus(str(path or "the standard library"), documents(path, tokenizer), encode, length)


def tasks(
    path: str | Path | None, encode: Callable[[str], list[int]] | None, length: int, tokenizer: Any = None
) -> Tasks:
    """A task for each file or folder in the folder at `path`, by name; None: three from the standard library."""
    if path is None:
        library = _standard_library()
        prose = {name: text for name, text in library.items() if name.startswith("topics/")}
        found = {"code": {n: t for n, t in library.items() if n not in prose}, "prose": prose, "tables": _encodings()}
    else:
        where = expanded(path)
        if not where.is_dir():
            raise InputError(f"{path} is no folder; texts of several tasks are a folder with a file or folder for each")
        inside = sorted(p for p in where.iterdir() if not p.name.startswith("."))
        found = {p.name: documents(p, tokenizer) for p in inside}
        if not found:
            raise InputError(f"{path} is empty; texts of several tasks are a folder with a file or folder for each")
    texts = tuple(_corpus(f"'{name}'", own, encode, length) for name, own in found.items())
    return Tasks(tuple(found), texts)


def _corpus(name: str, found: dict[str, str], encode: Callable[[str], list[int]] | None, length: int) -> Corpus:
    parts = [_ids(texts, encode) for texts in split(found)]
    for what, ids in zip(("to train on", "held out"), parts, strict=True):
        if len(ids) < length:
            raise InputError(f"{name} has {len(ids)} tokens {what}, fewer than a row of {length}")
    return Corpus(*parts)


def documents(path: str | Path | None, tokenizer: Any = None) -> dict[str, str]:
    """Name -> text: every record of the user's file or folder, conversations in the model's chat format."""
    return _standard_library() if path is None else {r.place: r.whole(tokenizer) for r in records(path)}


def split(found: dict[str, str]) -> tuple[list[str], list[str]]:
    """To train on and held out, by file; a text that two files share goes with the first."""
    texts = list({text: None for _, text in sorted(found.items())})
    if len(texts) == 1:
        cut = len(texts[0]) - len(texts[0]) // APART
        return [texts[0][:cut]], [texts[0][cut:]]
    ranked = sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())
    apart = set(ranked[: max(1, len(ranked) // APART)])
    return [t for t in texts if t not in apart], [t for t in texts if t in apart]


@cache
def _standard_library() -> dict[str, str]:
    from pydoc_data.topics import topics

    found = {f"topics/{name}": text for name, text in topics.items()}
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        found[file.name] = file.read_text(encoding="utf-8", errors="replace")
    return found


@cache
def _encodings() -> dict[str, str]:
    where = Path(sysconfig.get_paths()["stdlib"]) / "encodings"
    return {f.name: f.read_text(encoding="utf-8", errors="replace") for f in sorted(where.glob("*.py"))}


def _ids(texts: Sequence[str], encode: Callable[[str], list[int]] | None) -> Tensor:
    if encode is None:
        held = bytearray("\n\n".join(texts).encode())
        return torch.frombuffer(held, dtype=torch.uint8).long() if held else torch.empty(0, dtype=torch.long)
    # Part by part: a text of many megabytes has many times its size of tokens.
    parts = [torch.tensor(encode(part), dtype=torch.long) for text in texts for part in cut(text, MOST_CHARACTERS)]
    return torch.cat(parts)
