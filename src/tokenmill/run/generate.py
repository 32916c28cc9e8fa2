"""Text from a model under a recipe: Tokenmill's own loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokenmill.errors import InputError, RecipeError
from tokenmill.method import Method, Recipe, grown
from tokenmill.method import recipe as as_recipe
from tokenmill.models.architectures import context_of, decoder_of
from tokenmill.models.trained import learned
from tokenmill.ops.text import Detokenizer, shortened
from tokenmill.run.adapt import adapting
from tokenmill.run.arguments import Prompt, prompt_rows, refuse_unknown, stop_strings, whole_number
from tokenmill.run.choose import Chooser
from tokenmill.run.cost import cost_of
from tokenmill.run.larger import Larger, beside, larger_model, writing_part
from tokenmill.run.processors import Processors
from tokenmill.run.session import Session, Stats
from tokenmill.run.speculate import speculate
from tokenmill.run.writing import Mending, Text
from tokenmill.types import Learned


@dataclass(frozen=True, repr=False)
class Output:
    """What came out for one prompt."""

    text: str
    ids: list[int]  # new tokens; an end-of-text token that ended the text is the last
    stats: Stats  # of the batch the prompt was in
    prompt_ids: list[int]
    kept: list[list[list[int]]]  # [layer][key/value head] -> positions held at the end

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Output({shortened(self.text)!r}, {len(self.ids)} tokens, {self.stats!r})"


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Prompt | Iterable[Prompt] | Tensor,
    recipe: str | Method | Recipe | None = None,
    *,
    max_new_tokens: int = 64,
    temperature: float | None = None,
    top_p: float = 1.0,
    seed: int | Sequence[int] = 0,
    stop: str | Iterable[str] | None = (),
    ignore_eos: bool = False,
    chat: bool | str = False,
    chunk: int | None = None,
    assistant: Any = None,
    memory: dict[str, Any] | None = None,
    on_text: Callable[[int, str], None] | None = None,
    reward: Callable[[int, list[int]], float] | None = None,
    generation_config: Any = None,
) -> list[Output]:
    """Continue each prompt by up to `max_new_tokens` tokens.

    A prompt is text, ids, or messages: a list of {"role": "user", "content": "…"}, which the model's chat format
    writes. With `chat` text is a user's message too; a name takes the chat template of that name. Ids also come as a
    tensor or array, (T,) or (rows, T), or as what a tokenizer returned.

    Prompts of different length run in one batch, and each comes out as it would alone. `chunk` reads prompts in pieces;
    `on_text(row, text)` is called as text grows; text ends before the first of `stop`. `assistant` is a loaded model of
    the same vocabulary: what draft_model drafts with, or the large one that r2r names. `memory`, a dict to begin with
    empty, carries what a draft method learned from these prompts to the next call; it changes how fast text comes,
    never which, unless the recipe's rule is not lossless. `reward(row, ids)` is what new tokens are worth, the higher
    the better, for latent_seek. With one `seed` a prompt draws the same whatever is beside it, so equal prompts give
    equal texts; give each its own for other ones. Drafts of chosen guesses, such as a table's, leave the text that the
    seed gives without them; where guesses are drawn, as from a draft model, a seed gives one text with each recipe.

    What the model's generation_config asks of logits is done to them as the library's `generate` does it, drafts
    included: repetition_penalty, no_repeat_ngram_size, bad_words_ids, sequence_bias, suppress_tokens, forced tokens,
    min_length and min_new_tokens; and its eos_token_id and stop_strings end a text. How tokens are chosen is the
    recipe's: do_sample, temperature, top_k, top_p, num_beams and the like are not read. `generation_config` overrides
    the model's in what it sets. Between two passes the model is unchanged, and several threads may call.

    Raises InputError for prompts that are empty or do not fit the model's context, RecipeError for a recipe that
    cannot run, ModelError for logits that are not finite.
    """
    steps = _written(
        model, tokenizer, prompts, recipe, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p,
        seed=seed, stop=stop, ignore_eos=ignore_eos, chunk=chunk, assistant=assistant, memory=memory, on_text=on_text,
        reward=reward, generation_config=generation_config, chat=chat,
    )  # fmt: skip
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def stream(model: Any, tokenizer: Any, prompt: Prompt, **knobs: Any) -> Iterator[str]:
    """`generate` for one prompt, as an iterator of text pieces. The text is written as pieces are asked for.

    Whoever leaves early, or lets go of the iterator, ends the writing with it.
    """
    pieces: list[str] = []
    with closing(_written(model, tokenizer, prompt, on_text=lambda _, text: pieces.append(text), **knobs)) as steps:
        for _ in steps:
            yield from pieces
            pieces.clear()
    yield from pieces


@torch.inference_mode(False)  # what is made here outlives the caller's inference mode: caches, `memory`
@torch.no_grad()
def _written(
    model: Any,
    tokenizer: Any,
    prompts: Prompt | Iterable[Prompt] | Tensor,
    recipe: str | Method | Recipe | None = None,
    *,
    max_new_tokens: int = 64,
    temperature: float | None = None,
    top_p: float = 1.0,
    seed: int | Sequence[int] = 0,
    stop: str | Iterable[str] | None = (),
    ignore_eos: bool = False,
    chat: bool | str = False,
    chunk: int | None = None,
    assistant: Any = None,
    memory: dict[str, Any] | None = None,
    on_text: Callable[[int, str], None] | None = None,
    reward: Callable[[int, list[int]], float] | None = None,
    generation_config: Any = None,
) -> Generator[None, None, list[Output]]:
    """`generate`, which pauses after each pass."""
    wanted = as_recipe(recipe)
    decoder_of(model)  # raises for what is no language model
    max_new_tokens, stop = whole_number("max_new_tokens", max_new_tokens), stop_strings(stop)
    chunk = None if chunk is None else whole_number("chunk", chunk)
    rows = prompt_rows(tokenizer, prompts, chat, None if _renumbers(wanted) else context_of(model))
    if tokenizer is None and (stop or on_text is not None):
        raise InputError("stop strings and on_text need the text, and there is no tokenizer; give the model's")
    refuse_too_long(model, wanted, rows, max_new_tokens)
    chooser = Chooser.of(wanted, temperature, top_p, seed, len(rows))
    draft, rule, search, heal = map(wanted.get, ("draft", "rule", "search", "heal"))
    if reward is not None and (search is None or "reward" not in search.card.needs):
        raise InputError("reward is for a recipe that seeks texts worth more, such as latent_seek; leave it out")
    mending = Mending(heal, tokenizer, rows) if heal is not None else None
    fed = rows if mending is None else mending.rows
    processors = Processors(model, fed, max_new_tokens, generation_config)
    ends = frozenset() if ignore_eos else _ends(processors.ends, tokenizer)
    stop = (*stop, *(processors.stop if tokenizer is not None else ()))
    writer = _Writer(tokenizer, len(rows), ends, stop, max_new_tokens, on_text, mending, fed)
    without = Recipe(tuple(m for m in wanted if m.verb not in ("draft", "choose")))
    if draft is None and search is None:
        session = Session(model, without)
        began = time.perf_counter()
        with adapting(wanted.get("adapt"), model) as session.adapt, session.engaged():
            yield from _plain(session, fed, chooser, writer, chunk, processors)
        stats = _timed(session, writer, time.perf_counter() - began)
        kept = session.kept()
        return [_output(writer, row, ids, stats, [layer[row] for layer in kept]) for row, ids in enumerate(fed)]
    # Under a rule that is not lossless what was learned shows in the text, so rows begin alike unless the caller
    # gives one memory for all.
    alike = memory is None and rule is not None and not rule.card.lossless
    memory = {} if memory is None else memory
    cost = cost_of(model) if draft is not None and "cost" in grown(draft).card.needs else None
    writes, large = without, None
    if search is not None and "larger" in search.card.needs:
        writes, large = writing_part(search, model, without), larger_model(search, model, tokenizer, assistant)
        refuse_too_long(large, wanted, rows, max_new_tokens)
    if search is not None and processors:
        raise RecipeError(
            f"{search!r} searches over the model's own probabilities and generation_config changes them "
            f"({', '.join(type(p).__name__ for p in processors.rows[0])}); switch that off, for instance with "
            "generation_config=GenerationConfig(repetition_penalty=1.0)"
        )
    taught = [learned(search, model)] if search is not None and search.card.trains else []
    out = []
    for row, ids in enumerate(fed):
        session = Session(model, writes)
        began = time.perf_counter()
        with ExitStack() as stack:
            stack.enter_context(session.engaged())
            if draft is not None:
                steps = speculate(
                    session, ids, draft, chooser,
                    row=row, rule=rule, cost=cost, tokenizer=tokenizer, assistant=assistant,
                    memory={} if alike else memory, chunk=chunk, left=partial(writer.left, row), ends=ends,
                    processed=partial(processors, row) if processors else None,
                )  # fmt: skip
            else:
                assert search is not None
                ask = partial(beside, large, without, session) if large is not None else None
                steps = _searched(search, session, ids, chooser, writer, row, chunk, taught, ask, reward)
            stack.enter_context(closing(steps))
            for tokens in steps:
                done = writer.add(row, tokens)
                yield
                if done:
                    break
            writer.close(row)
        stats = _timed(session, writer, time.perf_counter() - began, row)
        out.append(_output(writer, row, ids, stats, [layer[0] if layer else [] for layer in session.kept()]))
    return out


def _plain(
    session: Session, rows: list[list[int]], chooser: Chooser, writer: _Writer, chunk: int | None,
    processors: Processors,
) -> Generator[None]:  # fmt: skip
    logits = session.read(rows, chunk=chunk)
    while True:
        if processors:
            texts = [[*ids, *new] for ids, new in zip(rows, writer.ids, strict=True)]
            logits = torch.cat([processors(i, logits[i : i + 1], [text]) for i, text in enumerate(texts)])
        tokens = chooser(logits if writer.mending is None else writer.mending(logits))
        done = [writer.add(row, [token]) for row, token in enumerate(tokens.tolist())]
        yield
        if all(done):
            return
        logits = session.read(tokens[:, None])


def _searched(
    search: Method, session: Session, ids: list[int], chooser: Chooser, writer: _Writer, row: int, chunk: int | None,
    taught: list[Learned], ask: Callable[[list[int]], AbstractContextManager[Larger]] | None,
    reward: Callable[[int, list[int]], float] | None,
) -> Generator[list[int]]:  # fmt: skip
    """Tokens of one row as a search method finds them, after the prompt's end was mended.

    `ask` makes the larger model of a method that asks one, for a text that was read.
    """
    if "tokenizer" in search.card.needs and writer.tokenizer is None:
        raise InputError(f"{search.name} needs to know how tokens are spelled, and there is no tokenizer")
    writing = Text(session, ids, chooser, row, writer.tokenizer, writer.ends, writer.limit, chunk, reward)
    mending = writer.mending
    while mending is not None and mending.rest[row]:
        token = int(chooser(mending.of(row, writing.logits), row))
        yield [token]
        writing.go_on(token)
    writing.room = writer.left(row)
    with nullcontext() if ask is None else ask([*ids, *writer.ids[row]]) as larger:
        yield from search(writing, *taught, *([] if larger is None else [larger]))


class _Writer:
    """Collects tokens a row until it is done."""

    def __init__(
        self,
        tokenizer: Any,
        rows: int,
        ends: frozenset[int],
        stop: Sequence[str],
        limit: int,
        on_text: Callable[[int, str], None] | None,
        mending: Mending | None = None,
        prompts: Sequence[Sequence[int]] = (),
    ):
        self.tokenizer, self.ends, self.stop, self.limit, self.on_text = tokenizer, ends, stop, limit, on_text
        self.mending = mending
        self.old = [0] * rows  # tokens that only say the dropped end of the prompt again
        self.ids: list[list[int]] = [[] for _ in range(rows)]
        self.done = [False] * rows
        self.shown = [0] * rows  # characters
        self._texts = [""] * rows
        self._read = [0] * rows  # tokens that are in the text
        self._whole = [False] * rows  # nothing is added to the text any more
        self._pieces = []
        if tokenizer is not None:
            skip = [0] * rows if mending is None else [len(lead) for lead in mending.lead]
            before = prompts or [()] * rows
            self._pieces = [Detokenizer(tokenizer, b, skip=n) for b, n in zip(before, skip, strict=True)]

    def add(self, row: int, tokens: Sequence[int]) -> bool:
        """Take the tokens up to where the row ends; True once it has."""
        for token in tokens:
            if self.done[row]:
                break
            self.ids[row].append(token)
            if self.mending is not None:
                self.old[row] += self.mending.took(row, token)
            self.done[row] = token in self.ends or self.left(row) <= 0 or (bool(self.stop) and self._spell(row))
        self._show(row)
        return self.done[row]

    def close(self, row: int) -> None:
        """Nothing more comes."""
        if not self.done[row]:
            self.done[row] = True
            self._show(row)

    def left(self, row: int) -> int:
        """New tokens that may still come."""
        return self.limit - len(self.ids[row]) + self.old[row]

    def _show(self, row: int) -> None:
        if self.on_text is not None:
            text = self.text(row)
            # Wait for the rest of what may become a stop string.
            certain = text if self.done[row] else self._certain(text)
            if len(certain) > self.shown[row]:
                self.on_text(row, certain[self.shown[row] :])
                self.shown[row] = len(certain)

    def text(self, row: int) -> str:
        """What the row's tokens spell, up to a stop string, without a token that ended it."""
        self._spell(row)
        if self.done[row] and self._pieces and not self._whole[row]:
            self._grow(row, self._pieces[row].rest())
            self._whole[row] = True
        return self._texts[row]

    def _certain(self, text: str) -> str:
        begun = max((n for s in self.stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
        return text[: len(text) - begun]

    def _spell(self, row: int) -> bool:
        """Read the tokens that came; True once a stop string is complete, before which the text is cut."""
        ids = self.ids[row]
        while self._pieces and self._read[row] < len(ids) and not self._whole[row]:
            token = ids[self._read[row]]
            self._read[row] += 1
            if token not in self.ends:
                self._grow(row, self._pieces[row].add(token))
        return self._whole[row]

    def _grow(self, row: int, piece: str) -> None:
        known, text = len(self._texts[row]), self._texts[row] + piece
        found = [at for s in self.stop if (at := text.find(s, max(0, known - len(s) + 1))) >= 0]
        self._texts[row] = text[: min(found)] if found else text
        self._whole[row] = bool(found)


def refuse_too_long(model: Any, recipe: Iterable[Method], rows: list[list[int]], new: int) -> None:
    limit, longest = context_of(model), max(map(len, rows))
    if limit is not None and longest + new > limit and not _renumbers(recipe):
        raise InputError(
            f"the prompt has {longest} tokens and {new} more are asked for, but the model's context is {limit}; "
            "shorten it, ask for fewer, or use streaming_llm(slots=…), which renumbers positions"
        )
    switch = decoder_of(model).switch
    if switch is not None and longest <= switch < longest + new and any(m.verb == "draft" for m in recipe):
        raise RecipeError(
            f"the text grows from {longest} tokens to more than {switch}, where this model reads all of it again with "
            "other rotary frequencies, and drafts cannot be checked across that; generate without a draft method"
        )
    refuse_unknown(model, rows)


def _renumbers(recipe: Iterable[Method]) -> bool:
    """Whether positions stay within a bound, however long the text."""
    return any(m.knobs.get("renumber") and m.knobs.get("slots") for m in recipe)


def ends_of(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a text: those of the model's generation_config, or the tokenizer's where it has none."""
    return _ends(Processors(model, [], 0).ends, tokenizer)


def _ends(found: frozenset[int], tokenizer: Any) -> frozenset[int]:
    token = getattr(tokenizer, "eos_token_id", None)
    return found or frozenset([] if token is None else [token])


def _timed(session: Session, writer: _Writer, seconds: float, row: int | None = None) -> Stats:
    stats = session.stats
    new = sum(map(len, writer.ids)) if row is None else len(writer.ids[row])
    return replace(stats, new_tokens=new, decode_seconds=seconds - stats.prefill_seconds)


def _output(writer: _Writer, row: int, ids: list[int], stats: Stats, kept: list[list[list[int]]]) -> Output:
    return Output(writer.text(row), writer.ids[row], stats, ids, kept)
