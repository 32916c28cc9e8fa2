"""What is this model like? Any probe on any causal language model, over texts.

found = probe(model, tokenizer, texts, "layer_drop")
found.rows                      # the table, means over the texts
found.texts                     # the same for each text
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

from tokenmill.errors import InputError, SpecError
from tokenmill.method import Method, method, parse
from tokenmill.models.architectures import context_of, decoder_of
from tokenmill.models.owner import mode
from tokenmill.run.arguments import Prompt, prompt_rows, refuse_unknown
from tokenmill.run.session import Session
from tokenmill.types import Depth, Findings, Inquiry, Step


@dataclass(frozen=True)
class Probed:
    """What a probe found, as means over the texts."""

    method: str  # spec
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float, ...], ...]
    figures: dict[str, float]
    texts: tuple[Findings, ...]
    tokens: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "method": self.method,
            "tokens": self.tokens,
            "figures": self.figures,
            "columns": list(self.columns),
            "rows": [list(row) for row in self.rows],
            "texts": [[list(row) for row in found.rows] for found in self.texts],
        }

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(*self.columns, box=None, pad_edge=False)
        for row in self.rows:
            table.add_row(*(f"{x:.4g}" if isinstance(x, float) else str(x) for x in row))
        yield f"{self.method}: means over {len(self.texts)} texts, {self.tokens} tokens"
        yield table
        for name, value in self.figures.items():
            yield f"{name}: {value:.4g}"


def probe(
    model: Any,
    tokenizer: Any,
    texts: Prompt | Iterable[Prompt | Tensor],
    method: str | Method = "layer_drop",
    *,
    second: Any = None,
    progress: bool = False,
) -> Probed:
    """Run a probe over each text (text, messages, or ids; then the tokenizer may be None). The model is left as it was.

    `second` is another model with the same vocabulary, for probes that compare two. Raises InputError for texts of one
    token, beyond the model's context, or with ids that it does not know.
    """
    chosen = parse(method) if isinstance(method, str) else method
    if not isinstance(chosen, Method) or chosen.verb != "probe":
        raise SpecError(f"{chosen!r} is no probe; see `tokenmill ls probe`")
    rows = _rows(model, tokenizer, texts)
    ask = inquiry(model, second)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with mode(model, training=False), torch.no_grad(), Progress(*columns, transient=True, disable=not progress) as bar:
        found = tuple(chosen(ask, ids) for ids in bar.track(rows, description=f"{chosen!r}, texts"))
    return Probed(
        repr(chosen),
        found[0].columns,
        tuple(_mean(same) for same in zip(*(f.rows for f in found), strict=True)),
        {name: fmean(f.figures[name] for f in found) for name in found[0].figures},
        found,
        sum(map(len, rows)),
    )


def inquiry(model: Any, second: Any = None) -> Inquiry:
    """The model as probes may ask it."""
    decoder = decoder_of(model)
    if second is not None:
        sizes = [m.get_input_embeddings().weight.shape[0] for m in (model, second)]
        if sizes[0] != sizes[1]:
            raise InputError(f"the models have {sizes[0]} and {sizes[1]} tokens; a probe compares one vocabulary")

    def logits(ids: Tensor, layers: tuple[int, ...]) -> Tensor:
        @method(title="", verb="skip")
        def in_order(step: Step) -> Depth:
            return Depth(layers, fill="missing")

        return Session(model, in_order).read(ids[None], all_logits=True)[0].float().cpu()

    def lens(ids: Tensor) -> Iterator[Tensor]:
        out = model(input_ids=ids[None].to(decoder.device), output_hidden_states=True, use_cache=False)
        head = model.get_output_embeddings()
        for hidden in out.hidden_states[1:-1]:
            yield head(decoder.final_norm(hidden[0])).float().cpu()
        yield out.logits[0].float().cpu()  # the last state has its norm already

    def other(ids: Tensor) -> Tensor:
        return second(input_ids=ids[None].to(second.device), use_cache=False).logits[0].float().cpu()

    return Inquiry(len(decoder.layers), logits, lens, None if second is None else other)


def _rows(model: Any, tokenizer: Any, texts: Any) -> list[Tensor]:
    context = context_of(model)
    rows = prompt_rows(tokenizer, texts, most=context)
    shortest, longest = min(map(len, rows)), max(map(len, rows))
    if shortest < 2:
        raise InputError("a text to probe with needs at least two tokens")
    if context and longest > context:
        raise InputError(f"a text has {longest} tokens and the model reads at most {context}; ask for fewer")
    refuse_unknown(model, rows)
    return [torch.tensor(row) for row in rows]


def _mean(rows: Sequence[tuple[str | int | float, ...]]) -> tuple[str | int | float, ...]:
    """One row of the table over all texts: floats are averaged, what names the row stays."""
    return tuple(fmean(map(float, x)) if isinstance(x[0], float) else x[0] for x in zip(*rows, strict=True))
