"""Put a model under the engine, and take it back out as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from tokenmill.errors import InputError, ModelError, RecipeError
from tokenmill.method import Method, Recipe
from tokenmill.method import recipe as as_recipe
from tokenmill.models.admission import admitted
from tokenmill.models.architectures import CACHE, Decoder, decoder_of
from tokenmill.models.cache import MillCache
from tokenmill.models.engine import Pass
from tokenmill.models.lean import lean_of
from tokenmill.models.owner import configs_of, owner_of
from tokenmill.models.plan import Plan, plan_of


@dataclass
class DecoderOutput(BaseModelOutputWithPastAndCrossAttentions):
    """What a decoder gives, with the fields that wrappers look for."""

    router_logits: tuple[Tensor, ...] | None = None  # of mixtures of experts: never kept


class Engine:
    """Stands in for the forward of a model's decoder while the model is under a recipe."""

    def __init__(self, model: Any, recipe: Recipe, decoder: Decoder | None = None):
        self.decoder = decoder_of(model) if decoder is None else decoder
        self.owner, self.configs = owner_of(self.decoder.base), configs_of(self.decoder.base, self.decoder.layers)
        self.recipe = recipe
        self.plan = plan_of(recipe, self.decoder)
        self.lean = lean_of(self.decoder)
        self.cache: MillCache | None = None  # of the newest pass
        self.tree: tuple[Tensor, Tensor] | None = None  # depths (Q,), nodes seen (Q, N) of the next pass: see Pass.tree
        self.last: Pass | None = None
        self.hidden: Tensor | None = None  # (B, Q, E) final hidden states of the newest pass
        self.watched: tuple[int, ...] = ()  # layers after which the states are wanted
        self.states: dict[int, Tensor] = {}  # layer -> (B, Q, E) of the newest pass
        self.observe: Any = None  # see Pass.observe
        self._plans: dict[Recipe, Plan] = {recipe: self.plan}

    def new_cache(self) -> MillCache:
        return MillCache(self.recipe, len(self.decoder.layers))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> DecoderOutput | tuple[Any, ...]:
        """The decoder's forward: ids (B, Q) to hidden states (B, Q, E). What a call leaves open the config decides.

        `cache` is the newer name of `past_key_values`.
        """
        past_key_values = cache if past_key_values is None else past_key_values
        config: Any = self.decoder.base.config
        for name in ("output_attentions", "output_hidden_states", "output_router_logits"):
            asked = kwargs.get(name)
            if getattr(config, name, False) if asked is None else asked:
                raise RecipeError(f"{name}=True: the engine does not keep them; ask the model outside of applied()")
        if use_cache is None:
            use_cache = getattr(config, "use_cache", True)
        hidden = self.read(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds)
        held: Any = {CACHE: self.cache if use_cache is not False else None}
        out = DecoderOutput(last_hidden_state=hidden, **held)
        return out.to_tuple() if kwargs.get("return_dict") is False else out

    def logits(self, last: int, **given: Any) -> Tensor:
        """What the model gives for these inputs: the logits (B, last, V) after the newest tokens, after all for 0."""
        if self.decoder.head is None:
            named = {CACHE if name == "past_key_values" else name: value for name, value in given.items()}
            plain = {"output_attentions": False, "output_hidden_states": False, "return_dict": True}
            with self.owner.serving(self.decoder.base, self, public=False):
                return self.decoder.model(**named, use_cache=True, logits_to_keep=last, **plain).logits
        hidden = self.read(**given, last=last)
        assert self.last is not None
        made = self.last.logits if self.last.new == hidden.shape[1] else None  # else of the newest piece alone
        return self.decoder.head(hidden[:, -last:]) if made is None else made

    def read(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        last: int | None = None,
    ) -> Tensor:
        """Ids (B, Q) to the decoder's hidden states (B, Q, E), which `hidden` holds, as `cache` holds the cache.

        `last`: so many of the newest tokens' logits are wanted too, 0 for all.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("give either input_ids or inputs_embeds")
        given = input_ids if input_ids is not None else inputs_embeds
        assert given is not None
        if given.shape[1] == 0:
            raise InputError("the prompt is empty; give at least one token")
        if self.decoder.base.training:
            _refuse_dropout(self.decoder.base)
            _refuse_checkpoints(self.decoder.base)
        cache = self._cache(past_key_values)
        positions = self._positions(cache, given.shape[0], given.shape[1], attention_mask, position_ids, given.device)
        self.cache = cache
        cache.broken = (
            "a forward pass on this cache ended in an error, so it is incomplete; start again with a new cache"
        )
        with self.owner.walking(self.configs):
            if self.plan.walker is None and self._crosses_switch(cache, positions):
                input_ids, inputs_embeds, positions = self._whole_text(cache, input_ids, positions)
            pieces = self._pieces(cache, positions)
            if self.plan.walker is not None:
                hidden = self._row_by_row(cache, input_ids, inputs_embeds, positions)
            elif len(pieces) == 1:
                hidden = self._pass(cache, input_ids, inputs_embeds, positions, last)
            else:
                outputs, states = [], []
                for piece in pieces:
                    ids, embeds = (None if x is None else x[:, piece] for x in (input_ids, inputs_embeds))
                    outputs.append(self._pass(cache, ids, embeds, positions[:, piece], reading=True))
                    states.append(self.states)
                hidden = torch.cat(outputs, 1)
                self.states = {layer: torch.cat([each[layer] for each in states], 1) for layer in self.states}
            if hidden.shape[1] > given.shape[1]:  # of a text that was read again, what is new
                hidden = hidden[:, -given.shape[1] :]
                self.states = {layer: state[:, -given.shape[1] :] for layer, state in self.states.items()}
        cache.inference = torch.is_inference_mode_enabled()
        cache.broken = ""
        self.hidden = hidden
        return hidden

    def _crosses_switch(self, cache: MillCache, positions: Tensor) -> bool:
        """Whether longrope has other frequencies for the text with these tokens than those of the keys in the cache."""
        switch = self.decoder.switch
        if switch is None or not cache.reach:
            return False
        if self.plan.renumbers and self.tree is None:
            return False  # such a text is read in pieces that keep below it
        return (cache.reach > switch) != (self._reach(cache, positions) > switch)

    @staticmethod
    def _reach(cache: MillCache, positions: Tensor) -> int:
        """How long a text a pass over tokens at these positions is to the model."""
        return 1 + int((positions if not cache.shift else positions - cache.shift[0][:, None]).max())

    def _whole_text(self, cache: MillCache, ids: Tensor | None, positions: Tensor) -> tuple[Tensor, None, Tensor]:
        """The text so far and what is new, as if nothing had been read: the cache is emptied."""
        if (
            ids is None
            or cache.text is None
            or cache.text[0].shape[1] != cache.columns
            or self.plan.walker is not None
            or self.plan.renumbers
            or self.tree is not None
        ):
            raise RecipeError(
                f"the text crosses {self.decoder.switch} tokens, where '{self.decoder.kind}' reads all of it "
                f"again with other rotary frequencies; {self.recipe!r} cannot do so"
            )
        generated = cache.generated + (ids.shape[1] == 1)
        ids, positions = torch.cat([cache.text[0], ids], 1), torch.cat([cache.text[1], positions], 1)
        stays = {name: getattr(cache, name) for name in ("peak", "token_layers", "heads", "recording", "broken")}
        cache.reset()
        vars(cache).update(stays, generated=generated)
        return ids, None, positions

    def _pieces(self, cache: MillCache, positions: Tensor) -> list[slice]:
        """A text longer than the context is read in pieces, where what is kept of it gets positions in the cache."""
        new = positions.shape[1]
        limit = self.decoder.limit
        if not self.plan.renumbers or limit is None or self.tree is not None:
            return [slice(0, new)]
        held = max((store.lanes.n for store in cache.stores if store.lanes.rows), default=0)
        if held + new <= limit:
            return [slice(0, new)]
        assert self.plan.keep is not None
        room = limit - max(held, self.plan.keep.knobs["slots"] or limit)
        if room < 1:
            raise RecipeError(
                f"{self.plan.keep!r} keeps so much that nothing more fits into the context of {limit} tokens; give "
                f"slots, and fewer than {limit}"
            )
        # Counted from the end, so that rows which are padded in front are read in the pieces they would have alone.
        pieces = [slice(max(0, end - room), end) for end in range(new, 0, -room)][::-1]
        if any(bool((positions[:, piece] < 0).all(-1).any()) for piece in pieces):
            raise InputError(
                f"the text is longer than the context of {limit} tokens, so it is read in pieces, and a whole piece of "
                "one row would be padding; read rows of such different lengths apart"
            )
        return pieces

    def _pass(
        self, cache: MillCache, ids: Tensor | None, embeds: Tensor | None, positions: Tensor, last: int | None = None,
        reading: bool = False,
    ) -> Tensor:  # fmt: skip
        plan = self._plans.get(cache.recipe) or plan_of(cache.recipe, self.decoder)
        self._plans[cache.recipe] = plan
        tree = None
        if self.tree is not None:
            tree, self.tree = self.tree[1], None
        current = Pass(self.decoder, plan, cache, positions, tree)
        current.observe, current.watched = self.observe, self.watched
        current.lean, current.ids = self.lean, ids
        current.prompt = current.prompt or reading
        cache.reach = self._reach(cache, positions)
        with nullcontext() if self.lean is None else self.lean.threads():
            hidden = current.answer(ids, last) if ids is not None and last is not None else None
            if hidden is None:
                at = positions if not cache.shift else positions - cache.shift[0][:, None]
                embed, given = (self.decoder.embed, ids) if ids is not None else (self.decoder.place, embeds)
                assert given is not None
                hidden = embed(given, at.clamp(min=0))
                current.lean = None if hidden.requires_grad else self.lean
                hidden = (current.run_walking if plan.walker is not None else current.run)(hidden)
        current.finish()
        if self.decoder.switch is not None and tree is None:
            cache.remember(ids, positions)
        self.last, self.states = current, current.states
        return hidden

    def through(self, cache: MillCache, layers: range, states: Tensor, depths: Tensor, sees: Tensor) -> Tensor:
        """States (Q, E) of tokens that may come next in the one row, through some layers, without the final norm.

        depths (Q,): how far behind the text each is, 0 for the next token; sees (Q, N) bool as in Pass.tree. Their keys
        and values wait in these layers' stores until `drop`, which must come before anything else is read.
        """
        assert cache.seen is not None
        current = Pass(self.decoder, self._plans[cache.recipe], cache, cache.seen[:, None] + depths, sees)
        current.lean = self.lean
        with self.owner.walking(self.configs), nullcontext() if self.lean is None else self.lean.threads():
            return current.through(states[None], layers)[0]

    @staticmethod
    def drop(cache: MillCache, layers: range, count: int) -> None:
        """Take the newest `count` tokens out of the stores of these layers."""
        for layer in layers:
            cache.stores[layer].lanes.drop_tail(count)

    def _row_by_row(self, cache: MillCache, ids: Tensor | None, embeds: Tensor | None, positions: Tensor) -> Tensor:
        """Rows choose different tokens at every layer, so each walks alone. Only the last hidden state is defined."""
        if not cache.rows:
            cache.rows = [MillCache(cache.recipe, len(cache.stores)) for _ in range(len(positions))]
        given = ids if ids is not None else embeds
        assert given is not None
        out = []
        for row, own in enumerate(cache.rows):
            real = positions[row] >= 0
            one, at = given[row : row + 1, real], positions[row : row + 1, real]
            if self._crosses_switch(own, at):
                self._whole_text(own, None, at)
            out.append(self._pass(own, one, None, at) if ids is not None else self._pass(own, None, one, at))
        hidden = torch.cat(out)  # (B, 1, E)
        cache.columns += positions.shape[1]
        new = (positions >= 0).sum(-1)
        cache.seen = new if cache.seen is None else cache.seen + new
        cache.generated += positions.shape[1] == 1
        cache.token_layers = sum(own.token_layers for own in cache.rows)
        cache.peak = max(cache.peak, cache.nbytes)
        # Tokens that were dropped on the way have no final state: nobody may mistake another's for theirs.
        return F.pad(hidden, (0, 0, positions.shape[1] - 1, 0), value=torch.nan)

    def _cache(self, past: Any) -> MillCache:
        if past is None:
            return self.new_cache()
        if not isinstance(past, MillCache):
            return self._taken_over(past)
        if past.broken:
            raise RecipeError(past.broken)
        if len(past.stores) != len(self.decoder.layers):
            raise InputError(
                f"the cache is of a model with {len(past.stores)} layers and this one has {len(self.decoder.layers)}; "
                "start again with a new cache"
            )
        if past.inference and not torch.is_inference_mode_enabled():  # its tensors can only be written to in there
            past.__dict__.update(deepcopy(past).__dict__)
        return past

    def _taken_over(self, past: Any) -> MillCache:
        """The caller's own empty cache, which becomes one of the recipe's: whoever goes on with it goes on."""
        kind = type(past).__name__
        if type(past) is not DynamicCache or past.offloading:
            raise RecipeError(
                f"the engine has a cache of its own and cannot fill this {kind}; give an empty DynamicCache that is "
                "not offloaded, or none, and let generate use its default cache, not a static one"
            )
        if past.get_seq_length() > 0:
            raise RecipeError(
                f"a filled {kind} was made without the recipe; start from the whole prompt inside applied()"
            )
        recording = any(getattr(layer, "record_past", False) for layer in past.layers)
        past.__dict__.clear()
        cache: Any = past
        cache.__class__ = MillCache
        cache.__init__(self.recipe, len(self.decoder.layers))
        cache.recording = recording
        return cache

    def _positions(
        self, cache: MillCache, rows: int, new: int, mask: Tensor | None, ids: Tensor | None, device: torch.device
    ) -> Tensor:
        """Absolute positions (B, Q), -1 for padding: how many real tokens of the row came before."""
        seen = cache.seen if cache.seen is not None else torch.zeros(rows, dtype=torch.long, device=device)
        if len(seen) != rows:
            raise InputError(f"the cache holds {len(seen)} rows and the input has {rows}")
        if self.tree is not None:
            return seen[:, None] + self.tree[0]
        mask = _padding_of(mask, new, cache.columns, next((w for w in self.decoder.windows if w), None))
        if mask is None:
            positions = seen[:, None] + torch.arange(new, device=device)
        else:
            real = mask[:, -new:].bool()
            positions = torch.where(real, seen[:, None] + real.cumsum(-1) - 1, -1)
            if not bool(real.any(-1).all()):
                raise InputError("a row of the batch is all padding; every row needs at least one token")
        if ids is not None and not bool(((ids == positions) | (positions < 0)).all()):
            raise RecipeError("position_ids differ from the order of the tokens; packed sequences are not supported")
        return positions


@contextmanager
def applied(model: Any, recipe: str | Method | Recipe | None = None) -> Iterator[Engine]:
    """Run a Hugging Face model under a recipe: `with applied(model, "h2o(budget=0.2)"): model.generate(...)`.

    Inside, forward, generate and pipelines use the engine and return caches that hold what the recipe keeps.
    On leaving, also by an exception, the model is bit for bit what it was. Draft methods need the loop of
    `tokenmill.generate`.

    Raises RecipeError for a recipe that cannot run on this model, ModelError for a model that is no decoder.
    """
    wanted = as_recipe(recipe)
    if (draft := wanted.get("draft")) is not None:
        raise RecipeError(
            f"{draft!r} drafts several tokens a step, which needs Tokenmill's own loop: tokenmill.generate"
        )
    for m in wanted:
        if m.verb == "choose":
            library = m.card.role in ("warp", "final")
            if m.card.role == "adapt":
                raise RecipeError(
                    f"{m!r} adapts the model to the text as it grows, which needs Tokenmill's own loop: "
                    "tokenmill.generate"
                )
            raise RecipeError(
                f"{m!r} chooses tokens, which the library's generate does itself; "
                + (f'give it logits_processor=tokenmill.processors("{m!r}")' if library else "use tokenmill.generate")
            )
    engine = engine_of(model, wanted)
    with engine.owner.serving(engine.decoder.base, engine, public=True):
        yield engine


def engine_of(model: Any, recipe: Recipe) -> Engine:
    """An engine for loops of Tokenmill's own, which call it themselves: between its passes the model is as it was."""
    if getattr(model, "training", False):
        _refuse_dropout(decoder_of(model).base)
    devices = {str(d) for d in (getattr(model, "hf_device_map", None) or {}).values()} - {"cpu", "disk"}
    if len(devices) > 1:
        raise ModelError(
            f"the model is spread over the devices {', '.join(sorted(devices))} and the engine runs on one; load it "
            "with a device_map of one device"
        )
    return Engine(model, recipe, admitted(model, lambda: _unchecked(model)))


@contextmanager
def _unchecked(model: Any) -> Iterator[Engine]:
    """The model, its layers too, under the engine without a recipe, while it is found out whether that is right."""
    engine = Engine(model, Recipe(()))
    with engine.owner.serving(engine.decoder.base, engine, public=False), engine.owner.walking(engine.configs):
        yield engine


def _refuse_dropout(module: Any) -> None:
    """Raise ModelError if what is in there would drop out now: the engine's attention does not."""
    for part in module.modules():
        rates = {"p": part.p} if isinstance(part, torch.nn.Dropout) else vars(part)
        for name, rate in rates.items():
            if (name == "p" or "drop" in name) and isinstance(rate, float) and rate > 0 and part.training:
                raise ModelError(
                    f"the model is in train mode and {type(part).__name__} drops out ({name}={rate:g}), which the "
                    "engine does not do; call model.eval() first"
                )


def _refuse_checkpoints(base: Any) -> None:
    """Raise ModelError if the layers of a model in train mode will run again for their gradients."""
    if torch.is_grad_enabled() and any(getattr(part, "gradient_checkpointing", False) for part in base.modules()):
        raise ModelError(
            "the model checkpoints gradients, which runs each layer again, over a cache that has its tokens already; "
            "call model.gradient_checkpointing_disable(), model.eval(), or use torch.no_grad()"
        )


def _padding_of(mask: Any, new: int, old: int, window: int | None) -> Tensor | None:
    """The 2D mask (1 = token, 0 = padding) behind what a model was given, for its newest columns.

    A wrapper hands its decoder a mask (B, 1, Q, T) for each type of layer. Beside the padding it must be causal, and
    inside the window for layers that have one.
    """
    if isinstance(mask, dict):
        window = None if "full_attention" in mask else window
        mask = mask.get("full_attention", mask.get("sliding_attention"))
    if mask is None or (isinstance(mask, Tensor) and mask.ndim == 2):
        return mask
    if isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[1:] == (1, new, old + new):
        seen = (mask if mask.dtype == torch.bool else mask == 0)[:, 0]  # (B, Q, T)
        real = torch.cat([seen[..., :old].any(1), seen[..., old:].diagonal(dim1=1, dim2=2)], 1)  # a token sees itself
        expected = torch.ones(seen.shape[1:], dtype=torch.bool, device=seen.device).tril(old)
        if window is not None:
            expected = expected.triu(old - window + 1)
        if bool(real[:, old:].any(-1).all()) and bool(
            ((seen == (expected & real[:, None])) | ~real[:, old:, None]).all()
        ):
            return real
    raise RecipeError(
        "the engine builds its masks from positions; give a 2D attention_mask (1 = token, 0 = padding), and "
        "let generate use its default cache, not a static one"
    )
