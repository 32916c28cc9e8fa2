"""TOVA: what the newest token looks at is enough to keep."""

from __future__ import annotations

from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import NEAR, Check

CLAIM = (
    "Dropping the token that the newest query looks at least is nearly on par with the whole cache at an eighth to a "
    "quarter of it, and better than a window, than a window with sinks, and than H2O."
)
PAPER = "LLaMA-2, Mistral, Yi: within half a point of perplexity of the full model at 1/8 to 1/4 of its cache"
BEYOND = "the paper's 4.8x throughput, which a larger batch on a GPU gives"


def measure(lab: Lab) -> list[Check]:
    quarter, eighth = "tova(budget=0.25)", "tova(budget=0.125)"
    rivals = [
        "recent_window(budget=0.125)",
        "streaming_llm(budget=0.125, renumber=False)",
        "h2o(budget=0.125)",
    ]
    nats = lab.columns(lab.text(each=6), [quarter, eighth, *rivals], "nats a token of real text")
    lab.copied(nats, quarter)
    return [
        *lab.compare("an eighth of the cache, nats a token", nats, eighth, rivals),
        *lab.compare("a quarter against the whole cache, nats a token", nats, quarter, None, margin=NEAR),
    ]
