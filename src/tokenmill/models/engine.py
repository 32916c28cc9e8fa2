"""One forward pass under a recipe: the engine walks the model's layers, reads the cache, and acts on decisions.

Layer by layer: the new tokens' keys and values enter the layer's store; the queries attend to what the store
holds; the recipe's methods are shown a Trace when a decision is due; what they drop is freed before the next
layer runs. The layers themselves (projections, norms, feed-forward) are the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from tokenmill.errors import ModelError, RecipeError
from tokenmill.models.architectures import Decoder
from tokenmill.models.cache import MillCache, Store
from tokenmill.models.lanes import SLACK, Lanes, View, compact
from tokenmill.models.lean import Lean
from tokenmill.models.owner import NAME, attention_outside, in_pass
from tokenmill.models.plan import Plan, newest
from tokenmill.ops.attention import attend
from tokenmill.ops.budget import asked
from tokenmill.types import Depth, Exit, Midway, Step, Trace

# What models hand to their attention and the engine computes, or knows from elsewhere.
KNOWN = {
    "cache", "dropout", "is_causal", "past_key_values", "position_embeddings", "position_ids", "s_aux", "scaling",
    "sliding_window", "softcap", "use_cache",
}  # fmt: skip
PROBES = 8  # newest queries held while generating, for a method that packs


_current: ContextVar[Any] = ContextVar("tokenmill", default=None)  # what attends: a Pass, or a probe of one layer


class _Handover:
    """Given to a layer as its cache: keys and values pass through, the attention function stores them."""

    @staticmethod
    def update(keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return keys, values


class Pass:
    """One forward pass over new tokens of all rows."""

    def __init__(
        self,
        decoder: Decoder,
        plan: Plan,
        cache: MillCache,
        positions: Tensor,  # (B, Q) absolute, -1 = padding
        tree: Tensor | None = None,  # (Q, N) bool: which nodes of the draft, the Q new ones last, each new one sees
    ):
        self.decoder, self.plan, self.cache, self.positions, self.tree = decoder, plan, cache, positions, tree
        self.whole = positions  # of all rows, also while some have left
        self.valid = None if tree is not None or bool((positions >= 0).all()) else positions >= 0
        self.new = positions.shape[1]
        # Text is being read, not generated: also when the whole prompt is one token.
        self.prompt = tree is None and (self.new > 1 or cache.seen is None)
        self.counted = False  # this pass's tokens are in cache.generated already
        self.store_only = False  # a skipped layer stores keys and values and attends to nothing
        self.going: Tensor | None = None  # (b,) rows that still walk, once others have left the pass
        self.carried: tuple[Tensor, Tensor, Tensor] | None = None  # queries, keys, values of rows that have left
        self.visible: Tensor | None = None  # (M,) positions the queries may see, for methods that walk
        self.pending: dict[int, Tensor] = {}  # queries that are decided about later: a tree's, once nodes are accepted
        self.softcaps: dict[int, float | None] = {}  # by layer
        self.sinks: dict[int, Tensor | None] = {}
        self.stored: set[int] = set()  # layers that stored this pass's tokens
        self.merged: set[int] = set()
        self.observe: Callable[[int, Trace], None] | None = (
            None  # recording: shown every layer's trace, nothing settled
        )
        self.ids: Tensor | None = None  # (B, Q) that are read
        self.lean: Lean | None = None  # the layers as compiled calls, where they can be
        self.watched: tuple[int, ...] = ()  # layers after which the states are wanted
        self.states: dict[int, Tensor] = {}  # layer -> (B, Q, E)
        self.logits: Tensor | None = None  # (B, last, V), where they came with the hidden states
        self._mask: tuple[int, Tensor] | None = None  # the causal mask that even layers share

    # ---- the walk ----

    def run(self, hidden: Tensor) -> Tensor:
        """Hidden states (B, Q, E) through the layers that the recipe runs, and the final norm."""
        if self.plan.exit is not None and not self.prompt and self.new == 1:
            return self._run_leaving(hidden)
        depth = self._depth()
        angles: dict[Any, Any] = {}
        order: Sequence[int] = range(len(self.decoder.layers)) if depth is None else self._order(depth)
        straight = self.lean if self.lean is not None and self.lean.alike and self._undecided else None
        if straight is not None and depth is not None and depth.fill == "missing":
            order = depth.layers  # nothing comes in between
        for runs, group in groupby(order, lambda index: depth is None or index in depth.layers):
            if runs and straight is not None:
                hidden = self._straight(straight, hidden, [*group])
                continue
            for index in group:
                if runs:
                    hidden = self._layer(self.decoder.layers[index], hidden, self._angles(angles, hidden, index), index)
                    self.cache.token_layers += self.positions.numel()
                elif depth is not None and depth.fill == "carry":
                    self._store(index, hidden, self._angles(angles, hidden, index))
                if index in self.watched:
                    self.states[index] = hidden
        return self.decoder.final_norm(hidden) if self.lean is None else self.lean.norm(hidden)

    def answer(self, ids: Tensor, last: int) -> Tensor | None:
        """Tokens (B, Q) to final hidden states (B, Q, E) and the logits of the newest, where one call can do it all."""
        plan, lean = self.plan, self.lean
        whole = plan.skip is None and plan.exit is None and plan.walker is None
        if lean is None or not (lean.answers and whole and self._undecided):
            return None
        lanes = [store.lanes for store in self.cache.stores]
        last = last or self.new
        hidden, self.logits = lean.answer(ids, lanes, self.decoder.windows, self.positions, self.tree, last)
        self._all_stored(hidden, range(len(lanes)))
        return hidden

    @property
    def _undecided(self) -> bool:
        """No recipe and no watcher has a say between two layers, and lanes are equally long, if not equally full."""
        return (
            self.plan.idle
            and self.plan.select is None
            and not (self.watched or self.cache.shift)
            and self.observe is None
            and self.valid is None
            and all(store.lanes.rows and not (store.lanes.ragged or store.parts) for store in self.cache.stores)
        )

    def _straight(self, lean: Lean, hidden: Tensor, layers: Sequence[int]) -> Tensor:
        """Hidden states (B, Q, E) through these layers in one call."""
        lanes, windows = [self.cache.stores[i].lanes for i in layers], [self.decoder.windows[i] for i in layers]
        angles = self.decoder.angles(hidden, self.positions, 0)
        hidden = lean.walk(hidden, angles, layers, lanes, windows, self.positions, self.tree)
        self._all_stored(hidden, layers)
        return hidden

    def _all_stored(self, hidden: Tensor, layers: Sequence[int]) -> None:
        """These layers hold the new tokens, and where one has a window some may leave it."""
        cache, windows = self.cache, self.decoder.windows
        cache.token_layers += self.positions.numel() * len(layers)
        self.stored.update(layers)
        for layer in layers if any(windows) else ():
            if self.tree is not None:
                self.pending[layer] = hidden[:, :0]
            else:
                self.settle(layer, hidden[:, :0], 0.0)

    def through(self, hidden: Tensor, layers: range) -> Tensor:
        """Hidden states (B, Q, E) through some layers, without the final norm."""
        angles: dict[Any, Any] = {}
        for index in layers:
            hidden = self._layer(self.decoder.layers[index], hidden, self._angles(angles, hidden, index), index)
            self.cache.token_layers += self.positions.numel()
        return hidden

    def _order(self, depth: Depth) -> list[int]:
        """Every layer, those that run in the order asked for, each skipped one before the first that lies above it."""
        layers = len(self.decoder.layers)
        if len({*depth.layers}) != len(depth.layers) or not {*depth.layers} <= {*range(layers)}:
            raise RecipeError(
                f"{self.plan.skip!r} asks for layers {depth.layers}; each of 0 to {layers - 1} can run once at most"
            )
        order = list(depth.layers)
        for skipped in sorted({*range(layers)} - {*order}):
            order.insert(next((i for i, layer in enumerate(order) if layer > skipped), len(order)), skipped)
        return order

    def _run_leaving(self, hidden: Tensor) -> Tensor:
        """The walk of one new token a row, under a method that lets rows leave when it has seen enough of them.

        Rows that left are taken out of the hidden states, so the layers above cost nothing for them but, with
        "carry", their keys and values.
        """
        assert self.plan.exit is not None
        out, positions = hidden, self.positions
        everyone = torch.arange(len(hidden), device=hidden.device)
        going, fill = everyone, "carry"
        step, last = self._step(), len(self.decoder.layers) - 1
        angles: dict[Any, Any] = {}  # of the rows that walk
        stayed: dict[Any, Any] = {}  # of the rows that left
        for index, layer in enumerate(self.decoder.layers):
            gone = everyone[~torch.isin(everyone, going)] if len(going) < len(everyone) else everyone[:0]
            if len(gone) and fill == "carry":
                self.positions, self.going = positions[gone], going if len(going) else None
                self._store(index, out[gone], self._angles(stayed, out[gone], index, gone))
            if len(going):
                self.positions, self.going = positions[going], going if len(gone) else None
                before = hidden
                hidden = self._layer(layer, hidden, self._angles(angles, hidden, index, going), index)
                self.cache.token_layers += len(going)
                decided = self._asked(step, index, hidden, before) if index < last else None
                if decided is not None and bool(decided.rows.any()):
                    fill, out = decided.fill, out.clone()
                    out[going[decided.rows]] = hidden[decided.rows]
                    going, hidden = going[~decided.rows], hidden[~decided.rows]
                    angles, stayed = {}, {}
            elif fill == "missing":
                break
        if len(going):
            out = out.clone()
            out[going] = hidden
        self.positions, self.going = positions, None
        return self.decoder.final_norm(out)

    def _asked(self, step: Step, index: int, hidden: Tensor, before: Tensor) -> Exit | None:
        """Which of the rows that walk leave after this layer."""
        assert self.plan.exit is not None

        def logits() -> Tensor:
            self.cache.heads += len(hidden)
            return self.decoder.logits(self.decoder.final_norm(hidden[:, -1]))

        return self.plan.exit(Midway(step, index, hidden[:, -1], before[:, -1], logits))

    def _angles(self, known: dict[Any, Any], hidden: Tensor, index: int, rows: Tensor | None = None) -> Any:
        """What the layer turns queries and keys by; layers of one type and shift share it."""
        shift = whole = self.cache.shift[index] if self.cache.shift else None
        if shift is not None and rows is not None:
            shift = shift[rows]
        key = (self.decoder.types[index], None if shift is None else tuple(shift.tolist()))
        if key not in known:
            # Of all rows, also where only some walk: the frequencies may depend on the longest.
            positions = self.positions if rows is None else self.whole
            turned = positions if whole is None else positions - whole[:, None]
            angles = self.decoder.angles(hidden, turned.clamp(min=0), index)
            if rows is not None and angles is not None:
                angles = tuple(x[rows] for x in angles) if isinstance(angles, tuple) else angles[rows]
            known[key] = angles
        return known[key]

    def _store(self, index: int, hidden: Tensor, angles: Any) -> None:
        """Keys and values that a layer makes of a hidden state which skips it."""
        attention = getattr(self.decoder.layers[index], self.decoder.attention)
        self.store_only = True
        self._call(attention, self.decoder.attention_input(index, hidden), angles)
        self.store_only = False

    def _call(self, module: Any, hidden: Tensor, angles: Any) -> Any:
        return call(self.decoder, module, hidden, angles, self.positions, self)

    def _layer(self, layer: Any, hidden: Tensor, angles: Any, index: int) -> Tensor:
        if self.lean is not None:
            return self.lean.layer(index, hidden, angles, self.attend)
        out = self._call(layer, hidden, angles)
        return out[0] if isinstance(out, tuple) else out

    def _depth(self) -> Depth | None:
        if self.plan.skip is None:
            return None
        return self.plan.skip(self._step())

    def _step(self) -> Step:
        return Step(int(self.positions.max()), self._generated(), len(self.decoder.layers), self.prompt)

    def _generated(self) -> int:
        """Tokens generated so far, those of this pass included."""
        return self.cache.generated + (0 if self.prompt or self.counted else self.new)

    def run_walking(self, hidden: Tensor) -> Tensor:
        """The walk of one row under a method that drops tokens between layers and may revive them later.

        At every layer: `active` are the tokens this pass still looks at. Those of them whose keys the layer
        lacks are computed now, from hidden states that either come up from the layer below or wait in the stash
        since they were dropped before this layer.
        """
        cache, plan = self.cache, self.plan
        assert plan.walker is not None
        if not cache.stash:  # empty tensors of their own: a slice would keep the whole prompt's memory
            nothing = self.positions.new_empty(0), hidden.new_empty(0, hidden.shape[-1])
            cache.stash = [nothing for _ in self.decoder.layers]
        old = cache.stores[0].lanes.view()[2][0, 0] if cache.stores[0].lanes.rows else self.positions[0, :0]
        active = torch.cat([old.to(self.positions.dtype), self.positions[0]]).sort().values  # (A,)
        now, last = self.positions[0], int(self.positions.max())  # positions of the rows of `hidden`
        for index, layer in enumerate(self.decoder.layers):
            store, (at, stashed) = cache.stores[index], cache.stash[index]
            revived = torch.isin(at, active)
            if bool(revived.any()):
                hidden, now = torch.cat([stashed[revived][None], hidden], 1), torch.cat([at[revived], now])
                order = now.argsort()
                hidden, now = hidden[:, order], now[order]
                cache.stash[index] = at[~revived], stashed[~revived]
                cache.revived += int(revived.sum())
            self.positions, self.visible, self.new = now[None], active, len(now)
            angles = self.decoder.angles(hidden, self.positions, index)
            hidden = self._layer(layer, hidden, angles, index)
            cache.token_layers += len(now)
            if index + 1 == len(self.decoder.layers):
                break
            trace = self._walk_trace(index, store, active)
            following = trace.positions[0, 0][plan.walker(trace).mask[0, 0]].to(now.dtype)
            going = torch.isin(now, following)
            if not bool(going.all()):
                at, stashed = cache.stash[index + 1]
                cache.stash[index + 1] = torch.cat([at, now[~going]]), torch.cat([stashed, hidden[0, ~going]])
            hidden, now, active = hidden[:, going], now[going], following
        self.visible = None
        return self.decoder.final_norm(hidden[:, now == last])

    def _walk_trace(self, index: int, store: Store, active: Tensor) -> Trace:
        """The slots that are active in this layer, by position: tokens taken back lie behind newer ones."""
        held = store.lanes.view()[2][0, 0]
        order = held.argsort()
        order = order[torch.isin(held[order], active.to(held.dtype))]
        keys, values, positions = (x[:, :, order] for x in store.lanes.view())
        queries = self.pending.pop(index)[:, :, -1:]
        return self._trace(index, (keys, values, positions), queries, self.positions[:, -1:])

    # ---- attention ----

    def attend(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float,
        softcap: float | None = None, sinks: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """queries (B, H, Q, D) over the layer's store and the new keys, values (B, K, Q, D): (B, H, Q, D).

        `softcap` c makes scores c tanh(score / c); `sinks` (H,) are the scores of an empty slot that all queries see.
        """
        self.softcaps[layer], self.sinks[layer] = softcap, sinks
        if self.going is None:
            return self._attend(layer, queries, keys, values, scale)
        if self.store_only:  # of rows that left: stored together with those of the rows that walk
            self.carried = queries, keys, values
            return torch.zeros_like(queries[..., : values.shape[-1]])
        # The store is read for all rows: taking the walking rows' keys out of it would copy them at every layer.
        going, positions = self.going, self.positions
        walks = torch.zeros(len(self.cache.seen), dtype=torch.bool, device=going.device)  # type: ignore[arg-type]
        walks[going] = True
        whole = []
        for i, own in enumerate((queries, keys, values)):
            both = own.new_zeros(len(walks), *own.shape[1:])
            both[walks] = own
            if self.carried is not None:
                both[~walks] = self.carried[i]
            whole.append(both)
        self.positions, self.valid = self.whole, walks[:, None] if self.carried is None else None
        out = self._attend(layer, whole[0], whole[1], whole[2], scale)[going]
        self.positions, self.valid, self.carried = positions, None, None
        return out

    def _attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        store = self.cache.stores[layer]
        fresh = not store.lanes.rows and not store.parts
        # Keys that are turned again and again are stored in float32: half precision would drift.
        stored = keys.float() if self.plan.renumbers and keys.dtype in (torch.float16, torch.bfloat16) else keys
        store.lanes.append(stored, values, self.positions, self.valid)
        self.stored.add(layer)
        window = self.decoder.windows[layer]
        if self.store_only:
            out = torch.zeros_like(queries[..., : values.shape[-1]])
        elif (
            fresh  # nothing older, and whatever walks sees all that is new
            and not self._compiled(store)
            and self.new > 1
            and self.valid is None
            and self.tree is None
            and self.plan.select is None
            and (window is None or (self.new <= window and self.visible is None))  # a walk leaves gaps
        ):
            if self.softcaps[layer] is None and self.sinks[layer] is None:
                grouped = queries.shape[1] != keys.shape[1]
                out = F.scaled_dot_product_attention(
                    queries, keys, values, is_causal=True, scale=scale, enable_gqa=grouped
                )
            else:
                out = self._read(layer, store, queries, scale, window)
        else:
            out = self._read(layer, store, queries, scale, window)
        if self.plan.walker is not None or (self.tree is not None and self._settles(layer)):
            self.pending[layer] = queries
        elif self._settles(layer):
            self.settle(layer, queries, scale)
        return out

    def _read(self, layer: int, store: Store, queries: Tensor, scale: float, window: int | None) -> Tensor:
        held = store.lanes.n
        # Without gaps, as many tokens as the window has are inside it; a method that drops tokens leaves gaps.
        within = window is None or (held <= window and self.plan.keep is None and self.plan.skip is None)
        within = within and self.plan.exit is None
        groups = queries.shape[1] // self._heads(store)
        folded = queries.reshape(queries.shape[0], -1, groups * self.new, queries.shape[3])  # (B, K, G Q, D)
        if self._compiled(store) and not (window is not None and self.cache.shift):
            assert self.lean is not None
            return self.lean.read(store.lanes, queries, self.positions, window, self.tree, scale)
        if self.plan.select is not None:
            view = self._selected(layer, store, queries, scale)
        elif store.lanes.ragged and not store.parts and self.visible is None:
            return self._read_lanes(layer, store.lanes, folded, groups, scale, window).reshape(*queries.shape[:3], -1)
        else:
            view = store.view()
        keys, values, positions = view
        keys = keys.to(queries.dtype)
        even = store.even and self.visible is None and self.valid is None and within and self.plan.select is None
        if even and self._sees_all:
            mask = None
        elif even:
            mask = self._shared_mask(held, groups)
        else:
            from_positions = self._mask_of(layer, positions, window)
            mask = from_positions[:, :, None].expand(-1, -1, groups, -1, -1).flatten(2, 3)  # (B, K, G Q, T)
        out = attend(folded, keys, values, mask, scale, self.softcaps[layer], self._folded_sinks(layer, folded))
        return out.reshape(*queries.shape[:3], -1)

    def _folded_sinks(self, layer: int, folded: Tensor) -> Tensor | None:
        """A layer's sinks for queries (B, K, G Q, D): (K, G Q)."""
        sinks = self.sinks[layer]
        return None if sinks is None else sinks.view(folded.shape[1], -1).repeat_interleave(self.new, 1)

    def _compiled(self, store: Store) -> bool:
        """Whether `Lean.read` reads this store: no part of it is packed, and no choice is made among what it holds."""
        return self.lean is not None and not store.parts and self.visible is None and self.plan.select is None

    @property
    def _sees_all(self) -> bool:
        """One token that sees whatever is stored: not a node whose siblings are."""
        return self.new == 1 and (self.tree is None or self.tree.shape[1] == 1)

    @staticmethod
    def _heads(store: Store) -> int:
        return store.lanes.heads or store.parts[0].positions.shape[1]

    def _shared_mask(self, held: int, groups: int) -> Tensor:
        """Everything older is seen; among the new tokens the tree decides, or their order: (G Q, T)."""
        if self._mask is None or self._mask[0] != held:
            mask = torch.ones(self.new, held, dtype=torch.bool, device=self.positions.device)
            if self.tree is None:
                mask[:, -self.new :] = mask[:, -self.new :].tril()
            else:
                mask[:, -self.tree.shape[1] :] = self.tree
            self._mask = held, mask.repeat(groups, 1)
        return self._mask[1]

    def _distances(self, layer: int, positions: Tensor, newest: Tensor) -> Tensor:
        """How far tokens at `positions` (B, K, T) lie behind the positions `newest` (B, Q): (B, K, Q, T).

        Where kept tokens are renumbered, distances are counted in the cache, as the model sees them.
        """
        if self.cache.shift:
            shift = self.cache.shift[layer][:, None]  # (B, 1)
            slots = torch.arange(positions.shape[2], device=positions.device)
            fresh = positions >= self._first()[:, None, None]
            positions, newest = torch.where(fresh, positions - shift[..., None], slots), newest - shift
        return newest[:, None, :, None] - positions[:, :, None, :]

    def _mask_of(self, layer: int, positions: Tensor, window: int | None) -> Tensor:
        """From positions alone: (B, K, Q, T). Padding queries see everything, so that nothing becomes NaN."""
        at = self.positions[:, None, :, None]  # (B, 1, Q, 1)
        slot = positions[:, :, None, :]  # (B, K, 1, T)
        mask = (slot >= 0) & (slot <= at)
        if window is not None:
            mask &= self._distances(layer, positions, self.positions) < window
        if self.visible is not None:
            mask &= torch.isin(slot, self.visible.to(slot.dtype))
        if self.tree is not None:
            # The tree's nodes are each lane's newest slots; several share a position, so ancestry decides.
            nodes, index = self.tree.shape[1], torch.arange(positions.shape[2], device=positions.device)
            node = index - ((positions >= 0).sum(-1) - nodes)[..., None]  # (B, K, T)
            related = self.tree[:, node.clamp(0, nodes - 1)].permute(1, 2, 0, 3)  # (B, K, Q, T)
            mask = torch.where((node >= 0)[:, :, None], related & mask, mask)
        return mask | (at < 0)

    def _read_lanes(
        self, layer: int, lanes: Lanes, folded: Tensor, groups: int, scale: float, window: int | None
    ) -> Tensor:
        """Heads that keep different counts: lane by lane, so that no lane is padded to the longest."""
        softcap, sinks = self.softcaps[layer], self._folded_sinks(layer, folded)
        out = folded.new_empty(*folded.shape[:3], lanes.values.shape[-1])
        assert not self.cache.shift, "renumbered tokens are the same in all heads"
        for b, k, keys, values, positions in lanes.lanes():
            mask = None
            if not self._sees_all or window is not None or self.valid is not None:
                at = self.positions[b][:, None]  # (Q, 1)
                mask = positions <= at
                if window is not None:
                    mask &= self._distances(layer, positions[None, None], self.positions[b : b + 1])[0, 0] < window
                if self.tree is not None:
                    mask[:, -self.tree.shape[1] :] &= self.tree
                mask = (mask | (at < 0)).repeat(groups, 1)
            out[b, k] = attend(
                folded[b, k][None],
                keys[None],
                values[None],
                None if mask is None else mask[None],
                scale,
                softcap,
                None if sinks is None else sinks[k],
            )[0]
        return out

    def _selected(self, layer: int, store: Store, queries: Tensor, scale: float) -> View:
        """Only the slots that the recipe's choice lets this pass attend to."""
        assert self.plan.select is not None
        view, window = store.view(), self.decoder.windows[layer]
        if window is not None:  # tokens behind it may still be stored, and nobody may elect them
            inside = self._distances(layer, view[2], self._first()[:, None])[:, :, 0] < window
            view = compact(view[0], inside), compact(view[1], inside), compact(view[2], inside, -1)
        trace = self._trace(layer, view, queries, self.positions, scale)
        keep, store.state = self.plan.select(trace, store.state)
        mask = keep.mask & trace.filled
        return compact(view[0], mask), compact(view[1], mask), compact(view[2], mask, -1)

    # ---- decisions ----

    def _settles(self, layer: int) -> bool:
        """Something may be decided or dropped once this layer has attended."""
        return not self.plan.idle or self.decoder.windows[layer] is not None or self.observe is not None

    def settle(self, layer: int, queries: Tensor, scale: float) -> None:
        """After a layer has attended: drop what left its window, then let the recipe's methods decide if it is time."""
        store, window, plan = self.cache.stores[layer], self.decoder.windows[layer], self.plan
        if self.observe is not None:
            self._leave_window(store, window, layer, 0)
            self.observe(layer, self._trace(layer, store.view(), queries, self.positions, scale))
            return
        store.fresh += self.new if plan.keep is not None else 0
        store.unpacked += 0 if plan.idle else self.new
        due = plan.keep is not None and (self.prompt or store.fresh >= plan.every)
        packs = plan.quantize is not None and (self.prompt or store.unpacked >= plan.quantize.card.every)
        if plan.watcher is not None and plan.watcher.stateful:
            store.state = _widened(store.state, store.n)
        # Before a decision, so that it is about what a query may still see; else now and then.
        slack = 0 if self.prompt or due or packs else SLACK
        if window is not None and store.n > slack + (0 if due or packs else window):
            self._leave_window(store, window, layer, slack)
        if plan.idle:
            return
        if plan.keep is not None:
            self._evict(layer, store, queries, scale, due)
        if plan.quantize is not None:
            self._pack(layer, store, queries, scale, packs)
        if plan.merge is not None and layer and (self.prompt or store.unpacked >= plan.merge.card.every):
            self._join(layer, store, scale, queries)

    def _leave_window(self, store: Store, window: int | None, layer: int, slack: int) -> None:
        """Drop what lies behind the window, in rows that hold more than `slack` tokens beyond its size.

        Where kept tokens are renumbered and fewer than the window are kept, nothing leaves: a token outside of the
        window may be inside it once others are gone.
        """
        if window is None:
            return
        if self.plan.renumbers:
            assert self.plan.keep is not None
            knobs = self.plan.keep.knobs
            if bool((asked(self._seen(window), knobs["budget"], knobs["slots"]) < window).any()):
                return
        positions = store.positions()
        # Where tokens may be taken back, the window of the first new one must stay whole.
        newest = self._first() if self.cache.recording else self.positions.max(-1).values  # (B,)
        filled = positions >= 0
        mask = filled & (self._distances(layer, positions, newest[:, None])[:, :, 0] < window)
        if slack:
            mask |= filled & (filled.sum(-1).amax(-1) <= window + slack)[:, None, None]
        if not bool((mask == filled).all()):
            self.cache.forgot = self.cache.forgot or not self.cache.recording
            self._drop(layer, store, mask, self.plan.renumbers)

    def _evict(self, layer: int, store: Store, queries: Tensor, scale: float, due: bool) -> None:
        plan = self.plan
        assert plan.watcher is not None
        scores: Tensor | None
        if plan.watcher.stateful:
            trace = self._trace(layer, store.view(), queries, self.positions, scale)
            scores, store.state = plan.score(trace, store.state)
        else:
            if plan.queries != 0:
                store.queries.append((_own(queries), self.positions))
            if not due:
                return
            shown, at = queries[:, :, :0], self.positions[:, :0]
            if store.queries:
                held = [torch.cat(x, dim) for x, dim in zip(zip(*store.queries, strict=True), (2, 1), strict=True)]
                shown, at = newest(held[0], held[1], plan.queries)
            trace = self._trace(layer, store.view(), shown, at, scale)
            scores = plan.score(trace, None)[0] if plan.scores else None
        if not due:
            return
        keep = plan.spend(trace, scores)
        store.queries, store.fresh = [], 0
        if not bool((keep.mask == trace.filled).all()):
            self._drop(layer, store, keep.mask & trace.filled, keep.renumber)

    def _pack(self, layer: int, store: Store, queries: Tensor, scale: float, due: bool) -> None:
        assert self.plan.quantize is not None
        new = [(_own(queries), self.positions)]
        if not self.prompt:  # PROBES counts tokens, also where a draft brought several
            new = [(_own(q), at) for q, at in zip(queries.split(1, 2), self.positions.split(1, 1), strict=True)]
        newer = (*store.probes, *new)
        store.probes = [*newer[-PROBES:]] if not self.prompt else [*newer]
        if not due:
            return
        shown = torch.cat([q for q, _ in store.probes], 2)
        at = torch.cat([p for _, p in store.probes], 1)
        store.pack(self.plan.quantize(self._trace(layer, store.lanes.view(), shown, at, scale)))
        store.probes, store.unpacked = [], 0

    def _drop(self, layer: int, store: Store, mask: Tensor, renumber: bool) -> None:
        store.keep(mask)
        if renumber:
            before = torch.arange(mask.shape[2], device=mask.device).expand_as(mask)
            self.cache.renumbered(layer, self.decoder.rotaries[layer], compact(before, mask))

    def _join(self, layer: int, store: Store, scale: float, queries: Tensor) -> None:
        below = self.cache.stores[layer - 1]
        if layer - 1 in self.merged or not below.lanes.n or not self.plan.pairs(layer, self.decoder):
            return
        views = below.lanes.view(), store.lanes.view()
        traces = (
            self._trace(i, v, queries[:, :, :0], self.positions[:, :0], scale)
            for i, v in zip((layer - 1, layer), views, strict=True)
        )
        assert self.plan.merge is not None
        merge = self.plan.merge(*traces)
        store.unpacked = below.unpacked = 0
        if merge is not None:
            self.cache.join(layer, merge)
            self.merged |= {layer - 1, layer}

    def _trace(self, layer: int, view: View, queries: Tensor, at: Tensor, scale: float | None = None) -> Trace:
        window = self.decoder.windows[layer]
        return Trace(
            keys=view[0].to(queries.dtype),
            values=view[1],
            positions=view[2],
            queries=queries,
            query_positions=at,
            seen=self._seen(window),
            layer=layer,
            layers=len(self.decoder.layers),
            scale=scale or self._scale(layer),
            rotary=self.decoder.rotaries[layer],
            window=window,
            softcap=self.softcaps.get(layer),
            sinks=self.sinks.get(layer),
            prompt=self.prompt,
            generated=self._generated(),
        )

    def _seen(self, window: int | None) -> Tensor:
        """Tokens that a layer was shown so far, as far as its window reaches: (B,)."""
        seen = self.positions.amax(-1) + 1
        return seen if window is None else seen.clamp(max=window)

    def _first(self) -> Tensor:
        """Position of each row's first new token: (B,)."""
        return self.positions.masked_fill(self.positions < 0, torch.iinfo(torch.long).max).min(-1).values

    def _scale(self, layer: int) -> float:
        return getattr(self.decoder.layers[layer], self.decoder.attention).scaling

    # ---- the end of a pass ----

    def finish(self) -> None:
        """Account for the pass, once every layer has run."""
        cache = self.cache
        if self.tree is not None:
            cache.pending += self.new
        else:
            cache.columns += self.new
            new = (self.positions >= 0).sum(-1)
            cache.seen = new if cache.seen is None else cache.seen + new
            cache.generated += 0 if self.prompt else self.new
        self._account()

    def accept(self, accepted: Sequence[int]) -> None:
        """Of the draft's nodes keep these, in rising order, and only now let the recipe decide about them.

        A draft that was read in several passes (a drafter reads its own level by level) is decided about as one.
        """
        cache = self.cache
        assert cache.seen is not None
        assert cache.pending == self.new or self.plan.idle, "a recipe decides about drafts that were read in one pass"
        for layer in self.stored:
            cache.stores[layer].lanes.keep_tail(cache.pending, accepted)
        pending = cache.pending
        self.new, self.tree, self.counted, cache.pending = len(accepted), None, True, 0
        positions = cache.seen[:, None] + torch.arange(self.new, device=cache.seen.device)
        if self.pending:
            self.positions = positions
        if self.decoder.switch is not None:
            whole = self.ids is not None and self.ids.shape[1] == pending  # the draft was read in one pass
            cache.remember(self.ids[:, [*accepted]] if whole else None, positions)  # type: ignore[index]
        cache.columns += self.new
        cache.generated += self.new
        cache.seen = cache.seen + self.new
        queries = self.pending if self.plan.idle else {i: q[:, :, list(accepted)] for i, q in self.pending.items()}
        if self.plan.watcher is not None and self.plan.watcher.stateful and self.new > 1:
            self._settle_in_turn(queries)
        else:
            for layer, shown in queries.items():
                self.settle(layer, shown, self._scale(layer))
        self.pending = {}
        self._account()

    def _settle_in_turn(self, queries: dict[int, Tensor]) -> None:
        """Settle accepted tokens one after the other, as plain decoding does. queries: layer -> (B, H, Q, D).

        A score with a state counts each query over the slots that the layer held at that token, so newer tokens leave
        the lanes first and come back one by one.
        """
        cache, positions, count = self.cache, self.positions, self.new
        tails = {layer: cache.stores[layer].lanes.pop_tail(count - 1) for layer in queries}
        self.new, cache.generated = 1, cache.generated - count
        for i in range(count):
            self.positions = positions[:, i : i + 1]
            cache.generated += 1
            for layer, shown in queries.items():
                if i:
                    keys, values = (x[:, :, i - 1 : i] for x in tails[layer])
                    cache.stores[layer].lanes.append(keys, values, self.positions)
                self.settle(layer, shown[:, :, i : i + 1], self._scale(layer))

    def _account(self) -> None:
        cache = self.cache
        if self.plan.renumbers:
            cache.shifted()
        if self.prompt or not self.plan.idle:  # a cache that only grows is largest when it is asked
            cache.peak = max(cache.peak, cache.nbytes)


def call(decoder: Decoder, module: Any, hidden: Tensor, angles: Any, positions: Tensor, attends: Any) -> Any:
    """A layer, or the attention of one, over hidden states (B, Q, E); `attends` gets its queries, keys and values."""
    given = {} if angles is None else {"position_embeddings": angles}
    before = _current.set(attends)
    try:
        return module(
            hidden, attention_mask=None, position_ids=positions, use_cache=True,
            **{decoder.cache_argument: _Handover}, **given,
        )  # fmt: skip
    finally:
        _current.reset(before)


def _own(x: Tensor) -> Tensor:
    """A tensor to be held: a slice of a larger one (GPT-2's queries are) would hold all of that."""
    return x if x.untyped_storage().nbytes() == x.numel() * x.element_size() else x.clone()


def _widened(state: Any, slots: int) -> Any:
    """Per-slot state, zero for the slots that are new."""
    if state is None:
        return None
    return F.pad(state, (0, slots - state.shape[2]))


def _attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
    """What transformers calls for attention during a pass of ours, also for another thread's forward of its own."""
    current = _current.get()
    if current is None:
        if not in_pass():
            return attention_outside(module)(module, query, key, value, attention_mask, **kwargs)
        raise ModelError(
            f"{type(module).__name__} was called outside of the engine's pass while a recipe is applied; "
            "call the model itself, or leave applied() first"
        )
    given = {**kwargs, "attention_mask": attention_mask}
    unknown = sorted(
        name for name, value in given.items() if name not in KNOWN and value is not None and value is not False
    )
    if unknown or kwargs.get("is_causal") is False:
        raise ModelError(
            f"{type(module).__name__} attends with {', '.join(unknown) or 'is_causal=False'}, which the engine does "
            "not compute"
        )
    out = current.attend(
        module.layer_idx, query, key, value, kwargs.get("scaling") or query.shape[-1] ** -0.5,
        kwargs.get("softcap"), kwargs.get("s_aux"),
    )  # fmt: skip
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attention)
