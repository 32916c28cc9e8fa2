"""Who runs a model's forward: one record per decoder, shared by all threads, recipes and loops that use it.

Two things of a model are borrowed, and both go back by themselves:

- the decoder's `forward`, while somebody is inside `applied`. A dispatcher stands there and looks up, at every call,
  which recipe the caller is under. Contexts may end in any order, in any thread: the forward that was there before
  the first one is put back when the last one ends.
- the name of the attention function in the configuration, only during a pass of the engine. One pass runs at a time.
  A forward of the model's own that another thread runs meanwhile finds the attention it would have found anyway.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from functools import update_wrapper
from itertools import count
from typing import Any

from torch import nn
from transformers import AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tokenmill.errors import ModelError, RecipeError

NAME = "tokenmill"

_entered: ContextVar[tuple[int, ...]] = ContextVar("tokenmill_entered", default=())  # tickets of this thread or task
_pass = threading.local()  # .depth: passes of the engine that this thread is in
_names: dict[int, str] = {}  # id of a configuration -> the attention it names outside of a pass
_owners: weakref.WeakKeyDictionary[nn.Module, Owner] = weakref.WeakKeyDictionary()
_guard = threading.RLock()  # of the tables; nothing else is waited for while it is locked
_tickets = count()
_open: set[int] = set()  # tickets of contexts that have not ended


class _Dispatcher:
    """Stands in for a decoder's forward."""

    def __init__(self, owner: Owner, forward: Any):
        self.owner, self.forward = owner, forward
        update_wrapper(self, forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        engine = self.owner.engine()
        return self.forward(*args, **kwargs) if engine is None else engine.forward(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the model is under no recipe: it gets the forward behind this one, bound to itself."""
        return deepcopy(self.forward, memo)

    def __reduce__(self) -> Any:
        raise ModelError("a model under a recipe cannot be pickled; leave tokenmill.applied first")


def behind_dispatcher(forward: Any) -> Any:
    """What a decoder has in place of its class's forward, whether or not it is under a recipe; None for nothing."""
    return forward.owner.original if isinstance(forward, _Dispatcher) else forward


class Owner:
    """The recipes that one decoder is under, and its lock."""

    def __init__(self) -> None:
        self.passes = threading.RLock()  # one pass at a time
        self.depth = 0  # passes under way in the thread that has the lock
        self.engines: dict[int, tuple[Any, tuple[int, ...], bool]] = {}  # ticket -> engine, tickets outside it, public
        self.dispatcher: Any = None  # what stands in for the decoder's forward
        self.original: Any = None  # the decoder's forward in its __dict__ before, if there was one

    def engine(self) -> Any:
        """The engine that serves whoever calls: of the newest context that this thread or task has entered.

        A thread that has entered none runs under the recipe of the others' `applied`. None: the model's own forward.
        Raises RecipeError if several threads hold it under recipes of their own and the caller under none.
        """
        with _guard:
            tickets = set(_entered.get())
            entered = [ticket for ticket in self.engines if ticket in tickets]
            if entered:
                return self.engines[entered[-1]][0]
            public = [ticket for ticket, (_, _, shared) in self.engines.items() if shared]
            outer = {ticket for _, outside, _ in self.engines.values() for ticket in outside}
            inner = [ticket for ticket in public if ticket not in outer]
            if len(inner) > 1:
                recipes = " and ".join(repr(self.engines[ticket][0].recipe) for ticket in inner)
                raise RecipeError(
                    f"several threads hold this model under recipes of their own ({recipes}) and this one under none; "
                    "call the model in a thread that has entered tokenmill.applied, or after the others have left it"
                )
            return self.engines[inner[0]][0] if inner else None

    @contextmanager
    def serving(self, base: nn.Module, engine: Any, *, public: bool) -> Iterator[None]:
        """Calls of the decoder run on this engine; those of other threads and tasks too, if `public`."""
        ticket = next(_tickets)
        try:
            with _guard:
                if not self.engines:
                    self._install(base)
                _open.add(ticket)
                outside = tuple(t for t in _entered.get() if t in _open)
                self.engines[ticket] = engine, outside, public
                _entered.set((*outside, ticket))
            yield
        finally:
            with _guard:
                _open.discard(ticket)
                self.engines.pop(ticket, None)
                _entered.set(tuple(t for t in _entered.get() if t in _open))
                if not self.engines:
                    self._remove(base)

    def _install(self, base: nn.Module) -> None:
        self.original = base.__dict__.get("forward")
        self.dispatcher = base.forward = _Dispatcher(self, base.forward)

    def _remove(self, base: nn.Module) -> None:
        """Put back what was there, unless somebody has wrapped the forward since: then ours passes calls on."""
        if self.dispatcher is None or base.__dict__.get("forward") is not self.dispatcher:
            return
        if self.original is None:
            del base.forward
        else:
            base.forward = self.original
        self.dispatcher = self.original = None

    @contextmanager
    def walking(self, configs: tuple[Any, ...]) -> Iterator[None]:
        """Around a pass: layers of these configurations hand their attention to the engine. Other passes wait."""
        with self.passes:
            if not self.depth:
                for config in configs:
                    _remember(config)
            self.depth += 1
            _pass.depth = getattr(_pass, "depth", 0) + 1
            try:
                for config in configs:
                    config._attn_implementation_internal = NAME
                yield
            finally:
                _pass.depth -= 1
                self.depth -= 1
                if not self.depth:
                    for config in configs:
                        config._attn_implementation_internal = _names[id(config)]


@contextmanager
def mode(model: nn.Module, training: bool) -> Iterator[None]:
    """The model in train or in eval mode. Afterwards each of its modules is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, value in modes:
            module.training = value


def owner_of(base: nn.Module) -> Owner:
    """The record of a decoder; it lives as long as the decoder."""
    with _guard:
        if base not in _owners:
            _owners[base] = Owner()
        return _owners[base]


def configs_of(base: Any, layers: list[nn.Module]) -> tuple[Any, ...]:
    """The configurations in which a decoder's layers look up their attention."""
    found = [base.config, *(getattr(module, "config", None) for layer in layers for module in layer.modules())]
    return tuple({id(c): c for c in found if hasattr(c, "_attn_implementation_internal")}.values())


def _remember(config: Any) -> None:
    if id(config) not in _names:
        weakref.finalize(config, _names.pop, id(config), None)
    if (name := config._attn_implementation_internal) != NAME:
        _names[id(config)] = name


def in_pass() -> bool:
    """Whether this thread is inside a pass of the engine."""
    return getattr(_pass, "depth", 0) > 0


def attention_outside(module: Any) -> Callable[..., Any]:
    """The attention function that a module would call if no thread were in a pass of the engine."""
    name = _names.get(id(module.config)) or "sdpa"
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)


def _mask(*args: Any, config: Any = None, **kwargs: Any) -> Any:
    """The mask that goes with `attention_outside`. The engine makes its own, and no pass of it comes here."""
    make = AttentionMaskInterface().get(_names.get(id(config)) or "sdpa")
    return None if make is None else make(*args, config=config, **kwargs)


AttentionMaskInterface.register(NAME, _mask)
