"""Early exit: how deep a token must go can be told on the way, from how sure the model is already."""

from __future__ import annotations

import math
from statistics import fmean

import torch

from tokenmill.bench.tasks import Sample
from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import NEAR, Check, check
from tokenmill.method import Method, get, method
from tokenmill.models.architectures import decoder_of
from tokenmill.run.session import Session
from tokenmill.types import Exit, Midway

CLAIM = (
    "Tokens that stop where the model is sure cost almost nothing in quality and save layers, and cost less than "
    "stopping all tokens after as many layers."
)
PAPER = "T5 of 8 decoder layers, trained with a loss at every layer: a third to a half of the layers on average"
BEYOND = "its calibrated threshold"
MISSING_CONDITION = "the paper trains its model with a loss at every layer, so that a head can read the middle ones"


@method(verb="skip", title="", acts="exit")
def same_layer(midway: Midway, *, depth: int = 1) -> Exit | None:
    """Every token stops after `depth` layers."""
    return Exit(torch.ones(len(midway.hidden), dtype=torch.bool)) if midway.layer + 1 == depth else None


def measure(lab: Lab) -> list[Check]:
    samples = lab.text(length=128, tail=64, block=1, each=2)
    if not samples:
        return []
    layers = len(decoder_of(lab.model).layers)
    mine = get("early_exit")(threshold=0.9)
    nats: dict[str, list[float]] = {}
    ran: dict[str, list[float]] = {}

    def add(spec: Method | None) -> str:
        name = "full" if spec is None else repr(spec)
        for number, sample in enumerate(samples, 1):
            lab.tick(f"{name}: sample {number} of {len(samples)}")
            loss, depth, heads = _read(lab, sample, spec)
            nats.setdefault(name, []).append(loss)
            ran.setdefault(name, []).append(depth)
            lab.note(name, "exit heads a token, last sample", [heads])
        lab.note(name, "nats a token of real text", nats[name])
        lab.note(name, "layers a token", ran[name])
        return name

    full, own = add(None), add(mine)
    rival = add(same_layer(depth=math.ceil(fmean(ran[own]))))  # never fewer layers than early exit had
    lost = fmean(nats[own]) - fmean(nats[full])
    lab.because(
        fmean(ran[own]) > 0.9 * layers,
        f"the model's middle layers cannot be read by its head: a token still runs {fmean(ran[own]):.1f} of {layers} "
        "layers before it is sure, and the heads asked on the way cost more than the layers saved",
    )
    lab.because(lost > NEAR, f"where the model is sure too early it is wrong: {lost:+.2f} nats a token")
    return [
        check("nats a token", (own, nats[own]), (full, nats[full]), "lower", margin=NEAR),
        check("layers a token", (own, ran[own]), (full, ran[full]), "lower"),
        check("nats a token, as many layers", (own, nats[own]), (rival, nats[rival]), "lower"),
    ]


def _read(lab: Lab, sample: Sample, spec: Method | None) -> tuple[float, float, float]:
    """Nats a token of the text after the prompt, read token by token; layers and exit heads a token."""
    session = Session(lab.model, spec)
    session.read([sample.prompt])
    before = session.stats.token_layers
    lost = []
    for token, following in zip(sample.tail[:-1], sample.tail[1:], strict=True):
        logits = session.read([[token]])[0].float()
        lost.append(-float(logits.log_softmax(-1)[following]))
    stats = session.stats
    return fmean(lost), (stats.token_layers - before) / len(lost), stats.exit_heads / len(lost)
