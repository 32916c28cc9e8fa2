"""A model under a recipe, with a cache: what generate, compare and reproduce are built of.

session = Session(model, "h2o(budget=0.25)")
logits = session.read(ids)          # (B, V) after the last token of each row; the recipe evicts, packs, drops
session.fork()                      # the same cache, copied: two continuations of one prompt

reading = read_once(model, ids, recipes)     # one forward pass, every recipe's decision taken on it
reading.session(recipe)                      # a Session whose cache is what that recipe keeps of the prompt
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tokenmill.errors import InputError, ModelError, RecipeError
from tokenmill.method import Method, Recipe
from tokenmill.method import recipe as as_recipe
from tokenmill.models.apply import Engine, engine_of
from tokenmill.models.architectures import context_of, device_of
from tokenmill.models.cache import MillCache
from tokenmill.models.engine import Pass
from tokenmill.models.lanes import compact
from tokenmill.models.plan import Plan, newest, plan_of, thin
from tokenmill.ops.logits import finite
from tokenmill.run.adapt import Told
from tokenmill.run.arguments import learned_positions, prompt_rows, refuse_beyond, refuse_unknown, whole_number
from tokenmill.run.machine import clock
from tokenmill.types import Bits, Keep, Merge, Trace


@dataclass(repr=False)
class Stats:
    """What a session did and holds. Seconds are wall clock, bytes are those of the cache with all it carries."""

    cache_bytes: int = 0
    peak_cache_bytes: int = 0  # at the end of a pass
    forward_calls: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    prompt_tokens: int = 0  # read in passes of more than one token, padding excluded
    new_tokens: int = 0  # generated
    token_layers: int = 0  # tokens times layers computed
    exit_heads: int = 0  # tokens times exit heads computed: each costs as much as the model's own head
    drafted: int = 0  # draft tokens checked
    accepted: int = 0  # draft tokens accepted
    drafted_by_depth: list[int] = field(default_factory=list)  # passes that drafted so deep; the first level first
    accepted_by_depth: list[int] = field(default_factory=list)  # passes that accepted so deep
    draft_bytes: int = 0  # what drafting holds besides the model's own cache
    asked: int = 0  # tokens that a larger model gave; `forward_calls` are those of the one that writes

    def __repr__(self) -> str:
        drafts = f", {self.accepted} of {self.drafted} drafted tokens accepted" if self.drafted else ""
        return (
            f"Stats({self.new_tokens} tokens in {self.forward_calls} passes, cache {self.cache_bytes / 1e6:.2f} MB, "
            f"prompt {self.prefill_seconds:.2f} s, generation {self.decode_seconds:.2f} s{drafts})"
        )


def pad_left(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor | None]:
    """Rows of ids as one (B, Q) tensor, padded on the left, and its mask; None when all are equally long."""
    if not rows or any(len(row) == 0 for row in rows):
        raise InputError("the prompt is empty; give at least one token")
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
    if all(len(row) == longest for row in rows):
        return ids, None
    return ids, torch.tensor([[False] * (longest - len(row)) + [True] * len(row) for row in rows])


class Session:
    """One cache under one recipe. Inference only."""

    def __init__(self, model: Any, recipe: str | Method | Recipe | None = None):
        self.model, self.recipe = model, as_recipe(recipe)
        self.cache: MillCache | None = None
        self.beside: Session | None = None  # of another model at the same text: what it holds and runs counts too
        self.adapt: Told | None = None  # told what is about to be read, all of it, also where it is read in pieces
        self._stats = Stats()
        self._engine: Engine | None = None

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return device_of(self.model)

    @contextmanager
    def engaged(self) -> Iterator[Engine]:
        """One engine for several calls; read() alone makes one for itself. The model is changed by neither."""
        if self._engine is not None:
            yield self._engine
            return
        self._engine = engine_of(self.model, self.recipe)
        try:
            yield self._engine
        finally:
            self._engine = None

    def read(
        self,
        ids: Tensor | Sequence[Sequence[int]],
        *,
        valid: Tensor | None = None,
        all_logits: bool = False,
        last: int = 1,
        chunk: int | None = None,
    ) -> Tensor:
        """Feed ids (B, Q) to the cache and give the logits after the last token: (B, V).

        `all_logits` gives those after every token (B, Q, V), `last` those after the newest few (B, last, V).
        `valid` (B, Q) marks real tokens; rows are then moved so that padding comes first. `chunk` reads the
        text in pieces of that many tokens, deciding after each. Raises InputError for ids of another shape or kind, or
        that the model does not know.
        """
        ids, valid = self._checked(ids, valid)
        last, chunk = whole_number("last", last), None if chunk is None else whole_number("chunk", chunk)
        if valid is not None and bool(valid.all()):
            valid = None
        if valid is not None:
            order = valid.long().argsort(dim=-1, stable=True)
            ids, valid = ids.gather(1, order), valid.gather(1, order)
        ids, valid = ids.to(self.device), None if valid is None else valid.to(self.device)
        many = all_logits or last > 1
        want = 0 if all_logits else last
        pieces = [(ids, valid)]
        if chunk is not None and ids.shape[1] > chunk:
            splits = ids.split(chunk, 1)
            masks = valid.split(chunk, 1) if valid is not None else [None] * len(splits)
            pieces = list(zip(splits, masks, strict=True))
            if any(m is not None and not bool(m.any(-1).all()) for _, m in pieces):
                raise InputError("chunks need rows of similar length: a whole chunk of one row would be padding")
        out: list[Tensor] = []
        adapted = nullcontext() if self.adapt is None else self.adapt(ids, valid)
        with torch.no_grad(), adapted, self.engaged() as engine:
            for piece, mask in pieces:
                logits = self._forward(engine, piece, mask, want if all_logits else min(want, piece.shape[1]))
                if all_logits or not out:
                    out.append(logits)
                else:
                    out = [torch.cat([out[0], logits], 1)[:, -last:]]
        logits = torch.cat(out, 1) if all_logits else out[-1]
        if not finite(logits[:, -1]):
            assert self.cache is not None
            self.cache.broken = "the model's logits were not finite on this cache; start again with a new cache"
            raise ModelError("the model's logits are NaN or infinite: its weights, or its number format, are broken")
        return logits if many else logits[:, -1]

    def _checked(self, ids: Tensor | Sequence[Sequence[int]], valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if not isinstance(ids, Tensor):
            ids, valid = pad_left(prompt_rows(None, ids))
        if ids.ndim != 2 or ids.numel() == 0:
            raise InputError("the prompt is empty; give ids of shape (rows, tokens) with at least one token")
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise InputError(f"ids are {str(ids.dtype).removeprefix('torch.')}; give whole numbers")
        refuse_unknown(self.model, [torch.stack(ids.aminmax()).tolist()])
        if learned_positions(self.model) is not None:
            new = torch.full((len(ids),), ids.shape[1]) if valid is None else valid.sum(-1).cpu()
            before = self.cache.seen.cpu() if self.cache is not None and self.cache.seen is not None else 0
            refuse_beyond(self.model, int((before + new).max()))
        if valid is None:
            return ids.long(), None
        if valid.shape != ids.shape:
            raise InputError(f"valid has shape {tuple(valid.shape)} and ids have {tuple(ids.shape)}; give the same")
        return ids.long(), valid.bool()

    def _forward(self, engine: Engine, ids: Tensor, valid: Tensor | None, want: int) -> Tensor:
        began = clock(self.device)
        mask = None
        if valid is not None:
            older = self.cache.columns if self.cache is not None else 0
            mask = torch.nn.functional.pad(valid.long(), (older, 0), value=1)
        logits = engine.logits(
            want, input_ids=ids, attention_mask=mask, past_key_values=self.cache
        )  # fmt: skip
        self.cache = engine.cache
        self._count(clock(ids.device) - began, ids.shape[1], ids.numel() if valid is None else int(valid.sum()))
        return logits

    def _count(self, seconds: float, new: int, tokens: int) -> None:
        stats = self._stats
        stats.forward_calls += 1
        if new > 1 or stats.forward_calls == 1:
            stats.prefill_seconds += seconds
            stats.prompt_tokens += tokens
        else:
            stats.decode_seconds += seconds

    def verify(self, tokens: Tensor, depths: Tensor, seen: Tensor, blanks: Tensor | None = None) -> Tensor:
        """Check a tree in one pass: tokens (Q,), the newest accepted one first; depths (Q,); seen (Q, Q) bool.

        Gives the logits after each (Q, V). Follow with accept(); until then nothing is decided about them. `blanks`
        (M, E) are embeddings of further nodes, after those that have a token.
        """
        began = clock(tokens.device)
        with torch.no_grad(), self.engaged() as engine:
            engine.tree = depths, seen
            given = {"input_ids": tokens[None]}
            if blanks is not None:
                embedded = self.model.get_input_embeddings()(tokens)
                given = {"inputs_embeds": torch.cat([embedded, blanks.to(embedded)])[None]}
            logits = engine.logits(0, **given, past_key_values=self.cache)
            self._pass = engine.last
        self._stats.forward_calls += 1
        self._stats.decode_seconds += clock(tokens.device) - began
        return logits[0]

    def accept(self, nodes: Sequence[int]) -> None:
        """Keep these of the tokens last verified (indices, rising) and forget the others."""
        with torch.no_grad():
            assert isinstance(self._pass, Pass)
            self._pass.accept(nodes)

    def positions_left(self) -> float:
        """How many more tokens the model has positions for: those in the cache, where the recipe renumbers them."""
        assert self.cache is not None
        assert self.cache.seen is not None
        limit = context_of(self.model)
        shift = min((int(shift.min()) for shift in self.cache.shift), default=0)
        return math.inf if limit is None else limit - int(self.cache.seen.max()) + shift

    def before_decision(self) -> float:
        """How many more tokens the cache may take in one pass, while the session is engaged.

        A method of the recipe decides after the last of them; what follows must be read behind that decision.
        Infinite where no method decides.
        """
        assert self._engine is not None
        assert self.cache is not None
        plan, left = self._engine.plan, [math.inf]
        for layer, store in enumerate(self.cache.stores):
            if plan.keep is not None:
                left.append(plan.every - store.fresh)
            if plan.quantize is not None:
                left.append(plan.quantize.card.every - store.unpacked)
            if plan.merge is not None and plan.pairs(layer, self._engine.decoder):
                left.append(plan.merge.card.every - store.unpacked)
        return min(left)

    def drafted(self, levels: Sequence[int], accepted: int) -> None:
        """Count a verified draft: the level of each node, 1 for those right below the newest token."""
        stats = self._stats
        stats.drafted += len(levels)
        stats.accepted += accepted
        for counts, deep in ((stats.drafted_by_depth, max(levels, default=0)), (stats.accepted_by_depth, accepted)):
            counts += [0] * (deep - len(counts))
            for level in range(deep):
                counts[level] += 1

    def hidden(self) -> Tensor:
        """The final hidden states (B, Q, E) of the newest pass, while the session is engaged."""
        assert self._engine is not None
        assert self._engine.hidden is not None
        return self._engine.hidden

    def states(self) -> dict[int, Tensor]:
        """Layer -> the states (B, Q, E) of the newest pass after it: those the engine was told to watch."""
        assert self._engine is not None
        return self._engine.states

    def above(self, layer: int, states: Tensor) -> Tensor:
        """States (Q, E) after a layer, as if of the next Q tokens of one row, through the layers above: (Q, E).

        The cache holds afterwards what it held before.
        """
        with torch.no_grad(), self.engaged() as engine:
            assert self.cache is not None
            index = torch.arange(len(states), device=states.device)
            upper = range(layer + 1, len(engine.decoder.layers))
            out = engine.through(self.cache, upper, states, index, index[:, None] >= index)
            engine.drop(self.cache, upper, len(states))
            return engine.decoder.final_norm(out)

    def fork(self) -> Session:
        """A session with the same cache in memory of its own."""
        out = Session(self.model, self.recipe)
        out._stats = deepcopy(self._stats)
        out.cache = self.cache.copy() if self.cache is not None else None
        return out

    def kept(self) -> list[list[list[list[int]]]]:
        """[layer][row][head] -> sorted absolute positions held."""
        return self.cache.kept() if self.cache is not None else []

    @property
    def stats(self) -> Stats:
        held = self.cache
        if held is None:
            return replace(self._stats)
        also = Stats() if self.beside is None else self.beside.stats
        return replace(
            self._stats,
            cache_bytes=held.nbytes + also.cache_bytes,
            peak_cache_bytes=max(held.peak, held.nbytes) + also.peak_cache_bytes,
            token_layers=held.token_layers + also.token_layers,
            exit_heads=held.heads,
        )


@dataclass
class _Decision:
    """What one recipe decided about one layer of a prompt."""

    keep: Keep | None = None
    state: Any = None
    bits: Bits | None = None
    merge: Merge | None = None  # with the layer below


@dataclass
class Reading:
    """A prompt that was read once, and what each recipe decided about it."""

    model: Any
    whole: Session
    logits: Tensor  # (B, V) of the untouched model after the prompt
    ids: Tensor
    valid: Tensor | None
    seconds: float  # of the one forward pass, decisions excluded
    decisions: dict[Recipe, list[_Decision]] = field(default_factory=dict)
    decision_seconds: dict[Recipe, float] = field(default_factory=dict)

    def session(self, recipe: str | Method | Recipe | None = None) -> Session:
        """A session that goes on after the prompt with what the recipe keeps of it."""
        wanted = as_recipe(recipe)
        if wanted.acts("walk"):
            own = Session(self.model, wanted)
            own.read(self.ids, valid=self.valid)
            return own
        if wanted not in self.decisions:
            raise RecipeError(f"{wanted!r} was not among the recipes this prompt was read for")
        session = self.whole.fork()
        session.recipe = wanted
        cache = session.cache
        assert cache is not None
        cache.recipe, cache.broken = wanted, ""
        with session.engaged() as engine:
            _act(cache, engine, self.decisions[wanted])
        cache.peak = cache.nbytes
        return session


def _act(cache: MillCache, engine: Engine, decisions: list[_Decision]) -> None:
    for layer, (store, decision) in enumerate(zip(cache.stores, decisions, strict=True)):
        store.state = decision.state.clone() if isinstance(decision.state, Tensor) else decision.state
        if decision.keep is not None:
            mask = decision.keep.mask
            before = compact(store.view()[2], mask)  # read by the untouched model: positions are those in the text
            store.keep(mask)
            if decision.keep.renumber:
                cache.renumbered(layer, engine.decoder.rotaries[layer], before)
        if decision.bits is not None:
            store.pack(decision.bits)
        if decision.merge is not None:
            cache.join(layer, decision.merge)
    if engine.plan.renumbers:
        cache.shifted()


def read_once(
    model: Any,
    ids: Tensor | Sequence[Sequence[int]],
    recipes: Iterable[str | Method | Recipe],
    *,
    valid: Tensor | None = None,
) -> Reading:
    """Read a prompt with the untouched model once, and take every recipe's decision about it on the way.

    Scores shared by several recipes (budgets of one method) are computed once. Recipes that change the reading
    itself (methods that walk) are read when their session is asked for.
    """
    if not isinstance(ids, Tensor):
        ids, valid = pad_left(ids)
    wanted = [r for r in dict.fromkeys(map(as_recipe, recipes)) if not r.acts("walk")]
    whole = Session(model, None)
    reading = Reading(model, whole, torch.empty(0), ids, valid, 0.0)
    with whole.engaged() as engine:
        plans = {recipe: plan_of(recipe, engine.decoder) for recipe in wanted}
        reading.decisions = {recipe: [] for recipe in wanted}
        reading.decision_seconds = dict.fromkeys(wanted, 0.0)
        below: list[Trace] = []
        merged: dict[Recipe, int] = {}

        def observe(layer: int, trace: Trace) -> None:
            scored: dict[str, tuple[Tensor, Any]] = {}
            for recipe, plan in plans.items():
                began = clock(trace.keys.device)
                free = merged.get(recipe) != layer - 1 and plan.pairs(layer, engine.decoder)
                lower = below[-1] if below and free else None
                decision = _decide(plan, trace, lower, scored)
                if decision.merge is not None:
                    merged[recipe] = layer
                reading.decisions[recipe].append(decision)
                reading.decision_seconds[recipe] += clock(trace.keys.device) - began
            below[:] = [trace]

        engine.observe = observe
        began = clock(whole.device)
        reading.logits = whole.read(ids, valid=valid)
        reading.seconds = clock(whole.device) - began - sum(reading.decision_seconds.values())
    return reading


def _decide(plan: Plan, trace: Trace, lower: Trace | None, scored: dict[str, tuple[Tensor, Any]]) -> _Decision:
    decision = _Decision()
    if plan.keep is not None:
        queries, at = newest(trace.queries, trace.query_positions, plan.queries)
        shown = replace(trace, queries=queries, query_positions=at)
        scores = None
        if plan.scores:
            key = repr(plan.watcher(budget=None, slots=None)) if plan.watcher is not None else ""
            if key not in scored:
                scored[key] = plan.score(shown, None)
            scores, decision.state = scored[key]
        keep = plan.spend(shown, scores)
        decision.keep = replace(keep, mask=keep.mask & trace.filled)
    if plan.quantize is not None:
        left = trace if decision.keep is None else thin(trace, decision.keep.mask)
        decision.bits = plan.quantize(left)
    if plan.merge is not None and lower is not None:
        decision.merge = plan.merge(*(replace(t, queries=t.queries[:, :, :0]) for t in (lower, trace)))
    return decision
