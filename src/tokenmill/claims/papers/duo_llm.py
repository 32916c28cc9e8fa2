"""Duo-LLM: an oracle that uses one large module a token beats large modules everywhere, and a trained router too."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokenmill.claims.lab import Lab
from tokenmill.claims.scratch import LENGTH, QUICK_STEPS, ROWS, STEPS, learn, text
from tokenmill.claims.verdict import Check, check
from tokenmill.methods.skip.duo_llm import (
    ROUTED_ROWS,
    ROUTING_FROM,
    SHRINK,
    Duo,
    by_lot,
    fixed,
    large,
    objective,
    oracle,
    prefixes,
)
from tokenmill.models.small import FeedForward, Small, attention_flops, feed_forward_flops, head_flops, next_byte
from tokenmill.types import Batch

CLAIM = (
    "In a model whose feed-forward networks have small twins, trained with routes by lot, an oracle that lets each "
    "token use the large module in at most one layer has a lower loss on held-out text than large modules in every "
    "layer, of that model and of one trained so with as many operations, than a model of as many operations a token, "
    "and than a trained router with one large module a token."
)
PAPER = "no figures in the abstract: the large module in just one layer, chosen by an oracle, beats it in all layers"
BEYOND = (
    "how much of the oracle's gain is the large module and how much is seeing the byte that it predicts: the figures "
    "of an oracle without any large module stand beside, and a choice among n routes can tell log n nats about the "
    "byte; the paper's sizes and text: here 6 layers, 96 wide, over bytes"
)
SIZE, LAYERS, BIG = 96, 6, 1
NATS = "nats a byte"
EVERYWHERE, ONCE = "trained with large modules in every layer", "trained with a large module in one layer"


def operations(name: str = "") -> float:
    """Forward operations a token in training; backward ones are twice as many for each. "": the model with twins."""
    inner = 8 * SIZE // 3
    whole, small = feed_forward_flops(SIZE, inner), feed_forward_flops(SIZE, inner // SHRINK)
    fixed_part = LAYERS * attention_flops(SIZE, (LENGTH + 1) / 2) + head_flops(SIZE)
    if name == EVERYWHERE:
        return fixed_part + LAYERS * whole
    if name == ONCE:
        return fixed_part + whole + (LAYERS - 1) * small
    routing = (1 - ROUTING_FROM) * ROUTED_ROWS * (fixed_part + LAYERS * (whole + small))  # routers learn from both
    return fixed_part + LAYERS * (whole + small) / 3 + routing


def rival(name: str) -> nn.Module:
    """A model without twins: large modules in every layer, or in the middle one, small ones elsewhere."""
    made = Small(SIZE, LAYERS)
    for layer, block in enumerate(made.stack):
        if name == ONCE and layer != LAYERS // 2:
            block.feed_forward = FeedForward(SIZE, 8 * SIZE // 3 // SHRINK)
    return made


def _plain(model: Any, batch: Batch) -> Tensor:
    return next_byte(model(batch.ids), batch.ids)


def best_layer(model: Duo, seed: int) -> int:
    """The layer where the large module helps most when all tokens have it there, on text it was trained on."""
    ids = text().batch(4 * ROWS, LENGTH, seed, STEPS)
    losses = [next_byte(model(ids, fixed(LAYERS, ids, (layer,))), ids) for layer in range(LAYERS)]
    return int(torch.stack(losses).argmin())


@torch.no_grad()
def judged(model: Callable[[Tensor], Tensor], ids: Tensor) -> float:
    return float(next_byte(model(ids), ids))


@torch.no_grad()
def figures(model: Duo, ids: Tensor, seed: int) -> dict[str, dict[str, float]]:
    """What each way to route costs on the same text."""
    taken: list[Tensor] = []
    routed = model(ids, taken=taken)
    static = {
        "all large": tuple(range(LAYERS)),
        "all small": (),
        "large in one layer for all": (best_layer(model, seed),),
    }
    told = {
        name: {NATS: float(next_byte(model(ids, fixed(LAYERS, ids, where)), ids))} for name, where in static.items()
    }
    told["trained router"] = {NATS: float(next_byte(routed, ids)), "large modules a byte": float(large(taken))}
    told["routes by lot"] = {NATS: float(next_byte(model(ids, by_lot(LAYERS, ids)), ids))}
    choices = torch.stack(taken, 2).argmax(-1)[:, :-1]  # (B, T - 1, L)
    for big in (0, BIG, LAYERS):
        nats, routes = oracle(model, ids, big)
        told[f"duo_llm oracle, {big} large"] = {
            NATS: float(nats.mean()),
            "large modules a byte": float((routes == 2).sum(-1).float().mean()),
            "nats that a choice of route can tell": math.log(len(prefixes(LAYERS, big)[-1][0])),
            "share of choices that the router makes too": float((routes == choices).float().mean()),
        }
    return told


def _rival_nats(name: str, seed: int, steps: int, rows: int, tick: Callable[[str], None]) -> float:
    return judged(learn(partial(rival, name), _plain, seed, steps, tick), text().judged(rows, LENGTH))


def _own_figures(seed: int, steps: int, rows: int, tick: Callable[[str], None]) -> dict[str, dict[str, float]]:
    model = learn(lambda: Duo(BIG, LAYERS, SIZE), objective, seed, steps, tick)
    tick("every route of every token")
    assert isinstance(model, Duo)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return figures(model, text().judged(rows, LENGTH), seed)


def measure(lab: Lab) -> list[Check]:
    steps, rows = (QUICK_STEPS, 4) if lab.quick else (STEPS, 16)
    told: dict[str, list[dict[str, float]]] = {}
    for seed in lab.seeds:

        def tick(step: str, seed: int = seed) -> None:
            lab.tick(f"seed {seed}: {step}")

        for name in (EVERYWHERE, ONCE):
            count = round(steps * operations() / operations(name))
            nats = lab.unit(partial(_rival_nats, name, seed, count, rows, tick), name, seed, count, rows)
            told.setdefault(name, []).append({NATS: nats, "steps": count})
        for name, found in lab.unit(partial(_own_figures, seed, steps, rows, tick), seed, steps, rows).items():
            told.setdefault(name, []).append(found)
    for way, many in told.items():
        for quantity in many[0]:
            lab.note(way, quantity, [f[quantity] for f in many])
    columns = {way: [f[NATS] for f in many] for way, many in told.items()}
    name = f"duo_llm oracle, {BIG} large"
    what = f"{NATS} of held-out text after {steps} steps"
    return [
        check(what, (name, columns[name]), (other, columns[other]), "lower")
        for other in ("all large", EVERYWHERE, ONCE, "trained router")
    ]
