"""What the frozen model under a learned part says about text. Rows that are trained on often are read once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokenmill.method import Method
from tokenmill.models.above import above, whole_cache
from tokenmill.models.adapters import adapted
from tokenmill.models.architectures import CACHE, decoder_of, head_of
from tokenmill.models.trained import watched
from tokenmill.run.corpus import Corpus, Tasks
from tokenmill.types import Batch, Frozen

ROOM = 2 << 30  # bytes that remembered states may take

Said = tuple[Tensor, Tensor]  # a model's last states over a text (N, E), in 16 bits, and its likeliest next tokens (N,)


def read(
    model: Any, method: Method, ids: Tensor, progress: float = 1.0, second: Any = None, tasks: Tensor | None = None
) -> Batch:
    """What the frozen model says about a batch, and a second one; without a model, the ids alone."""
    if model is None:
        return Batch(ids, progress)
    wanted = watched(method, model)
    held = whole_cache() if "above" in method.card.needs else None
    with torch.no_grad():
        told: Any = None
        if "tasks" not in method.card.needs:  # adapters have the model read it with them in its layers
            told = model.base_model(
                input_ids=ids, **{CACHE: held}, use_cache=held is not None, output_hidden_states=bool(wanted)
            )
        other = None if second is None else second(input_ids=ids.to(second.device)).logits.to(ids.device)
    states = {layer: told.hidden_states[layer + 1] for layer in wanted}
    hidden = None if told is None else told.last_hidden_state
    frozen = _frozen(model, method, ids, hidden, held=held, second=other)
    return Batch(ids, progress, states, frozen, None if tasks is None else tasks.to(ids.device))


def _frozen(
    model: Any, method: Method, ids: Tensor, hidden: Tensor | None, *, held: Any = None, second: Tensor | None = None,
    likeliest: Tensor | None = None,
) -> Frozen:  # fmt: skip
    def embed(ids: Tensor) -> Tensor:
        with torch.no_grad():
            return model.get_input_embeddings()(ids)

    def again(ids: Tensor) -> Tensor:
        with torch.no_grad():
            return model.base_model(input_ids=ids, use_cache=False).last_hidden_state

    head, words = head_of(model), method.knobs.get("words")
    return Frozen(
        hidden, head, head if words is None else head_of(model, words), embed,
        decoder_of(model).final_norm, again, partial(above, model, held), partial(adapted, model, ids), second,
        likeliest,
    )  # fmt: skip


@dataclass(frozen=True)
class _Row:
    """A row of text, and what the model says about it."""

    ids: Tensor  # (T,)
    hidden: Tensor  # (T, E) in 16 bits, as are all states
    likeliest: Tensor  # (T,)
    states: dict[int, Tensor]


class Reader:
    """The batches of a training.

    Where a method needs no more of the model than its states, the text is cut into rows, `count` of them are used, and
    a row is read when it is first met. The model's pass is most of a step's work, so a part then learns several times
    as much in the same time. Each row is read alone: what the model says about it does not depend on which were met
    before, so a resumed training gives what it would have given. `told` is what is known already of the whole text.
    """

    def __init__(
        self, method: Method, model: Any, data: Corpus | Tasks, rows: int, length: int, seed: int, second: Any = None,
        device: str = "cpu", told: Said | None = None,
    ):  # fmt: skip
        self.method, self.model, self.data, self.rows, self.length = method, model, data, rows, length
        self.seed, self.second, self.device = seed, second, device
        self.remembers = remembers(method, model, second)
        self.told = told if self.remembers and not watched(method, model) else None
        self.count = self._most() if self.remembers else 0
        self._known: dict[int, _Row] = {}

    def _most(self) -> int:
        """Rows that there are, or that can be remembered."""
        assert isinstance(self.data, Corpus)
        if self.told is not None:
            return max(self.rows, len(self.data.train) // self.length)
        config = self.model.config.get_text_config(decoder=True)
        held = 1 + len(watched(self.method, self.model))
        return max(
            self.rows, min(len(self.data.train) // self.length, ROOM // (2 * held * config.hidden_size * self.length))
        )

    def batch(self, step: int, progress: float) -> Batch:
        if not self.remembers:
            ids = self.data.batch(self.rows, self.length, self.seed, step).to(self.device)
            return read(self.model, self.method, ids, progress, self.second, self.data.labels(self.rows))
        assert isinstance(self.data, Corpus)
        numbers = self.data.in_turn(self.rows, self.length, self.seed, step, self.count)
        dtype = next(self.model.parameters()).dtype
        states: dict[int, Tensor] = {}
        if self.told is not None:
            at = torch.tensor(numbers)[:, None] * self.length + torch.arange(self.length)
            ids, hidden, likeliest = (x[at].to(self.device) for x in (self.data.train, *self.told))
        else:
            known = [self.row(n) for n in numbers]
            ids, hidden, likeliest = (
                torch.stack([getattr(row, x) for row in known]) for x in ("ids", "hidden", "likeliest")
            )
            states = {layer: torch.stack([row.states[layer] for row in known]).to(dtype) for layer in known[0].states}
        frozen = _frozen(self.model, self.method, ids, hidden.to(dtype), likeliest=likeliest)
        return Batch(ids, progress, states, frozen)

    def row(self, number: int) -> _Row:
        if number not in self._known:
            assert isinstance(self.data, Corpus)
            ids = self.data.row(number, self.length).to(self.device)
            said = read(self.model, self.method, ids[None])
            states = {layer: x[0].to(torch.bfloat16) for layer, x in said.states.items()}  # some exceed float16
            self._known[number] = _Row(ids, said.hidden[0].half(), said.likeliest[0], states)
        return self._known[number]


def remembers(method: Method, model: Any, second: Any = None) -> bool:
    """Whether states and likeliest tokens are all that a method learns from."""
    return model is not None and second is None and not {"above", "tasks"} & set(method.card.needs)
