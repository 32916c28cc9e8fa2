"""Skip-middle: gates that let tokens skip the middle are no better than a model with fewer layers."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

from tokenmill.claims.lab import Lab
from tokenmill.claims.scratch import QUICK_STEPS, STEPS, trained_figures
from tokenmill.claims.verdict import Check, check
from tokenmill.methods.skip.skip_middle import Gated, figure, objective

CLAIM = (
    "Gates that let tokens skip the middle layers do not lower the loss on held-out text below that of dense models of "
    "as many operations, after as many training steps."
)
PAPER = "no improvement in validation cross-entropy against estimated operations over dense models of fewer layers"
BEYOND = (
    "the paper's size (its code: 12 layers, 768 wide, FineWeb): here 6 layers, 96 wide, over bytes; operations are "
    "those of reading, counted by gates that are 0"
)
SIZE, LAYERS, TARGET = 96, 6, 0.5
DENSE = (1, 2, 4, 6)
CLOSE = 0.02  # nats a byte: less is no improvement
NATS, COST = "nats a byte", "operations a byte"


def measure(lab: Lab) -> list[Check]:
    steps = QUICK_STEPS if lab.quick else STEPS
    gated: list[float] = []
    line: list[float] = []
    told: dict[str, list[dict[str, float]]] = {}
    for seed in lab.seeds:
        names = {f"dense, {n} layers": (n, True) for n in DENSE} | {"skip_middle": (LAYERS, False)}
        for name, (layers, dense) in names.items():

            def tick(step: str, name: str = name, seed: int = seed) -> None:
                lab.tick(f"seed {seed}: {name}, {step}")

            def make(layers: int = layers, dense: bool = dense) -> Gated:
                # The coefficients travel as far in a short training as in a long one.
                return Gated(layers, SIZE, TARGET, 10 / steps, dense)

            train = partial(trained_figures, make, objective, figure, seed, steps, tick)
            told.setdefault(name, []).append(lab.unit(train, name, seed, steps))
        mine = told["skip_middle"][-1]
        gated.append(mine[NATS])
        line.append(between([(told[n][-1][COST], told[n][-1][NATS]) for n in names if n != "skip_middle"], mine[COST]))
    for name, figures in told.items():
        for what in figures[0]:
            lab.note(name, what, [f[what] for f in figures])
    blocks = [f["blocks a byte"] for f in told["skip_middle"]]
    lab.because(
        min(blocks) > LAYERS - 0.5,
        f"the gates hardly closed: {sum(blocks) / len(blocks):.2f} of {LAYERS} blocks a byte were run",
    )
    what = f"{NATS} of held-out text after {steps} steps, at the gated model's operations a byte"
    rival = "dense models' line"
    return [check(what, ("skip_middle", gated), (rival, line), "higher", margin=CLOSE)]


def between(points: list[tuple[float, float]], at: float) -> float:
    """The loss of a dense model of so many operations: a straight line between neighbours, over log operations."""
    points = sorted(points)
    pairs = list(pairwise(points))
    (x, y), (z, w) = next((p for p in pairs if at <= p[1][0]), pairs[-1])
    share = (math.log(at) - math.log(x)) / (math.log(z) - math.log(x))
    return y + share * (w - y)
