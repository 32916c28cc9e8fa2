"""A model that is adapted as its texts grow: before each pass a method says how its adapters are mixed, row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tokenmill.method import Method
from tokenmill.models.adapters import attached
from tokenmill.models.architectures import decoder_of
from tokenmill.models.trained import learned
from tokenmill.types import Coming

Told = Callable[[Tensor, Tensor | None], None]


@contextmanager
def adapting(method: Method | None, model: Any) -> Iterator[Told | None]:
    """The model with the method's adapters. What is given must be told of ids (B, Q), and which are real, first.

    Raises UntrainedError if nobody has trained them, ModelError for a model that cannot have them.
    """
    if method is None:
        yield None
        return
    taught = learned(method, model)
    state: Any = None
    with attached(decoder_of(model), taught.parts) as mixer:

        def tell(ids: Tensor, valid: Tensor | None) -> None:
            nonlocal state
            with torch.no_grad():
                embedded = taught.embed(ids.to(model.device))
                real = torch.ones_like(ids, dtype=torch.bool) if valid is None else valid.bool()
                weights, state = method(Coming(embedded, real.to(embedded.device)), state, taught)
            mixer.weights = weights[:, None]  # (B, 1, A)

        yield tell
