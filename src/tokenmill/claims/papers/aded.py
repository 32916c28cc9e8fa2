"""ADED: a table of trigrams that learns while it drafts."""

from __future__ import annotations

from typing import Any

from tokenmill.claims.drafting import GREEDY, drafted
from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check
from tokenmill.method import Method, get, method
from tokenmill.types import Verified

CLAIM = (
    "Text comes out exactly as greedy decoding writes it, in fewer passes; learning from what is said accepts more "
    "than a table that stays as the prompt left it, and the search more than looking drafts up."
)
PAPER = (
    "Vicuna and others on MT-Bench, Alpaca, Human-Eval: up to 2.5x faster than plain decoding (paper's summary; the "
    "abstract has no figure)"
)
BEYOND = "the authors' table starts from a chat corpus; this one starts empty"
NODES = 12
LOOKUP = f"prompt_lookup(nodes={NODES})"


@method(verb="draft", title="", role="source", tree="fixed", lossless=True)
def frozen_trigram(seen: Verified, state: Any, *, width: int = 8) -> tuple[object, Any]:
    """The table as the prompt left it."""
    learning: Method = get("trigram")(width=width)
    if state is None:
        _, (_, state) = learning(seen, None)
    look, _ = learning(seen, (len(seen.context), state))  # all of the text counts as counted
    return look, state


def measure(lab: Lab) -> list[Check]:
    mine, still, lookup = get("aded")(nodes=NODES), get("aded")(source=frozen_trigram, nodes=NODES), LOOKUP
    out = drafted(lab, [mine, still, lookup])
    return [
        out.equal(repr(mine)),
        out.more(repr(mine), GREEDY),
        out.more(repr(mine), repr(still), "tokens a pass, against the table of the prompt alone"),
        out.more(repr(mine), lookup),
    ]
