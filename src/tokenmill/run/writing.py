"""A text under way: what a search method may do to it, and how a prompt's end is written again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from tokenmill.errors import InputError
from tokenmill.method import Method
from tokenmill.models.architectures import context_of, head_of
from tokenmill.ops.spelling import spelling
from tokenmill.ops.text import continuation_ids, spelled_text
from tokenmill.run.choose import Chooser
from tokenmill.run.session import Session


class Text:
    """`types.Writing`, on a session of its own."""

    def __init__(
        self, session: Session, prompt: Sequence[int], chooser: Chooser, row: int, tokenizer: Any,
        ends: frozenset[int], room: int, chunk: int | None = None,
        reward: Callable[[int, list[int]], float] | None = None,
    ):  # fmt: skip
        self.session, self.chooser, self.row, self.tokenizer = session, chooser, row, tokenizer
        self.ends, self.room, self.generator = ends, room, chooser.generator(row)
        self.reward = None if reward is None else partial(_worth, reward, row)
        self.prompt, hidden = list(prompt), []
        pieces = torch.tensor([self.prompt]).split(chunk or len(prompt), 1)
        for piece in pieces:
            self.logits = session.read(piece)  # (1, V)
            hidden.append(session.hidden())
        self.hidden = torch.cat(hidden, 1)  # (1, T, E)
        self._looked: tuple[Tensor, Tensor] | None = None
        self._limit = context_of(session.model) or math.inf

    @property
    def state(self) -> Tensor:
        return self.session.hidden()[:, -1]

    def probabilities(self, logits: Tensor) -> Tensor:
        return self.chooser.probabilities(logits)

    def choose(self, logits: Tensor) -> Tensor:
        return self.chooser(logits, self.row)

    def read(self, tokens: Sequence[int]) -> None:
        self.logits = self.session.read(torch.tensor(list(tokens))[:, None])

    def go_on(self, token: int) -> None:
        """Read a token before the search begins: it counts as the prompt's."""
        self.read([token])
        self.prompt.append(token)
        self.hidden = torch.cat([self.hidden, self.session.hidden()], 1)

    def follow(self, tokens: Sequence[int]) -> Tensor:
        logits = self.session.read(torch.tensor([list(tokens)]), all_logits=True)[0]
        self.logits = logits[-1:]
        return logits

    @cached_property
    def head(self) -> Callable[[Tensor], Tensor]:
        return head_of(self.session.model)

    def rows(self, index: Sequence[int]) -> None:
        if list(index) != list(range(len(self.logits))):
            at = torch.tensor(list(index), device=self.logits.device)
            assert self.session.cache is not None
            self.session.cache.reorder_cache(at)
            self.logits = self.logits[at]

    def saved(self, row: int) -> Any:
        assert self.session.cache is not None
        return self.session.cache.row(row), self.logits[row : row + 1]

    def restore(self, saved: Any) -> None:
        self.session.cache, self.logits = saved

    def look(self, tokens: Tensor) -> Tensor:
        count = len(tokens)
        alone = torch.eye(count, dtype=torch.bool, device=tokens.device)
        logits = self.session.verify(tokens, tokens.new_zeros(count), alone)  # (N, V)
        self._looked = logits, self.session.hidden()[0]
        return self._looked[1]

    def take(self, which: int) -> None:
        assert self._looked is not None
        logits, hidden = self._looked
        self.session.accept([which])
        self.logits, self.hidden, self._looked = logits[which : which + 1], hidden[which][None, None], None

    def append(self, text: str) -> bool:
        ids = continuation_ids(self.tokenizer, text)
        assert self.session.cache is not None
        assert self.session.cache.seen is not None
        if int(self.session.cache.seen.max()) + len(ids) + self.room > self._limit:
            return False
        self.logits = self.session.read(torch.tensor([ids]))
        return True

    def text(self, ids: Sequence[int]) -> str:
        return spelled_text(self.tokenizer, [i for i in ids if i not in self.ends], self.prompt)

    def spelled(self, texts: Sequence[str]) -> frozenset[int]:
        known = (continuation_ids(self.tokenizer, text) for text in texts)
        return frozenset(ids[0] for ids in known if len(ids) == 1)


def _worth(reward: Callable[[int, list[int]], float], row: int, ids: list[int]) -> float:
    worth = float(reward(row, list(ids)))
    if not math.isfinite(worth):
        raise InputError(f"reward gave {worth} for row {row}; it must be a finite number, the higher the better")
    return worth


class Mending:
    """The ends of prompts that are dropped and written again, a row each."""

    def __init__(self, method: Method, tokenizer: Any, rows: list[list[int]]):
        if tokenizer is None:
            raise InputError(f"{method.name} needs to know how tokens are spelled, and there is no tokenizer")
        self.method, self.vocabulary = method, spelling(tokenizer)
        self.rows, self.rest = map(list, zip(*(self._cut(row, method.back) for row in rows), strict=True))
        self.lead = list(self.rest)  # what was dropped; `rest` is what of it has not come again yet

    def _cut(self, row: list[int], back: int) -> tuple[list[int], bytes]:
        end = len(row)
        while end > 1 and len(row) - end < back and row[end - 1] not in self.vocabulary.special:
            end -= 1
        return row[:end], self.vocabulary.text(row[end:])

    def __call__(self, logits: Tensor) -> Tensor:
        """(B, V) logits with what does not fit at -inf."""
        return self.method(logits, self.rest, self.vocabulary) if any(self.rest) else logits

    def of(self, row: int, logits: Tensor) -> Tensor:
        """The same for one row alone."""
        return self.method(logits, self.rest[row : row + 1], self.vocabulary)

    def took(self, row: int, token: int) -> bool:
        """Account for a token that came; True if it lies wholly inside what was dropped, and so is not new."""
        text, rest = self.vocabulary.tokens.get(token, b""), self.rest[row]
        self.rest[row] = rest[len(text) :]
        return bool(rest) and len(text) <= len(rest)
