"""Layer drop: a model hardly misses one of its middle layers, and does miss its first and last ones."""

from __future__ import annotations

from statistics import fmean

import torch

from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check, check
from tokenmill.method import get
from tokenmill.run.probe import inquiry

CLAIM = (
    "With one middle layer left out, or exchanged with its neighbour, most predictions stay what they were; the "
    "first and the last layers matter more; what the model will say becomes readable in the second half of its depth."
)
PAPER = "eight models of 124 million to 7 billion parameters: 72 to 95 % of the top-1 predictions stay"
BEYOND = "the paper's probes of attention and neurons, and that deeper models are more robust: here is one model"
LEAST = 0.72


@torch.no_grad()
def measure(lab: Lab) -> list[Check]:
    samples = lab.text(length=48 if lab.quick else 128, tail=16, each=2)
    if not samples:
        return []
    columns: dict[str, list[float]] = {}
    ask = inquiry(lab.model)
    for number, sample in enumerate(samples, 1):
        lab.tick(f"text {number} of {len(samples)}")
        found = get("layer_drop")(ask, torch.tensor(sample.prompt + sample.tail))
        for name, value in found.figures.items():
            columns.setdefault(name, []).append(value)
        rows = {(row[0], row[1]): row for row in found.rows}
        for share in (0.5, 0.9):
            kl = rows["lens", round(share * ask.layers) - 1][3]
            columns.setdefault(f"kl of the lens at {share:g} of the depth", []).append(float(kl))
    for name, values in columns.items():
        lab.note("layer_drop", name, values)
    checks = []
    for what in ("delete", "swap"):
        middle, edges = columns[f"agreement, {what}, middle"], columns[f"agreement, {what}, edges"]
        checks.append(lab.above(f"{what} one middle layer, share of predictions that stay", ("middle", middle), LEAST))
        checks.append(check(f"{what}, share of predictions that stay", ("edges", edges), ("middle", middle), "lower"))
        lab.because(
            fmean(middle) < LEAST,
            f"{what}: {fmean(middle):.0%} stay in the middle, below the paper's {LEAST:.0%}; this model has "
            f"{sum(p.numel() for p in lab.model.parameters()):.2g} parameters, and the paper finds that depth helps",
        )
    half, late = (columns[f"kl of the lens at {share:g} of the depth"] for share in (0.5, 0.9))
    checks.append(check("kl to the final prediction", ("0.9 of the depth", late), ("0.5 of it", half), "lower"))
    return checks
