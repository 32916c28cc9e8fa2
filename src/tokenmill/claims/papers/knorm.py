"""Key norm: tokens with short keys are the ones to keep."""

from __future__ import annotations

from torch import Tensor

from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import NEAR, Check
from tokenmill.method import get, method
from tokenmill.types import Keep, Trace

CLAIM = (
    "Half of the cache can go by key norm alone without loss on text, short keys are better kept than long ones or "
    "than tokens by lot, and a tenth of the cache still recalls a fact hidden in text."
)
PAPER = "Llama-2, Llama-3, Gemma: 50 % less cache on language modelling and needles, 90 % less on passkeys, no loss"
BEYOND = "contexts of tens of thousands of tokens"


@method(verb="score", title="")
def long_keys(trace: Trace) -> Tensor:
    """The opposite choice."""
    return -get("knorm")(trace)


@method(verb="keep", title="")
def first_layers_whole(trace: Trace, *, budget: float = 0.5) -> Keep:
    """What the authors ran: the first two layers keep everything."""
    if trace.layer < 2:
        return Keep(trace.filled)
    return get("top")(trace, get("knorm")(trace), budget=budget)


def measure(lab: Lab) -> list[Check]:
    half = "knorm(budget=0.5)"
    rivals = ["random_tokens(budget=0.5)", long_keys(budget=0.5)]
    nats = lab.columns(lab.text(each=6), [half, first_layers_whole, *rivals], "nats a token of real text")
    lab.copied(nats, half)
    tenth = "knorm(budget=0.1)"
    answers = lab.columns(lab.needles(seen=False), [tenth, "random_tokens(budget=0.1)"], "nats a token of the answer")
    unable = lab.unable(answers)
    spared = lab.compare("", nats, first_layers_whole, half)
    lab.because(
        bool(spared) and spared[0].outcome == "supported",
        "part of the loss comes from the first two layers, which the authors' runs leave whole: with them whole the "
        f"text costs {spared[0].value or 0:.2f} nats a token instead of {spared[0].rival_value or 0:.2f}",
    )
    return [
        *lab.compare("half of the cache, nats a token", nats, half, rivals),
        *lab.compare("half against the whole cache, nats a token", nats, half, None, margin=NEAR),
        *lab.recalls("a tenth", answers, tenth, lacking=unable),
    ]
