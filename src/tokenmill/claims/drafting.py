"""How claims about drafts are measured: one set of requests for all rivals, tokens a pass, and equal texts."""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tokenmill.bench.tasks import paragraphs
from tokenmill.claims.lab import Lab
from tokenmill.claims.taught import training_plan
from tokenmill.claims.verdict import Check, check
from tokenmill.method import Method, Recipe, get
from tokenmill.method import recipe as as_recipe
from tokenmill.models.trained import digest
from tokenmill.ops.text import as_message
from tokenmill.run.generate import generate

TASKS = (
    "Explain this to a child", "Summarise this in one sentence", "Ask three questions about this",
    "Write a short story in which this matters",
)  # fmt: skip
GREEDY = "greedy"


@dataclass
class Drafted:
    """One number a request, by spec as it was given."""

    a_pass: dict[str, list[float]] = field(default_factory=dict)  # tokens a pass of the model
    a_node: dict[str, list[float]] = field(default_factory=dict)  # share of the drafted tokens that were accepted
    alike: dict[str, list[float]] = field(default_factory=dict)  # 1 where the text is the one without drafting
    layers: dict[str, list[float]] = field(default_factory=dict)  # layers of the model run for a new token
    seconds: dict[str, list[float]] = field(default_factory=dict)
    texts: dict[str, list[list[int]]] = field(default_factory=dict)

    def equal(self, spec: str) -> Check:
        """The text is the one without drafting, on every request."""
        column = self.alike[spec]
        every = ("all", [1.0] * len(column))
        return check("share of texts equal to greedy's", (spec, column), every, "higher", identity=True)

    def more(self, spec: str, rival: str, what: str = "tokens a pass") -> Check:
        """The method gives more tokens a pass than its rival."""
        return check(what, (spec, self.a_pass[spec]), (rival, self.a_pass[rival]), "higher")


def drafted(
    lab: Lab,
    specs: Sequence[str | Recipe],
    *,
    temperature: float = 0.0,
    prompts: Sequence[list[int]] = (),
    told: str = "",
    carried: Collection[str] = (),
    assistant: Any = None,
) -> Drafted:
    """Answer every request without drafting and under each spec, in turns.

    `told` stands behind each figure. What a spec in `carried` learns from one request serves the next; every other
    spec begins each request with nothing. `assistant` is the model that draft_model drafts with.
    """
    tokens, out = 24 if lab.quick else 64, Drafted()
    memories: dict[str, dict[str, Any]] = {name: {} for name in carried}
    columns: tuple[dict[str, list[Any]], ...] = (out.seconds, out.texts, out.a_pass, out.a_node, out.layers)
    pair = "" if assistant is None else digest(assistant)
    recipes = {GREEDY: None} | {str(spec): as_recipe(spec) for spec in specs}
    asked = prompts or requests(lab)
    for number, prompt in enumerate(asked, 1):
        lab.tick(f"prompt {number} of {len(asked)}")
        for name, recipe in recipes.items():
            with_what = {"assistant": None if recipe is None else assistant, "memory": memories.get(name)}
            answer = partial(_drafted, lab, prompt, recipe, tokens, temperature, number, **with_what)
            # What a drafter carries on is in no checkpoint: its requests are answered again.
            key = ("drafted", name, prompt, tokens, temperature, number, pair)
            values = answer() if name in carried else lab.unit(answer, *key)
            for column, value in zip(columns, values, strict=True):
                column.setdefault(name, []).append(value)
            out.alike.setdefault(name, []).append(float(out.texts[name][-1] == out.texts[GREEDY][-1]))
    for name in recipes:
        lab.note(name, f"tokens a pass{told}", out.a_pass[name])
        lab.note(name, f"share of drafted tokens accepted{told}", out.a_node[name])
        ratios = [a / b for a, b in zip(out.seconds[name], out.seconds[GREEDY], strict=True)]
        lab.note(name, f"seconds against plain decoding, in turns{told}", ratios)
    return out


def _drafted(
    lab: Lab, prompt: list[int], recipe: Recipe | None, tokens: int, temperature: float, seed: int, **with_what: Any
) -> list[Any]:
    """The columns of one request."""
    depth, began = lab.model.config.get_text_config(decoder=True).num_hidden_layers, time.perf_counter()
    got = generate(
        lab.model, None, [prompt], recipe, max_new_tokens=tokens, temperature=temperature, seed=seed, **with_what
    )[0]
    seconds, new = time.perf_counter() - began, max(1, len(got.ids) - 1)
    a_pass = (len(got.ids) - 1) / max(1, got.stats.forward_calls - 1)
    a_node = got.stats.accepted / max(1, got.stats.drafted)
    return [seconds, got.ids, a_pass, a_node, (got.stats.token_layers - depth * len(prompt)) / new]


MEDUSA = "medusa(matrices=16384)"  # the paper's heads: each has an output matrix of its own


def ahead_of_medusa(lab: Lab, source: str) -> list[Check]:
    """A trained source against Medusa's heads, three places ahead, chain against chain, and against no draft.

    The heads are the paper's, and trained on no fewer tokens than the source.
    """
    mine, rival = (f"chain(source={name}, nodes=3)" for name in (source, MEDUSA))
    lacking = less_trained(lab, get(source))
    out = drafted(lab, [mine] if lacking else [rival, mine])
    what = "tokens a pass, three places ahead"
    last = check(what, (mine, []), (rival, []), "higher", lacking=lacking) if lacking else out.more(mine, rival, what)
    return [out.equal(mine), out.more(mine, GREEDY), last]


def less_trained(lab: Lab, source: Method) -> str:
    """Why Medusa's heads on this model are no rival for the source; "" if they read as many tokens in training."""
    plan, theirs = training_plan(lab, source), training_plan(lab, get("medusa")(matrices=16384))
    if plan is None or (theirs is not None and _tokens(theirs) >= _tokens(plan)):
        return ""  # where the source itself is untrained, running it says what to do
    own = f" --own {plan['own']}" if plan.get("own") else ""
    found = "nobody trained any" if theirs is None else f"those here read {_tokens(theirs):,}"
    return (
        f"Medusa's heads with their own matrices and as many tokens of training as {source!r} ({_tokens(plan):,}): "
        f"{found}; run: tokenmill train '{MEDUSA}' --steps {plan['steps']} --rows {plan['rows']}{own}"
    )


def _tokens(plan: dict[str, Any]) -> int:
    return int(plan["steps"] * plan["rows"] * plan["length"])


def recalled(
    lab: Lab, specs: Sequence[str], *, temperature: float = 0.0, length: int = 512, each: int = 4, assistant: Any = None
) -> dict[str, list[float]]:
    """Which codes hidden in text each spec writes when asked for them, 1 or 0; without drafting under GREEDY."""
    out: dict[str, list[float]] = {}
    pair = "" if assistant is None else digest(assistant)
    for number, sample in enumerate(lab.needles(seen=True, length=length, each=each), 1):
        lab.tick(f"code {number}")
        first = sample.scored[0]
        prompt, answer = sample.prompt + sample.tail[:first], sample.tail[first:]
        for name, recipe in [(GREEDY, None), *((spec, spec) for spec in specs)]:
            write = partial(_answered, lab, prompt, recipe, len(answer), temperature, number, assistant)
            ids = lab.unit(write, "recalled", name, prompt, len(answer), temperature, number, pair)
            out.setdefault(name, []).append(float(ids == answer))
    for name, column in out.items():
        lab.note(name, "share of the codes recalled", column)
    return out


def _answered(
    lab: Lab, prompt: list[int], recipe: str | None, tokens: int, temperature: float, seed: int, assistant: Any
) -> list[int]:
    return generate(
        lab.model, None, [prompt], recipe,
        max_new_tokens=tokens, temperature=temperature, seed=seed, ignore_eos=True,
        assistant=None if recipe is None else assistant,
    )[0].ids  # fmt: skip


def requests(lab: Lab, each: int = 1) -> list[list[int]]:
    """Requests about real paragraphs, `each` of a kind and seed, in the model's chat format where it has one."""
    found = []
    for seed in lab.seeds:
        draw = random.Random(f"requests/{seed}")
        for task in TASKS[:1] if lab.quick else TASKS * each:
            request = f"{task}: {draw.choice(paragraphs())[:600]}"
            found.append(lab.reader.ids(as_message(lab.tokenizer, request))[-256:])
    return found
