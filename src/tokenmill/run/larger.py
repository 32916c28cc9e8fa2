"""A larger model beside the one that writes: its cache follows the text at a distance, and catches up when asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenmill.errors import SpecError
from tokenmill.method import Method, Recipe
from tokenmill.models.architectures import decoder_of
from tokenmill.models.cache import MillCache
from tokenmill.models.trained import watched
from tokenmill.run.drafter import second_model, shallow, table_rows
from tokenmill.run.session import Session


class Larger:
    """Asked with the tokens that came since the last time, it says what follows the text."""

    def __init__(self, session: Session, writer: Session, text: Sequence[int]):
        self.session, self.writer, self.missed = session, writer, list(text)
        writer.beside = session

    def __call__(self, new: Sequence[int]) -> Tensor:
        """(1, V)."""
        # One table may be padded further than the other.
        rows, vocabulary = table_rows(self.session.model), table_rows(self.writer.model)
        ids = torch.tensor([[*self.missed, *new]], device=self.session.device).clamp(max=rows - 1)
        logits = self.session.read(ids)[:, :vocabulary]
        logits = F.pad(logits, (0, vocabulary - logits.shape[1]), value=-torch.inf)
        self.missed = []
        self.writer._stats.asked += 1
        return logits


def writing_part(method: Method, model: Any, recipe: Recipe) -> Recipe:
    """The recipe under which a model's first layers write, if it is itself the larger one."""
    if method.knobs["model"]:
        return recipe
    layers, count = method.knobs["layers"], len(decoder_of(model).layers)
    if layers is not None and layers >= count:
        raise SpecError(f"{method!r}: layers must be fewer than the model's {count}")
    return recipe + Recipe((shallow(layers=watched(method, model)[0] + 1),))


def larger_model(method: Method, model: Any, tokenizer: Any, assistant: Any = None) -> Any:
    """The one that is asked: the model that the method names, or all of the one that is given."""
    return second_model(method, model, tokenizer, assistant) if method.knobs["model"] else model


@contextmanager
def beside(model: Any, recipe: Recipe, writer: Session, text: Sequence[int]) -> Iterator[Larger]:
    """The larger model for a text that `writer` has read."""
    own = Session(model, recipe)
    if model is writer.model:  # under the engine already
        own._engine = writer._engine
        own.cache = MillCache(recipe, len(decoder_of(model).layers))
    with own.engaged():
        yield Larger(own, writer, text)
