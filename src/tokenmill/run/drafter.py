"""The model behind a draft: a second one, or the first layers of the same. It reads a draft level by level."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tokenmill.errors import ModelError, SpecError
from tokenmill.method import Method, Recipe, lineage, method
from tokenmill.models.apply import Engine
from tokenmill.models.architectures import context_of
from tokenmill.models.cache import MillCache
from tokenmill.ops.trees import above
from tokenmill.run.session import Session
from tokenmill.types import Depth, Step, Tree


@method(verb="skip", title="")
def shallow(step: Step, *, layers: int = 8) -> Depth:
    """The first layers of every pass."""
    return Depth(tuple(range(layers)), fill="missing")


class Drafter:
    """A model with a cache that follows the text: asked about nodes of a growing draft, it reads them.

    Nodes wait in its cache until the text has gone on; those that came true stay, the others leave. Its table may have
    fewer rows than the `vocabulary` of the model that it drafts for, or more: it guesses no token that only one of
    them has, and reads one that it lacks as the last one it has.
    """

    def __init__(self, session: Session, read: int, vocabulary: int | None = None):
        self.session = session
        self.limit = context_of(session.model) or math.inf  # tokens that it can read
        self._rows = table_rows(session.model)
        self._vocabulary = vocabulary or self._rows
        self._read = read  # tokens of the text its cache holds
        self._slots: dict[tuple[int, int], int] = {}  # (slot of the parent, token) -> slot; -1: below the root
        self._root = torch.empty(0)
        self._slot_of: dict[int, int] = {-1: -1}  # node of the growing draft -> slot
        self._lines: list[list[int]] = []  # of each slot: the slots on its way from the root, its own last

    def follow(self, context: list[int]) -> None:
        """Take in what the text has become; the logits after its last token are then known."""
        line: list[int] = []
        new, at = [min(token, self._rows - 1) for token in context[self._read :]], -1
        while len(line) < len(new) - 1 and (at, new[len(line)]) in self._slots:
            at = self._slots[at, new[len(line)]]
            line.append(at)
        if self._slots:
            self.session.accept(line)
        ids = torch.tensor([new[len(line) :]], device=self.session.device)
        self._root = self.session.read(ids)[0, : self._vocabulary]  # (V,)
        self._read = len(context)
        self._slots, self._slot_of, self._lines = {}, {-1: -1}, []

    def __call__(self, tree: Tree, at: Sequence[int]) -> Tensor:
        """The logits after these nodes (M, V); what lies above them was asked about before."""
        new = [node for node in at if node not in self._slot_of]
        if new:
            first = len(self._lines)
            for node in new:
                above, token = self._slot_of[tree.parents[node]], min(tree.tokens[node], self._rows - 1)
                slot = self._slot_of[node] = self._slots[above, token] = len(self._lines)
                self._lines.append([*(self._lines[above] if above >= 0 else ()), slot])
            lines = self._lines[first:]
            sees = torch.zeros(len(new), len(self._lines), dtype=torch.bool)
            for row, line in enumerate(lines):
                sees[row, line] = True
            device = self.session.device
            tokens = torch.tensor([tree.tokens[node] for node in new], device=device).clamp(max=self._rows - 1)
            levels = torch.tensor([len(line) - 1 for line in lines], device=device)
            read = self.session.verify(tokens, levels, sees.to(device))[:, : self._vocabulary]
        known = {node: read[row] for row, node in enumerate(new)} | {-1: self._root}
        return torch.stack([known[node] for node in at])


class Ladder:
    """The model's own layers, climbed by the nodes of a growing draft as far as they are asked about.

    A node that is asked about at an exit takes the nodes above it along, where they have not been there. What they
    leave in the cache is dropped before the draft is checked.
    """

    def __init__(self, session: Session, exits: Sequence[int]):
        self.session = session
        self.rungs = [range(a + 1, b + 1) for a, b in pairwise((-1, *exits))]
        self.states: list[dict[int, Tensor]] = [{} for _ in exits]  # a rung: node -> (E,), in the order of climbing
        self.root = -1  # the newest token

    def __call__(self, tree: Tree, at: Sequence[int], rung: int) -> Tensor:
        """The states (M, E) of these nodes at an exit."""
        self._climb(tree, at, rung)
        return torch.stack([self.states[rung][node] for node in at])

    def _climb(self, tree: Tree, at: Sequence[int], rung: int) -> None:
        known = self.states[rung]
        new = [node for node in above(tree, at) if node not in known]
        if not new:
            return
        cache, engine, device = self.session.cache, self.session._engine, self.session.device
        assert cache is not None
        assert cache.seen is not None
        assert engine is not None
        lines = {node: _line(tree, node) for node in new}
        levels = torch.tensor([len(lines[node]) - 1 for node in new], device=device)
        if rung:
            self._climb(tree, new, rung - 1)
            states = torch.stack([self.states[rung - 1][node] for node in new])
        else:
            tokens = torch.tensor([[self.root if n < 0 else tree.tokens[n] for n in new]], device=device)
            states = engine.decoder.embed(tokens, cache.seen[:, None] + levels)[0]
        order = [*known, *new]
        sees = torch.tensor([[n in lines[node] for n in order] for node in new], device=device)
        states = engine.through(cache, self.rungs[rung], states, levels, sees)
        known.update(zip(new, states, strict=True))

    @contextmanager
    def below(self, root: int) -> Iterator[None]:
        """While a draft grows below the newest token; then everything leaves the cache again."""
        self.root = root
        try:
            yield
        finally:
            assert self.session.cache is not None
            for rung, known in zip(self.rungs, self.states, strict=True):
                Engine.drop(self.session.cache, rung, len(known))
                known.clear()


def _line(tree: Tree, node: int) -> list[int]:
    """A node and the nodes above it, the root included."""
    line = [node]
    while node >= 0:
        node = tree.parents[node]
        line.append(node)
    return line


def drafters(draft: Method) -> list[Method]:
    """The methods behind a draft that read with a model of their own."""
    return [m for m in lineage(draft) if "drafter" in m.card.needs]


@contextmanager
def engaged(source: Method, session: Session, prompt: list[int], tokenizer: Any, assistant: Any) -> Iterator[Drafter]:
    """A drafter for a text whose prompt the main session has read."""
    if "layers" in source.knobs:
        yield Drafter(_shallow(session, source), len(prompt))
        return
    model = second_model(source, session.model, tokenizer, assistant)
    own = Session(model)
    if model is session.model:  # under the engine already
        own._engine = session._engine
    with own.engaged():
        yield Drafter(own, 0, table_rows(session.model))


def second_model(method: Method, model: Any, tokenizer: Any, assistant: Any = None) -> Any:
    """The model that `method` names beside `model`: `assistant`, or the one its knob `model` says."""
    found, theirs = (assistant, None) if assistant is not None else _second(method.knobs["model"])
    _same_vocabulary(model, found, tokenizer, theirs, method)
    return found


def _shallow(session: Session, source: Method) -> Session:
    """The same model under the same engine, with a copy of its first layers' cache."""
    layers, count = source.knobs["layers"], len(session.cache.stores) if session.cache is not None else 0
    if layers >= count:
        raise SpecError(f"{source!r}: layers must be fewer than the model's {count}")
    recipe = Recipe((shallow(layers=layers),))
    out = Session(session.model, recipe)
    assert session.cache is not None
    cache = MillCache(recipe, count)
    cache.stores[:layers] = [store.copy() for store in session.cache.stores[:layers]]
    cache.columns, cache.seen, cache.shift = session.cache.columns, session.cache.seen, session.cache.shift[:layers]
    out.cache, out._engine = cache, session._engine
    return out


@lru_cache(maxsize=2)
def _second(name: str) -> tuple[Any, Any]:
    if not name:
        raise SpecError(
            "draft_model needs a model to draft with: draft_model(model='name or folder'), or generate(assistant=model)"
        )
    from tokenmill.models.load import load

    return load(name)


def table_rows(model: Any) -> int:
    """Tokens that a model has an embedding for; tables are padded, so a tokenizer may have fewer."""
    return model.get_input_embeddings().weight.shape[0]


def _same_vocabulary(model: Any, other: Any, tokenizer: Any, theirs: Any, source: Method) -> None:
    """Refuse a second model whose tokens mean other text. Tables of two sizes do not prove that: see `table_rows`."""
    if tokenizer is not None and theirs is not None:
        text = {number: token for token, number in theirs.get_vocab().items()}
        wrong = [n for token, n in tokenizer.get_vocab().items() if text.get(n, token) != token]
        if wrong:
            raise ModelError(
                f"{source!r} names a model with another tokenizer: {len(wrong)} of its tokens mean other text, "
                f"such as {text[min(wrong)]!r}; the two must share a tokenizer"
            )
        return
    sizes = [table_rows(model), table_rows(other)]
    if sizes[0] != sizes[1] and (tokenizer is None or max(tokenizer.get_vocab().values()) >= min(sizes)):
        raise ModelError(
            f"{source!r} names a model with a vocabulary of {sizes[1]} tokens and the model has {sizes[0]}; "
            + ("the two must share a tokenizer" if tokenizer else "give the tokenizer that they share")
        )
