"""The contract: a method is a function with a card, and its repr is its spec.

    @method(title="...", paper="arXiv:...", year=2024, needs=("keys", "queries"))
    def snapkv(trace: Trace, *, window: int = 32, kernel: int = 5) -> Tensor: ...

    snapkv(window=16)          # the same method with another knob; nothing runs
    snapkv(window=16)(trace)   # runs
    repr(snapkv(window=16))    # 'snapkv(window=16)': a Python expression, a CLI argument, a table label

Positional parameters are what the engine shows a method, keyword-only parameters are its knobs. A method
with a `state` parameter is called at every pass, gets back what it returned last time (None at first) and
returns `(decision, state)`; it keeps nothing itself.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tokenmill import catalog
from tokenmill.errors import RecipeError, SpecError, did_you_mean

# One vocabulary for all knobs: (least, most, least itself excluded?, what it means).
KNOBS: dict[str, tuple[float, float, bool, str]] = {
    "budget": (0.0, 1.0, True, "share of the tokens seen that stays in the cache"),
    "slots": (1, math.inf, False, "number of tokens a head may hold, instead of a share"),
    "sinks": (0, math.inf, False, "first tokens that always stay"),
    "window": (1, math.inf, False, "newest tokens, or newest queries, that are special"),
    "kernel": (1, math.inf, False, "width of a pooling window, in tokens"),
    "bits": (1, 16, False, "bits a stored number"),
    "temperature": (0.0, math.inf, False, "softmax temperature"),
    "depth": (1, math.inf, False, "levels of a draft tree, or layers"),
    "width": (1, math.inf, False, "children of a node"),
    "words": (1, math.inf, False, "guesses are among so many tokens, the first of the vocabulary"),
    "layers": (1, math.inf, False, "layers: the first ones, or those of a small model"),
    "hidden": (1, math.inf, False, "numbers in a token's state, in a small model"),
    "recursions": (1, math.inf, False, "times that the shared layers run at most"),
    "scale": (0.0, math.inf, True, "what a router's weight, or its highest one, is multiplied by"),
    "adapters": (1, math.inf, False, "low-rank additions to the weights, one for each task"),
    "rank": (1, math.inf, False, "rank of a low-rank addition"),
    "target": (0.0, 1.0, False, "share of the tokens that the middlemost layers should run"),
    "rate": (0.0, math.inf, False, "how fast coefficients or states are moved, a step"),
    "enough": (-math.inf, math.inf, False, "reward above which an answer is good enough"),
    "experts": (1, math.inf, False, "feed-forward networks side by side in a layer"),
    "group": (1, math.inf, False, "texts whose tokens are mixed"),
    "cool": (0.0, 1.0, False, "share of the training, its last, over which the temperature falls to 0"),
    "big": (0, math.inf, False, "layers in which a token may take the large module"),
    "nodes": (1, math.inf, False, "nodes of a draft tree"),
    "share": (0.0, 1.0, True, "share of the tokens, or of the probability, that the method acts on"),
    "recent": (0.0, 1.0, False, "share of the tokens kept that goes to the newest ones, whatever their score"),
    "anchors": (1, math.inf, False, "shared tokens a new token is built of"),
    "steps": (1, math.inf, False, "rounds, of questions or of changes, at most"),
    "runs": (1, math.inf, False, "independent repetitions that are averaged"),
    "top": (1, math.inf, False, "how many of the likeliest tokens count"),
    "rationale": (1, math.inf, False, "tokens that are left in place when an explanation is tested"),
    "safeguard": (0.0, 1.0, False, "share of the budget that each head is sure of"),
    "steepness": (1, math.inf, False, "how far layer budgets fall: 1 = not at all"),
    "rise": (0, math.inf, False, "added to the temperature for each token generated"),
    "future": (1, math.inf, False, "places after the text that are looked ahead to"),
    "seed": (0, math.inf, False, "seed of the method's own noise"),
    "alpha": (0.0, 1.0, True, "decay from one generated token to the next"),
    "core": (0.0, 1.0, True, "share of the layers that always run"),
    "retention": (0.0, 1.0, False, "share of the tokens that stay apart: those whose directions differ most"),
    "matrices": (0, math.inf, False, "rows of an output matrix that each head has of its own; 0 = none"),
    "low": (1, 16, False, "bits a stored number of a token that matters less"),
    "ngram": (1, math.inf, False, "longest run of tokens that is looked up"),
    "probes": (0.0, 1.0, True, "share of the queries that is asked"),
    "stages": (1, math.inf, False, "layers at which tokens are dropped"),
    "start": (0.0, 1.0, False, "share of the depth at which the method begins"),
    "t": (0.0, 1.0, False, "how far from one direction to the other"),
    "back": (1, math.inf, False, "tokens at the prompt's end that are dropped and written again"),
    "penalty": (0.0, 1.0, False, "weight of a penalty; the probability has the rest"),
    "beams": (1, math.inf, False, "beginnings of a text that are followed at a time"),
    "length_penalty": (-math.inf, math.inf, False, "power of the length that a text's log probability is divided by"),
    "trials": (1, math.inf, False, "continuations that are drawn at most, to keep one"),
    "calm": (0.0, math.inf, False, "entropy in nats up to which one trial will do"),
    "unsure": (0.0, math.inf, True, "entropy in nats from which all trials are made"),
    "answers": (1, math.inf, False, "answers that are written, as long as the context has room"),
    "each": (1, math.inf, False, "answers begun at a time, before what was found is shown to the model"),
    "epsilon": (0.0, 1.0, True, "probability that is plausible enough whatever the entropy"),
    "delta": (0.0, math.inf, True, "probability that is plausible, relative to exp(-entropy)"),
    "threshold": (0.0, 1.0, False, "confidence, or probability, from which on the method acts"),
    "stride": (1, math.inf, False, "layers, or tokens, from one question to the next"),
    "decay": (0.0, math.inf, False, "how fast the threshold falls while generating: 0 = not at all"),
    "length": (1, math.inf, False, "tokens at most, or generated tokens over which a schedule runs"),
    "warmup": (0, math.inf, False, "first layers that always run"),
    "least": (0.0, 1.0, True, "share of the layers that runs at the end of a schedule"),
}

# Knobs that say the same thing twice.
CONTRADICTIONS = (("budget", "slots"), ("layers", "model"))

# Every score can be asked to keep its top share, so every score takes these too.
SPENDING: dict[str, Any] = {"budget": None, "slots": None}

# A draft's source alone grows a tree, so it takes the size of one.
GROWING: dict[str, Any] = {"nodes": None, "depth": None}

# What a card may ask for.
NEEDS = {
    "queries": "the newest queries: as many as the knob `window` says (None: all of the pass)",
    "all_queries": "every query of the pass, at every pass",
    "rotary": "rotary positions (refused on models with learned ones)",
    "larger": "a larger model that is asked for some of the tokens",
    "cost": "what a pass costs by width on this machine, measured once",
    "drafter": "a second model, or part of the first, that reads what is drafted",
    "hidden": "the model's final hidden states of what was verified, or read",
    "prompt": "states and logits of the prompt's newest 256 tokens, not of 16",
    "above": "the layers above a state, run on states that no token of the text has",
    "blanks": "learned placeholders behind every draft, whose predictions are next time's guesses",
    "climb": "the model's own layers, on what is drafted, only as far up as they are asked for",
    "siblings": "several tokens that may come next, read in one pass",
    "chooses": "tokens are chosen one by one, so temperature and warpers of logits apply",
    "reward": "what a text is worth: the caller says, or the model by its probability",
    "draws": "tokens are drawn, at temperature 1 if nothing else is said",
    "tokenizer": "the model's tokenizer: what comes out depends on how tokens are spelled",
    "tasks": "texts of several tasks to train on, and the layers of the model with something added to them",
}


@dataclass(frozen=True)
class Card:
    """What a method says about itself. Every field gates a check or fills a column."""

    title: str  # the paper's title; "" for a baseline that has none
    paper: str | None = None
    year: int | None = None
    needs: tuple[str, ...] = ()  # beyond keys, values, positions: see NEEDS
    every: int = 64  # while generating: decide again after this many new tokens
    acts: str = "cache"  # "cache": evicts; "attend": chooses what each pass attends to; "walk": drops between layers;
    #   "exit": lets rows leave a pass between layers
    nested: str = ""  # why a larger budget need not keep a superset; "" = it must
    same_as: str = ""  # the method whose decisions these are by definition; "" = none may be
    trains: str = ""  # "part": on top of a frozen model; "model": a small model from scratch; "" = nothing is learned
    lossless: bool = False  # output equals greedy, or the sampling distribution: checked
    role: str = ""  # what a method of a verb with several parts is: see the verb's __init__
    carries: bool = False  # draft: what a source learned from one text serves the next
    tree: str = ""  # draft: the tree that a source grows when none is named


class Method:
    """A function with a card and knobs. Immutable; equal when function and knobs are equal."""

    def __init__(self, fn: Callable[..., Any], card: Card, verb: str, knobs: dict[str, Any] | None = None):
        self.fn, self.card, self.verb, self.name = fn, card, verb, fn.__name__
        signature = inspect.signature(fn)
        self.defaults = {
            p.name: p.default for p in signature.parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY
        }
        self.extra = SPENDING if verb == "score" else GROWING if card.role == "source" else {}  # not the function's own
        self.defaults = {**self.defaults, **self.extra}
        self.stateful = "state" in signature.parameters
        self.given = self._checked(knobs or {})
        self.__doc__ = fn.__doc__ or inspect.getdoc(inspect.getmodule(fn))
        self.__name__, self.__module__, self.__wrapped__ = fn.__name__, fn.__module__, fn

    @property
    def knobs(self) -> dict[str, Any]:
        """Every knob with its value, defaults included."""
        return {**self.defaults, **self.given}

    def __getattr__(self, name: str) -> Any:
        """`m.window` reads a knob."""
        if name in ("defaults", "given") or name.startswith("__"):
            raise AttributeError(name)
        knobs = self.knobs
        if name in knobs:
            return knobs[name]
        raise AttributeError(f"{self.name} has no knob '{name}'; {did_you_mean(name, knobs)}")

    def __call__(self, *shown: Any, **knobs: Any) -> Any:
        """With what it decides about: decide. With knobs only: the same method, those knobs changed."""
        if not shown:
            return Method(self.fn, self.card, self.verb, {**self.given, **knobs})
        own = {k: v for k, v in {**self.knobs, **knobs}.items() if k not in self.extra}
        return self.fn(*shown, **own)

    def __add__(self, other: Method | Recipe) -> Recipe:
        return Recipe((self, *(other.methods if isinstance(other, Recipe) else (other,))))

    def __repr__(self) -> str:
        inside = ", ".join(f"{k}={v!r}" for k, v in self.given.items())
        return f"{self.name}({inside})" if inside else self.name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Method) and (self.fn, self.knobs) == (other.fn, other.knobs)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as where its function is defined, and its knobs."""
        module, path = self.fn.__module__, self.fn.__qualname__
        if getattr(_defined(module, path), "fn", None) is not self.fn:
            raise SpecError(f"{self.name} cannot be pickled: it is not found as {module}.{path}; define it at the top "
                            "of a module")  # fmt: skip
        return _pickled, (module, path, self.given)

    def __deepcopy__(self, memo: dict[int, Any]) -> Method:
        return self

    def _checked(self, knobs: dict[str, Any]) -> dict[str, Any]:
        for name in knobs:
            if name not in self.defaults:
                raise SpecError(f"{self.name} has no knob '{name}'; {did_you_mean(name, self.defaults)}")
        extra = {"budget": float | None, "slots": int | None, "nodes": int | None, "depth": int | None}
        hints = {k: v for k, v in extra.items() if k in self.extra} | typing.get_type_hints(self.fn)
        values = {name: _value(self.name, name, v, hints.get(name)) for name, v in knobs.items()}
        for one, other in CONTRADICTIONS:
            if values.get(one) is not None and values.get(other) is not None:
                raise SpecError(f"{self.name}: {one} and {other} contradict each other; give one of them")
        # Only what differs from the default is part of the spec, in the order of the signature.
        return {n: values[n] for n, default in self.defaults.items() if n in values and values[n] != default}


def _defined(module: str, path: str) -> Any:
    """What a module names so, or None."""
    value: Any = importlib.import_module(module)
    for name in path.split("."):
        value = getattr(value, name, None)
    return value


def _pickled(module: str, path: str, knobs: dict[str, Any]) -> Method:
    """A method that was pickled. Raises SpecError if it is no longer there."""
    found = _defined(module, path)
    if not isinstance(found, Method):
        raise SpecError(f"the pickled method {module}.{path} is no longer there")
    return found(**knobs)


def grown(draft: Method) -> Method:
    """A draft method as one that makes whole drafts: a source alone grows the tree its card names.

    Raises SpecError for a size that this tree does not have.
    """
    if draft.card.role != "source":
        return draft
    size = {k: v for k, v in draft.given.items() if k in GROWING}
    alone = Method(draft.fn, draft.card, draft.verb, {k: v for k, v in draft.given.items() if k not in GROWING})
    return get(draft.card.tree)(source=alone, **size)


def decider(m: Method) -> Method:
    """The method whose card says when an evicting method decides: the score that it spends on, or itself."""
    inner = m.knobs.get("score")
    return inner if isinstance(inner, Method) else m


def lineage(draft: Method) -> Iterator[Method]:
    """A draft method, the source it draws from, and that one's own first source."""
    at: Method | None = draft
    while at is not None:
        yield at
        at = at.knobs.get("source")


def _value(method_name: str, knob: str, value: Any, hint: Any) -> Any:
    allowed = typing.get_args(hint) if typing.get_origin(hint) else (hint,)
    where = f"{method_name}: {knob}"
    if Method in allowed:
        if isinstance(value, str):
            value = parse(value)
        if not isinstance(value, Method):
            raise SpecError(f"{where} takes a method such as snapkv, not {value!r}")
        if knob == "source" and value.card.role != "source":
            raise SpecError(f"{where} takes a source of drafts such as token_recycling, not {value!r}")
        if knob == "score" and value.verb != "score":
            raise SpecError(f"{where} takes a score such as snapkv, not {value!r}, a '{value.verb}' method")
        if knob == "other" and (value.card.role != "source" or value.card.trains or "drafter" in value.card.needs):
            raise SpecError(f"{where} takes a source that needs no model and no training such as prompt_lookup, "
                            f"not {value!r}; a source that does goes first, as source=")  # fmt: skip
        return value
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, tuple | list) or not all(isinstance(v, int) and v > 0 for v in value):
            raise SpecError(f"{where} takes whole numbers above 0 such as (3, 2, 1), not {value!r}")
        return tuple(value)
    if value is None and type(None) in allowed:
        return None
    if isinstance(value, bool) and bool not in allowed and hint is not None:
        raise SpecError(f"{where} takes a number, not {value}")
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    plain = tuple(t for t in allowed if isinstance(t, type) and t in (int, float, str, bool))
    if plain and not isinstance(value, plain):
        raise SpecError(f"{where} takes {' or '.join(t.__name__ for t in plain)}, not {value!r}")
    if knob in KNOBS and isinstance(value, int | float):
        least, most, excluded, meaning = KNOBS[knob]
        if not (least <= value <= most) or (excluded and value == least):
            low = "(" if excluded else "["
            high = "∞)" if most == math.inf else f"{most:g}]"
            raise SpecError(f"{where} must be in {low}{least:g}, {high}, not {value:g} ({meaning})")
    return value


def method(**card: Any) -> Callable[[Callable[..., Any]], Method]:
    """Make a function a method. The verb is the folder it lives in, or `verb=` for one defined elsewhere.

    One defined elsewhere is from then on known to `parse` by its name, unless the package has a method of that name.
    """
    verb = card.pop("verb", None)

    def wrap(fn: Callable[..., Any]) -> Method:
        parts = fn.__module__.split(".")
        where = verb or (parts[-2] if len(parts) > 1 else None)
        if where not in catalog.VERBS:
            raise SpecError(f"{fn.__name__}: say verb=..., one of {', '.join(catalog.VERBS)}")
        made = Method(fn, Card(**card), where)
        if verb is not None and made.name not in catalog.entries():
            REGISTERED[made.name] = made
        return made

    return wrap


# Methods that were defined outside the package, the newest of each name: `parse` finds them by it.
REGISTERED: dict[str, Method] = {}


class Recipe:
    """Methods that work together: `snapkv(budget=0.25) + token_recycling`. At most one of a kind, but for warpers of
    logits, which compose in order: `temperature(temperature=0.8) + top_p(share=0.9)`.
    """

    def __init__(self, methods: tuple[Method, ...]):
        self.methods = methods
        _refuse_impossible(methods)

    def __iter__(self) -> Iterator[Method]:
        return iter(self.methods)

    def __len__(self) -> int:
        return len(self.methods)

    def __add__(self, other: Method | Recipe) -> Recipe:
        return Recipe(self.methods + (other.methods if isinstance(other, Recipe) else (other,)))

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.methods)) or "full"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.methods == other.methods

    def __hash__(self) -> int:
        return hash(self.methods)

    def acts(self, where: str) -> bool:
        """Some method of the recipe acts there: "cache", "attend" or "walk", see Card.acts."""
        return any(m.card.acts == where for m in self.methods if m.verb in ("score", "keep"))

    def get(self, *verbs: str) -> Method | None:
        """The recipe's method of one of these verbs, if it has one. For verbs of several parts: "draft" drafts and
        "rule" checks what was drafted; "final" or "search" ends the choice of a token, "heal" mends the prompt's end,
        "adapt" changes the model as the text goes on.
        """
        return next((m for m in self.methods if _kind(m) in verbs), None)

    def all(self, kind: str) -> tuple[Method, ...]:
        """Every method of a kind that a recipe may have several of, in order: "warp"."""
        return tuple(m for m in self.methods if _kind(m) == kind)


# What acts on a running model; the other verbs have functions of their own.
RUNNABLE = ("score", "keep", "merge", "quantize", "skip", "draft", "choose")


def _kind(m: Method) -> str:
    """What a method decides; a recipe has one of each kind, warpers apart."""
    if m.verb == "choose":
        return m.card.role or "final"
    return "rule" if m.card.role == "rule" else m.verb


KINDS = {
    "rule": "which drafted tokens are accepted",
    "final": "which token is emitted",
    "search": "which token is emitted",
    "heal": "how the prompt's end is mended",
    "adapt": "how the model is adapted",
}


def _refuse_impossible(methods: tuple[Method, ...]) -> None:
    seen: dict[str, Method] = {}
    for m in methods:
        if m.verb not in RUNNABLE:
            raise RecipeError(
                f"{m.name} is a '{m.verb}' method ({catalog.VERBS[m.verb]}); a recipe is made of " + ", ".join(RUNNABLE)
            )
        if m.card.trains == "model":
            raise RecipeError(
                f"{m.name} is a model of its own, trained from scratch, not something done to a finished one; "
                f"run: tokenmill train {m.name}"
            )
        kind = {"score": "keep", "search": "final"}.get(_kind(m), _kind(m))
        if kind in seen and kind != "warp":
            what = KINDS.get(kind) or catalog.VERBS[kind]
            raise RecipeError(f"{seen[kind]!r} and {m!r} both decide {what}; a recipe has one of a kind")
        seen[kind] = m
        if m.verb == "draft":
            grown(m)
        if m.verb == "score" and m.knobs["budget"] is None and m.knobs["slots"] is None:
            raise RecipeError(
                f"{m!r} scores tokens but does not say how many stay; give it a budget: {m.name}(budget=0.25)"
            )
    _refuse_searches(seen)
    keep, merge = seen.get("keep"), seen.get("merge")
    if keep and merge and keep.name != "full":
        raise RecipeError(
            f"{keep!r} and {merge!r}: {merge.name} stores two layers as one, so both must hold the same tokens, "
            f"and {keep.name} chooses layer by layer"
        )
    skip = seen.get("skip")
    if skip and "draft" in seen:
        raise RecipeError(
            f"{skip!r} + {seen['draft']!r}: a draft's tokens are verified in one pass of one depth, and {skip.name} "
            "gives each token a depth of its own, so the text would no longer be what it is without drafting"
        )
    if skip and merge:
        raise RecipeError(
            f"{merge!r} + {skip!r}: {merge.name} stores two layers as one, so both must hold the same tokens, and "
            f"{skip.name} lets tokens pass by layers"
        )
    if skip and skip.card.acts == "exit":
        if keep and keep.card.acts == "attend":
            raise RecipeError(
                f"{keep!r} + {skip!r}: {keep.name} chooses by the queries of a pass, and rows that left it have none"
            )
        other = seen.get("quantize") or (keep if keep and keep.name != "full" else None)
        if other and skip.knobs.get("fill") == "missing":
            raise RecipeError(
                f"{other!r} + {skip!r}: {other.name} decides after so many tokens of a layer, and with fill='missing' "
                f"each row has its own count there; use {skip.name}(fill='carry', …)"
            )
    if merge and seen.get("quantize"):
        raise RecipeError(f"{merge!r} and {seen['quantize']!r} both own how a layer is stored; use one of them")
    if keep and keep.card.acts == "walk":
        for kind, reason in (
            (
                "draft",
                f"verifies several tokens in one pass, and {keep.name} chooses its tokens anew for every single one",
            ),
            ("skip", f"runs fewer layers, and {keep.name} already chooses the layers each token passes"),
            (
                "quantize",
                f"packs tokens once they are read, and {keep.name} may still have to compute them in deeper layers",
            ),
        ):
            if kind in seen:
                raise RecipeError(f"{keep!r} + {seen[kind]!r}: {seen[kind].name} {reason}")
    if keep and keep.card.acts == "attend" and "draft" in seen:
        raise RecipeError(
            f"{keep!r} + {seen['draft']!r}: {keep.name} chooses by the queries of a pass, and a draft's pass has "
            "queries of tokens that may be rejected, so the text would no longer be what it is without drafting"
        )
    for held in (keep, merge, seen.get("quantize")) if "draft" in seen else ():
        if held and held.name != "full" and decider(held).card.every == 1:
            raise RecipeError(
                f"{held!r} + {seen['draft']!r}: {decider(held).name} decides after every token, and a drafted token is "
                "accepted only where nothing was decided before it, so none ever would be; use a method that decides "
                "less often, such as snapkv(budget=0.5), or leave the draft out"
            )
    if keep and keep.knobs.get("renumber") and seen.get("quantize"):
        raise RecipeError(
            f"{keep!r} rotates its keys again at every eviction and {seen['quantize']!r} packs them; "
            f"use {keep.name}(renumber=False, …)"
        )


def _refuse_searches(seen: dict[str, Method]) -> None:
    """What a method that drives the writing by itself, or mends the prompt's end, cannot be combined with."""
    search, draft, heal, keep = seen.get("final"), seen.get("draft"), seen.get("heal"), seen.get("keep")
    adapt, skip = seen.get("adapt"), seen.get("skip")
    if search and search.card.role != "search":
        search = None
    if search and draft:
        raise RecipeError(
            f"{search!r} + {draft!r}: a draft is checked against the one token that comes next, and {search.name} "
            "compares several continuations before it says which; use one of them"
        )
    if heal and draft:
        raise RecipeError(
            f"{heal!r} + {draft!r}: while {heal.name} writes the prompt's end again only some tokens may come, and "
            "drafts are checked without knowing which; use one of them"
        )
    if search and "warp" in seen and "chooses" not in search.card.needs:
        raise RecipeError(
            f"{seen['warp']!r} + {search!r}: {search.name} compares whole texts, so there is no "
            "choice to warp; leave one out"
        )
    for other, reason in (
        (draft, "checks several tokens in one pass"),
        (search, "follows several beginnings of a text, and goes back to earlier ones"),
        (keep if keep and keep.card.acts == "walk" else None, "reads the rows of a batch one by one"),
        (skip if skip and skip.card.acts == "exit" else None, "lets rows of a batch leave in the middle of a pass"),
    ):
        if adapt and other:
            raise RecipeError(
                f"{adapt!r} + {other!r}: {adapt.name} adapts the model to each row's text as it grows by a token at a "
                f"time, and {other.name} {reason}; use one of them"
            )
    if search and "larger" in search.card.needs:
        for other, reason in (
            (skip, "gives each token a depth of its own, and so does a smaller model"),
            (seen.get("merge"), "stores two layers as one, and a model's first layers may be an odd number"),
            (keep if keep and keep.card.acts == "walk" else None, "chooses its tokens anew in every layer"),
        ):
            if other:
                raise RecipeError(
                    f"{other!r} + {search!r}: {search.name} moves between two models' caches, and {other.name} "
                    f"{reason}; use one of them"
                )
    if search and skip and "siblings" in search.card.needs:
        raise RecipeError(
            f"{skip!r} + {search!r}: {search.name} reads several next tokens in one pass of one depth, and {skip.name} "
            "gives each token a depth of its own; use one of them"
        )
    if search and keep and "siblings" in search.card.needs and keep.card.acts in ("walk", "attend"):
        raise RecipeError(
            f"{keep!r} + {search!r}: {search.name} reads several next tokens in one pass, and {keep.name} chooses by "
            "the queries of a pass; use a method that evicts, such as snapkv(budget=0.5)"
        )


def parse(spec: str) -> Method | Recipe:
    """Read a spec: `snapkv`, `adaptive(score=snapkv(window=16), budget=0.25)`, `h2o(budget=0.3) + zip_cache`.

    Raises SpecError for what is not a method, not a knob or out of range, RecipeError for what cannot combine.
    """
    try:
        tree = ast.parse(spec.strip(), mode="eval").body
    except SyntaxError as error:
        if any(sign in spec for sign in (".py:", ".py':", '.py":')):
            raise SpecError(
                f"'{spec}' names a file, which only the command line and tokenmill.compare run; import it and name the "
                "method alone"
            ) from None
        raise SpecError(
            f"cannot read '{spec}': {error.msg}; a spec looks like snapkv(budget=0.25) + token_recycling"
        ) from None
    value = _evaluate(tree, spec)
    if not isinstance(value, Method | Recipe):
        raise SpecError(f"'{spec}' is not a method; a spec looks like snapkv(budget=0.25)")
    return value


def recipe(what: str | Method | Recipe | None) -> Recipe:
    """Anything that names a recipe, as a Recipe; None is the untouched model."""
    if what is None:
        return Recipe(())
    if isinstance(what, str):
        what = parse(what)
    made = what if isinstance(what, Recipe) else Recipe((what,))
    rule = made.get("rule")
    if rule is not None and made.get("draft") is None:
        raise RecipeError(
            f"{rule!r} says which drafted tokens are accepted and nothing drafts any; add a source, as in "
            f"token_recycling + {rule!r}"
        )
    return made


def get(name: str) -> Method:
    """The method of that name with its default knobs: of the package, or one defined elsewhere in this process."""
    if name in REGISTERED:
        return REGISTERED[name]
    entry = catalog.find(name)
    module = importlib.import_module(f"tokenmill.methods.{entry.verb}.{entry.name}")
    return getattr(module, name)


def _evaluate(node: ast.expr, spec: str) -> Any:
    match node:
        case ast.Name(id=name):
            return get(name)
        case ast.Constant(value=value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return tuple(_evaluate(item, spec) for item in items)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            one, other = _evaluate(left, spec), _evaluate(right, spec)
            if isinstance(one, Method | Recipe) and isinstance(other, Method | Recipe):
                return one + other
        case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords):
            return get(name)(**{k.arg: _evaluate(k.value, spec) for k in keywords if k.arg})
        case ast.Call(func=ast.Name(id=name)):
            raise SpecError(f"{name}: knobs are given by name, as in {name}(budget=0.25)")
    raise SpecError(f"cannot read '{ast.unparse(node)}' in '{spec}'; a spec looks like snapkv(budget=0.25)")


class _Callable(types.ModuleType):
    """`tokenmill.method(...)` stays the decorator although this module, once imported, goes by the same name."""

    __call__ = staticmethod(method)


sys.modules[__name__].__class__ = _Callable
