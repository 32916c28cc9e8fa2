"""Contrastive search: text that neither repeats itself nor loses its thread."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check, check
from tokenmill.claims.writing import Written, away, openings, written
from tokenmill.run.session import Session

CLAIM = (
    "Continuations repeat themselves less than greedy decoding's (diversity: product over n = 2, 3, 4 of the share of "
    "distinct n-grams), and their perplexity is nearer to that of people's text than greedy decoding's and than that "
    "of top-p sampling."
)
PAPER = (
    "GPT-2 tuned on Wikitext-103 with the contrastive loss: diversity 0.95 against 0.03 of greedy decoding and 0.94 of "
    "nucleus sampling, perplexity 18 against 7 and 50 where people's text has 24; MAUVE and coherence best"
)
BEYOND = "the contrastive loss the paper trains with, MAUVE, coherence and people's judgement; the model is as it came"
MINE, GREEDY, TOP_P = "contrastive", "greedy", "top_p(share=0.95)"


def measure(lab: Lab) -> list[Check]:
    out = written(lab, [MINE, GREEDY, TOP_P], tokens=96, each=10)
    alike = [_alike(lab, prompt) for prompt, _ in openings(lab, 1, 1 if lab.quick else 10)]
    lab.note(GREEDY, "mean cosine of an opening's states, two by two", alike)
    return checks(out)


def checks(out: Written) -> list[Check]:
    """The claim on these figures. Greedy decoding's own would pass none of them."""
    what = "nats a token under the model, distance from people's text"
    return [
        check("diversity", (MINE, out.diversity[MINE]), (GREEDY, out.diversity[GREEDY]), "higher"),
        *(check(what, away(out.nats, MINE), away(out.nats, rival), "lower") for rival in (GREEDY, TOP_P)),
    ]


@torch.no_grad()
def _alike(lab: Lab, prompt: list[int]) -> float:
    """Mean cosine of two of the prompt's final states: near 1 where a model's states all point the same way."""
    session = Session(lab.model)
    with session.engaged():
        session.read([prompt])
        states = normalize(session.hidden()[0].float(), dim=-1)
    return float(((states @ states.T).sum() - len(prompt)) / (len(prompt) * (len(prompt) - 1)))
