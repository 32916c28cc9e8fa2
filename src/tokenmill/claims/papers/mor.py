"""MoR: fewer operations a token, spent on more tokens, beat the models whose every token takes every layer."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from tokenmill.claims.lab import Lab
from tokenmill.claims.scratch import LENGTH, QUICK_STEPS, STEPS, trained_figures
from tokenmill.claims.verdict import Check, check
from tokenmill.methods.skip.mor import Recursive, objective
from tokenmill.methods.skip.mor import figure as routed
from tokenmill.models.small import Small, flops, head_flops, next_byte
from tokenmill.types import Batch

CLAIM = (
    "Trained with equal operations, a model that routes each token through its own number of rounds has a lower loss "
    "on held-out text than a plain model as deep as all its rounds, than a plain one of as many operations a token, "
    "and than one that sends every token through every round."
)
PAPER = "135M to 1.7B: lower validation perplexity and better few-shot accuracy at equal training operations"
BEYOND = (
    "models of that size, few-shot tasks, throughput: here half a million parameters over bytes. A model whose tokens "
    "go on by chance, weighed by a router that learns, stands beside: the paper does not measure one"
)
SIZE, STACK, ROUNDS, SCALE = 96, 2, 3, 0.1
# As many blocks as a token runs on average: the first, the last, and the stack in (3 + 2 + 1) / 3 of the rounds.
AS_MUCH = 2 + STACK * (ROUNDS + 1) // 2
NATS, BY_RANK = "nats a byte", "nats a byte, routed by rank"
LOT = "by lot"
MODELS = {
    "mor": "learned",
    "plain, as deep as all rounds": "plain",
    "plain, as many operations a token": "shallow",
    "recursive": "all",
    LOT: "random",
}
BLOCKS = {"plain": STACK * ROUNDS + 2, "shallow": AS_MUCH}


def _plain(model: Any, batch: Batch) -> Tensor:
    return next_byte(model(batch.ids), batch.ids)


def _judged_plain(model: Any, batch: Batch) -> dict[str, float]:
    return {NATS: float(_plain(model, batch))}


def _recursive(routing: str) -> nn.Module:
    return Recursive(ROUNDS, SCALE, STACK, SIZE, routing)


def _plain_model(blocks: int) -> nn.Module:
    return Small(SIZE, blocks)


def operations(routing: str) -> float:
    """Forward operations a token in training; backward ones are twice as many for each model."""
    ends, whole = 2 * flops(SIZE, 1.0, (LENGTH + 1) / 2), flops(SIZE, 1.0, (LENGTH + 1) / 2)
    if routing == "shallow":
        return AS_MUCH * whole + head_flops(SIZE)
    if routing in ("plain", "all"):
        return ends + ROUNDS * STACK * whole + head_flops(SIZE)
    shares = [(ROUNDS - r) / ROUNDS for r in range(ROUNDS)]
    return ends + sum(STACK * flops(SIZE, s, (s * LENGTH + 1) / 2) for s in shares) + head_flops(SIZE)


def measure(lab: Lab) -> list[Check]:
    steps = QUICK_STEPS if lab.quick else STEPS
    names = dict(MODELS)
    losses: dict[str, list[float]] = {name: [] for name in names}
    by_rank: list[float] = []
    rounds: list[float] = []
    for seed in lab.seeds:
        for name, routing in names.items():

            def tick(step: str, name: str = name, seed: int = seed) -> None:
                lab.tick(f"seed {seed}: {name}, {step}")

            count = round(steps * operations("learned") / operations(routing))
            if routing in BLOCKS:
                trained = partial(trained_figures, partial(_plain_model, BLOCKS[routing]), _plain, _judged_plain)
            else:
                trained = partial(trained_figures, partial(_recursive, routing), objective, routed)
            told = lab.unit(partial(trained, seed, count, tick), name, seed, count)
            losses[name].append(told[NATS])
            if name == "mor":
                by_rank.append(told[BY_RANK])
                lab.note("mor", BY_RANK, [*by_rank])
                rounds.append(told["rounds a byte"])
                lab.note("mor", "rounds a byte by the threshold", [*rounds])
            lab.note(name, "steps", [float(count)])
    for name, values in losses.items():
        lab.note(name, NATS, values)
    what = f"{NATS} of held-out text after {steps} steps' worth of operations"
    ahead = check("", ("mor", losses["mor"]), ("by rank", by_rank), "lower").difference
    lab.because(
        ahead is not None and (ahead.low or 0) > 0,
        f"by the threshold the loss is {ahead.mean if ahead else 0:.3f} nats above what ranking the whole text gives: "
        "a router that may not look ahead chooses other tokens",
    )
    rivals = [name for name in names if name not in ("mor", LOT)]
    return [check(what, ("mor", losses["mor"]), (name, losses[name]), "lower") for name in rivals]
