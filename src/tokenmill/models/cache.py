"""The cache of a model under a recipe. It reports the text's length, whatever it still holds of it."""

from __future__ import annotations

from itertools import pairwise, zip_longest
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from tokenmill.errors import RecipeError
from tokenmill.method import Recipe
from tokenmill.models.lanes import Lanes, View, compact
from tokenmill.models.parts import Packed, Part, Shared
from tokenmill.types import Bits, Merge, Rotary


class Store:
    """What one layer holds: parts in other forms, then lanes of tokens as they are."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.lanes = Lanes()
        self.state: Any = None  # what a stateful method returned last; for a score (B, K, T), one number a slot
        self.queries: list[tuple[Tensor, Tensor]] = []  # queries since the last decision: (B, H, Q, D), (B, Q)
        self.probes: list[tuple[Tensor, Tensor]] = []  # queries since the last packing
        self.fresh = 0  # tokens read since the last decision
        self.unpacked = 0  # tokens read since the last packing

    def view(self) -> View:
        """keys, values (B, K, T, D) and positions (B, K, T) of all slots; no copy when there are no parts.

        Empty slots are at the end, also where a part holds fewer tokens of one row or head than of another.
        """
        if not self.parts:
            return self.lanes.view()
        views = [part.view() for part in self.parts]
        if self.lanes.n:
            views.append(self.lanes.view())
        keys, values, _ = (torch.cat(x, 2) for x in zip(*views, strict=True))
        positions = self._side_by_side()
        filled = positions >= 0
        return compact(keys, filled), compact(values, filled), compact(positions, filled, -1)

    def positions(self) -> Tensor:
        """The positions of view(), without reading keys and values."""
        if not self.parts:
            return self.lanes.view()[2]
        positions = self._side_by_side()
        return compact(positions, positions >= 0, -1)

    def _side_by_side(self) -> Tensor:
        """Positions of parts and lanes side by side, empty slots where they lie."""
        held = [part.positions for part in self.parts] + ([self.lanes.view()[2]] if self.lanes.n else [])
        return torch.cat([positions.to(torch.int32) for positions in held], 2)

    @property
    def n(self) -> int:
        """Slots of view(): tokens of the fullest lane, parts included."""
        if not self.parts:
            return self.lanes.n
        return int((self._side_by_side() >= 0).sum(-1).max())

    @property
    def even(self) -> bool:
        """No slot is empty."""
        return not self.parts and self.lanes.even

    @property
    def nbytes(self) -> int:
        total = self.lanes.nbytes + sum(part.nbytes for part in self.parts)
        total += sum(q.numel() * q.element_size() for q, _ in self.queries + self.probes)
        states = self.state if isinstance(self.state, tuple | list) else (self.state,)
        return total + sum(x.numel() * x.element_size() for x in states if isinstance(x, Tensor))

    def keep(self, mask: Tensor) -> None:
        """Free every slot that mask (B, K, T) does not keep. A per-slot state is thinned alongside."""
        if isinstance(self.state, Tensor):
            self.state = compact(self.state, mask)
        if self.parts:
            filled = (
                self._side_by_side() >= 0
            )  # (B, K, T): parts and lanes as they lie, where mask has empty slots last
            where = (filled.cumsum(-1) - 1).clamp(min=0)
            mask = mask.gather(2, where) & filled
        masks = mask.split([part.positions.shape[2] for part in self.parts] + [self.lanes.n], 2)
        self.parts = [part.keep(kept) for part, kept in zip(self.parts, masks, strict=False)]
        if self.lanes.n:
            self.lanes.keep(masks[-1])

    def pack(self, bits: Bits) -> None:
        """Move the lanes' tokens into a packed part."""
        self.parts.append(Packed.of(self.lanes.view(), bits))
        self.lanes = Lanes()

    def copy(self) -> Store:
        out = Store()
        out.__dict__.update(self.__dict__)
        out.parts, out.lanes = list(self.parts), self.lanes.copy()
        out.queries, out.probes = list(self.queries), list(self.probes)
        out.state = self.state.clone() if isinstance(self.state, Tensor) else self.state
        return out

    def select_rows(self, index: Tensor) -> Store:
        out = self.copy()
        out.parts = [part.select_rows(index) for part in self.parts]
        if self.lanes.rows:
            out.lanes = self.lanes.select_rows(index)
        out.queries = [(q[index], at[index]) for q, at in self.queries]
        out.probes = [(q[index], at[index]) for q, at in self.probes]
        out.state = self.state[index] if isinstance(self.state, Tensor) else None
        return out


class MillCache(Cache):
    """A transformers cache whose layers hold what a recipe keeps.

    Lengths it reports are the text's: `generate` slices its input by them and numbers positions with them.
    """

    def __init__(self, recipe: Recipe, layers: int):
        super().__init__(layers=[])
        self.recipe = recipe
        self.stores = [Store() for _ in range(layers)]
        self.columns = 0  # columns of ids fed so far, padding included
        self.seen: Tensor | None = None  # (B,) tokens fed so far
        self.shift: list[Tensor] = []  # per layer (B,): how far in-cache positions lie below those in the text
        self.generated = 0  # tokens fed one at a time since the prompt
        self.pending = 0  # nodes of a draft that were read and not yet decided about
        self.recording = False  # tokens may be taken back, so none may leave a window for good in the pass they came in
        self.forgot = False  # tokens have left a sliding window
        self.broken = ""  # why it can no longer be used
        self.inference = False  # its newest tensors were made in torch.inference_mode
        self.rows: list[MillCache] = []  # one cache a row, for methods that walk rows apart
        self.stash: list[
            tuple[Tensor, Tensor]
        ] = []  # per layer: positions (M,), hidden states (M, E) waiting before it
        self.revived = 0  # tokens taken back from the stash
        self.token_layers = 0  # tokens times layers that were computed
        self.heads = 0  # tokens times exit heads that were computed
        self.peak = 0  # most bytes held at the end of a pass
        self.reach = 0  # length of the text, as the model sees it, that the newest pass turned its keys for
        # (B, C) ids and positions of all that was read, for models that may read it again: see Decoder.switch
        self.text: tuple[Tensor, Tensor] | None = None

    # ---- what Tokenmill asks ----

    @property
    def nbytes(self) -> int:
        """Bytes held now: keys, values, positions, codes and scales, states, query buffers, stashed hidden states."""
        total = sum(store.nbytes for store in self.stores) + sum(row.nbytes for row in self.rows)
        return total + sum(x.numel() * x.element_size() for layer in self.stash for x in layer)

    def kept(self) -> list[list[list[list[int]]]]:
        """[layer][row][head] -> sorted absolute positions."""
        if self.rows:
            per_row = [row.kept() for row in self.rows]
            return [[rows[layer][0] for rows in per_row] for layer in range(len(self.stores))]
        out = []
        for store in self.stores:
            positions = store.positions().tolist() if store.lanes.rows or store.parts else []
            out.append([[sorted(p for p in head if p >= 0) for head in row] for row in positions])
        return out

    def copy(self) -> MillCache:
        """The same content in memory of its own."""
        out = MillCache(self.recipe, 0)
        out.__dict__.update(self.__dict__)
        out.stores = [store.copy() for store in self.stores]
        out.rows = [row.copy() for row in self.rows]
        out.stash = list(self.stash)
        out.seen = None if self.seen is None else self.seen.clone()
        out.shift = list(self.shift)
        return out

    def row(self, index: int) -> MillCache:
        """One row as a cache of its own."""
        out = MillCache(self.recipe, 0)
        out.__dict__.update(self.__dict__)
        out.stash = list(self.stash)
        out._select(torch.tensor([index], device=None if self.seen is None else self.seen.device))
        return out

    def remember(self, ids: Tensor | None, positions: Tensor) -> None:
        """Note tokens that were read."""
        if ids is None or (self.text is None and self.columns > ids.shape[1]):
            self.text = None
        elif self.text is None:
            self.text = ids, positions
        else:
            self.text = torch.cat([self.text[0], ids], 1), torch.cat([self.text[1], positions], 1)

    def join(self, layer: int, merge: Merge) -> None:
        """Store what a layer and the one below hold as one pair."""
        pair = self.stores[layer - 1], self.stores[layer]
        parts = Shared.pair(pair[0].lanes.view(), pair[1].lanes.view(), merge)
        for store, part in zip(pair, parts, strict=True):
            store.parts.append(part)
            store.lanes = Lanes()

    def shifted(self) -> None:
        """After renumbering: how far the positions of each layer now lie below those in the text."""
        if self.seen is not None:
            held = [store.lanes.count()[:, 0] if store.lanes.rows else self.seen for store in self.stores]
            self.shift = [self.seen - count for count in held]  # layers that never run hold nothing and shift nothing

    def renumbered(self, layer: int, rotary: Rotary | None, before: Tensor) -> None:
        """Give the kept tokens of a layer in-cache positions: slot 0, 1, 2 … `before` (B, K, n): what they were."""
        if rotary is None:
            raise RecipeError(
                "renumbering positions needs rotary embeddings and this model has learned ones; use renumber=False"
            )
        lanes = self.stores[layer].lanes
        keys, _, positions = lanes.view()
        slot = torch.arange(lanes.n, device=keys.device).expand_as(positions)
        by = torch.where(positions >= 0, slot - before, 0)
        if bool(by.any()):
            lanes.rotate(rotary.rotate(keys, by))

    # ---- what transformers asks ----

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.columns

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.columns + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.columns

    def __len__(self) -> int:
        return len(self.stores)

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_initialized(self) -> bool:
        return self.columns > 0

    @property
    def is_sliding(self) -> list[bool]:
        return [False] * len(self.stores)

    @property
    def is_linear(self) -> list[bool]:
        return [False] * len(self.stores)

    @property
    def is_dummy(self) -> list[bool]:
        return [False] * len(self.stores)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        raise RecipeError(
            f"this cache belongs to the recipe {self.recipe!r}; use it inside tokenmill.applied(model, recipe)"
        )

    def _select(self, index: Tensor) -> None:
        if self.broken:
            raise RecipeError(self.broken)
        self.stores = [store.select_rows(index) if store.lanes.rows or store.parts else store for store in self.stores]
        for lower, upper in pairwise(self.stores):
            upper.parts = [
                part.beside(below) if isinstance(below, Shared) and isinstance(part, Shared) and below.lower else part
                for below, part in zip_longest(lower.parts[: len(upper.parts)], upper.parts)
            ]
        self.rows = [self.rows[i].copy() for i in index.tolist()] if self.rows else []
        if self.seen is not None:
            self.seen = self.seen[index]
        self.shift = [shift[index] for shift in self.shift]
        self.text = None if self.text is None else (self.text[0][index], self.text[1][index])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.seen is not None:
            self._select(torch.arange(len(self.seen), device=self.seen.device).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the newest tokens: assisted generation does. Refused once a recipe may have evicted for them."""
        if tokens_to_remove == 0:
            return
        if tokens_to_remove > 0:
            raise RecipeError("crop takes the negative number of tokens to remove")
        if any(m.name != "full" for m in self.recipe):
            raise RecipeError(
                f"{self.recipe!r} cannot take tokens back after it evicted or packed for them; "
                "draft with tokenmill.generate(recipe='… + prompt_lookup'), not with assisted generation"
            )
        if self.forgot:
            raise RecipeError(
                "tokens that left a sliding window cannot come back; call activate_past_recording() on the cache first"
            )
        assert self.seen is not None
        self.seen = self.seen + tokens_to_remove
        self.columns += tokens_to_remove
        self.text = (
            None if self.text is None else (self.text[0][:, :tokens_to_remove], self.text[1][:, :tokens_to_remove])
        )
        for store in self.stores:
            positions = store.positions()
            store.keep((positions >= 0) & (positions < self.seen[:, None, None]))

    def activate_past_recording(self) -> None:
        self.recording = True

    def reset(self) -> None:
        self.__init__(self.recipe, len(self.stores))  # type: ignore[misc]
