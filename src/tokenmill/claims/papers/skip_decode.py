"""SkipDecode: a budget of layers that falls along the text is spent better than as much spent evenly."""

from __future__ import annotations

from statistics import fmean

from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import NEAR, Check
from tokenmill.method import get
from tokenmill.models.architectures import decoder_of
from tokenmill.types import Step

CLAIM = (
    "Falling budgets of layers, with lower and middle layers passed by, cost little, and less than passing by as many "
    "layers at every token alike or drawn at random."
)
PAPER = "OPT of 1.3 and 6.7 billion parameters, tuned with the schedule: 2x to 5x faster with negligible regression"
BEYOND = "models of 1.3 and 6.7 billion parameters"
MISSING_CONDITION = "the paper tunes its model with the schedule of layers"
LEAST = 0.7  # 1.18 times fewer layers on average: without tuning, the paper's 2x cannot be asked of it


def measure(lab: Lab) -> list[Check]:
    samples = lab.text(length=128, tail=64, block=1, each=2)
    tokens = len(samples[0].tail) - 1 if samples else 64
    mine = get("skip_decode")(least=LEAST, length=tokens)
    layers = len(decoder_of(lab.model).layers)
    share = fmean(len(mine(Step(0, i, layers)).layers) for i in range(1, tokens + 1)) / layers
    rivals = [get(name)(share=round(share, 3)) for name in ("constant_skip", "random_depth")]
    nats = lab.columns(samples, [mine, *rivals], "nats a token of real text")
    lab.note(repr(mine), "mean layers a token", [share * layers])
    loss = lab.compare("", nats, mine, None)[0].difference
    lab.because(
        loss is not None and (loss.low or 0) > NEAR,
        f"with {share * layers:.1f} of {layers} layers a token, text costs {loss.mean if loss else 0:.2f} nats a token "
        "more: without the paper's tuning this model has no layers to spare",
    )
    what = f"{share * layers:.1f} of {layers} layers on average, nats a token"
    return [
        *lab.compare(what, nats, mine, rivals),
        *lab.compare(f"{what}, against all layers", nats, mine, None, margin=NEAR),
    ]
