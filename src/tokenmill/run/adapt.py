"""A model that is adapted as its texts grow: before each pass a method says how its adapters are mixed, row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from tokenmill.method import Method
from tokenmill.models.adapters import attached
from tokenmill.models.architectures import decoder_of, device_of
from tokenmill.models.trained import learned
from tokenmill.types import Coming

Told = Callable[[Tensor, Tensor | None], AbstractContextManager[None]]


@contextmanager
def adapting(method: Method | None, model: Any) -> Iterator[Told | None]:
    """The model with the method's adapters, which act inside of what this gives: `with tell(ids, valid): ...`.

    ids (B, Q) are what is read in there, `valid` (B, Q) which of them are real.

    Raises UntrainedError if nobody has trained them, ModelError for a model that cannot have them.
    """
    if method is None:
        yield None
        return
    taught = learned(method, model)
    state: Any = None
    with attached(decoder_of(model), taught.parts) as mixer:

        @contextmanager
        def tell(ids: Tensor, valid: Tensor | None) -> Iterator[None]:
            nonlocal state
            with torch.no_grad():
                embedded = taught.embed(ids.to(device_of(model)))
                real = torch.ones_like(ids, dtype=torch.bool) if valid is None else valid.bool()
                weights, state = method(Coming(embedded, real.to(embedded.device)), state, taught)
            mixer.weights = weights[:, None]  # (B, 1, A)
            try:
                yield
            finally:
                mixer.weights = None

        yield tell
