"""H2O: at a fifth of the cache, heavy hitters and recent tokens together keep the text; without them it falls apart."""

from __future__ import annotations

from torch import Tensor

from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import NEAR, Check
from tokenmill.method import get, method
from tokenmill.types import Trace

CLAIM = (
    "With 20 % of the cache, heavy hitters plus recent tokens predict text as well as the whole cache does, and better "
    "than recent tokens alone; removing the heavy hitters does more harm than removing as many tokens by lot."
)
PAPER = (
    "OPT, LLaMA and GPT-NeoX keep their accuracy at 20 % of the cache; throughput up to 29x, latency up to 1.9x lower"
)
BEYOND = "throughput and latency, which the paper takes from systems that offload to a GPU"


@method(verb="score", title="", needs=("all_queries",), every=1)
def without_heavy_hitters(trace: Trace, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The opposite of h2o: the tokens that drew the most attention leave first."""
    total, state = get("h2o")(trace, state, recent=0.0)
    return -total, state


def measure(lab: Lab) -> list[Check]:
    rivals = ["recent_window(budget=0.2)", "random_tokens(budget=0.2)"]
    deleted, lot = without_heavy_hitters(budget=0.8), "random_tokens(budget=0.8)"
    nats = lab.columns(lab.text(each=6), ["h2o(budget=0.2)", *rivals, deleted, lot], "nats a token of real text")
    lab.copied(nats, "h2o(budget=0.2)")
    return [
        *lab.compare("20 % of the cache, nats a token", nats, "h2o(budget=0.2)", rivals),
        *lab.compare("20 % against the whole cache, nats a token", nats, "h2o(budget=0.2)", None, margin=NEAR),
        *lab.compare("the heaviest fifth removed, nats a token", nats, deleted, lot, better="higher"),
    ]
