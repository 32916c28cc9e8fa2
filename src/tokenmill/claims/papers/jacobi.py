"""Speculative Jacobi decoding: guesses that were predicted in parallel, checked by the ratio of two predictions."""

from __future__ import annotations

from tokenmill.claims.drafting import GREEDY, drafted
from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check

CLAIM = "Drawn text takes fewer passes than one a token; plain Jacobi decoding, without a draw, gains less."
PAPER = "Lumina-mGPT and Anole, 768-pixel images: about 2x fewer passes than next-token sampling (abstract: no figure)"
BEYOND = "images, whose neighbouring tokens are alike; here the method writes text"
GAIN = 0.5  # tokens a pass above one: half of what the paper has for images


def measure(lab: Lab) -> list[Check]:
    mine = "jacobi(nodes=8)"
    drawn, greedy = drafted(lab, [mine], temperature=1.0), drafted(lab, [mine])
    gain = drawn.more(mine, GREEDY, "tokens a pass at temperature 1")
    found = gain.difference.mean if gain.difference else 0.0
    lab.because(
        found < GAIN,
        f"{found:+.2f} tokens a pass: a word of text is seldom guessed before the word it follows is known",
    )
    plain = [value - 1 for value in greedy.a_pass[mine]]
    return [
        greedy.equal(mine),
        lab.above("tokens a pass gained at temperature 1", (mine, [v - 1 for v in drawn.a_pass[mine]]), GAIN),
        lab.above("tokens a pass gained without a draw", (f"{mine}, greedy", plain), 0.0),
    ]
