"""Which prompt tokens made the model say this? Any explain method on any causal language model.

found = explain(model, tokenizer, "The capital of France is")
print(found)                    # tokens with their scores; `rich.print(found)` and notebooks colour them
found.attribution.scores        # (T,)
found.top(5)                    # [(position, token, score), ...]
explain(model, tokenizer, "The capital of France is", tokens=8)    # the whole answer, token by token
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text
from torch import Tensor

from tokenmill.errors import InputError, ModelError, SpecError
from tokenmill.method import Method, parse
from tokenmill.models.architectures import context_of
from tokenmill.models.owner import mode
from tokenmill.ops.text import pieces
from tokenmill.run.arguments import Prompt, prompt_ids, refuse_unknown
from tokenmill.run.generate import ends_of
from tokenmill.types import Ask, Attribution
from tokenmill.view import html, terminal

# Tokens in one forward pass: more questions than fit are asked in several.
TOKENS = 4096
# How many of the likeliest tokens a replacement is drawn from.
PLAUSIBLE = 64


METHOD = "occlusion"  # draws nothing, so its ranking is the same every time


@dataclass(frozen=True, repr=False)
class Explanation:
    """What the model said next, and how much each prompt token did for it."""

    tokens: list[str]  # the prompt, as text
    attribution: Attribution  # scores (T,), target, calls
    predicted: str  # what is explained, as text: one token, or an answer
    probability: float  # what the model gives it
    method: str  # spec
    ids: list[int]  # the prompt
    draws: bool = False  # the method draws at random: another seed may give another ranking
    answer: tuple[Explanation, ...] = ()  # of an answer of several tokens: each one's own, over all tokens before it

    @property
    def title(self) -> str:
        return f"{self.method}: why {self.predicted!r} (p = {self.probability:.3g})"

    def ranking(self) -> list[int]:
        """Positions in the prompt, that with the highest score first; of equal scores the earlier one."""
        return self.attribution.scores.argsort(descending=True, stable=True).tolist()

    def top(self, count: int | None = 5) -> list[tuple[int, str, float]]:
        """(position, token, score) of the tokens with the highest scores, best first; None: of all."""
        return [(t, self.tokens[t], float(self.attribution.scores[t])) for t in self.ranking()[:count]]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it: the prompt's tokens in order with their scores, and what is explained."""
        scores = self.attribution.scores.tolist()
        rows = zip(self.ids, self.tokens, scores, strict=True)
        return {
            "method": self.method,
            "predicted": self.predicted,
            "probability": self.probability,
            "target": self.attribution.target,
            "calls": self.attribution.calls,
            "draws": self.draws,
            "prompt": [
                {"position": t, "id": id, "token": token, "score": _finite(score)}
                for t, (id, token, score) in enumerate(rows)
            ],
            "answer": [
                {
                    "id": step.attribution.target,
                    "token": step.predicted,
                    "probability": step.probability,
                    "scores": [*map(_finite, step.attribution.scores.tolist())],
                }
                for step in self.answer
            ],
        }

    def to_html(self) -> str:
        """A page of its own, which needs nothing from outside."""
        return html.page(self.title, self._repr_html_())

    def __repr__(self) -> str:
        return f"Explanation({self.title}, {len(self.tokens)} tokens)"

    def __str__(self) -> str:
        rows = zip(self.tokens, self.attribution.scores.tolist(), strict=True)
        return "\n".join([self.title, *(f"{t:5}  {score:10.4g}  {token!r}" for t, (token, score) in enumerate(rows))])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.title)
        yield terminal.coloured(self.tokens, self.attribution.scores.tolist())
        for step in self.answer:
            yield Text(f"\n{step.predicted!r} (p = {step.probability:.3g})")
            yield terminal.coloured(step.tokens, step.attribution.scores.tolist())

    def _repr_html_(self) -> str:
        parts = [html.coloured(self.tokens, self.attribution.scores.tolist(), self.title)]
        for step in self.answer:
            title = f"{step.predicted!r} (p = {step.probability:.3g})"
            parts.append(html.coloured(step.tokens, step.attribution.scores.tolist(), title))
        return "\n".join(parts)


def explain(
    model: Any,
    tokenizer: Any,
    prompt: Prompt | Tensor,
    method: str | Method = METHOD,
    target: int | str | None = None,
    *,
    tokens: int = 1,
    chat: bool | str = False,
    seed: int = 0,
    progress: bool = False,
) -> Explanation:
    """Explain the next token: the model's own choice, or `target` (an id, or text).

    A target of several tokens, or `tokens` above 1 (so many of the model's own choices, up to the end of its text),
    is explained token by token; a prompt token's score is then its mean over them. `prompt` is text, messages, or the
    ids of one prompt (T,) or (1, T); with ids the tokenizer may be None. `chat` is as for `generate`. `seed` is for
    methods that draw. The model is left as it was. Raises InputError.
    """
    chosen = explainer(method, seed)
    ids = _prompt(model, tokenizer, prompt, chat)
    wanted = _target(model, tokenizer, target)
    if tokens < 1:
        raise InputError(f"tokens must be at least 1, not {tokens}")
    if tokens > 1 and target is not None:
        raise InputError("a target is explained whole; leave out tokens, or the target")
    _refuse_long(model, len(ids) + max(tokens, len(wanted)) - 1, "with its answer " if tokens > 1 else "")
    ends = ends_of(model, tokenizer) if tokens > 1 else frozenset()
    choices: list[int | None] = [*wanted] or [None] * tokens
    steps: list[Explanation] = []
    with mode(model, training=False), _counting(repr(chosen), progress) as count:
        ask = asking(model, tokenizer, count)
        for given in choices:
            before = ids if not steps else torch.cat([ids, torch.tensor([s.attribution.target for s in steps])])
            p = ask.probabilities(before[None])[0]
            if not torch.isfinite(p).all():
                raise ModelError("the model's prediction for this prompt is not a number; load it in another dtype")
            token = int(p.argmax()) if given is None else given
            if steps and given is None and token in ends:
                break
            (predicted,) = pieces(tokenizer, [token])
            attribution, listed = chosen(ask, before, token), before.tolist()
            words, likely = pieces(tokenizer, listed), float(p[token])
            steps.append(Explanation(words, attribution, predicted, likely, repr(chosen), listed, draws=draws(chosen)))
    return steps[0] if len(steps) == 1 else _whole(tokenizer, ids, steps)


def _whole(tokenizer: Any, ids: Tensor, steps: list[Explanation]) -> Explanation:
    """The explanations of an answer's tokens as one of the answer."""
    parts = [step.attribution for step in steps]
    answer = "".join(pieces(tokenizer, [part.target for part in parts]))
    scores = torch.stack([part.scores[: len(ids)] for part in parts]).mean(0)
    whole = Attribution(scores, parts[0].target, sum(part.calls for part in parts))
    likely = math.prod(step.probability for step in steps)
    return replace(steps[0], attribution=whole, predicted=answer, probability=likely, answer=tuple(steps))


def _finite(score: float) -> float | None:
    """JSON has no NaN."""
    return score if math.isfinite(score) else None


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


def explainer(method: str | Method, seed: int = 0) -> Method:
    """An explain method with this seed, if it draws and has none of its own. Raises SpecError for anything else."""
    chosen = parse(method) if isinstance(method, str) else method
    if not isinstance(chosen, Method) or chosen.verb != "explain":
        raise SpecError(f"{chosen!r} does not explain; `tokenmill ls explain` lists the methods that do")
    return chosen(seed=seed) if seed and draws(chosen) and "seed" not in chosen.given else chosen


def draws(chosen: Method) -> bool:
    """The method draws at random, from a seed."""
    return "seed" in chosen.defaults


def _prompt(model: Any, tokenizer: Any, prompt: Any, chat: bool | str) -> Tensor:
    context = context_of(model)
    ids = prompt_ids(tokenizer, prompt, chat, context)
    _refuse_long(model, len(ids), "")
    refuse_unknown(model, [ids])
    return torch.tensor(ids)


def _refuse_long(model: Any, length: int, what: str) -> None:
    context = context_of(model)
    if context and length > context:
        raise InputError(f"the prompt {what}has {length} tokens and the model reads at most {context}; shorten it")


def _target(model: Any, tokenizer: Any, target: int | str | None) -> list[int]:
    """The ids of what is to be explained; none: the model's own choice."""
    if target is None:
        return []
    if isinstance(target, str):
        if tokenizer is None:
            raise InputError("a target of text needs a tokenizer; pass one, or the id")
        ids = tokenizer(target, add_special_tokens=False)["input_ids"]
        if not ids or getattr(tokenizer, "unk_token_id", None) in ids:
            parts = ", ".join(repr(piece) for piece in pieces(tokenizer, ids)) or "nothing"
            raise InputError(
                f"target {target!r} cannot be written in this tokenizer's tokens, which read it as {parts}; give "
                "other text (words in mid-sentence often begin with a space), or a token's id"
            )
        return [*map(int, ids)]
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if not 0 <= target < vocabulary:
        raise InputError(f"target {target} is no token: the model knows ids 0 to {vocabulary - 1}")
    return [int(target)]


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
