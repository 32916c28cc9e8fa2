"""Which prompt tokens made the model say this? Any explain method on any causal language model.

told = explain(model, tokenizer, "The capital of France is", "reagent")
print(told)                     # tokens with their scores; `rich.print(told)` and notebooks colour them
told.attribution.scores         # (T,)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from torch import Tensor

from tokenmill.errors import InputError, ModelError, SpecError
from tokenmill.method import Method, parse
from tokenmill.models.architectures import context_of
from tokenmill.models.owner import mode
from tokenmill.ops.text import pieces
from tokenmill.run.arguments import Prompt, prompt_ids, refuse_unknown
from tokenmill.types import Ask, Attribution
from tokenmill.view import html, terminal

# Tokens in one forward pass: more questions than fit are asked in several.
TOKENS = 4096
# How many of the likeliest tokens a replacement is drawn from.
PLAUSIBLE = 64


@dataclass(frozen=True)
class Explanation:
    """One predicted token and how much each prompt token did for it."""

    tokens: list[str]  # the prompt, as text
    attribution: Attribution  # scores (T,), target, calls
    predicted: str  # the explained token, as text
    probability: float  # what the model gives it
    method: str  # spec

    @property
    def title(self) -> str:
        return f"{self.method}: why {self.predicted!r} (p = {self.probability:.3f})"

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The tokens with the highest scores, best first."""
        best = self.attribution.scores.argsort(descending=True, stable=True)[:count].tolist()
        return [(self.tokens[t], float(self.attribution.scores[t])) for t in best]

    def __str__(self) -> str:
        rows = zip(self.tokens, self.attribution.scores.tolist(), strict=True)
        return "\n".join([self.title, *(f"{score:10.4g}  {token!r}" for token, score in rows)])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.title
        yield terminal.coloured(self.tokens, self.attribution.scores.tolist())

    def _repr_html_(self) -> str:
        return html.coloured(self.tokens, self.attribution.scores.tolist(), self.title)


def explain(
    model: Any,
    tokenizer: Any,
    prompt: Prompt | Tensor,
    method: str | Method = "reagent",
    target: int | str | None = None,
    *,
    chat: bool | str = False,
    seed: int = 0,
    progress: bool = False,
) -> Explanation:
    """Explain the next token: the model's own choice, or `target` (an id, or the text of one token).

    `prompt` is text, messages, or the ids of one prompt (T,) or (1, T); with ids the tokenizer may be None. `chat` is
    as for `generate`. `seed` is for methods that draw. The model is left as it was. Raises InputError.
    """
    chosen = _explainer(method, seed)
    ids = _prompt(model, tokenizer, prompt, chat)
    wanted = _target(model, tokenizer, target)
    with mode(model, training=False), _counting(repr(chosen), progress) as count:
        ask = asking(model, tokenizer, count)
        p = ask.probabilities(ids[None])[0]
        if not torch.isfinite(p).all():
            raise ModelError("the model's prediction for this prompt is not a number; load it in another dtype")
        wanted = int(p.argmax()) if wanted is None else wanted
        attribution = chosen(ask, ids, wanted)
    (predicted,) = pieces(tokenizer, [wanted])
    return Explanation(pieces(tokenizer, ids.tolist()), attribution, predicted, float(p[wanted]), repr(chosen))


def asking(model: Any, tokenizer: Any = None, count: Callable[[int], None] | None = None) -> Ask:
    """The model as explain methods may ask it. Ids and answers are on the CPU; `count` hears of every row asked.

    Replacements come from the model itself: what it finds likely at each place, given the tokens before, except the
    token that stands there and special tokens. The first place, which nothing precedes, draws from the mean over all.
    """
    device = next(model.parameters()).device
    table = model.get_input_embeddings()
    special = torch.tensor(sorted(getattr(tokenizer, "all_special_ids", None) or []), dtype=torch.long)
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    likely: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}  # one prompt's candidates and their weights

    def ask(rows: Tensor, **how: Any) -> Tensor:
        if count:
            count(len(rows))
        return model(**how, use_cache=False, **last_only).logits[:, -1].float()

    @torch.no_grad()
    def probabilities(ids: Tensor) -> Tensor:
        at_once = max(1, TOKENS // ids.shape[1])
        answers = [ask(rows, input_ids=rows.to(device)).softmax(-1).cpu() for rows in ids.split(at_once)]
        return torch.cat(answers)

    @torch.no_grad()
    def candidates(ids: Tensor) -> tuple[Tensor, Tensor]:
        if count:
            count(1)
        after = model(input_ids=ids[None].to(device), use_cache=False).logits[0].float().log_softmax(-1).cpu()  # (T, V)
        likely_at = torch.cat([after.logsumexp(0, keepdim=True), after[:-1]])
        likely_at[:, special[special < likely_at.shape[1]]] = -torch.inf
        likely_at.scatter_(1, ids[:, None], -torch.inf)
        best = likely_at.topk(min(PLAUSIBLE, likely_at.shape[1]))
        return best.indices, best.values.softmax(-1)

    def replacements(ids: Tensor, generator: torch.Generator) -> Tensor:
        key = tuple(ids.tolist())
        if key not in likely:
            likely.clear()
            likely[key] = candidates(ids)
        tokens, weights = likely[key]
        return tokens.gather(1, torch.multinomial(weights, 1, generator=generator))[:, 0]

    def embed(ids: Tensor) -> Tensor:
        return table(ids.to(device)).detach().float().cpu()

    def logits_from_embeddings(e: Tensor) -> Tensor:
        rows = e.split(max(1, TOKENS // e.shape[1]))
        return torch.cat([ask(r, inputs_embeds=r.to(device, table.weight.dtype)).cpu() for r in rows])

    return Ask(probabilities, replacements, embed, logits_from_embeddings)


def _explainer(method: str | Method, seed: int) -> Method:
    chosen = parse(method) if isinstance(method, str) else method
    if not isinstance(chosen, Method) or chosen.verb != "explain":
        raise SpecError(f"{chosen!r} does not explain; `tokenmill ls explain` lists the methods that do")
    return chosen(seed=seed) if seed and "seed" in chosen.defaults and "seed" not in chosen.given else chosen


def _prompt(model: Any, tokenizer: Any, prompt: Any, chat: bool | str) -> Tensor:
    context = context_of(model)
    ids = prompt_ids(tokenizer, prompt, chat, context)
    if context and len(ids) > context:
        raise InputError(f"the prompt has {len(ids)} tokens and the model reads at most {context}; shorten it")
    refuse_unknown(model, [ids])
    return torch.tensor(ids)


def _target(model: Any, tokenizer: Any, target: int | str | None) -> int | None:
    if target is None:
        return None
    if isinstance(target, str):
        if tokenizer is None:
            raise InputError("a target of text needs a tokenizer; pass one, or the id")
        ids = tokenizer(target, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] == getattr(tokenizer, "unk_token_id", None):
            parts = ", ".join(repr(piece) for piece in pieces(tokenizer, ids)) or "nothing"
            raise InputError(
                f"target {target!r} is not one token: this tokenizer reads it as {parts}. Give one token's text "
                "(words in mid-sentence often begin with a space) or its id"
            )
        return int(ids[0])
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if not 0 <= target < vocabulary:
        raise InputError(f"target {target} is no token: the model knows ids 0 to {vocabulary - 1}")
    return int(target)


@contextmanager
def _counting(label: str, shown: bool) -> Iterator[Callable[[int], None] | None]:
    if not shown:
        yield None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}: {task.completed:.0f} questions", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda rows: bar.update(task, advance=rows)
