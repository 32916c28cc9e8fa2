"""Draft model: a smaller model drafts, the text stays what it is, and a formula says how many tokens a pass gives."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tokenmill.claims.beside import smaller
from tokenmill.claims.drafting import requests
from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check, check
from tokenmill.models.architectures import decoder_of
from tokenmill.models.trained import digest
from tokenmill.run.generate import generate
from tokenmill.run.session import Session

CLAIM = (
    "The greedy text is exactly the one without drafting; a pass gives more than one token, drawn or not; and how many "
    "follows from how often the two models agree at a place, a, and the tokens drafted a pass, g: "
    "(1 - a^(g + 1)) / (1 - a), to a tenth."
)
PAPER = "T5-XXL translating with T5-small's drafts: the same text 3.4 times as fast, drawn 2.6 times as fast (table 2)"
BEYOND = (
    "the speed; that drawn text has the model's distribution, which the tests of exact verification ask. Where no "
    "smaller model of the vocabulary is at hand, only copies of the model draft: without its last third of layers, or "
    "without a tenth from the middle, with its own norm and head"
)
DRAFTED = {"two thirds of the layers": 3, "all but a tenth of the layers": 5}  # tokens a pass: more where more agree
TRAINED = 5  # by a smaller model that was trained as one
MARGIN = 0.1
SIDES: tuple[Literal["higher"], Literal["lower"]] = ("higher", "lower")


def measure(lab: Lab) -> list[Check]:
    tokens, asked, checks = 16 if lab.quick else 128, requests(lab), []
    plain = [lab.unit(partial(_written, lab, prompt, None, tokens), prompt, tokens) for prompt in asked]
    lab.note("greedy", "tokens a pass", [a_pass for _, a_pass, _ in plain])
    models = _smaller(lab.model)
    trained, lacking = smaller(lab)
    if not lacking:
        models["a smaller model"] = trained
    for name, small in models.items():
        drafts = DRAFTED.get(name, TRAINED)
        spec = f"draft_model(nodes={drafts})"
        pair = digest(small)
        for temperature in (0.0, 1.0):
            what = f"{name}, temperature {temperature:g}"
            out = []
            for number, prompt in enumerate(asked, 1):
                lab.tick(f"{what}: prompt {number} of {len(asked)}")
                write = partial(_written, lab, prompt, spec, tokens, temperature, number, small)
                out.append(lab.unit(write, prompt, spec, tokens, temperature, number, pair))
            a_pass, agree = [a for _, a, _ in out], [torch.tensor(a) for _, _, a in out]
            chance = [float(a.mean()) for a in agree]
            ratio = [x / sum(a**n for n in range(drafts + 1)) for x, a in zip(a_pass, chance, strict=True)]
            lab.note(spec, f"tokens a pass, {what}", a_pass)
            lab.note(spec, f"chance that a drafted token is accepted, {what}", chance)
            if not temperature:
                alike = [float(o[0] == p[0]) for o, p in zip(out, plain, strict=True)]
                told, every = f"{name}, share of texts equal to greedy's", ("all", [1.0] * len(alike))
                checks.append(check(told, (spec, alike), every, "higher", identity=True))
            checks.append(lab.above(f"tokens a pass, {what}", (spec, a_pass), 1.0))
            told, foreseen = f"tokens a pass over those foreseen, {what}", ("the formula", [1.0] * len(ratio))
            checks += [check(told, (spec, ratio), foreseen, better, margin=MARGIN) for better in SIDES]
            after = float(sum((a[1:] * a[:-1]).sum() for a in agree) / sum(a[:-1].sum() for a in agree))
            lab.because(
                any(c.outcome != "supported" for c in checks[-2:]) and (fmean(ratio) - 1) * (after - fmean(chance)) > 0,
                f"{what}: a drafted token is accepted with a chance of {fmean(chance):.2f}, one after a token that was "
                f"with {after:.2f}, where the formula takes them to be equal",
            )
    return checks


def _written(
    lab: Lab,
    prompt: list[int],
    spec: str | None,
    tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    small: Any = None,
) -> tuple[list[int], float, list[float]]:
    """The text, its tokens a pass, and at each place the chance that what `small` drafts there is accepted."""
    out = generate(
        lab.model, None, [prompt], spec,
        max_new_tokens=tokens, temperature=temperature, seed=seed, assistant=small,
    )[0]  # fmt: skip
    agree = _agree(lab.model, small, prompt, out.ids, temperature).tolist() if small is not None else []
    return out.ids, (len(out.ids) - 1) / max(1, out.stats.forward_calls - 1), agree


def _smaller(model: Any) -> dict[str, Any]:
    """Copies of the model with fewer of its layers."""
    count = len(decoder_of(model).layers)
    third, tenth = max(1, count // 3), max(1, count // 10)
    middle = range((count - tenth) // 2, (count - tenth) // 2 + tenth)
    kept = [[*range(count - third)], [n for n in range(count) if n not in middle]]
    return {name: _with(model, layers) for name, layers in zip(DRAFTED, kept, strict=True)}


def _with(model: Any, layers: list[int]) -> Any:
    """A copy of the model that has only these of its layers."""
    small = deepcopy(model)
    base, config = small.base_model, small.config.get_text_config(decoder=True)
    where = "layers" if hasattr(base, "layers") else "h"
    chosen = nn.ModuleList(getattr(base, where)[n] for n in layers)
    setattr(base, where, chosen)
    for n, layer in enumerate(chosen):
        for part in layer.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = n  # type: ignore[assignment]
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[n] for n in layers]
    return small


def _agree(model: Any, small: Any, prompt: list[int], ids: list[int], temperature: float) -> Tensor:
    """At each place of a text (T,), the chance that what the smaller model drafts there is accepted."""
    p, q = (Session(m).read([prompt + ids], last=len(ids) + 1)[0, :-1].float() for m in (model, small))
    if not temperature:
        return (p.argmax(-1) == q.argmax(-1)).float()
    p, q = (x.div(temperature).softmax(-1) for x in (p, q))
    return torch.minimum(p, q).sum(-1)
