"""The nouns: what a method may look at, and what it may decide.

Letters used in shapes everywhere:

    B  batch rows        H  query heads      D  head size
    T  cached slots      K  key/value heads  Q  queries
    L  layers            G  H // K, query heads that share one key/value head
    V  vocabulary        N  nodes of a draft tree
    E  size of a hidden state

Every class here is a plain value. A method is a pure function from these values to these values; only
the engine (`models/`) turns a decision into freed memory or skipped work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = [
    "Ask",
    "Attribution",
    "Batch",
    "Bits",
    "Coming",
    "Depth",
    "Draft",
    "Exit",
    "Findings",
    "Growth",
    "Guess",
    "Inquiry",
    "Keep",
    "Learned",
    "Merge",
    "Midway",
    "Rotary",
    "Said",
    "Step",
    "Trace",
    "Transplant",
    "Tree",
    "Verified",
    "Weights",
    "Writing",
]


class Rotary(Protocol):
    """How one layer turns a position into a rotation of queries and keys."""

    def rotate(self, x: Tensor, by: Tensor) -> Tensor:
        """Turn `x` (..., T, D) forward by `by` (..., T) positions; negative turns back. Norms are unchanged."""
        ...


@dataclass(frozen=True)
class Trace:
    """One layer of a model, as a method may look at it, at a moment when a decision is due.

    Slots are ordered by position. Rows and heads may hold different counts: an empty slot has position -1
    and its keys and values are zero. Keys and queries are those the model attends with (after RoPE).
    """

    keys: Tensor  # (B, K, T, D)
    values: Tensor  # (B, K, T, D)
    positions: Tensor  # (B, K, T) absolute position in the text, -1 = empty slot
    queries: Tensor  # (B, H, Q, D) the newest queries, oldest first; Q = 0 when the card does not ask for them
    query_positions: Tensor  # (B, Q) absolute position, -1 = padding
    seen: Tensor  # (B,) tokens this layer was shown so far, evicted ones included (capped by a sliding window)
    layer: int
    layers: int
    scale: float  # what the model multiplies q.k with
    rotary: Rotary | None = None  # None for models with learned positions (GPT-2)
    window: int | None = None  # the layer's own sliding window
    softcap: float | None = None  # scores s are softcap * tanh(s / softcap)
    sinks: Tensor | None = None  # (H,) score of an empty slot that every query sees
    prompt: bool = True  # False once tokens are being generated
    generated: int = 0  # tokens generated so far, those of this pass included

    @property
    def filled(self) -> Tensor:
        """Slots that hold a token: (B, K, T) bool."""
        return self.positions >= 0

    @property
    def groups(self) -> int:
        """Query heads that share one key/value head."""
        return self.queries.shape[1] // self.keys.shape[1]


@dataclass(frozen=True)
class Keep:
    """Which slots stay. Rows and heads may keep different counts: memory is freed in each."""

    mask: Tensor  # (B, K, T) bool over the slots of the trace
    renumber: bool = False  # number the kept tokens by slot (0, 1, 2 ...) and re-rotate their keys to match


@dataclass(frozen=True)
class Merge:
    """Two layers that store one direction per token. What a layer reads back is direction * its own norm.

    Tokens that are `apart` are stored by both layers as they are.
    """

    key_direction: Tensor  # (B, K, T, D) unit vectors
    value_direction: Tensor  # (B, K, T, D)
    key_norms: Tensor  # (2, B, K, T) of the lower and the upper layer
    value_norms: Tensor  # (2, B, K, T)
    apart: Tensor  # (B, K, T) bool


@dataclass(frozen=True)
class Bits:
    """How many bits each token's key and value are stored in. The engine packs them."""

    keys: Tensor  # (B, K, T) integer: 1, 2, 4, 8, or 16 for "as it is"
    values: Tensor  # (B, K, T)
    key_channels: Tensor | None = None  # (B, K, 1, D) divided out before, multiplied back after
    value_channels: Tensor | None = None  # (B, K, 1, D)
    per_channel_keys: bool = (
        False  # keys: one scale and minimum a channel (over the tokens of one width) instead of a token
    )


@dataclass(frozen=True)
class Step:
    """One forward pass, as a depth method sees it before the pass begins."""

    position: int  # absolute position of the newest token, in the longest row
    generated: int  # tokens generated so far, those of this pass included; 0 = the prompt is being read
    layers: int
    prompt: bool = False  # text is being read, also that of a later turn


@dataclass(frozen=True)
class Depth:
    """Which layers a pass runs, in this order, and what a skipped layer's cache holds for the token."""

    layers: tuple[int, ...]
    fill: str = "carry"  # "carry": key and value computed from the hidden state that skipped it; "missing": nothing


@dataclass(frozen=True)
class Midway:
    """The new token of each row that still walks, after a layer, as a method that lets rows leave early sees it."""

    step: Step
    layer: int  # that has just run
    hidden: Tensor  # (B, E) behind it
    before: Tensor  # (B, E) that went into it
    logits: Callable[[], Tensor]  # () -> (B, V): the model's final norm and head on `hidden`, computed when called


@dataclass(frozen=True)
class Exit:
    """Which rows go no deeper, and what the layers above hold for their token: see Depth."""

    rows: Tensor  # (B,) bool
    fill: str = "carry"


@dataclass(frozen=True)
class Verified:
    """What the last verification pass said: for each node checked, its token and the logits that follow it."""

    context: Tensor  # (T,) all ids accepted so far; the last one is the root of the next tree
    tokens: Tensor  # (N,) ids of the nodes that were checked (on the first call: the prompt)
    logits: Tensor  # (N, V) what the model predicts after each
    accepted: Tensor  # (N,) bool: nodes that became part of the context
    depths: Tensor | None = None  # (N,) how far below the root of its tree each node was; None on the first call
    hidden: Tensor | None = None  # (N, E) final hidden states, where the card asks for them
    before: Tensor | None = None  # (N,) the token each node follows, -1 = none
    states: Mapping[int, Tensor] = field(default_factory=dict)  # layer -> (N, E) after it: those the file asks for
    beyond: Tensor | None = None  # (M, V) what the model predicts after each learned placeholder behind the last node
    room: float = math.inf  # levels that the next draft may have: deeper nodes are cut off before it is checked

    @property
    def tip(self) -> int:
        """The node that gave the context's last token."""
        return -1 if self.depths is None else int((self.accepted * (1 + self.depths)).argmax())

    @property
    def newest(self) -> Tensor:
        """(E,): the final hidden state that gave the context's last token."""
        assert self.hidden is not None
        return self.hidden[self.tip]


@dataclass(frozen=True)
class Draft:
    """A tree of guesses below the newest token. Node i hangs below node parents[i]; -1 is the newest token."""

    tokens: Tensor  # (N,) ids
    parents: Tensor  # (N,) integers, parents[i] < i
    chances: Tensor | None = None  # (N,) how likely its source held each, its parent being right
    # What the children of a node (-1: of the root) were drawn from, without replacement, in the order of the nodes:
    # (V,) probabilities. Children of a node that is not here were chosen, not drawn.
    drawn: Mapping[int, Tensor] = field(default_factory=dict)


class Tree(Protocol):
    """A draft while it grows: node i carries tokens[i] and hangs below parents[i]; -1 is the newest token."""

    tokens: list[int]
    parents: list[int]

    def ends(self, context: Sequence[int], at: Sequence[int], count: int) -> list[list[int]]:
        """The newest `count` tokens of the text that ends in each of these nodes."""
        ...


@dataclass(frozen=True)
class Guess:
    """What a source holds likely after each of M nodes. Plain numbers: trees grow in Python, a few nodes at a time."""

    rows: Sequence[Mapping[int, float]]  # M: token -> the source's own estimate that it is next, the likeliest first
    logits: Tensor | None = None  # (M, V) of a source that knows the whole distribution: it can be drawn from


@dataclass(frozen=True)
class Growth:
    """What a tree builder may ask while it grows a draft."""

    look: Callable[[Tree, Sequence[int]], Guess]  # what may follow these nodes; each node is asked about once
    generator: torch.Generator | None  # None: nothing is drawn, the likeliest guesses are taken
    probabilities: Callable[[Tensor], Tensor]  # logits (M, V) -> what is drawn from, as the model's own tokens are
    room: float  # levels that the draft may have: the model's context ends, or a method of the recipe decides
    cost: Callable[[int], float]  # relative time of a pass over so many tokens, root included; 1 for one token
    asking: float = 0.0  # time of asking the source once, relative to a pass over one token; 0 where nobody timed it


@dataclass(frozen=True)
class Learned:
    """A method's trained part, and what of the model it reads and writes by."""

    parts: Any  # the nn.Module
    head: Callable[[Tensor], Tensor]  # final hidden states (..., E) -> logits (..., V), or of the first `words` alone
    embed: Callable[[Tensor], Tensor]  # ids (...) -> (..., E)
    norm: Callable[[Tensor], Tensor] | None = None  # the final norm: a layer's state (..., E) -> what the head reads
    # A layer, states (M, E) after it as if of the next M tokens -> final hidden states (M, E): the layers above are run
    # on them, over the text so far, and nothing is kept.
    above: Callable[[int, Tensor], Tensor] | None = None
    # A growing draft, nodes of it, which of the layers that the file's `layers` names -> the states (M, E) after it:
    # nodes climb the model's own layers only as far as they are asked about.
    climb: Callable[[Tree, Sequence[int], int], Tensor] | None = None


@dataclass(frozen=True)
class Coming:
    """Tokens that the model is about to read, as a method that adapts it sees them."""

    embedded: Tensor  # (B, Q, E) by the model's own input embeddings
    real: Tensor  # (B, Q) bool, False = padding


@dataclass(frozen=True)
class Said:
    """What the model says about a draft: row 0 after the newest token, row i + 1 after node i."""

    probabilities: Callable[[int], Tensor]  # row -> (V,) what tokens are drawn from; one-hot where the choice is greedy
    likeliest: list[int]  # (1 + N) the token a greedy choice takes
    generator: torch.Generator | None  # None: the choice is greedy
    logits: Tensor  # (1 + N, V)
    hidden: Tensor | None = None  # (1 + N, E) where the card asks for them


class Writing(Protocol):
    """One text while it is written, as a method that searches drives it. Rows are continuations of one prompt."""

    prompt: Sequence[int]  # the tokens before what is written
    logits: Tensor  # (N, V) what follows each row
    hidden: Tensor  # (1, T, E) final hidden states of the prompt
    generator: torch.Generator  # what the text draws with
    ends: frozenset[int]  # tokens that end a text
    room: int  # tokens that may come at most
    reward: Callable[[list[int]], float] | None  # what the caller holds new tokens worth, the more the better

    @property
    def state(self) -> Tensor:
        """The final hidden state behind each row (N, E), until another model is asked."""
        ...

    def probabilities(self, logits: Tensor) -> Tensor:
        """(N, V) logits to what is drawn from (N, V), after temperature and warpers."""
        ...

    def choose(self, logits: Tensor) -> Tensor:
        """(N, V) logits to tokens (N,): the likeliest, or drawn, as the recipe says."""
        ...

    def read(self, tokens: Sequence[int]) -> None:
        """Go on with one token a row."""
        ...

    def follow(self, tokens: Sequence[int]) -> Tensor:
        """Go on with several tokens of the one row, in one pass: the logits after each (Q, V)."""
        ...

    def head(self, states: Tensor) -> Tensor:
        """(..., E) -> (..., V) by the model's own head; gradients flow to the states alone."""
        ...

    def rows(self, index: Sequence[int]) -> None:
        """Go on with these rows, in this order; one may come several times."""
        ...

    def saved(self, row: int) -> Any:
        """The row as it is now, to come back to."""
        ...

    def restore(self, saved: Any) -> None:
        """Go on with a saved row alone."""
        ...

    def look(self, tokens: Tensor) -> Tensor:
        """Final hidden states (N, E) after each of these tokens (N,), any of which may come next: one pass."""
        ...

    def take(self, which: int) -> None:
        """Go on with one of the tokens last looked at."""
        ...

    def append(self, text: str) -> bool:
        """Go on with a text that the one row is to see and that does not come out; False if it has no room."""
        ...

    def text(self, ids: Sequence[int]) -> str:
        """What tokens spell."""
        ...

    def spelled(self, texts: Sequence[str]) -> frozenset[int]:
        """The tokens that spell exactly one of these texts."""
        ...


@dataclass(frozen=True)
class Weights:
    """How much each token's loss counts in a training step."""

    values: Tensor  # (B, T), zero for a token that teaches nothing


@dataclass(frozen=True)
class Transplant:
    """Rows for new tokens, as sums over tokens the base model has: row = coefficients @ base[anchors]."""

    anchors: Tensor  # (N, A) ids in the shared vocabulary
    coefficients: Tensor  # (N, A)


@dataclass(frozen=True)
class Attribution:
    """How much each prompt token did for one predicted token."""

    scores: Tensor  # (T,)
    target: int  # id of the token that is explained
    calls: int = 0  # rows the model was asked about: the cost
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ask:
    """How an explain method asks the model: it sees no weights and no internals beyond these."""

    probabilities: Callable[[Tensor], Tensor]  # ids (B, T) -> (B, V) of the next token
    replacements: Callable[[Tensor, torch.Generator], Tensor]  # ids (T,) -> (T,) a plausible other token at each place
    embed: Callable[[Tensor], Tensor] | None = None  # ids (B, T) -> (B, T, E)
    logits_from_embeddings: Callable[[Tensor], Tensor] | None = None  # (B, T, E) -> (B, V), differentiable


@dataclass(frozen=True)
class Batch:
    """Rows of text as a learned part sees them in training, and what the frozen model says about them.

    A model that is trained from scratch gets the ids alone: there is no frozen model, and asking it is an error.
    """

    ids: Tensor  # (B, T)
    progress: float = 1.0  # share of the training that is done: what a schedule goes by
    states: Mapping[int, Tensor] = field(default_factory=dict)  # layer -> (B, T, E) after it: those `layers` asked for
    frozen: Frozen | None = None
    tasks: Tensor | None = None  # (B,) which task each row is of, where the card asks for texts of several

    @cached_property
    def hidden(self) -> Tensor:
        """(B, T, E): the last state, after the final norm."""
        return self.frozen.hidden  # type: ignore[union-attr, return-value]

    @cached_property
    def logits(self) -> Tensor:
        """(B, T, V): what the frozen model predicts after each token. Computed when first asked for."""
        with torch.no_grad():
            return self.head(self.hidden)

    @cached_property
    def likeliest(self) -> Tensor:
        """(B, T): the token that the frozen model would say after each. Their logits are not kept."""
        if self.frozen.likeliest is not None:  # type: ignore[union-attr]
            return self.frozen.likeliest  # type: ignore[union-attr]
        with torch.no_grad():
            return torch.stack([self.head(row).argmax(-1) for row in self.hidden])

    def head(self, hidden: Tensor) -> Tensor:
        """(..., E) -> (..., V) by the frozen model's own head; gradients flow to `hidden`, not to the head."""
        return self.frozen.head(hidden)  # type: ignore[union-attr]

    def guesses(self, hidden: Tensor) -> Tensor:
        """(..., E) -> (..., W): the same for the first words of the vocabulary, as many as the knob `words` says."""
        return self.frozen.guesses(hidden)  # type: ignore[union-attr]

    def embed(self, ids: Tensor) -> Tensor:
        """(...) -> (..., E): the frozen model's input embeddings."""
        return self.frozen.embed(ids)  # type: ignore[union-attr]

    def norm(self, state: Tensor) -> Tensor:
        """(..., E) -> (..., E): the frozen model's final norm, between a layer's state and the head."""
        return self.frozen.norm(state)  # type: ignore[union-attr]

    def read(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, E): the last state, after the final norm, of another text. One more pass of the model."""
        return self.frozen.read(ids)  # type: ignore[union-attr]

    def above(self, layer: int, states: Tensor, at: Tensor) -> Tensor:
        """States (B, A, M, E) after a layer, as if of the M tokens behind each place (A,) -> final ones (B, A, M, E).

        They see the text up to their place and each other; gradients flow to them. Layer -1: they are embeddings.
        """
        return self.frozen.above(layer, states, at)  # type: ignore[union-attr]

    def adapted(self, parts: Any, weights: Tensor) -> Tensor:
        """(B, T, E): the last state, after the final norm, with adapters in the layers, each as much as its weight.

        `weights` (B, A) of a row, or (B, T, A) of each of its tokens; gradients flow to the adapters.
        """
        return self.frozen.adapted(parts, weights)  # type: ignore[union-attr]

    @cached_property
    def second(self) -> Tensor:
        """(B, T, V): what the model says that the method names beside the frozen one."""
        return self.frozen.second  # type: ignore[union-attr, return-value]


@dataclass(frozen=True)
class Frozen:
    """The model under a learned part, after it read a batch."""

    hidden: Tensor | None  # (B, T, E); None for adapters, which have the batch read with them in the layers
    head: Callable[[Tensor], Tensor]
    guesses: Callable[[Tensor], Tensor]
    embed: Callable[[Tensor], Tensor]
    norm: Callable[[Tensor], Tensor]
    read: Callable[[Tensor], Tensor]
    above: Callable[[int, Tensor, Tensor], Tensor]
    adapted: Callable[[Any, Tensor], Tensor]
    second: Tensor | None = None  # (B, T, V)
    likeliest: Tensor | None = None  # (B, T), where it is known already


@dataclass(frozen=True)
class Inquiry:
    """How a probe asks the model: it sees no weights. Answers are on the CPU, in float32."""

    layers: int
    logits: Callable[[Tensor, tuple[int, ...]], Tensor]  # ids (T,), the layers to run, in order -> (T, V)
    lens: Callable[[Tensor], Iterator[Tensor]]  # ids (T,) -> (T, V) of norm and head behind layer 0, 1, ... L - 1
    second: Callable[[Tensor], Tensor] | None = None  # ids (T,) -> (T, V) of another model of the same vocabulary


@dataclass(frozen=True)
class Findings:
    """What a probe measured: a table, and the figures to be read off it first."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float, ...], ...]
    figures: dict[str, float]
