"""Typical acceptance: what the model itself finds plausible is accepted, so drafts give more, and text stays good."""

from __future__ import annotations

from statistics import fmean

from tokenmill.claims import writing
from tokenmill.claims.drafting import GREEDY, Drafted, drafted, recalled, requests
from tokenmill.claims.lab import MISSED, Lab
from tokenmill.claims.verdict import NEAR, Check, check

CLAIM = (
    "Of the same drafts more tokens a pass are accepted than by exact verification, at temperature 0.7 and where the "
    "likeliest token is taken; at 0.7 answers stay as often right as without drafting, and text as likely under the "
    "model."
)
PAPER = (
    "Vicuna 7B with Medusa's heads at temperature 0.7: faster than drawing with exact verification, quality on a par "
    "with it (figure 5)"
)
BEYOND = "drafts of Medusa's heads in a tree, quality as GPT-4 judges it, other thresholds, the speed"
SOURCES, WARM = ("first_layers(layers=20, nodes=4)", "prompt_lookup(nodes=4)"), 0.7


def measure(lab: Lab) -> list[Check]:
    warm = {source: f"{source} + typical_acceptance(temperature={WARM})" for source in SOURCES}
    cold = {source: f"{source} + typical_acceptance" for source in SOURCES}
    drawn = drafted(lab, [*warm, *warm.values()], temperature=WARM, told=f", temperature {WARM}")
    greedy = drafted(lab, [*cold, *cold.values()], told=", the likeliest token taken")
    codes = recalled(lab, list(warm.values()), temperature=WARM, length=256, each=10)
    nats = _nats(lab, drawn)
    checks = []
    for source, mine in warm.items():
        checks += [
            drawn.more(mine, source, f"tokens a pass at temperature {WARM}, of the same drafts"),
            greedy.more(cold[source], source, "tokens a pass, of the same drafts, the likeliest token taken"),
            check(
                f"share of codes hidden in 256 tokens of text that are written when asked for, temperature {WARM}",
                (mine, codes.get(mine, [])), ("without drafting", codes.get(GREEDY, [])), "higher", margin=MISSED,
            ),
            check(
                f"nats a token of text under the model, temperature {WARM}",
                (mine, nats[mine]), ("without drafting", nats[GREEDY]), "lower", margin=NEAR,
            ),
        ]  # fmt: skip
        lab.because(
            fmean(drawn.a_node[source]) > fmean(drawn.a_node[mine]),
            f"{source} at temperature {WARM}: exact verification accepts {fmean(drawn.a_node[source]):.0%} of the "
            f"drafted tokens, typical acceptance {fmean(drawn.a_node[mine]):.0%}",
        )
    return checks


def _nats(lab: Lab, out: Drafted) -> dict[str, list[float]]:
    """Nats a token of each spec's texts, under the untouched model."""
    nats = {
        spec: [writing.nats(lab, prompt, ids) for prompt, ids in zip(requests(lab), texts, strict=True)]
        for spec, texts in out.texts.items()
    }
    for spec, column in nats.items():
        lab.note(spec, f"nats a token of text under the model, temperature {WARM}", column)
    return nats
