"""Top-p: text drawn from the likely part alone is as surprising as people's, and does not run into loops."""

from __future__ import annotations

from statistics import fmean

from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check, check
from tokenmill.claims.writing import PEOPLE, away, written

CLAIM = (
    "In perplexity, text drawn with top-p 0.95 is nearer to what people wrote after the same openings than text that "
    "is drawn from all tokens, and than greedy decoding's and beam search's; it also ends in a loop about as rarely "
    "as people's, and theirs more often."
)
PAPER = (
    "GPT-2 Large on openings of WebText, 200 tokens: perplexity and the share of texts that end in a loop are near "
    "people's with top-p 0.95, far below and far above with greedy decoding and beam search (table 1)"
)
BEYOND = "Zipf's coefficient, Self-BLEU, HUSE and people's judgement; beams of 16, a model that was not tuned to chat"
MINE, PURE, GREEDY, BEAM = "top_p(share=0.95)", "temperature(temperature=1.0)", "greedy", "beam(beams=4)"


def measure(lab: Lab) -> list[Check]:
    out = written(lab, [MINE, PURE, GREEDY, BEAM], tokens=200, each=7)
    people, mine, pure = (fmean(out.nats[spec]) for spec in (PEOPLE, MINE, PURE))
    lab.because(
        mine < people and abs(pure - people) < abs(mine - people),
        f"text drawn from all tokens is {pure - people:+.2f} nats a token from people's and with top-p "
        f"{mine - people:+.2f}: without its unlikely tokens it is too predictable by more than it was off with them",
    )
    what = "nats a token under the model, distance from people's text"
    looped = "share of texts that end in a loop, distance from people's"
    return [
        *(check(what, away(out.nats, MINE), away(out.nats, rival), "lower") for rival in (PURE, GREEDY, BEAM)),
        *(check(looped, away(out.loops, MINE), away(out.loops, rival), "lower") for rival in (GREEDY, BEAM)),
    ]
