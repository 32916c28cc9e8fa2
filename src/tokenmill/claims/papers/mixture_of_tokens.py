"""Mixture of Tokens: experts that read mixed tokens beat a dense model, are worth a router, and can stop mixing."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokenmill.claims.lab import Lab
from tokenmill.claims.scratch import LENGTH, QUICK_STEPS, ROWS, STEPS, trained_figures
from tokenmill.claims.verdict import Check, check
from tokenmill.methods.skip.mixture_of_tokens import Experts, Mixed, figure, objective
from tokenmill.models.small import Small, attention_flops, feed_forward_flops, flops, head_flops, next_byte
from tokenmill.types import Batch

CLAIM = (
    "Trained with equal operations, experts that each read a mixture of the tokens at one position of several texts "
    "give a lower loss on held-out text than a dense model, and no higher one than a router that sends each token to "
    "one of as many experts; and the mixing can be switched off, by temperature or by giving a text alone, without "
    "losing that."
)
PAPER = "no figures in the abstract: keeps what sparse experts give, without discrete routing; mixing may be disabled"
BEYOND = (
    "the paper's sizes and text, masked models, routers with a limited capacity: here 2.5 million parameters over "
    "bytes. Texts are mixed with seven unrelated ones when they are judged too, unless said otherwise"
)
SIZE, LAYERS, EXPERTS, COOL = 96, 4, 8, 0.3
BALANCE = 0.01
CLOSE = 0.02  # nats a byte
NATS, MIXED = "nats a byte", "nats a byte, mixed with other texts"


class TopOne(nn.Module):
    """The rival: each token goes to its router's first choice; the load is balanced by a loss."""

    def __init__(self, size: int):
        super().__init__()
        self.router, self.experts = nn.Linear(size, EXPERTS, bias=False), Experts(size, EXPERTS)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is added (B, T, E), the loss, and the share of the tokens that each expert got."""
        likely = self.router(x).softmax(-1)
        weight, chosen = likely.max(-1)
        out = torch.zeros_like(x)
        for expert in range(EXPERTS):
            if bool((mask := chosen == expert).any()):
                out[mask] = weight[mask][:, None] * self.experts.one(expert, x[mask])
        load = chosen.flatten().bincount(minlength=EXPERTS) / chosen.numel()
        return out, EXPERTS * (load * likely.flatten(0, -2).mean(0)).sum(), load


class Routed(Small):
    def __init__(self) -> None:
        super().__init__(SIZE, LAYERS, feed_forward=TopOne)

    def forward(self, ids: Tensor) -> Tensor:
        return self.run(ids)[0]

    def run(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, the balance of all layers, the load of the busiest expert of each."""
        x, positions = self.start(ids)
        balance, busiest = x.new_zeros(()), []
        for block in self.stack:
            x = x + block.attention(block.norms[0](x), positions)
            out, uneven, load = block.feed_forward(block.norms[1](x))
            x, balance = x + out, balance + uneven
            busiest.append(load.max())
        return self.end(x), balance, torch.stack(busiest)


def _routed(model: Any, batch: Batch) -> Tensor:
    logits, balance, _ = model.run(batch.ids)
    return next_byte(logits, batch.ids) + BALANCE * balance


def _judged_routed(model: Any, batch: Batch) -> dict[str, float]:
    logits, _, busiest = model.run(batch.ids)
    return {NATS: float(next_byte(logits, batch.ids)), "load of the busiest expert": float(busiest.mean())}


def _plain(model: Any, batch: Batch) -> Tensor:
    return next_byte(model(batch.ids), batch.ids)


def _judged_plain(model: Any, batch: Batch) -> dict[str, float]:
    return {NATS: float(_plain(model, batch))}


def _mixed(cool: float = 0.0) -> Mixed:
    return Mixed(EXPERTS, ROWS, 1.0, cool, LAYERS, SIZE)


def operations(name: str) -> float:
    """Forward operations a token in training; backward ones are twice as many for each model."""
    context = (LENGTH + 1) / 2
    if name == "dense":
        return LAYERS * flops(SIZE, 1.0, context) + head_flops(SIZE)
    if name == "top-1 router":
        block = attention_flops(SIZE, context) + feed_forward_flops(SIZE) + 2 * SIZE * EXPERTS
        return LAYERS * block + head_flops(SIZE)
    return _mixed().cost(LENGTH, ROWS)


MODELS: dict[str, tuple[Any, Any, Any]] = {
    "mixture_of_tokens": (_mixed, objective, figure),
    "mixture_of_tokens, cooled": (lambda: _mixed(COOL), objective, figure),
    "dense": (lambda: Small(SIZE, LAYERS), _plain, _judged_plain),
    "top-1 router": (Routed, _routed, _judged_routed),
}


def measure(lab: Lab) -> list[Check]:
    steps = QUICK_STEPS if lab.quick else STEPS
    told: dict[str, list[dict[str, float]]] = {name: [] for name in MODELS}
    for seed in lab.seeds:
        for name, (make, loss, figures) in MODELS.items():

            def tick(step: str, name: str = name, seed: int = seed) -> None:
                lab.tick(f"seed {seed}: {name}, {step}")

            count = round(steps * operations("mixture_of_tokens") / operations(name))
            train = partial(trained_figures, make, loss, figures, seed, count, tick)
            told[name].append(lab.unit(train, name, seed, count))
            lab.note(name, "steps", [float(count)])
    columns: dict[str, list[float]] = {}
    for name, found in told.items():
        for what in found[0]:
            lab.note(name, what, [f[what] for f in found])
        columns[name] = [f.get(MIXED, f[NATS]) for f in found]
        lab.note(name, "nats a byte, range over seeds", [max(columns[name]) - min(columns[name])])
    mine = ("mixture_of_tokens", columns["mixture_of_tokens"])
    cold = ("mixture_of_tokens, cooled", columns["mixture_of_tokens, cooled"])
    alone = ("mixture_of_tokens, alone", [f[NATS] for f in told["mixture_of_tokens"]])
    what = f"{NATS} of held-out text after {steps} steps' worth of operations"
    return [
        check(what, mine, ("dense", columns["dense"]), "lower"),
        check(what, mine, ("top-1 router", columns["top-1 router"]), "lower", margin=CLOSE),
        check(f"{what}, each expert reading one token", cold, mine, "lower", margin=CLOSE),
        check(f"{what}, each text on its own", alone, mine, "lower", margin=CLOSE),
    ]
